//! Resident memory with as many Pods as the kubelet takes by default.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use sidestep_tests::cluster::{
    Cluster, DaemonSet,
    workload::{Namespace, Writer, pod},
};

use crate::{
    process::memory_bytes,
    report::{Figure, Target},
    session::Session,
};

/// In MiB.
const TARGET: f64 = 80.0;

const MIB: f64 = (1 << 20) as f64;

/// The kubelet's `maxPods`, by default; the agent's own is one of them.
const PODS: usize = 110;

const LABELS: usize = 20;

pub(super) fn run(session: &mut Session, cluster: &Cluster, agents: &DaemonSet<'_>) -> Result<()> {
    let count = session.choose(PODS - 1, 20);
    session.step(&format!("memory: {count} Pods beside the agent's, with {LABELS} labels each and a line a second"));
    let shop = Namespace::new(cluster, "shop")?;
    let items: Vec<Value> = (0..count).map(|number| writing(&shop, number)).collect();
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    let pods = ["--namespace", shop.name(), "pods"];
    let is_running = |pod: &Value| pod["status"]["phase"] == "Running";
    cluster.wait_for(&pods, |list| list["items"].as_array().is_some_and(|pods| pods.iter().all(is_running)))?;
    let end = Instant::now() + session.choose(Duration::from_secs(60), Duration::from_secs(5));
    while Instant::now() < end {
        session.check()?;
        thread::sleep(Duration::from_millis(100));
    }
    let agent = agents.process(cluster.node())?;
    for (name, key, what) in [
        ("kubernetes_memory", "VmRSS", format!("resident memory with {} Pods of {LABELS} labels", count + 1)),
        ("kubernetes_memory_anonymous", "RssAnon", "  of this anonymous".to_owned()),
        ("kubernetes_memory_file", "RssFile", "  of this files (program, libraries)".to_owned()),
        ("kubernetes_memory_shared", "RssShmem", "  of this shared (the ring)".to_owned()),
        ("kubernetes_memory_peak", "VmHWM", "  highest so far".to_owned()),
    ] {
        let figure = Figure::of(name, &what, "MiB", vec![memory_bytes(agent, key)? as f64 / MIB])?;
        session.report.add(if key == "VmRSS" { figure.target(Target::AtMost(TARGET)) } else { figure });
    }
    // What is held is worth its memory only if it is in the records.
    let silent = count - labelled(agents, cluster).context("reading the records")?;
    if silent > 0 {
        session.report.note(format!("memory: {silent} of {count} Pods have no record with all of their labels"));
    }
    Ok(())
}

/// A Pod with labels as people give them, each with a value of its own.
fn writing(namespace: &Namespace<'_>, number: usize) -> Value {
    let labels: Map<String, Value> = (0..LABELS)
        .map(|label| (format!("example.com/label-{label}"), json!(format!("value-{label}-{number}"))))
        .collect();
    let writer = Writer::new("app", 1_000_000).with_pause(Duration::from_secs(1));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("app-{number}"), "namespace": namespace.name(), "labels": labels },
        "spec": pod(&[writer]),
    })
}

/// How many Pods have a record with all of their labels.
fn labelled(agents: &DaemonSet<'_>, cluster: &Cluster) -> Result<usize> {
    let records = agents.records(cluster.node())?;
    let has_all = |resource: &Value| {
        (0..LABELS).all(|label| resource[format!("k8s.pod.label.example.com/label-{label}").as_str()].is_string())
    };
    let mut pods: Vec<String> = records
        .iter()
        .filter(|record| has_all(&record.value["resource"]))
        .map(|record| record.resource("k8s.pod.uid").to_owned())
        .collect();
    pods.sort_unstable();
    pods.dedup();
    Ok(pods.len())
}
