//! The runtime's end of a container's stdout or stderr: read at once, as containerd does, and kept for comparison.

use std::{
    io::Read,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use crate::wait_until;

/// A thread that reads a stream to its end.
#[derive(Debug)]
pub struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Capture {
    /// Reads `source` until it ends or fails; a terminal ends with an error (`EIO`).
    pub fn start(mut source: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                shared.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, thread }
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
