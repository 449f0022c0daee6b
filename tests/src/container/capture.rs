//! The runtime's end of a container's stdout or stderr: read at once, as containerd does, and kept for comparison.

use std::{
    io::Read,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::ioctl_fionread,
};

use crate::wait_until;

/// A thread that reads a stream to its end.
#[derive(Debug)]
pub struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// The stream once more, to ask what is in it.
    source: OwnedFd,
    thread: JoinHandle<()>,
}

impl Capture {
    /// Reads `source` until it ends or fails; a terminal ends with an error (`EIO`).
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn start(mut source: impl Read + AsFd + Send + 'static) -> Result<Self> {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let asked = source.as_fd().try_clone_to_owned()?;
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            // Nothing is between the stream and `bytes` while somebody holds the lock.
            while poll(&mut [PollFd::new(&source, PollFlags::IN)], None).is_ok() {
                let mut bytes = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(count @ 1..) = source.read(&mut buffer) else { break };
                bytes.extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Self { bytes, source: asked, thread })
    }

    /// Whether all has been read that was written so far.
    ///
    /// # Errors
    /// The stream can't be asked.
    pub fn is_drained(&self) -> Result<bool> {
        let _bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.thread.is_finished() || ioctl_fionread(&self.source)? == 0)
    }

    /// What has been read so far.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the last writer has closed the stream.
    ///
    /// # Errors
    /// It is still open after `limit`.
    pub fn wait_end(&mut self, limit: Duration) -> Result<()> {
        wait_until("end of a container's output", limit, || Ok(self.thread.is_finished().then_some(())))
    }
}
