//! The agent on the nodes, from the manifests that users get.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Cluster, Node, PATIENCE};
use crate::{
    Expected,
    kernel::Objects,
    ledger::{Ledger, Metrics},
    records,
    records::Record,
    wait_until,
};

/// What `kubectl apply -k deploy/kustomize/base` applies, and the chart renders.
const MANIFEST: &str = concat!(
    include_str!("../../../deploy/kustomize/base/namespace.yaml"),
    include_str!("../../../deploy/kustomize/base/sidestep.yaml"),
);

/// What takes away what the agent leaves.
const UNINSTALL: &str = include_str!("../../../deploy/kustomize/uninstall/uninstall.yaml");

/// The namespace of the agents.
pub const NAMESPACE: &str = "sidestep";
const WORKLOAD: &str = "daemonset/sidestep";

/// Where the manifest's file sink writes to on a node.
pub const RECORDS: &str = "/var/lib/sidestep/logs";

/// A DaemonSet of agents. Dropping it removes it with all that it left on the nodes.
#[derive(Debug)]
pub struct DaemonSet<'a> {
    cluster: &'a Cluster,
    /// What the first agents had in the kernel.
    first: Objects,
}

impl<'a> DaemonSet<'a> {
    /// Applies the manifest, with the cgroups that this cluster's Pods are below, and waits until the agents are ready.
    ///
    /// # Errors
    /// The API server refuses, or an agent does not become ready.
    pub fn install(cluster: &'a Cluster) -> Result<Self> {
        let mut daemonset = Self { cluster, first: Objects::default() };
        daemonset.apply()?;
        daemonset.wait_rollout()?;
        daemonset.first = daemonset.objects()?;
        Ok(daemonset)
    }

    /// Installs it, runs `test` with it, and takes it away as a user would. What the agents said is in the error.
    ///
    /// # Errors
    /// As [`DaemonSet::install`], those of `test`, and what is left afterwards.
    pub fn with(cluster: &'a Cluster, test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let daemonset = Self::install(cluster)?;
        test(&daemonset).with_context(|| daemonset.logs())?;
        daemonset.uninstall()
    }

    fn apply(&self) -> Result<()> {
        self.cluster.apply(&manifest(self.cluster.nodes())?).map(drop)
    }

    /// Gives the agents another configuration, whole but for the cgroups of each node, and their Pods' specification what
    /// is merged into it; waits until they are replaced.
    ///
    /// # Errors
    /// The API server refuses, or an agent does not become ready.
    pub fn configure(&self, config: &Value, pod: &Value) -> Result<()> {
        let run = ["--namespace", NAMESPACE, "patch", "--type=merge"];
        let mut data = json!({ "data": {} });
        for node in self.cluster.nodes() {
            let mut config = config.clone();
            config["capture"]["cgroup_roots"] = json!([node.pods_cgroup()]);
            // JSON is YAML.
            data["data"][format!("{}.yaml", node.name())] = json!(config.to_string());
        }
        let data = data.to_string();
        self.cluster.kubectl(&[&run[..], &["configmap/sidestep", "--patch", &data]].concat())?;
        let template = json!({ "metadata": { "annotations": { "configured": data } }, "spec": pod });
        let spec = json!({ "spec": { "template": template } }).to_string();
        self.cluster.kubectl(&[&run[..], &[WORKLOAD, "--patch", &spec]].concat())?;
        self.wait_rollout()
    }

    /// Puts the agents into the network of their node, as `hostNetwork: true` in the chart's values does.
    ///
    /// # Errors
    /// The API server refuses, or an agent does not become ready.
    pub fn join_node_network(&self) -> Result<()> {
        let pod = json!({ "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet" });
        let patch = json!({ "spec": { "template": { "spec": pod } } }).to_string();
        self.cluster.kubectl(&["--namespace", NAMESPACE, "patch", "--type=merge", WORKLOAD, "--patch", &patch])?;
        self.wait_rollout()
    }

    /// Replaces the agents as an upgrade does, and waits until that is done.
    ///
    /// # Errors
    /// Not in time.
    pub fn roll(&self) -> Result<()> {
        self.cluster.kubectl(&["--namespace", NAMESPACE, "rollout", "restart", WORKLOAD])?;
        self.wait_rollout()
    }

    /// Waits until every agent is ready.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_rollout(&self) -> Result<()> {
        self.cluster.wait_rollout(NAMESPACE, WORKLOAD)
    }

    /// The agent's container that runs on a node.
    ///
    /// # Errors
    /// There is none.
    fn container(&self, node: &Node) -> Result<Option<String>> {
        let on = format!("--field-selector=spec.nodeName={}", node.name());
        let pods = ["--namespace", NAMESPACE, "pods", "--selector=app.kubernetes.io/name=sidestep", &on];
        let list = self.cluster.get(&pods)?;
        let running = |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            let id = status["containerID"].as_str()?.strip_prefix("containerd://")?;
            (status["state"]["running"].is_object() && pod["metadata"]["deletionTimestamp"].is_null())
                .then(|| id.to_owned())
        };
        Ok(list["items"].as_array().context("a list of Pods")?.iter().find_map(running))
    }

    /// The process of the agent on a node.
    ///
    /// # Errors
    /// None runs.
    pub fn process(&self, node: &Node) -> Result<Pid> {
        let id = wait_until("the agent's container", PATIENCE, || self.container(node))?;
        let is_agent =
            |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sidestep");
        let mut processes = node.processes_of(|cgroup| cgroup.contains(&id))?.into_iter();
        processes.find(is_agent).with_context(|| format!("container {id} has no process `sidestep`"))
    }

    /// Kills the agent on a node, as the kernel would; the kubelet starts it again. Waits until another one is ready.
    ///
    /// # Errors
    /// It has ended by itself, or does not come back.
    pub fn kill(&self, node: &Node) -> Result<()> {
        let before = self.process(node)?;
        let id = self.container(node)?;
        kill_process(before, Signal::KILL).context("killing the agent")?;
        wait_until("another agent", PATIENCE, || Ok(self.container(node)?.filter(|now| Some(now) != id.as_ref())))?;
        self.wait_rollout()
    }

    /// Deletes the agent's Pod on a node, for which another one comes; waits for neither.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn delete_pod(&self, node: &Node) -> Result<()> {
        let on = format!("--field-selector=spec.nodeName={}", node.name());
        let pods = ["--namespace", NAMESPACE, "delete", "pods", "--selector=app.kubernetes.io/name=sidestep", &on];
        self.cluster.kubectl(&[&pods[..], &["--wait=false"]].concat()).map(drop)
    }

    /// All that the agent on a node has delivered.
    ///
    /// # Errors
    /// A file can't be read or has a line that is no record.
    pub fn records(&self, node: &Node) -> Result<Vec<Record>> {
        records::read(&node.path(RECORDS))
    }

    /// Waits until exactly what is expected has been delivered on the nodes.
    ///
    /// # Errors
    /// Something is missing, different or too much at the deadline.
    pub fn wait_delivered(&self, expected: &Expected) -> Result<()> {
        let directories: Vec<PathBuf> = self.cluster.nodes().iter().map(|node| node.path(RECORDS)).collect();
        let directories: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
        expected.wait_in(&directories, PATIENCE)
    }

    /// Waits until the account of a container on a node is as it should be.
    ///
    /// # Errors
    /// Not in time; with how it stands.
    pub fn wait_ledger(&self, node: &Node, container: &str, is_so: impl Fn(&Ledger) -> bool) -> Result<()> {
        let mut last = Ledger::default();
        let come = wait_until(&format!("the ledger of {container}"), PATIENCE, || {
            last = self.metrics(node)?.ledger(container);
            Ok(is_so(&last).then_some(()))
        });
        come.with_context(|| format!("it stands at {last:?}"))
    }

    /// Runs the agent's program on a node, in its container, and returns its output.
    ///
    /// # Errors
    /// It fails.
    pub fn exec(&self, arguments: &[&str]) -> Result<String> {
        let run = ["--namespace", NAMESPACE, "exec", WORKLOAD, "--", "sidestep"];
        self.cluster.kubectl(&[&run[..], arguments].concat())
    }

    /// The metrics of the agent on a node, by way of the API server.
    ///
    /// # Errors
    /// None runs, or it does not answer.
    pub fn metrics(&self, node: &Node) -> Result<Metrics> {
        let on = format!("--field-selector=spec.nodeName={},status.phase=Running", node.name());
        let pods = ["--namespace", NAMESPACE, "pods", "--selector=app.kubernetes.io/name=sidestep", &on];
        let list = self.cluster.get(&pods)?;
        let pods = list["items"].as_array().context("a list of Pods")?;
        let mut left = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let pod = left.find_map(|pod| pod["metadata"]["name"].as_str()).context("no agent runs")?;
        let path = format!("--raw=/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9464/proxy/metrics");
        Metrics::parse(&self.cluster.kubectl(&["get", &path])?)
    }

    /// Waits until an agent has logged a line with all of `parts`.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_logged(&self, parts: &[&str]) -> Result<()> {
        let logs = ["--namespace", NAMESPACE, "logs", "--selector=app.kubernetes.io/name=sidestep", "--tail=-1"];
        wait_until(&format!("a line of an agent with {parts:?}"), PATIENCE, || {
            // A container that has just been replaced has no log for a moment.
            let text = self.cluster.kubectl(&logs).unwrap_or_default();
            let is_it = |line: &str| parts.iter().all(|part| line.contains(part));
            Ok(text.lines().any(is_it).then_some(()))
        })
    }

    /// What the agents have in the kernel.
    fn objects(&self) -> Result<Objects> {
        let mut objects = Objects::default();
        for node in self.cluster.nodes() {
            objects.extend(Objects::of(self.process(node)?)?);
        }
        Ok(objects)
    }

    /// Takes the agents away by the manifest for it, and checks that nothing is left on the nodes and in the kernel.
    ///
    /// # Errors
    /// Something is left.
    pub fn uninstall(&self) -> Result<()> {
        let mut objects = self.first.clone();
        objects.extend(self.objects()?);
        self.cluster.kubectl(&["--namespace", NAMESPACE, "delete", "--wait", WORKLOAD])?;
        self.wait_gone()?;
        self.cluster.apply(UNINSTALL)?;
        let job = ["--namespace", NAMESPACE, "job", "sidestep-uninstall"];
        self.cluster.wait_for(&job, |job| job["status"]["succeeded"] == 1)?;
        for node in self.cluster.nodes() {
            let left = node.command("find")?.args(["/sys/fs/bpf/sidestep", "/run/sidestep/sidestep.sock"]).output()?;
            ensure!(left.stdout.is_empty(), "left on {}: {}", node.name(), String::from_utf8_lossy(&left.stdout));
        }
        objects.wait_gone()
    }

    /// Waits until no agent runs.
    fn wait_gone(&self) -> Result<()> {
        let pods = ["--namespace", NAMESPACE, "pods", "--selector=app.kubernetes.io/name=sidestep"];
        self.cluster.wait_for(&pods, |list| list["items"].as_array().is_some_and(Vec::is_empty)).map(drop)
    }

    /// Whether the agents have found all as the agents before have left it.
    ///
    /// # Errors
    /// One says that it has not.
    pub fn ensure_consistent(&self) -> Result<()> {
        let logs = self.logs();
        let complaint = logs.lines().find(|line| line.contains("journal_implausible"));
        complaint.map_or(Ok(()), |line| bail!("an agent says: {line}"))
    }

    /// The last words of the agents, also of those before.
    fn logs(&self) -> String {
        let logs = ["--namespace", NAMESPACE, "logs", "--selector=app.kubernetes.io/name=sidestep", "--tail=40"];
        let [now, before] = [&[][..], &["--previous"]].map(|more| self.cluster.kubectl(&[&logs[..], more].concat()));
        format!("agents:\n{}\nbefore:\n{}", now.unwrap_or_default(), before.unwrap_or_default())
    }

    /// Removes everything, whatever state it is in.
    fn remove(&self) -> Result<()> {
        self.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait"])?;
        self.cluster.kubectl(&["delete", "clusterrole,clusterrolebinding", "sidestep", "--ignore-not-found"])?;
        for node in self.cluster.nodes() {
            let paths = ["/sys/fs/bpf/sidestep", "/var/lib/sidestep", "/run/sidestep"];
            let output = node.command("rm")?.arg("-rf").args(paths).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// The manifest, changed in one thing: the cgroups of a node here are not those of a whole machine. As all nodes are on
/// this one, each agent has a configuration that names its node's.
fn manifest(nodes: &[Node]) -> Result<String> {
    let parts = MANIFEST.split_once("  sidestep.yaml: |\n");
    let (before, rest) = parts.context("the manifest has no sidestep.yaml")?;
    let (config, after) = rest.split_once("---\n").context("the manifest ends with its configuration")?;
    let mut text = before.to_owned();
    let first = nodes.first().map(|node| ("sidestep".to_owned(), node));
    for (name, node) in first.into_iter().chain(nodes.iter().map(|node| (node.name(), node))) {
        text += &format!("  {name}.yaml: |\n    capture:\n      cgroup_roots: [{}]\n{config}", node.pods_cgroup());
    }
    ensure!(after.contains("/sidestep.yaml]"), "the manifest names no configuration");
    // The kubelet fills in the variable.
    Ok(format!("{text}---\n{}", after.replacen("/sidestep.yaml]", "/$(NODE_NAME).yaml]", 1)))
}

impl Drop for DaemonSet<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if let Err(error) = self.remove() {
            eprintln!("clean-up of the DaemonSet: {error:#}");
        }
    }
}
