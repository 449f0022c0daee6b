//! Figures of a buffer, for metrics and status.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::sinks::stats::Counters;

/// One reading of a buffer on disk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BufferStats {
    /// Bytes on disk.
    pub bytes: u64,
    /// The most bytes on disk.
    pub capacity_bytes: u64,
    /// Records on disk that are not acknowledged. After a kill this is what was noted last, so it may be a little off
    /// until the buffer is empty.
    pub records: u64,
    /// How long ago the oldest file of the buffer was begun; `None` while it is empty.
    pub oldest: Option<Duration>,
    /// Places in the buffer that could not be read, since the agent started.
    pub damaged: u64,
    /// Bytes of log files that are left there until the buffer has room for them.
    pub in_files: u64,
    /// Of [`BufferStats::records`], those that the sink has not: they are on disk only.
    pub unread_records: u64,
    /// Bytes of these on disk.
    pub unread_bytes: u64,
}

/// The figures as they are noted.
#[derive(Debug)]
pub(in crate::sinks) struct Figures {
    pub(super) bytes: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) in_files: AtomicU64,
    pub(super) unread_records: AtomicU64,
    pub(super) unread_bytes: AtomicU64,
    /// Seconds since the Unix epoch; 0 for none.
    pub(super) oldest: AtomicU64,
    capacity: u64,
    /// Of the sink behind the buffer: whether it works.
    pub(in crate::sinks) sink: Arc<Counters>,
}

impl Figures {
    pub(super) fn new(capacity: u64, sink: &Arc<Counters>) -> Self {
        Self {
            bytes: AtomicU64::default(),
            records: AtomicU64::default(),
            damaged: AtomicU64::default(),
            in_files: AtomicU64::default(),
            unread_records: AtomicU64::default(),
            unread_bytes: AtomicU64::default(),
            oldest: AtomicU64::default(),
            capacity,
            sink: Arc::clone(sink),
        }
    }

    pub(in crate::sinks) fn snapshot(&self) -> BufferStats {
        let oldest = self.oldest.load(Relaxed);
        let since = UNIX_EPOCH + Duration::from_secs(oldest);
        BufferStats {
            bytes: self.bytes.load(Relaxed),
            capacity_bytes: self.capacity,
            records: self.records.load(Relaxed),
            oldest: (oldest > 0).then(|| SystemTime::now().duration_since(since).unwrap_or_default()),
            damaged: self.damaged.load(Relaxed),
            in_files: self.in_files.load(Relaxed),
            unread_records: self.unread_records.load(Relaxed),
            unread_bytes: self.unread_bytes.load(Relaxed),
        }
    }
}
