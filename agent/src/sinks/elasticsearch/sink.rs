//! Fills requests and sends them; [`answers`] settles their lines.

mod answers;

use std::{
    collections::VecDeque,
    fmt, thread,
    time::{Duration, Instant},
};

use reqwest::{
    Method,
    header::{CONTENT_ENCODING, HeaderValue},
};

use super::{
    config::{Compression, Settings},
    encode::{Bulk, Entry, Filler, NoRoom},
    held::{Held, Oldest},
    open::Open,
    reach::{client, error},
    reply::FILTER,
    servers::Servers,
    setup::{Setup, Step},
};
use crate::{
    ledger::Reason,
    sinks::{
        Delivery, Figure, Sink, SinkError,
        attempts::Attempts,
        flights::Flights,
        http_client::Request,
        receipt::{Lines, rejoin},
        refusals::Refusals,
    },
};

/// How long a call waits for answers before it returns, while something is wrong and while all goes well.
const ANSWER_WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// The Elasticsearch and OpenSearch sink.
pub struct ElasticsearchSink {
    settings: Settings,
    servers: Servers,
    setup: Setup,
    flights: Flights<Load>,
    filler: Filler,
    /// When the first line of the request that is being filled came.
    filling_since: Option<Instant>,
    /// Requests that are to be sent, in order.
    waiting: VecDeque<Bulk>,
    /// Lines that the server had no time for.
    again: Vec<Entry>,
    /// Lines of indices that take nothing.
    held: Held,
    open: Open,
    attempts: Attempts,
    refusals: Refusals<Bulk>,
    counts: Counts,
}

/// What a request under way carries, and the server that it went to.
enum Load {
    Bulk(Bulk, usize),
    Setup(Step, usize),
}

#[derive(Debug, Default)]
struct Counts {
    retried: u64,
    dead_letters: u64,
}

impl fmt::Debug for ElasticsearchSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElasticsearchSink").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

impl ElasticsearchSink {
    /// Makes the client; it connects with the first request.
    ///
    /// # Errors
    /// A URL is none, or a file of `tls` can't be used.
    pub fn new(settings: Settings) -> Result<Self, SinkError> {
        let client = client(&settings)?;
        Ok(Self {
            servers: Servers::new(&settings.urls).map_err(error)?,
            setup: Setup::default(),
            flights: Flights::new(client, settings.max_in_flight),
            filler: Filler::new(&settings),
            filling_since: None,
            waiting: VecDeque::new(),
            again: Vec::new(),
            held: Held::default(),
            open: Open::default(),
            attempts: Attempts::default(),
            refusals: Refusals::default(),
            counts: Counts::default(),
            settings,
        })
    }

    /// Takes up a delivery, line by line.
    fn take(&mut self, delivery: Delivery) {
        let lines = Lines::new(&delivery.batch, delivery.receipt);
        for index in 0..delivery.batch.lines.len() {
            let mut entry = Some(Entry::new(lines.line(index)));
            if !self.held.is_empty() {
                entry = entry.and_then(|entry| self.held.hold_back(self.filler.index_of(&entry), entry));
            }
            entry.into_iter().for_each(|entry| self.fill(entry));
        }
        if self.filling_since.is_none() && !self.filler.is_empty() {
            self.filling_since = Some(Instant::now());
        }
    }

    fn fill(&mut self, entry: Entry) {
        let entry = match self.filler.add(entry) {
            Err(NoRoom::Full(entry)) => {
                self.close_request();
                self.filler.add(entry)
            }
            result => result,
        };
        if let Err(NoRoom::TooLarge(entry, size)) = entry {
            self.give_up(
                entry,
                Reason::Oversize,
                &format!("it makes {size} bytes: raise `max_request_bytes`, or lower `lines.max_line_bytes`"),
            );
        }
    }

    fn give_up(&mut self, entry: Entry, reason: Reason, why: &str) {
        let index = self.filler.index_of(&entry);
        self.attempts.give_up(format!("a line for index {index} is dropped: {why}"));
        if entry.is_trial {
            self.held.note_no_trial(index);
        }
        entry.receipt.give_up(reason);
    }

    /// The most memory of lines that are held while other indices take lines: those need the rest of what the sink may have.
    fn max_held(&self) -> usize {
        self.settings.buffer.at_once() / 2
    }

    /// Lets no index that takes nothing keep others from getting lines: the oldest of what is held for it goes to the
    /// dead-letter index, and where that takes nothing either, nowhere.
    fn make_room_for_others(&mut self, now: Instant) {
        while self.held.is_over(self.max_held()) {
            let dead_letters = &self.settings.dead_letter_index;
            // Where no index takes anything, the cluster is in trouble: all wait, and nothing is lost.
            if !self.open.any(self.held.in_common_trouble_since(dead_letters), now) {
                return;
            }
            let takes_dead_letters = !self.held.has(dead_letters);
            let Some(Oldest { refusal, lines }) = self.held.take_oldest() else { return };
            for entry in lines {
                if takes_dead_letters && entry.rejection.is_none() {
                    self.refused(entry, refusal.kind.clone(), refusal.why.clone());
                } else {
                    let reason = if refusal.is_blocked { Reason::Blocked } else { Reason::Rejected };
                    self.give_up(entry, reason, &format!("there is no more room to hold it: {}", refusal.why));
                }
            }
        }
    }

    /// Makes a request of the lines that wait for more.
    fn close_request(&mut self) {
        self.filling_since = None;
        self.waiting.extend(self.filler.finish());
    }

    /// Makes requests of lines that were sent before, in front of all others.
    fn put_back(&mut self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        self.close_request();
        let newer = std::mem::take(&mut self.waiting);
        entries.into_iter().for_each(|entry| self.fill(entry));
        self.close_request();
        self.waiting.extend(newer);
    }

    /// Sends what waits, as far as it may be sent.
    fn send(&mut self) {
        let now = Instant::now();
        self.make_room_for_others(now);
        if self.attempts.pause(now).is_some() {
            return;
        }
        let held = self.held.due(now);
        self.put_back(held);
        let again = std::mem::take(&mut self.again);
        self.put_back(again);
        while self.flights.has_room() && self.attempts.may_send(self.flights.len(), now) {
            if self.waiting.is_empty() {
                return;
            }
            if !self.setup.is_done(now) {
                // A request that is under way belongs to the server as it was.
                if self.flights.len() == 0 {
                    self.send_setup(now);
                }
                return;
            }
            let Some(bulk) = self.next_bulk() else { return };
            self.send_bulk(bulk, now);
        }
    }

    fn next_bulk(&mut self) -> Option<Bulk> {
        // While the server is in doubt: what was never refused is the most likely to be taken.
        let fresh = self.waiting.iter().rposition(|bulk| self.refusals.is_in_doubt() && !bulk.was_refused);
        self.waiting.remove(fresh.unwrap_or(0))
    }

    fn send_bulk(&mut self, bulk: Bulk, now: Instant) {
        let server = self.servers.pick(now);
        // An index without a primary has to be told of before the time of the request is over.
        let timeout = (self.settings.request_timeout / 2).as_millis();
        let url = self.servers.url(server, &format!("_bulk?filter_path={FILTER}&timeout={timeout}ms"));
        let mut request = Request::new(Method::POST, url, self.settings.auth.as_ref())
            .with_body("application/x-ndjson", bulk.body.clone());
        if self.settings.compression == Compression::Gzip {
            request = request.with_header(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        self.flights.start(request, Load::Bulk(bulk, server));
    }

    fn send_setup(&mut self, now: Instant) {
        let Some((step, method, path, body)) = self.setup.next(&self.settings, now) else { return };
        let server = self.servers.pick(now);
        let mut request = Request::new(method, self.servers.url(server, &path), self.settings.auth.as_ref());
        if let Some(body) = body {
            request = request.with_body("application/json", body.to_string());
        }
        self.flights.start(request, Load::Setup(step, server));
    }

    /// Sends and settles until nothing can be done before `until`.
    fn work(&mut self, until: Instant) {
        loop {
            self.land();
            self.send();
            let now = Instant::now();
            if now >= until || self.is_idle() {
                return;
            }
            if self.flights.len() > 0 {
                self.flights.wait(until);
            } else {
                match self.attempts.pause(now) {
                    Some(end) if end < until => thread::sleep(end - now),
                    _ => return,
                }
            }
        }
    }

    /// Nothing is to be sent, but what is held.
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.again.is_empty() && self.flights.len() == 0
    }

    /// Whether no more may be taken up.
    fn is_full(&self) -> bool {
        let most = usize::try_from(self.settings.max_request_bytes.as_u64()).unwrap_or(usize::MAX);
        // More lines may show that it is not the server that is at fault.
        let is_waiting = if self.refusals.is_in_doubt() {
            self.waiting.iter().map(Bulk::bytes).sum::<usize>() >= most
        } else {
            !self.waiting.is_empty()
        };
        // Behind a buffer on disk it never holds as much.
        is_waiting || self.held.is_over(self.max_held().saturating_mul(2))
    }

    /// Tells when to call again, and what keeps lines from getting through, if anything does.
    fn check(&mut self) -> Result<(), SinkError> {
        self.plan();
        self.attempts.tell().map_or(Ok(()), |why| Err(error(why)))
    }

    fn plan(&mut self) {
        let now = Instant::now();
        let linger = self.filling_since.map(|since| since + self.settings.linger);
        let waits = !self.waiting.is_empty() || !self.again.is_empty();
        let held = self.held.next(now).map(|at| self.attempts.pause(now).map_or(at, |pause| pause.max(at)));
        self.attempts.plan(self.flights.len(), waits, [linger, held], now);
    }

    fn no_room(&mut self) -> SinkError {
        self.plan();
        let why = self.attempts.tell().or_else(|| self.held.why());
        error(why.unwrap_or_else(|| {
            format!("the server answers slower than lines come: {} requests are under way", self.flights.len())
        }))
    }

    /// How many lines are not settled.
    fn unsettled(&mut self) -> usize {
        self.waiting.iter().map(|bulk| bulk.entries.len()).sum::<usize>()
            + self.again.len()
            + self.held.len()
            + self.refusals.len()
    }
}

impl Sink for ElasticsearchSink {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn write(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError> {
        loop {
            self.land();
            if self.filling_since.is_some_and(|since| since.elapsed() >= self.settings.linger) {
                self.close_request();
            }
            self.send();
            if self.is_full() && !queue.is_empty() {
                let wait = if self.attempts.is_failing() { ANSWER_WAIT.0 } else { ANSWER_WAIT.1 };
                let until = Instant::now() + wait;
                while self.is_full() && self.flights.len() > 0 && Instant::now() < until {
                    self.flights.wait(until);
                    self.land();
                    self.send();
                }
                if self.is_full() {
                    return Err(self.no_room());
                }
            }
            let Some(delivery) = queue.pop_front() else { return self.check() };
            self.take(delivery);
        }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        if let Some(since) = self.filling_since {
            let until = since + self.settings.linger;
            // A long time is looked at again in [`Sink::tick`], so that the end does not wait for it.
            if until.saturating_duration_since(Instant::now()) <= ANSWER_WAIT.0 {
                // More lines come into the queue meanwhile, and go with the next request.
                self.work(until);
                thread::sleep(until.saturating_duration_since(Instant::now()));
                self.close_request();
            }
        }
        self.work(Instant::now() + ANSWER_WAIT.0);
        self.check()
    }

    fn tick(&mut self) -> Result<(), SinkError> {
        self.call()?;
        // Other indices go on, so that only this tells it.
        self.held.why().map_or(Ok(()), |why| Err(error(why)))
    }

    fn next_call(&self) -> Option<Instant> {
        self.attempts.next_call()
    }

    fn call(&mut self) -> Result<(), SinkError> {
        if self.filling_since.is_some_and(|since| since.elapsed() >= self.settings.linger) {
            self.close_request();
        }
        self.work(Instant::now());
        self.check()
    }

    fn figures(&self) -> Vec<Figure> {
        let values = [
            ("sidestep_elasticsearch_requests_in_flight", self.flights.len() as f64),
            ("sidestep_elasticsearch_retried_records_total", self.counts.retried as f64),
            ("sidestep_elasticsearch_dead_letter_records_total", self.counts.dead_letters as f64),
            ("sidestep_elasticsearch_held_records", self.held.records() as f64),
        ];
        values.map(|(name, value)| Figure { name, value }).to_vec()
    }

    fn close(&mut self, limit: Duration) -> Result<(), SinkError> {
        let until = Instant::now() + limit;
        self.close_request();
        // What is held is tried once more.
        let held = self.held.take_all();
        self.put_back(held);
        self.attempts.hurry();
        self.work(until);
        while !self.is_idle() && Instant::now() < until {
            thread::sleep(until.saturating_duration_since(Instant::now()).min(ANSWER_WAIT.0));
            self.work(until);
        }
        for load in self.flights.cancel().into_iter().rev() {
            if let Load::Bulk(bulk, _) = load {
                self.waiting.push_front(bulk);
            }
        }
        let lines = self.unsettled();
        if lines == 0 {
            return self.check();
        }
        let why = self.attempts.tell().or_else(|| self.held.why());
        let why = why.unwrap_or_else(|| "the server did not answer in time".to_owned());
        Err(error(format!("{lines} lines are not acknowledged: {why}")))
    }

    fn give_back(&mut self) -> VecDeque<Delivery> {
        let mut left: Vec<_> = std::mem::take(&mut self.waiting).into_iter().flat_map(|bulk| bulk.entries).collect();
        left.append(&mut self.again);
        left.extend(self.held.take_all());
        left.extend(self.refusals.take_all().into_iter().flat_map(|bulk| bulk.entries));
        left.extend(self.filler.take_entries());
        rejoin(left.into_iter().map(|entry| entry.receipt))
    }
}
