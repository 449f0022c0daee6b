//! The file sink: a tree of rotated, compressed files, one directory a container.
//!
//! ```text
//! <path>/pod/<namespace>/<pod>/<container>/stdout-20261121T05-000.ndjson.zst
//! ```
//!
//! The thread of the sink opens, appends and rotates; [`keeper`] compresses and deletes what is closed; [`sync`]
//! forces data to the disk. The three meet in [`names`], so that no file is written and compressed at once.

mod appender;
mod compress;
mod config;
mod keeper;
mod names;
mod path;
mod sink;
mod sync;
mod tree;

#[cfg(test)]
mod tests;

pub use config::{Compression, Format, Settings, Sync};
pub use path::{decode_component, encode_component};
pub use sink::FileSink;
pub(crate) use tree::is_in_use;
