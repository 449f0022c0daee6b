//! Many Pods on one node: more than it usually has at once, or a thousand that come and go. Each writes numbered lines; every
//! line has to come with the labels of its Pod, and the agent has to let go of what it held for Pods that are gone.

mod cut;
mod report;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use serde_json::{Value, json};

pub use self::report::{CutReport, Held, Life, Plan, Report};

use self::cut::Cut;
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
/// How often accounts are read: each is there for a minute after its container.
const NOTE: Duration = Duration::from_secs(5);

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
        let mut config =
            json!({ "identity": host, "server": { "include": [] }, "sinks": [sink], "telemetry": telemetry });
        if let Some(size) = plan.ring {
            config["capture"] = json!({ "ring_size": format!("{size}KiB") });
        }
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
    cut: Cut,
    tail: Tail,
    /// Those of Pods that are cut are looked at as they come, as they are many.
    records: Vec<Record>,
    /// How many have come.
    lines: u64,
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
        let (tail, expected, cut) = (Tail::default(), Expected::new(), Cut::default());
        Ok(Self {
            cluster,
            agents,
            agent,
            plan,
            progress,
            namespace,
            expected,
            cut,
            tail,
            records: Vec::new(),
            lines: 0,
        })
    }

    fn run(mut self) -> Result<Report> {
        let (before, start) = (self.held()?, Instant::now());
        (self.progress)(&format!("the agent: {before}"));
        let most = match self.plan.life {
            Life::Stays => self.stay()?,
            Life::Ends | Life::Cut => self.come_and_go()?,
        };
        let mut took = start.elapsed();
        match self.plan.life {
            Life::Cut => self.wait_cut()?,
            Life::Stays | Life::Ends => self.wait_records()?,
        }
        let highest = self.held()?;
        (self.progress)(&format!("every line has come; the agent: {highest}"));
        if self.plan.life == Life::Stays {
            self.cluster.kubectl(&["--namespace", NAMESPACE, "delete", "pods", "--all"])?;
            took = start.elapsed();
        }
        let after = if self.plan.let_go { Some(self.wait_let_go(&before)?) } else { None };
        let same = self.agents.process(self.cluster.node())? == self.agent;
        ensure!(same, "the agent was started anew in between");
        let cut = if self.plan.life == Life::Cut { Some(self.cut.report()?) } else { None };
        Ok(Report { pods: self.plan.pods, most, cut, lines: self.lines, took, before, highest, after })
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

    /// Makes so many at a time, and deletes each when its time has come. Returns how many were there at most.
    fn come_and_go(&mut self) -> Result<usize> {
        let (mut told, mut changed, mut noted) = (Instant::now(), Instant::now(), Instant::now());
        let (mut made, mut gone, mut most) = (0, 0, 0);
        while gone < self.plan.pods {
            let pods = self.list()?;
            most = most.max(pods.len());
            ensure!(changed.elapsed() < STANDSTILL, "{gone} Pods have ended, and no more: {}", self.why(&pods));
            if let Some(failed) = pods.iter().find(|pod| phase(pod) == "Failed" && is_wanted(pod)) {
                bail!("a Pod failed: {failed}");
            }
            let names = self.over(&pods)?;
            if !names.is_empty() {
                let delete = ["--namespace", NAMESPACE, "delete", "pods", "--wait=false"];
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                self.cluster.kubectl(&[&delete[..], &names].concat())?;
                changed = Instant::now();
            }
            gone += names.len();
            let room = self.plan.at_once.saturating_sub(made - gone);
            let more = room.min(self.plan.pods - made);
            self.make(made..made + more)?;
            made += more;
            self.take_records()?;
            if self.plan.life == Life::Cut && noted.elapsed() >= NOTE {
                self.cut.note(&self.agents.metrics(self.cluster.node())?);
                noted = Instant::now();
            }
            self.tell(&mut told, &format!("{gone} of {} Pods have come and gone", self.plan.pods))?;
        }
        Ok(most)
    }

    /// The names of the Pods that are to be deleted now. What they have written is expected.
    fn over(&mut self, pods: &[Value]) -> Result<Vec<String>> {
        if self.plan.life == Life::Cut {
            return self.cut.look(self.cluster.node(), pods);
        }
        let ended = || pods.iter().filter(|pod| phase(pod) == "Succeeded" && is_wanted(pod));
        ended().try_for_each(|pod| self.expect(pod))?;
        Ok(ended().filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect())
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
        let mut spec = pod(&[match self.plan.life {
            Life::Stays => writer(),
            Life::Ends => writer().that_ends(),
            Life::Cut => cut::writer(),
        }]);
        spec["restartPolicy"] = json!("Never");
        if self.plan.life == Life::Cut {
            spec["terminationGracePeriodSeconds"] = json!(number % 2);
        }
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

    /// Takes the records that have come.
    fn take_records(&mut self) -> Result<()> {
        let records = self.tail.poll(&self.cluster.node().path(RECORDS))?;
        self.lines += records.len() as u64;
        if self.plan.life == Life::Cut {
            return records.iter().try_for_each(|record| self.cut.take(record));
        }
        self.records.extend(records);
        Ok(())
    }

    /// Waits until all that is expected has come, once, and with the label of its Pod.
    fn wait_records(&mut self) -> Result<()> {
        let lines = self.plan.pods as u64 * LINES;
        let come = wait_until("every line", PATIENCE, || {
            self.take_records()?;
            Ok((self.lines >= lines).then_some(()))
        });
        self.expected.compare(&self.records)?;
        come?;
        let is_labelled = |record: &&Record| record.resource("k8s.pod.name") == named(record.resource(NUMBER));
        let without = self.records.iter().find(|record| !is_labelled(record));
        without.map_or(Ok(()), |record| bail!("a line without the labels of its Pod: {}", record.value))
    }

    /// Waits until all has come that the runtime's logs have of the Pods that were cut, and their accounts are even.
    fn wait_cut(&mut self) -> Result<()> {
        let node = self.cluster.node();
        wait_until("the end of every Pod", PATIENCE, || Ok(self.cut.are_gone(node)?.then_some(())))?;
        let mut problem = None;
        let come = wait_until("every line of the runtime's logs", PATIENCE, || {
            // First: what has been delivered meanwhile has a record.
            self.cut.note(&self.agents.metrics(node)?);
            self.take_records()?;
            problem = self.cut.check().err();
            Ok(problem.is_none().then_some(()))
        });
        come.map_err(|late| problem.map_or(late, |problem| problem.context("at the deadline")))
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

/// Whether nobody has deleted it yet.
fn is_wanted(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}
