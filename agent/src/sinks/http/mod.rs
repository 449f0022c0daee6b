//! HTTP: requests of many lines, as NDJSON or as OTLP in protobuf.
//!
//! A line counts as delivered when the server has answered its request with 2xx, and not before. A request that the
//! server could not take is sent again; one that it refuses is cut in halves until the line is found that it does not
//! like.

pub mod config;
mod headers;
mod load;
mod reach;
mod sink;
mod verdict;

pub use config::Settings;
pub use reach::reach;
pub use sink::HttpSink;

#[cfg(test)]
mod tests;
