//! The agent on a real node of Kubernetes: how soon its records have labels, what it holds, what it asks for.

mod files;
mod memory;
mod policy;
mod requests;
mod start;

use std::process;

use anyhow::Result;
use clap::ValueEnum;
use sidestep_tests::cluster::{self, Cluster, DaemonSet};

use crate::session::Session;

/// Clusters of benchmarks are named with this and the number of the process.
const PREFIX: &str = "bench-";

/// One group of figures.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Measured {
    /// From the start of the agent in its Pod to the first record with labels.
    Start,
    /// From the request for a policy to the first record under it.
    Policy,
    /// Resident memory with as many Pods as a node has, with many labels.
    Memory,
    /// What the agent asks the API server for while nothing happens.
    Requests,
}

/// Each on a cluster of its own: what one leaves behind is no part of the next.
pub(crate) fn run(measured: Measured, session: &mut Session) -> Result<()> {
    session.check()?;
    cluster::sweep(PREFIX)?;
    session.step("a cluster of one node");
    let own = Own(cluster::up(&format!("{PREFIX}{}", process::id()), 1, &|_| ())?.cluster);
    DaemonSet::with(&own.0, |agents| match measured {
        Measured::Start => start::run(session, &own.0, agents),
        Measured::Policy => policy::run(session, &own.0),
        Measured::Memory => memory::run(session, &own.0, agents),
        Measured::Requests => requests::run(session, &own.0, agents),
    })
}

/// Removed when dropped.
struct Own(Cluster);

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = cluster::remove(self.0.place().name()) {
            eprintln!("clean-up of the cluster: {error:#}");
        }
    }
}
