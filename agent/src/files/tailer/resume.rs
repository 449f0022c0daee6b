//! The files of a container that ran before this agent: those that the checkpoint knows, and those that were made
//! since.

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Tailer,
    admit::{about, owner},
};
use crate::{
    clock::unix_nano,
    files::{
        find::{self, Found},
        log_file::LogFile,
        open::{self, Whereabouts, birth},
    },
    pipeline::container::{Container, Profile},
    record::Class,
};

/// Processes of a container through which its files are looked for.
const MAX_PROCESSES: usize = 8;
/// New files that are entered of one container.
const MAX_NEW: usize = 512;

impl Tailer {
    pub(super) fn resume(&mut self, container: &Arc<Container>, pids: &[u32]) {
        let Some(settled) = container.settled() else { return };
        let Some(files) = &settled.files else { return };
        let now = unix_nano();
        let pids = &pids[..pids.len().min(MAX_PROCESSES)];
        let directories = self.log_directories(container, &settled);
        let owner = owner(&settled);
        let known: Vec<_> = self
            .remembered
            .iter()
            .filter(|(id, (_, pending))| id.0 == Class::Business && pending.entry.owner == owner)
            .map(|(id, (_, pending))| (id.1, pending.entry.path.clone(), pending.entry.birth))
            .collect();
        for (key, path, born) in known {
            if !files.matches(&path) {
                continue;
            }
            let found = pids.iter().find_map(|pid| {
                let file = find::again(&root(*pid), &path, &key, Some(*pid))?;
                (birth(&file) == born).then_some((*pid, Found { path: path.clone(), key, file }))
            });
            if let Some((pid, found)) = found {
                self.go_on(found, pid, container, &settled, now);
            }
        }
        self.find_new(&directories, pids, container, &settled, now);
    }

    /// The directories that a container has written logs in.
    pub(super) fn log_directories(&self, container: &Container, settled: &Profile) -> BTreeSet<String> {
        let owner = owner(settled);
        let remembered = self.remembered.iter().filter(|(_, (_, pending))| pending.entry.owner == owner);
        let remembered = remembered.map(|(id, (_, pending))| (id, &*pending.entry.path));
        let open = self.files.iter().filter(|(_, open)| open.users.iter().any(|user| user.cgroup == container.cgroup));
        let open = open.map(|(id, open)| (id, &*open.log.about.path));
        let business = remembered.chain(open).filter(|(id, _)| id.0 == Class::Business);
        business.filter_map(|(_, path)| Some(path.rsplit_once('/')?.0.to_owned())).collect()
    }

    /// Finds logs that were made while no agent ran, beside those that the container is known to write: a writer that
    /// is done with them announces them to nobody.
    fn find_new(
        &mut self,
        directories: &BTreeSet<String>,
        pids: &[u32],
        container: &Arc<Container>,
        settled: &Profile,
        now: u64,
    ) {
        let Some(files) = &settled.files else { return };
        let Some(pid) = pids.iter().copied().find(|pid| root(*pid).exists()) else { return };
        let others = self.files_of_others(container, settled);
        let mut held = None;
        let mut left = find::MAX_ENTRIES;
        let mut found = Vec::new();
        for directory in directories {
            let listing = find::made(&root(pid), directory, pid, &mut left, |path, born| {
                born.is_some_and(|born| self.is_new(born)) && files.matches(path)
            });
            let device = listing.found.first().map(|new| new.key.dev);
            let is_others = |ino: &u64| device.is_some_and(|device| others.contains(&(device, *ino)));
            // Where others write logs too, a new one may be theirs.
            let shared = listing.numbers.iter().any(is_others);
            let mut is_held = |new: &Found| {
                let held = held.get_or_insert_with(|| find::held_for_writing(pids));
                open::device_and_inode(&new.file).is_some_and(|file| held.contains(&file))
            };
            found.extend(listing.found.into_iter().filter(|new| !shared || is_held(new)));
        }
        let unknown = |new: &Found| {
            let known = self.remembered.get(&(Class::Business, new.key));
            known.is_none_or(|(_, pending)| pending.entry.birth != birth(&new.file))
        };
        let new: Vec<_> = found.into_iter().filter(unknown).take(MAX_NEW).collect();
        for new in new {
            self.go_on(new, pid, container, settled, now);
        }
    }

    /// Device and inode numbers of logs that belong to other containers.
    fn files_of_others(&self, container: &Container, settled: &Profile) -> HashSet<(u32, u64)> {
        let owner = owner(settled);
        let remembered = self.remembered.iter().filter(|(_, (_, pending))| pending.entry.owner != owner);
        let open = self.files.iter().filter(|(_, open)| open.users.iter().all(|user| user.cgroup != container.cgroup));
        let others = remembered.map(|(id, _)| id).chain(open.map(|(id, _)| id));
        others.filter(|id| id.0 == Class::Business).map(|id| (id.1.dev, id.1.ino)).collect()
    }

    fn go_on(&mut self, found: Found, pid: u32, container: &Arc<Container>, settled: &Profile, now: u64) {
        let id = (Class::Business, found.key);
        if self.files.contains_key(&id) {
            return;
        }
        let standing = self.remembered.get(&id).map_or(0, |(_, pending)| pending.entry.position);
        let (position, incarnation) = self.start_of(&id, &found.file, None, standing, now);
        let path: Arc<str> = found.path.into();
        let about = about(Class::Business, id.1, Arc::clone(&path), settled);
        let mut log = LogFile::new(about, Some(found.file), position, incarnation, &self.readings);
        self.progress.open(&log.stream().key, position);
        log.whereabouts = Whereabouts { tgid: pid, fd: -1, path: Some(path) };
        // It may have ended while nobody knew who it is: nobody will look again.
        let ended = container.has_ended();
        if ended {
            log.look_finally(now);
        } else {
            log.look(now);
        }
        self.enter(id, log, vec![Arc::clone(container)], now, ended);
    }
}

/// The root directory that a process sees.
fn root(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("root")
}
