//! What the draining thread tells about itself, for whoever observes.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    attribute::Statistics,
    record::{Class, Origin},
    runtime_log::Statistics as Repairs,
};

/// One stream.
#[derive(Clone, Debug)]
pub struct StreamReading {
    /// Cgroup id of the account that it is booked on.
    pub cgroup_id: u64,
    /// [`crate::record::Stream::key`].
    pub key: Arc<str>,
    /// Its class.
    pub class: Class,
    /// Where its bytes are written to.
    pub origin: Origin,
    /// Bytes of the stream that the agent has seen, from its start.
    pub position: u64,
    /// Bytes of these that no sink has acknowledged yet.
    pub pending: u64,
}

/// The ring buffer between kernel and agent.
#[derive(Clone, Debug, Default)]
pub struct RingReading {
    /// Size in bytes.
    pub capacity: u64,
    /// Bytes that wait to be drained.
    pub fill: u64,
    /// Bytes that were drained and that it keeps until they are safe elsewhere.
    pub held: u64,
    /// How often the kernel woke the agent.
    pub wakeups: u64,
    /// Records drained.
    pub records: u64,
    /// Time from the end of the system call to the draining of the newest record.
    pub lag: Duration,
    /// Records that this version could not read.
    pub unreadable: u64,
    /// Announcements that the ring did not take, by event: what they were about is found by other ways, later.
    pub lost_events: Vec<(&'static str, u64)>,
}

/// Counters of one writer and any reader.
#[derive(Debug, Default)]
pub struct Readings {
    /// Bytes of the ring.
    pub ring_capacity: AtomicU64,
    /// Bytes that waited in the rings when they were last looked into.
    pub ring_fill: AtomicU64,
    /// Bytes that were drained and not let go of.
    pub ring_held: AtomicU64,
    /// How often the kernel woke the reader.
    pub wakeups: AtomicU64,
    /// Records drained.
    pub records: AtomicU64,
    /// Records that this version could not read.
    pub undecoded: AtomicU64,
    /// From the end of the call to the draining of the newest record, in nanoseconds.
    pub lag_nano: AtomicU64,
    lost_events: Mutex<Vec<(&'static str, u64)>>,
    streams: Mutex<Vec<StreamReading>>,
    identities: Mutex<Statistics>,
    repairs: Mutex<Option<Arc<Repairs>>>,
}

impl Readings {
    /// The ring now.
    #[must_use]
    pub fn ring(&self) -> RingReading {
        RingReading {
            capacity: self.ring_capacity.load(Relaxed),
            fill: self.ring_fill.load(Relaxed),
            held: self.ring_held.load(Relaxed),
            wakeups: self.wakeups.load(Relaxed),
            records: self.records.load(Relaxed),
            lag: Duration::from_nanos(self.lag_nano.load(Relaxed)),
            unreadable: self.undecoded.load(Relaxed),
            lost_events: self.lost_events.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// The standard streams at the last tick.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamReading> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The identity cache at the last tick.
    #[must_use]
    pub fn identities(&self) -> Statistics {
        *self.identities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gaps of standard streams; `None` when nothing is looked for in the runtimes' logs.
    #[must_use]
    pub fn repairs(&self) -> Option<Arc<Repairs>> {
        self.repairs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_repairs(&self, repairs: Option<Arc<Repairs>>) {
        *self.repairs.lock().unwrap_or_else(PoisonError::into_inner) = repairs;
    }

    pub(super) fn set_ring_capacity(&self, bytes: u64) {
        self.ring_capacity.store(bytes, Relaxed);
    }

    pub(super) fn set_lost_events(&self, events: Vec<(&'static str, u64)>) {
        *self.lost_events.lock().unwrap_or_else(PoisonError::into_inner) = events;
    }

    pub(super) fn set_streams(&self, streams: Vec<StreamReading>) {
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = streams;
    }

    pub(super) fn set_identities(&self, statistics: Statistics) {
        *self.identities.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
    }
}
