//! Where the stages hand their batches to: the sinks, and whoever watches (`sidestep logs`).

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use crate::{
    record::Batch,
    sinks::{Hold, Leftover, SinkError, SinkSettings, SinkStats, Sinks, buffer::Home},
};

/// What a replaced sink gets at least to end the call that it is in: an agent that may stop without waiting for its
/// sinks still hands over in order.
const LEAST: Duration = Duration::from_secs(1);

/// The sinks of the running agent; they can be replaced under way.
#[derive(Debug)]
pub struct Outlet {
    /// Held for a moment only: nobody waits for a sink while he holds it.
    current: RwLock<Current>,
    /// One replacement at a time.
    replacing: Mutex<()>,
    watch: Arc<dyn Watch>,
}

#[derive(Debug)]
struct Current {
    /// `None` once they are ended.
    sinks: Option<Arc<Sinks>>,
    /// When waiting for them is over, once the agent stops.
    patience: Option<Instant>,
}

/// Sees every batch on its way to the sinks. It must not wait: every stage would wait with it.
pub trait Watch: fmt::Debug + Send + Sync {
    /// A batch passes.
    fn watch(&self, batch: &Arc<Batch>);
}

impl Outlet {
    /// Makes and starts the sinks; their buffers are in `home`.
    ///
    /// # Errors
    /// The first sink that can't be started.
    pub fn start(settings: &[SinkSettings], home: Home, watch: Arc<dyn Watch>) -> Result<Self, SinkError> {
        Ok(Self::with_sinks(Sinks::start(settings, home)?, watch))
    }

    fn with_sinks(sinks: Sinks, watch: Arc<dyn Watch>) -> Self {
        let current = RwLock::new(Current { sinks: Some(Arc::new(sinks)), patience: None });
        Self { current, replacing: Mutex::new(()), watch }
    }

    /// Gives a batch to whoever watches and to every sink that wants it; waits for a sink whose rule says so. `hold`
    /// keeps what it was made of until it is safe.
    pub fn deliver(&self, batch: &Arc<Batch>, hold: Option<&Hold>) {
        self.watch.watch(batch);
        if let Some(sinks) = self.sinks() {
            sinks.deliver(batch, hold);
        }
    }

    /// The figures of each sink.
    #[must_use]
    pub fn stats(&self) -> Vec<SinkStats> {
        self.sinks().map(|sinks| sinks.stats()).unwrap_or_default()
    }

    /// Takes the sinks of a new configuration in the place of those that run; see [`Sinks::replace`]. Waits for calls
    /// of the old sinks, up to `limit` or a second, but no delivery waits for this.
    ///
    /// # Errors
    /// The new sink that can't be started; then nothing has changed.
    pub fn replace(&self, new: &[SinkSettings], limit: Duration) -> Result<(), SinkError> {
        let _one = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = self.sinks() else { return Ok(()) };
        let limit = limit.max(LEAST);
        let (sinks, removed) = before.replace(new, Instant::now() + limit)?;
        {
            let mut current = self.write();
            // The agent may have come to its end meanwhile.
            if let Some(until) = current.patience {
                sinks.limit_waits(until);
            }
            if let Some(place) = &mut current.sinks {
                *place = Arc::new(sinks);
            }
        }
        report(&removed.close(&before, limit));
        Ok(())
    }

    /// From `until` on nobody waits in [`Outlet::deliver`]: a sink whose queue is full then drops what it is given.
    pub fn limit_waits(&self, until: Instant) {
        let mut current = self.write();
        current.patience = Some(until);
        if let Some(sinks) = &current.sinks {
            sinks.limit_waits(until);
        }
    }

    /// Ends the sinks for good; returns the bytes that were left. Nothing is settled after this.
    pub fn close(&self, limit: Duration) -> u64 {
        let ending = self.write().sinks.take();
        ending.map_or(0, |ending| report(&ending.close(limit)))
    }

    fn sinks(&self) -> Option<Arc<Sinks>> {
        self.read().sinks.as_ref().map(Arc::clone)
    }

    fn read(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Current> {
        self.current.write().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests;
