//! Brings what policies say of traffic to the kernel: for the Pods that there are, as they and the policies come and go.
//!
//! A thread of its own, since lists may be long. The kernel's programs go on by what they were told while it works, while no
//! agent runs, and while a new one does not know yet what a Pod is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Release},
        },
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use sidestep_abi::govern::{RefusedKey, TIERS};

use super::{container::Profile, known::Known};
use crate::{
    kubernetes::Kubernetes,
    load::{Governors, RootPattern, cgroups},
    policy::{
        Policies, Subject,
        annotations::Declared,
        precedence::Key,
        traffic::{
            compile::{self, List, Plan},
            program::{Desired, Maps, ProgramError, Programmer},
        },
    },
};

/// Pause between looks at whether anything is new.
const NAP: Duration = Duration::from_millis(50);
/// Pause between looks at everything, whether anything is new or not.
const ALL: Duration = Duration::from_secs(1);

/// What holds for a Pod.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its cgroup.
    pub cgroup: u64,
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub pod: Option<Arc<str>>,
    /// What each tier says.
    pub plans: [Plan; TIERS],
}

/// What holds, and what was refused.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// By the Pod.
    pub pods: Vec<Held>,
    /// Counts of the kernel programs.
    pub refused: Vec<(RefusedKey, u64)>,
    /// Why what shall hold does not, or that there are no programs.
    pub problem: Option<String>,
}

/// For who asks, and who has new policies.
#[derive(Clone, Debug)]
pub struct Handle {
    reading: Arc<Mutex<Reading>>,
    news: Sender<News>,
}

/// What makes the thread look.
#[derive(Debug)]
enum News {
    /// Other policies of files.
    Files(Arc<Policies>),
    /// A container.
    Container,
    /// The agent's.
    End,
}

impl Handle {
    /// What holds.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over other policies of files.
    pub fn set_files(&self, policies: Arc<Policies>) {
        // Without programs nobody takes them.
        let _ = self.news.send(News::Files(policies));
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
    files: Arc<Policies>,
    /// Lists by their policies, as long as these are the same.
    lists: HashMap<BTreeSet<Key>, Arc<List>>,
    policies: Arc<Policies>,
    reading: Arc<Mutex<Reading>>,
    told: Option<String>,
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
        maps: Maps,
        containers: Arc<Known>,
        kubernetes: &Kubernetes,
        (mount, roots): (&Path, &[RootPattern]),
        files: Arc<Policies>,
    ) -> io::Result<Handle> {
        let (sender, receiver) = channel();
        let reading = Arc::<Mutex<Reading>>::default();
        let handle = Handle { reading: Arc::clone(&reading), news: sender.clone() };
        let programs = match programs {
            Ok(programs) => programs,
            Err(error) => {
                tracing::warn!(error, "this kernel takes no programs that govern: policies for traffic have no effect");
                reading.lock().unwrap_or_else(PoisonError::into_inner).problem = Some(error);
                return Ok(handle);
            }
        };
        let mut governor = Self {
            programs,
            programmer: Programmer::new(maps),
            containers,
            policies: kubernetes.policies().get(),
            kubernetes: kubernetes.clone(),
            mount: mount.to_owned(),
            roots: roots.to_vec(),
            files,
            lists: HashMap::new(),
            reading,
            told: None,
            is_woken: Arc::default(),
        };
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
                next = now + ALL;
                seen = version;
                self.turn();
            }
            match news.recv_timeout(NAP) {
                Ok(News::Files(policies)) => {
                    self.files = policies;
                    self.lists.clear();
                    next = Instant::now();
                }
                Ok(News::Container) => {
                    self.is_woken.store(false, Release);
                    next = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(News::End) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn turn(&mut self) {
        let mut problems: Vec<_> = self.programs.refresh().err().into_iter().collect();
        let policies = self.kubernetes.policies().get();
        if !Arc::ptr_eq(&policies, &self.policies) {
            self.policies = policies;
            self.lists.clear();
        }
        let (desired, pods) = self.desired(&mut problems);
        match self.programmer.apply(&desired) {
            Ok(_) => {}
            Err(error @ (ProgramError::List { .. } | ProgramError::Map { .. })) => {
                problems.push(format!("what held before goes on: {error}"));
            }
        }
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        if problem != self.told {
            match &problem {
                Some(problem) => tracing::warn!(problem, "policies for traffic are not in force as declared"),
                None => tracing::info!("policies for traffic are in force again"),
            }
            self.told.clone_from(&problem);
        }
        let refused = self.programmer.refused().collect();
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = Reading { pods, refused, problem };
    }

    /// What shall hold for the Pods that there are.
    fn desired(&mut self, problems: &mut Vec<String>) -> (Desired, Vec<Held>) {
        let mut desired = Desired::default();
        let mut pods: BTreeMap<u64, Held> = BTreeMap::new();
        let mut met = BTreeSet::new();
        // Until the API server has told which policies there are, what held goes on.
        let is_starting = self.kubernetes.policies().is_starting();
        for profile in self.containers.all() {
            let Some(cgroup) = pod_cgroup(&self.mount, &profile) else { continue };
            if !met.insert(cgroup) {
                continue;
            }
            match self.plans(&profile) {
                None => {
                    desired.unknown.insert(cgroup);
                }
                Some(_) if is_starting && self.programmer.pods().any(|pod| pod == cgroup) => {
                    desired.unknown.insert(cgroup);
                }
                Some(plans) if plans.iter().all(Plan::is_empty) => {}
                Some(plans) => {
                    let resource = &profile.identity.resource;
                    let (namespace, pod) = (resource.namespace.clone(), resource.pod.clone());
                    pods.insert(cgroup, Held { cgroup, namespace, pod, plans });
                }
            }
        }
        // Of these no container is known yet.
        if self.programmer.pods().any(|pod| !met.contains(&pod)) {
            let there: BTreeSet<u64> =
                cgroups::list(&self.mount, &self.roots).into_iter().map(|cgroup| cgroup.id).collect();
            desired.unknown.extend(self.programmer.pods().filter(|pod| !met.contains(pod) && there.contains(pod)));
        }
        for held in pods.values() {
            for policies in held.plans.iter().filter_map(|plan| plan.egress.as_ref()) {
                if let Some(list) = self.list(policies, problems) {
                    desired.lists.insert(policies.clone(), list);
                }
            }
        }
        // A list that can't be made is no reason to let everything through, nor nothing: what held goes on.
        let has_lists = |held: &Held| {
            held.plans.iter().all(|plan| plan.egress.as_ref().is_none_or(|egress| desired.lists.contains_key(egress)))
        };
        let (whole, broken): (Vec<_>, Vec<_>) = pods.into_values().partition(has_lists);
        desired.unknown.extend(broken.iter().map(|held| held.cgroup));
        desired.pods = whole.iter().map(|held| (held.cgroup, held.plans.clone())).collect();
        (desired, whole)
    }

    /// What is said of a Pod; `None` while too little of it is known.
    fn plans(&self, profile: &Profile) -> Option<[Plan; TIERS]> {
        let resource = &profile.identity.resource;
        let pod = resource.pod_uid.as_ref().and_then(|uid| self.kubernetes.pods().get(uid));
        let nothing = Arc::<Declared>::default();
        let none = BTreeMap::new();
        let subject = match &pod {
            Some(pod) => pod.subject(&nothing),
            None if resource.pod_uid.is_some() && self.kubernetes.may_tell() => return None,
            None => Subject {
                namespace: resource.namespace.as_deref().unwrap_or_default(),
                namespace_labels: None,
                labels: &none,
                declared: &nothing,
            },
        };
        Some(self.policies.plans(&subject, &self.files))
    }

    fn list(&mut self, policies: &BTreeSet<Key>, problems: &mut Vec<String>) -> Option<Arc<List>> {
        if let Some(list) = self.lists.get(policies) {
            return Some(Arc::clone(list));
        }
        let of = |key: &Key| self.policies.get(key).or_else(|| self.files.get(key));
        let traffic = policies.iter().filter_map(of).filter_map(|policy| policy.traffic());
        match compile::list(traffic.flat_map(|traffic| traffic.allow.egress.iter().flatten())) {
            Ok(list) => {
                let list = Arc::new(list);
                self.lists.insert(policies.clone(), Arc::clone(&list));
                Some(list)
            }
            Err(error) => {
                let names: Vec<_> = policies.iter().map(ToString::to_string).collect();
                problems.push(format!("{}: {error}", names.join(", ")));
                None
            }
        }
    }
}

/// The cgroup of the Pod of a container, or of a container that has none. `None` when it is gone.
fn pod_cgroup(mount: &Path, profile: &Profile) -> Option<u64> {
    let path = profile.identity.container_cgroup.trim_start_matches('/');
    let path = match profile.identity.resource.pod_uid {
        Some(_) => Path::new(path).parent()?,
        None => Path::new(path),
    };
    if path.as_os_str().is_empty() {
        return None;
    }
    fs::metadata(mount.join(path)).ok().map(|metadata| metadata.ino())
}
