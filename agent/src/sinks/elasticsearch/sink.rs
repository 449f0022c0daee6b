//! Sends requests, and does what the answers say.

use std::{
    collections::VecDeque,
    fmt, io, thread,
    time::{Duration, Instant},
};

use reqwest::{
    Method,
    header::{CONTENT_ENCODING, HeaderValue},
};

use super::{
    config::{Compression, Settings},
    encode::{Bulk, Entry, Filler, NoRoom},
    held::Held,
    reply::{FILTER, Fate, Rejection, read},
    servers::Servers,
    setup::{Setup, Step},
    template::Server,
};
use crate::{
    ledger::Reason,
    sinks::{
        Delivery, Figure, Sink, SinkError,
        flights::{Flights, Landing, Pause},
        http_client::{Answer, FailureKind, HttpClient, Options, Request},
        receipt::{Lines, rejoin},
    },
};

/// How long a call waits for answers before it returns, while something is wrong and while all goes well.
const ANSWER_WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// A reply is at most so many times as large as its request, also with an error for each line, and this much more; what
/// is longer comes from something else.
const MAX_ANSWER: (usize, usize) = (8, 4 * 1024 * 1024);

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
    pause: Pause,
    /// Why nothing gets through.
    failing: Option<String>,
    /// What was given up last and why, until it is told.
    given_up: Option<String>,
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
            pause: Pause::default(),
            failing: None,
            given_up: None,
            counts: Counts::default(),
            settings,
        })
    }

    /// Takes up a delivery, line by line.
    fn take(&mut self, delivery: Delivery) {
        let lines = Lines::new(&delivery.batch, delivery.receipt);
        for index in 0..delivery.batch.lines.len() {
            self.fill(Entry::new(lines.line(index)));
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
        self.given_up = Some(format!("a line for index {index} is dropped: {why}"));
        entry.receipt.give_up(reason);
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
        let why = self.held.why();
        for entry in self.held.overdue(&self.settings, now) {
            let why = why.as_deref().unwrap_or_default();
            let held = humantime::format_duration(self.settings.give_up_after);
            self.give_up(entry, Reason::Rejected, &format!("held for {held}: {why}"));
        }
        let due = self.held.due(now);
        self.put_back(due);
        if self.pause.until(now).is_some() {
            return;
        }
        let again = std::mem::take(&mut self.again);
        self.put_back(again);
        // While nothing gets through, one at a time finds out whether something does.
        while self.flights.has_room() && !(self.pause.is_trying() && self.flights.len() > 0) {
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
            let Some(bulk) = self.waiting.pop_front() else { return };
            self.send_bulk(bulk, now);
        }
    }

    fn send_bulk(&mut self, bulk: Bulk, now: Instant) {
        let server = self.servers.pick(now);
        let url = self.servers.url(server, &format!("_bulk?filter_path={FILTER}"));
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

    /// Does what the answers say.
    fn land(&mut self) {
        let mut back = Vec::new();
        for (load, landing) in self.flights.land() {
            let now = Instant::now();
            match load {
                Load::Setup(step, server) => self.land_setup(&step, server, landing, now),
                Load::Bulk(bulk, server) => back.extend(self.land_bulk(bulk, server, landing, now)),
            }
        }
        // Before what is newer.
        for bulk in back.into_iter().rev() {
            self.waiting.push_front(bulk);
        }
    }

    fn land_setup(&mut self, step: &Step, server: usize, landing: Landing, now: Instant) {
        let Some(answer) = self.answered(server, landing, now) else { return self.setup.failed() };
        match self.setup.answered(&self.settings, step, &answer, now) {
            // Whether records get through shows with the first of them.
            Ok(()) => {}
            Err(why) => self.fail(server, &why, answer.retry_after(), now),
        }
    }

    /// The answer of a server, if there is one.
    fn answered(&mut self, server: usize, landing: Landing, now: Instant) -> Option<Answer> {
        match landing {
            Ok(answer) => {
                self.setup.heard(now);
                self.servers.answer(server);
                Some(answer)
            }
            Err(failure) => {
                self.setup.doubt();
                self.failing = Some(failure.text);
                let is_ours = matches!(failure.kind, FailureKind::Credentials | FailureKind::Cancelled);
                if is_ours || !self.servers.fail(server, now) {
                    self.pause.begin(now, None);
                }
                None
            }
        }
    }

    /// An answer that is of no use.
    fn fail(&mut self, server: usize, why: &str, wish: Option<Duration>, now: Instant) {
        self.setup.doubt();
        self.pause.begin(now, wish);
        let server = crate::sinks::http_client::server(&self.servers.url(server, ""));
        self.failing = Some(format!("{server}: {why}"));
    }

    /// Does what the answer to a request says; gives back what is to be sent again.
    fn land_bulk(&mut self, bulk: Bulk, server: usize, landing: Landing, now: Instant) -> Vec<Bulk> {
        let Some(answer) = self.answered(server, landing, now) else { return vec![bulk] };
        if answer.is_success() {
            match read(&answer.body, bulk.entries.len()) {
                Ok(fates) => {
                    self.settle(bulk.entries, fates, now);
                    return Vec::new();
                }
                Err(why) => {
                    let why = format!("{why}; see `urls`, whether another service answers there; it is tried again");
                    self.fail(server, &why, None, now);
                }
            }
        } else if answer.status == 413 {
            return self.divide(bulk, &answer);
        } else {
            let remedy = request_remedy(answer.status);
            let why = format!("the request is refused: {} {}; {remedy}", answer.status, answer.excerpt());
            self.fail(server, &why, answer.retry_after(), now);
        }
        vec![bulk]
    }

    /// Does what the reply says, line by line.
    fn settle(&mut self, entries: Vec<Entry>, fates: Vec<Fate>, now: Instant) {
        let mut busy = None;
        for (entry, fate) in entries.into_iter().zip(fates) {
            match fate {
                Fate::Delivered => {
                    if entry.held_since.is_some() {
                        self.held.mend();
                    }
                    entry.receipt.deliver();
                }
                Fate::Again(why) => {
                    busy = Some(why);
                    self.counts.retried += 1;
                    self.again.push(entry);
                }
                Fate::Hold { why, is_blocked } => {
                    self.counts.retried += 1;
                    self.held.keep(entry, why, is_blocked, now);
                }
                Fate::Refused { kind, reason } => self.refused(entry, kind, reason),
            }
        }
        if let Some(why) = busy {
            self.pause.begin(now, None);
            self.failing = Some(format!("{} lines are sent again: {why}", self.again.len()));
        } else {
            self.pause.end();
            self.failing = None;
        }
    }

    /// A document that its index does not take goes to the dead-letter index, and if that doesn't either, nowhere.
    fn refused(&mut self, mut entry: Entry, kind: String, reason: String) {
        if entry.rejection.is_some() {
            return self.give_up(entry, Reason::Rejected, &format!("{kind}: {reason}"));
        }
        let index = self.filler.index_of(&entry);
        tracing::debug!(sink = self.settings.name, index, kind, reason, "a line goes to the dead-letter index");
        self.counts.dead_letters += 1;
        (entry.rejection, entry.held_since) = (Some(Box::new(Rejection { index, kind, reason })), None);
        self.again.push(entry);
    }

    /// A request that is too large for the server goes in halves, to the line that is too large on its own.
    fn divide(&mut self, bulk: Bulk, answer: &Answer) -> Vec<Bulk> {
        // It answers, and to the point.
        self.pause.end();
        self.failing = None;
        let Bulk { mut entries, .. } = bulk;
        let later = entries.split_off(entries.len() / 2);
        if entries.is_empty() {
            let why = format!(
                "413 {}; raise `http.max_content_length` of the server, or the limit of what stands before it, or lower \
                 `lines.max_line_bytes`",
                answer.excerpt()
            );
            later.into_iter().for_each(|entry| self.give_up(entry, Reason::Oversize, &why));
            return Vec::new();
        }
        self.close_request();
        let newer = std::mem::take(&mut self.waiting);
        for half in [entries, later] {
            half.into_iter().for_each(|entry| self.fill(entry));
            self.close_request();
        }
        std::mem::replace(&mut self.waiting, newer).into()
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
                match self.pause.until(now) {
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
        !self.waiting.is_empty() || self.held.bytes() > most.saturating_mul(self.settings.max_in_flight)
    }

    /// What keeps lines from getting through, if anything does.
    fn check(&mut self) -> Result<(), SinkError> {
        let why = self.given_up.take().or_else(|| self.failing.clone());
        why.map_or(Ok(()), |why| Err(error(why)))
    }

    fn no_room(&mut self) -> SinkError {
        let why = self.given_up.take().or_else(|| self.failing.clone()).or_else(|| self.held.why());
        error(why.unwrap_or_else(|| {
            format!("the server answers slower than lines come: {} requests are under way", self.flights.len())
        }))
    }

    /// How many lines are not settled.
    fn unsettled(&mut self) -> usize {
        self.waiting.iter().map(|bulk| bulk.entries.len()).sum::<usize>() + self.again.len() + self.held.len()
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
                let wait = if self.failing.is_some() { ANSWER_WAIT.0 } else { ANSWER_WAIT.1 };
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
            // More lines come into the queue meanwhile, and go with the next request.
            let until = since + self.settings.linger;
            self.work(until);
            thread::sleep(until.saturating_duration_since(Instant::now()));
            self.close_request();
        }
        self.work(Instant::now() + ANSWER_WAIT.0);
        self.check()
    }

    fn tick(&mut self) -> Result<(), SinkError> {
        self.work(Instant::now() + ANSWER_WAIT.0);
        self.check()?;
        // Other indices go on, so that only this tells it.
        self.held.why().map_or(Ok(()), |why| Err(error(why)))
    }

    fn figures(&self) -> Vec<Figure> {
        let values = [
            ("sidestep_elasticsearch_requests_in_flight", self.flights.len() as f64),
            ("sidestep_elasticsearch_retried_records_total", self.counts.retried as f64),
            ("sidestep_elasticsearch_dead_letter_records_total", self.counts.dead_letters as f64),
            ("sidestep_elasticsearch_held_records", self.held.len() as f64),
        ];
        values.map(|(name, value)| Figure { name, value }).to_vec()
    }

    fn close(&mut self, limit: Duration) -> Result<(), SinkError> {
        let until = Instant::now() + limit;
        self.close_request();
        // What is held is tried once more.
        let held = self.held.take_all();
        self.put_back(held);
        self.pause.hurry();
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
        let why = self.failing.take().or_else(|| self.held.why());
        let why = why.unwrap_or_else(|| "the server did not answer in time".to_owned());
        Err(error(format!("{lines} lines are not acknowledged: {why}")))
    }

    fn give_back(&mut self) -> VecDeque<Delivery> {
        let mut left: Vec<_> = std::mem::take(&mut self.waiting).into_iter().flat_map(|bulk| bulk.entries).collect();
        left.append(&mut self.again);
        left.extend(self.held.take_all());
        left.extend(self.filler.take_entries());
        rejoin(left.into_iter().map(|entry| entry.receipt))
    }
}

fn request_remedy(status: u16) -> &'static str {
    match status {
        401 => "see `auth`: the user, the password or the key",
        403 => "give the agent's user the right to write the indices, or see the blocks of the cluster",
        300..=399 => "redirects are not followed: write the right `urls`",
        404 | 405 => "see `urls`: there is no bulk API",
        429 => "the server has no time for it; it is tried again",
        500..=599 => "it is tried again; see the server's own log",
        _ => "see `urls`, and the server's own log; it is tried again",
    }
}

fn client(settings: &Settings) -> Result<HttpClient, SinkError> {
    let max_request_bytes = usize::try_from(settings.max_request_bytes.as_u64()).unwrap_or(usize::MAX);
    HttpClient::new(&Options {
        sink: &settings.name,
        tls: settings.tls.as_ref(),
        connect_timeout: settings.connect_timeout,
        request_timeout: settings.request_timeout,
        max_answer_bytes: max_request_bytes.saturating_mul(MAX_ANSWER.0).saturating_add(MAX_ANSWER.1),
    })
}

/// Asks each server who it is.
///
/// # Errors
/// The options can't be used, or one does not answer within three seconds, or is no such server; and why.
pub fn reach(settings: &Settings) -> Result<String, SinkError> {
    let limit = Duration::from_secs(3);
    let client = client(&Settings { connect_timeout: limit, request_timeout: limit, ..settings.clone() })?;
    let servers = Servers::new(&settings.urls).map_err(error)?;
    let mut found = Vec::new();
    for index in 0..settings.urls.len() {
        let url = servers.url(index, "");
        let place = crate::sinks::http_client::server(&url);
        let request = Request::new(Method::GET, url, settings.auth.as_ref());
        let answer = client.ask(request).map_err(|failure| error(failure.text))?;
        if !answer.is_success() {
            let remedy = request_remedy(answer.status);
            return Err(error(format!("{place}: {} {}; {remedy}", answer.status, answer.excerpt())));
        }
        let server = Server::read(&answer.body).map_err(|why| error(format!("{place}: {why}; see `urls`")))?;
        found.push(format!("{place} is {:?} {}", server.distribution, server.number));
    }
    Ok(found.join(", "))
}

fn error(why: String) -> SinkError {
    SinkError { action: "sending to Elasticsearch or OpenSearch".to_owned(), source: io::Error::other(why) }
}
