//! A sink's figures, for metrics and status.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    Figure,
    backlog::Backlog,
    buffer::{BufferStats, Figures},
    config::QueueSettings,
    rate::{Meter, Rate, Totals},
    receipt::{Amount, Loss},
};
use crate::{clock::unix_nano, ledger::Reason};

/// A sink that has something and settles nothing for so long does not work, whatever its calls say.
const STILL: Duration = Duration::from_secs(15);

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
    /// Records that the sink was given and has neither acknowledged nor given up: in its queue, on their way, and in its
    /// buffer on disk.
    pub behind_records: u64,
    /// Bytes of the streams in these. What is on disk only counts as it is there.
    pub behind_bytes: u64,
    /// How long ago the oldest of these was written; zero when there is none.
    pub lag: Duration,
    /// All that the sink was given and that was written before this is acknowledged or given up; `None` before the sink
    /// was given anything.
    pub acknowledged_up_to: Option<SystemTime>,
    /// What it has acknowledged in the last ten seconds.
    pub rate: Rate,
    /// Records that the sink has acknowledged.
    pub delivered_records: u64,
    /// Bytes of the streams that those records account for.
    pub delivered_bytes: u64,
    /// What was given up, by reason: the queue or the buffer was full, the sink refused it for good, or the agent stopped.
    pub dropped: Vec<(Reason, Amount)>,
    /// Errors of the sink, each of them tried again.
    pub errors: u64,
    /// The last error.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<SystemTime>,
    /// When a call of the sink last went well.
    pub last_success: Option<SystemTime>,
    /// For how long every call has failed, or nothing was acknowledged though something waits for that, by a clock that nobody sets; `None` while it works.
    pub failing_for: Option<Duration>,
    /// The sink's buffer on disk, where it has one.
    pub buffer: Option<BufferStats>,
    /// What only sinks of its kind have.
    pub figures: Vec<Figure>,
}

impl SinkStats {
    /// Records given up, for whatever reason.
    #[must_use]
    pub fn dropped_records(&self) -> u64 {
        self.dropped.iter().map(|(_, amount)| amount.lines).sum()
    }
}

/// The figures as they are counted: by one sink's thread, and by those that offer it batches.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) backlog: Backlog,
    delivered_records: AtomicU64,
    delivered_bytes: AtomicU64,
    dropped: Mutex<BTreeMap<Reason, Amount>>,
    meter: Mutex<Meter>,
    errors: AtomicU64,
    /// Milliseconds since the Unix epoch; 0 for never.
    last_success: AtomicU64,
    last_error: Mutex<Option<(SystemTime, String)>>,
    failing_since: Mutex<Option<Instant>>,
    figures: Mutex<Vec<Figure>>,
    /// The buffer, with the figures of the sink behind it.
    buffer: Mutex<Option<Arc<Figures>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counters {
    /// A batch of the sink is settled.
    pub(super) fn note_settled(&self, amount: Amount, lost: Option<Loss>) {
        let (lost_records, lost_bytes) = lost.map_or((0, 0), |lost| (lost.lines, lost.span));
        self.delivered_records.fetch_add(amount.lines - lost_records, Relaxed);
        self.delivered_bytes.fetch_add(amount.span - lost_bytes, Relaxed);
        if let Some(lost) = lost {
            self.note_lost(lost);
        }
    }

    /// Records are given up.
    pub(super) fn note_lost(&self, Loss { reason, lines, span }: Loss) {
        let mut dropped = lock(&self.dropped);
        let amount = dropped.entry(reason).or_insert(Amount { lines: 0, span: 0 });
        amount.lines += lines;
        amount.span += span;
    }

    /// Notes how far it is; called about once a second.
    pub(super) fn sample(&self, now: Instant) {
        lock(&self.meter).sample(now, self.totals());
    }

    fn totals(&self) -> Totals {
        Totals { records: self.delivered_records.load(Relaxed), bytes: self.delivered_bytes.load(Relaxed) }
    }

    /// The sink has this buffer now.
    pub(super) fn set_buffer(&self, buffer: Option<&Arc<Figures>>) {
        *lock(&self.buffer) = buffer.map(Arc::clone);
    }

    pub(super) fn note_success(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.store(now.as_millis() as u64, Relaxed);
        self.note_well();
    }

    /// Nothing is wrong with the sink any more, though it had nothing to write; true when something was.
    pub(super) fn note_well(&self) -> bool {
        lock(&self.failing_since).take().is_some()
    }

    pub(super) fn note_figures(&self, figures: Vec<Figure>) {
        *lock(&self.figures) = figures;
    }

    /// What only sinks of its kind have.
    pub(super) fn figures(&self) -> Vec<Figure> {
        lock(&self.figures).clone()
    }

    pub(super) fn note_error(&self, text: String) {
        self.errors.fetch_add(1, Relaxed);
        *lock(&self.last_error) = Some((SystemTime::now(), text));
        lock(&self.failing_since).get_or_insert_with(Instant::now);
    }

    pub(super) fn snapshot(&self, name: &str, batches: u64, memory: u64, settings: &QueueSettings) -> SinkStats {
        let buffer = lock(&self.buffer).clone();
        let health = self.health();
        // Where there is a buffer, it takes records while the sink behind it fails.
        let behind = buffer.as_ref().map(|buffer| buffer.sink.health());
        let sink = behind.clone().unwrap_or_default();
        let buffer = buffer.map(|buffer| buffer.snapshot());
        let (unread_records, unread_bytes) =
            buffer.map_or((0, 0), |buffer| (buffer.unread_records, buffer.unread_bytes));
        let backlog = self.backlog.read();
        // The sink gets what is on disk in order, so what it has is older than the rest; it has nothing of it for a moment.
        let oldest = backlog.oldest.or_else(|| {
            let begun = buffer.filter(|_| unread_bytes > 0)?.oldest?;
            Some(backlog.settled_up_to.max(unix_nano().saturating_sub(begun.as_nanos() as u64)))
        });
        let up_to = oldest.unwrap_or(backlog.settled_up_to);
        // A buffer that fails is worse than a sink that does.
        let last_error = health.failing_for.and(health.last_error.clone()).or(sink.last_error).or(health.last_error);
        // A server that hangs may be no error to its sink for long.
        let still_for = backlog.still_for.filter(|still| *still >= STILL);
        let told = health.failing_for.max(sink.failing_for);
        let last_error = still_for.filter(|_| told.is_none()).map_or(last_error, |still| {
            let text =
                format!("nothing was acknowledged for {} s: the server does not answer, or hangs", still.as_secs());
            Some((SystemTime::now() - still, text))
        });
        let totals = self.totals();
        SinkStats {
            name: name.to_owned(),
            queued_batches: batches,
            queued_bytes: memory,
            queue_capacity_bytes: settings.max_bytes.as_u64(),
            behind_records: backlog.records + unread_records,
            behind_bytes: backlog.bytes + unread_bytes,
            lag: oldest.map_or(Duration::ZERO, |oldest| Duration::from_nanos(unix_nano().saturating_sub(oldest))),
            acknowledged_up_to: (up_to > 0).then(|| UNIX_EPOCH + Duration::from_nanos(up_to)),
            rate: lock(&self.meter).rate(Instant::now(), totals),
            delivered_records: totals.records,
            delivered_bytes: totals.bytes,
            dropped: lock(&self.dropped).iter().map(|(reason, amount)| (*reason, *amount)).collect(),
            errors: health.errors + sink.errors,
            last_error_at: last_error.as_ref().map(|(at, _)| *at),
            last_error: last_error.map(|(_, text)| text),
            last_success: if behind.is_some() { sink.last_success } else { health.last_success },
            failing_for: told.max(still_for),
            buffer,
            figures: self.figures(),
        }
    }

    fn health(&self) -> Health {
        let last_success = self.last_success.load(Relaxed);
        Health {
            errors: self.errors.load(Relaxed),
            last_error: lock(&self.last_error).clone(),
            last_success: (last_success > 0).then(|| UNIX_EPOCH + Duration::from_millis(last_success)),
            failing_for: lock(&self.failing_since).map(|since| since.elapsed()),
        }
    }
}

/// How the calls of a sink go.
#[derive(Clone, Debug, Default)]
struct Health {
    errors: u64,
    last_error: Option<(SystemTime, String)>,
    last_success: Option<SystemTime>,
    failing_for: Option<Duration>,
}
