//! A queue from one sink's thread to the next: the old one gives back what it has not taken, the new one goes on there.

use std::{
    sync::{
        Arc, PoisonError,
        mpsc::{self, SyncSender},
    },
    thread,
    time::Instant,
};

use super::{
    Sink, SinkError,
    config::QueueSettings,
    driver::Driver,
    worker::{Shared, Size, Worker},
};

/// A thread that waits for the sink that it is to drive: made beforehand, so that taking over can't fail.
pub(super) struct Seat {
    shared: Arc<Shared>,
    start: SyncSender<(u64, Box<dyn Sink>)>,
}

/// Tells those who wait for a sink's thread that it has ended, however.
struct Gone<'shared> {
    shared: &'shared Shared,
    number: u64,
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.gone = queue.gone.max(self.number);
        drop(queue);
        self.shared.finished.notify_all();
        self.shared.room.notify_all();
    }
}

impl Seat {
    /// A thread for the queue of `worker`.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn new(worker: &Worker) -> Result<Self, SinkError> {
        let name = worker.name().to_owned();
        let (start, started) = mpsc::sync_channel::<(u64, Box<dyn Sink>)>(1);
        let shared = Arc::clone(&worker.shared);
        // The kernel keeps 15 bytes of a thread's name.
        let thread_name: String = format!("sink-{name}").chars().take(15).collect();
        thread::Builder::new()
            .name(thread_name)
            .spawn(move || {
                // Nobody sits down when it turns out that the thread is not needed.
                let Ok((number, sink)) = started.recv() else { return };
                // Declared before the driver, which takes the sink with it when it ends: so it is dropped after.
                let _gone = Gone { shared: &shared, number };
                Driver::new(&shared, number, sink).run();
            })
            .map_err(|source| SinkError {
                action: format!("starting the thread of sink `{}`", worker.name()),
                source,
            })?;
        Ok(Self { shared: Arc::clone(&worker.shared), start })
    }

    /// Lets `sink` take the queue. A thread that had it and is stuck in a call puts back what it has fetched when it
    /// returns.
    pub(super) fn take(self, sink: Box<dyn Sink>, settings: &QueueSettings) {
        let mut queue = self.shared.lock();
        let mut queued = Size::default();
        queue.deliveries.iter().for_each(|delivery| queued += Size::of(&delivery.batch));
        let batches = queue.deliveries.len();
        // A thread that has ended without putting back what it had fetched has settled it.
        if queue.gone < queue.driver {
            queue.abandoned.0 += queue.batches - batches;
            queue.abandoned.1 += queue.span - queued.span;
        }
        (queue.batches, queue.memory, queue.span) = (batches, queued.memory, queued.span);
        settings.clone_into(&mut queue.settings);
        queue.driver += 1;
        queue.released = None;
        queue.idle = false;
        let number = queue.driver;
        drop(queue);
        // The thread waits for this and for nothing else.
        let _ = self.start.send((number, sink));
        self.shared.room.notify_all();
    }
}

impl Worker {
    /// Asks the sink to end until `deadline` and to leave what it has not taken in the queue. Those who wait for room
    /// go on waiting: for the sink that comes after it.
    pub(super) fn release(&self, deadline: Instant) {
        self.shared.lock().released = Some(deadline);
        self.shared.work.notify_all();
    }

    /// Waits for the end that [`Worker::release`] asked for; false when the sink is still in a call at `deadline`.
    pub(super) fn wait_released(&self, deadline: Instant) -> bool {
        let mut queue = self.shared.lock();
        while queue.gone < queue.driver {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.shared.finished.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Takes [`Worker::release`] back; false when the sink has begun to end already.
    pub(super) fn reclaim(&self) -> bool {
        let mut queue = self.shared.lock();
        let unnoticed = queue.noticed < queue.driver && queue.gone < queue.driver;
        if unnoticed {
            queue.released = None;
        }
        unnoticed
    }
}
