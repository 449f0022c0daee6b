//! Lines of indices that take nothing now: held until one of them shows that its index takes lines again, while all other
//! indices go on.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{encode::Entry, reply::Refusal};
use crate::{
    record::Batch,
    sinks::{attempts::Pause, uptime::Uptime},
};

/// The most batches of which lines are held: a buffer on disk lets the sink have four times as many.
const MOST_BATCHES: usize = 16_384;

/// All such lines.
#[derive(Debug, Default)]
pub(super) struct Held {
    indices: HashMap<String, Index>,
    batches: Batches,
    uptime: Uptime,
}

/// An index that takes nothing.
#[derive(Debug)]
struct Index {
    /// The oldest first.
    lines: VecDeque<Entry>,
    since: Instant,
    pause: Pause,
    /// A line is on its way that shows whether the index takes lines again.
    is_tried: bool,
    /// What the uptime was when it was blocked last: that time is no reason to give up.
    blocked: Duration,
    refusal: Refusal,
}

impl Index {
    fn records(&self) -> usize {
        self.lines.len() + usize::from(self.is_tried)
    }
}

/// Lines that are to make room for others.
#[derive(Debug)]
pub(super) struct Oldest {
    /// Why their index takes nothing.
    pub(super) refusal: Refusal,
    /// All lines of a batch.
    pub(super) lines: Vec<Entry>,
}

/// The batches of which lines are held. One line keeps the memory of its whole batch.
#[derive(Debug, Default)]
struct Batches {
    /// How many lines of each, by its address: it stays where it is while a line is held.
    lines: HashMap<usize, usize>,
    memory: usize,
}

impl Batches {
    fn address(batch: &Arc<Batch>) -> usize {
        Arc::as_ptr(batch).addr()
    }

    fn add(&mut self, entry: &Entry) {
        let batch = entry.receipt.batch();
        let lines = self.lines.entry(Self::address(batch)).or_default();
        *lines += 1;
        if *lines == 1 {
            self.memory += batch.memory();
        }
    }

    fn remove(&mut self, entry: &Entry) {
        let batch = entry.receipt.batch();
        let Some(lines) = self.lines.get_mut(&Self::address(batch)) else { return };
        *lines -= 1;
        if *lines == 0 {
            self.lines.remove(&Self::address(batch));
            self.memory -= batch.memory();
        }
    }
}

impl Held {
    /// Whether every index takes lines.
    pub(super) fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// How many lines.
    pub(super) fn len(&self) -> usize {
        self.indices.values().map(|index| index.lines.len()).sum()
    }

    /// How many lines, with those that are on their way to show whether their index takes them.
    pub(super) fn records(&self) -> usize {
        self.indices.values().map(Index::records).sum()
    }

    /// Whether what is held takes more than `most` bytes of memory, or as many batches as there may be.
    pub(super) fn is_over(&self, most: usize) -> bool {
        self.batches.memory > most || self.batches.lines.len() > MOST_BATCHES
    }

    /// Why lines are held.
    pub(super) fn why(&self) -> Option<String> {
        let held = self.indices.iter().filter(|(_, index)| index.records() > 0);
        let (name, index) = held.clone().min_by_key(|(name, _)| name.as_str())?;
        let others = match held.count() {
            1 => String::new(),
            count => format!(", and lines of {} more indices", count - 1),
        };
        let count = index.records();
        Some(format!("index {name}: {count} lines are held and tried again{others}: {}", index.refusal.why))
    }

    /// Notes whether the server has answered to the point: no line is given up because of an outage.
    pub(super) fn note_server(&mut self, answers: bool, now: Instant) {
        if answers { self.uptime.answered(now) } else { self.uptime.failed() }
    }

    /// Whether an index takes nothing.
    pub(super) fn has(&self, index: &str) -> bool {
        self.indices.contains_key(index)
    }

    /// Since when an index takes nothing, for a cause that others may have as well.
    pub(super) fn in_common_trouble_since(&self, index: &str) -> Option<Instant> {
        self.indices.get(index).filter(|index| index.refusal.is_common).map(|index| index.since)
    }

    /// Keeps a line that its index did not take. Gives back the lines that are to be given up, as the server has turned
    /// them away for as long as `limit`, and once more now; those of a blocked index never are.
    pub(super) fn keep(
        &mut self,
        name: &str,
        mut entry: Entry,
        refusal: Refusal,
        limit: Duration,
        now: Instant,
    ) -> Vec<Entry> {
        let uptime = self.uptime.reading();
        if !self.indices.contains_key(name) {
            let (lines, pause) = (VecDeque::new(), Pause::default());
            let blocked = Duration::ZERO;
            let index = Index { lines, since: now, pause, is_tried: false, blocked, refusal: refusal.clone() };
            self.indices.insert(name.to_owned(), index);
        }
        let Some(index) = self.indices.get_mut(name) else { return vec![entry] };
        index.refusal = refusal;
        index.pause.begin(now, None);
        entry.held_since.get_or_insert(uptime);
        self.batches.add(&entry);
        if std::mem::take(&mut entry.is_trial) {
            index.is_tried = false;
            index.lines.push_front(entry);
        } else {
            index.lines.push_back(entry);
        }
        if index.refusal.is_blocked {
            index.blocked = uptime;
            return Vec::new();
        }
        let begin = index.blocked;
        let is_late = |entry: &mut Entry| entry.held_since.is_some_and(|since| uptime - since.max(begin) >= limit);
        let mut late = Vec::new();
        while let Some(entry) = index.lines.pop_front_if(is_late) {
            self.batches.remove(&entry);
            late.push(entry);
        }
        late
    }

    /// Keeps a line back if its index takes nothing; gives it back otherwise.
    pub(super) fn hold_back(&mut self, index: &str, mut entry: Entry) -> Option<Entry> {
        let Some(index) = self.indices.get_mut(index) else { return Some(entry) };
        entry.held_since = Some(self.uptime.reading());
        self.batches.add(&entry);
        index.lines.push_back(entry);
        None
    }

    /// When a held line is tried next.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let waiting = self.indices.values().filter(|index| !index.is_tried && !index.lines.is_empty());
        waiting.map(|index| index.pause.until(now).unwrap_or(now)).min()
    }

    /// Takes out the oldest line of each index whose time has come: it shows whether the index takes lines again.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Entry> {
        self.indices.retain(|_, index| index.is_tried || !index.lines.is_empty());
        let mut due = Vec::new();
        for index in self.indices.values_mut() {
            if index.is_tried || index.pause.until(now).is_some() {
                continue;
            }
            let Some(mut entry) = index.lines.pop_front() else { continue };
            self.batches.remove(&entry);
            (entry.is_trial, index.is_tried) = (true, true);
            due.push(entry);
        }
        due
    }

    /// A line that was to show whether its index takes lines says nothing of that: another one is to.
    pub(super) fn note_no_trial(&mut self, index: &str) {
        if let Some(index) = self.indices.get_mut(index) {
            index.is_tried = false;
        }
    }

    /// An index takes lines: takes out those that were held for it.
    pub(super) fn release(&mut self, index: &str) -> Vec<Entry> {
        let lines = self.indices.remove(index).map(|index| Vec::from(index.lines)).unwrap_or_default();
        lines.iter().for_each(|entry| self.batches.remove(entry));
        lines
    }

    /// Takes out the oldest batch of the index that holds most.
    pub(super) fn take_oldest(&mut self) -> Option<Oldest> {
        let index = self.indices.values_mut().max_by_key(|index| index.lines.len())?;
        let batch = Batches::address(index.lines.front()?.receipt.batch());
        let mut lines = Vec::new();
        while let Some(entry) = index.lines.pop_front_if(|entry| Batches::address(entry.receipt.batch()) == batch) {
            self.batches.remove(&entry);
            lines.push(entry);
        }
        Some(Oldest { refusal: index.refusal.clone(), lines })
    }

    /// Takes out all lines.
    pub(super) fn take_all(&mut self) -> Vec<Entry> {
        self.batches = Batches::default();
        std::mem::take(&mut self.indices).into_values().flat_map(|index| index.lines).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::sinks::{
        Receipt,
        receipt::Lines,
        testing::{batch, pod_stream},
    };

    const LIMIT: Duration = Duration::from_secs(10);

    fn refusal(is_blocked: bool) -> Refusal {
        Refusal { kind: "kind".into(), why: "why".into(), is_blocked, is_common: false }
    }

    /// The lines of a batch.
    fn entries(bodies: &[&[u8]]) -> Vec<Entry> {
        let batch = Arc::new(batch(&pod_stream("a", "b", "c"), 0, bodies));
        let (sender, _) = channel();
        let receipt = Receipt::for_sinks(&batch, 1, &sender, None).pop().expect("one receipt");
        let lines = Lines::new(&batch, receipt);
        (0..bodies.len()).map(|index| Entry::new(lines.line(index))).collect()
    }

    fn positions(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.receipt.line().position).collect()
    }

    #[test]
    fn one_line_shows_whether_an_index_is_open_and_the_others_follow_in_order() {
        let mut now = Instant::now();
        let mut held = Held::default();
        let mut entries = entries(&[b"1", b"2", b"3"]);
        let last = entries.pop().expect("three");
        for entry in entries {
            assert!(held.keep("a", entry, refusal(true), LIMIT, now).is_empty());
        }
        assert!(held.hold_back("a", last).is_none());
        for _ in 0..20 {
            now = held.next(now).expect("it is tried again") + Duration::from_millis(1);
            let mut trial = held.due(now);
            assert_eq!((positions(&trial), held.due(now).len(), held.records()), (vec![0], 0, 3));
            assert_eq!(held.next(now), None, "it is on its way");
            held.note_server(true, now);
            assert!(held.keep("a", trial.remove(0), refusal(true), LIMIT, now).is_empty(), "blocked is no reason");
        }
        assert!(held.why().expect("why").contains("index a: 3 lines are held"));
        assert_eq!((positions(&held.release("a")), held.is_empty(), held.is_over(0)), (vec![0, 2, 4], true, false));
    }

    #[test]
    fn lines_of_a_missing_index_are_given_up_after_their_time_alone() {
        let mut now = Instant::now();
        let mut held = Held::default();
        let mut entries = entries(&[b"1", b"2"]);
        let second = entries.pop();
        held.note_server(true, now);
        assert!(held.keep("a", entries.remove(0), refusal(false), LIMIT, now).is_empty());
        now += LIMIT;
        held.note_server(true, now);
        assert!(second.and_then(|second| held.hold_back("a", second)).is_none());
        let trial = held.due(now).remove(0);
        assert_eq!(positions(&held.keep("a", trial, refusal(false), LIMIT, now)), [0]);
        assert_eq!(held.len(), 1, "the other came later");
        // Blocked in between: that time does not count.
        now += LIMIT;
        held.note_server(true, now);
        let trial = held.due(now).remove(0);
        assert!(held.keep("a", trial, refusal(true), LIMIT, now).is_empty());
        now += LIMIT / 2;
        held.note_server(true, now);
        let trial = held.due(now).remove(0);
        assert!(held.keep("a", trial, refusal(false), LIMIT, now).is_empty());
        now += LIMIT;
        held.note_server(false, now);
        let trial = held.due(now).remove(0);
        assert!(held.keep("a", trial, refusal(false), LIMIT, now).is_empty(), "the server was away");
    }

    #[test]
    fn whole_batches_make_room() {
        let now = Instant::now();
        let mut held = Held::default();
        let (small, first, second) = (entries(&[b"1"]), entries(&[b"1", b"2"]), entries(&[b"1", b"2"]));
        let sizes = [&small, &first, &second].map(|entries| entries[0].receipt.batch().memory());
        small.into_iter().for_each(|entry| assert!(held.keep("a", entry, refusal(true), LIMIT, now).is_empty()));
        for entry in first.into_iter().chain(second) {
            assert!(held.keep("b", entry, refusal(true), LIMIT, now).is_empty());
        }
        let all = sizes.iter().sum::<usize>();
        assert!(!held.is_over(all) && held.is_over(all - 1));
        assert_eq!(held.take_oldest().map(|oldest| positions(&oldest.lines)), Some(vec![0, 2]));
        assert!(!held.is_over(all - sizes[1]) && held.is_over(all - sizes[1] - 1));
        assert_eq!((held.take_all().len(), held.is_over(0)), (3, false));
    }
}
