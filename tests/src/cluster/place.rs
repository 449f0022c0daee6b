//! The names of what belongs to a cluster: all of it can be found by the cluster's name, also after a crash.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Directories and cgroups of clusters are named with this, the cluster's name, and for a node its number.
pub(super) const PREFIX: &str = "sidestep-cluster-";

/// Where the directories of clusters are: on a disk, since images and logs are there; never below a directory that a
/// node has of its own.
pub(super) const ROOT: &str = "/var/tmp";

/// The longest name of a cluster.
const LONGEST: usize = 32;

/// The directory of a cluster.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    directory: PathBuf,
}

impl Place {
    /// Of the cluster of this name.
    ///
    /// # Errors
    /// It is no name that nodes, directories and cgroups can have.
    pub fn new(name: &str) -> Result<Self> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(
            !name.is_empty()
                && name.len() <= LONGEST
                && name.bytes().all(fits)
                && !name.starts_with('-')
                && !name.ends_with('-'),
            "`{name}` can't be a cluster's name: small letters, digits and dashes inside, at most {LONGEST}"
        );
        Ok(Self { name: name.to_owned(), directory: Path::new(ROOT).join(format!("{PREFIX}{name}")) })
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory that everything is in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What `kubectl` and other clients take, in the network of the first node.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// Certificates, keys and tokens.
    pub(super) fn credentials(&self) -> PathBuf {
        self.directory.join("credentials")
    }

    /// The output of each component.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// The directory of a node, by its number from 1.
    #[must_use]
    pub fn node(&self, number: u8) -> PathBuf {
        self.directory.join(format!("node-{number}"))
    }

    /// The cgroup of all that runs on a node, in every hierarchy.
    #[must_use]
    pub fn cgroup(&self, number: u8) -> String {
        format!("/{PREFIX}{}.{number}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_fit_everywhere() {
        assert_eq!(Place::new("a-1").expect("a name").cgroup(2), "/sidestep-cluster-a-1.2");
        for wrong in ["", "-a", "a-", "A", "a/b", "..", "a.b", &"a".repeat(33)] {
            assert!(Place::new(wrong).is_err(), "{wrong}");
        }
    }
}
