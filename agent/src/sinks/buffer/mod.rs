//! The buffer on disk in front of a sink.
//!
//! While the sink acknowledges quickly, nothing is written: the kernel's ring, or the file, still has the bytes. What it
//! has had for too long is appended to a log of checksummed frames as well, which secures it, and what it has no room
//! for goes to that log only and is read back in order. See `docs/decisions/0006-disk-buffer.md`.
//!
//! ```text
//! queue ──▶ Buffered ──▶ queue ──▶ sink
//!              │  ▲
//!          spill, store  feed
//!              ▼  │
//!             log of segments ──▶ Syncer
//! ```

mod codec;
mod config;
mod figures;
mod frame;
mod home;
mod log;
mod mark;
mod owed;
mod revive;
mod segment;
mod sink;
mod sync;
mod table;

#[cfg(test)]
mod tests;

pub use config::{BufferSettings, WhenFull};
pub use figures::BufferStats;
pub(super) use figures::Figures;
pub use home::Home;
pub use sink::Buffered;
