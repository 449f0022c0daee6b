//! Files that were written and that nobody could announce, since the ring or a queue had no room: the kernel knows their
//! numbers, and the file systems of the containers tell the rest.

use std::{collections::HashMap, path::Path, sync::Arc, time::Instant};

use sidestep_abi::stdio::InodeKey;

use super::{
    Tailer,
    account::book_lost,
    look::{pids, rootfs},
};
use crate::{
    clock::{monotonic_nano, unix_nano},
    files::{
        Settings,
        find::{self, Found},
        judge::{Announced, Candidate},
        open::Whereabouts,
        survey::{self, View},
    },
    pipeline::container::{Container, Profile},
    policy::Unannounced,
    record::Class,
};

/// Names of logs that are remembered.
const MAX_NAMES: usize = 8192;
/// Pause before a search, shortest and longest: writers announce their files themselves as soon as there is room, and
/// files that wait for that are looked at ever more seldom.
const SEARCH_NANOS: (u64, u64) = (2_000_000_000, 60_000_000_000);
/// The pause is so many times as long as the search before has taken.
const SEARCH_SHARE: u64 = 20;

/// Files that were not announced, and what they can be known by.
pub(super) struct Search {
    /// When this agent began, by the kernel's clock: an agent before it may have read what was announced earlier.
    begin: u64,
    /// By device and by the hash of name and directory, which holds for as long as the directory is in use.
    names: HashMap<(u32, u32), Name>,
    /// Whose the others may be.
    containers: Vec<Arc<Container>>,
    /// When to search.
    due: Option<u64>,
    /// Before the next search of what waits, in nanoseconds.
    pause: u64,
    /// Before any other.
    least: u64,
}

impl Default for Search {
    fn default() -> Self {
        Self { begin: monotonic_nano(), names: HashMap::new(), containers: Vec::new(), due: None, pause: 0, least: 0 }
    }
}

/// The name of a log.
struct Name {
    path: Arc<str>,
    container: Arc<Container>,
}

/// Where a file was seen.
struct Sighting {
    container: Arc<Container>,
    settled: Arc<Profile>,
    whereabouts: Whereabouts,
    size: u64,
}

impl Tailer {
    /// Remembers by what name a file is a log.
    pub(super) fn remember_name(&mut self, key: &InodeKey, candidate: &Candidate, path: &Arc<str>) {
        let Some(announced) = &candidate.announced else { return };
        if self.search.names.len() >= MAX_NAMES {
            self.search.names.clear();
        }
        let name = Name { path: Arc::clone(path), container: Arc::clone(&candidate.container) };
        self.search.names.insert((key.dev, announced.name_hash), name);
    }

    /// Files were not announced: they are searched for in a moment, in these containers.
    pub(super) fn search_unannounced(&mut self, containers: &[Arc<Container>], now: u64) {
        self.search.containers = containers.to_vec();
        let due = now + self.search.least.max(SEARCH_NANOS.0);
        self.search.due = Some(self.search.due.map_or(due, |known| known.min(due)));
    }

    /// Finds files that were not announced: such a file takes its way as if it had been, or what was written to it is
    /// counted.
    pub(super) fn find_unannounced(&mut self, now: u64) {
        if self.search.due.is_none_or(|due| now < due && due - now <= SEARCH_NANOS.1) {
            return;
        }
        self.search.due = None;
        let begin = Instant::now();
        let (mut waits, mut nameless) = (false, Vec::new());
        for file in self.verdicts.unannounced() {
            match self.search.names.get(&(file.key.dev, file.name_hash)) {
                Some(name) => {
                    let (path, container) = (Arc::clone(&name.path), Arc::clone(&name.container));
                    waits |= self.find_named(&file, &path, &container);
                }
                None if file.gone => {
                    // Nobody can tell what it was.
                    self.readings.count_unjudged(file.written);
                    self.verdicts.settle(&file);
                }
                None if self.files.contains_key(&(Class::Business, file.key)) => waits = true,
                None => nameless.push(file),
            }
        }
        let unsettled = self.find_nameless(nameless);
        let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.search.least = took.saturating_mul(SEARCH_SHARE).clamp(SEARCH_NANOS.0, SEARCH_NANOS.1);
        self.search.pause = if unsettled || !waits { 0 } else { self.search.pause.saturating_mul(2) };
        self.search.pause = self.search.pause.clamp(self.search.least, SEARCH_NANOS.1);
        if waits || unsettled {
            self.search.due = Some(unix_nano() + self.search.pause);
        }
    }

    /// Finds a file that has the name of a log in its directory; whether it is to be looked for again.
    fn find_named(&mut self, file: &Unannounced, path: &Arc<str>, container: &Arc<Container>) -> bool {
        if let Some(open) = self.files.get_mut(&(Class::Business, file.key)) {
            if file.gone {
                self.verdicts.settle(file);
                open.log.tally.add(file.written);
            }
            // Else it is announced when it is written next, and counted at its end in any case.
            return !file.gone;
        }
        if !file.gone && self.is_found(file, path, container) {
            return false;
        }
        if !file.gone && is_held(&self.settings, file, container) {
            return true;
        }
        self.verdicts.settle(file);
        if file.announced < self.search.begin {
            // It is gone, and nobody can tell what of it an agent before this one has read.
            self.readings.count_unjudged(file.written);
        } else {
            book_lost(container, file.written);
        }
        false
    }

    /// Whether a file is at its path, or under another name beside it; then it is announced.
    fn is_found(&mut self, file: &Unannounced, path: &Arc<str>, container: &Arc<Container>) -> bool {
        let Some(settled) = container.settled() else { return false };
        let found = pids(&self.settings, &settled).into_iter().take(1).find_map(|pid| {
            let root = format!("/proc/{pid}/root");
            Some((pid, find::again(Path::new(&root), path, &file.key, Some(pid))?))
        });
        let Some((pid, found)) = found else { return false };
        let size = found.metadata().map_or(0, |metadata| metadata.len());
        let whereabouts = Whereabouts { tgid: pid, fd: -1, path: Some(Arc::clone(path)) };
        self.announce_found(file, whereabouts, size, container);
        true
    }

    fn announce_found(&mut self, file: &Unannounced, whereabouts: Whereabouts, size: u64, container: &Arc<Container>) {
        let position = size.saturating_sub(file.written);
        let announced = Announced { announced: file.announced, whereabouts, position, name_hash: file.name_hash };
        self.announce(&file.key, announced, container, unix_nano());
    }

    /// Finds files of which nothing is known but their numbers, in the containers; whether they are to be looked for
    /// again, since it is not known yet what a log of a container is.
    fn find_nameless(&mut self, files: Vec<Unannounced>) -> bool {
        if files.is_empty() {
            return false;
        }
        let containers = std::mem::take(&mut self.search.containers);
        let unsettled = containers.iter().any(|container| container.settled().is_none());
        let mut sightings = self.sightings(&files, &containers);
        self.search.containers = containers;
        for file in files {
            match self.writer(sightings.remove(&file.key).unwrap_or_default()) {
                Some(Sighting { container, settled, whereabouts, size }) => {
                    let path = whereabouts.path.as_deref().unwrap_or_default();
                    if settled.files.as_ref().is_some_and(|files| files.matches(path)) {
                        self.announce_found(&file, whereabouts, size, &container);
                    } else {
                        // The next write announces it once more.
                        self.verdicts.settle(&file);
                    }
                }
                None if unsettled => {}
                None => {
                    self.readings.count_unjudged(file.written);
                    self.verdicts.settle(&file);
                }
            }
        }
        unsettled
    }

    /// Where files are: who holds one open for writing has written it; else all are named that could have, and see it.
    fn sightings(&self, files: &[Unannounced], containers: &[Arc<Container>]) -> HashMap<InodeKey, Vec<Sighting>> {
        let mut wanted: Vec<_> = files.iter().map(|file| file.key).collect();
        let settled = containers.iter().filter_map(|container| Some((container, container.settled()?)));
        let settled: Vec<_> =
            settled.map(|(container, settled)| (container, pids(&self.settings, &settled), settled)).collect();
        let mut sightings: HashMap<_, Vec<_>> = HashMap::new();
        for (container, pids, settled) in &settled {
            for (pid, fd, found) in survey::held(pids, &wanted) {
                sightings.entry(found.key).or_default().push(Sighting::new(pid, fd, found, container, settled));
            }
        }
        wanted.retain(|key| !sightings.contains_key(key));
        let mut left = survey::MAX_ENTRIES;
        for (container, pids, settled) in &settled {
            let Some(files) = &settled.files else { continue };
            let pid = pids.first().copied().unwrap_or_default();
            let view = View::of_process(pid).or_else(|| View::of_directory(rootfs(&self.settings, settled)?));
            for found in view.into_iter().flat_map(|view| view.find(files, &wanted, &mut left)) {
                sightings.entry(found.key).or_default().push(Sighting::new(pid, -1, found, container, settled));
            }
        }
        if left == 0 {
            tracing::warn!(
                entries = survey::MAX_ENTRIES,
                "the search for files that the ring could not announce has ended early: the containers have too many; \
                 what was not found is counted, and read when it is written next"
            );
        }
        sightings
    }

    /// Whose a file is. Where several could have written it, it is that one's which is known to write logs beside it, or
    /// that of any of one Pod; else nobody can tell.
    fn writer(&self, mut sightings: Vec<Sighting>) -> Option<Sighting> {
        if sightings.len() > 1 {
            let writes_there = |seen: &Sighting| {
                let directory = seen.whereabouts.path.as_deref().and_then(|path| Some(path.rsplit_once('/')?.0));
                directory
                    .is_some_and(|directory| self.log_directories(&seen.container, &seen.settled).contains(directory))
            };
            let writing: Vec<_> = sightings.iter().map(writes_there).collect();
            if writing.contains(&true) {
                let mut writing = writing.into_iter();
                sightings.retain(|_| writing.next().unwrap_or_default());
            }
        }
        let pod = |seen: &Sighting| seen.settled.identity.resource.pod_uid.clone();
        let first = sightings.first()?;
        let one = sightings.len() == 1 || pod(first).is_some() && sightings.iter().all(|seen| pod(seen) == pod(first));
        one.then(|| sightings.swap_remove(0))
    }
}

impl Sighting {
    fn new(tgid: u32, fd: i32, found: Found, container: &Arc<Container>, settled: &Arc<Profile>) -> Self {
        Self {
            container: Arc::clone(container),
            settled: Arc::clone(settled),
            size: found.file.metadata().map_or(0, |metadata| metadata.len()),
            whereabouts: Whereabouts { tgid, fd, path: Some(found.path.into()) },
        }
    }
}

/// Whether a process of the container has the file open: it may be deleted, and is announced when it is written next.
fn is_held(settings: &Settings, file: &Unannounced, container: &Container) -> bool {
    let Some(settled) = container.settled() else { return false };
    // The device may be another one than the kernel has.
    find::held_for_writing(&pids(settings, &settled)).iter().any(|(_, ino)| *ino == file.key.ino)
}
