//! `soak kubernetes`

use std::{fmt::Display, process, time::Duration};

use anyhow::{Result, ensure};
use clap::Args;
use sidestep_tests::cluster::{
    self, Cluster,
    trial::{self, Plan},
};

/// Clusters of these runs are named with it and the number of the process.
const PREFIX: &str = "soak-";

#[derive(Args, Debug)]
pub(crate) struct Kubernetes {
    /// For how many minutes the API server is away
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

impl Kubernetes {
    pub(crate) fn execute(&self) -> Result<()> {
        ensure!((0.1..=1440.0).contains(&self.minutes), "--minutes must be from 0.1 to 1440");
        let plan = Plan { outage: Duration::from_secs_f64(self.minutes * 60.0) };
        on_cluster(|cluster, progress| trial::run(cluster, plan, progress))
    }
}

/// Does `run` on a cluster of its own, which is told of each step, and prints the report.
pub(crate) fn on_cluster<R: Display>(run: impl FnOnce(&Cluster, &(dyn Fn(&str) + Sync)) -> Result<R>) -> Result<()> {
    cluster::sweep(PREFIX)?;
    let name = format!("{PREFIX}{}", process::id());
    let progress = |step: &str| eprintln!("{step}");
    let result = cluster::up(&name, 1, &progress).and_then(|started| {
        let report = run(&started.cluster, &progress);
        // What the components said is gone with the cluster.
        report.inspect_err(|_| started.cluster.show_logs())
    });
    cluster::remove(&name)?;
    print!("{}", result?);
    Ok(())
}
