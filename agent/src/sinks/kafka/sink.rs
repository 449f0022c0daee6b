//! Hands lines to the producer, and again those that came back.

use std::{
    collections::VecDeque,
    fmt, io,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _},
};

use super::{
    config::{Encoding, Settings},
    context::{Context, HELD_TOO_LONG},
    failure::{Fate, fate, remedy},
    held::Held,
    producer::{self, Producer},
};
use crate::{
    record::{Line, Stream},
    sinks::{
        Delivery, Figure, Sink, SinkError, json, otlp,
        receipt::{LineReceipt, Lines, rejoin},
    },
};

/// Bytes of the lines in one message, where it takes several: as much as is worth while for a broker, and far from what it
/// refuses.
const MESSAGE: usize = 64 * 1024;
/// What a line costs there beside its text, about: times, its place, its stream.
const RECORD: usize = 256;
/// How long a call waits for room in the producer's buffer before it says that there is none.
const ROOM_WAIT: Duration = Duration::from_millis(200);
/// How soon it is asked again after that.
const ROOM_PAUSE: Duration = Duration::from_millis(50);
/// How long one call hands lines over at most while brokers are slower than lines come.
const WRITE: Duration = Duration::from_secs(1);
/// After the last line that made batches smaller, so long goes by before they become larger again.
const CALM: Duration = Duration::from_secs(2);
/// How long a producer with smaller batches may take to come to its end.
const SETTLE: Duration = Duration::from_millis(500);

/// The Kafka sink.
pub struct KafkaSink {
    settings: Settings,
    pub(super) producer: Producer,
    /// The most bytes of messages in one batch, once brokers have refused larger ones.
    batch_size: usize,
    /// What the producer was made of, beside the settings.
    credentials: u64,
    encoder: Encoder,
    payload: Vec<u8>,
    /// Lines that were taken from the queue, or came back, and that the producer does not have yet, in order.
    next: VecDeque<(Arc<Route>, LineReceipt)>,
    held: Held,
}

/// Makes messages of lines.
enum Encoder {
    Json(json::Encoder),
    OtlpProto(otlp::Encoder),
}

/// Where the lines of a stream go.
struct Route {
    topic: String,
    headers: Option<OwnedHeaders>,
}

impl fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSink").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

impl KafkaSink {
    /// Makes the producer; it connects on its own.
    ///
    /// # Errors
    /// An option that librdkafka does not take, or a file that can't be read.
    pub fn new(settings: Settings) -> Result<Self, SinkError> {
        let credentials = producer::credentials(&settings);
        let producer = producer::make(&settings, producer::BATCH_SIZE)?;
        let encoder = match settings.encoding {
            Encoding::Json => Encoder::Json(json::Encoder::default()),
            Encoding::OtlpProto => Encoder::OtlpProto(otlp::Encoder::default()),
        };
        Ok(Self {
            settings,
            credentials,
            batch_size: producer::BATCH_SIZE,
            producer,
            encoder,
            payload: Vec::new(),
            next: VecDeque::new(),
            held: Held::default(),
        })
    }

    fn context(&self) -> &Context {
        self.producer.client().context()
    }

    fn route(&self, stream: &Stream) -> Arc<Route> {
        let headers = self.settings.headers.then(|| headers(stream));
        Arc::new(Route { topic: self.settings.topic_of(stream), headers })
    }

    /// Takes up a delivery, line by line.
    fn take(&mut self, delivery: Delivery) {
        let route = self.route(&delivery.batch.stream);
        let lines = Lines::new(&delivery.batch, delivery.receipt);
        for message in self.messages(&delivery.batch.lines) {
            let receipt = lines.part(message);
            if let Some(receipt) = self.held.hold_back(&route.topic, receipt) {
                self.next.push_back((Arc::clone(&route), receipt));
            }
        }
    }

    /// The lines that go together in a message.
    fn messages(&self, lines: &[Line]) -> Vec<Range<usize>> {
        let most = match self.encoder {
            Encoder::Json(_) => 0,
            Encoder::OtlpProto(_) => MESSAGE.min(self.settings.max_message_bytes.as_u64() as usize / 2),
        };
        let mut messages: Vec<Range<usize>> = Vec::with_capacity(if most == 0 { lines.len() } else { 1 });
        let mut bytes = 0;
        for (index, line) in lines.iter().enumerate() {
            let size = line.body.len() + RECORD;
            match messages.last_mut() {
                Some(last) if bytes + size <= most => {
                    last.end = index + 1;
                    bytes += size;
                }
                _ => {
                    messages.push(index..index + 1);
                    bytes = size;
                }
            }
        }
        messages
    }

    /// Takes up what came back, and what was held long enough.
    fn take_up_again(&mut self) {
        let now = Instant::now();
        self.held.note_brokers(self.context().failing().is_none(), now);
        let mut again = Vec::new();
        for topic in self.context().take_written() {
            again.extend(self.held.release(&topic));
        }
        for returned in self.context().take_returned() {
            match returned.held_for {
                Some(code) => self.held.keep(returned, code, now),
                None => again.push(returned.receipt),
            }
        }
        if !self.held.is_empty() {
            for (topic, code, receipt) in self.held.overdue(self.settings.give_up_after, self.max_held()) {
                self.context().note_given_up(&topic, code);
                receipt.give_up(HELD_TOO_LONG);
            }
            again.extend(self.held.due(now));
            self.held.forget_unused(now);
        }
        self.context().set_holding(!self.held.is_empty());
        // Before what is newer.
        for receipt in again.into_iter().rev() {
            let route = self.route(&receipt.batch().stream);
            self.next.push_front((route, receipt));
        }
    }

    /// The most bytes that are held of topics that have trouble.
    fn max_held(&self) -> usize {
        // What is held is unacknowledged: other topics need the most of that.
        let most = self.settings.producer_buffer.as_u64().min(self.settings.buffer.max_unacknowledged.as_u64() / 4);
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Hands lines to the producer until it has no room, or none is left.
    fn send_next(&mut self) -> Result<(), SinkError> {
        while let Some((route, receipt)) = self.next.pop_front() {
            let Err((code, receipt)) = self.send(&route, receipt) else { continue };
            match code {
                Code::QueueFull => {
                    self.next.push_front((route, receipt));
                    return Err(self.no_room());
                }
                code => match fate(code) {
                    Fate::GiveUp(reason) => match receipt.split() {
                        // It is for one of its lines, which is looked for before what comes after it is sent.
                        Ok(halves) => {
                            halves.into_iter().rev().for_each(|half| self.next.push_front((Arc::clone(&route), half)));
                        }
                        Err(receipt) => {
                            self.context().note_given_up(&route.topic, code);
                            self.context().note_written(&route.topic);
                            receipt.give_up(reason);
                        }
                    },
                    Fate::Hold => self.context().came_back(receipt, &route.topic, code),
                    Fate::Again => {
                        self.next.push_front((route, receipt));
                        return Err(error(format!("handing a line to librdkafka: {code}; {}", remedy(code))));
                    }
                },
            }
        }
        Ok(())
    }

    fn send(&mut self, route: &Route, receipt: LineReceipt) -> Result<(), (Code, LineReceipt)> {
        let stream = Arc::clone(&receipt.batch().stream);
        self.payload.clear();
        let (batch, line) = (receipt.batch(), receipt.line());
        match &mut self.encoder {
            Encoder::Json(encoder) => encoder.append_line(batch, line, &mut self.payload),
            Encoder::OtlpProto(encoder) => encoder.append_lines(batch, receipt.lines(), &mut self.payload),
        }
        let headers = route.headers.as_ref().map(|headers| match receipt.lines() {
            [line] => place(headers, line),
            // Sent again, other lines may go together: each record says its own place.
            _ => headers.clone(),
        });
        // A line may say of itself that it is of tomorrow; brokers refuse what is too far in the future.
        let time = line.time_unix_nano.min(line.observed_time_unix_nano);
        let milliseconds = i64::try_from(time / 1_000_000).unwrap_or_default();
        let mut record = BaseRecord::with_opaque_to(&route.topic, Box::new(receipt))
            .key(&*stream.key)
            .payload(&self.payload)
            .timestamp(milliseconds);
        if let Some(headers) = headers {
            record = record.headers(headers);
        }
        self.producer.send(record).map_err(|(error, record)| {
            let code = match error {
                KafkaError::MessageProduction(code) => code,
                error => error.rdkafka_error_code().unwrap_or(Code::Unknown),
            };
            (code, *record.delivery_opaque)
        })
    }

    fn no_room(&self) -> SinkError {
        let why = self.context().failing().unwrap_or_else(|| {
            format!(
                "the brokers take records slower than they come: the buffer of {} is full",
                self.settings.producer_buffer
            )
        });
        error(why)
    }

    /// What keeps lines from getting through, if anything does.
    fn check(&self) -> Result<(), SinkError> {
        if let Some(why) = self.context().failing().or_else(|| self.context().take_given_up()) {
            return Err(error(why));
        }
        if let Some((code, topics)) = self.held.describe() {
            let held = self.held.bytes();
            return Err(error(format!(
                "{topics}: {code}; its lines are held ({held} bytes) and tried again; {}",
                remedy(code)
            )));
        }
        Ok(())
    }

    /// After some errors the producer is of no use any more, one that has forgotten the brokers asks nobody, one that can't
    /// say who it is may by now, and one whose batches are refused makes smaller ones, until the line is found for which
    /// they were: what it has comes back, to another one.
    fn renew(&mut self) -> Result<(), SinkError> {
        let reason = if let Some((code, reason)) = self.producer.client().fatal_error() {
            format!("{code}: {reason}")
        } else if self.context().is_lost() {
            "the brokers said that there are none: those of `brokers` are asked again".to_owned()
        } else if self.context().failing().is_some() && producer::credentials(&self.settings) != self.credentials {
            "a file with a password or certificates has changed".to_owned()
        } else if let Some(smaller) = self.context().smaller_batches() {
            self.batch_size = smaller;
            format!("a batch was refused for what may be one line: the next ones have at most {smaller} bytes")
        } else if self.batch_size != producer::BATCH_SIZE
            && self.context().is_calm(CALM)
            && self.producer.flush(SETTLE).is_ok()
        {
            self.batch_size = producer::BATCH_SIZE;
            "what was refused is found: batches are as large as before".to_owned()
        } else {
            return Ok(());
        };
        let credentials = producer::credentials(&self.settings);
        let next = producer::make(&self.settings, self.batch_size)?;
        self.credentials = credentials;
        let old = std::mem::replace(&mut self.producer, next);
        producer::take_apart(&old);
        let returned = old.client().context().take_returned();
        tracing::warn!(sink = self.settings.name, reason, lines = returned.len(), "a new producer");
        for returned in returned.into_iter().rev() {
            let route = self.route(&returned.receipt.batch().stream);
            self.next.push_front((route, returned.receipt));
        }
        Ok(())
    }
}

pub(super) fn error(why: String) -> SinkError {
    SinkError { action: "sending to Kafka".to_owned(), source: io::Error::other(why) }
}

/// The identity of a stream's container, under the names of its records. Only what consumers route and tell repeats by:
/// each header costs its part of a microsecond with every message, and the payload has all.
fn headers(stream: &Stream) -> OwnedHeaders {
    let resource = &stream.resource;
    let fields = [
        ("class", Some(stream.class.as_str())),
        ("host.name", resource.host_name.as_deref()),
        ("k8s.namespace.name", resource.namespace.as_deref()),
        ("k8s.pod.name", resource.pod.as_deref()),
        ("container.name", resource.container_name.as_deref()),
        // A Pod and the name of its container say as much.
        ("container.id", resource.container_id.as_deref().filter(|_| resource.pod.is_none())),
    ];
    let known = fields.iter().filter_map(|(key, value)| value.map(|value| (*key, value)));
    known.fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

/// The headers of a stream, with the place of the one line in it: with the key, a consumer knows a repeat by that.
fn place(headers: &OwnedHeaders, line: &Line) -> OwnedHeaders {
    let mut position = itoa::Buffer::new();
    headers.clone().insert(Header { key: "position", value: Some(position.format(line.position)) })
}

impl Sink for KafkaSink {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn write(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError> {
        self.renew()?;
        self.take_up_again();
        let deadline = Instant::now() + WRITE;
        let before = queue.len();
        loop {
            if let Err(error) = self.send_next() {
                let goes_on = self.context().wait_for_room(ROOM_WAIT);
                if self.send_next().is_err() {
                    if goes_on && Instant::now() < deadline {
                        continue;
                    }
                    // Brokers that are slow are no failure.
                    return if queue.len() < before { self.check() } else { Err(error) };
                }
            }
            if self.held.bytes() > self.max_held() && self.held.is_doubtful() && !queue.is_empty() {
                return Err(self.no_room());
            }
            match queue.pop_front() {
                Some(delivery) => self.take(delivery),
                None => return self.check(),
            }
        }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        // The producer sends on its own, and settles what is acknowledged.
        self.send_next()?;
        self.check()
    }

    fn tick(&mut self) -> Result<(), SinkError> {
        producer::examine(self.context(), &self.settings);
        self.renew()?;
        self.take_up_again();
        self.send_next()?;
        self.check()
    }

    fn next_call(&self) -> Option<Instant> {
        // There is room again as soon as brokers answer: a pause as after an error would leave them idle.
        (!self.next.is_empty() && self.context().failing().is_none()).then(|| Instant::now() + ROOM_PAUSE)
    }

    fn figures(&self) -> Vec<Figure> {
        self.context().figures((self.held.topics(), self.held.bytes()))
    }

    fn close(&mut self, limit: Duration) -> Result<(), SinkError> {
        let sent = self.send_next();
        let flushed = self.producer.flush(limit);
        if flushed.is_err() {
            producer::take_apart(&self.producer);
        }
        sent?;
        let why = |cause| self.context().failing().unwrap_or_else(|| format!("not within {limit:?}: {cause}"));
        flushed.map_err(|cause| error(format!("waiting for the brokers' acknowledgements: {}", why(cause))))
    }

    fn give_back(&mut self) -> VecDeque<Delivery> {
        let mut left: Vec<_> = self.context().take_returned().into_iter().map(|returned| returned.receipt).collect();
        left.extend(self.held.take_all());
        left.extend(self.next.drain(..).map(|(_, receipt)| receipt));
        rejoin(left)
    }
}
