//! Where runtimes keep what they know.

use std::path::PathBuf;

/// Where identity comes from. All paths are as the node sees them; those that do not exist cost nothing.
///
/// Whoever can write below one of these directories can pretend to be any Pod: they belong to root.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the node's root directory is mounted: `/` for an agent on the node itself, `/host` for one in a Pod.
    pub host_root: PathBuf,
    /// State directories of containerd (`state` in its `config.toml`).
    pub containerd_state: Vec<PathBuf>,
    /// Data directories of Docker (`data-root`). Another one is found through containerd's bundles.
    pub docker_root: Vec<PathBuf>,
    /// Storage directories of CRI-O and Podman (`runroot` and `graphroot` in `storage.conf`).
    pub container_storage: Vec<PathBuf>,
    /// State directories of runc (`--root`), with or without a directory for each namespace.
    pub runc_state: Vec<PathBuf>,
    /// State directories of crun (`--root`).
    pub crun_state: Vec<PathBuf>,
    /// Where the kubelet has the Pods' log directories.
    pub pod_logs: PathBuf,
    /// How many containers that have exited are kept while their records are on the way; above that the oldest goes.
    pub exited_containers: usize,
    /// How many running cgroups are kept; above that the oldest goes, and is read again when it writes.
    pub live_cgroups: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        Self {
            host_root: PathBuf::from("/"),
            containerd_state: paths(&[
                "/run/containerd",
                "/run/k3s/containerd",
                "/run/k0s/containerd",
                "/var/snap/microk8s/common/run/containerd",
                "/run/docker/containerd/daemon",
            ]),
            docker_root: paths(&["/var/lib/docker"]),
            container_storage: paths(&["/run/containers/storage", "/var/lib/containers/storage"]),
            runc_state: paths(&["/run/runc", "/run/containerd/runc", "/run/docker/runtime-runc"]),
            crun_state: paths(&["/run/crun"]),
            pod_logs: PathBuf::from("/var/log/pods"),
            exited_containers: 4096,
            live_cgroups: 16384,
        }
    }
}
