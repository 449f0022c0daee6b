//! What the sinks have acknowledged of each stream, in whatever order they did.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{record::Batch, sinks::receipt::Span};

/// Acknowledged positions; shared by the thread that delivers and the one that hears of acknowledgements.
#[derive(Debug, Default)]
pub struct Progress {
    streams: Mutex<HashMap<Arc<str>, Track>>,
}

#[derive(Debug, Default)]
struct Track {
    acknowledged: u64,
    /// Delivered and not yet below `acknowledged`, in order.
    waiting: VecDeque<Waiting>,
    closed: bool,
}

#[derive(Debug)]
struct Waiting {
    start: u64,
    end: u64,
    settled: bool,
}

impl Track {
    /// Notes that a batch is settled; neighbours that are become one, so that a batch that is not for hours costs no
    /// more than those that are not.
    fn settle(&mut self, start: u64, end: u64) {
        let mut index = self.waiting.partition_point(|waiting| waiting.start < start);
        let matches = |waiting: &Waiting| !waiting.settled && waiting.start == start && waiting.end == end;
        while self.waiting.get(index).is_some_and(|waiting| waiting.start == start && !matches(waiting)) {
            index += 1;
        }
        if !self.waiting.get(index).is_some_and(matches) {
            return;
        }
        self.waiting[index].settled = true;
        for first in [index, index.wrapping_sub(1)] {
            let (Some(one), Some(next)) = (self.waiting.get(first), self.waiting.get(first.wrapping_add(1))) else {
                continue;
            };
            if one.settled && next.settled {
                let end = one.end.max(next.end);
                self.waiting.remove(first + 1);
                self.waiting[first].end = end;
            }
        }
    }
}

impl Progress {
    /// A stream of which everything before `position` is done with.
    pub fn open(&self, key: &Arc<str>, position: u64) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was closed and waits for its last batches knows better.
        let track =
            streams.entry(Arc::clone(key)).or_insert_with(|| Track { acknowledged: position, ..Track::default() });
        track.closed = false;
    }

    /// No batch of the stream will come any more: it is forgotten once the last one is settled.
    pub fn close(&self, key: &Arc<str>) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(track) = streams.get_mut(key) {
            track.closed = true;
            if track.waiting.is_empty() {
                streams.remove(key);
            }
        }
    }

    /// A batch is on its way; called in the order of the stream.
    pub fn delivering(&self, batch: &Batch) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let track = streams.entry(Arc::clone(&batch.stream.key)).or_default();
        let start = batch.lines.first().map_or(0, |line| line.position);
        track.waiting.push_back(Waiting { start, end: batch.end(), settled: false });
        debug_assert!(track.waiting.iter().rev().take(2).is_sorted_by(|last, before| before.start <= last.start));
    }

    /// A batch is as safe as in its file, or given up.
    pub fn stored(&self, span: &Span) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(track) = streams.get_mut(&span.stream.key) else { return };
        track.settle(span.start, span.end);
        while track.waiting.front().is_some_and(|waiting| waiting.settled) {
            if let Some(waiting) = track.waiting.pop_front() {
                track.acknowledged = track.acknowledged.max(waiting.end);
            }
        }
        if track.closed && track.waiting.is_empty() {
            streams.remove(&span.stream.key);
        }
    }

    /// Everything before is acknowledged; `None` for an unknown stream.
    #[must_use]
    pub fn acknowledged(&self, key: &str) -> Option<u64> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.get(key).map(|track| track.acknowledged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Class, Line, Origin, Stream};

    fn batch(start: u64, end: u64) -> Batch {
        let stream = Arc::new(Stream {
            key: "file/1".into(),
            class: Class::Business,
            origin: Origin::File { path: "/a".into() },
            resource: Arc::default(),
            account: Arc::default(),
            source: None,
        });
        let line = Line { position: start, span: end - start, ..Line::default() };
        Batch { stream, data: bytes::Bytes::new(), lines: vec![line] }
    }

    fn span(batch: &Batch) -> Span {
        Span { stream: Arc::clone(&batch.stream), start: batch.lines[0].position, end: batch.end() }
    }

    #[test]
    fn what_is_settled_behind_one_that_is_not_takes_no_room() {
        let progress = Progress::default();
        let batches: Vec<_> = (0..100).map(|index| batch(index * 10, index * 10 + 10)).collect();
        batches.iter().for_each(|batch| progress.delivering(batch));
        let waiting = || progress.streams.lock().expect("not poisoned")["file/1"].waiting.len();
        // In two halves, one from its end.
        batches[50..].iter().rev().chain(&batches[1..49]).for_each(|batch| progress.stored(&span(batch)));
        assert_eq!((waiting(), progress.acknowledged("file/1")), (4, Some(0)));
        progress.stored(&span(&batches[49]));
        assert_eq!(waiting(), 2);
        progress.stored(&span(&batches[0]));
        assert_eq!((waiting(), progress.acknowledged("file/1")), (0, Some(1000)));
    }

    #[test]
    fn a_position_moves_over_contiguous_acknowledgements_only() {
        let progress = Progress::default();
        let batches = [batch(5, 10), batch(10, 20), batch(30, 40), batch(40, 50)];
        progress.open(&"file/1".into(), 5);
        batches.iter().for_each(|batch| progress.delivering(batch));
        assert_eq!(progress.acknowledged("file/1"), Some(5));
        progress.stored(&span(&batches[1]));
        assert_eq!(progress.acknowledged("file/1"), Some(5));
        progress.stored(&span(&batches[0]));
        assert_eq!(progress.acknowledged("file/1"), Some(20));
        progress.stored(&span(&batches[2]));
        assert_eq!(progress.acknowledged("file/1"), Some(40), "the gap between the batches is in no batch");
    }

    #[test]
    fn a_closed_stream_is_forgotten_after_its_last_batch() {
        let progress = Progress::default();
        let last = batch(0, 10);
        progress.delivering(&last);
        progress.close(&last.stream.key);
        assert_eq!(progress.acknowledged("file/1"), Some(0));
        progress.stored(&span(&last));
        assert_eq!(progress.acknowledged("file/1"), None);
    }
}
