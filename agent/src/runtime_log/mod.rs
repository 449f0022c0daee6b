//! The runtime's own log of a container: what the kernel's ring could not hold of a pipe is read back from there.
//!
//! Every runtime copies stdout and stderr to a file (`/var/log/pods/.../0.log` in the format of CRI, Docker's `json-file`),
//! whose content is the same sequence of bytes. A thread of its own looks for gaps in it and hands their bytes over in
//! chunks, so that the thread that drains the ring never waits for a disk. See
//! `docs/decisions/0010-repair-from-the-runtimes-log.md`.
//!
//! `entry` (one line) -> `files` (which, and in which order) -> `content` (the stream's bytes) -> `search` (where a gap
//! is) -> `copy` (its bytes) -> `worker` (the thread).

mod content;
mod copy;
mod entry;
mod files;
mod search;
#[cfg(test)]
pub(crate) mod tests;
mod worker;

pub use self::{
    copy::Chunk,
    search::{After, Gap},
    worker::{Answer, Repairs, Statistics, WAIT_FOR_RUNTIME},
};

/// Known bytes before a gap that are worth keeping, and behind it that are worth comparing.
pub const KNOWN_BYTES: usize = 512;
