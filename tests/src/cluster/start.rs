//! The start of a cluster: what can go on side by side does.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, symlink},
    path::PathBuf,
    thread,
};

use anyhow::{Context, Result, ensure};

use super::{Cluster, Component, Node, PATIENCE, Place, credentials::Credentials, images, import, network, remove};
use crate::wait_until;

/// The nodes that one wire connects.
const MOST_NODES: u8 = 2;

/// What [`up`] found.
#[derive(Debug)]
pub struct Started {
    /// The cluster, which is ready.
    pub cluster: Cluster,
    /// Whether it was there already.
    pub before: bool,
}

/// Starts a cluster and waits until its nodes are ready; one that runs already is left as it is. `progress` is told
/// of each step.
///
/// # Errors
/// Not root, the Kubernetes programs are not built, or something does not come up: the words of what has ended are in
/// the error, and nothing is left.
pub fn up(name: &str, nodes: u8, progress: &(dyn Fn(&str) + Sync)) -> Result<Started> {
    ensure!(rustix::process::geteuid().is_root(), "nodes are namespaces and cgroups: that needs root");
    ensure!((1..=MOST_NODES).contains(&nodes), "a cluster has 1 or {MOST_NODES} nodes");
    let programs = xtask::kubernetes::built()?;
    let programs = programs.context("the Kubernetes programs are not built: `cargo xtask cluster up` builds them")?;
    let place = Place::new(name)?;
    let _lock = lock(&place)?;
    if let Some(cluster) = Cluster::find(name)? {
        if cluster.missing().is_empty() {
            let has = cluster.nodes().len();
            ensure!(
                has == usize::from(nodes),
                "cluster {name} runs with {has} node(s); `cargo xtask cluster down --name {name}` removes it"
            );
            cluster.wait_ready()?;
            return Ok(Started { cluster, before: true });
        }
        progress("removing what an earlier run left");
        remove::remove_parts(&place)?;
        fs::create_dir_all(place.directory())?;
    }
    symlink(&programs, place.directory().join("programs")).context("naming the programs")?;
    let cluster = Cluster::new(&place, nodes);
    let started = cluster.start(progress).with_context(|| cluster.last_words());
    if let Err(error) = started {
        // What has led here is the error to report.
        let _ = remove::remove_parts(&place);
        return Err(error);
    }
    Ok(Started { cluster, before: false })
}

/// Makes the cluster's directory and locks it, so that nobody else starts or removes this cluster meanwhile.
pub(super) fn lock(place: &Place) -> Result<File> {
    loop {
        fs::create_dir_all(place.directory()).with_context(|| format!("creating {}", place.directory().display()))?;
        let lock = File::open(place.directory())?;
        lock.lock().context("waiting for another run with this cluster")?;
        // The one before may have removed the directory that was waited for.
        let now = fs::metadata(place.directory()).map(|about| about.ino());
        if now.is_ok_and(|now| lock.metadata().is_ok_and(|about| about.ino() == now)) {
            return Ok(lock);
        }
    }
}

impl Cluster {
    fn start(&self, progress: &(dyn Fn(&str) + Sync)) -> Result<()> {
        progress("certificates, namespaces, images");
        let count = u8::try_from(self.nodes.len())?;
        let place = &self.place;
        let archives = thread::scope(|scope| -> Result<Vec<PathBuf>> {
            let archives = scope.spawn(|| images::make(&place.directory().join("images")));
            let credentials = scope.spawn(|| Credentials::make(place, count));
            self.nodes.iter().try_for_each(Node::prepare)?;
            self.connect()?;
            joined(credentials)?;
            // They are the slowest to come up.
            self.node().start(Component::Etcd)?;
            self.node().start(Component::ApiServer)?;
            self.nodes.iter().try_for_each(|node| node.start(Component::Containerd))?;
            joined(archives)
        })?;
        progress("control plane, container runtime");
        thread::scope(|scope| -> Result<()> {
            let nodes: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| start_kubelet(node, &archives))).collect();
            self.wait_api_server()?;
            self.node().start(Component::ControllerManager)?;
            self.node().start(Component::Scheduler)?;
            self.nodes.iter().try_for_each(|node| node.start(Component::KubeProxy))?;
            nodes.into_iter().try_for_each(joined)
        })?;
        progress("waiting until the nodes are ready");
        self.wait_ready()
    }

    /// One wire: both ends on the only node, or one on each.
    fn connect(&self) -> Result<()> {
        match self.nodes.as_slice() {
            [only] => {
                only.ip("link add eth0 type veth peer name wire")?;
                only.ip("link set wire up")?;
                only.connect()
            }
            [first, second, ..] => {
                first.ip(&format!("link add eth0 type veth peer name eth0 netns {}", second.namespaces()?))?;
                first.connect()?;
                second.connect()?;
                first.ip(&format!("route add {} via {}", network::pods(2), network::address(2)))?;
                second.ip(&format!("route add {} via {}", network::pods(1), network::address(1)))
            }
            [] => Ok(()),
        }
    }

    /// Waits until the API server serves.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_api_server(&self) -> Result<()> {
        let mut last = String::new();
        wait_until("the API server's /readyz", PATIENCE, || match self.kubectl(&["get", "--raw=/readyz"]) {
            Ok(_) => Ok(Some(())),
            Err(error) => {
                last = format!("{error:#}");
                Ok(None)
            }
        })
        .with_context(|| format!("{last}\n{}", self.last_words()))
    }

    /// Waits until all nodes are ready, and Pods can be made.
    ///
    /// # Errors
    /// Not in time, or a component has ended.
    pub fn wait_ready(&self) -> Result<()> {
        wait_until("the nodes", PATIENCE, || {
            // What ends while it starts does so for good.
            ensure!(self.missing().is_empty(), "a component has ended");
            let list = self.get(&["nodes"])?;
            let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
            let ready = |node: &serde_json::Value| {
                let conditions = node["status"]["conditions"].as_array();
                let of = |condition: &serde_json::Value| condition["type"] == "Ready" && condition["status"] == "True";
                conditions.is_some_and(|conditions| conditions.iter().any(of))
            };
            Ok((items.len() == self.nodes.len() && items.iter().all(ready)).then_some(()))
        })?;
        // Pods are refused before there is an account that they run with.
        self.wait_for(&["--namespace=default", "serviceaccount/default", "configmap/kube-root-ca.crt"], |_| true)?;
        Ok(())
    }
}

/// Imports the images and starts the kubelet.
fn start_kubelet(node: &Node, archives: &[PathBuf]) -> Result<()> {
    node.wait_containerd()?;
    archives.iter().try_for_each(|archive| import(node, archive))?;
    node.start(Component::Kubelet)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    // It panics for nothing; if it does, so does this one.
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
