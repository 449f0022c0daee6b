//! Finds a file again that stood at a path before the agent was restarted, also under another name.

use std::{
    fs::{self, File},
    os::{
        fd::AsRawFd,
        unix::fs::{DirEntryExt, MetadataExt},
    },
    path::Path,
};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use sidestep_abi::stdio::InodeKey;

use super::open;

/// Directory entries that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// The file `key` at `path` below `root`, or under another name in the same directory: rotation renames. `pid` is
/// whose mounts tell the superblock's device.
#[must_use]
pub(super) fn again(root: &Path, path: &str, key: &InodeKey, pid: Option<u32>) -> Option<File> {
    let here = |path: &str| open::open_below(root, path).ok().filter(|file| open::is(file, key, pid));
    if let Some(file) = here(path) {
        return Some(file);
    }
    let (directory, _) = path.rsplit_once('/')?;
    let top = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let relative = match directory.trim_start_matches('/') {
        "" => ".",
        relative => relative,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(&top, relative, flags, Mode::empty(), resolve).ok()?;
    let entries = fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()?;
    entries.flatten().take(MAX_ENTRIES).find_map(|entry| {
        // Over several layers the number in the directory is not always that of the file.
        let same = entry.ino() == key.ino || entry.metadata().is_ok_and(|metadata| metadata.ino() == key.ino);
        if !same {
            return None;
        }
        here(&format!("{directory}/{}", entry.file_name().to_str()?))
    })
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
