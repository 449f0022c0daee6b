//! The bounded queue in front of a sink; the thread behind it is in [`super::driver`].

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Delivery, Outcome, Sink, SinkError,
    config::{QueueSettings, WhenFull},
    handover::Seat,
    stats::{Counters, SinkStats},
};
use crate::{events::Event, ledger::Reason, record::Batch};

/// A sink on its own thread, behind a bounded queue. The queue outlives the sink: another one can take it over.
#[derive(Debug)]
pub struct Worker {
    name: String,
    pub(super) shared: Arc<Shared>,
}

/// What a sink had not taken, or not acknowledged, when it was closed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Leftover {
    /// Batches still queued, or turned away since the end had begun.
    pub batches: usize,
    /// Bytes of the streams in them.
    pub bytes: u64,
    /// Whether the sink came to its end in time; if not, its thread is stuck in a call and was left behind.
    pub finished: bool,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) counters: Arc<Counters>,
    pub(super) queue: Mutex<Queue>,
    /// Signalled when the sink's thread has something to do.
    pub(super) work: Condvar,
    /// Signalled when there is room again, or the end has come.
    pub(super) room: Condvar,
    /// Signalled when a sink's thread has ended.
    pub(super) finished: Condvar,
}

/// Deliveries that the sink's thread has not fetched, and the totals of all that the sink has not taken.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) settings: QueueSettings,
    pub(super) deliveries: VecDeque<Delivery>,
    pub(super) batches: usize,
    /// Memory that the batches hold, roughly.
    pub(super) memory: usize,
    pub(super) span: u64,
    /// It is full and drops what comes.
    pub(super) is_dropping: bool,
    /// The sink's thread sleeps and has to be woken for a new delivery.
    pub(super) idle: bool,
    /// When the sink has to be at its end, once it is asked to.
    pub(super) deadline: Option<Instant>,
    /// Why what is left then is dropped.
    end_reason: Option<Reason>,
    /// Nobody waits for room any longer than this.
    patience: Option<Instant>,
    /// Number of the thread that the queue belongs to, counted from 1.
    pub(super) driver: u64,
    /// Until when that thread has to give the queue back, once it is asked to.
    pub(super) released: Option<Instant>,
    /// Number of the last thread that knows that it has to.
    pub(super) noticed: u64,
    /// Number of the last thread that has ended, its sink with it.
    pub(super) gone: u64,
    /// Batches and bytes in the hands of threads that were stuck in a call when another one took the queue over.
    pub(super) abandoned: (usize, u64),
    /// Batches and bytes that were turned away since the end had begun.
    refused: (usize, u64),
    /// Nobody takes anything from the queue any more.
    closed: bool,
}

impl Queue {
    /// Whether its thread has ended by itself, or as it was asked to: it is not to be replaced by another.
    fn is_finished(&self) -> bool {
        self.gone >= self.driver && self.released.is_none()
    }

    /// What the thread with this number had fetched, it has no more.
    pub(super) fn forget(&mut self, driver: u64, batches: usize, size: Size) {
        if driver == self.driver {
            self.batches -= batches;
            self.memory -= size.memory;
            self.span -= size.span;
        } else {
            self.abandoned.0 -= batches;
            self.abandoned.1 -= size.span;
        }
    }

    /// Puts deliveries back to where they came from, before all others.
    pub(super) fn put_back(&mut self, deliveries: VecDeque<Delivery>) {
        for delivery in deliveries.into_iter().rev() {
            let size = Size::of(&delivery.batch);
            self.batches += 1;
            self.memory += size.memory;
            self.span += size.span;
            self.deliveries.push_front(delivery);
        }
        self.idle = false;
    }

    /// Takes out what is left when nobody takes it any more, and why that is so.
    pub(super) fn take_leftover(&mut self) -> Option<(VecDeque<Delivery>, Reason)> {
        self.closed.then(|| (std::mem::take(&mut self.deliveries), self.end_reason()))
    }

    fn end_reason(&self) -> Reason {
        self.end_reason.unwrap_or(Reason::Shutdown)
    }
}

/// What a delivery holds, noted before the sink may drop it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    pub(super) memory: usize,
    pub(super) span: u64,
    pub(super) lines: u64,
}

impl Size {
    pub(super) fn of(batch: &Batch) -> Self {
        Self { memory: batch.memory(), span: batch.span(), lines: batch.lines.len() as u64 }
    }
}

impl std::ops::AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.memory += other.memory;
        self.span += other.span;
        self.lines += other.lines;
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a batch of this size has to wait. One batch is let in however large it is.
    fn is_full(queue: &Queue, size: Size) -> bool {
        let max_bytes = usize::try_from(queue.settings.max_bytes.as_u64()).unwrap_or(usize::MAX);
        queue.batches >= queue.settings.max_batches
            || (queue.batches > 0 && queue.memory.saturating_add(size.memory) > max_bytes)
    }

    fn push(&self, queue: &mut Queue, delivery: Delivery, size: Size) {
        queue.batches += 1;
        queue.memory += size.memory;
        queue.span += size.span;
        queue.deliveries.push_back(delivery);
        // A wake-up is a system call, so it is made only for a thread that sleeps.
        if std::mem::take(&mut queue.idle) {
            self.work.notify_one();
        }
    }
}

impl Worker {
    /// Starts the thread of a sink.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(sink: Box<dyn Sink>, settings: &QueueSettings) -> Result<Self, SinkError> {
        let worker = Self::idle(sink.name());
        Seat::new(&worker)?.take(sink, settings);
        Ok(worker)
    }

    /// A queue without a sink behind it yet.
    pub(super) fn idle(name: &str) -> Self {
        Self { name: name.to_owned(), shared: Arc::default() }
    }

    /// The same queue under the name of the sink that takes it over.
    pub(super) fn renamed(&self, name: &str) -> Self {
        Self { name: name.to_owned(), shared: Arc::clone(&self.shared) }
    }

    /// The sink's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the sink's thread has ended for good.
    pub(super) fn is_finished(&self) -> bool {
        self.shared.lock().is_finished()
    }

    /// Waits at most until `until` for that.
    pub(super) fn wait_finished(&self, until: Instant) -> bool {
        let mut queue = self.shared.lock();
        while !queue.is_finished() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.shared.finished.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The sink's figures as they are counted.
    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    /// Queues a delivery if that takes no waiting; gives it back if it has to wait for room.
    pub fn try_offer(&self, delivery: Delivery) -> Option<Delivery> {
        self.offer_unless_full(delivery, &mut self.shared.lock())
    }

    /// Queues a delivery, waiting for room where the rule of a full queue says so. Once the sink is being closed,
    /// the delivery is dropped.
    pub fn offer(&self, delivery: Delivery) {
        let mut queue = self.shared.lock();
        let mut delivery = delivery;
        while let Some(waiting) = self.offer_unless_full(delivery, &mut queue) {
            delivery = waiting;
            queue = match queue.patience {
                None => self.shared.room.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    self.shared.room.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn offer_unless_full(&self, delivery: Delivery, queue: &mut MutexGuard<'_, Queue>) -> Option<Delivery> {
        let size = Size::of(&delivery.batch);
        let dropped = if queue.deadline.is_some() || queue.is_finished() {
            queue.end_reason()
        } else if !Shared::is_full(queue, size) {
            self.shared.push(queue, delivery, size);
            queue.is_dropping = false;
            return None;
        } else if queue.settings.when_full == WhenFull::DropNewest {
            if !std::mem::replace(&mut queue.is_dropping, true) {
                Event::QueueFull { sink: &self.name }.report();
            }
            Reason::QueueFull
        } else if queue.patience.is_none_or(|until| Instant::now() < until) {
            return Some(delivery);
        } else {
            Reason::Shutdown
        };
        if dropped != Reason::QueueFull {
            queue.refused.0 += 1;
            queue.refused.1 += size.span;
        }
        delivery.receipt.settle(Outcome::Dropped(dropped));
        None
    }

    /// The figures now.
    #[must_use]
    pub fn stats(&self) -> SinkStats {
        let queue = self.shared.lock();
        let (batches, memory, settings) = (queue.batches as u64, queue.memory as u64, queue.settings.clone());
        drop(queue);
        self.shared.counters.snapshot(&self.name, batches, memory, &settings)
    }

    /// From `until` on nobody waits for room: what finds the queue full then is dropped, with reason `shutdown`.
    pub fn limit_waits(&self, until: Instant) {
        self.shared.lock().patience = Some(until);
        self.shared.room.notify_all();
    }

    /// Asks the sink to come to its end until `deadline`: to write what is queued, and to take nothing more. What is
    /// left then, and what comes from now on, is dropped with `reason`.
    pub fn begin_close(&self, deadline: Instant, reason: Reason) {
        let mut queue = self.shared.lock();
        queue.deadline = Some(deadline);
        queue.end_reason.get_or_insert(reason);
        queue.idle = false;
        drop(queue);
        self.shared.work.notify_all();
        self.shared.room.notify_all();
    }

    /// Waits for the end that [`Worker::begin_close`] asked for, and drops what is still queued then.
    #[must_use]
    pub fn finish_close(&self) -> Leftover {
        // A little more than the deadline: the sink's thread has to notice that it has passed.
        let grace = Duration::from_millis(200);
        let mut queue = self.shared.lock();
        while !queue.is_finished() {
            let until = queue
                .deadline
                .map_or(Duration::ZERO, |deadline| (deadline + grace).saturating_duration_since(Instant::now()));
            if until.is_zero() {
                break;
            }
            queue = self.shared.finished.wait_timeout(queue, until).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.closed = true;
        let leftover = Leftover {
            batches: queue.batches + queue.abandoned.0 + queue.refused.0,
            bytes: queue.span + queue.abandoned.1 + queue.refused.1,
            finished: queue.is_finished(),
        };
        let unsettled = queue.take_leftover();
        drop(queue);
        settle_leftover(unsettled);
        leftover
    }
}

/// Settles what no sink will take any more.
pub(super) fn settle_leftover(leftover: Option<(VecDeque<Delivery>, Reason)>) {
    let Some((deliveries, reason)) = leftover else { return };
    deliveries.into_iter().for_each(|delivery| delivery.receipt.settle(Outcome::Dropped(reason)));
}
