//! Brings what policies say of traffic to the kernel: for the Pods that there are, as they and the policies come and go.
//!
//! A thread of its own, since lists may be long. The kernel's programs go on by what they were told while it works, while no
//! agent runs, and while a new one does not know yet what a Pod is.

use std::{
    array,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Relaxed, Release},
        },
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use sidestep_abi::govern::TIERS;

use super::{
    container::Profile,
    governed::{Held, Reading, RecentRefusals},
    known::Known,
    lists::{self, Lists},
};
use crate::{
    attribute, clock,
    kubernetes::{Knowledge, Kubernetes},
    load::{
        Governors, RootPattern, cgroups,
        interfaces::{self, NoInterface, Ways},
    },
    policy::{
        Policies, Subject,
        annotations::Declared,
        precedence::Key,
        selection::Refused,
        traffic::{
            TrafficSettings,
            compile::{ListName, Name, Plan, Tier, Unmet},
            pod_peers::PodsOfList,
            program::{AtInterface, Desired, Maps, Planned, Programmer, Unsettled},
            request_sets::{RequestMaps, Way},
            window::Window,
        },
    },
    record::Resource,
};

/// Pause between looks at whether anything is new.
const NAP: Duration = Duration::from_millis(50);
/// Pause between looks at everything, whether anything is new or not.
const ALL: Duration = Duration::from_secs(1);

/// Turns for which the version of policies that holds waits for interfaces.
const MOST_LOOKS: u32 = 3;
/// How long after the last of what a full map of the kernel programs had no room for that is told.
const FULL: Duration = Duration::from_secs(60);

/// Why a Pod waits, and why what holds for one is older than what is declared, in words.
const WAITS: &str = "not all is known yet that policies go by";
const UNCERTAIN: &str = "is refused, and what it said before is not known: what policies of its kind said goes on";

/// For who asks, and who has new policies.
#[derive(Clone, Debug)]
pub struct Handle {
    reading: Arc<Mutex<Arc<Reading>>>,
    recent: Arc<RecentRefusals>,
    news: Sender<News>,
    /// That of the files that were read last, or are being read.
    files_version: Arc<AtomicU64>,
}

/// What makes the thread look.
#[derive(Debug)]
enum News {
    /// Policies of files, and their version.
    Files(u64, Arc<Policies>),
    /// A container.
    Container,
    /// The agent's.
    End,
}

impl Handle {
    /// What holds.
    #[must_use]
    pub fn reading(&self) -> Arc<Reading> {
        Arc::clone(&self.reading.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The refusals that are kept for who asks.
    #[must_use]
    pub fn recent(&self) -> &RecentRefusals {
        &self.recent
    }

    /// The version of policies of files that are read from now on.
    #[must_use]
    pub fn next_files(&self) -> u64 {
        self.files_version.fetch_add(1, Relaxed) + 1
    }

    /// Takes over other policies of files, unless some are there that were read later.
    pub fn set_files(&self, version: u64, policies: Arc<Policies>) {
        // Without programs nobody takes them.
        let _ = self.news.send(News::Files(version, policies));
    }

    /// Ends the thread: what holds goes on, as far as the programs are pinned.
    pub fn end(&self) {
        let _ = self.news.send(News::End);
    }
}

/// The thread's state.
pub struct Governor {
    programs: Governors,
    programmer: Programmer,
    containers: Arc<Known>,
    kubernetes: Kubernetes,
    mount: PathBuf,
    roots: Vec<RootPattern>,
    /// Policies of files; `None` as long as they could not be read.
    files: Option<Arc<Policies>>,
    files_version: u64,
    lists: Lists,
    policies: Arc<Policies>,
    reading: Arc<Mutex<Arc<Reading>>>,
    told: Option<String>,
    /// What may not be meant, as far as it was told.
    warned: BTreeSet<String>,
    /// Pods whose packets shall be looked at, and to which no interface led when it was looked for last: while a Pod is made it has
    /// none yet.
    unreached: BTreeSet<u64>,
    /// Turns in a row in which an interface was looked for in vain for the first time.
    looks: u32,
    /// What the kernel programs have not counted, and since when that is known.
    uncounted: (u64, Option<Instant>),
    /// Whether a container is new that no turn has looked at.
    is_woken: Arc<AtomicBool>,
}

impl Governor {
    /// Starts the thread; it ends with [`Handle::end`]. Without programs there is nothing to do but to say so.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn(
        programs: Result<Governors, String>,
        (maps, requests): (Maps, RequestMaps),
        containers: Arc<Known>,
        kubernetes: &Kubernetes,
        (mount, roots): (&Path, &[RootPattern]),
        files: Option<Arc<Policies>>,
    ) -> io::Result<Handle> {
        let (sender, receiver) = channel();
        let reading = Arc::<Mutex<Arc<Reading>>>::default();
        let handle = Handle {
            reading: Arc::clone(&reading),
            recent: Arc::default(),
            news: sender.clone(),
            files_version: Arc::default(),
        };
        let programs = match programs {
            Ok(programs) => programs,
            Err(error) => {
                tracing::warn!(error, "this kernel takes no programs that govern: policies for traffic have no effect");
                let unmet = vec![error.clone().into()];
                // There is nothing to wait for.
                let (policies, files_version) = ((u64::MAX, Arc::default()), u64::MAX);
                let nothing = Reading { problem: Some(error), unmet, policies, files_version, ..Reading::default() };
                *reading.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(nothing);
                return Ok(handle);
            }
        };
        let mut governor = Self {
            programs,
            programmer: Programmer::new(maps, requests),
            containers,
            policies: kubernetes.policies().get(),
            kubernetes: kubernetes.clone(),
            mount: mount.to_owned(),
            roots: roots.to_vec(),
            files,
            files_version: 0,
            lists: Lists::default(),
            reading,
            told: None,
            warned: BTreeSet::new(),
            unreached: BTreeSet::new(),
            looks: 0,
            uncounted: (0, None),
            is_woken: Arc::default(),
        };
        governor.warn();
        // What was missed before is told of no more.
        governor.uncounted.0 = governor.programmer.uncounted();
        let is_woken = Arc::clone(&governor.is_woken);
        governor.containers.watch(move || {
            // One of them is enough, however many containers come.
            if !is_woken.swap(true, AcqRel) {
                let _ = sender.send(News::Container);
            }
        });
        std::thread::Builder::new().name("govern".to_owned()).spawn(move || governor.run(&receiver))?;
        Ok(handle)
    }

    fn run(&mut self, news: &Receiver<News>) {
        let mut next = Instant::now();
        let mut seen = 0;
        loop {
            let now = Instant::now();
            let version = self.kubernetes.policies().version();
            if now >= next || version != seen {
                seen = version;
                self.turn();
                next = now + self.programmer.put_off().unwrap_or(ALL).min(self.until_next_date());
            }
            match news.recv_timeout(NAP) {
                Ok(News::Files(version, policies)) if version > self.files_version => {
                    (self.files, self.files_version) = (Some(policies), version);
                    self.lists.clear();
                    self.warn();
                    next = Instant::now();
                }
                Ok(News::Container) => {
                    self.is_woken.store(false, Release);
                    next = Instant::now();
                }
                Ok(News::Files(..)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(News::End) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// How long until a policy begins or ends, by the wall clock. One that is set later shows in the next turn.
    fn until_next_date(&self) -> Duration {
        let now = Timestamp::now();
        let policies = [Some(&self.policies), self.files.as_ref()].into_iter().flatten();
        let next = policies.filter_map(|policies| policies.next_change(now)).min();
        next.map_or(Duration::MAX, |next| next.duration_since(now).unsigned_abs())
    }

    /// Tells once what of policies may not be meant.
    fn warn(&mut self) {
        let policies = [Some(&self.policies), self.files.as_ref()].into_iter().flatten();
        let warnings = policies.flat_map(|policies| policies.all()).flat_map(|policy| policy.warnings()).collect();
        for warning in BTreeSet::difference(&warnings, &self.warned) {
            tracing::warn!(warning, "a policy may not do what is meant");
        }
        self.warned = warnings;
    }

    fn turn(&mut self) {
        let now = Timestamp::now();
        let mut unmet = Vec::new();
        let (version, policies) = self.kubernetes.policies().versioned();
        if !Arc::ptr_eq(&policies, &self.policies) {
            self.policies = policies;
            self.lists.clear();
            self.warn();
        }
        let files_name_pods = self.files.as_ref().is_some_and(|files| files.name_pods());
        self.kubernetes.peer_pods().want(files_name_pods || self.policies.name_pods());
        let is_open = |traffic: &TrafficSettings| traffic.window().is_open(now);
        let refused =
            self.policies.refused().filter(|refused| self.policies.traffic(&refused.key).is_some_and(is_open));
        // Of the policy itself its status says so.
        let name = |refused: &Refused| Name { key: refused.key.clone(), is_file: false };
        unmet.extend(
            refused.map(|refused| Unmet::of(&[name(refused)], format!("{refused}; what it said before goes on"))),
        );
        let (mut desired, mut pods) = self.desired(now, &mut unmet);
        let pods_of_lists = self.lists(&mut desired, &mut unmet);
        // Where no policy says anything no program is attached: the kernel asks for each datagram otherwise.
        let is_needed = !desired.pods.is_empty() || self.programmer.pods().next().is_some();
        unmet.extend(self.programs.refresh(is_needed).err().map(Unmet::from));
        unmet.extend(self.programmer.apply(&desired, Instant::now()));
        for held in &mut pods {
            let names = || held.plans.iter().flatten().flat_map(Plan::names);
            let older = unmet.iter().filter(|unmet| unmet.is_older && unmet.concerns(names()));
            held.older.extend(older.map(|unmet| unmet.text.clone()).collect::<Vec<_>>());
        }
        let is_looking = self.govern_interfaces(&mut pods, &mut unmet);
        let uncounted = self.programmer.uncounted();
        if uncounted != self.uncounted.0 {
            self.uncounted = (uncounted, Some(Instant::now()));
        }
        if self.uncounted.1.is_some_and(|last| last.elapsed() < FULL) {
            let text = "a map of the kernel programs is full: limits and counts of some Pods are missing";
            unmet.push(text.to_owned().into());
        }
        let files = "the policies of files could not be read: see the agent's log".to_owned();
        let texts = unmet.iter().map(|unmet| &unmet.text).chain(self.files.is_none().then_some(&files));
        let texts: Vec<&str> = texts.map(String::as_str).collect();
        let problem = (!texts.is_empty()).then(|| texts.join("; "));
        if problem != self.told {
            match &problem {
                Some(problem) => tracing::warn!(problem, "policies for traffic are not in force as declared"),
                None => tracing::info!("policies for traffic are in force again"),
            }
            self.told.clone_from(&problem);
        }
        // Who drains the ring asks for the last reading: it is replaced at once.
        let last = Arc::clone(&self.reading.lock().unwrap_or_else(PoisonError::into_inner));
        let refused: Vec<_> = self.programmer.refused().collect();
        let used: BTreeSet<u32> = refused.iter().map(|(key, _)| key.limit).collect();
        let mut limits = last.limits.clone();
        limits.retain(|limit, _| used.contains(limit));
        let rules = pods.iter().flat_map(|held| held.plans.iter().flatten()).flat_map(|plan| &plan.requests);
        limits.extend(rules.map(|rule| (rule.kernel.limit, rule.refuser())));
        // What was put off is not in the kernel yet, and of what was looked for once it is not certain that it is not there; where Pods
        // come all the time others do not wait for that.
        self.looks = if is_looking { self.looks + 1 } else { 0 };
        let is_done = self.programmer.put_off().is_none() && (!is_looking || self.looks > MOST_LOOKS);
        let (policies, files_version) = if is_done {
            ((version, Arc::clone(&self.policies)), self.files_version)
        } else {
            (last.policies.clone(), last.files_version)
        };
        let reading = Arc::new(Reading {
            pods,
            lists: desired.lists,
            pods_of_lists,
            limits,
            refused,
            counted_unix_nano: clock::unix_nano(),
            problem,
            unmet,
            policies,
            files_version,
        });
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = reading;
    }

    /// Attaches what looks at packets where they pass; whether some interface was looked for in vain for the first time, and is looked
    /// for once more before that is said.
    fn govern_interfaces(&mut self, pods: &mut [Held], unmet: &mut Vec<Unmet>) -> bool {
        // Where nothing can be looked at, what has to be is told of alone.
        let reaches = self.programs.reach_interfaces();
        let looked_at = self.programmer.pods_at_interfaces().filter(|(_, asked)| reaches || asked.is_needed());
        let looked_at: BTreeMap<u64, AtInterface> = looked_at.collect();
        let network = match interfaces::network_of("self") {
            Ok(network) => network,
            Err(error) => {
                unmet.push(format!("/proc/self/ns/net: {error}").into());
                return false;
            }
        };
        let known = self.programmer.interfaces(network);
        if looked_at.is_empty() && known.is_empty() && self.unreached.is_empty() {
            return false;
        }
        let mut is_looking = false;
        let places: BTreeMap<u64, &Held> =
            pods.iter().filter(|held| held.path.is_some()).map(|held| (held.cgroup, held)).collect();
        let asked = places.iter().filter(|(cgroup, _)| looked_at.contains_key(cgroup));
        let asked = asked.filter_map(|(cgroup, held)| Some((*cgroup, held.path.as_deref()?)));
        let (mut interfaces, mut unreached, mut missed) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        // Of a Pod that is not known yet, or that can't be asked for at this moment, goes on what held.
        let mut keeps: BTreeSet<u64> =
            looked_at.keys().filter(|cgroup| !places.contains_key(cgroup)).copied().collect();
        for (cgroup, found) in interfaces::of_pods(asked) {
            let error = match found {
                Ok(Ways { interfaces: found, network }) => {
                    interfaces.extend(found.into_iter().map(|index| (index, Way { cgroup, network, looks: 0 })));
                    continue;
                }
                Err(error) => error,
            };
            let is_certain = matches!(error, NoInterface::HostNetwork);
            if !is_certain {
                keeps.insert(cgroup);
            }
            let is_known = known.values().any(|way| way.cgroup == cgroup);
            let wanted = looked_at.get(&cgroup).copied().unwrap_or_default();
            let is_missed = wanted.is_needed() && !matches!(error, NoInterface::NoProcess);
            let is_new = unreached.insert(cgroup) && !self.unreached.contains(&cgroup) && !is_certain;
            is_looking |= is_new && is_missed;
            if is_missed && !is_known && !is_new {
                // One in the node's network has none by its nature, which its policies' status says and no alarm.
                let is_alarming = !matches!(error, NoInterface::HostNetwork);
                missed.insert(cgroup, (format!("{} are not governed: {error}", wanted.in_words()), is_alarming));
            }
        }
        self.unreached = unreached;
        let is_kept = |index: &u32, way: &Way| keeps.contains(&way.cgroup) && interfaces::name(*index).is_some();
        interfaces.extend(known.into_iter().filter(|(index, way)| is_kept(index, way)));
        self.programmer.retain_interfaces(network, &interfaces);
        for way in interfaces.values_mut() {
            way.looks = looked_at.get(&way.cgroup).copied().unwrap_or_default().looks();
        }
        match self.programs.refresh_interfaces(&interfaces.keys().copied().collect()) {
            Ok(failed) => {
                for (index, error) in failed {
                    let Some(Way { cgroup, .. }) = interfaces.remove(&index) else { continue };
                    // What the Pods themselves begin is asked for at their system calls as well.
                    if looked_at.get(&cgroup).is_some_and(|asked| asked.is_needed()) {
                        missed.insert(cgroup, (error, true));
                    }
                }
            }
            Err(error) => {
                let is_needed = looked_at.values().any(|asked| asked.is_needed());
                let named = || pods.iter().flat_map(Held::at_interface);
                unmet.extend(is_needed.then(|| Unmet::of(named(), error)));
                interfaces.clear();
            }
        }
        if let Err(error) = self.programmer.set_interfaces(network, &interfaces) {
            unmet.push(format!("map INTERFACES: {error}").into());
        }
        for held in pods {
            if let Some((text, is_alarming)) = missed.remove(&held.cgroup) {
                if is_alarming {
                    unmet.push(Unmet::of(held.at_interface(), format!("{}: {text}", held.name())));
                }
                held.unmet = Some(text);
            }
            let own = interfaces.iter().filter(|(_, way)| way.cgroup == held.cgroup);
            held.interfaces = own.filter_map(|(index, _)| interfaces::name(*index)).collect();
        }
        is_looking
    }

    /// What shall hold at the time `now` for the Pods that there are.
    fn desired(&mut self, now: Timestamp, unmet: &mut Vec<Unmet>) -> (Desired, Vec<Held>) {
        let mut desired = Desired::default();
        let mut pods: BTreeMap<u64, Held> = BTreeMap::new();
        let mut met = BTreeSet::new();
        let mut uncertain: BTreeMap<Key, BTreeSet<Name>> = BTreeMap::new();
        let held: BTreeSet<u64> = self.programmer.pods().collect();
        // Until all is known that can be, what held goes on.
        let is_all_known = self.kubernetes.has_told_all() && self.files.is_some();
        let all = self.policies.all().chain(self.files.iter().flat_map(|files| files.all()));
        let is_anything_said = all.into_iter().any(|policy| policy.window().is_some());
        for profile in self.containers.all() {
            let Some((cgroup, path)) = pod_cgroup(&self.mount, &profile) else { continue };
            if !met.insert(cgroup) {
                continue;
            }
            let resource = &profile.identity.resource;
            let is_held = held.contains(&cgroup);
            let said = self.said(&profile, now);
            let waits = if said.is_none() { "the API server has not told of it" } else { WAITS };
            let mut held = Held {
                cgroup,
                namespace: resource.namespace.clone(),
                pod: resource.pod.clone(),
                resource: resource_of_pod(&profile.resource),
                path: Some(path),
                interfaces: Vec::new(),
                unmet: None,
                plans: None,
                waits: None,
                is_held,
                older: Vec::new(),
                dated: Vec::new(),
            };
            let Some(Said { plans, dated }) = said.filter(|_| !is_held || is_all_known) else {
                desired.unknown.insert(cgroup);
                if is_held || is_anything_said {
                    held.waits = Some(waits);
                    pods.insert(cgroup, held);
                }
                continue;
            };
            let keeps = array::from_fn(|index| {
                let (tier, plan): (Tier, &Plan) = (Tier::ALL[index], &plans[index]);
                let mut refused =
                    self.policies.uncertain(resource.namespace.as_deref().unwrap_or_default(), tier.is_namespaced);
                let refused = refused.next().filter(|_| is_held);
                if let Some(refused) = refused {
                    held.older.push(format!("{} {UNCERTAIN}", refused.key));
                    uncertain.entry(refused.key.clone()).or_default().extend(plan.names().cloned());
                }
                refused.is_some()
            });
            if is_held || !plans.iter().all(Plan::is_empty) {
                desired.pods.insert(cgroup, Planned { plans: plans.clone(), keeps });
            }
            if !plans.iter().all(Plan::is_empty) || !dated.is_empty() || !held.older.is_empty() {
                (held.plans, held.dated) = (Some(plans), dated);
                pods.insert(cgroup, held);
            }
        }
        // Of these no container is known yet.
        if held.iter().any(|pod| !met.contains(pod)) {
            let there: BTreeSet<u64> =
                cgroups::list(&self.mount, &self.roots).into_iter().map(|cgroup| cgroup.id).collect();
            for cgroup in held.into_iter().filter(|pod| !met.contains(pod) && there.contains(pod)) {
                desired.unknown.insert(cgroup);
                let nothing = Held {
                    cgroup,
                    namespace: None,
                    pod: None,
                    resource: Arc::default(),
                    path: None,
                    interfaces: Vec::new(),
                    unmet: None,
                    plans: None,
                    waits: Some("no container of it is known"),
                    is_held: true,
                    older: Vec::new(),
                    dated: Vec::new(),
                };
                pods.insert(cgroup, nothing);
            }
        }
        if !desired.unknown.is_empty() && !is_all_known {
            unmet.push(format!("{WAITS}: for Pods for which something held that goes on").into());
        }
        unmet.extend(uncertain.into_iter().map(|(key, held_back)| {
            let text = format!("{key} {UNCERTAIN}");
            Unmet::of(held_back.iter().chain(&[Name { key, is_file: false }]), text)
        }));
        (desired, pods.into_values().collect())
    }

    /// Makes the lists that shall hold, and returns the Pods that they name.
    fn lists(&mut self, desired: &mut Desired, unmet: &mut Vec<Unmet>) -> BTreeMap<ListName, Arc<PodsOfList>> {
        let plans = desired.pods.values().flat_map(|planned| &planned.plans);
        let names: BTreeSet<_> = plans.flat_map(Plan::lists).collect();
        self.lists.retain(&names);
        let (there, now) = (Arc::clone(self.kubernetes.peer_pods()), Instant::now());
        let (knowledge, mut pods) = (there.knowledge(), BTreeMap::new());
        for name in names {
            let of = |policy: &Name| match policy.is_file {
                true => self.files.as_ref()?.traffic(&policy.key),
                false => self.policies.traffic(&policy.key),
            };
            let entries = || {
                let traffic = name.policies.iter().filter_map(|policy| Some((policy, of(policy)?)));
                let entries = traffic.flat_map(|(policy, traffic)| {
                    let peers = traffic.allow.peers(name.direction).into_iter().flatten();
                    peers.map(|peers| (policy.clone(), peers))
                });
                entries.collect()
            };
            let made = self.lists.get(&name, &entries, &there, now);
            let list = match &made.list {
                Ok(list) => Arc::clone(list),
                Err(problem) => {
                    unmet.push(Unmet::of(&name.policies, problem.clone()).by_older());
                    continue;
                }
            };
            if let Some(of_list) = &made.pods {
                pods.insert(name.clone(), Arc::clone(of_list));
                // What has been told meanwhile is the next turn's.
                let knowledge = match &knowledge {
                    Knowledge::Listed if !made.knows_pods() => &Knowledge::Starting,
                    knowledge => knowledge,
                };
                match knowledge {
                    Knowledge::Listed | Knowledge::Off => {}
                    Knowledge::Starting => {
                        desired.unsettled.insert(name.clone(), Unsettled::Waits);
                    }
                    Knowledge::Failed(_) => {
                        desired.unsettled.insert(name.clone(), Unsettled::HoldsAsKnown);
                    }
                }
                let unknown = lists::unknown_pods(&name, knowledge);
                let left_out = Some(there.left_out()).filter(|count| *count > 0).map(|count| {
                    format!("{name}: there is no room for {count} of the cluster's Pods, which are not let through by their labels")
                });
                let of = |problem| Unmet::of(&name.policies, problem);
                let unknown = unknown.map(of).map(|unmet| match knowledge {
                    Knowledge::Off => unmet,
                    Knowledge::Starting | Knowledge::Failed(_) | Knowledge::Listed => unmet.by_older(),
                });
                unmet.extend(unknown.into_iter().chain([made.problem.clone(), left_out].into_iter().flatten().map(of)));
            }
            desired.lists.insert(name, list);
        }
        pods
    }

    /// What is said of a Pod at the time `now`; `None` while too little of it is known.
    fn said(&self, profile: &Profile, now: Timestamp) -> Option<Said> {
        let resource = &profile.identity.resource;
        let pod = resource.pod_uid.as_ref().and_then(|uid| self.kubernetes.pods().get(uid));
        let nothing = Arc::<Declared>::default();
        let (no_labels, no_files) = (BTreeMap::new(), Arc::<Policies>::default());
        let subject = match &pod {
            Some(pod) => pod.subject(&nothing),
            None if resource.pod_uid.is_some() && self.kubernetes.may_tell() => return None,
            None => Subject {
                namespace: resource.namespace.as_deref().unwrap_or_default(),
                namespace_labels: None,
                labels: &no_labels,
                declared: &nothing,
                workload: None,
            },
        };
        let files = self.files.as_ref().unwrap_or(&no_files);
        Some(Said { plans: self.policies.plans(&subject, files, now), dated: self.policies.dated(&subject, files) })
    }
}

/// What policies say of a Pod.
struct Said {
    plans: [Plan; TIERS],
    /// Those that say it at some times only.
    dated: Vec<(Name, Window)>,
}

/// What records of a Pod have, where those of its containers have more.
fn resource_of_pod(container: &Arc<Resource>) -> Arc<Resource> {
    if container.pod.is_none() {
        return Arc::clone(container);
    }
    let unknown = Resource {
        container_runtime: None,
        container_id: None,
        container_name: None,
        image: None,
        ..Resource::clone(container)
    };
    // Who is governed does not choose where it is told of.
    Arc::new(Resource { cgroup: None, route: None, ..unknown })
}

/// The cgroup of the Pod of a container, or of a container that has none. `None` when it is gone.
fn pod_cgroup(mount: &Path, profile: &Profile) -> Option<(u64, PathBuf)> {
    let own = &profile.identity.container_cgroup;
    let path = Path::new(own.trim_start_matches('/'));
    // Where the path does not name the Pod, or is the Pod's own, the cgroup above is that of others, too.
    let parsed = attribute::cgroup::parse(own);
    let path = if parsed.pod_uid.is_some() && parsed.container_id.is_some() { path.parent()? } else { path };
    if path.as_os_str().is_empty() {
        return None;
    }
    let path = mount.join(path);
    fs::metadata(&path).ok().map(|metadata| (metadata.ino(), path))
}
