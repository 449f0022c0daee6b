//! Finds files by their device and inode numbers alone, in the file systems that a container can write to.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashSet, VecDeque},
    fs,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::PathBuf,
};

use sidestep_abi::stdio::InodeKey;

use super::{
    find::{self, Found},
    open, server,
};
use crate::{config::Files, load::running::inode_key};

/// Directory entries that one search looks at, over all containers.
pub(super) const MAX_ENTRIES: usize = 200_000;

/// Files that processes hold open for writing, with the process and its descriptor, also when they are deleted.
#[must_use]
pub(super) fn held(pids: &[u32], wanted: &[InodeKey]) -> Vec<(u32, i32, Found)> {
    let mut found: Vec<(u32, i32, Found)> = Vec::new();
    for (pid, descriptor) in find::writing(pids) {
        let path = descriptor.path();
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let is_wanted = |key: &&InodeKey| key.ino == metadata.ino();
        if !metadata.is_file() || !wanted.iter().any(|key| is_wanted(&key)) {
            continue;
        }
        let (Ok(file), Ok(link)) = (open::open_for_reading(&path), fs::read_link(&path)) else { continue };
        let Some(key) = wanted.iter().filter(is_wanted).find(|key| open::is(&file, key, Some(pid))) else { continue };
        if found.iter().any(|(_, _, known)| known.key == *key) {
            continue;
        }
        let link = link.to_string_lossy();
        let path = link.strip_suffix(" (deleted)").unwrap_or(&link).to_owned();
        let fd = descriptor.file_name().to_str().and_then(|name| name.parse().ok()).unwrap_or(-1);
        found.push((pid, fd, Found { path, key: *key, file }));
    }
    found
}

/// The file systems that a container sees.
#[derive(Debug)]
pub(super) struct View {
    root: PathBuf,
    pid: Option<u32>,
    mounts: Vec<Mount>,
}

#[derive(Debug, Eq, PartialEq)]
struct Mount {
    /// Of the superblock, as the kernel programs have it.
    device: u32,
    /// Where, below the root.
    at: PathBuf,
    /// Nobody writes through a mount that is read-only.
    writable: bool,
}

impl View {
    /// As a process sees them; `None` when it has ended.
    #[must_use]
    pub(super) fn of_process(pid: u32) -> Option<Self> {
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
        let mounts: Vec<_> = table.lines().filter_map(mount).collect();
        let root = format!("/proc/{pid}/root").into();
        (!mounts.is_empty()).then_some(Self { root, pid: Some(pid), mounts })
    }

    /// Of a container that has ended: its root directory without any volume.
    #[must_use]
    pub(super) fn of_directory(root: PathBuf) -> Option<Self> {
        let device = inode_key(&fs::metadata(&root).ok()?).dev;
        Some(Self { root, pid: None, mounts: vec![Mount { device, at: "/".into(), writable: true }] })
    }

    /// Finds which of the `wanted` files are here, and are logs by their path. Only file systems that one of them is on are
    /// looked at, those places first that `files` names; `left` entries at most.
    #[must_use]
    pub(super) fn find(&self, files: &Files, wanted: &[InodeKey], left: &mut usize) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        let borders: HashSet<_> = self.mounts.iter().map(|mount| mount.at.as_path()).collect();
        let mut seen = HashSet::new();
        for (_, start) in self.starts(files, wanted) {
            let mut directories = VecDeque::from([start]);
            while let Some(directory) = directories.pop_front() {
                let Some(text) = directory.to_str().filter(|_| seen.insert(directory.clone())) else { continue };
                for entry in find::entries(&self.root, text) {
                    if *left == 0 || found.len() == wanted.len() {
                        return found;
                    }
                    *left -= 1;
                    let path = directory.join(entry.file_name());
                    let (Ok(kind), Some(text)) = (entry.file_type(), path.to_str()) else { continue };
                    if kind.is_dir() {
                        if !borders.contains(path.as_path()) {
                            directories.push_back(path);
                        }
                    } else if kind.is_file() && files.matches(text) {
                        found.extend(self.is_wanted(&entry, text, wanted));
                    }
                }
            }
        }
        found
    }

    /// Where to begin, deepest first.
    fn starts(&self, files: &Files, wanted: &[InodeKey]) -> BTreeSet<(Reverse<usize>, PathBuf)> {
        let mut starts = BTreeSet::new();
        let may_have = |mount: &&Mount| mount.writable && wanted.iter().any(|key| key.dev == mount.device);
        for mount in self.mounts.iter().filter(may_have) {
            for pattern in files.include.patterns() {
                let (fixed, _) = server::fixed_part(pattern);
                let start = if fixed.starts_with(&mount.at) {
                    fixed
                } else if mount.at.starts_with(&fixed) {
                    mount.at.clone()
                } else {
                    continue;
                };
                starts.insert((Reverse(start.components().count()), start));
            }
        }
        starts
    }

    fn is_wanted(&self, entry: &fs::DirEntry, path: &str, wanted: &[InodeKey]) -> Option<Found> {
        // Over several layers the number in the directory is not always that of the file.
        let number = entry.metadata().ok()?.ino();
        let may_be = |key: &&InodeKey| key.ino == entry.ino() || key.ino == number;
        if !wanted.iter().any(|key| may_be(&key)) {
            return None;
        }
        let file = open::open_below(&self.root, path).ok()?;
        let key = *wanted.iter().filter(may_be).find(|key| open::is(&file, key, self.pid))?;
        Some(Found { path: path.to_owned(), key, file })
    }
}

/// One line of `proc_pid_mountinfo(5)`.
fn mount(line: &str) -> Option<Mount> {
    let fields: Vec<_> = line.split(' ').collect();
    let device = open::device(fields.get(2)?)?;
    let at = unescaped(fields.get(4)?).into();
    let writable = fields.get(5)?.split(',').all(|option| option != "ro");
    Some(Mount { device, at, writable })
}

/// Spaces and the like are octal numbers behind a backslash there.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Globs, Slash, StartAt};

    fn files(include: &[&str]) -> Files {
        let globs = |patterns: &[&str]| {
            Globs::new(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>(), Slash::Separates).expect("globs")
        };
        Files { include: globs(include), exclude: globs(&["**/*.gz"]), start_at: StartAt::End }
    }

    #[test]
    fn a_mount_is_read() {
        let line = r"523 22 8:1 /data /srv/my\040logs rw,relatime shared:9 - ext4 /dev/sda1 rw";
        let expected = Mount { device: 8 << 20 | 1, at: "/srv/my logs".into(), writable: true };
        assert_eq!(mount(line), Some(expected));
        assert!(!mount("523 22 8:1 / /etc/hosts ro,relatime - ext4 /dev/sda1 rw").expect("a mount").writable);
        assert_eq!(mount("523 22"), None);
    }

    #[test]
    fn a_file_is_found_by_its_numbers_where_it_may_be_a_log() {
        let root = tempfile::tempdir().expect("directory");
        let mut keys = Vec::new();
        for path in ["a/deep/er/one.log", "a/two.log.gz", "var/log/three", "four"] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(&path, "").expect("file");
            keys.push(inode_key(&fs::metadata(&path).expect("metadata")));
        }
        let view = View::of_directory(root.path().to_owned()).expect("a directory");
        let find = |wanted: &[InodeKey], mut left: usize| {
            let found = view.find(&files(&["/var/log/**", "**/*.log"]), wanted, &mut left);
            (found.into_iter().map(|found| (found.path, found.key)).collect::<Vec<_>>(), left)
        };
        let expected = vec![("/var/log/three".to_owned(), keys[2]), ("/a/deep/er/one.log".to_owned(), keys[0])];
        assert_eq!(find(&keys, MAX_ENTRIES).0, expected);
        assert_eq!(find(&keys[1..2], MAX_ENTRIES).0, [], "its path is no log's");
        assert_eq!(find(&keys, 1), (expected[..1].to_vec(), 0), "it is bounded");
        let elsewhere = InodeKey { dev: keys[0].dev + 1, ..keys[0] };
        assert_eq!(find(&[elsewhere], 10), (vec![], 10), "another device is not looked at");
    }

    #[test]
    fn a_deleted_file_is_found_by_who_holds_it() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a.log");
        let file = fs::File::create(&path).expect("file");
        let key = inode_key(&file.metadata().expect("metadata"));
        fs::remove_file(&path).expect("removed");
        let found = held(&[std::process::id()], &[key]);
        let [(_, _, found)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((Path::new(&found.path), found.key), (path.as_path(), key));
        drop(file);
        // Held for reading only by now.
        assert!(held(&[std::process::id()], &[key]).is_empty());
    }
}
