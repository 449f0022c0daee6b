//! The Pods of the cluster, of all nodes: asked for only while a policy names Pods as peers.
//!
//! Beside the watch of this node's Pods, which is of metadata alone, this one needs addresses. Each Pod is read as the few fields
//! that count, and page by page: a list of all is never in memory as a whole.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1;
use kube::{
    Api, Client, Resource,
    api::ObjectMeta,
    core::NamespaceResourceScope,
    runtime::watcher::{self, Event, watcher},
};
use serde::Deserialize;
use tokio::sync::watch::Sender;

use super::{
    health::Health,
    pod::{Labels, bounded_labels},
    pods::Pods,
    watch,
};
use crate::policy::traffic::pod_peers::{PeerPod, PodTable};

/// The resource of the watch, for people: RBAC knows no nodes.
pub(super) const PEERS: &str = "pods of all nodes";
/// Those that have ended are not told, and one that ends is told as deleted. What tells this watch of Pods from the other.
pub(super) const NOT_ENDED: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// How many Pods are asked for at once: some megabytes.
const PAGE: u32 = 200;
/// Addresses of one Pod. The kubelet gives one of each family.
const MAX_ADDRESSES: usize = 4;
/// Memory of all, in bytes, roughly: those of 60,000 Pods with a usual number of labels.
const MAX_BYTES: usize = 64 << 20;

/// How long the first answer may take before what is known holds without it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much is known of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Knowledge {
    /// The API server is not asked.
    Off,
    /// It has not answered yet.
    Starting,
    /// It has not for so long that it may never: the watch of this failed.
    Failed(&'static str),
    /// All that there is, or was when the API server has told last.
    Listed,
}

/// The Pods of all nodes that can be peers.
#[derive(Debug)]
pub struct PeerPods {
    is_on: bool,
    /// Whether the labels of namespaces are asked for.
    watches_namespaces: bool,
    /// Whether a policy names Pods.
    wanted: Sender<bool>,
    asked: Mutex<Option<Instant>>,
    table: Mutex<Table>,
    /// That of the table, so that who asks for news rarely takes the lock.
    version: AtomicU64,
    /// For the labels of namespaces.
    pods: Arc<Pods>,
    health: Arc<Health>,
}

#[derive(Debug, Default)]
struct Table {
    pods: PodTable,
    /// Of all that is in it.
    bytes: usize,
    /// Pods that there was no room for.
    left_out: BTreeSet<Arc<str>>,
}

impl PeerPods {
    pub(super) fn new(is_on: bool, watches_namespaces: bool, pods: Arc<Pods>, health: Arc<Health>) -> Self {
        let (wanted, asked, table) = (Sender::new(false), Mutex::default(), Mutex::default());
        Self { is_on, watches_namespaces, wanted, asked, table, version: AtomicU64::new(0), pods, health }
    }

    /// Whether they are asked for from now on. What is known of them is forgotten when they are not.
    pub fn want(&self, is_wanted: bool) {
        self.wanted.send_if_modified(|wanted| {
            let is_new = self.is_on && *wanted != is_wanted;
            if is_new {
                *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = is_wanted.then(Instant::now);
            }
            if is_new && is_wanted {
                self.health.expect(PEERS, None);
            }
            *wanted = is_wanted;
            is_new
        });
    }

    /// Since when they are asked for.
    fn asked(&self) -> Option<Instant> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much is known.
    #[must_use]
    pub fn knowledge(&self) -> Knowledge {
        if !self.is_on {
            return Knowledge::Off;
        }
        let namespaces = self.watches_namespaces.then_some(watch::NAMESPACES);
        let missing = [PEERS].into_iter().chain(namespaces).find(|resource| !self.health.has_listed(resource));
        match missing {
            None => Knowledge::Listed,
            // One request that fails is none yet: all nodes ask at the same moment.
            Some(_) if self.asked().is_none_or(|asked| asked.elapsed() < PATIENCE) => Knowledge::Starting,
            Some(resource) => Knowledge::Failed(resource),
        }
    }

    /// Raised with every change, of the first with Pods and of the second with labels of namespaces. To be asked for before
    /// [`PeerPods::there`].
    #[must_use]
    pub fn version(&self) -> (u64, u64) {
        (self.version.load(Relaxed), self.pods.namespaces_version())
    }

    /// All of them, and the labels of namespaces.
    #[must_use]
    pub fn there(&self) -> (PodTable, HashMap<Arc<str>, Arc<Labels>>) {
        (self.lock().pods.clone(), self.pods.namespaces())
    }

    /// Pods that there was no room for: they are nobody's peers.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.lock().left_out.len()
    }

    /// Enters a Pod, or what is new of one.
    fn apply(&self, pod: Read) {
        let mut table = self.lock();
        table.enter(pod);
        self.version.store(table.pods.version(), Relaxed);
    }

    /// There are these and no others, all at once.
    fn replace(&self, listed: Table) {
        let mut table = self.lock();
        let gone = table.pods.keys().filter(|(namespace, uid)| listed.pods.get(namespace, uid).is_none());
        let gone: Vec<_> = gone.map(|(namespace, uid)| (Arc::clone(namespace), Arc::clone(uid))).collect();
        for (namespace, uid) in gone {
            table.set(&namespace, &uid, None);
        }
        for (namespace, uid) in listed.pods.keys() {
            let pod = listed.pods.get(namespace, uid).map(|pod| PeerPod::clone(pod));
            table.set(namespace, uid, pod);
        }
        table.left_out = listed.left_out;
        self.version.store(table.pods.version(), Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl PeerPods {
    /// With an API server that is asked, and has not answered.
    pub(crate) fn of_test() -> Self {
        Self::new(true, false, Arc::default(), Arc::default())
    }

    /// As if the watch had told of a Pod of the namespace `shop` with the label `app`.
    pub(crate) fn enter(&self, uid: &str, app: &str, address: &str) {
        let labels = Labels::from([("app".to_owned(), app.to_owned())]);
        let addresses = vec![address.parse().expect("an address")];
        self.apply(("shop".to_owned(), uid.to_owned(), Some(PeerPod { labels, addresses })));
    }

    /// As if it had told of all.
    pub(crate) fn list_is_whole(&self) {
        self.health.listed(PEERS, Instant::now());
    }
}

impl Table {
    fn enter(&mut self, (namespace, uid, pod): Read) {
        self.set(&namespace, &uid, pod);
    }

    fn set(&mut self, namespace: &str, uid: &str, pod: Option<PeerPod>) {
        let known = self.pods.get(namespace, uid).map_or(0, |known| memory(known));
        let bytes = self.bytes - known + pod.as_ref().map_or(0, memory);
        let has_room = bytes <= MAX_BYTES || bytes <= self.bytes;
        if has_room {
            self.left_out.remove(uid);
        } else {
            self.left_out.insert(uid.into());
        }
        self.bytes = if has_room { bytes } else { self.bytes - known };
        self.pods.set(namespace, uid, pod.filter(|_| has_room));
    }
}

/// Memory that a Pod holds, in bytes; roughly.
fn memory(pod: &PeerPod) -> usize {
    const POD: usize = 256;
    const LABEL: usize = 96;
    POD + pod.labels.iter().map(|(key, value)| LABEL + key.len() + value.len()).sum::<usize>()
}

/// Follows them while they are wanted, for ever.
pub(super) async fn follow(client: Client, peers: Arc<PeerPods>) {
    let mut wanted = peers.wanted.subscribe();
    let api = Api::<PodObject>::all(client);
    let config = watcher::Config::default().fields(NOT_ENDED).page_size(PAGE);
    loop {
        // The sender is in `peers`.
        let _ = wanted.wait_for(|wanted| *wanted).await;
        peers.health.expect(PEERS, None);
        let mut listed = Table::default();
        let take = |event: Event<PodObject>| match event {
            Event::Init => listed = Table::default(),
            Event::InitApply(pod) => listed.enter(pod.read()),
            Event::InitDone => peers.replace(std::mem::take(&mut listed)),
            Event::Apply(pod) => peers.apply(pod.read()),
            Event::Delete(pod) => peers.apply(PodObject { addresses: Vec::new(), ..pod }.read()),
        };
        tokio::select! {
            () = watch::follow_always(|| watcher(api.clone(), config.clone()), PEERS, &peers.health, take) => {}
            _ = wanted.wait_for(|wanted| !wanted) => {}
        }
        // First that nobody takes what is gone for all that there is.
        peers.health.forget(PEERS);
        peers.replace(Table::default());
    }
}

/// Namespace and UID of a Pod, and what it is as a peer.
type Read = (String, String, Option<PeerPod>);

/// What is read of a Pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Written")]
struct PodObject {
    metadata: ObjectMeta,
    /// None of one that can't be a peer.
    addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Written {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    host_network: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(default)]
    ip: String,
}

impl From<Written> for PodObject {
    fn from(Written { metadata, spec, status }: Written) -> Self {
        let Metadata { name, namespace, uid, resource_version, labels } = metadata;
        let metadata = ObjectMeta { name, namespace, uid, resource_version, labels, ..ObjectMeta::default() };
        let has_ended = matches!(&*status.phase, "Succeeded" | "Failed");
        let addresses = status.pod_ips.iter().filter_map(|address| address.ip.parse().ok()).take(MAX_ADDRESSES);
        let addresses = if spec.host_network || has_ended { Vec::new() } else { addresses.collect() };
        Self { metadata, addresses }
    }
}

impl PodObject {
    fn read(self) -> Read {
        let mut left_out = 0;
        let labels = bounded_labels(self.metadata.labels.unwrap_or_default(), &mut left_out);
        // A selector may ask that a label is not there: of whom not all are kept nothing is said.
        let is_peer = left_out == 0 && !self.addresses.is_empty();
        let pod = is_peer.then_some(PeerPod { labels, addresses: self.addresses });
        (self.metadata.namespace.unwrap_or_default(), self.metadata.uid.unwrap_or_default(), pod)
    }
}

impl Resource for PodObject {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn group((): &()) -> Cow<'_, str> {
        v1::Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        v1::Pod::version(&())
    }

    fn kind((): &()) -> Cow<'_, str> {
        v1::Pod::kind(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        v1::Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::*;

    fn object(uid: &str, more: &Value) -> Read {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": uid, "namespace": "shop", "uid": uid, "labels": { "app": "web" }, "annotations": { "a": "b" } },
            "spec": { "containers": [{ "name": "web", "image": "web" }] },
            "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] },
        });
        let Value::Object(more) = more else { panic!("an object") };
        for (path, value) in more {
            let (part, field) = path.split_once('.').expect("a path");
            object[part][field] = value.clone();
        }
        serde_json::from_value::<PodObject>(object).expect("a Pod").read()
    }

    fn table(pods: impl IntoIterator<Item = Read>) -> Table {
        let mut table = Table::default();
        pods.into_iter().for_each(|pod| table.enter(pod));
        table
    }

    #[test]
    fn those_with_addresses_of_their_own_are_peers() {
        let (namespace, uid, pod) = object("1", &json!({}));
        let pod = pod.expect("a peer");
        assert_eq!((&*namespace, &*uid, pod.addresses.len()), ("shop", "1", 2));
        for (why, more) in [
            ("the node's address", json!({ "spec.hostNetwork": true })),
            ("it has ended", json!({ "status.phase": "Failed" })),
            ("it has none yet", json!({ "status.podIPs": [] })),
            ("no address", json!({ "status.podIPs": [{ "ip": "none" }] })),
            ("not all is known", json!({ "metadata.labels": { "a": "x".repeat(64 << 10) } })),
        ] {
            assert!(object("1", &more).2.is_none(), "{why}");
        }
    }

    #[test]
    fn what_is_listed_again_is_no_news() {
        let peers = PeerPods::of_test();
        peers.replace(table([object("1", &json!({})), object("2", &json!({}))]));
        let version = peers.version();
        peers.apply(object("1", &json!({ "metadata.annotations": {} })));
        peers.replace(table([object("2", &json!({})), object("1", &json!({}))]));
        assert_eq!(peers.version(), version);
        peers.apply(object("1", &json!({ "status.phase": "Succeeded" })));
        assert!(peers.version() != version && peers.there().0.keys().count() == 1);
        peers.replace(Table::default());
        assert_eq!((peers.there().0.keys().count(), peers.lock().bytes), (0, 0));
    }

    #[test]
    fn what_has_no_room_is_nobodys_peer() {
        let peers = PeerPods::of_test();
        let large = |uid: usize| {
            let labels: BTreeMap<_, _> = (0..300).map(|label| (format!("{label:0>50}"), "x".repeat(50))).collect();
            object(&uid.to_string(), &json!({ "metadata.labels": labels }))
        };
        let most = MAX_BYTES / memory(&large(0).2.expect("a peer"));
        (0..=most).for_each(|uid| peers.apply(large(uid)));
        assert_eq!((peers.there().0.keys().count(), peers.left_out()), (most, 1));
        peers.apply(object("0", &json!({ "status.phase": "Failed" })));
        peers.apply(large(most));
        assert_eq!((peers.there().0.keys().count(), peers.left_out()), (most, 0));
    }

    #[test]
    fn it_is_known_how_much_is_known() {
        let off = PeerPods::new(false, false, Arc::default(), Arc::default());
        assert_eq!(off.knowledge(), Knowledge::Off);
        let peers = PeerPods::of_test();
        peers.want(true);
        assert_eq!(peers.knowledge(), Knowledge::Starting);
        assert!(peers.health.has_told_all(), "others do not wait for it");
        peers.health.failed(PEERS, "list", false, "refused", Instant::now());
        assert_eq!(peers.knowledge(), Knowledge::Starting, "one request that fails is nothing");
        *peers.asked.lock().expect("nobody has panicked") = Instant::now().checked_sub(PATIENCE);
        assert_eq!(peers.knowledge(), Knowledge::Failed(PEERS));
        peers.health.listed(PEERS, Instant::now());
        peers.health.failed(PEERS, "watch", false, "refused", Instant::now());
        assert_eq!(peers.knowledge(), Knowledge::Listed, "what is known goes on");
    }
}
