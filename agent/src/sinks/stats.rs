//! A sink's figures, for metrics and status.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{Figure, config::QueueSettings, receipt::Loss};

/// One reading of a sink's figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SinkStats {
    /// The sink's name.
    pub name: String,
    /// Batches that the sink has not taken yet.
    pub queued_batches: u64,
    /// Memory of the queued batches, in bytes.
    pub queued_bytes: u64,
    /// The most bytes that the queue holds.
    pub queue_capacity_bytes: u64,
    /// Records that the sink has taken and not settled yet.
    pub unsettled_records: u64,
    /// Records that the sink has acknowledged.
    pub delivered_records: u64,
    /// Bytes of the streams that those records account for.
    pub delivered_bytes: u64,
    /// Records given up: the queue was full, the sink refused them for good, or the agent stopped.
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
    /// What only sinks of its kind have.
    pub figures: Vec<Figure>,
}

/// The figures as they are counted: by one sink's thread, and by those that offer it batches.
#[derive(Debug, Default)]
pub(super) struct Counters {
    taken_records: AtomicU64,
    /// Of those that were taken.
    settled_records: AtomicU64,
    delivered_records: AtomicU64,
    delivered_bytes: AtomicU64,
    dropped_records: AtomicU64,
    dropped_bytes: AtomicU64,
    errors: AtomicU64,
    /// Milliseconds since the Unix epoch; 0 for never.
    last_success: AtomicU64,
    last_error: Mutex<Option<String>>,
    failing_since: Mutex<Option<Instant>>,
    figures: Mutex<Vec<Figure>>,
}

impl Counters {
    /// The sink has taken records, or they will never get there.
    pub(super) fn note_taken(&self, records: u64) {
        self.taken_records.fetch_add(records, Relaxed);
    }

    /// A batch of the sink is settled.
    pub(super) fn note_settled(&self, records: u64, bytes: u64, lost: Option<Loss>) {
        let (lost_records, lost_bytes) = lost.map_or((0, 0), |lost| (lost.lines, lost.span));
        self.settled_records.fetch_add(records, Relaxed);
        self.delivered_records.fetch_add(records - lost_records, Relaxed);
        self.delivered_bytes.fetch_add(bytes - lost_bytes, Relaxed);
        self.dropped_records.fetch_add(lost_records, Relaxed);
        self.dropped_bytes.fetch_add(lost_bytes, Relaxed);
    }

    /// The sink has given back what it had taken.
    pub(super) fn note_given_back(&self, records: u64) {
        self.taken_records.fetch_sub(records, Relaxed);
    }

    pub(super) fn note_success(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.store(now.as_millis() as u64, Relaxed);
        self.note_well();
    }

    /// Nothing is wrong with the sink any more, though it had nothing to write.
    pub(super) fn note_well(&self) {
        *self.failing_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn note_figures(&self, figures: Vec<Figure>) {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }

    pub(super) fn note_error(&self, text: String) {
        self.errors.fetch_add(1, Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        self.failing_since.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    pub(super) fn snapshot(&self, name: &str, batches: u64, memory: u64, settings: &QueueSettings) -> SinkStats {
        let last_success = self.last_success.load(Relaxed);
        // Read in this order, none is settled that is not taken.
        let settled_records = self.settled_records.load(Relaxed);
        let unsettled_records = self.taken_records.load(Relaxed).saturating_sub(settled_records);
        SinkStats {
            name: name.to_owned(),
            queued_batches: batches,
            queued_bytes: memory,
            queue_capacity_bytes: settings.max_bytes.as_u64(),
            unsettled_records,
            delivered_records: self.delivered_records.load(Relaxed),
            delivered_bytes: self.delivered_bytes.load(Relaxed),
            dropped_records: self.dropped_records.load(Relaxed),
            dropped_bytes: self.dropped_bytes.load(Relaxed),
            errors: self.errors.load(Relaxed),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            last_success: (last_success > 0).then(|| UNIX_EPOCH + Duration::from_millis(last_success)),
            failing_for: self.failing_since.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed()),
            figures: self.figures.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
