//! A sink's figures, for metrics and status.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::config::QueueSettings;

/// One reading of a sink's figures.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SinkStats {
    /// The sink's name.
    pub name: String,
    /// Batches that the sink has not taken yet.
    pub queued_batches: u64,
    /// Memory of the queued batches, in bytes.
    pub queued_bytes: u64,
    /// The most bytes that the queue holds.
    pub queue_capacity_bytes: u64,
    /// Records that the sink has taken.
    pub taken_records: u64,
    /// Bytes of the streams that those records account for.
    pub taken_bytes: u64,
    /// Records dropped before the sink because its queue was full, or at shutdown.
    pub dropped_records: u64,
    /// Bytes of the streams that those records account for.
    pub dropped_bytes: u64,
    /// Errors of the sink, each of them tried again.
    pub errors: u64,
    /// The last error.
    pub last_error: Option<String>,
    /// When a call of the sink last went well.
    pub last_success: Option<SystemTime>,
    /// For how long every call has failed, by a clock that nobody sets; `None` while it works.
    pub failing_for: Option<Duration>,
}

/// The figures as they are counted: by one sink's thread, and by those that offer it batches.
#[derive(Debug, Default)]
pub(super) struct Counters {
    taken_records: AtomicU64,
    taken_bytes: AtomicU64,
    dropped_records: AtomicU64,
    dropped_bytes: AtomicU64,
    errors: AtomicU64,
    /// Milliseconds since the Unix epoch; 0 for never.
    last_success: AtomicU64,
    last_error: Mutex<Option<String>>,
    failing_since: Mutex<Option<Instant>>,
}

impl Counters {
    pub(super) fn note_taken(&self, records: u64, bytes: u64) {
        self.taken_records.fetch_add(records, Relaxed);
        self.taken_bytes.fetch_add(bytes, Relaxed);
    }

    /// The sink has given back what it had taken.
    pub(super) fn note_given_back(&self, records: u64, bytes: u64) {
        self.taken_records.fetch_sub(records, Relaxed);
        self.taken_bytes.fetch_sub(bytes, Relaxed);
    }

    pub(super) fn note_dropped(&self, records: u64, bytes: u64) {
        self.dropped_records.fetch_add(records, Relaxed);
        self.dropped_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn note_success(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.store(now.as_millis() as u64, Relaxed);
        *self.failing_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn note_error(&self, text: String) {
        self.errors.fetch_add(1, Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        self.failing_since.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    pub(super) fn snapshot(&self, name: &str, batches: u64, memory: u64, settings: &QueueSettings) -> SinkStats {
        let last_success = self.last_success.load(Relaxed);
        SinkStats {
            name: name.to_owned(),
            queued_batches: batches,
            queued_bytes: memory,
            queue_capacity_bytes: settings.max_bytes.as_u64(),
            taken_records: self.taken_records.load(Relaxed),
            taken_bytes: self.taken_bytes.load(Relaxed),
            dropped_records: self.dropped_records.load(Relaxed),
            dropped_bytes: self.dropped_bytes.load(Relaxed),
            errors: self.errors.load(Relaxed),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            last_success: (last_success > 0).then(|| UNIX_EPOCH + Duration::from_millis(last_success)),
            failing_for: self.failing_since.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed()),
        }
    }
}
