//! All sinks of the agent: each batch goes to every sink that wants its class.

use std::{
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

use super::{
    Delivery, Receipt, Settled, Sink, SinkError,
    config::{QueueSettings, SinkSettings},
    stats::SinkStats,
    worker::{Leftover, Worker},
};
use crate::record::{Batch, Class};

/// All sinks of the agent.
#[derive(Debug)]
pub struct Sinks {
    members: Vec<Member>,
    settled: Sender<Settled>,
}

#[derive(Debug)]
struct Member {
    classes: Vec<Class>,
    worker: Worker,
}

impl Sinks {
    /// No sink yet; what becomes of the batches is told to `settled`.
    #[must_use]
    pub const fn new(settled: Sender<Settled>) -> Self {
        Self { members: Vec::new(), settled }
    }

    /// Makes and starts the sinks of a configuration.
    ///
    /// # Errors
    /// The first sink that cannot be made or started.
    pub fn start(settings: &[SinkSettings], settled: Sender<Settled>) -> Result<Self, SinkError> {
        let mut sinks = Self::new(settled);
        for settings in settings {
            sinks.add(settings.build()?, settings.classes(), settings.queue())?;
        }
        Ok(sinks)
    }

    /// Starts one more sink.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn add(&mut self, sink: Box<dyn Sink>, classes: &[Class], queue: &QueueSettings) -> Result<(), SinkError> {
        self.members.push(Member { classes: classes.to_vec(), worker: Worker::start(sink, queue)? });
        Ok(())
    }

    /// Gives a batch to every sink that wants it. A batch that none wants counts as delivered. Returns when each
    /// queue has taken it or dropped it, which may mean waiting for a sink that is behind.
    pub fn deliver(&self, batch: &Arc<Batch>) {
        let wanted = |member: &&Member| member.classes.contains(&batch.stream.class);
        let count = self.members.iter().filter(wanted).count();
        let receipts = Receipt::for_sinks(batch, count, &self.settled);
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
    pub fn close(self, limit: Duration) -> Vec<(String, Leftover)> {
        self.begin_close(limit);
        let finish = |member: Member| (member.worker.name().to_owned(), member.worker.finish_close());
        self.members.into_iter().map(finish).collect()
    }

    /// Asks all sinks to come to their end within `limit` and lets go of those that wait in
    /// [`Sinks::deliver`] on another thread, so that [`Sinks::close`] can then be called.
    pub fn begin_close(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        for member in &self.members {
            member.worker.begin_close(deadline);
        }
    }
}
