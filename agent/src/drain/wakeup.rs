//! Waiting for the kernel.

use std::{io, mem::MaybeUninit, os::fd::OwnedFd, time::Duration};

use rustix::event::epoll;

use super::ring::Ring;

/// The kernel's wake-ups, and only these: `poll` would return at once whenever the ring holds anything, and a reader
/// under load would never nap. An edge-triggered `epoll` returns when it is told to.
pub struct Wakeup(OwnedFd);

impl Wakeup {
    /// Listens to a ring.
    ///
    /// # Errors
    /// When the system has no `epoll` to give.
    pub fn new(ring: &Ring) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, ring, epoll::EventData::new_u64(0), flags)?;
        Ok(Self(epoll))
    }

    pub(super) fn wait(&self, limit: Duration) -> io::Result<bool> {
        let timeout =
            rustix::event::Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: i64::from(limit.subsec_nanos()) };
        let mut events = [MaybeUninit::uninit(); 1];
        match epoll::wait(&self.0, &mut events, Some(&timeout)) {
            Ok((ready, _)) => Ok(!ready.is_empty()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
