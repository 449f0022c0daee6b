//! From the start of the agent's process in its Pod to the first record with labels at its sink.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use rustix::process::Pid;
use sidestep_tests::{
    cluster::{
        Cluster, DaemonSet, PATIENCE,
        daemonset::RECORDS,
        workload::{Namespace, Writer, pod},
    },
    wait_until,
};

use super::files::Files;
use crate::{
    report::{Figure, Target},
    session::Session,
};

/// In seconds.
const TARGET: f64 = 2.0;

/// Part of every record of a Pod whose labels are known.
const LABEL: &str = "\"k8s.pod.label.app\":\"cart\"";

pub(super) fn run(session: &mut Session, cluster: &Cluster, agents: &DaemonSet<'_>) -> Result<()> {
    session.step("start: the agent's Pod is deleted, and the next one's first record with labels is waited for");
    let shop = Namespace::new(cluster, "shop")?;
    let writers = [Writer::new("cart", 10_000_000).with_pause(Duration::from_millis(10))];
    shop.create("apps/v1", "Deployment", "cart", &pod(&writers), serde_json::json!({ "replicas": 5 }))?;
    cluster.wait_rollout(shop.name(), "deployment/cart")?;
    let sink = cluster.node().path(RECORDS);
    let mut seconds = Vec::new();
    for _ in 0..session.choose(10, 2) {
        session.check()?;
        let before = agents.process(cluster.node())?;
        agents.delete_pod(cluster.node())?;
        wait_until("the end of the agent", PATIENCE, || Ok(has_ended(before).then_some(())))?;
        Files::new(&sink)?.wait_new(LABEL)?;
        let seen = uptime();
        seconds.push(seen - started(agents.process(cluster.node())?)?);
        agents.wait_rollout()?;
    }
    let what = "start of the agent in its Pod to the first record with labels in its file";
    session.report.add(Figure::of("kubernetes_start", what, "s", seconds)?.target(Target::AtMost(TARGET)));
    Ok(())
}

fn has_ended(pid: Pid) -> bool {
    !Path::new("/proc").join(pid.as_raw_nonzero().to_string()).exists()
}

/// Seconds since the machine has started.
fn uptime() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// When a process has started, in seconds since the machine has; in steps of 10 ms (`proc_pid_stat(5)`, field 22).
fn started(pid: Pid) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).context("reading a start time")?;
    let (_, after_name) = text.rsplit_once(") ").context("a process' name")?;
    let ticks: u64 = after_name.split(' ').nth(19).context("a start time")?.parse()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
