//! Observes every stage; no stage depends on it. It reads snapshots and gives them out as metrics, health and version
//! over HTTP; `control` gives the same to `sidestep status`.

#[cfg(test)]
mod alerts_tests;
pub mod collector;
pub mod http;
pub mod names;
pub mod process;
pub mod readiness;
pub mod series;
pub mod snapshot;
#[cfg(test)]
pub(crate) mod testing;

pub use http::{BindError, Claim, Options, Server};
pub use snapshot::{Observe, Snapshot, Whereabouts};
