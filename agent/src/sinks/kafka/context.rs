//! What librdkafka tells, on its own threads.

use std::{
    collections::HashSet,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Statistics,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{DeliveryResult, Message as _},
    producer::ProducerContext,
};

use super::{
    certificate,
    failure::{Fate, fate, is_for_one, remedy, remedy_of},
    figures::{brokers_up, figures, is_without_brokers},
};
use crate::{
    ledger::Reason,
    sinks::{Figure, receipt::LineReceipt},
};

/// How long the acknowledgements of one request may take to come, after the first.
const ROOM_FOR_MORE: Duration = Duration::from_millis(2);

/// A line that was not acknowledged and is to be sent again.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) receipt: LineReceipt,
    pub(super) topic: String,
    /// Why; `None` when its topic has nothing to do with it.
    pub(super) held_for: Option<Code>,
}

/// What the sink's thread and librdkafka's share.
#[derive(Debug, Default)]
pub(super) struct Context {
    state: Mutex<State>,
    /// Signalled when a message has left the producer's buffer and `waiting` is set.
    room: Condvar,
    waiting: AtomicBool,
    /// `state.failing` is set: it is looked at for each message.
    failing: AtomicBool,
    /// The most bytes of messages that go in one batch.
    batch_size: usize,
    /// A batch was refused, though it may be for one of its messages: the others are to go in smaller ones.
    batch_refused: AtomicBool,
    /// Some topic has trouble: it is noted which ones can be written.
    is_holding: AtomicBool,
    /// librdkafka knows no broker any more, and will ask nobody who they are.
    is_lost: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    returned: Vec<Returned>,
    /// Topics that took a line while some had trouble.
    written: HashSet<String>,
    /// When a line was last refused that was alone in its batch.
    refused_alone: Option<Instant>,
    /// Why nothing gets through, as of the last error.
    failing: Option<String>,
    /// The last thing that went wrong with one connection: more telling than that all are down.
    connection: Option<(Code, String)>,
    /// A broker whose certificate is not accepted, until it is looked at.
    unverified: Option<String>,
    /// The last one that was looked at, and what is wrong with it.
    fault: Option<(String, String)>,
    /// The last line that was given up, and why, until it is told.
    given_up: Option<String>,
    /// The last statistics.
    statistics: Option<Statistics>,
}

impl Context {
    /// For a producer with batches of at most so many bytes.
    pub(super) fn new(batch_size: usize) -> Self {
        Self { batch_size, ..Self::default() }
    }

    /// The size of the batches with which those may get through that were refused.
    pub(super) fn smaller_batches(&self) -> Option<usize> {
        self.batch_refused.load(Relaxed).then(|| (self.batch_size / 4).max(1))
    }

    /// Whether the lines were found for which batches became smaller, and none has been refused for so long.
    pub(super) fn is_calm(&self, calm: Duration) -> bool {
        !self.failing.load(Relaxed) && self.lock().refused_alone.is_some_and(|at| at.elapsed() >= calm)
    }

    /// Whether librdkafka has forgotten all brokers: when those say that there are none (as they do while the controller
    /// has not heard of any of them for `broker.session.timeout.ms`), it takes them at their word, and may never look at
    /// `bootstrap.servers` again (2.12 and 2.13, confluentinc/librdkafka#5301).
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Relaxed)
    }

    /// Says whether a topic has trouble, so that it is noted which ones can be written.
    pub(super) fn set_holding(&self, is_holding: bool) {
        if self.is_holding.swap(is_holding, Relaxed) != is_holding {
            self.lock().written.clear();
        }
    }

    /// Takes the topics that can be written.
    pub(super) fn take_written(&self) -> HashSet<String> {
        if self.is_holding.load(Relaxed) { std::mem::take(&mut self.lock().written) } else { HashSet::new() }
    }

    /// A topic took a line, or refused it for itself.
    pub(super) fn note_written(&self, topic: &str) {
        if self.is_holding.load(Relaxed) {
            let mut state = self.lock();
            if !state.written.contains(topic) {
                state.written.insert(topic.to_owned());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is to be sent again.
    pub(super) fn take_returned(&self) -> Vec<Returned> {
        std::mem::take(&mut self.lock().returned)
    }

    /// Why nothing gets through.
    pub(super) fn failing(&self) -> Option<String> {
        self.failing.load(Relaxed).then(|| self.lock().failing.clone()).flatten()
    }

    /// Why a line was given up, once.
    pub(super) fn take_given_up(&self) -> Option<String> {
        self.lock().given_up.take()
    }

    /// The figures of the last statistics; none before the first.
    pub(super) fn figures(&self, held: (usize, usize)) -> Vec<Figure> {
        self.lock().statistics.as_ref().map_or_else(Vec::new, |statistics| figures(statistics, held))
    }

    /// Notes that a line is given up.
    pub(super) fn note_given_up(&self, topic: &str, code: Code) {
        let text = format!("a line for topic {topic} is dropped: {code}; {}", remedy(code));
        self.lock().given_up = Some(text);
    }

    /// Waits at most `limit` until messages have left the buffer; false when none has.
    pub(super) fn wait_for_room(&self, limit: Duration) -> bool {
        let state = self.lock();
        self.waiting.store(true, Relaxed);
        let (state, waited) = self.room.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(false, Relaxed);
        drop(state);
        if waited.timed_out() {
            return false;
        }
        // Brokers acknowledge many at once: room for one of them is not worth waking up for.
        std::thread::sleep(ROOM_FOR_MORE);
        true
    }

    /// A broker whose certificate is to be looked at, once for each failure.
    pub(super) fn take_unverified(&self) -> Option<String> {
        if self.failing.load(Relaxed) { self.lock().unverified.take() } else { None }
    }

    /// Notes what is wrong with the certificate of the broker at `address`.
    pub(super) fn note_fault(&self, address: String, fault: String) {
        let mut state = self.lock();
        state.failing = Some(format!("{address}: {fault}"));
        state.fault = Some((address, fault));
    }

    fn fail(&self, text: String) {
        let mut state = self.lock();
        state.failing = Some(text);
        self.failing.store(true, Relaxed);
    }

    /// Says what is wrong with a connection, and what to do about it.
    fn explain(&self, code: Code, reason: &str) -> String {
        if let Some(address) = certificate::address(reason).filter(|_| reason.contains("verify failed")) {
            let mut state = self.lock();
            match &state.fault {
                Some((known, fault)) if known == address => return format!("{address}: {fault}"),
                _ => state.unverified = Some(address.to_owned()),
            }
        }
        match remedy_of(code, reason) {
            "" => reason.to_owned(),
            remedy => format!("{reason}; {remedy}"),
        }
    }

    fn recover(&self) {
        if self.failing.load(Relaxed) {
            let mut state = self.lock();
            (state.failing, state.connection, state.fault) = (None, None, None);
            self.failing.store(false, Relaxed);
        }
    }

    /// A message was not acknowledged.
    pub(super) fn came_back(&self, receipt: LineReceipt, topic: &str, code: Code) {
        let held_for = match fate(code) {
            Fate::GiveUp(reason) => match receipt.split() {
                // It is for one of its lines.
                Ok(halves) => {
                    let again = |receipt| Returned { receipt, topic: topic.to_owned(), held_for: None };
                    return self.lock().returned.extend(halves.map(again));
                }
                Err(receipt) => {
                    self.note_given_up(topic, code);
                    self.note_written(topic);
                    return receipt.give_up(reason);
                }
            },
            Fate::Hold => Some(code),
            Fate::Again => None,
        };
        self.lock().returned.push(Returned { receipt, topic: topic.to_owned(), held_for });
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Its errors come to `error`, and become the sink's own.
        match level {
            RDKafkaLogLevel::Debug => tracing::trace!(facility, "librdkafka: {message}"),
            _ => tracing::debug!(facility, ?level, "librdkafka: {message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        if brokers_up(&statistics) > 0 {
            self.recover();
        }
        let mut state = self.lock();
        // Twice in a row: it may be on its way from one list of brokers to the next.
        let was_without = state.statistics.as_ref().is_some_and(is_without_brokers);
        self.is_lost.store(was_without && is_without_brokers(&statistics), Relaxed);
        state.statistics = Some(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        match code {
            Code::AllBrokersDown => {
                let last = self.lock().connection.clone();
                let (code, reason) = last.unwrap_or((code, reason.to_owned()));
                self.fail(format!("no broker can be reached: {}", self.explain(code, &reason)));
            }
            _ => {
                self.lock().connection = Some((code, reason.to_owned()));
                if matches!(code, Code::Authentication | Code::SSL) {
                    self.fail(self.explain(code, reason));
                }
            }
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<LineReceipt>;

    fn delivery(&self, result: &DeliveryResult<'_>, receipt: Box<LineReceipt>) {
        match result {
            Ok(message) => {
                receipt.deliver();
                self.recover();
                self.note_written(message.topic());
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                // Brokers refuse a whole batch for one of its messages. This one was alone if it fills a batch.
                let size = message.payload().map_or(0, <[u8]>::len);
                if is_for_one(code) && size < self.batch_size && self.batch_size > 1 {
                    self.batch_refused.store(true, Relaxed);
                    let (topic, receipt) = (message.topic().to_owned(), *receipt);
                    self.lock().returned.push(Returned { receipt, topic, held_for: None });
                } else {
                    if is_for_one(code) {
                        self.lock().refused_alone = Some(Instant::now());
                    }
                    self.came_back(*receipt, message.topic(), code);
                }
            }
        }
        if self.waiting.load(Relaxed) {
            self.room.notify_all();
        }
    }
}

/// The reason in the ledger for what is given up with its topic.
pub(super) const HELD_TOO_LONG: Reason = Reason::Rejected;
