//! Removes all that agents have pinned.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Directory, PinError, Set, set};

/// What was removed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Removed {
    /// Sets of programs and maps.
    pub sets: usize,
    /// Links of these, so that as many programs see nothing any more.
    pub links: usize,
    /// The directory, when it was there.
    pub directory: Option<PathBuf>,
}

/// Removes the directory of pins with everything in it. What waits in a ring is gone then.
///
/// # Errors
/// An agent uses it (unless `force`), it is on no BPF file system, or something can't be removed.
pub fn uninstall(path: &Path, force: bool) -> Result<Removed, PinError> {
    let lock = match Directory::existing(path) {
        Ok(None) => return Ok(Removed::default()),
        Ok(lock) => lock,
        Err(PinError::InUse(_)) if force => None,
        Err(error) => return Err(error),
    };
    let (sets, unfinished) = Set::all(path)?;
    let mut removed = Removed { directory: Some(path.to_owned()), ..Removed::default() };
    for set in &sets {
        removed.sets += 1;
        removed.links += set.link_count();
        set.remove()?;
    }
    for path in unfinished {
        set::remove(&path)?;
    }
    // Only what is empty: nothing else is the agent's.
    fs::remove_dir(path).map_err(|source| PinError::io("removing", path, source))?;
    drop(lock);
    Ok(removed)
}
