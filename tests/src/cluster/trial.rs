//! What the agent has to stand on a node: every kind of workload writes numbered lines while the agents are replaced and
//! killed, the container runtime is restarted and the API server is away. In the end every line is in Kafka, in the order
//! of its stream, with its Pod, its workload and its labels.

mod order;

use std::{fmt, fs, os::fd::AsFd, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use rdkafka::Offset;
use rustix::{
    process::{Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde_json::{Value, json};

use self::order::Streams;
use super::{
    Cluster, Component, DaemonSet, Node, PATIENCE,
    workload::{Namespace, Writer, pod},
};
use crate::{Testbed, kafka::Broker, maven, wait_until};

/// The topic of what containers write to their standard output.
const TOPIC: &str = "logs.pod";

/// The label that all Pods of a workload have, with the workload's name.
const LABEL: &str = "k8s.pod.label.app";

/// Time for all that happens beside the absence of the API server.
const REST: Duration = Duration::from_secs(60);

/// Pause of a writer after each line.
const PAUSE: Duration = Duration::from_millis(50);

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long the API server is away.
    pub outage: Duration,
}

/// What came of it. What was missing, torn, out of order or without its labels is an error instead.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Containers that wrote.
    pub streams: usize,
    /// Lines that they wrote.
    pub lines: u64,
    /// Records in Kafka.
    pub records: u64,
    /// Records that were there before, as their agent was killed.
    pub repeats: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { streams, lines, records, repeats } = self;
        writeln!(f, "containers that wrote               {streams}")?;
        writeln!(f, "lines written                       {lines}")?;
        writeln!(f, "records in Kafka, in order, with workload and labels  {records}")?;
        writeln!(f, "  of these more than once           {repeats}")
    }
}

/// A workload, and the attribute of its records that names it.
struct Workload {
    app: &'static str,
    attribute: Option<&'static str>,
    writers: Vec<Writer>,
}

/// Does all of it; `progress` is told of each step.
///
/// # Errors
/// Something does not start, or what was promised was not kept.
pub fn run(cluster: &Cluster, plan: Plan, progress: &(dyn Fn(&str) + Sync)) -> Result<Report> {
    // No registry is reached from the node's network.
    maven::kafka()?;
    in_network(cluster.node(), || {
        let bed = Testbed::new()?;
        progress("a Kafka broker on the node");
        let broker = Broker::start(&bed)?;
        broker.create_topic_with(TOPIC, "retention.ms", "-1")?;
        let mut report = None;
        DaemonSet::with(cluster, |agents| {
            progress("the agent delivers to Kafka");
            agents.configure(&config(&broker), &json!({ "hostNetwork": true }))?;
            report = Some(under_way(cluster, agents, &broker, plan, progress)?);
            Ok(())
        })?;
        report.context("a report")
    })
}

/// Runs `work` on a thread that has the network of a node, as has all that it starts.
fn in_network<T: Send>(node: &Node, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = format!("/proc/{}/ns/net", node.namespaces()?);
    let network = fs::File::open(&path).with_context(|| format!("opening {path}"))?;
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .context("entering the network of the node")?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn config(broker: &Broker<'_>) -> Value {
    json!({
        "identity": { "host_root": "/host" },
        "server": { "include": [] },
        "sinks": [{ "type": "kafka", "brokers": [broker.address()] }],
        "telemetry": { "listen": "0.0.0.0:9464" },
    })
}

fn under_way(
    cluster: &Cluster,
    agents: &DaemonSet<'_>,
    broker: &Broker<'_>,
    plan: Plan,
    progress: &(dyn Fn(&str) + Sync),
) -> Result<Report> {
    let node = cluster.node();
    let shop = Namespace::new(cluster, "shop")?;
    progress("a Deployment, a StatefulSet, a CronJob, a Pod in the node's network, one with an init container");
    let mut workloads = create(&shop, plan)?;
    for workload in &workloads {
        wait_running(cluster, &shop, workload.app)?;
    }
    let jobs = |moment: &str| shop.run_cron_job("nightly", &format!("nightly-{moment}"));
    jobs("first")?;
    progress("the DaemonSet is rolled");
    agents.roll()?;
    jobs("rolled")?;
    progress("the agent is killed");
    agents.kill(node)?;
    jobs("killed")?;
    progress("containerd is restarted");
    node.restart(Component::Containerd, Signal::KILL)?;
    node.wait_containerd()?;
    cluster.wait_ready()?;
    jobs("restarted")?;
    // Nobody can know the CronJob of a Pod that is made in the API server's last moment.
    let job = ["--namespace", shop.name(), "job/nightly-restarted"];
    cluster.wait_for(&job, |job| job["status"]["succeeded"] == 1)?;
    progress(&format!("{} s without the API server; the agent is killed meanwhile", plan.outage.as_secs()));
    node.process(Component::ApiServer).stop(Signal::KILL)?;
    thread::sleep(plan.outage / 2);
    kill_unseen(node)?;
    thread::sleep(plan.outage / 2);
    node.start(Component::ApiServer)?;
    cluster.wait_api_server()?;
    cluster.wait_ready()?;
    agents.wait_rollout()?;
    jobs("back")?;

    progress("what is left arrives");
    cluster.kubectl(&[
        "--namespace",
        shop.name(),
        "patch",
        "cronjob/nightly",
        "--patch",
        r#"{"spec":{"suspend":true}}"#,
    ])?;
    workloads.push(Workload { app: "nightly", attribute: Some("k8s.cronjob.name"), writers: vec![moment()] });
    let mut streams = Streams::default();
    let expect = |streams: &mut Streams| -> Result<()> {
        for workload in &workloads {
            let pods = wait_running(cluster, &shop, workload.app)?;
            for writer in &workload.writers {
                for pod in &pods {
                    streams.expect(pod, writer, workload)?;
                }
            }
        }
        Ok(())
    };
    expect(&mut streams)?;
    let follower = broker.follow(TOPIC, Offset::Beginning)?;
    let limit = PATIENCE + plan.outage;
    let complete = wait_until("every line in Kafka", limit, || {
        while let Some(message) = follower.next(Duration::from_millis(200))? {
            // What makes the CronJob's Jobs may hear later than we that it is suspended.
            let record = order::record(&message)?;
            if streams.is_new(&record, shop.name()) {
                expect(&mut streams)?;
            }
            streams.take(&record, shop.name())?;
        }
        Ok(streams.is_complete().then_some(()))
    });
    complete.with_context(|| streams.missing())?;
    agents.ensure_consistent()?;
    Ok(streams.report())
}

/// What a Job of a moment does.
fn moment() -> Writer {
    Writer::new("nightly", 50).that_ends()
}

/// Makes the workloads; all but the CronJob's write until everything is over.
fn create(shop: &Namespace<'_>, plan: Plan) -> Result<Vec<Workload>> {
    let lines = (plan.outage + REST).as_millis().div_ceil(PAUSE.as_millis());
    let lines = u64::try_from(lines)?;
    let writer = |name: &str| Writer::new(name, lines).with_pause(PAUSE);
    let workload = |app, attribute, writers| Workload { app, attribute, writers };

    let cart = vec![writer("cart"), writer("cache")];
    shop.create("apps/v1", "Deployment", "cart", &pod(&cart), json!({ "replicas": 2 }))?;
    let store = vec![writer("store")];
    let more = json!({ "replicas": 2, "serviceName": "store" });
    shop.create("apps/v1", "StatefulSet", "store", &pod(&store), more)?;
    let mut host = pod(&[writer("host")]);
    host["hostNetwork"] = json!(true);
    shop.create_pod("host", &host)?;
    let mut staged = pod(&[writer("main")]);
    let prepare = Writer::new("prepare", 30).that_ends();
    staged["initContainers"] = json!([prepare.container()]);
    shop.create_pod("staged", &staged)?;

    shop.create_cron_job("nightly", "* * * * *", &pod(&[moment()]))?;
    Ok(vec![
        workload("cart", Some("k8s.deployment.name"), cart),
        workload("store", Some("k8s.statefulset.name"), store),
        workload("host", None, vec![writer("host")]),
        workload("staged", None, vec![prepare, writer("main")]),
    ])
}

/// The Pods of an application, once none of them is to be started any more.
fn wait_running(cluster: &Cluster, shop: &Namespace<'_>, app: &str) -> Result<Vec<Value>> {
    let selector = format!("--selector=app={app}");
    let started = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Running" | "Succeeded"));
    let list = cluster.wait_for(&["--namespace", shop.name(), "pods", &selector], |list| {
        list["items"].as_array().is_some_and(|pods| !pods.is_empty() && pods.iter().all(started))
    })?;
    list["items"].as_array().cloned().context("a list of Pods")
}

/// Kills the agent on a node without asking anybody, and waits until the kubelet has started another one.
fn kill_unseen(node: &Node) -> Result<()> {
    let before = node.agent()?.context("no agent runs")?;
    kill_process(before, Signal::KILL).context("killing the agent")?;
    wait_until("another agent", PATIENCE, || Ok(node.agent()?.filter(|pid| *pid != before)))?;
    ensure!(node.agent()?.is_some(), "the agent has ended again");
    Ok(())
}
