//! Fills requests, sends them, and settles their lines by the answers.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io, thread,
    time::{Duration, Instant},
};

use reqwest::{
    Method, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue},
};

use super::{
    config::{Compression, Encoding, Settings},
    headers,
    load::{Filler, Load},
    verdict::{Verdict, held, verdict},
};
use crate::{
    ledger::Reason,
    sinks::{
        Delivery, Sink, SinkError,
        flights::{Flights, Pause},
        http_client::{HttpClient, Options, Request},
        otlp::Fit,
        receipt::{LineReceipt, Lines, rejoin},
    },
};

/// How long a call waits for answers before it returns.
const ANSWER_WAIT: Duration = Duration::from_millis(200);
/// How long a call waits for room before it says that there is none.
const ROOM_WAIT: Duration = Duration::from_secs(1);
/// An answer is a few words; what is longer comes from something else.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

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
    pause: Pause,
    /// Why nothing gets through.
    failing: Option<String>,
    /// What was given up last and why, until it is told.
    given_up: Option<String>,
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
            pause: Pause::default(),
            failing: None,
            given_up: None,
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
            self.given_up = Some(format!(
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
        // While nothing gets through, one at a time finds out whether something does.
        while self.flights.has_room()
            && self.pause.until(now).is_none()
            && !(self.pause.is_trying() && self.flights.len() > 0)
        {
            let Some((_, load)) = self.waiting.pop_first() else { return };
            match self.request(&load) {
                Ok(request) => self.flights.start(request, load),
                Err(why) => self.put_back(load, held(&why), None, now),
            }
        }
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
                    self.recover();
                    let message = message.unwrap_or_default();
                    if rejected > 0 {
                        self.given_up = Some(format!(
                            "{}: {rejected} of {} lines are dropped, as the server refuses them: {message}",
                            place(&self.url),
                            load.lines.len()
                        ));
                    } else if !message.is_empty() {
                        tracing::debug!(sink = self.settings.name, message, "the server warns");
                    }
                    load.settle(rejected);
                }
                Verdict::Again { why, after } => self.put_back(load, why, after, now),
                Verdict::Refused { why } => self.divide(load, Reason::Rejected, &why),
                Verdict::TooLarge { why } => self.divide(load, Reason::Oversize, &why),
            }
        }
    }

    /// Something got through.
    fn recover(&mut self) {
        self.pause.end();
        self.failing = None;
    }

    /// Keeps a request that is to be sent again, after a pause.
    fn put_back(&mut self, load: Load, why: String, wish: Option<Duration>, now: Instant) {
        self.pause.begin(now, wish);
        self.failing = Some(why);
        self.waiting.insert(load.first, load);
    }

    /// Finds the line that the server does not take.
    fn divide(&mut self, load: Load, reason: Reason, why: &str) {
        // It answers, and to the point.
        self.recover();
        if load.lines.len() > 1 {
            for half in self.filler.halves(load) {
                self.waiting.insert(half.first, half);
            }
            return;
        }
        self.given_up = Some(format!("a line is dropped: {why}"));
        load.give_up(reason);
    }

    /// Sends and settles until nothing waits or is under way, but not after `until`, and not beyond the beginning of a
    /// pause: what went wrong is told first.
    fn work(&mut self, until: Instant) {
        loop {
            self.land();
            self.send();
            let now = Instant::now();
            let is_pause = self.flights.len() == 0 && self.pause.until(now).is_some();
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
            if self.waiting.is_empty() {
                return true;
            }
            let now = Instant::now();
            if now >= until || self.pause.until(now).is_some() {
                return false;
            }
            self.flights.wait(until);
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flights.len() == 0
    }

    /// What keeps lines from getting through, if anything does.
    fn check(&mut self) -> Result<(), SinkError> {
        let why = self.given_up.take().or_else(|| self.failing.clone());
        why.map_or(Ok(()), |why| Err(error(why)))
    }

    fn no_room(&mut self) -> SinkError {
        let given_up = self.given_up.take();
        let why = given_up.or_else(|| self.failing.clone()).unwrap_or_else(|| {
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
                let goes_on = queue.len() < offered && self.failing.is_none() && self.given_up.is_none();
                return if goes_on { Ok(()) } else { Err(self.no_room()) };
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
        if self.filling_since.is_some_and(|since| since.elapsed() >= self.settings.linger) {
            self.close_request();
        }
        self.work(Instant::now() + ANSWER_WAIT);
        self.check()
    }

    fn close(&mut self, limit: Duration) -> Result<(), SinkError> {
        let until = Instant::now() + limit;
        self.close_request();
        self.pause.hurry();
        self.work(until);
        while !self.is_idle() && Instant::now() < until {
            let now = Instant::now();
            let end = self.pause.until(now).map_or(until, |end| end.min(until));
            thread::sleep(end.saturating_duration_since(now));
            self.work(until);
        }
        for load in self.flights.cancel() {
            self.waiting.insert(load.first, load);
        }
        let lines: usize = self.waiting.values().map(|load| load.lines.len()).sum();
        if lines == 0 {
            return self.check();
        }
        let why = self.failing.take().unwrap_or_else(|| format!("{} did not answer in time", place(&self.url)));
        Err(error(format!("{lines} lines are not acknowledged: {why}")))
    }

    fn give_back(&mut self) -> VecDeque<Delivery> {
        let mut lines: Vec<LineReceipt> = Vec::new();
        for (_, load) in std::mem::take(&mut self.waiting) {
            lines.extend(load.lines);
        }
        lines.extend(self.filler.take_lines());
        rejoin(lines)
    }
}

fn client(settings: &Settings) -> Result<(HttpClient, Url), SinkError> {
    let url = Url::parse(&settings.url).map_err(|cause| error(format!("{:?} is no URL: {cause}", settings.url)))?;
    let client = HttpClient::new(&Options {
        sink: &settings.name,
        tls: settings.tls.as_ref(),
        connect_timeout: settings.connect_timeout,
        request_timeout: settings.request_timeout,
        max_answer_bytes: MAX_ANSWER_BYTES,
    })?;
    Ok((client, url))
}

fn request(settings: &Settings, url: &Url) -> Result<Request, String> {
    let mut request = Request::new(Method::POST, url.clone(), settings.auth.as_ref());
    request.headers = headers::read(&settings.headers)?;
    request.headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(settings.content_type()));
    Ok(request)
}

/// The URL for an error; the query may hold a secret.
fn place(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.into()
}

/// Asks the server whether it is there: with an empty request where that is one, as in OTLP, else with `HEAD`, which writes
/// nothing.
///
/// # Errors
/// The settings can't be used, or there is no answer, or one that speaks of a wrong path or missing rights; and why.
pub fn reach(settings: &Settings) -> Result<String, SinkError> {
    let limit = Duration::from_secs(3);
    let hurried = Settings { connect_timeout: limit, request_timeout: limit, ..settings.clone() };
    let (client, url) = client(&hurried)?;
    let mut request = request(settings, &url).map_err(error)?;
    match settings.encoding {
        Encoding::OtlpProto => {}
        Encoding::Ndjson => request.method = Method::HEAD,
    }
    let landing = client.ask(request);
    let status = landing.as_ref().map(|answer| answer.status).unwrap_or_default();
    let by_post = settings.encoding == Encoding::OtlpProto;
    match verdict(settings.encoding, &place(&url), &landing) {
        Verdict::Taken { .. } => Ok(format!("{} answers", place(&url))),
        // Not every server that takes `POST` knows `HEAD`.
        _ if !by_post && matches!(status, 400 | 404 | 405 | 411 | 501) => {
            Ok(format!("{} answers; whether it takes logs shows with the first request", place(&url)))
        }
        Verdict::Again { why, .. } | Verdict::Refused { why } | Verdict::TooLarge { why } => Err(error(why)),
    }
}

fn error(why: String) -> SinkError {
    SinkError { action: "sending by HTTP".to_owned(), source: io::Error::other(why) }
}
