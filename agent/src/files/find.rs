//! Finds a file again that stood at a path before the agent was restarted, also under another name, and files that
//! were made meanwhile.

use std::{
    collections::HashSet,
    fs::{self, DirEntry, File},
    os::{
        fd::AsRawFd,
        unix::fs::{DirEntryExt, MetadataExt},
    },
    path::Path,
    time::UNIX_EPOCH,
};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use sidestep_abi::stdio::InodeKey;

use super::open;

/// Directory entries that are looked at.
pub(super) const MAX_ENTRIES: usize = 10_000;
/// Descriptors of one process that are looked at.
const MAX_DESCRIPTORS: usize = 4096;

/// A file that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// The path that its writer sees.
    pub(super) path: String,
    /// Device and inode number, as the kernel programs have them.
    pub(super) key: InodeKey,
    /// The open file.
    pub(super) file: File,
}

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Inode numbers of all entries that were looked at.
    pub(super) numbers: Vec<u64>,
    /// The files that were asked for.
    pub(super) found: Vec<Found>,
}

/// The file `key` at `path` below `root`, or under another name in the same directory: rotation renames. `pid` is
/// whose mounts tell the superblock's device.
#[must_use]
pub(super) fn again(root: &Path, path: &str, key: &InodeKey, pid: Option<u32>) -> Option<File> {
    let here = |path: &str| open::open_below(root, path).ok().filter(|file| open::is(file, key, pid));
    if let Some(file) = here(path) {
        return Some(file);
    }
    let (directory, _) = path.rsplit_once('/')?;
    entries(root, directory).take(MAX_ENTRIES).find_map(|entry| {
        // Over several layers the number in the directory is not always that of the file.
        let same = entry.ino() == key.ino || entry.metadata().is_ok_and(|metadata| metadata.ino() == key.ino);
        if !same {
            return None;
        }
        here(&format!("{directory}/{}", entry.file_name().to_str()?))
    })
}

/// The regular files in `directory` below the root of `pid` that `is_wanted` by their path and the time when they were
/// made (nanoseconds since the Unix epoch; `None` where the file system does not say). Looks at `left` entries at most.
#[must_use]
pub(super) fn made(
    root: &Path,
    directory: &str,
    pid: u32,
    left: &mut usize,
    is_wanted: impl Fn(&str, Option<u64>) -> bool,
) -> Listing {
    let mut listing = Listing::default();
    for entry in entries(root, directory).take(*left) {
        *left -= 1;
        listing.numbers.push(entry.ino());
        // Links are not followed: what they lead to has its own path, and its directory is looked at.
        let Some(metadata) = entry.metadata().ok().filter(fs::Metadata::is_file) else { continue };
        let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let born = born.and_then(|since| u64::try_from(since.as_nanos()).ok());
        let Some(path) = entry.file_name().to_str().map(|name| format!("{directory}/{name}")) else { continue };
        if is_wanted(&path, born)
            && let Ok(file) = open::open_below(root, &path)
            && let Some(key) = open::key_of(&file, Some(pid))
        {
            listing.found.push(Found { path, key, file });
        }
    }
    listing
}

/// Device and inode numbers, as `stat(2)` gives them, of the files that processes hold open for writing.
#[must_use]
pub(super) fn held_for_writing(pids: &[u32]) -> HashSet<(u64, u64)> {
    let metadata = writing(pids).filter_map(|(_, descriptor)| fs::metadata(descriptor.path()).ok());
    metadata.map(|metadata| (metadata.dev(), metadata.ino())).collect()
}

/// The descriptors that processes can write through: links to what they lead to.
pub(super) fn writing(pids: &[u32]) -> impl Iterator<Item = (u32, DirEntry)> {
    let of_process = |pid: &u32| Some((*pid, fs::read_dir(format!("/proc/{pid}/fd")).ok()?));
    let descriptors = pids.iter().filter_map(of_process).flat_map(|(pid, descriptors)| {
        descriptors.flatten().take(MAX_DESCRIPTORS).map(move |descriptor| (pid, descriptor))
    });
    // The mode of the link tells how the descriptor was opened, `proc_pid_fd(5)`; the file is what it leads to.
    descriptors.filter(|(_, descriptor)| descriptor.metadata().is_ok_and(|link| link.mode() & 0o200 != 0))
}

/// What stands in `directory` below `root`; links lead nowhere else.
pub(super) fn entries(root: &Path, directory: &str) -> impl Iterator<Item = DirEntry> + use<> {
    let open = || {
        let top = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let relative = match directory.trim_start_matches('/') {
            "" => ".",
            relative => relative,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let opened = rustix::fs::openat2(&top, relative, flags, Mode::empty(), resolve).ok()?;
        fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()
    };
    open().into_iter().flatten().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::running::inode_key;

    #[test]
    fn finds_a_renamed_file_in_its_directory() {
        let root = tempfile::tempdir().expect("directory");
        let path = root.path().join("a.log");
        fs::write(&path, "old").expect("written");
        let key = inode_key(&fs::metadata(&path).expect("metadata"));
        assert!(again(root.path(), "/a.log", &key, None).is_some());
        fs::rename(&path, root.path().join("a.log.1")).expect("renamed");
        fs::write(&path, "new").expect("written");
        let found = again(root.path(), "/a.log", &key, None).expect("found");
        assert_eq!(std::io::read_to_string(found).expect("read"), "old");
        fs::remove_file(root.path().join("a.log.1")).expect("removed");
        assert!(again(root.path(), "/a.log", &key, None).is_none());
    }
}
