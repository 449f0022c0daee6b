//! Log files: what the ring brings is taken when its place is certain, and all else is read from the file.
//!
//! One thread, the [`Tailer`], owns all file streams: class `business` (files of containers, which the kernel
//! announces when they are written) and class `server` (the node's own, which are found by globs and polled).
//! `position` decides where a record belongs, `log_file` makes a stream of one file, `judge` keeps what comes before
//! it is known whether a file is a log, `checkpoint` and `progress` carry positions over restarts of the agent.

mod checkpoint;
pub mod event;
mod find;
mod handle;
mod head;
mod judge;
mod log_file;
mod open;
mod position;
mod progress;
mod readings;
mod server;
mod source;
mod sparse;
mod survey;
mod tailer;
mod tally;

pub use handle::{Commands, Handle, Leftover, Settings, Stopped};
pub(crate) use open::open_for_reading;
pub use progress::Progress;
pub use readings::{Readings, StreamReading};
pub use source::Source;
pub use tailer::{Deliver, Tailer};
