//! What holds for the traffic of Pods, and what was refused last: made by the governor, read by whoever asks.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use sidestep_abi::govern::{RefusedKey, TIERS};

use crate::{
    control::governance::Recent,
    policy::{
        Policies,
        traffic::{
            compile::{List, ListName, Name, Plan, Refuser, Unmet},
            pod_peers::PodsOfList,
            window::Window,
        },
    },
    record::Resource,
};

/// Refusals of one Pod that are kept for who asks, and Pods.
const RECENT: usize = 64;
const MOST_RECENT: usize = 1024;

/// What holds for a Pod.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its cgroup.
    pub cgroup: u64,
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub pod: Option<Arc<str>>,
    /// What goes into records of it.
    pub resource: Arc<Resource>,
    /// The directory of its cgroup, once a container of it is known.
    pub path: Option<PathBuf>,
    /// The interfaces of the node at which its packets are looked at.
    pub interfaces: Vec<String>,
    /// What is not decided there as no interface leads to it, and why.
    pub unmet: Option<String>,
    /// What each tier says; `None` while too little is known of the Pod.
    pub plans: Option<[Plan; TIERS]>,
    /// What is not known then.
    pub waits: Option<&'static str>,
    /// Whether something held for it before, which goes on as long as it waits.
    pub is_held: bool,
    /// Why what holds is older than what is declared, where it is.
    pub older: Vec<String>,
    /// The policies for it that have a beginning or an end.
    pub dated: Vec<(Name, Window)>,
}

impl Held {
    /// What becomes of a Pod of which too little is known, and why, in words.
    #[must_use]
    pub fn waits_in_words(&self) -> Option<String> {
        let so = if self.is_held { "what held goes on" } else { "no policy holds for it yet" };
        self.waits.map(|waits| format!("{waits}: {so}"))
    }

    /// The policies that say something of what is decided at its interface alone.
    pub(super) fn at_interface(&self) -> impl Iterator<Item = &Name> {
        self.plans.iter().flatten().flat_map(Plan::at_interface)
    }

    pub(super) fn name(&self) -> String {
        match (&self.namespace, &self.pod) {
            (Some(namespace), Some(pod)) => format!("Pod {namespace}/{pod}"),
            _ => format!("cgroup {}", self.cgroup),
        }
    }
}

/// What holds, and what was refused.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// By the Pod's cgroup.
    pub pods: Vec<Held>,
    /// The lists of their plans; one that could not be made is not in it.
    pub lists: BTreeMap<ListName, Arc<List>>,
    /// The Pods that they name, of those that do.
    pub pods_of_lists: BTreeMap<ListName, Arc<PodsOfList>>,
    /// Limits of requests by their numbers, with those that have gone and were refused by.
    pub limits: BTreeMap<u32, Refuser>,
    /// Counts of the kernel programs.
    pub refused: Vec<(RefusedKey, u64)>,
    /// When they were read: nanoseconds since the Unix epoch.
    pub counted_unix_nano: u64,
    /// Why what shall hold does not, or that there are no programs.
    pub problem: Option<String>,
    /// The same by policies.
    pub unmet: Vec<Unmet>,
    /// The API server's policies that are in the kernel, and their version.
    pub policies: (u64, Arc<Policies>),
    /// The version of the policies of files that is.
    pub files_version: u64,
}

impl Reading {
    /// What holds for a Pod.
    #[must_use]
    pub fn pod(&self, cgroup: u64) -> Option<&Held> {
        let index = self.pods.binary_search_by_key(&cgroup, |held| held.cgroup).ok()?;
        self.pods.get(index)
    }

    /// Who has refused something: by what is said now, or of a limit of requests that has gone since, by what it was.
    #[must_use]
    pub fn refuser(&self, refused: &RefusedKey) -> Refuser {
        let plans = self.pod(refused.cgroup).and_then(|held| held.plans.as_ref());
        let refuser = plans.and_then(|plans| plans.get(usize::from(refused.tier))?.refuser(refused));
        refuser.or_else(|| self.limits.get(&refused.limit).cloned()).unwrap_or_default()
    }
}

/// The refusals of last, as far as they were told of.
#[derive(Debug, Default)]
pub struct RecentRefusals {
    /// By the Pod's cgroup.
    by_pod: Mutex<BTreeMap<u64, VecDeque<Recent>>>,
}

impl RecentRefusals {
    /// Keeps one.
    pub fn note(&self, refusal: Recent) {
        let mut by_pod = self.by_pod.lock().unwrap_or_else(PoisonError::into_inner);
        if by_pod.len() >= MOST_RECENT && !by_pod.contains_key(&refusal.cgroup) {
            // That which nothing was refused to for the longest time.
            let last = |(cgroup, refusals): (&u64, &VecDeque<Recent>)| {
                (refusals.back().map(|last| last.time_unix_nano), *cgroup)
            };
            if let Some((_, oldest)) = by_pod.iter().map(last).min() {
                by_pod.remove(&oldest);
            }
        }
        let of_pod = by_pod.entry(refusal.cgroup).or_default();
        if of_pod.len() >= RECENT {
            of_pod.pop_front();
        }
        of_pod.push_back(refusal);
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Recent> {
        self.by_pod.lock().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned().collect()
    }
}
