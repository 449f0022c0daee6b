//! The bounded queue in front of a sink; the thread behind it is in [`super::driver`].

use std::{
    collections::VecDeque,
    mem::size_of,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Delivery, Outcome, Sink, SinkError,
    config::{QueueSettings, WhenFull},
    driver::Driver,
    stats::{Counters, SinkStats},
};
use crate::{
    ledger::Reason,
    record::{Batch, Line},
};

/// A sink on its own thread, behind a bounded queue.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// What a sink had not taken, or not acknowledged, when it was closed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Leftover {
    /// Batches still queued.
    pub batches: usize,
    /// Bytes of the streams in them.
    pub bytes: u64,
    /// Whether the sink came to its end in time; if not, its thread is stuck in a call and was left behind.
    pub finished: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) settings: QueueSettings,
    pub(super) counters: Arc<Counters>,
    pub(super) queue: Mutex<Queue>,
    /// Signalled when the sink's thread has something to do.
    pub(super) work: Condvar,
    /// Signalled when there is room again, or the end has come.
    pub(super) room: Condvar,
    /// Signalled when the sink's thread has ended.
    pub(super) finished: Condvar,
}

/// Deliveries that the sink's thread has not fetched, and the totals of all that the sink has not taken.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) deliveries: VecDeque<Delivery>,
    pub(super) batches: usize,
    /// Memory that the batches hold, roughly.
    pub(super) memory: usize,
    pub(super) span: u64,
    /// The sink's thread sleeps and has to be woken for a new delivery.
    pub(super) idle: bool,
    /// When the sink has to be at its end, once it is asked to.
    pub(super) deadline: Option<Instant>,
    pub(super) finished: bool,
}

/// What a delivery holds, noted before the sink may drop it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) memory: usize,
    pub(super) span: u64,
    pub(super) lines: u64,
}

impl Size {
    pub(super) fn of(batch: &Batch) -> Self {
        Self {
            memory: batch.data.len() + batch.lines.len() * size_of::<Line>(),
            span: batch.span(),
            lines: batch.lines.len() as u64,
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a batch of this size has to wait. One batch is let in however large it is.
    fn is_full(&self, queue: &Queue, size: Size) -> bool {
        let max_bytes = usize::try_from(self.settings.max_bytes.as_u64()).unwrap_or(usize::MAX);
        queue.batches >= self.settings.max_batches
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
        let name = sink.name().to_owned();
        let shared = Arc::new(Shared {
            name: name.clone(),
            settings: settings.clone(),
            counters: Arc::default(),
            queue: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            finished: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        // The kernel keeps 15 bytes of a thread's name.
        let thread_name: String = format!("sink-{name}").chars().take(15).collect();
        let thread = thread::Builder::new()
            .name(thread_name)
            .spawn(move || Driver::new(&of_thread, sink).run())
            .map_err(|source| SinkError { action: format!("starting the thread of sink `{name}`"), source })?;
        Ok(Self { shared, thread })
    }

    /// The sink's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
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
            queue = self.shared.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn offer_unless_full(&self, delivery: Delivery, queue: &mut MutexGuard<'_, Queue>) -> Option<Delivery> {
        let size = Size::of(&delivery.batch);
        let dropped = if queue.deadline.is_some() || queue.finished {
            Reason::Shutdown
        } else if !self.shared.is_full(queue, size) {
            self.shared.push(queue, delivery, size);
            return None;
        } else if self.shared.settings.when_full == WhenFull::Block {
            return Some(delivery);
        } else {
            Reason::QueueFull
        };
        self.shared.counters.note_taken(size.lines);
        delivery.receipt.settle(Outcome::Dropped(dropped));
        None
    }

    /// The figures now.
    #[must_use]
    pub fn stats(&self) -> SinkStats {
        let queue = self.shared.lock();
        let (batches, memory) = (queue.batches as u64, queue.memory as u64);
        drop(queue);
        self.shared.counters.snapshot(&self.shared.name, batches, memory, &self.shared.settings)
    }

    /// Asks the sink to come to its end until `deadline`: to write what is queued, and to take nothing more.
    pub fn begin_close(&self, deadline: Instant) {
        let mut queue = self.shared.lock();
        queue.deadline = Some(deadline);
        queue.idle = false;
        drop(queue);
        self.shared.work.notify_one();
        self.shared.room.notify_all();
    }

    /// Waits for the end that [`Worker::begin_close`] asked for. What is still queued then is dropped, with
    /// reason `shutdown`.
    #[must_use]
    pub fn finish_close(self) -> Leftover {
        // A little more than the deadline: the sink's thread has to notice that it has passed.
        let grace = Duration::from_millis(200);
        let mut queue = self.shared.lock();
        while !queue.finished {
            let until = queue
                .deadline
                .map_or(Duration::ZERO, |deadline| (deadline + grace).saturating_duration_since(Instant::now()));
            if until.is_zero() {
                break;
            }
            queue = self.shared.finished.wait_timeout(queue, until).unwrap_or_else(PoisonError::into_inner).0;
        }
        let leftover = Leftover { batches: queue.batches, bytes: queue.span, finished: queue.finished };
        let unsettled = std::mem::take(&mut queue.deliveries);
        drop(queue);
        drop(unsettled);
        if leftover.finished && self.thread.join().is_err() {
            tracing::error!(sink = self.shared.name, "the thread of the sink has panicked");
        }
        leftover
    }
}
