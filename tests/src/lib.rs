//! Harness of the end-to-end tests: real containers, the real agent, deadlines, and clean-up that also works after
//! a panic or a crash.
//!
//! A test is a closure that gets a [`Testbed`]: a directory and a cgroup root of its own, below which everything
//! lives that the test starts. [`end_to_end`] removes both whatever happens.

pub mod agent;
pub mod api_server;
pub mod certificates;
pub mod cgroup;
pub mod cluster;
pub mod config;
pub mod container;
mod daemon;
pub mod engine;
pub mod expect;
pub mod front;
pub mod governance;
pub mod http;
pub mod kafka;
pub mod kernel;
pub mod kills;
pub mod ledger;
pub mod maven;
pub mod mounts;
pub mod network;
pub mod numbered;
pub mod opensearch;
pub mod outage;
pub mod process;
pub mod python;
pub mod random;
pub mod receiver;
pub mod records;
pub mod rootfs;
pub mod runtime_log;
pub mod status;
pub mod testbed;
pub mod wait;

pub use agent::Agent;
pub use api_server::ApiServer;
pub use config::Config;
pub use container::{Container, ContainerBuilder, Stdio};
pub use expect::Expected;
pub use ledger::Ledger;
pub use network::Network;
pub use runtime_log::RuntimeLog;
pub use testbed::{Testbed, end_to_end};
pub use wait::{DEADLINE, wait_until};
