//! Records as logs of OpenTelemetry's protocol (OTLP) in protobuf, shared by all sinks that send it; the names are
//! those of the JSON records, and `docs/records.md` says where they stand.
//!
//! What is the same for all records of a stream is rendered once, as for JSON, and a record is written around it byte by
//! byte. The messages that are not on that path are made by `prost`, of the few fields that are in use: the crate with
//! the generated ones needs OpenTelemetry's whole SDK, and only the tests read with it what is written here.

pub mod answer;
mod message;
mod record;
mod request;
mod wire;

#[cfg(test)]
mod tests;

pub use record::Encoder;
pub use request::{Fit, Request};
