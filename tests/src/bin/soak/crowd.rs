//! `soak kubernetes-pods`

use anyhow::{Result, ensure};
use clap::Args;
use sidestep_tests::cluster::crowd::{self, Life, Plan};

use crate::kubernetes::on_cluster;

/// The most that the kubelet of a test takes, but for the agent's.
const MOST: usize = 249;

#[derive(Args, Debug)]
pub(crate) struct Crowd {
    /// Pods in all
    #[arg(long, default_value_t = 1000)]
    pods: usize,
    /// At most so many at the same time; with --stay so many wait to be started at the same time
    #[arg(long, default_value_t = 24)]
    at_once: usize,
    /// All of them run at the same time; else each ends by itself, and is deleted then
    #[arg(long)]
    stay: bool,
    /// Each is deleted in the middle of writing as fast as it can, at once or with a second of grace; all that the runtime's log
    /// has of it is to come
    #[arg(long, conflicts_with = "stay")]
    cut: bool,
    /// Size of the ring between kernel and agent in KiB, a power of two; what a small one can't hold comes from the runtime's logs
    #[arg(long, value_name = "KIB")]
    ring: Option<u32>,
}

impl Crowd {
    pub(crate) fn execute(&self) -> Result<()> {
        let Self { pods, at_once, stay, cut, ring } = *self;
        ensure!((1..=MOST).contains(&at_once), "--at-once must be from 1 to {MOST}");
        ensure!(pods > 0 && (!stay || pods <= MOST), "--pods must be from 1, and with --stay to {MOST}");
        let life = match (stay, cut) {
            (true, _) => Life::Stays,
            (_, true) => Life::Cut,
            _ => Life::Ends,
        };
        on_cluster(|cluster, progress| crowd::run(cluster, Plan { pods, at_once, life, ring, let_go: true }, progress))
    }
}
