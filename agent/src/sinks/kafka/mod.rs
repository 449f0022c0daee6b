//! Kafka: each line is a message, acknowledged by all replicas in sync.
//!
//! librdkafka does the work on threads of its own; what it says of each message comes to [`context`], on one of them.
//! A message carries the receipt of its line, so a line counts as delivered when the brokers have acknowledged it and
//! not before. Brokers that are away cost nothing but time: messages wait in the producer's buffer, and when that is
//! full, in the queue in front of the sink, by its rule.

mod certificate;
pub mod config;
mod context;
mod failure;
mod figures;
mod held;
mod options;
mod producer;
mod sink;
mod topic;

pub use config::Settings;
pub use producer::reach;
pub use sink::KafkaSink;

#[cfg(test)]
mod tests;
