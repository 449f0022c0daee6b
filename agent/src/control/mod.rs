//! The unix socket behind `sidestep logs`, `sidestep status` and `sidestep explain`: a live tap of the pipeline's batches, and the status
//! view and what was decided of a Pod, as newline-delimited JSON. Like `telemetry` it only observes; no stage waits for it.

pub mod client;
pub mod explain;
pub mod filter;
pub mod governance;
pub mod judgement;
pub mod protocol;
pub mod server;
pub mod socket;
pub mod status;
pub mod tap;

pub use client::{
    ClientError,
    logs::LogsOptions,
    status::StatusOptions,
    terminal::{Color, Screen, escaped_word},
};
pub use server::serve;
pub use socket::{Listener, PATH_BYTES, SocketError};
pub use tap::Tap;
