//! From the request for a policy to the first record that shows it in force.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use sidestep_tests::cluster::{
    Cluster,
    daemonset::RECORDS,
    workload::{Namespace, Writer, pod},
};

use super::files::Files;
use crate::{
    report::{Figure, Target},
    session::Session,
    statistics::quantile,
};

/// In milliseconds.
const TARGET: f64 = 500.0;

pub(super) fn run(session: &mut Session, cluster: &Cluster) -> Result<()> {
    session.step("policy: one is created, and the first record of another class is waited for");
    let shop = Namespace::new(cluster, "shop")?;
    let writers = [Writer::new("cart", 10_000_000).with_pause(std::time::Duration::from_millis(2))];
    shop.create("apps/v1", "Deployment", "cart", &pod(&writers), json!({}))?;
    cluster.wait_rollout(shop.name(), "deployment/cart")?;
    let policy = json!({
        "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
        "metadata": { "name": "bench", "namespace": shop.name() },
        "spec": { "selector": { "matchLabels": { "app": "cart" } }, "logs": { "class": "business" } },
    })
    .to_string();
    let sink = cluster.node().path(RECORDS);
    let mut created = Vec::new();
    for _ in 0..session.choose(100, 5) {
        session.check()?;
        let mut files = Files::new(&sink)?;
        let start = Instant::now();
        cluster.kubectl_with_input(&["create", "--filename=-"], &policy)?;
        files.wait_new("\"class\":\"business\"")?;
        created.push(start.elapsed().as_secs_f64() * 1e3);
        cluster.delete(&policy)?;
        files.wait_new("\"class\":\"pod\"")?;
    }
    let what = "start of `kubectl create` of a policy to the first record under it, in its file";
    session.report.add(Figure::of("kubernetes_policy", what, "ms", created.clone())?);
    created.sort_unstable_by(f64::total_cmp);
    let p99 = quantile(&created, 0.99).unwrap_or(f64::NAN);
    let figure = Figure::of("kubernetes_policy_p99", "  the 99th percentile", "ms", vec![p99])?;
    session.report.add(figure.target(Target::AtMost(TARGET)));
    Ok(())
}
