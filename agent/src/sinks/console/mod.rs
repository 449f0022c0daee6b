//! The console sink: standard output, for people or as NDJSON.

mod config;
mod encode;
mod sink;

#[cfg(test)]
mod tests;

pub use config::{Color, Format, Settings};
pub use encode::TextEncoder;
pub use sink::ConsoleSink;
