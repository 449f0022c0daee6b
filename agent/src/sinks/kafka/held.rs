//! Lines of topics that can't be written: held, and tried again, while all other topics go on.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use rdkafka::error::RDKafkaErrorCode as Code;

use super::context::Returned;
use crate::sinks::{receipt::LineReceipt, uptime::Uptime};

/// First and longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));
/// How long an attempt may take; longer than `topic.metadata.propagation.max.ms`, for which librdkafka waits for a topic
/// that was just made.
const ATTEMPT: Duration = Duration::from_secs(15);

/// One topic that can't be written.
#[derive(Debug)]
struct Topic {
    code: Code,
    /// What the uptime was when it came to be so.
    since: Duration,
    pause: Duration,
    /// When it is tried again.
    next: Instant,
    /// A line is on its way that shows whether it can be written.
    is_tried: bool,
    /// The last attempt came back, and that is not looked at yet.
    is_refused: bool,
    lines: VecDeque<LineReceipt>,
}

/// All such topics.
#[derive(Debug, Default)]
pub(super) struct Held {
    topics: HashMap<String, Topic>,
    /// Bytes of the lines that are held.
    bytes: usize,
    uptime: Uptime,
    /// Brokers were away since it last showed whether a topic can be written.
    is_doubtful: bool,
}

fn size(receipt: &LineReceipt) -> usize {
    receipt.lines().iter().map(|line| line.body.len()).sum::<usize>() + size_of::<LineReceipt>()
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

    /// Notes whether the brokers answer: no topic is given up because of them.
    pub(super) fn note_brokers(&mut self, answer: bool, now: Instant) {
        if answer {
            self.uptime.answered(now);
        } else {
            self.uptime.failed();
            self.is_doubtful = !self.topics.is_empty();
        }
    }

    /// Whether it is open if the topics still have trouble, as brokers were away meanwhile.
    pub(super) const fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// Keeps a line that came back.
    pub(super) fn keep(&mut self, returned: Returned, code: Code, now: Instant) {
        self.bytes += size(&returned.receipt);
        let topic = self.topics.entry(returned.topic).or_insert_with(|| Topic {
            code,
            since: self.uptime.reading(),
            pause: PAUSE.0,
            next: now + PAUSE.0,
            is_tried: false,
            is_refused: false,
            lines: VecDeque::new(),
        });
        topic.code = code;
        self.is_doubtful = false;
        if std::mem::take(&mut topic.is_tried) {
            topic.is_refused = true;
            topic.pause = (topic.pause * 2).min(PAUSE.1);
            topic.next = now + topic.pause;
        }
        topic.lines.push_back(returned.receipt);
    }

    /// Keeps a line back if its topic has trouble; gives it back otherwise.
    pub(super) fn hold_back(&mut self, topic: &str, receipt: LineReceipt) -> Option<LineReceipt> {
        let Some(topic) = self.topics.get_mut(topic) else { return Some(receipt) };
        self.bytes += size(&receipt);
        topic.lines.push_back(receipt);
        None
    }

    /// Takes out one line of each topic whose time has come, the first of its stream: it shows whether the topic can be
    /// written.
    pub(super) fn due(&mut self, now: Instant) -> Vec<LineReceipt> {
        let mut due = Vec::new();
        for topic in self.topics.values_mut().filter(|topic| topic.next <= now) {
            let first = (0..topic.lines.len()).min_by_key(|index| topic.lines[*index].line().position);
            let Some(receipt) = first.and_then(|index| topic.lines.remove(index)) else { continue };
            (topic.is_tried, topic.next) = (true, now + ATTEMPT);
            self.bytes -= size(&receipt);
            due.push(receipt);
        }
        due
    }

    /// A topic took a line. If that ends an attempt it can be written again: takes out its lines, those of each stream in
    /// order.
    pub(super) fn release(&mut self, topic: &str) -> VecDeque<LineReceipt> {
        // One partition may take lines while another does not: then this keeps the pace of the attempts.
        if self.topics.get(topic).is_none_or(|topic| !topic.is_tried) {
            return VecDeque::new();
        }
        let Some(Topic { mut lines, .. }) = self.topics.remove(topic) else { return VecDeque::new() };
        self.bytes -= lines.iter().map(size).sum::<usize>();
        self.is_doubtful = false;
        lines.make_contiguous().sort_by_key(|receipt| receipt.line().position);
        lines
    }

    /// Takes out all lines.
    pub(super) fn take_all(&mut self) -> Vec<LineReceipt> {
        self.bytes = 0;
        self.topics.drain().flat_map(|(_, topic)| topic.lines).collect()
    }

    /// Forgets topics that nothing is written to any more.
    pub(super) fn forget_unused(&mut self, now: Instant) {
        self.topics.retain(|_, topic| !topic.lines.is_empty() || now < topic.next + ATTEMPT);
        self.is_doubtful &= !self.topics.is_empty();
    }

    /// Takes out the lines of topics that were refused once more after brokers have answered for as long as `limit`, and
    /// the oldest of the topics that hold most, of what is more than `max_bytes`, unless topics are doubtful: then no more is to be taken.
    pub(super) fn overdue(&mut self, limit: Duration, max_bytes: usize) -> Vec<(String, Code, LineReceipt)> {
        let mut overdue = Vec::new();
        let uptime = self.uptime.reading();
        for (name, topic) in &mut self.topics {
            let late = std::mem::take(&mut topic.is_refused) && uptime - topic.since >= limit;
            while late && let Some(receipt) = topic.lines.pop_front() {
                self.bytes -= size(&receipt);
                overdue.push((name.clone(), topic.code, receipt));
            }
        }
        while self.bytes > max_bytes && !self.is_doubtful {
            // Who holds most pays, not who happens to be looked at first.
            let largest = self.topics.iter_mut().max_by_key(|(_, topic)| topic.lines.len());
            let Some((name, topic)) = largest.filter(|(_, topic)| !topic.lines.is_empty()) else { break };
            // Several at once, as it is looked for among all topics.
            for _ in 0..(topic.lines.len() / 8).max(1) {
                let Some(receipt) = topic.lines.pop_front() else { break };
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc::channel};

    use super::*;
    use crate::sinks::{
        Receipt,
        receipt::Lines,
        testing::{batch, pod_stream},
    };

    const TOPIC: &str = "logs.pod";
    const LIMIT: Duration = Duration::from_secs(10);

    fn returned(receipt: LineReceipt) -> Returned {
        Returned { receipt, topic: TOPIC.to_owned(), held_for: Some(Code::UnknownTopic) }
    }

    /// Three lines of a topic that is missing.
    fn held(now: Instant) -> Held {
        let (sender, _) = channel();
        let batch = Arc::new(batch(&pod_stream("a", "b", "c"), 0, &[b"1", b"2", b"3"]));
        let receipt = Receipt::for_sinks(&batch, 1, &sender, None).pop().expect("one receipt");
        let lines = Lines::new(&batch, receipt);
        let mut held = Held::default();
        held.note_brokers(true, now);
        (0..3).for_each(|index| held.keep(returned(lines.line(index)), Code::UnknownTopic, now));
        held
    }

    #[test]
    fn one_line_shows_whether_a_topic_is_mended_and_the_others_follow_in_order() {
        let mut now = Instant::now();
        let mut held = held(now);
        for _ in 0..3 {
            now += PAUSE.1;
            let mut due = held.due(now);
            assert!(due.len() == 1 && due[0].line().position == 0 && held.due(now).is_empty());
            held.keep(returned(due.remove(0)), Code::UnknownTopic, now);
        }
        now += PAUSE.1;
        assert_eq!(held.due(now).len(), 1);
        let released: Vec<_> = held.release(TOPIC).iter().map(|receipt| receipt.line().position).collect();
        assert_eq!((released, held.bytes(), held.is_empty()), (vec![2, 4], 0, true));
    }

    #[test]
    fn a_topic_is_given_up_after_an_attempt_and_not_for_an_outage() {
        let mut now = Instant::now();
        let mut held = held(now);
        held.note_brokers(false, now);
        now += 100 * LIMIT;
        held.note_brokers(true, now);
        assert!(held.is_doubtful() && held.overdue(LIMIT, 0).is_empty(), "it may have been mended meanwhile");
        let attempt = held.due(now);
        for receipt in attempt {
            held.keep(returned(receipt), Code::UnknownTopic, now);
        }
        assert_eq!(held.overdue(LIMIT, usize::MAX).len(), 0, "brokers were away");
        now += LIMIT;
        held.note_brokers(true, now);
        assert_eq!(held.overdue(LIMIT, usize::MAX).len(), 0, "it is tried once more");
        let attempt = held.due(now);
        for receipt in attempt {
            held.keep(returned(receipt), Code::UnknownTopic, now);
        }
        assert_eq!(held.overdue(LIMIT, usize::MAX).len(), 3);
        held.forget_unused(now + PAUSE.1 + ATTEMPT);
        assert!(held.is_empty());
    }
}
