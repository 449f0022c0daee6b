//! The thread and the bounded queue in front of a sink.

use std::{
    collections::VecDeque,
    io,
    mem::size_of,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Delivery, Outcome, Sink, SinkError,
    config::{QueueSettings, WhenFull},
    stats::{Counters, SinkStats},
};
use crate::{
    ledger::Reason,
    record::{Batch, Line},
};

/// How often a sink's housekeeping is called.
const TICK: Duration = Duration::from_secs(1);
/// First and longest pause after an error.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Errors in a row are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

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
struct Shared {
    name: String,
    settings: QueueSettings,
    counters: Counters,
    queue: Mutex<Queue>,
    /// Signalled when the sink's thread has something to do.
    work: Condvar,
    /// Signalled when there is room again, or the end has come.
    room: Condvar,
    /// Signalled when the sink's thread has ended.
    finished: Condvar,
}

/// Deliveries that the sink's thread has not fetched, and the totals of all that the sink has not taken.
#[derive(Debug, Default)]
struct Queue {
    deliveries: VecDeque<Delivery>,
    batches: usize,
    /// Memory that the batches hold, roughly.
    memory: usize,
    span: u64,
    /// The sink's thread sleeps and has to be woken for a new delivery.
    idle: bool,
    /// When the sink has to be at its end, once it is asked to.
    deadline: Option<Instant>,
    finished: bool,
}

/// What a delivery holds, noted before the sink may drop it.
#[derive(Clone, Copy, Debug)]
struct Size {
    memory: usize,
    span: u64,
    lines: u64,
}

impl Size {
    fn of(batch: &Batch) -> Self {
        Self {
            memory: batch.data.len() + batch.lines.len() * size_of::<Line>(),
            span: batch.span(),
            lines: batch.lines.len() as u64,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
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
            counters: Counters::default(),
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
        self.shared.counters.note_dropped(size.lines, size.span);
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

/// The sink's thread.
struct Driver<'shared> {
    shared: &'shared Shared,
    sink: Box<dyn Sink>,
    /// Fetched, and not taken by the sink yet.
    fetched: VecDeque<Delivery>,
    sizes: VecDeque<Size>,
    /// The sink may hold what is not flushed.
    unflushed: bool,
    next_tick: Instant,
    /// The pause after the last error, and when it is over.
    pause: Option<(Duration, Instant)>,
    last_log: Option<Instant>,
    unlogged: u64,
}

/// Wakes those who wait for the thread, also when a sink panics.
struct Finish<'shared>(&'shared Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.lock().finished = true;
        self.0.finished.notify_all();
        self.0.room.notify_all();
    }
}

impl<'shared> Driver<'shared> {
    fn new(shared: &'shared Shared, sink: Box<dyn Sink>) -> Self {
        Self {
            shared,
            sink,
            fetched: VecDeque::new(),
            sizes: VecDeque::new(),
            unflushed: false,
            next_tick: Instant::now() + TICK,
            pause: None,
            last_log: None,
            unlogged: 0,
        }
    }

    fn run(mut self) {
        let _finish = Finish(self.shared);
        let mut hurried = false;
        loop {
            let deadline = self.fetch();
            if deadline.is_some() && !hurried {
                // The end is near: what failed a moment ago is tried once more at once.
                hurried = true;
                self.pause = None;
            }
            let now = Instant::now();
            if now >= self.next_tick {
                self.next_tick = now + TICK;
                if let Err(error) = self.sink.tick() {
                    self.note_error(&error);
                }
            }
            if self.pause.is_none_or(|(_, until)| now >= until) {
                self.work();
            }
            if let Some(deadline) = deadline {
                let done = self.fetched.is_empty() && !self.unflushed && self.shared.lock().deliveries.is_empty();
                if done || Instant::now() >= deadline {
                    let limit = deadline.saturating_duration_since(Instant::now());
                    if let Err(error) = self.sink.close(limit) {
                        self.note_error(&error);
                    }
                    return;
                }
            }
        }
    }

    /// Waits until there is something to do, and fetches what is queued.
    fn fetch(&mut self) -> Option<Instant> {
        let mut queue = self.shared.lock();
        loop {
            let now = Instant::now();
            let ready = self.pause.is_none_or(|(_, until)| now >= until);
            let has_work = !queue.deliveries.is_empty() || !self.fetched.is_empty() || self.unflushed;
            let closing = queue.deadline.is_some_and(|deadline| ready || now >= deadline);
            if (ready && has_work) || closing || now >= self.next_tick {
                break;
            }
            let mut until = self.next_tick;
            if let (false, Some((_, retry))) = (ready, self.pause) {
                until = until.min(retry);
            }
            until = queue.deadline.map_or(until, |deadline| until.min(deadline));
            queue.idle = ready;
            queue = self
                .shared
                .work
                .wait_timeout(queue, until.saturating_duration_since(now))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            queue.idle = false;
            if queue.deadline.is_some() {
                break;
            }
        }
        self.sizes.extend(queue.deliveries.iter().map(|delivery| Size::of(&delivery.batch)));
        if self.fetched.is_empty() {
            std::mem::swap(&mut self.fetched, &mut queue.deliveries);
        } else {
            self.fetched.append(&mut queue.deliveries);
        }
        queue.deadline
    }

    /// Offers the sink what is fetched, and flushes when that is all there is.
    fn work(&mut self) {
        if !self.fetched.is_empty() {
            self.unflushed = true;
            let before = self.fetched.len();
            let result = self.sink.write(&mut self.fetched);
            self.note_taken(before - self.fetched.len());
            let result = match result {
                // A sink that takes nothing and names no reason must not keep the thread spinning.
                Ok(()) if self.fetched.len() == before => Err(SinkError {
                    action: "waiting for the sink to take records again".to_owned(),
                    source: io::ErrorKind::WouldBlock.into(),
                }),
                other => other,
            };
            if !self.note(result) {
                return;
            }
        }
        if self.unflushed && self.fetched.is_empty() && self.shared.lock().deliveries.is_empty() {
            let result = self.sink.flush();
            if self.note(result) {
                self.unflushed = false;
            }
        }
    }

    fn note_taken(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let (mut memory, mut span, mut lines) = (0, 0, 0);
        for size in self.sizes.drain(..count) {
            memory += size.memory;
            span += size.span;
            lines += size.lines;
        }
        self.shared.counters.note_taken(lines, span);
        let mut queue = self.shared.lock();
        queue.batches -= count;
        queue.memory -= memory;
        queue.span -= span;
        drop(queue);
        self.shared.room.notify_all();
    }

    /// Books how a write or flush went; true when it went well. After an error there is a pause.
    fn note(&mut self, result: Result<(), SinkError>) -> bool {
        let Err(error) = result else {
            if self.pause.take().is_some() {
                tracing::info!(sink = self.shared.name, "the sink works again");
                self.last_log = None;
            }
            self.shared.counters.note_success();
            return true;
        };
        let length = self.pause.map_or(BACK_OFF.0, |(length, _)| (length * 2).min(BACK_OFF.1));
        self.pause = Some((length, Instant::now() + length));
        self.note_error(&error);
        false
    }

    /// Counts an error, and logs it unless one has just been logged.
    fn note_error(&mut self, error: &SinkError) {
        let now = Instant::now();
        self.shared.counters.note_error(error.to_string());
        if self.last_log.is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL) {
            let suppressed = std::mem::take(&mut self.unlogged);
            tracing::error!(sink = self.shared.name, suppressed, "{error}");
            self.last_log = Some(now);
        } else {
            self.unlogged += 1;
        }
    }
}
