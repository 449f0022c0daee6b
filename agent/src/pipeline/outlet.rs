//! Where the stages hand their batches to: the sinks, and whoever watches (`sidestep logs`).

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, mpsc::Sender},
    time::Duration,
};

use crate::{
    record::Batch,
    sinks::{Leftover, Settled, SinkError, SinkSettings, SinkStats, Sinks},
};

/// The sinks of the running agent; they can be replaced under way.
#[derive(Debug)]
pub struct Outlet {
    /// `None` once they are ended.
    sinks: RwLock<Option<Sinks>>,
    settled: Mutex<Option<Sender<Settled>>>,
    watch: Arc<dyn Watch>,
}

/// Sees every batch on its way to the sinks. It must not wait: every stage would wait with it.
pub trait Watch: fmt::Debug + Send + Sync {
    /// A batch passes.
    fn watch(&self, batch: &Arc<Batch>);
}

impl Outlet {
    /// Makes and starts the sinks.
    ///
    /// # Errors
    /// The first sink that can't be started.
    pub fn start(
        settings: &[SinkSettings],
        settled: Sender<Settled>,
        watch: Arc<dyn Watch>,
    ) -> Result<Self, SinkError> {
        let sinks = Sinks::start(settings, settled.clone())?;
        Ok(Self { sinks: RwLock::new(Some(sinks)), settled: Mutex::new(Some(settled)), watch })
    }

    /// Gives a batch to whoever watches and to every sink that wants it; waits for a sink whose rule says so.
    pub fn deliver(&self, batch: &Arc<Batch>) {
        self.watch.watch(batch);
        if let Some(sinks) = &*self.sinks.read().unwrap_or_else(PoisonError::into_inner) {
            sinks.deliver(batch);
        }
    }

    /// The figures of each sink.
    #[must_use]
    pub fn stats(&self) -> Vec<SinkStats> {
        self.sinks.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(Sinks::stats).unwrap_or_default()
    }

    /// Ends the sinks and starts those of `new`. The old ones write out first: two file sinks can't share a folder.
    /// Deliveries wait meanwhile. When a new one can't be started, the old configuration's are started again.
    ///
    /// # Errors
    /// The new sink that can't be started.
    pub fn replace(&self, old: &[SinkSettings], new: &[SinkSettings], limit: Duration) -> Result<(), SinkError> {
        let mut sinks = self.sinks.write().unwrap_or_else(PoisonError::into_inner);
        let Some(settled) = self.settled.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return Ok(()) };
        if let Some(ending) = sinks.take() {
            report(&ending.close(limit));
        }
        match Sinks::start(new, settled.clone()) {
            Ok(started) => *sinks = Some(started),
            Err(error) => {
                *sinks = Some(Sinks::start(old, settled)?);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Asks the sinks to come to their end, and lets go of threads that wait in [`Outlet::deliver`].
    pub fn begin_close(&self, limit: Duration) {
        if let Some(sinks) = &*self.sinks.read().unwrap_or_else(PoisonError::into_inner) {
            sinks.begin_close(limit);
        }
    }

    /// Ends the sinks for good; returns the bytes that were left. Nothing is settled after this.
    pub fn close(&self, limit: Duration) -> u64 {
        let ending = self.sinks.write().unwrap_or_else(PoisonError::into_inner).take();
        let left = ending.map_or(0, |ending| report(&ending.close(limit)));
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).take();
        left
    }
}

/// Says what sinks left behind, and returns the bytes.
fn report(leftovers: &[(String, Leftover)]) -> u64 {
    for (sink, leftover) in leftovers {
        if leftover.batches > 0 || !leftover.finished {
            tracing::warn!(
                sink,
                batches = leftover.batches,
                bytes = leftover.bytes,
                "the sink did not take everything in time"
            );
        }
    }
    leftovers.iter().map(|(_, leftover)| leftover.bytes).sum()
}
