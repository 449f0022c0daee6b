//! What the sink behind a buffer has and has not settled.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    ledger::Reason,
    record::Batch,
    sinks::{Delivery, Outcome, Promise, Receipt, worker::Size},
};

/// The most batches that the sink has at once.
const MAX_BATCHES: usize = 65_536;

/// The batches, by their sequence; shared with the threads that settle them.
#[derive(Debug, Default)]
pub(super) struct Table {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<u64, Entry>,
    /// Of the batches that the sink has.
    memory: usize,
    /// Every entry before it is on disk.
    on_disk_up_to: u64,
    /// Records of the batches that the sink has and that are on disk.
    records_on_disk: u64,
    progress: Progress,
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Progress {
    /// Batches that were settled.
    pub(super) settled: u64,
    /// Records of those of them that were on disk.
    pub(super) records_on_disk: u64,
}

#[derive(Debug)]
struct Entry {
    receipt: Receipt,
    /// `None` once it is on disk.
    batch: Option<Arc<Batch>>,
    since: Instant,
    size: Size,
}

/// A batch that is in memory only.
#[derive(Debug)]
pub(super) struct Unsecured {
    pub(super) sequence: u64,
    pub(super) batch: Arc<Batch>,
    pub(super) promise: Arc<Promise>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a batch that the sink is given now; sequences rise.
    pub(super) fn insert(&self, sequence: u64, batch: &Arc<Batch>, receipt: Receipt, on_disk: bool) {
        let size = Size::of(batch);
        let batch = (!on_disk).then(|| Arc::clone(batch));
        let mut state = self.lock();
        state.memory += size.memory;
        if on_disk {
            state.on_disk_up_to = state.on_disk_up_to.max(sequence + 1);
            state.records_on_disk += size.lines;
        }
        let entry = Entry { receipt, batch, since: Instant::now(), size };
        state.entries.insert(sequence, entry);
    }

    /// Hears what the sink did with a batch.
    pub(super) fn report(&self, sequence: u64, outcome: Outcome) {
        let mut state = self.lock();
        let is_returned = match outcome {
            Outcome::Dropped(reason) => reason == Reason::Shutdown,
            Outcome::Partly(loss) => loss.reason == Reason::Shutdown,
            Outcome::Delivered => false,
        };
        if is_returned {
            // The sink has ended: it stays here, for the disk.
            return;
        }
        // It is gone when the buffer was closed meanwhile, and left it to the next one.
        let Some(entry) = state.entries.remove(&sequence) else { return };
        state.memory -= entry.size.memory;
        state.progress.settled += 1;
        if entry.batch.is_none() {
            state.progress.records_on_disk += entry.size.lines;
            state.records_on_disk -= entry.size.lines;
        }
        drop(state);
        entry.receipt.settle(outcome);
    }

    /// Whether the sink may have one more batch.
    pub(super) fn has_room(&self, max_bytes: usize, size: Size) -> bool {
        let state = self.lock();
        state.entries.is_empty()
            || (state.entries.len() < MAX_BATCHES && state.memory.saturating_add(size.memory) <= max_bytes)
    }

    pub(super) fn progress(&self) -> Progress {
        self.lock().progress
    }

    /// Records on disk that the sink has, or has settled beyond the `noted` ones.
    pub(super) fn on_disk(&self, noted: u64) -> u64 {
        let state = self.lock();
        state.records_on_disk + (state.progress.records_on_disk - noted)
    }

    /// When the oldest of those in memory only was given to the sink.
    pub(super) fn oldest_unsecured(&self) -> Option<Instant> {
        let state = self.lock();
        state.entries.range(state.on_disk_up_to..).next().map(|(_, entry)| entry.since)
    }

    /// Those in memory only, in order, if the oldest of them is older than `age`.
    pub(super) fn unsecured(&self, age: Duration) -> Vec<Unsecured> {
        let state = self.lock();
        let mut found = state.entries.range(state.on_disk_up_to..).peekable();
        if found.peek().is_none_or(|(_, entry)| entry.since.elapsed() < age) {
            return Vec::new();
        }
        let unsecured = found.filter_map(|(sequence, entry)| {
            let promise = Arc::clone(entry.receipt.promise());
            entry.batch.as_ref().map(|batch| Unsecured { sequence: *sequence, batch: Arc::clone(batch), promise })
        });
        unsecured.collect()
    }

    /// Notes that it is on disk; false when it was settled meanwhile.
    pub(super) fn note_on_disk(&self, sequence: u64) -> bool {
        let mut state = self.lock();
        state.on_disk_up_to = state.on_disk_up_to.max(sequence + 1);
        let Some(entry) = state.entries.get_mut(&sequence) else { return false };
        entry.batch = None;
        let lines = entry.size.lines;
        state.records_on_disk += lines;
        true
    }

    /// The lowest sequence of all, also of those that are in memory only: they may come to the disk still.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.lock().entries.keys().next().copied()
    }

    /// Whether one of these is on its way and on disk.
    pub(super) fn has_on_disk(&self, sequences: Range<u64>) -> bool {
        let state = self.lock();
        let end = sequences.end.min(state.on_disk_up_to);
        sequences.start < end && state.entries.range(sequences.start..end).next().is_some()
    }

    /// Lets go of all that is on disk, which is kept there, and takes out what is in memory only.
    pub(super) fn clear(&self) -> VecDeque<Delivery> {
        let mut state = self.lock();
        let entries = std::mem::take(&mut state.entries);
        state.memory = 0;
        state.records_on_disk = 0;
        drop(state);
        let in_memory = |entry: Entry| entry.batch.map(|batch| Delivery { batch, receipt: entry.receipt });
        entries.into_values().filter_map(in_memory).collect()
    }
}
