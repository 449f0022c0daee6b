//! The OCI bundle: `config.json`, which is written before the container's first process runs.

use std::path::{Path, PathBuf};

use super::{
    Files,
    annotations::{self, Annotations},
    finding::{Finding, ReadError, node_path, read_json},
};

/// The part of an OCI runtime specification that tells who the container is.
#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct Spec {
    #[serde(default)]
    annotations: Option<Annotations>,
    #[serde(default)]
    root: Option<Root>,
    #[serde(default)]
    mounts: Option<Vec<Mount>>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, serde::Deserialize)]
struct Root {
    #[serde(default)]
    path: PathBuf,
}

#[derive(Debug, serde::Deserialize)]
struct Linux {
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: Option<String>,
}

/// A mount of the container.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Mount {
    /// Where it is in the container.
    #[serde(default)]
    pub(super) destination: String,
    /// What it shows.
    #[serde(default)]
    pub(super) source: PathBuf,
}

impl Spec {
    /// The specification in a bundle, or `None` when there is none.
    pub(super) fn read(files: &dyn Files, bundle: &Path) -> Result<Option<Self>, ReadError> {
        read_json(files, &bundle.join("config.json"))
    }

    /// What it says, and where it is.
    pub(super) fn finding(&self, bundle: &Path) -> Finding {
        let mut finding = self.annotations.as_ref().map(annotations::read).unwrap_or_default();
        finding.rootfs = self
            .root
            .as_ref()
            .filter(|root| !root.path.as_os_str().is_empty())
            .and_then(|root| node_path(bundle.join(&root.path)));
        finding.bundle = node_path(bundle);
        finding
    }

    /// The container's mounts.
    pub(super) fn mounts(&self) -> &[Mount] {
        self.mounts.as_deref().unwrap_or_default()
    }

    /// The cgroup that the container was to be put in: a path, or `slice:prefix:name` for the systemd driver.
    pub(super) fn cgroups_path(&self) -> Option<&str> {
        self.linux.as_ref()?.cgroups_path.as_deref()
    }
}
