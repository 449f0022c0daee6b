//! All sinks of the agent: each line goes to every sink that wants it.

use std::{
    ops::Range,
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

use super::{
    Delivery, Receipt, Sink, SinkError,
    buffer::Home,
    config::{QueueSettings, SinkSettings},
    handover::Seat,
    receipt::{Amount, Hold, Settlement, Span},
    stats::SinkStats,
    wants::Wants,
    worker::{Leftover, Worker},
};
use crate::{
    ledger::{Reason, Stage},
    record::{Batch, Class, Line},
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
    pub(super) wants: Wants,
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
    /// becomes of the batches. A sink that can't be made yet fails until it can, and no other one waits for it.
    ///
    /// # Errors
    /// The first sink that has no thread, or whose buffer can't be used.
    pub fn start(settings: &[SinkSettings], home: Home) -> Result<Self, SinkError> {
        home.warn_of_strangers(&settings.iter().map(SinkSettings::name).collect::<Vec<_>>());
        let mut sinks = Self { members: Vec::new(), home };
        for settings in settings {
            let wants = Wants::new(settings)?;
            let worker = Worker::idle(settings.name());
            let seat = Seat::new(&worker)?;
            let sink = settings.start_in(&sinks.home, worker.counters()).map_err(|error| error.of(settings.name()))?;
            seat.take(sink, settings.queue());
            sinks.members.push(Arc::new(Member { wants, settings: Some(settings.clone()), worker }));
        }
        Ok(sinks)
    }

    /// Starts one more sink.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn add(&mut self, sink: Box<dyn Sink>, classes: &[Class], queue: &QueueSettings) -> Result<(), SinkError> {
        let worker = Worker::start(sink, queue)?;
        self.members.push(Arc::new(Member { wants: Wants::classes(classes), settings: None, worker }));
        Ok(())
    }

    /// Gives a batch to every sink that wants it; see [`Sinks::deliver_part`].
    pub fn deliver(&self, batch: &Arc<Batch>, hold: Option<&Hold>) {
        self.deliver_part(batch, batch.start()..batch.end(), hold);
    }

    /// Gives each sink the lines that it wants of a batch, which is what is left of the span `covers` of its stream.
    /// Lines that no sink wants are booked as dropped on purpose. Returns when each queue has taken its part or dropped
    /// it, which may mean waiting for a sink that is behind. `hold` is let go of when the batch is safe in every sink.
    pub fn deliver_part(&self, batch: &Arc<Batch>, covers: Range<u64>, hold: Option<&Hold>) {
        let wanting = self.members.iter().filter_map(|member| Some((member, member.wants.part(batch)?)));
        let (members, parts): (Vec<_>, Vec<_>) = wanting.unzip();
        let amount = wanted(batch, &parts);
        let unwanted = batch.span() - amount.span;
        if unwanted > 0 {
            batch.stream.account.drop_bytes(Stage::Sink, Reason::Filtered, unwanted);
        }
        let amounts: Vec<_> = parts.iter().map(|part| Amount::of(part)).collect();
        let covers = Span { stream: Arc::clone(&batch.stream), start: covers.start, end: covers.end };
        let receipts = Receipt::for_parts(&covers, amount, &amounts, self.home.settled(), hold);
        // Sinks that have room are not kept waiting by one that has none.
        let mut waiting = Vec::new();
        for ((member, batch), mut receipt) in members.into_iter().zip(parts).zip(receipts) {
            receipt.count_for(member.worker.counters(), &batch);
            if let Some(delivery) = member.worker.try_offer(Delivery { batch, receipt }) {
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

/// How much of a batch is in at least one of its parts, which have their lines in the same order.
fn wanted(batch: &Arc<Batch>, parts: &[Arc<Batch>]) -> Amount {
    match parts {
        [] => return Amount { lines: 0, span: 0 },
        [only] => return Amount::of(only),
        several if several.iter().any(|part| Arc::ptr_eq(part, batch)) => return Amount::of(batch),
        _ => {}
    }
    let mut next: Vec<_> = parts.iter().map(|part| part.lines.iter().peekable()).collect();
    let mut amount = Amount { lines: 0, span: 0 };
    for line in &batch.lines {
        let mut is_wanted = false;
        for lines in &mut next {
            let is_same = |other: &&Line| (other.position, other.span) == (line.position, line.span);
            is_wanted |= lines.next_if(is_same).is_some();
        }
        if is_wanted {
            amount.lines += 1;
            amount.span += line.span;
        }
    }
    amount
}
