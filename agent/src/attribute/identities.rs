//! What is known of each cgroup, kept until its last record is out.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Files, Identity, Settings, resolve};

/// The first pause before an identity that is not complete is looked up again; it doubles each time.
const FIRST_RETRY: Duration = Duration::from_millis(10);
/// The longest pause, for as long as the container lives.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How long records are worth holding back for metadata that is not there.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of every cgroup that has written. One thread owns it; it has no thread and no clock of its own.
#[derive(Debug)]
pub struct Identities<F> {
    files: F,
    settings: Settings,
    host_name: Option<Arc<str>>,
    entries: HashMap<u64, Entry>,
    /// The container's own cgroup id by its path, so that cgroups below it share one identity.
    containers: HashMap<Arc<str>, u64>,
    /// Cgroup ids of running containers by [`Entry::order`], oldest first.
    live: BTreeMap<u64, u64>,
    /// Cgroup ids of containers that have exited, by [`Entry::order`], in the order of their ends.
    exited: BTreeMap<u64, u64>,
    next_order: u64,
    statistics: Statistics,
}

#[derive(Debug)]
struct Entry {
    identity: Arc<Identity>,
    path: Arc<str>,
    pid: Option<u32>,
    exited: bool,
    /// Key in `live` or in `exited`.
    order: u64,
    first_seen: Instant,
    /// `None` once there is nothing more to find out.
    retry: Option<Retry>,
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    due: Instant,
    pause: Duration,
}

/// The answer to one question.
#[derive(Debug)]
pub struct Lookup<'a> {
    /// What is known now; at least the cgroup's path.
    pub identity: &'a Arc<Identity>,
    /// False while it is worth holding a record back, because a little later more may be known.
    pub settled: bool,
}

/// Figures for `telemetry`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Statistics {
    /// Cgroups that run, now.
    pub live: usize,
    /// Exited containers that are kept, now.
    pub exited: usize,
    /// Identities that are not complete, now.
    pub incomplete: usize,
    /// Times that the runtimes' files were searched, since the start.
    pub resolutions: u64,
    /// Containers forgotten before they were released because there were too many, since the start.
    pub evictions: u64,
}

impl<F: Files> Identities<F> {
    /// An empty cache. `host_name` is the node's name, and goes into every resource.
    pub fn new(files: F, settings: Settings, host_name: Option<Arc<str>>) -> Self {
        Self {
            files,
            settings,
            host_name,
            entries: HashMap::new(),
            containers: HashMap::new(),
            live: BTreeMap::new(),
            exited: BTreeMap::new(),
            next_order: 0,
            statistics: Statistics::default(),
        }
    }

    /// What is known of a cgroup, without looking anything up.
    #[must_use]
    pub fn get(&self, cgroup_id: u64) -> Option<&Arc<Identity>> {
        self.entries.get(&cgroup_id).map(|entry| &entry.identity)
    }

    /// Who is behind a cgroup. The first question reads files; so does one when a retry is due. Every other costs one
    /// look into a hash table.
    ///
    /// `path` is the cgroup's path in the v2 hierarchy, `pid` a process in it when one is known; both count only
    /// where files are read.
    pub fn lookup(&mut self, cgroup_id: u64, path: &str, pid: Option<u32>, now: Instant) -> Lookup<'_> {
        match self.entries.get(&cgroup_id).map(|entry| entry.retry.is_some_and(|retry| now >= retry.due)) {
            Some(false) => {}
            Some(true) => self.retry(cgroup_id, path, pid, now),
            None => self.insert(cgroup_id, path, pid, now),
        }
        // It was there or has just been put there.
        let entry = &self.entries[&cgroup_id];
        let settled = entry.retry.is_none() || now.saturating_duration_since(entry.first_seen) >= PATIENCE;
        Lookup { identity: &entry.identity, settled }
    }

    /// Says that a cgroup is gone. What is known of it stays until [`Identities::release`], or until there are too
    /// many such. An incomplete identity is looked up once more, for its files may be there for a moment yet.
    pub fn exited(&mut self, cgroup_id: u64, now: Instant) {
        let Some(entry) = self.entries.get(&cgroup_id) else { return };
        if entry.exited {
            return;
        }
        if entry.retry.is_some() {
            let (path, pid) = (Arc::clone(&entry.path), entry.pid);
            self.retry(cgroup_id, &path, pid, now);
        }
        let order = self.next_order();
        if let Some(entry) = self.entries.get_mut(&cgroup_id) {
            entry.exited = true;
            entry.retry = None;
            self.live.remove(&std::mem::replace(&mut entry.order, order));
            self.exited.insert(order, cgroup_id);
            // A cgroup made later at the same path is another container.
            if self.containers.get(&entry.path) == Some(&cgroup_id) {
                self.containers.remove(&entry.path);
            }
        }
        while self.exited.len() > self.settings.exited_containers {
            let Some((_, oldest)) = self.exited.pop_first() else { break };
            self.remove(oldest);
            self.statistics.evictions += 1;
        }
    }

    /// Forgets a cgroup: its last record is out.
    pub fn release(&mut self, cgroup_id: u64) {
        self.remove(cgroup_id);
    }

    /// The figures now.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics {
            live: self.live.len(),
            exited: self.exited.len(),
            incomplete: self.entries.values().filter(|entry| !entry.identity.complete).count(),
            ..self.statistics
        }
    }

    fn insert(&mut self, cgroup_id: u64, path: &str, pid: Option<u32>, now: Instant) {
        let identity = match self.container_above(path) {
            Some(identity) => identity,
            None => Arc::new(self.resolve(path, pid)),
        };
        let path: Arc<str> = path.into();
        if *identity.container_cgroup == *path {
            self.containers.insert(Arc::clone(&path), cgroup_id);
        }
        let order = self.next_order();
        self.live.insert(order, cgroup_id);
        let retry = (!identity.complete).then(|| Retry { due: now + FIRST_RETRY, pause: FIRST_RETRY });
        self.entries.insert(cgroup_id, Entry { identity, path, pid, exited: false, order, first_seen: now, retry });
        while self.live.len() > self.settings.live_cgroups.max(1) {
            let Some((_, oldest)) = self.live.pop_first() else { break };
            self.remove(oldest);
            self.statistics.evictions += 1;
        }
    }

    /// The complete identity of a running container that has made the cgroup at `path` below its own.
    fn container_above(&self, path: &str) -> Option<Arc<Identity>> {
        let mut above = path;
        while let Some((parent, _)) = above.rsplit_once('/') {
            let entry = self.containers.get(parent).and_then(|id| self.entries.get(id));
            // The cgroups above a container are no containers, and would give their name to all that is below.
            if let Some(entry) = entry.filter(|entry| entry.identity.complete) {
                return Some(Arc::clone(&entry.identity));
            }
            above = parent;
        }
        None
    }

    fn retry(&mut self, cgroup_id: u64, path: &str, pid: Option<u32>, now: Instant) {
        let identity = self.resolve(path, pid);
        let Some(entry) = self.entries.get_mut(&cgroup_id) else { return };
        // Files that have gone meanwhile take nothing away.
        let better = identity.complete || identity.resource.pod.is_some() || entry.identity.resource.pod.is_none();
        if better && *entry.identity != identity {
            entry.identity = Arc::new(identity);
        }
        entry.retry = match entry.retry {
            Some(retry) if !entry.identity.complete => {
                let pause = (retry.pause * 2).min(LAST_RETRY);
                Some(Retry { due: now + pause, pause })
            }
            _ => None,
        };
        if *entry.identity.container_cgroup == *entry.path {
            self.containers.insert(Arc::clone(&entry.path), cgroup_id);
        }
    }

    fn resolve(&mut self, path: &str, pid: Option<u32>) -> Identity {
        self.statistics.resolutions += 1;
        resolve(&self.files, &self.settings, self.host_name.as_ref(), path, pid)
    }

    fn remove(&mut self, cgroup_id: u64) {
        let Some(entry) = self.entries.remove(&cgroup_id) else { return };
        if entry.exited {
            self.exited.remove(&entry.order);
        } else {
            self.live.remove(&entry.order);
        }
        if self.containers.get(&entry.path) == Some(&cgroup_id) {
            self.containers.remove(&entry.path);
        }
    }

    fn next_order(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order
    }
}
