//! Which cgroup is which container, and when who it is counts as known.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    container::{Container, Joined, Profile},
    journal::Change,
    known::Known,
    pod_join::PodJoin,
};
use crate::{
    attribute::{self, HostFiles, Identities, Identity, Statistics},
    config::{Capture, Config, Lines},
    kubernetes::Pod,
    ledger::{Ledger, Reason, Stage},
    load::{RootPattern, Roots, cgroups},
    record::Resource,
};

/// An account stays in the ledger for so long after its container's end, for whoever reads metrics seldom.
const LINGER: Duration = Duration::from_secs(60);
/// Accounts of ended containers that linger; above it the oldest go first.
const MAX_LINGERING: usize = 512;

/// The cgroups below the governed roots, and the containers that they belong to.
pub struct Registry {
    mount: PathBuf,
    roots: Vec<RootPattern>,
    identities: Identities<HostFiles>,
    ledger: Arc<Ledger>,
    capture: Capture,
    lines: Lines,
    pod_join: PodJoin,
    known: Arc<Known>,
    cgroups: HashMap<u64, Cgroup>,
    by_path: HashMap<Arc<str>, u64>,
    /// Containers whose identity is still looked for.
    unsettled: Vec<u64>,
    /// Containers whose records wait for what the API server tells, and since when.
    awaiting: Vec<(u64, Instant)>,
    /// Containers that the journal does not know, or not as they are.
    facts: Vec<Change>,
    /// Those that it need not know any more.
    forgotten: Vec<Change>,
    /// Containers whose cgroup is gone, in the order of their ends.
    gone: Vec<(Instant, u64)>,
}

struct Cgroup {
    path: Arc<str>,
    container: Arc<Container>,
    process: Option<u32>,
}

impl Registry {
    /// An empty registry.
    pub fn new(
        roots: &Roots,
        identities: Identities<HostFiles>,
        ledger: Arc<Ledger>,
        capture: Capture,
        lines: Lines,
        pod_join: PodJoin,
        known: Arc<Known>,
    ) -> Self {
        Self {
            mount: roots.mount.clone(),
            roots: roots.patterns().to_vec(),
            identities,
            ledger,
            capture,
            lines,
            pod_join,
            known,
            cgroups: HashMap::new(),
            by_path: HashMap::new(),
            unsettled: Vec::new(),
            awaiting: Vec::new(),
            facts: Vec::new(),
            forgotten: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// Takes over other rules.
    pub fn reload(&mut self, config: &Config) {
        self.capture = config.capture.clone();
        self.lines = config.lines.clone();
        self.pod_join.reload(config);
        for cgroup in self.cgroups.values() {
            if cgroup.container.settled().is_some() {
                self.renew(&cgroup.container, !cgroup.container.awaits());
            }
        }
    }

    /// Tells a container that is settled what is known of it by now; its records wait no longer when they `go_on`. Whether
    /// other files of it are logs now.
    fn renew(&self, container: &Container, go_on: bool) -> bool {
        let Some(known) = container.settled() else { return false };
        let (identity, account) = (Arc::clone(&known.identity), Arc::clone(&known.account));
        let joined = self.pod_join.join(&identity.resource, go_on, &self.capture);
        let settled = Profile::new(identity, joined, account, &self.capture, &self.lines, Some(&*known));
        let has_other_files = !known.awaits && settled.files != known.files;
        container.settle(settled);
        has_other_files
    }

    /// Tells containers what the API server has told of their Pods and of policies. Whether other files are logs now.
    fn take_news(&mut self, now: Instant) -> bool {
        let news = self.pod_join.news();
        let has_policies = self.pod_join.take_policies();
        let mut has_other_files = false;
        if has_policies || !news.is_empty() {
            for (id, cgroup) in &self.cgroups {
                if cgroup.container.cgroup == *id
                    && cgroup.container.settled().is_some_and(|known| has_policies || concerns(&news, &known))
                {
                    has_other_files |= self.renew(&cgroup.container, !cgroup.container.awaits());
                }
            }
        }
        if has_policies {
            self.known.set_policies(self.pod_join.policies());
        }
        for (cgroup, since) in std::mem::take(&mut self.awaiting) {
            let Some(container) = self.own(cgroup).filter(|container| container.awaits()) else { continue };
            self.renew(&container, self.pod_join.is_over(since, now));
            if container.awaits() {
                self.awaiting.push((cgroup, since));
            }
        }
        has_other_files
    }

    /// Enters all governed cgroups that exist; returns the containers among them that were not known, with their
    /// processes.
    pub fn scan(&mut self) -> Vec<(u64, Vec<u32>)> {
        let mut found = Vec::new();
        for cgroup in cgroups::list(&self.mount, &self.roots) {
            if !self.cgroups.contains_key(&cgroup.id) {
                self.made(cgroup.id, cgroup.path.as_str().into());
                let processes = cgroups::processes(&self.mount, &cgroup.path);
                if !processes.is_empty() {
                    found.push((cgroup.id, processes));
                }
            }
        }
        found
    }

    /// A cgroup was made.
    pub fn made(&mut self, cgroup: u64, path: Arc<str>) {
        if let Some(known) = self.cgroups.get_mut(&cgroup) {
            // Found by a look at the hierarchy, while this was on its way. Ids are never used again.
            if known.path.is_empty() {
                known.path = Arc::clone(&path);
                self.by_path.insert(path, cgroup);
            }
            return;
        }
        // What a container makes below its own cgroup is part of it.
        let owner = attribute::cgroup::parse(&path).container;
        let container = match self.by_path.get(owner).filter(|_| owner != &*path) {
            Some(id) => self.cgroups.get(id).map(|cgroup| Arc::clone(&cgroup.container)),
            None => None,
        };
        let container = container.unwrap_or_else(|| {
            self.facts.push(Change::Container { cgroup, path: Arc::clone(&path), identity: None });
            Container::new(cgroup)
        });
        let is_own = container.cgroup == cgroup && attribute::cgroup::parse(&path).container_id.is_some();
        self.by_path.insert(Arc::clone(&path), cgroup);
        self.cgroups.insert(cgroup, Cgroup { path, container, process: None });
        if is_own {
            // Its program does not run yet, and what policies say of its Pod should hold by then.
            self.container(cgroup);
        }
    }

    /// The container of a cgroup. One that was never announced is looked for among those that exist, and is a
    /// container without a name when it is gone already.
    pub fn container(&mut self, cgroup: u64) -> Arc<Container> {
        if !self.cgroups.contains_key(&cgroup) {
            self.scan();
        }
        let unknown = || Cgroup { path: "".into(), container: Container::new(cgroup), process: None };
        let container = Arc::clone(&self.cgroups.entry(cgroup).or_insert_with(unknown).container);
        if container.settled().is_none() && !self.unsettled.contains(&container.cgroup) {
            self.unsettled.push(container.cgroup);
            self.look_up(&container, Instant::now(), false);
        }
        container
    }

    /// Every container that runs, and those that have ended and are known still. The identity of each is looked for.
    pub fn all(&mut self) -> Vec<Arc<Container>> {
        let runs = |cgroup: &Cgroup| !cgroups::processes(&self.mount, &cgroup.path).is_empty();
        let is_container = |cgroup: &Cgroup| cgroup.container.settled().is_some() || runs(cgroup);
        let own = self.cgroups.iter().filter(|(id, cgroup)| cgroup.container.cgroup == **id && is_container(cgroup));
        let own: Vec<_> = own.map(|(id, _)| *id).collect();
        own.into_iter().map(|id| self.container(id)).collect()
    }

    /// Notes a process of a cgroup, through which files of its container can be reached.
    pub fn started(&mut self, cgroup: u64, process: u32) -> Arc<Container> {
        let container = self.container(cgroup);
        if let Some(entry) = self.cgroups.get_mut(&cgroup) {
            entry.process = Some(process);
        }
        container
    }

    /// The container that a cgroup belongs to, when it is known.
    #[must_use]
    pub fn owner(&self, cgroup: u64) -> Option<Arc<Container>> {
        Some(Arc::clone(&self.cgroups.get(&cgroup)?.container))
    }

    /// The container whose own cgroup this is, when it is known.
    #[must_use]
    pub fn own(&self, cgroup: u64) -> Option<Arc<Container>> {
        self.owner(cgroup).filter(|container| container.cgroup == cgroup)
    }

    /// Enters containers that another agent knew and whose cgroups are gone; returns those.
    pub fn restore(&mut self, containers: HashMap<u64, (Arc<str>, Option<Box<Identity>>)>) -> Vec<u64> {
        let mut gone = Vec::new();
        for (cgroup, (path, identity)) in containers {
            if self.cgroups.contains_key(&cgroup) {
                continue;
            }
            gone.push(cgroup);
            let Some(identity) = identity else {
                // Who it was is looked for when something of it comes.
                self.made(cgroup, path);
                continue;
            };
            let container = Container::new(cgroup);
            let account = self.ledger.open(cgroup, &identity.resource);
            let joined = self.pod_join.join(&identity.resource, false, &self.capture);
            self.await_join(cgroup, &joined, Instant::now());
            container.settle(Profile::new(Arc::new(*identity), joined, account, &self.capture, &self.lines, None));
            self.by_path.insert(Arc::clone(&path), cgroup);
            self.cgroups.insert(cgroup, Cgroup { path, container, process: None });
        }
        gone
    }

    /// What the journal has to know of containers at once, and what once their records are out, since it was asked last.
    pub fn changes(&mut self) -> (Vec<Change>, Vec<Change>) {
        (std::mem::take(&mut self.facts), std::mem::take(&mut self.forgotten))
    }

    /// A cgroup is gone.
    pub fn removed(&mut self, cgroup: u64, now: Instant) {
        let Some(entry) = self.cgroups.remove(&cgroup) else { return };
        self.by_path.remove(&entry.path);
        if entry.container.cgroup == cgroup {
            self.identities.exited(cgroup, now);
            self.gone.push((now, cgroup));
            self.forgotten.push(Change::ContainerGone(cgroup));
        }
    }

    /// Whether there are cgroups that were heard of only after they were gone.
    #[must_use]
    pub fn has_nameless(&self) -> bool {
        self.cgroups.values().any(|cgroup| cgroup.path.is_empty())
    }

    /// Known cgroups that exist no more.
    #[must_use]
    pub fn vanished(&self) -> HashSet<u64> {
        let exists = |path: &str| !path.is_empty() && self.mount.join(path.trim_start_matches('/')).exists();
        let gone = self.cgroups.iter().filter(|(_, cgroup)| !exists(&cgroup.path));
        gone.map(|(id, _)| *id).collect()
    }

    /// Looks again for what is not settled, takes what the API server has told, and lets go of what is long gone. Whether
    /// other files of containers that are known are logs now.
    pub fn tick(&mut self, now: Instant) -> bool {
        let has_other_files = self.take_news(now);
        for cgroup in std::mem::take(&mut self.unsettled) {
            let Some(entry) = self.cgroups.get(&cgroup) else { continue };
            let container = Arc::clone(&entry.container);
            if container.settled().is_none() {
                self.unsettled.push(cgroup);
                self.look_up(&container, now, container.has_ended());
            }
        }
        let excess = self.gone.len().saturating_sub(MAX_LINGERING);
        let mut index = 0;
        let ledger = &self.ledger;
        let identities = &mut self.identities;
        self.gone.retain(|(since, cgroup)| {
            index += 1;
            let balanced = ledger.account(*cgroup).is_none_or(|account| account.balance().pending == 0);
            let keep = !balanced || (index > excess && now.saturating_duration_since(*since) < LINGER);
            if !keep {
                ledger.close(*cgroup);
                identities.release(*cgroup);
            }
            keep
        });
        has_other_files
    }

    /// Books bytes that were captured and are lost, and of which nothing tells whose they are.
    pub fn lose_of_node(&self, reason: Reason, bytes: u64) {
        let account = self.ledger.open(0, &Arc::new(Resource::default()));
        account.produce(bytes);
        account.drop_bytes(Stage::Capture, reason, bytes);
    }

    /// Counts as the identity of a container what is known of it now, if it is looked for still: it has ended, or the agent does.
    pub fn settle_now(&mut self, container: &Arc<Container>, now: Instant) {
        if self.unsettled.contains(&container.cgroup) {
            self.look_up(container, now, true);
        }
    }

    /// The same for every container.
    pub fn settle_all(&mut self, now: Instant) {
        for cgroup in self.unsettled.clone() {
            if let Some(container) = self.own(cgroup) {
                self.settle_now(&container, now);
            }
        }
    }

    /// Settles a container by what is known now, whoever may tell more: its records can't wait any longer.
    pub fn go_on(&mut self, container: &Arc<Container>, now: Instant) {
        self.settle_now(container, now);
        if container.awaits() {
            self.renew(container, true);
        }
    }

    /// The same for every container.
    pub fn all_go_on(&mut self, now: Instant) {
        self.settle_all(now);
        for (cgroup, _) in std::mem::take(&mut self.awaiting) {
            if let Some(container) = self.own(cgroup) {
                self.go_on(&container, now);
            }
        }
    }

    /// Figures of the identity cache.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.identities.statistics()
    }

    fn look_up(&mut self, container: &Arc<Container>, now: Instant, at_once: bool) {
        let Some(entry) = self.cgroups.get(&container.cgroup) else { return };
        let (path, process) = (Arc::clone(&entry.path), entry.process);
        self.settle(container, &path, process, now, at_once);
    }

    /// Notes since when a container waits for what the API server tells.
    fn await_join(&mut self, cgroup: u64, joined: &Joined, now: Instant) {
        if joined.awaits && !self.awaiting.iter().any(|(known, _)| *known == cgroup) {
            self.awaiting.push((cgroup, now));
        }
    }

    fn settle(&mut self, container: &Arc<Container>, path: &str, process: Option<u32>, now: Instant, at_once: bool) {
        let found = self.identities.lookup(container.cgroup, path, process, now);
        if found.settled || at_once {
            let identity = Arc::clone(found.identity);
            let account = self.ledger.open(container.cgroup, &identity.resource);
            if self.cgroups.contains_key(&container.cgroup) {
                let (cgroup, path) = (container.cgroup, path.into());
                let identity = Some(Box::new(Identity::clone(&identity)));
                self.facts.push(Change::Container { cgroup, path, identity });
            }
            let joined = self.pod_join.join(&identity.resource, false, &self.capture);
            self.await_join(container.cgroup, &joined, now);
            container.settle(Profile::new(identity, joined, account, &self.capture, &self.lines, None));
            self.known.insert(container);
            self.unsettled.retain(|cgroup| *cgroup != container.cgroup);
        }
    }
}

/// Whether a container is of one of these Pods.
fn concerns(pods: &[Arc<Pod>], known: &Profile) -> bool {
    let uid = known.identity.resource.pod_uid.as_ref();
    uid.is_some_and(|uid| pods.iter().any(|pod| pod.uid == *uid || pod.static_uid.as_ref() == Some(uid)))
}
