//! Fills requests, sends them, and settles their lines by the answers.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, thread,
    time::{Duration, Instant},
};

use reqwest::{
    Url,
    header::{CONTENT_ENCODING, HeaderValue},
};

use super::{
    config::{Compression, Settings},
    load::{Filler, Load},
    reach::{client, error, place, request},
    verdict::{Verdict, held, verdict},
};
use crate::{
    ledger::Reason,
    sinks::{
        Delivery, Sink, SinkError,
        attempts::Attempts,
        flights::Flights,
        http_client::Request,
        otlp::Fit,
        receipt::{LineReceipt, Lines, rejoin},
        refusals::{Judgement, Refusals, Suspect, in_doubt},
    },
};

/// How long a flush waits for answers before it returns.
const ANSWER_WAIT: Duration = Duration::from_millis(200);
/// How long a call waits for room before it says that there is none.
const ROOM_WAIT: Duration = Duration::from_secs(1);

/// The HTTP sink.
pub struct HttpSink {
    settings: Settings,
    url: Url,
    flights: Flights<Load>,
    filler: Filler,
    /// When the first line of the request that is being filled came.
    filling_since: Option<Instant>,
    /// Requests that are to be sent, by the number of their first line.
    waiting: BTreeMap<u64, Load>,
    attempts: Attempts,
    refusals: Refusals<Load>,
    /// Number of the first line that is tried next while the server is in doubt: one request after the other, as one of
    /// them may hold a line that it takes.
    next_trial: u64,
}

impl fmt::Debug for HttpSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSink").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

impl HttpSink {
    /// Makes the client; it connects with the first request.
    ///
    /// # Errors
    /// The URL is none, or a file of `tls` can't be used.
    pub fn new(settings: Settings) -> Result<Self, SinkError> {
        let (client, url) = client(&settings)?;
        let max_bytes = usize::try_from(settings.max_request_bytes.as_u64()).unwrap_or(usize::MAX);
        Ok(Self {
            flights: Flights::new(client, settings.max_in_flight),
            filler: Filler::new(settings.encoding, settings.compression, max_bytes),
            settings,
            url,
            filling_since: None,
            waiting: BTreeMap::new(),
            attempts: Attempts::default(),
            refusals: Refusals::default(),
            next_trial: 0,
        })
    }

    /// Takes up a delivery, line by line.
    fn take(&mut self, delivery: Delivery) {
        let lines = Lines::new(&delivery.batch, delivery.receipt);
        for index in 0..delivery.batch.lines.len() {
            let Err((mut fit, mut line)) = self.filler.add(lines.line(index)) else { continue };
            if fit == Fit::Full {
                self.close_request();
                match self.filler.add(line) {
                    Ok(()) => continue,
                    Err(again) => (fit, line) = again,
                }
            }
            debug_assert_eq!(fit, Fit::TooLarge);
            self.attempts.give_up(format!(
                "a line of {} bytes is dropped: it makes more than `max_request_bytes`; raise that, or lower \
                 `lines.max_line_bytes`",
                line.line().body.len()
            ));
            line.give_up(Reason::Oversize);
        }
        if self.filling_since.is_none() && !self.filler.is_empty() {
            self.filling_since = Some(Instant::now());
        }
    }

    /// Makes a request of the lines that wait for more.
    fn close_request(&mut self) {
        self.filling_since = None;
        if let Some(load) = self.filler.finish() {
            self.waiting.insert(load.first, load);
        }
    }

    /// Sends what waits, as far as it may be sent.
    fn send(&mut self) {
        let now = Instant::now();
        while self.flights.has_room() && self.attempts.may_send(self.flights.len(), now) {
            let Some(load) = self.next_load() else { return };
            match self.request(&load) {
                Ok(request) => self.flights.start(request, load),
                Err(why) => self.put_back(load, held(&why), None, now),
            }
        }
    }

    fn next_load(&mut self) -> Option<Load> {
        if !self.refusals.is_in_doubt() {
            return self.waiting.pop_first().map(|(_, load)| load);
        }
        // What was never refused is the most likely to be taken.
        let newest = self.waiting.last_key_value().filter(|(_, load)| !load.was_refused);
        let first = *newest.or_else(|| self.waiting.range(self.next_trial..).chain(&self.waiting).next())?.0;
        self.next_trial = first + 1;
        self.waiting.remove(&first)
    }

    fn request(&self, load: &Load) -> Result<Request, String> {
        let encoding = match self.settings.compression {
            Compression::Gzip if load.is_compressed => Some("gzip"),
            Compression::Zstd if load.is_compressed => Some("zstd"),
            _ => None,
        };
        let mut request = request(&self.settings, &self.url)?;
        request.body = load.body.clone();
        if let Some(encoding) = encoding {
            request = request.with_header(CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        Ok(request)
    }

    /// Does what the answers say.
    fn land(&mut self) {
        for (load, landing) in self.flights.land() {
            let now = Instant::now();
            match verdict(self.settings.encoding, &place(&self.url), &landing) {
                Verdict::Taken { rejected, message } => {
                    self.attempts.succeed();
                    let message = message.unwrap_or_default();
                    if rejected > 0 {
                        self.attempts.give_up(format!(
                            "{}: {rejected} of {} lines are dropped, as the server refuses them: {message}",
                            place(&self.url),
                            load.lines.len()
                        ));
                    } else if !message.is_empty() {
                        tracing::debug!(sink = self.settings.name, message, "the server warns");
                    }
                    if rejected < load.lines.len() as u64 {
                        let suspects = self.refusals.note_taken();
                        self.give_up(suspects);
                    }
                    load.settle(rejected);
                }
                Verdict::Again { why, after } => self.put_back(load, why, after, now),
                Verdict::Refused { why } => self.divide(load, Reason::Rejected, why, now),
                Verdict::TooLarge { why } => self.divide(load, Reason::Oversize, why, now),
            }
        }
        if self.is_idle() && self.filler.is_empty() && self.refusals.len() > 0 {
            let judgement = self.refusals.note_idle();
            self.follow(judgement, Instant::now());
        }
    }

    /// Keeps a request that is to be sent again, after a pause.
    fn put_back(&mut self, load: Load, why: String, wish: Option<Duration>, now: Instant) {
        self.attempts.fail(why, wish, now);
        self.waiting.insert(load.first, load);
    }

    /// Finds the line that the server does not take.
    fn divide(&mut self, load: Load, reason: Reason, why: String, now: Instant) {
        if self.refusals.is_in_doubt() {
            self.attempts.fail(in_doubt(&why), None, now);
        } else {
            // It answers, and to the point.
            self.attempts.succeed();
        }
        if load.lines.len() > 1 {
            for half in self.filler.halves(load) {
                self.waiting.insert(half.first, half);
            }
            return;
        }
        let was_held = load.was_held;
        let judgement = self.refusals.note_refused(Suspect { load, reason, why }, was_held);
        self.follow(judgement, now);
    }

    fn follow(&mut self, judgement: Judgement<Load>, now: Instant) {
        match judgement {
            Judgement::GiveUp(suspects) => self.give_up(suspects),
            Judgement::Hold(loads, why) => {
                for load in loads {
                    self.put_back(Load { was_held: true, ..load }, why.clone(), None, now);
                }
            }
        }
    }

    fn give_up(&mut self, suspects: Vec<Suspect<Load>>) {
        for Suspect { load, reason, why } in suspects {
            self.attempts.give_up(format!("a line is dropped: {why}"));
            load.give_up(reason);
        }
    }

    /// Sends and settles until nothing waits or is under way, but not after `until`, and not beyond the beginning of a
    /// pause: what went wrong is told first.
    fn work(&mut self, until: Instant) {
        loop {
            self.land();
            self.send();
            let now = Instant::now();
            let is_pause = self.flights.len() == 0 && self.attempts.pause(now).is_some();
            if now >= until || is_pause || self.is_idle() {
                return;
            }
            self.flights.wait(until);
        }
    }

    /// Sends what waits, and waits for answers where that has to; whether there is room for more lines now.
    fn make_room(&mut self) -> bool {
        let until = Instant::now() + ROOM_WAIT;
        loop {
            self.land();
            self.send();
            if self.waiting.is_empty() || self.may_try_more() {
                return true;
            }
            let now = Instant::now();
            if now >= until || self.attempts.pause(now).is_some() {
                return false;
            }
            self.flights.wait(until);
        }
    }

    /// Whether more lines are to show that it is not the server that is at fault.
    fn may_try_more(&self) -> bool {
        let most = usize::try_from(self.settings.max_request_bytes.as_u64()).unwrap_or(usize::MAX);
        self.refusals.is_in_doubt() && self.waiting.values().map(Load::bytes).sum::<usize>() < most
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flights.len() == 0
    }

    /// Tells when to call again, and what keeps lines from getting through, if anything does.
    fn check(&mut self) -> Result<(), SinkError> {
        self.plan();
        self.attempts.tell().map_or(Ok(()), |why| Err(error(why)))
    }

    fn plan(&mut self) {
        let linger = self.filling_since.map(|since| since + self.settings.linger);
        self.attempts.plan(self.flights.len(), !self.waiting.is_empty(), [linger, None], Instant::now());
    }

    fn no_room(&mut self) -> SinkError {
        self.plan();
        let why = self.attempts.tell().unwrap_or_else(|| {
            format!(
                "{} answers slower than lines come: {} requests are under way",
                place(&self.url),
                self.flights.len()
            )
        });
        error(why)
    }
}

impl Sink for HttpSink {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn write(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError> {
        let offered = queue.len();
        loop {
            if !self.make_room() {
                // Slow is not wrong, as long as it goes on.
                return if queue.len() < offered { self.check() } else { Err(self.no_room()) };
            }
            match queue.pop_front() {
                Some(delivery) => self.take(delivery),
                None => return self.check(),
            }
        }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        if let Some(since) = self.filling_since {
            let left = (since + self.settings.linger).saturating_duration_since(Instant::now());
            // A long time is looked at again in [`Sink::tick`], so that the end does not wait for it.
            if left <= ANSWER_WAIT {
                // More lines wait in the queue meanwhile, and go with the next request.
                thread::sleep(left);
                self.close_request();
            }
        }
        self.work(Instant::now() + ANSWER_WAIT);
        self.check()
    }

    fn tick(&mut self) -> Result<(), SinkError> {
        self.call()
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

    fn close(&mut self, limit: Duration) -> Result<(), SinkError> {
        let until = Instant::now() + limit;
        self.close_request();
        self.attempts.hurry();
        self.work(until);
        while !self.is_idle() && Instant::now() < until {
            let now = Instant::now();
            let end = self.attempts.pause(now).map_or(until, |end| end.min(until));
            thread::sleep(end.saturating_duration_since(now));
            self.work(until);
        }
        for load in self.flights.cancel() {
            self.waiting.insert(load.first, load);
        }
        let lines = self.waiting.values().map(|load| load.lines.len()).sum::<usize>() + self.refusals.len();
        if lines == 0 {
            return self.check();
        }
        let why = self.attempts.tell().unwrap_or_else(|| format!("{} did not answer in time", place(&self.url)));
        Err(error(format!("{lines} lines are not acknowledged: {why}")))
    }

    fn give_back(&mut self) -> VecDeque<Delivery> {
        let mut lines: Vec<LineReceipt> = Vec::new();
        for (_, load) in std::mem::take(&mut self.waiting) {
            lines.extend(load.lines);
        }
        lines.extend(self.refusals.take_all().into_iter().flat_map(|load| load.lines));
        lines.extend(self.filler.take_lines());
        rejoin(lines)
    }
}
