//! Elasticsearch and OpenSearch: each line is a document, sent by the bulk API.
//!
//! [`encode`] fills requests, [`reply`] reads what became of each line of one, [`setup`] makes what the server needs before
//! ([`template`]), and [`sink`] brings them together. Several requests are under way at once, on the thread of the client.
//! What a server says of one line concerns that line alone: it is delivered, sent again, held with others of its index, or
//! goes to the dead-letter index. A request that is refused as a whole for what is in it is cut in halves, to the line at
//! fault. What else is said of a whole request is no line's fault: it is sent again until it gets through, and meanwhile the
//! queue in front of the sink fills, by its rule.

pub mod config;
mod encode;
mod held;
mod index;
mod open;
mod reach;
mod reply;
mod servers;
mod setup;
mod sink;
mod template;

#[cfg(test)]
mod tests;

pub use config::Settings;
pub use reach::reach;
pub use sink::ElasticsearchSink;
