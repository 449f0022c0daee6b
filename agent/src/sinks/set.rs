//! All sinks of the agent: each batch goes to every sink that wants its class.

use std::{
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

use super::{
    Delivery, Receipt, Sink, SinkError,
    buffer::Home,
    config::{QueueSettings, SinkSettings},
    handover::Seat,
    receipt::{Hold, Settlement},
    stats::SinkStats,
    worker::{Leftover, Worker},
};
use crate::{
    ledger::Reason,
    record::{Batch, Class},
};

/// All sinks of the agent.
#[derive(Debug)]
pub struct Sinks {
    /// Each is shared with the set that takes this one's place, if it stays as it is.
    pub(super) members: Vec<Arc<Member>>,
    pub(super) home: Home,
}

/// One sink of a set.
#[derive(Debug)]
pub struct Member {
    pub(super) classes: Vec<Class>,
    /// What it was made of; `None` for a sink that was made elsewhere.
    pub(super) settings: Option<SinkSettings>,
    pub(super) worker: Worker,
}

impl Sinks {
    /// No sink yet; what becomes of the batches is told to `settled`.
    #[must_use]
    pub fn new(settled: Sender<Settlement>) -> Self {
        Self { members: Vec::new(), home: Home::none(settled) }
    }

    /// Makes and starts the sinks of a configuration; their buffers are in `home`, which also says who is told what
    /// becomes of the batches.
    ///
    /// # Errors
    /// The first sink that cannot be made or started.
    pub fn start(settings: &[SinkSettings], home: Home) -> Result<Self, SinkError> {
        home.warn_of_strangers(&settings.iter().map(SinkSettings::name).collect::<Vec<_>>());
        let mut sinks = Self { members: Vec::new(), home };
        for settings in settings {
            let worker = Worker::idle(settings.name());
            let seat = Seat::new(&worker)?;
            seat.take(settings.build_in(&sinks.home, worker.counters())?, settings.queue());
            let classes = settings.classes().to_vec();
            sinks.members.push(Arc::new(Member { classes, settings: Some(settings.clone()), worker }));
        }
        Ok(sinks)
    }

    /// Starts one more sink.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn add(&mut self, sink: Box<dyn Sink>, classes: &[Class], queue: &QueueSettings) -> Result<(), SinkError> {
        let worker = Worker::start(sink, queue)?;
        self.members.push(Arc::new(Member { classes: classes.to_vec(), settings: None, worker }));
        Ok(())
    }

    /// Gives a batch to every sink that wants it. A batch that none wants counts as delivered. Returns when each
    /// queue has taken it or dropped it, which may mean waiting for a sink that is behind. `hold` is let go of when the
    /// batch is safe in every sink.
    pub fn deliver(&self, batch: &Arc<Batch>, hold: Option<&Hold>) {
        let wanted = |member: &&Arc<Member>| member.classes.contains(&batch.stream.class);
        let count = self.members.iter().filter(wanted).count();
        let receipts = Receipt::for_sinks(batch, count, self.home.settled(), hold);
        // Sinks that have room are not kept waiting by one that has none.
        let mut waiting = Vec::new();
        for (member, mut receipt) in self.members.iter().filter(wanted).zip(receipts) {
            receipt.count_for(member.worker.counters());
            let delivery = Delivery { batch: Arc::clone(batch), receipt };
            if let Some(delivery) = member.worker.try_offer(delivery) {
                waiting.push((&member.worker, delivery));
            }
        }
        for (worker, delivery) in waiting {
            worker.offer(delivery);
        }
    }

    /// The figures of each sink.
    #[must_use]
    pub fn stats(&self) -> Vec<SinkStats> {
        self.members.iter().map(|member| member.worker.stats()).collect()
    }

    /// Ends all sinks at the same time, each within `limit`; returns what each of them left. What is left is
    /// settled as dropped with reason `shutdown`.
    #[must_use]
    pub fn close(&self, limit: Duration) -> Vec<(String, Leftover)> {
        self.begin_close(limit);
        self.members.iter().map(|member| (member.worker.name().to_owned(), member.worker.finish_close())).collect()
    }

    /// From `until` on nobody waits in [`Sinks::deliver`]: a full queue drops what it is given then.
    pub fn limit_waits(&self, until: Instant) {
        self.members.iter().for_each(|member| member.worker.limit_waits(until));
    }

    /// Asks all sinks to come to their end within `limit` and lets go of those that wait in
    /// [`Sinks::deliver`] on another thread, so that [`Sinks::close`] can then be called.
    pub fn begin_close(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        for member in &self.members {
            member.worker.begin_close(deadline, Reason::Shutdown);
        }
    }
}
