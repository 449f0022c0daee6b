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
    }

    /// A batch is as safe as in its file, or given up.
    pub fn stored(&self, span: &Span) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(track) = streams.get_mut(&span.stream.key) else { return };
        let matching =
            |waiting: &&mut Waiting| !waiting.settled && waiting.start == span.start && waiting.end == span.end;
        if let Some(waiting) = track.waiting.iter_mut().find(matching) {
            waiting.settled = true;
        }
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
