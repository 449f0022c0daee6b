//! Where the stages hand their batches to: the sinks, and whoever watches (`sidestep logs`).

use std::{
    fmt, io, mem,
    ops::Range,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
    time::{Duration, Instant},
};

use crate::{
    ledger::Stage,
    process::{InForce, ProcessorSettings, ProcessorStats, Processors},
    record::Batch,
    sinks::{Hold, Leftover, SinkError, SinkSettings, SinkStats, Sinks, buffer::Home},
};

/// What a replaced sink gets at least to end the call that it is in: an agent that may stop without waiting for its
/// sinks still hands over in order.
const LEAST: Duration = Duration::from_secs(1);
/// How long those who are just delivering may need to be done with processors that are replaced.
const ON_THE_WAY: Duration = Duration::from_secs(1);
/// Pause between looks at what nobody signals.
const PAUSE: Duration = Duration::from_millis(5);

/// The sinks of the running agent; they can be replaced under way.
#[derive(Debug)]
pub struct Outlet {
    /// Held for a moment only: nobody waits for a sink while he holds it.
    current: RwLock<Current>,
    /// One replacement at a time.
    replacing: Mutex<()>,
    processors: InForce,
    watch: Arc<dyn Watch>,
}

#[derive(Debug)]
struct Current {
    /// `None` once they are ended.
    sinks: Option<Arc<Sinks>>,
    /// When waiting for them is over, once the agent stops.
    patience: Option<Instant>,
}

/// Sees every batch on its way to the sinks, after processing: what is redacted reaches nobody. It must not wait: every stage would wait with it.
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
        let processors = home.processors().clone();
        Ok(Self { processors, ..Self::with_sinks(Sinks::start(settings, home)?, watch) })
    }

    fn with_sinks(sinks: Sinks, watch: Arc<dyn Watch>) -> Self {
        let current = RwLock::new(Current { sinks: Some(Arc::new(sinks)), patience: None });
        Self { current, replacing: Mutex::default(), processors: InForce::default(), watch }
    }

    /// Takes a batch through the processors, and gives what is left to whoever watches and to every sink that wants it;
    /// waits for a sink whose rule says so. `hold` keeps what it was made of until it is safe.
    pub fn deliver(&self, batch: &Arc<Batch>, hold: Option<&Hold>) {
        // Not held any longer: those who replace them wait for it.
        let processed = self.processors.get().and_then(|processors| processors.apply(batch));
        let covers = batch.start()..batch.end();
        let Some(processed) = processed else { return self.hand_on(batch, covers, hold) };
        for (reason, bytes) in processed.dropped {
            batch.stream.account.drop_bytes(Stage::Process, reason, bytes);
        }
        self.hand_on(&processed.batch, covers, hold);
    }

    fn hand_on(&self, batch: &Arc<Batch>, covers: Range<u64>, hold: Option<&Hold>) {
        if !batch.lines.is_empty() {
            self.watch.watch(batch);
        }
        match (self.sinks(), hold) {
            (Some(sinks), hold) => sinks.deliver_part(batch, covers, hold),
            // The sinks have ended before who delivers: the ring keeps it for the next agent.
            (None, Some(hold)) => mem::forget(Arc::clone(hold)),
            (None, None) => {}
        }
    }

    /// Takes the processors of a new configuration in the place of those before.
    ///
    /// # Errors
    /// The processor that does not compile, which a checked configuration does not have.
    pub fn process_with(&self, settings: &[ProcessorSettings]) -> Result<(), SinkError> {
        let _one = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let next =
            Processors::new(settings, self.processors.get().as_deref()).map_err(|(index, problem)| SinkError {
                action: format!("starting `processors[{index}].{}`", problem.option),
                source: io::Error::other(problem.problem),
            })?;
        let next = Arc::new(next);
        let new = (!settings.is_empty()).then(|| Arc::clone(&next));
        if let Some(before) = self.processors.replace(new) {
            let last = Instant::now() + ON_THE_WAY;
            while Arc::strong_count(&before) > 1 && Instant::now() < last {
                thread::sleep(PAUSE);
            }
            self.tell(before.left_behind(&next));
        }
        Ok(())
    }

    /// Tells what was suppressed of streams that have fallen silent. Called now and then, with the time in nanoseconds
    /// since the Unix epoch.
    pub fn tick(&self, now: u64) {
        if let Some(processors) = self.processors.get() {
            self.tell(processors.due(Some(now)));
        }
    }

    fn tell(&self, summaries: Vec<Batch>) {
        for summary in summaries {
            // It stands for no byte of the stream.
            let position = summary.start();
            self.hand_on(&Arc::new(summary), position..position, None);
        }
    }

    /// The figures of each processor.
    #[must_use]
    pub fn processor_stats(&self) -> Vec<ProcessorStats> {
        self.processors.get().map(|processors| processors.stats()).unwrap_or_default()
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
        if let Some(processors) = self.processors.get() {
            self.tell(processors.due(None));
        }
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
