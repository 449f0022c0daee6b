//! The Pods of this node: written by the watch, read by every stage.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::pod::{Labels, Owner, Pod};

/// A Pod that is deleted stays for so long: its last records may not be out.
const LINGER: Duration = Duration::from_secs(300);
/// Pods that linger; above it the oldest go first.
const MAX_LINGERING: usize = 1024;
/// How often it is looked for those that have lingered long enough.
const SWEEP: Duration = Duration::from_secs(60);
/// Pods in all. The kubelet runs 110 of them if nobody says otherwise.
pub(super) const MAX_PODS: usize = 8192;

/// The table. Held locked for moments only.
#[derive(Debug, Default)]
pub struct Pods {
    table: Mutex<Table>,
    /// Raised with every change, so that who asks for news rarely takes the lock.
    version: AtomicU64,
    /// The same with every change of labels of namespaces.
    namespaces_version: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    pods: HashMap<Arc<str>, Entry>,
    /// UIDs by those that the runtime has of static Pods.
    by_static_uid: HashMap<Arc<str>, Arc<str>>,
    namespaces: HashMap<Arc<str>, Arc<Labels>>,
    refused: u64,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    /// [`Pods::version`] when it last changed.
    version: u64,
    deleted: Option<Instant>,
}

impl Pods {
    /// The Pod with this UID, which may be that of a static Pod's configuration, as runtimes know it.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        let table = self.lock();
        // A Pod's own UID first: nobody gets another's by what it says of itself.
        let entry = table.pods.get(uid).or_else(|| table.pods.get(table.by_static_uid.get(uid)?));
        entry.map(|entry| Arc::clone(&entry.pod))
    }

    /// Every Pod that is not deleted.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Pod>> {
        let table = self.lock();
        table.pods.values().filter(|entry| entry.deleted.is_none()).map(|entry| Arc::clone(&entry.pod)).collect()
    }

    /// Those that are deleted and linger, too: their last lines may be the next agent's.
    pub(super) fn with_deleted(&self) -> Vec<Arc<Pod>> {
        self.lock().pods.values().map(|entry| Arc::clone(&entry.pod)).collect()
    }

    /// Pods that are new, or not as they were, since `seen`, which is 0 at first and moved on. Costs one load when there
    /// are none.
    #[must_use]
    pub fn changed_since(&self, seen: &mut u64) -> Vec<Arc<Pod>> {
        if self.version.load(Relaxed) == *seen {
            return Vec::new();
        }
        let table = self.lock();
        let before = std::mem::replace(seen, self.version.load(Relaxed));
        let changed = table.pods.values().filter(|entry| entry.version > before);
        changed.map(|entry| Arc::clone(&entry.pod)).collect()
    }

    /// How many Pods there are that are not deleted, and that linger.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let table = self.lock();
        let lingering = table.pods.values().filter(|entry| entry.deleted.is_some()).count();
        (table.pods.len() - lingering, lingering)
    }

    /// Enters a Pod, or what is new of one.
    pub(super) fn apply(&self, mut pod: Pod) {
        let mut table = self.lock();
        let known = table.pods.get(&pod.uid);
        // Before namespaces are listed, what an agent before has saved holds.
        let saved = known.map(|known| &known.pod.namespace_labels);
        if let Some(labels) = table.namespaces.get(&pod.namespace).or(saved) {
            pod.namespace_labels = Arc::clone(labels);
        }
        // The watch tells the Pod's controller each time, and the controller's own owner only once.
        if let Some(known) = known.filter(|known| !pod.owners_known && known.pod.owners.first() == pod.owners.first()) {
            pod.owners.clone_from(&known.pod.owners);
            pod.owners_known = known.pod.owners_known;
        }
        if known.is_some_and(|known| *known.pod == pod && known.deleted.is_none()) {
            return;
        }
        if known.is_none() && table.pods.len() >= MAX_PODS {
            table.refused += 1;
            return;
        }
        if let Some(uid) = &pod.static_uid {
            table.by_static_uid.insert(Arc::clone(uid), Arc::clone(&pod.uid));
        }
        let version = self.next_version();
        table.pods.insert(Arc::clone(&pod.uid), Entry { pod: Arc::new(pod), version, deleted: None });
    }

    /// The Pods are these and no others.
    pub(super) fn replace(&self, pods: Vec<Pod>, now: Instant) {
        {
            let mut table = self.lock();
            let here: HashSet<_> = pods.iter().map(|pod| Arc::clone(&pod.uid)).collect();
            for (uid, entry) in &mut table.pods {
                if !here.contains(uid) {
                    entry.deleted.get_or_insert(now);
                }
            }
        }
        pods.into_iter().for_each(|pod| self.apply(pod));
        self.sweep(now);
    }

    /// A Pod is deleted. What is known of it stays for a while.
    pub(super) fn delete(&self, uid: &str, now: Instant) {
        if let Some(entry) = self.lock().pods.get_mut(uid) {
            entry.deleted.get_or_insert(now);
        }
        self.sweep(now);
    }

    /// The owner of the controller with this UID is known: of all its Pods. One of another namespace only claims it.
    pub(super) fn set_owner(&self, namespace: &str, controller: &str, owner: Option<&Owner>) {
        let mut table = self.lock();
        for entry in table.pods.values_mut() {
            let is_of = |pod: &Pod| pod.is_of(namespace, controller);
            if is_of(&entry.pod) && !entry.pod.owners_known {
                let mut pod = Pod::clone(&entry.pod);
                pod.owners.extend(owner.cloned());
                pod.owners_known = true;
                *entry = Entry { pod: Arc::new(pod), version: self.next_version(), deleted: entry.deleted };
            }
        }
    }

    /// Whether a Pod waits to be told who made the controller with this UID.
    #[must_use]
    pub(super) fn lack_owner(&self, namespace: &str, controller: &str) -> bool {
        let is_of = |pod: &Pod| pod.is_of(namespace, controller);
        let lacks = |entry: &Entry| entry.deleted.is_none() && !entry.pod.owners_known && is_of(&entry.pod);
        self.lock().pods.values().any(lacks)
    }

    /// There are these namespaces and no others.
    pub(super) fn retain_namespaces(&self, names: &HashSet<String>) {
        self.lock().namespaces.retain(|name, _| names.contains(&**name));
        self.namespaces_version.fetch_add(1, Relaxed);
    }

    /// The labels of a namespace; `None` when it is gone.
    pub(super) fn set_namespace(&self, namespace: &str, labels: Option<Labels>) {
        let mut table = self.lock();
        let Some(labels) = labels else {
            table.namespaces.remove(namespace);
            self.namespaces_version.fetch_add(1, Relaxed);
            return;
        };
        let labels = Arc::new(labels);
        if table.namespaces.get(namespace) == Some(&labels) {
            return;
        }
        table.namespaces.insert(namespace.into(), Arc::clone(&labels));
        self.namespaces_version.fetch_add(1, Relaxed);
        for entry in table.pods.values_mut() {
            if &*entry.pod.namespace == namespace && entry.pod.namespace_labels != labels {
                let pod = Pod { namespace_labels: Arc::clone(&labels), ..Pod::clone(&entry.pod) };
                *entry = Entry { pod: Arc::new(pod), version: self.next_version(), deleted: entry.deleted };
            }
        }
    }

    /// The labels of all namespaces, as far as they are known.
    pub(super) fn namespaces(&self) -> HashMap<Arc<str>, Arc<Labels>> {
        self.lock().namespaces.clone()
    }

    /// Raised with every change of them.
    pub(super) fn namespaces_version(&self) -> u64 {
        self.namespaces_version.load(Relaxed)
    }

    /// Forgets what was deleted long ago.
    pub(super) fn sweep(&self, now: Instant) {
        let mut table = self.lock();
        let mut lingering: Vec<_> =
            table.pods.iter().filter_map(|(uid, entry)| Some((entry.deleted?, Arc::clone(uid)))).collect();
        lingering.sort_unstable();
        let excess = lingering.len().saturating_sub(MAX_LINGERING);
        for (index, (since, uid)) in lingering.into_iter().enumerate() {
            if (index < excess || now.saturating_duration_since(since) >= LINGER)
                && let Some(gone) = table.pods.remove(&uid)
                && let Some(static_uid) = &gone.pod.static_uid
                && table.by_static_uid.get(static_uid) == Some(&uid)
            {
                table.by_static_uid.remove(static_uid);
            }
        }
    }

    /// Raised with every change.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// Pods that there was no room for.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }

    fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Relaxed) + 1
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets Pods, for ever: also on a node where no other is deleted.
pub(super) async fn forget(pods: Arc<Pods>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        pods.sweep(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, name: &str, app: &str) -> Pod {
        let labels = Labels::from([("app".to_owned(), app.to_owned())]);
        let owner = Owner { kind: "Job".into(), name: "j".into(), uid: "owner".into() };
        Pod {
            uid: uid.into(),
            namespace: "shop".into(),
            name: name.into(),
            labels,
            owners: vec![owner],
            ..Pod::default()
        }
    }

    #[test]
    fn changes_are_told_once() {
        let pods = Pods::default();
        let mut seen = 0;
        assert!(pods.changed_since(&mut seen).is_empty());
        pods.apply(pod("a", "web-0", "web"));
        pods.apply(pod("b", "web-1", "web"));
        assert_eq!(pods.changed_since(&mut seen).len(), 2);
        pods.apply(pod("a", "web-0", "web"));
        assert!(pods.changed_since(&mut seen).is_empty(), "nothing is new");
        pods.apply(pod("b", "web-1", "other"));
        let changed = pods.changed_since(&mut seen);
        assert_eq!(changed.iter().map(|pod| &*pod.uid).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_pod_of_the_same_name_is_another_one() {
        let pods = Pods::default();
        let start = Instant::now();
        pods.apply(pod("a", "db-0", "old"));
        pods.delete("a", start);
        pods.apply(pod("b", "db-0", "new"));
        assert_eq!(pods.get("a").expect("lingers").labels["app"], "old");
        assert_eq!(pods.get("b").expect("runs").labels["app"], "new");
        assert_eq!(pods.count(), (1, 1));
        pods.sweep(start + LINGER);
        assert!(pods.get("a").is_none() && pods.get("b").is_some());
    }

    #[test]
    fn a_static_pod_is_found_by_what_the_runtime_calls_it() {
        let pods = Pods::default();
        let now = Instant::now();
        pods.apply(Pod { static_uid: Some("hash".into()), ..pod("mirror", "etcd-n", "etcd") });
        assert_eq!(pods.get("hash").expect("by its hash").name.as_ref(), "etcd-n");
        // The mirror is made anew; the Pod is the same.
        pods.delete("mirror", now);
        pods.apply(Pod { static_uid: Some("hash".into()), ..pod("mirror-2", "etcd-n", "etcd") });
        pods.sweep(now + LINGER);
        assert_eq!(pods.get("hash").expect("by its hash").uid.as_ref(), "mirror-2");
    }

    #[test]
    fn a_list_takes_the_place_of_everything() {
        let pods = Pods::default();
        let start = Instant::now();
        pods.apply(pod("a", "x", "x"));
        pods.replace(vec![pod("b", "y", "y")], start);
        assert_eq!(pods.all().iter().map(|pod| &*pod.uid).collect::<Vec<_>>(), ["b"]);
        assert!(pods.get("a").is_some(), "it lingers");
        pods.replace(vec![pod("a", "x", "x"), pod("b", "y", "y")], start);
        pods.sweep(start + 2 * LINGER);
        assert_eq!(pods.count(), (2, 0));
    }

    #[test]
    fn owners_and_namespaces_come_when_they_come_and_stay() {
        let pods = Pods::default();
        pods.apply(pod("a", "x", "x"));
        let cron_job = Owner { kind: "CronJob".into(), name: "nightly".into(), uid: "c".into() };
        // Who has a Pod elsewhere that claims the same controller learns nothing of it, and takes nothing away.
        pods.set_owner("elsewhere", "owner", None);
        assert!(pods.lack_owner("shop", "owner") && !pods.lack_owner("elsewhere", "owner"));
        pods.set_owner("shop", "owner", Some(&cron_job));
        pods.set_namespace("shop", Some(Labels::from([("team".to_owned(), "a".to_owned())])));
        // What the watch tells next knows of neither.
        pods.apply(pod("a", "x", "y"));
        let known = pods.get("a").expect("it is there");
        assert_eq!((known.workload(), known.owners_known), (Some(&cron_job), true));
        assert_eq!((&*known.namespace_labels["team"], &*known.labels["app"]), ("a", "y"));
        pods.apply(pod("b", "z", "z"));
        assert_eq!(pods.get("b").expect("it is there").namespace_labels["team"], "a");
    }

    #[test]
    fn a_thousand_pods_that_come_and_go_leave_no_more_than_the_bound() {
        let pods = Pods::default();
        let now = Instant::now();
        for number in 0..3 * MAX_LINGERING {
            let uid = number.to_string();
            pods.apply(Pod { static_uid: Some(format!("s{uid}").into()), ..pod(&uid, "x", "x") });
            pods.delete(&uid, now + Duration::from_millis(number as u64));
        }
        assert_eq!(pods.count(), (0, MAX_LINGERING));
        assert_eq!(pods.lock().by_static_uid.len(), MAX_LINGERING);
        assert!(pods.get("0").is_none() && pods.get(&(3 * MAX_LINGERING - 1).to_string()).is_some());
    }
}
