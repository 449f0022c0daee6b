//! The watch of `SidestepPolicy` and `ClusterSidestepPolicy`, and the table of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use kube::{
    Api, Client, Resource,
    api::ObjectMeta,
    core::ApiResource,
    runtime::watcher::{self, Event, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use super::{
    health::Health,
    policy_object::{MAX_PART, Part, PolicyObject},
    watch,
};
use crate::{
    events,
    policy::{
        Policies, Policy,
        precedence::{Key, Scope},
        resource::{ClusterSidestepPolicy, ClusterSidestepPolicySpec, SidestepPolicy, SidestepPolicySpec, Status},
        selection::{Refused, key, uid},
    },
};

/// The resource of the watch of policies of namespaces.
pub(super) const NAMESPACED: &str = "sidesteppolicies";
/// The resource of the watch of policies of the cluster.
pub(super) const CLUSTER: &str = "clustersidesteppolicies";
/// Pauses before a resource that the API server does not know is asked for again, the last one from then on: a definition that
/// is made together with the agent is served a moment later. The idle node's budget is 20 requests an hour.
const ABSENT_PAUSES: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(600)];

/// All policies that this node knows; read by the pipeline.
#[derive(Debug)]
pub struct SharedPolicies {
    current: RwLock<Arc<Policies>>,
    /// Raised with every change, so that who asks for news rarely takes the lock.
    version: AtomicU64,
    /// See [`SharedPolicies::told`].
    told: AtomicU64,
    /// The status that each has, by the API server.
    statuses: Mutex<HashMap<Key, Status>>,
    /// What each is made of, for the next agent.
    sources: Mutex<Sources>,
    health: Arc<Health>,
    /// Whether this agent writes the status of policies.
    leads: AtomicBool,
}

/// See [`SharedPolicies::lead`].
pub(super) struct Leading<'a>(&'a AtomicBool);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

impl SharedPolicies {
    pub(super) fn new(health: Arc<Health>) -> Self {
        Self {
            current: RwLock::default(),
            version: AtomicU64::new(0),
            told: AtomicU64::new(0),
            statuses: Mutex::default(),
            sources: Mutex::default(),
            health,
            leads: AtomicBool::new(false),
        }
    }

    /// The policies as they are now.
    #[must_use]
    pub fn get(&self) -> Arc<Policies> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same, with their version.
    #[must_use]
    pub fn versioned(&self) -> (u64, Arc<Policies>) {
        // Both are changed together.
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        (self.version(), Arc::clone(&current))
    }

    /// Raised with every change; 0 before the first.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// Whether they are asked for and the API server has not answered yet.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        [NAMESPACED, CLUSTER].iter().any(|resource| self.health.is_starting(resource))
    }

    /// Whether the API server tells of policies of this scope as they change.
    #[must_use]
    pub fn is_live(&self, scope: Scope) -> bool {
        self.health.is_live(match scope {
            Scope::Namespaced => NAMESPACED,
            Scope::Cluster => CLUSTER,
        })
    }

    /// Whether it tells of those of one scope at least.
    pub(super) fn is_any_live(&self) -> bool {
        Scope::ALL.into_iter().any(|scope| self.is_live(scope))
    }

    /// This agent writes the status of policies, as long as what is returned is kept.
    pub(super) fn lead(&self) -> Leading<'_> {
        self.leads.store(true, Relaxed);
        Leading(&self.leads)
    }

    /// Whether it does.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leads.load(Relaxed)
    }

    /// The status that a policy has.
    pub(super) fn status(&self, key: &Key) -> Option<Status> {
        self.statuses().get(key).cloned()
    }

    /// Raised with whatever is told of policies and of their status.
    pub(super) fn told(&self) -> u64 {
        self.told.load(Relaxed)
    }

    /// Notes the status that a policy has; one that was made anew under its name has none.
    pub(super) fn set_status(&self, key: Key, status: Option<Status>) {
        self.told.fetch_add(1, Relaxed);
        match status {
            Some(status) => self.statuses().insert(key, status),
            None => self.statuses().remove(&key),
        };
    }

    /// What policies are made of, those of the cluster first, and a number that is raised with every change of that.
    pub(super) fn sources(&self) -> (u64, Vec<Arc<RawValue>>) {
        let sources = self.lock_sources();
        (sources.version, sources.by_key.values().cloned().collect())
    }

    /// Takes over what an agent before has known, until the API server tells.
    pub(super) fn restore(&self, objects: Vec<PolicyObject>) {
        let read = |object: PolicyObject| match &object.metadata.namespace {
            Some(_) => read::<SidestepPolicy>(object),
            None => read::<ClusterSidestepPolicy>(object),
        };
        let policies: Vec<_> = objects.into_iter().map(|object| self.note(read(object))).collect();
        self.change(|all| {
            let mut is_new = false;
            for policy in policies {
                is_new |= all.insert(policy);
            }
            is_new
        });
    }

    /// Enters a policy, or what is new of one.
    fn take(&self, found: Found) {
        let policy = self.note(found);
        self.change(|all| all.insert(policy));
    }

    /// A policy is gone.
    fn remove(&self, key: &Key) {
        self.told.fetch_add(1, Relaxed);
        self.statuses().remove(key);
        self.lock_sources().retain(|known| known != key);
        self.change(|all| {
            all.remove(key);
            true
        });
    }

    /// The policies of one kind are these and no others, all at once.
    fn replace(&self, namespaced: bool, policies: Vec<Found>) {
        self.told.fetch_add(1, Relaxed);
        let keys: BTreeSet<_> = policies.iter().map(|found| found.key.clone()).collect();
        let is_kept = |key: &Key| key.namespace.is_some() != namespaced || keys.contains(key);
        self.statuses().retain(|key, _| is_kept(key));
        self.lock_sources().retain(is_kept);
        let policies: Vec<_> = policies.into_iter().map(|found| self.note(found)).collect();
        self.change(|all| {
            all.retain(namespaced, &keys);
            for policy in policies {
                all.insert(policy);
            }
            // That there are none is news, too.
            true
        });
    }

    /// Keeps what is kept beside the policy itself.
    fn note(&self, found: Found) -> Result<Policy, Refused> {
        let Found { key, policy, status, source } = found;
        if let Err(refused) = &policy {
            events::Event::PolicyRefused { refused }.report();
        }
        self.set_status(key.clone(), status);
        match source {
            Some(source) => self.lock_sources().insert(key, source),
            None => self.lock_sources().retain(|known| *known != key),
        }
        policy
    }

    fn lock_sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn statuses(&self) -> MutexGuard<'_, HashMap<Key, Status>> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the policies; `change` says whether anything is new, as more than a status.
    fn change(&self, change: impl FnOnce(&mut Policies) -> bool) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if change(Arc::make_mut(&mut current)) {
            self.version.fetch_add(1, Relaxed);
        }
    }
}

/// What policies are made of, as text: a fraction of what they are in memory.
#[derive(Debug, Default)]
struct Sources {
    by_key: BTreeMap<Key, Arc<RawValue>>,
    /// Raised with every change.
    version: u64,
}

impl Sources {
    fn insert(&mut self, key: Key, source: Arc<RawValue>) {
        let is_new = self.by_key.get(&key).is_none_or(|known| known.get() != source.get());
        if is_new {
            self.by_key.insert(key, source);
            self.version += 1;
        }
    }

    fn retain(&mut self, is_kept: impl Fn(&Key) -> bool) {
        let before = self.by_key.len();
        self.by_key.retain(|key, _| is_kept(key));
        self.version += u64::from(self.by_key.len() != before);
    }
}

/// A policy of the API server, or of an agent before.
struct Found {
    key: Key,
    policy: Result<Policy, Refused>,
    status: Option<Status>,
    source: Option<Arc<RawValue>>,
}

/// A kind of policies.
trait Kind: Resource<DynamicType = ()> {
    type Spec: DeserializeOwned;

    const RESOURCE: &'static str;
    const NAMESPACED: bool;

    fn read(metadata: ObjectMeta, spec: Self::Spec) -> Result<Policy, Refused>;
}

impl Kind for SidestepPolicy {
    type Spec = SidestepPolicySpec;

    const RESOURCE: &'static str = NAMESPACED;
    const NAMESPACED: bool = true;

    fn read(metadata: ObjectMeta, spec: Self::Spec) -> Result<Policy, Refused> {
        Policy::namespaced(&Self { metadata, spec, status: None })
    }
}

impl Kind for ClusterSidestepPolicy {
    type Spec = ClusterSidestepPolicySpec;

    const RESOURCE: &'static str = CLUSTER;
    const NAMESPACED: bool = false;

    fn read(metadata: ObjectMeta, spec: Self::Spec) -> Result<Policy, Refused> {
        Policy::cluster(&Self { metadata, spec, status: None })
    }
}

/// How many policies are asked for at once.
const PAGE: u32 = 20;

/// Follows both kinds, for ever.
pub(super) async fn follow(client: Client, shared: Arc<SharedPolicies>, health: Arc<Health>) {
    tokio::join!(
        follow_kind::<SidestepPolicy>(client.clone(), &shared, &health),
        follow_kind::<ClusterSidestepPolicy>(client, &shared, &health),
    );
}

async fn follow_kind<K: Kind>(client: Client, shared: &SharedPolicies, health: &Health) {
    // Each is read by itself: one that is not understood must not keep the others from being read.
    let api = Api::<PolicyObject>::all_with(client, &ApiResource::erase::<K>(&()));
    // Page by page, which the API server's cache does not give: an object may have 1.5 MB where an older CRD let it in, and
    // what it is annotated with is bounded by 256 KiB only, while a page is in memory as a whole before the first of it is
    // told.
    let config = watcher::Config::default().page_size(PAGE);
    let mut absences = 0;
    loop {
        let mut was_there = false;
        let mut listed = Vec::new();
        let take = |event| match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => listed.push(read::<K>(object)),
            Event::InitDone => {
                was_there = true;
                shared.replace(K::NAMESPACED, std::mem::take(&mut listed));
            }
            Event::Apply(object) => shared.take(read::<K>(object)),
            Event::Delete(object) => shared.remove(&key(&object.metadata)),
        };
        watch::follow(|| watcher(api.clone(), config.clone()), K::RESOURCE, health, take).await;
        health.absent(K::RESOURCE, Instant::now());
        shared.replace(K::NAMESPACED, Vec::new());
        absences = if was_there { 0 } else { absences };
        if absences == 0 {
            events::Event::PoliciesAbsent { resource: K::RESOURCE }.report();
        }
        tokio::time::sleep(ABSENT_PAUSES[absences.min(ABSENT_PAUSES.len() - 1)]).await;
        absences += 1;
    }
}

fn read<K: Kind>(object: PolicyObject) -> Found {
    let metadata = &object.metadata;
    let (key, uid, generation) = (key(metadata), uid(metadata), metadata.generation.unwrap_or_default());
    let status = object.status.text().and_then(|status| serde_json::from_str(status.get()).ok());
    let source = source(&object);
    let policy = match understand::<K::Spec>(&object.spec) {
        Ok(spec) => K::read(object.metadata, spec),
        Err(problem) => Err(Refused { key: key.clone(), uid, generation, problems: vec![problem] }),
    };
    Found { key, policy, status, source }
}

/// What a policy declares.
fn understand<S: DeserializeOwned>(spec: &Part) -> Result<S, String> {
    let text = match spec {
        Part::Text(text) => text.get(),
        Part::Absent => "null",
        Part::TooLarge(bytes) => {
            return Err(format!(
                "spec: {bytes} bytes as JSON, and an agent takes at most {MAX_PART}; give it fewer or shorter entries, or \
                 make several policies of it"
            ));
        }
    };
    // As when the resource's definition is newer than the agent. By way of a value, as places in a text that nobody sees help
    // nobody.
    let value: Result<Value, _> = serde_json::from_str(text);
    let spec = value.and_then(serde_json::from_value);
    spec.map_err(|error| format!("this agent does not understand it: {error}"))
}

/// What decides of a policy: all that is the same tomorrow. Of one that is too large there is nothing.
fn source(object: &PolicyObject) -> Option<Arc<RawValue>> {
    #[derive(Serialize)]
    struct Source<'a> {
        metadata: ObjectMeta,
        spec: Option<&'a RawValue>,
    }
    if matches!(object.spec, Part::TooLarge(_)) {
        return None;
    }
    let metadata = ObjectMeta { resource_version: None, ..object.metadata.clone() };
    let source = Source { metadata, spec: object.spec.text() };
    serde_json::value::to_raw_value(&source).ok().map(Arc::from)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, namespace: Option<&str>, tenant: &str) -> PolicyObject {
        serde_json::from_value(json!({
            "apiVersion": "sidestep.dev/v1alpha1", "kind": "any", "status": { "nodes": 3 },
            "metadata": { "name": name, "namespace": namespace, "generation": 2, "resourceVersion": "77" },
            "spec": { "selector": {}, "logs": { "tenant": tenant } },
        }))
        .expect("an object")
    }

    fn shared() -> SharedPolicies {
        SharedPolicies::new(Arc::default())
    }

    fn names(shared: &SharedPolicies) -> Vec<String> {
        shared.get().all().map(|policy| policy.key.to_string()).collect()
    }

    #[test]
    fn what_policies_are_made_of_makes_the_same_policies() {
        let before = shared();
        before.take(read::<SidestepPolicy>(object("web", Some("shop"), "a")));
        before.take(read::<ClusterSidestepPolicy>(object("all", None, "b")));
        before.take(read::<ClusterSidestepPolicy>(object("wrong", None, "not a tenant")));
        let (version, sources) = before.sources();
        assert_eq!(version, 3);
        let text = serde_json::to_string(&sources).expect("JSON");
        assert!(!text.contains("resourceVersion") && !text.contains("status"), "{text}");
        let after = shared();
        after.restore(serde_json::from_str(&text).expect("objects"));
        assert_eq!(names(&after), ["ClusterSidestepPolicy all", "SidestepPolicy shop/web"]);
        assert!(after.get().all().eq(before.get().all()) && after.get().refused().eq(before.get().refused()));
        assert!(after.version() > 0 && after.statuses().is_empty());
    }

    #[test]
    fn a_list_takes_the_place_of_what_was_saved_of_its_kind() {
        let shared = shared();
        shared.restore(vec![
            object("web", Some("shop"), "a"),
            object("old", Some("shop"), "a"),
            object("all", None, "b"),
        ]);
        let (saved, _) = shared.sources();
        shared.replace(true, vec![read::<SidestepPolicy>(object("web", Some("shop"), "a"))]);
        assert_eq!(names(&shared), ["ClusterSidestepPolicy all", "SidestepPolicy shop/web"]);
        let (version, sources) = shared.sources();
        assert_eq!((version, sources.len()), (saved + 1, 2));
        // Told once more: nothing to write.
        shared.replace(true, vec![read::<SidestepPolicy>(object("web", Some("shop"), "a"))]);
        assert_eq!(shared.sources().0, version);
        shared.remove(&key(&object("web", Some("shop"), "a").metadata));
        assert_eq!((names(&shared), shared.sources().1.len()), (vec!["ClusterSidestepPolicy all".to_owned()], 1));
    }

    #[test]
    fn a_policy_that_is_too_large_is_refused_and_nothing_of_it_is_kept() {
        let policy = |labels: usize, managed: usize| -> PolicyObject {
            let labels: BTreeMap<_, _> = (0..labels).map(|number| (format!("label-{number}"), "x")).collect();
            let fields: BTreeMap<_, _> = (0..managed).map(|number| (format!("f:label-{number}"), json!({}))).collect();
            let object = json!({
                "metadata": {
                    "name": "web", "namespace": "shop", "uid": "u", "generation": 1,
                    "managedFields": [{ "manager": "kubectl", "fieldsV1": fields }],
                },
                "spec": { "selector": { "matchLabels": labels }, "logs": { "topic": "t" } },
            });
            serde_json::from_str(&object.to_string()).expect("an object")
        };
        let shared = shared();
        let state = |shared: &SharedPolicies| {
            let (policies, sources) = (shared.get(), shared.sources().1);
            (policies.all().count(), policies.refused().count(), sources.iter().map(|source| source.get().len()).sum())
        };
        // What the API server notes of who wrote it does not count.
        shared.take(read::<SidestepPolicy>(policy(64, 100_000)));
        let (in_force, refused, kept): (usize, usize, usize) = state(&shared);
        assert!((in_force, refused) == (1, 0) && kept > 0 && kept < 2048, "{kept}");
        shared.take(read::<SidestepPolicy>(policy(75_000, 0)));
        assert_eq!(state(&shared), (0, 1, 0), "the old one is not in force any more, nor kept");
        let policies = shared.get();
        let refused = policies.refused().next().expect("one");
        assert_eq!((refused.uid.as_deref(), refused.generation), (Some("u"), 1));
        assert!(refused.to_string().len() < 256, "{refused}");
        assert!(refused.problems[0].contains(" bytes as JSON") && refused.problems[0].contains("65536"), "{refused}");
        shared.take(read::<SidestepPolicy>(policy(1, 0)));
        assert_eq!((state(&shared).0, state(&shared).1), (1, 0));
    }

    #[test]
    fn one_that_was_made_anew_under_the_name_is_news() {
        let shared = shared();
        let of = |uid: &str| {
            let mut object = object("web", Some("shop"), "a");
            object.metadata.uid = Some(uid.to_owned());
            read::<SidestepPolicy>(object)
        };
        shared.take(of("one"));
        let version = shared.version();
        shared.take(of("one"));
        assert_eq!(shared.version(), version);
        shared.take(of("two"));
        assert!(shared.version() > version);
        assert_eq!(shared.get().all().next().expect("it").uid.as_deref(), Some("two"));
    }
}
