//! Lines of topics that can't be written: held, and tried again, while all other topics go on.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use rdkafka::error::RDKafkaErrorCode as Code;

use super::context::Returned;
use crate::sinks::receipt::LineReceipt;

/// First and longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// One topic that can't be written.
#[derive(Debug)]
struct Topic {
    code: Code,
    /// When it came to be so.
    since: Instant,
    pause: Duration,
    /// When it is tried again.
    next: Instant,
    /// What came back, in order; before what was never sent.
    returned: VecDeque<LineReceipt>,
    waiting: VecDeque<LineReceipt>,
}

/// All such topics.
#[derive(Debug, Default)]
pub(super) struct Held {
    topics: HashMap<String, Topic>,
    /// Bytes of the lines that are held.
    bytes: usize,
}

fn size(receipt: &LineReceipt) -> usize {
    receipt.line().body.len() + size_of::<LineReceipt>()
}

impl Held {
    /// Whether no topic has trouble.
    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// How many topics have trouble.
    pub(super) fn topics(&self) -> usize {
        self.topics.len()
    }

    /// Bytes of the lines that are held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a line that came back.
    pub(super) fn keep(&mut self, returned: Returned, code: Code, now: Instant) {
        self.bytes += size(&returned.receipt);
        let topic = self.topics.entry(returned.topic).or_insert_with(|| Topic {
            code,
            since: now,
            pause: PAUSE.0,
            next: now + PAUSE.0,
            returned: VecDeque::new(),
            waiting: VecDeque::new(),
        });
        topic.code = code;
        if topic.next <= now {
            // It came back from an attempt.
            topic.pause = (topic.pause * 2).min(PAUSE.1);
            topic.next = now + topic.pause;
        }
        topic.returned.push_back(returned.receipt);
    }

    /// Keeps a line back if its topic has trouble; gives it back otherwise.
    pub(super) fn hold_back(&mut self, topic: &str, receipt: LineReceipt) -> Option<LineReceipt> {
        let Some(topic) = self.topics.get_mut(topic) else { return Some(receipt) };
        // After an attempt nothing waits: if it went well, nothing has to.
        self.bytes += size(&receipt);
        topic.waiting.push_back(receipt);
        None
    }

    /// Takes out the lines of topics whose time has come, in order.
    pub(super) fn due(&mut self, now: Instant) -> Vec<LineReceipt> {
        let mut due = Vec::new();
        for (_, topic) in self.topics.iter_mut().filter(|(_, topic)| topic.next <= now) {
            for receipt in topic.returned.drain(..).chain(topic.waiting.drain(..)) {
                self.bytes -= size(&receipt);
                due.push(receipt);
            }
        }
        due
    }

    /// Takes out all lines.
    pub(super) fn take_all(&mut self) -> Vec<LineReceipt> {
        self.bytes = 0;
        self.topics.drain().flat_map(|(_, topic)| topic.returned.into_iter().chain(topic.waiting)).collect()
    }

    /// Forgets topics of which nothing has come back for as long as an attempt takes.
    pub(super) fn forget_mended(&mut self, now: Instant, patience: Duration) {
        self.topics
            .retain(|_, topic| !topic.returned.is_empty() || !topic.waiting.is_empty() || now < topic.next + patience);
    }

    /// Takes out what has been held for longer than `limit`, and the oldest of what is more than `max_bytes`.
    pub(super) fn overdue(
        &mut self,
        now: Instant,
        limit: Duration,
        max_bytes: usize,
    ) -> Vec<(String, Code, LineReceipt)> {
        let mut overdue = Vec::new();
        for (name, topic) in &mut self.topics {
            let late = now.duration_since(topic.since) >= limit;
            while late || self.bytes > max_bytes {
                let Some(receipt) = topic.returned.pop_front().or_else(|| topic.waiting.pop_front()) else { break };
                self.bytes -= size(&receipt);
                overdue.push((name.clone(), topic.code, receipt));
            }
        }
        overdue
    }

    /// The topics that have trouble, for an error.
    pub(super) fn describe(&self) -> Option<(Code, String)> {
        let (name, topic) = self.topics.iter().min_by_key(|(name, _)| name.as_str())?;
        let others = match self.topics.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        Some((topic.code, format!("topic {name}{others}")))
    }
}
