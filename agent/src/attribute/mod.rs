//! Who wrote: from a cgroup to a container, a Pod and an image.
//!
//! A container's cgroup path gives its id; the runtime's own files give the rest, with no server to ask, and they
//! are there before the container's first process runs. [`Identities`] keeps what was found; [`cgroup`] reads paths;
//! everything that touches a file goes through [`Files`], so that all else is replayed in tests.

mod annotations;
pub mod cgroup;
mod containerd;
mod docker;
mod files;
mod finding;
mod identities;
mod kubelet;
mod oci;
mod resolve;
mod runc;
mod settings;
mod storage;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

pub use cgroup::{CgroupPath, Qos};
pub use files::{Files, HostFiles, MAX_ENTRIES, MAX_FILE_BYTES};
pub use identities::{Identities, Lookup, Statistics};
pub use resolve::resolve;
pub use settings::Settings;

use crate::record::Resource;

/// The program that made a container.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Deserialize, serde::Serialize)]
pub enum Runtime {
    /// containerd, through CRI, `ctr` or nerdctl.
    Containerd,
    /// CRI-O.
    CriO,
    /// Docker, on its own or under cri-dockerd.
    Docker,
    /// Podman.
    Podman,
    /// `runc` with nothing above it.
    Runc,
    /// `crun` with nothing above it.
    Crun,
}

impl Runtime {
    /// The value of `container.runtime.name`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }
}

/// What is known of the container behind a cgroup, and what the pipeline needs to find its logs.
///
/// Paths are as the node sees them, absolute and without `..`; an agent that has the node's root mounted elsewhere
/// opens them below [`Settings::host_root`]. The journal of streams holds it: a change needs another version of that.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Identity {
    /// What goes into records.
    pub resource: Arc<Resource>,
    /// The container's own cgroup; the same as the cgroup asked for, or an ancestor of it where the container has
    /// made cgroups of its own.
    pub container_cgroup: Arc<str>,
    /// What made the container: from its files, or guessed from the path when there are none.
    pub runtime: Option<Runtime>,
    /// Quality of service of the Pod, from the path.
    pub qos: Option<Qos>,
    /// Whether it is a Pod's sandbox (the pause container), which no user has written.
    pub sandbox: bool,
    /// The Pod's log directory, `/var/log/pods/NAMESPACE_NAME_UID`.
    pub log_directory: Option<PathBuf>,
    /// The file that the runtime copies the container's output to, where the runtime's files name it (Docker, CRI-O).
    pub log_path: Option<PathBuf>,
    /// The OCI bundle.
    pub bundle: Option<PathBuf>,
    /// The root file system, as mounted on the node.
    pub rootfs: Option<PathBuf>,
    /// Whether the runtime's files were found and, for a container of a Pod, name the Pod. While this is false,
    /// asking again may tell more.
    pub complete: bool,
}
