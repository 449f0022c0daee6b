//! Forces written data to the disk at an interval, on a thread of its own: a slow disk must not hold up the sink.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Files that are held until they are synced; when there are more, their whole file system is synced in their place.
const MAX_DIRTY: usize = 256;

/// The thread that syncs.
#[derive(Debug)]
pub(super) struct Syncer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Files and directories with data that may not be on the disk. A held descriptor keeps its number.
    dirty: HashMap<RawFd, Arc<OwnedFd>>,
    /// One more than could be held: its file system is synced.
    further: Option<Arc<OwnedFd>>,
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
            let (mut state, _) = self
                .stopped
                .wait_timeout_while(state, interval, |state| !state.stop)
                .unwrap_or_else(PoisonError::into_inner);
            let dirty = std::mem::take(&mut state.dirty);
            let further = state.further.take();
            let stop = state.stop;
            drop(state);
            let synced = match further {
                Some(file) => rustix::fs::syncfs(&file),
                // One that fails does not keep the others from being tried.
                None => dirty.values().map(rustix::fs::fdatasync).filter(Result::is_err).last().unwrap_or(Ok(())),
            };
            drop(dirty);
            if let Err(error) = synced {
                self.lock().error = Some(error.into());
            }
            if stop {
                self.lock().finished = true;
                self.stopped.notify_all();
                return;
            }
        }
    }
}

impl Syncer {
    pub(super) fn start(interval: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("sink-file-sync".to_owned()).spawn(move || of_thread.run(interval))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Notes that a file or directory has changed.
    pub(super) fn note(&self, file: &Arc<OwnedFd>) {
        let mut state = self.shared.lock();
        if state.dirty.len() < MAX_DIRTY {
            state.dirty.entry(file.as_raw_fd()).or_insert_with(|| Arc::clone(file));
        } else {
            state.further.get_or_insert_with(|| Arc::clone(file));
        }
    }

    /// The last error, once.
    pub(super) fn take_error(&self) -> Option<io::Error> {
        self.shared.lock().error.take()
    }

    /// Syncs what is left and ends the thread; leaves it behind if that takes longer than `limit`.
    pub(super) fn stop(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        state.stop = true;
        self.shared.stopped.notify_all();
        while !state.finished {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.shared.stopped.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        if let Some(thread) = self.thread.take() {
            // It has no panic to report: it has said that it is finished.
            let _ = thread.join();
        }
    }
}
