//! A real Kubernetes cluster on this machine: each node has its own namespaces (network, mounts, host name), cgroup,
//! containerd and kubelet; the control plane is on the first one.
//!
//! All that belongs to it is below one directory and in cgroups named after it, so that it can be found and removed
//! by its name, also after a crash. On a node `/run`, `/var/lib`, `/var/log` and `/sys/fs/bpf` are the node's own, so
//! that manifests need no other paths than on a real one; what is not its own is the machine's (its processes too).

mod control;
mod credentials;
pub mod crowd;
pub mod daemonset;
mod images;
mod network;
mod node;
mod place;
mod process;
mod remove;
mod shared;
mod software;
mod start;
pub mod trial;
pub mod workload;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use daemonset::DaemonSet;
pub use images::{AGENT, BUSYBOX};
pub use node::{Component, Node};
pub use place::Place;
pub use process::Process;
pub use remove::{exists, remove, sweep};
pub use shared::{on_cluster, on_cluster_of};
pub use software::Software;
pub use start::{Started, up};

use crate::{DEADLINE, wait_until};

/// For how long what the cluster has to do is waited for: an image is unpacked, a Pod is started and stopped.
pub const PATIENCE: Duration = DEADLINE.saturating_mul(4);

/// How long it takes at least from one look at the cluster to the next.
const POLL: Duration = Duration::from_millis(200);

/// A cluster that has been started, by whomever.
#[derive(Clone, Debug)]
pub struct Cluster {
    place: Place,
    nodes: Vec<Node>,
    programs: PathBuf,
}

impl Cluster {
    /// The cluster of this name, if it was started.
    ///
    /// # Errors
    /// It is no name of a cluster.
    pub fn find(name: &str) -> Result<Option<Self>> {
        let place = Place::new(name)?;
        let count = (1..=u8::MAX).take_while(|number| place.node(*number).exists()).count();
        if count == 0 {
            return Ok(None);
        }
        Ok(Some(Self::new(&place, u8::try_from(count)?)))
    }

    fn new(place: &Place, nodes: u8) -> Self {
        // A link, which names the build that the cluster was started with.
        let programs = place.directory().join("programs");
        let nodes = (1..=nodes).map(|number| Node::new(place, number, &programs)).collect();
        Self { place: place.clone(), nodes, programs }
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its nodes; the control plane is on the first.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What service accounts have asked the API server for: an event of `audit.k8s.io/v1` in JSON a line.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        control::audit_log(&self.place)
    }

    /// The first node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.nodes[0]
    }

    /// The components that do not run.
    #[must_use]
    pub fn missing(&self) -> Vec<Process> {
        self.components().into_iter().filter(|process| process.pid().is_none()).collect()
    }

    fn components(&self) -> Vec<Process> {
        let control = [Component::Etcd, Component::ApiServer, Component::ControllerManager, Component::Scheduler];
        let every = [Component::Containerd, Component::Kubelet, Component::KubeProxy];
        let first = control.iter().map(|component| self.node().process(*component));
        first.chain(self.nodes.iter().flat_map(|node| every.map(|component| node.process(component)))).collect()
    }

    /// What components said last that do not run, and should: for an error.
    fn last_words(&self) -> String {
        let words = self.missing().into_iter().map(|process| format!("{process} has ended:\n{}", process.last_words()));
        words.collect::<Vec<_>>().join("\n")
    }

    /// A command that runs a client of the cluster: with its network and its kubeconfig.
    ///
    /// # Errors
    /// The first node does not run.
    pub fn client(&self, program: impl AsRef<Path>) -> Result<Command> {
        let program = program.as_ref().to_str().context("a program's path in UTF-8")?;
        let mut command = self.node().network_command(program)?;
        command.env("KUBECONFIG", self.place.kubeconfig());
        // The `kubectl` that was built with the cluster, for scripts.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.programs.display()));
        Ok(command)
    }

    /// `kubectl`, with these arguments.
    ///
    /// # Errors
    /// The first node does not run.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.client(self.programs.join("kubectl"))?;
        command.args(arguments);
        Ok(command)
    }

    /// Runs `kubectl` and returns its output.
    ///
    /// # Errors
    /// It fails; what it said is in the error.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_command(arguments)?.stdin(Stdio::null()).output().context("running kubectl")?;
        text(&output, arguments)
    }

    /// Runs `kubectl` with this input.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.kubectl_command(arguments)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting kubectl")?;
        let mut pipe = child.stdin.take().context("kubectl's input")?;
        let output = thread::scope(|scope| {
            // When it does not read to the end its own words tell why.
            scope.spawn(move || pipe.write_all(input.as_bytes()));
            child.wait_with_output()
        })?;
        text(&output, arguments)
    }

    /// Creates or changes the objects in `manifest`: YAML documents, or JSON.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl_with_input(&["apply", "--filename=-"], manifest)
    }

    /// Removes the objects in `manifest` and waits until they are gone.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn delete(&self, manifest: &str) -> Result<String> {
        self.kubectl_with_input(&["delete", "--ignore-not-found", "--filename=-"], manifest)
    }

    /// What `kubectl get` says of these, as JSON.
    ///
    /// # Errors
    /// There is no such kind or object.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl's JSON")
    }

    /// Waits until `condition` holds for what `kubectl get` says.
    ///
    /// # Errors
    /// Not in time, with how the object stood last; or as [`Cluster::get`], unless it may come into being.
    pub fn wait_for(&self, arguments: &[&str], condition: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = String::new();
        wait_until(&format!("a condition of {}", arguments.join(" ")), PATIENCE, || {
            match self.get(arguments) {
                Ok(object) if condition(&object) => return Ok(Some(object)),
                Ok(object) => last = object.to_string(),
                Err(error) => last = format!("{error:#}"),
            }
            // Each look is a program that is started, on the processors that others wait for.
            thread::sleep(POLL);
            Ok(None)
        })
        .with_context(|| format!("it stands at {last:.4000}\n{}", self.last_words()))
    }

    /// Waits until a rollout is done.
    ///
    /// # Errors
    /// Not in time; with the Pods as they stand.
    pub fn wait_rollout(&self, namespace: &str, workload: &str) -> Result<()> {
        let namespace = format!("--namespace={namespace}");
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        let done = self.kubectl(&["rollout", "status", &namespace, workload, &limit]);
        done.map(drop).with_context(|| {
            let pods = self.kubectl(&["describe", "pods", &namespace]).unwrap_or_default();
            format!("{}\n{}", &pods[pods.ceil_char_boundary(pods.len().saturating_sub(6000))..], self.last_words())
        })
    }

    /// Imports an archive of an image on every node.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn import(&self, archive: &Path) -> Result<()> {
        for node in &self.nodes {
            import(node, archive)?;
        }
        Ok(())
    }

    /// Imports the image of the agent under test again: it may have been built anew.
    ///
    /// # Errors
    /// There is no agent, no space, or containerd refuses.
    pub fn import_agent(&self) -> Result<()> {
        let file = self.place.directory().join("images/agent.tar");
        fs::write(&file, images::of_agent()?).with_context(|| format!("writing {}", file.display()))?;
        self.import(&file)
    }

    /// Makes the image of a server and imports it.
    ///
    /// # Errors
    /// Its packages can't be downloaded, no space, or containerd refuses.
    pub fn import_software(&self, software: Software) -> Result<()> {
        self.import(&software.make(&self.place.directory().join("images"))?)
    }

    /// Prints the last of what each component has said.
    pub fn show_logs(&self) {
        for process in self.components() {
            eprintln!("---- {process} ----\n{}", process.last_words());
        }
    }
}

/// `ctr image import` on a node.
fn import(node: &Node, archive: &Path) -> Result<()> {
    let mut command = node.command("ctr")?;
    let output = command.args(["--namespace=k8s.io", "images", "import"]).arg(archive).output()?;
    ensure!(
        output.status.success(),
        "importing {} on {}: {}",
        archive.display(),
        node.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn text(output: &Output, arguments: &[&str]) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), said.trim());
    String::from_utf8(output.stdout.clone()).context("kubectl's output")
}
