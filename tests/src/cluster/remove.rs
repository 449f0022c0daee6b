//! The end of a cluster: all that has its name, whether it was started in order or not.

use std::{fs, io};

use anyhow::{Context, Result};

use super::{
    Place,
    place::{PREFIX, ROOT},
    start,
};
use crate::{DEADLINE, cgroup, mounts, wait_until};

/// Removes the cluster of this name; nothing happens when there is none.
///
/// # Errors
/// A process, a cgroup or a file can't be removed.
pub fn remove(name: &str) -> Result<()> {
    let place = Place::new(name)?;
    let _lock = start::lock(&place)?;
    remove_parts(&place)
}

/// Whether there is anything of a cluster of this name.
///
/// # Errors
/// It is no name of a cluster, or `/proc` can't be read.
pub fn exists(name: &str) -> Result<bool> {
    let place = Place::new(name)?;
    Ok(place.directory().exists() || !cgroups(&place)?.is_empty())
}

/// As [`remove`], for who has the lock.
///
/// The kernel removes what lived in the namespaces with their last process: network devices, mounts, pins.
pub(super) fn remove_parts(place: &Place) -> Result<()> {
    for group in cgroups(place)? {
        cgroup::remove(&format!("/{group}"))?;
    }
    // None is made here; what a person has mounted is no reason to leave the rest.
    mounts::unmount_below(place.directory())?;
    wait_until(&format!("removing {}", place.directory().display()), DEADLINE, || {
        match fs::remove_dir_all(place.directory()) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(())),
            // The last process of a namespace leaves its mounts a moment after it has become invisible.
            Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    })
    .with_context(|| format!("files of cluster {}", place.name()))
}

/// The cgroups of its nodes.
fn cgroups(place: &Place) -> Result<Vec<String>> {
    cgroup::top_level(&format!("{PREFIX}{}.", place.name()))
}

/// Removes the clusters of test processes that are gone.
///
/// # Errors
/// `/proc` or a directory can't be read, or something can't be removed.
pub fn sweep(prefix: &str) -> Result<()> {
    let mut names = cgroup::top_level(PREFIX)?;
    names.extend(fs::read_dir(ROOT)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()));
    for name in names {
        let Some(name) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next()) else { continue };
        let Some(pid) = name.strip_prefix(prefix).and_then(|digits| digits.parse::<u32>().ok()) else { continue };
        if !std::path::Path::new("/proc").join(pid.to_string()).exists() {
            remove(name)?;
        }
    }
    Ok(())
}
