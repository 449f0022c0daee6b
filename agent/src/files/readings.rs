//! What the reader of files tells telemetry.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::record::{Class, Stream};

/// Counters and the list of streams; shared with telemetry.
#[derive(Debug, Default)]
pub struct Readings {
    gaps: AtomicU64,
    read_bytes: AtomicU64,
    restarts: AtomicU64,
    unjudged: AtomicU64,
    streams: Mutex<Vec<StreamReading>>,
}

/// One file stream.
#[derive(Clone, Debug)]
pub struct StreamReading {
    /// Key, origin, resource and account.
    pub stream: Arc<Stream>,
    /// Position of the next byte to read.
    pub position: u64,
    /// Bytes read, or known to be there, that are in no batch yet.
    pub pending: u64,
}

impl Readings {
    /// Times that the ring's bytes did not follow on the last ones, or could not be trusted to.
    #[must_use]
    pub fn gaps(&self) -> u64 {
        self.gaps.load(Relaxed)
    }

    /// Bytes that were read from files instead of taken from the ring; without those of the node's own files.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Relaxed)
    }

    /// Times that a file was truncated to begin anew.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Relaxed)
    }

    /// Bytes written to files of which nobody could tell whether they are logs.
    #[must_use]
    pub fn unjudged_bytes(&self) -> u64 {
        self.unjudged.load(Relaxed)
    }

    /// The open streams, as of a second ago at most.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamReading> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn count_gap(&self) {
        self.gaps.fetch_add(1, Relaxed);
    }

    pub(super) fn count_read(&self, class: Class, bytes: u64) {
        if class == Class::Business {
            self.read_bytes.fetch_add(bytes, Relaxed);
        }
    }

    pub(super) fn count_restart(&self) {
        self.restarts.fetch_add(1, Relaxed);
    }

    pub(super) fn count_unjudged(&self, bytes: u64) {
        self.unjudged.fetch_add(bytes, Relaxed);
    }

    pub(super) fn set_streams(&self, streams: Vec<StreamReading>) {
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = streams;
    }
}
