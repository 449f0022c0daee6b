//! What the agent asks the API server for while nothing happens on its node, by the API server's own audit log.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;
use sidestep_tests::cluster::{
    Cluster, DaemonSet,
    daemonset::NAMESPACE,
    workload::{Namespace, Writer, pod},
};

use crate::{
    report::{Figure, Target},
    session::Session,
};

/// An hour, beside the watches.
const TARGET: f64 = 20.0;

/// What the agent does when it starts is no part of an idle hour.
const SETTLE: Duration = Duration::from_secs(30);

pub(super) fn run(session: &mut Session, cluster: &Cluster, agents: &DaemonSet<'_>) -> Result<()> {
    let time = session.choose(Duration::from_secs(30 * 60), Duration::from_secs(60));
    session.step(&format!("requests: {} minutes in which nothing happens", time.as_secs() / 60));
    let shop = Namespace::new(cluster, "shop")?;
    let writers = [Writer::new("cart", 10_000_000).with_pause(Duration::from_millis(100))];
    shop.create("apps/v1", "Deployment", "cart", &pod(&writers), serde_json::json!({ "replicas": 10 }))?;
    cluster.wait_rollout(shop.name(), "deployment/cart")?;
    agents.wait_rollout()?;
    wait(session, SETTLE)?;
    let before = requests(cluster)?;
    wait(session, time)?;
    let mut counts = requests(cluster)?;
    for (request, count) in before {
        if let Some(after) = counts.get_mut(&request) {
            *after -= count;
        }
    }
    let an_hour = 3600.0 / time.as_secs_f64();
    let sum = |watches: bool| {
        let meant = counts.iter().filter(|((verb, _), _)| (verb == "watch") == watches);
        meant.map(|(_, count)| *count).sum::<usize>() as f64 * an_hour
    };
    let others = Figure::of("kubernetes_requests", "requests an hour beside the watches", "", vec![sum(false)])?;
    session.report.add(others.target(Target::AtMost(TARGET)));
    session.report.add(Figure::of(
        "kubernetes_watches",
        "  watches an hour that are begun again",
        "",
        vec![sum(true)],
    )?);
    for ((verb, resource), count) in counts.iter().filter(|(_, count)| **count > 0) {
        session.report.note(format!("requests: {verb} {resource}: {count} in {} minutes", time.as_secs() / 60));
    }
    Ok(())
}

fn wait(session: &Session, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        session.check()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The agents' requests so far, by verb and resource.
fn requests(cluster: &Cluster) -> Result<BTreeMap<(String, String), usize>> {
    let path = cluster.audit_log();
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).context("a line of the audit log")?;
        let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let user = name(&event["user"]["username"]);
        if user.starts_with(&format!("system:serviceaccount:{NAMESPACE}:")) {
            let resource = [&event["objectRef"]["resource"], &event["requestURI"]].into_iter().map(name);
            let resource = resource.filter(|text| !text.is_empty()).take(1).collect();
            *counts.entry((name(&event["verb"]), resource)).or_default() += 1;
        }
    }
    Ok(counts)
}
