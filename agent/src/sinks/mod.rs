//! Where records go. Each sink is a folder: `config`, `encode`, `sink`, `tests`.
//!
//! A sink runs on a thread of its own behind a bounded queue. It takes [`Delivery`]s and settles each one's
//! [`Receipt`] when the record is as safe as the sink can make it, at once or much later: a file sink after the
//! write, Kafka after the broker's acknowledgement.

mod attempts;
mod backlog;
pub mod buffer;
pub mod config;
pub mod console;
mod driver;
pub mod elasticsearch;
pub mod file;
mod flights;
mod handover;
pub mod http;
pub mod http_client;
pub mod json;
pub mod kafka;
mod named_file;
pub mod otlp;
mod rate;
pub mod receipt;
mod refusals;
mod reopen;
mod replace;
pub mod set;
pub mod stats;
pub(crate) mod stream_cache;
mod template;
mod timestamp;
mod uptime;
mod wants;
pub mod worker;

#[cfg(test)]
mod replace_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod worker_tests;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

pub use config::SinkSettings;
pub use named_file::{FileFault, NamedFile};
pub use rate::Rate;
pub use receipt::{Hold, Outcome, Promise, Receipt, Settled, Settlement};
pub use set::Sinks;
pub use stats::SinkStats;
pub use worker::{Leftover, Worker};

use crate::record::Batch;

/// A batch on its way into one sink.
#[derive(Debug)]
pub struct Delivery {
    /// What to write; shared by all sinks.
    pub batch: Arc<Batch>,
    /// What to settle once it is safe.
    pub receipt: Receipt,
}

/// What went wrong in a sink. The worker logs it, counts it and calls again after a pause.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}")]
pub struct SinkError {
    /// What was being done, with the path or address concerned, and what the operator can do.
    pub action: String,
    /// The cause.
    pub source: std::io::Error,
}

impl SinkError {
    /// A file that the settings name can't be used.
    fn of_file(fault: FileFault) -> Self {
        Self { action: "making the sink".to_owned(), source: std::io::Error::other(fault) }
    }

    /// The same where it is not told otherwise which sink is meant.
    fn of(self, sink: &str) -> Self {
        Self { action: format!("sink `{sink}`: {}", self.action), ..self }
    }
}

/// A figure that one kind of sink has and others have not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The metric that it is; it stands in the table of metrics, with the labels of a sink.
    pub name: &'static str,
    /// Its value, in the unit that the name says.
    pub value: f64,
}

/// A destination of records. Calls come from one thread, in order.
pub trait Sink: Send {
    /// The name in metrics and logs, as configured.
    fn name(&self) -> &str;

    /// Takes the deliveries at the front of `queue` in order, leaving those that it cannot take now: the worker
    /// offers them again, so a full disk or a lost connection loses nothing.
    ///
    /// # Errors
    /// The error that stopped it; deliveries already taken stay taken.
    fn write(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError>;

    /// Pushes out what is buffered and settles every receipt that this settles; called when the queue runs empty
    /// and before the end.
    ///
    /// # Errors
    /// The error that stopped it; what is not settled stays with the sink.
    fn flush(&mut self) -> Result<(), SinkError>;

    /// Housekeeping (rotation, retention), called about once a second.
    ///
    /// # Errors
    /// The error that stopped it; it is called again.
    fn tick(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// The figures that only this kind of sink has, as they are now; asked for after each [`Sink::tick`].
    fn figures(&self) -> Vec<Figure> {
        Vec::new()
    }

    /// When [`Sink::call`] is wanted although nothing comes; asked after each call. `None` for never.
    fn next_call(&self) -> Option<Instant> {
        None
    }

    /// What [`Sink::next_call`] was for.
    ///
    /// # Errors
    /// The error that stopped it; it is called again.
    fn call(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Ends the sink within `limit`, settling what can be settled.
    ///
    /// # Errors
    /// The error that stopped it.
    fn close(&mut self, limit: Duration) -> Result<(), SinkError> {
        let _ = limit;
        self.flush()
    }

    /// Gives back what it has taken and not settled, in order; called after [`Sink::close`], so that another sink can
    /// go on with it. A sink that settles what it takes before it returns has nothing to give back.
    fn give_back(&mut self) -> VecDeque<Delivery> {
        VecDeque::new()
    }
}
