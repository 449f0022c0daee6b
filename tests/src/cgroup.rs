//! The cgroups that tests make, in every hierarchy: the machine may have v2 only, or v1 beside it ("hybrid").

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::{mounts, wait_until};

/// Where the v2 hierarchy is mounted.
///
/// # Errors
/// It isn't.
pub fn unified() -> Result<PathBuf> {
    let mounts = mounts::all()?;
    let mount = mounts.into_iter().find(|mount| mount.kind == "cgroup2");
    Ok(mount.context("no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")?.target)
}

/// The directory of the cgroup `path` (`/a/b`) in every hierarchy.
fn directories(path: &str) -> Result<Vec<PathBuf>> {
    let hierarchies = mounts::all()?.into_iter().filter(|mount| mount.kind.starts_with("cgroup"));
    Ok(hierarchies.map(|mount| mount.target.join(path.trim_start_matches('/'))).collect())
}

/// Names of the cgroups directly below the root of any hierarchy that begin with `prefix`.
///
/// # Errors
/// `/proc` can't be read.
pub fn top_level(prefix: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for root in directories("/")? {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(prefix) && entry.path().is_dir() && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

/// `directory` and all below it, children first.
fn subtree(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(subtree(&entry.path()));
        }
    }
    found.push(directory.to_owned());
    found
}

/// The processes in the cgroup `path` and below it, in any hierarchy.
///
/// # Errors
/// `/proc` can't be read.
pub fn processes(path: &str) -> Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for directory in directories(path)?.iter().filter(|directory| directory.exists()).flat_map(|root| subtree(root)) {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        // 0 is a process of an outer pid namespace, which is none of ours.
        pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw));
    }
    pids.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
    pids.dedup();
    Ok(pids)
}

/// Kills what runs in the cgroup `path` and removes it, in every hierarchy. Does nothing when there is none.
///
/// # Errors
/// A process or a cgroup is still there after some seconds.
pub fn remove(path: &str) -> Result<()> {
    assert!(path.trim_matches('/').len() > 1, "never the root cgroup");
    wait_until(&format!("killing what runs in cgroup {path}"), crate::DEADLINE, || {
        let pids = processes(path)?;
        for pid in &pids {
            // It may have ended meanwhile.
            let _ = kill_process(*pid, Signal::KILL);
        }
        Ok(pids.is_empty().then_some(()))
    })?;
    for directory in directories(path)?.iter().filter(|directory| directory.exists()).flat_map(|root| subtree(root)) {
        wait_until(&format!("removing {}", directory.display()), crate::DEADLINE, || {
            match fs::remove_dir(&directory) {
                Ok(()) => Ok(Some(())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(())),
                // The last task leaves its cgroup a moment after it has become invisible.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
    }
    Ok(())
}
