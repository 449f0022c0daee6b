//! Many Pods on one node: more than it usually has at once, or a thousand that come and go. Each writes numbered lines; every
//! line has to come with the labels of its Pod, and the agent has to let go of what it held for Pods that are gone.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use serde_json::{Value, json};

use super::{
    Cluster, DaemonSet, PATIENCE,
    daemonset::RECORDS,
    workload::{Namespace, Writer, container_id, pod},
};
use crate::{
    Expected,
    kernel::Entries,
    process::memory,
    records::{Record, Tail},
    wait_until,
};

/// Their namespace.
const NAMESPACE: &str = "crowd";
/// The container of each.
const CONTAINER: &str = "app";
/// The attribute with the label that each has with its own number.
const NUMBER: &str = "k8s.pod.label.number";
/// Lines of each.
const LINES: u64 = 50;
/// For how long nothing may happen.
const STANDSTILL: Duration = Duration::from_secs(180);
/// The longest that the agent keeps a Pod that is deleted, and the time to notice.
const LINGER: Duration = Duration::from_secs(420);
/// How often it is told how far it is.
const TELL: Duration = Duration::from_secs(20);

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Pods in all.
    pub pods: usize,
    /// At most so many at the same time.
    pub at_once: usize,
    /// Their containers run on until all Pods have been there at the same time; else each ends by itself, and is deleted then.
    pub stay: bool,
}

/// What the agent held.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Resident memory, the highest so far, and what of it is anonymous, in bytes.
    resident: [u64; 3],
    /// Cgroups and standard streams in the kernel's maps.
    entries: Entries,
    /// Accounts in the ledger.
    accounts: f64,
    /// Pods, also those that linger.
    pods: f64,
}

/// What came of it. What was missing, twice or without its labels is an error instead.
#[derive(Debug)]
pub struct Report {
    pods: usize,
    /// The most Pods that ran at the same time.
    most: usize,
    lines: u64,
    /// From the first that was made to the last that was gone.
    took: Duration,
    before: Held,
    /// When all were there, or the last was gone.
    highest: Held,
    /// When the agent had let go of them.
    after: Held,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [resident, peak, anonymous] = self.resident.map(|bytes| bytes as f64 / f64::from(1 << 20));
        let Self { entries, accounts, pods, .. } = self;
        write!(f, "resident {resident:.1} MiB (highest {peak:.1}, anonymous {anonymous:.1}), {pods} Pods, ")?;
        write!(f, "{accounts} accounts, {} cgroups and {} streams in the kernel", entries.containers, entries.stdio)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pods, most, lines, took, before, highest, after } = self;
        let rate = *pods as f64 / took.as_secs_f64();
        writeln!(f, "Pods                            {pods} in {} s, {rate:.2} a second", took.as_secs())?;
        writeln!(f, "most at the same time           {most}")?;
        writeln!(f, "lines, each once, with labels   {lines}")?;
        writeln!(f, "the agent before                {before}")?;
        writeln!(f, "the agent with them             {highest}")?;
        writeln!(f, "the agent after                 {after}")
    }
}

/// Does all of it; `progress` is told of each step.
///
/// # Errors
/// A Pod does not come up, or what was promised was not kept.
pub fn run(cluster: &Cluster, plan: Plan, progress: &(dyn Fn(&str) + Sync)) -> Result<Report> {
    let mut report = None;
    DaemonSet::with(cluster, |agents| {
        // What is read here while it is written must not be compressed meanwhile.
        let sink = json!({ "type": "file", "path": RECORDS, "compression": "none" });
        let telemetry = json!({ "listen": "0.0.0.0:9464" });
        let host = json!({ "host_root": "/host" });
        let config = json!({ "identity": host, "server": { "include": [] }, "sinks": [sink], "telemetry": telemetry });
        agents.configure(&config, &json!({}))?;
        report = Some(Crowd::new(cluster, agents, plan, progress)?.run()?);
        Ok(())
    })?;
    report.context("a report")
}

/// A run that is under way.
struct Crowd<'a> {
    cluster: &'a Cluster,
    agents: &'a DaemonSet<'a>,
    /// Its process: the same one from the first to the last.
    agent: Pid,
    plan: Plan,
    progress: &'a (dyn Fn(&str) + Sync),
    namespace: Namespace<'a>,
    expected: Expected,
    tail: Tail,
    records: Vec<Record>,
}

impl<'a> Crowd<'a> {
    fn new(
        cluster: &'a Cluster,
        agents: &'a DaemonSet<'a>,
        plan: Plan,
        progress: &'a (dyn Fn(&str) + Sync),
    ) -> Result<Self> {
        let namespace = Namespace::new(cluster, NAMESPACE)?;
        let agent = agents.process(cluster.node())?;
        let (tail, expected) = (Tail::default(), Expected::new());
        Ok(Self { cluster, agents, agent, plan, progress, namespace, expected, tail, records: Vec::new() })
    }

    fn run(mut self) -> Result<Report> {
        let (before, start) = (self.held()?, Instant::now());
        (self.progress)(&format!("the agent: {before}"));
        let most = if self.plan.stay { self.stay()? } else { self.come_and_go()? };
        let mut took = start.elapsed();
        self.wait_records()?;
        let highest = self.held()?;
        (self.progress)(&format!("every line has come; the agent: {highest}"));
        if self.plan.stay {
            self.cluster.kubectl(&["--namespace", NAMESPACE, "delete", "pods", "--all"])?;
            took = start.elapsed();
        }
        let after = self.wait_let_go(&before)?;
        let same = self.agents.process(self.cluster.node())? == self.agent;
        ensure!(same, "the agent was started anew in between");
        Ok(Report { pods: self.plan.pods, most, lines: self.lines(), took, before, highest, after })
    }

    fn lines(&self) -> u64 {
        self.plan.pods as u64 * LINES
    }

    /// Makes all of them and waits until they run.
    fn stay(&mut self) -> Result<usize> {
        let mut told = Instant::now();
        let (mut made, mut changed, mut before) = (0, Instant::now(), 0);
        loop {
            // No more than a few at a time wait for the kubelet, as when a scheduler binds them.
            let pods = self.list()?;
            let running = pods.iter().filter(|pod| phase(pod) == "Running").count();
            if running == self.plan.pods {
                pods.iter().try_for_each(|pod| self.expect(pod))?;
                return Ok(running);
            }
            let more = (self.plan.pods - made).min((running + self.plan.at_once).saturating_sub(made));
            self.make(made..made + more)?;
            made += more;
            changed = if running == before { changed } else { Instant::now() };
            ensure!(changed.elapsed() < STANDSTILL, "{running} of {made} Pods run, and no more: {}", self.why(&pods));
            before = running;
            self.tell(&mut told, &format!("{running} Pods run"))?;
        }
    }

    /// Makes so many at a time, and deletes each when it has ended. Returns how many were there at most.
    fn come_and_go(&mut self) -> Result<usize> {
        let (mut told, mut changed) = (Instant::now(), Instant::now());
        let (mut made, mut gone, mut most) = (0, 0, 0);
        while gone < self.plan.pods {
            let pods = self.list()?;
            most = most.max(pods.len());
            ensure!(changed.elapsed() < STANDSTILL, "{gone} Pods have ended, and no more: {}", self.why(&pods));
            if let Some(failed) = pods.iter().find(|pod| phase(pod) == "Failed") {
                bail!("a Pod failed: {failed}");
            }
            let ended: Vec<_> = pods.iter().filter(|pod| phase(pod) == "Succeeded").collect();
            ended.iter().try_for_each(|pod| self.expect(pod))?;
            let names: Vec<_> = ended.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
            if !names.is_empty() {
                let delete = ["--namespace", NAMESPACE, "delete", "pods", "--wait=false"];
                self.cluster.kubectl(&[&delete[..], &names].concat())?;
                changed = Instant::now();
            }
            gone += names.len();
            let room = self.plan.at_once.saturating_sub(made - gone);
            let more = room.min(self.plan.pods - made);
            self.make(made..made + more)?;
            made += more;
            self.records.extend(self.tail.poll(&self.cluster.node().path(RECORDS))?);
            self.tell(&mut told, &format!("{gone} of {} Pods have come and gone", self.plan.pods))?;
        }
        Ok(most)
    }

    fn make(&self, numbers: std::ops::Range<usize>) -> Result<()> {
        if numbers.is_empty() {
            return Ok(());
        }
        let items: Vec<Value> = numbers.map(|number| self.pod(number)).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
        self.cluster.kubectl_with_input(&["create", "--filename=-"], &list).map(drop)
    }

    fn pod(&self, number: usize) -> Value {
        let writer = writer();
        let mut spec = pod(&[if self.plan.stay { writer } else { writer.that_ends() }]);
        spec["restartPolicy"] = json!("Never");
        let labels = json!({ "app": NAMESPACE, "number": number.to_string() });
        let metadata = json!({ "name": name(number), "namespace": self.namespace.name(), "labels": labels });
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
    }

    fn list(&self) -> Result<Vec<Value>> {
        let list = self.cluster.get(&["--namespace", NAMESPACE, "pods"])?;
        list["items"].as_array().cloned().context("a list of Pods")
    }

    /// What this Pod has written is to be delivered.
    fn expect(&mut self, pod: &Value) -> Result<()> {
        let id = container_id(pod, CONTAINER).context("a container's id")?;
        let name = pod["metadata"]["name"].as_str().context("a Pod's name")?;
        self.expected.pod_stdout(id, [CONTAINER, name, NAMESPACE], &writer().bytes());
        Ok(())
    }

    /// Waits until all that is expected has come, once, and with the label of its Pod.
    fn wait_records(&mut self) -> Result<()> {
        let lines = usize::try_from(self.lines())?;
        let directory = self.cluster.node().path(RECORDS);
        let (tail, records) = (&mut self.tail, &mut self.records);
        let come = wait_until("every line", PATIENCE, || {
            records.extend(tail.poll(&directory)?);
            Ok((records.len() >= lines).then_some(()))
        });
        self.expected.compare(&self.records)?;
        come?;
        let is_labelled = |record: &&Record| record.resource("k8s.pod.name") == named(record.resource(NUMBER));
        let without = self.records.iter().find(|record| !is_labelled(record));
        without.map_or(Ok(()), |record| bail!("a line without the labels of its Pod: {}", record.value))
    }

    /// Waits until the agent holds no more than before.
    fn wait_let_go(&self, before: &Held) -> Result<Held> {
        (self.progress)("all are gone; what is held for Pods that are deleted is let go after five minutes");
        let mut last = None;
        let (mut told, mut next) = (Instant::now(), Instant::now());
        let result = wait_until("the end of what the agent holds for Pods that are gone", LINGER, || {
            if Instant::now() < next {
                return Ok(None);
            }
            // Each look starts programs.
            next = Instant::now() + Duration::from_secs(5);
            let held = *last.insert(self.held()?);
            self.tell(&mut told, "waiting")?;
            let is_free = held.pods <= before.pods
                && held.accounts <= before.accounts
                && held.entries.containers <= before.entries.containers
                && held.entries.stdio <= before.entries.stdio;
            Ok(is_free.then_some(held))
        });
        result.with_context(|| last.map_or_else(String::new, |held| format!("the agent: {held}")))
    }

    fn tell(&self, told: &mut Instant, what: &str) -> Result<()> {
        if told.elapsed() >= TELL {
            *told = Instant::now();
            (self.progress)(&format!("{what}; the agent: {}", self.held()?));
        }
        Ok(())
    }

    fn held(&self) -> Result<Held> {
        let metrics = self.agents.metrics(self.cluster.node())?;
        Ok(Held {
            resident: [memory(self.agent, "VmRSS")?, memory(self.agent, "VmHWM")?, memory(self.agent, "RssAnon")?],
            entries: Entries::of_process(self.agent)?,
            accounts: metrics.sum("sidestep_log_containers"),
            pods: metrics.sum("sidestep_kubernetes_pods"),
        })
    }

    /// What the first Pod that does not run waits for, by the events of the namespace.
    fn why(&self, pods: &[Value]) -> String {
        let waits = pods.iter().find(|pod| !matches!(phase(pod), "Running" | "Succeeded"));
        let name = waits.and_then(|pod| pod["metadata"]["name"].as_str()).unwrap_or_default();
        self.cluster.kubectl(&["--namespace", NAMESPACE, "describe", "pod", name]).unwrap_or_default()
    }
}

fn writer() -> Writer {
    Writer::new(CONTAINER, LINES)
}

fn name(number: usize) -> String {
    named(&number.to_string())
}

fn named(number: &str) -> String {
    format!("crowd-{number}")
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}
