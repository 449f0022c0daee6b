//! Forces what is appended to the disk within a bounded time, on a thread of its own: appends wait for no disk.

use std::{
    fs::File,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::sinks::{Promise, Receipt};

/// The most batches that wait for the disk.
const MAX_WAITING: u64 = 65_536;

/// Who is told when it is on the disk.
#[derive(Debug)]
pub(super) enum Waiting {
    /// The batch is on its way too.
    Promise(Arc<Promise>),
    /// The batch is on disk only; the receipt is let go of.
    Receipt(Receipt),
}

/// The thread that syncs.
#[derive(Debug)]
pub(super) struct Syncer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when there is something to sync, or the end has come.
    work: Condvar,
    finished: Condvar,
    waiting: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Files with data that may not be on the disk, and their directory.
    dirty: Vec<Arc<File>>,
    waiting: Vec<Waiting>,
    error: Option<io::Error>,
    stop: bool,
    finished: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, interval: Duration) {
        loop {
            let state = self.lock();
            let idle = |state: &mut State| !state.stop && state.dirty.is_empty();
            let state = self.work.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            // What comes meanwhile is synced along.
            let running = |state: &mut State| !state.stop;
            let (mut state, _) =
                self.work.wait_timeout_while(state, interval, running).unwrap_or_else(PoisonError::into_inner);
            let dirty = std::mem::take(&mut state.dirty);
            let waiting = std::mem::take(&mut state.waiting);
            let stop = state.stop;
            drop(state);
            let synced = dirty.iter().try_for_each(|file| file.sync_data());
            let mut state;
            match synced {
                Ok(()) => {
                    // Their directory is locked as long as it is open.
                    drop(dirty);
                    self.waiting.fetch_sub(waiting.len() as u64, Relaxed);
                    waiting.into_iter().for_each(Waiting::store);
                    state = self.lock();
                }
                Err(error) => {
                    state = self.lock();
                    state.error = Some(error);
                    // In the order in which they came.
                    state.waiting.splice(0..0, waiting);
                    state.dirty.splice(0..0, dirty);
                }
            }
            if stop {
                // Dropped here, where they are kept for the next agent.
                let left = std::mem::take(&mut state.waiting);
                state.dirty.clear();
                state.finished = true;
                drop(state);
                drop(left);
                self.finished.notify_all();
                return;
            }
        }
    }
}

impl Waiting {
    fn matters(&self) -> bool {
        match self {
            Self::Promise(promise) => !promise.is_settled(),
            Self::Receipt(_) => true,
        }
    }

    fn store(self) {
        match self {
            Self::Promise(promise) => promise.store(),
            Self::Receipt(receipt) => receipt.promise().store(),
        }
    }
}

impl Syncer {
    pub(super) fn start(interval: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        thread::Builder::new().name("buffer-sync".to_owned()).spawn(move || of_thread.run(interval))?;
        Ok(Self { shared })
    }

    /// Notes that something was appended to a file in `directory`; `waiting` is told when it is synced.
    pub(super) fn note(&self, file: &Arc<File>, directory: &Arc<File>, waiting: Option<Waiting>) {
        let mut state = self.shared.lock();
        let was_clean = state.dirty.is_empty();
        if !state.dirty.iter().any(|dirty| Arc::ptr_eq(dirty, file)) {
            state.dirty.push(Arc::clone(file));
            if !state.dirty.iter().any(|dirty| Arc::ptr_eq(dirty, directory)) {
                state.dirty.push(Arc::clone(directory));
            }
        }
        if let Some(waiting) = waiting {
            self.shared.waiting.fetch_add(1, Relaxed);
            state.waiting.push(waiting);
        }
        drop(state);
        if was_clean {
            self.shared.work.notify_one();
        }
    }

    /// Whether so many wait to be told that no more may; those whom it does not matter to any more are let go of then.
    pub(super) fn is_behind(&self) -> bool {
        if self.shared.waiting.load(Relaxed) < MAX_WAITING {
            return false;
        }
        let mut state = self.shared.lock();
        let before = state.waiting.len();
        state.waiting.retain(Waiting::matters);
        let left = self.shared.waiting.fetch_sub((before - state.waiting.len()) as u64, Relaxed);
        left - (before - state.waiting.len()) as u64 >= MAX_WAITING
    }

    /// The last error, once.
    pub(super) fn take_error(&self) -> Option<io::Error> {
        self.shared.lock().error.take()
    }

    /// Syncs what is left and ends the thread; leaves it behind if that takes longer than `limit`.
    pub(super) fn stop(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        state.stop = true;
        self.shared.work.notify_all();
        while !state.finished {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.shared.finished.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}
