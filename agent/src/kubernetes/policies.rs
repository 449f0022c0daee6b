//! The watch of `SidestepPolicy` and `ClusterSidestepPolicy`, and the table of them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use kube::{
    Api, Client, Resource,
    core::{ApiResource, DynamicObject},
    runtime::watcher::{self, Event, watcher},
};
use serde::{Deserialize as _, de::DeserializeOwned};

use super::{health::Health, watch};
use crate::{
    events,
    policy::{
        Policies, Policy,
        precedence::Key,
        resource::{ClusterSidestepPolicy, SidestepPolicy, Status},
        selection::{Refused, key},
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
    /// The status that each has, by the API server.
    statuses: Mutex<HashMap<Key, Status>>,
    health: Arc<Health>,
}

impl SharedPolicies {
    pub(super) fn new(health: Arc<Health>) -> Self {
        Self { current: RwLock::default(), version: AtomicU64::new(0), statuses: Mutex::default(), health }
    }

    /// The policies as they are now.
    #[must_use]
    pub fn get(&self) -> Arc<Policies> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
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

    /// The status that a policy has.
    pub(super) fn status(&self, key: &Key) -> Option<Status> {
        self.statuses().get(key).cloned()
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

/// A kind of policies.
trait Kind: Resource<DynamicType = ()> + DeserializeOwned {
    const RESOURCE: &'static str;
    const NAMESPACED: bool;

    fn read(&self) -> Result<Policy, Refused>;
}

impl Kind for SidestepPolicy {
    const RESOURCE: &'static str = NAMESPACED;
    const NAMESPACED: bool = true;

    fn read(&self) -> Result<Policy, Refused> {
        Policy::namespaced(self)
    }
}

impl Kind for ClusterSidestepPolicy {
    const RESOURCE: &'static str = CLUSTER;
    const NAMESPACED: bool = false;

    fn read(&self) -> Result<Policy, Refused> {
        Policy::cluster(self)
    }
}

/// Follows both kinds, for ever.
pub(super) async fn follow(client: Client, shared: Arc<SharedPolicies>, health: Arc<Health>) {
    tokio::join!(
        follow_kind::<SidestepPolicy>(client.clone(), &shared, &health),
        follow_kind::<ClusterSidestepPolicy>(client, &shared, &health),
    );
}

async fn follow_kind<K: Kind>(client: Client, shared: &SharedPolicies, health: &Health) {
    // Each is read by itself: one that is not understood must not keep the others from being read.
    let api = Api::<DynamicObject>::all_with(client, &ApiResource::erase::<K>(&()));
    let config = watcher::Config::default().any_semantic();
    let mut absences = 0;
    loop {
        let mut was_there = false;
        let mut listed = Vec::new();
        let take = |event| match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => listed.push(read::<K>(shared, object)),
            Event::InitDone => {
                was_there = true;
                let policies = std::mem::take(&mut listed);
                shared.change(|all| {
                    all.retain(K::NAMESPACED, &policies.iter().map(key_of).collect());
                    for policy in policies {
                        all.insert(policy);
                    }
                    true
                });
            }
            Event::Apply(object) => {
                let policy = read::<K>(shared, object);
                shared.change(|all| all.insert(policy));
            }
            Event::Delete(object) => {
                let key = key(&object.metadata);
                shared.statuses().remove(&key);
                shared.change(|all| {
                    all.remove(&key);
                    true
                });
            }
        };
        watch::follow(|| watcher(api.clone(), config.clone()), K::RESOURCE, health, take).await;
        health.absent(K::RESOURCE, Instant::now());
        shared.change(|all| {
            all.retain(K::NAMESPACED, &BTreeSet::new());
            true
        });
        absences = if was_there { 0 } else { absences };
        if absences == 0 {
            events::Event::PoliciesAbsent { resource: K::RESOURCE }.report();
        }
        tokio::time::sleep(ABSENT_PAUSES[absences.min(ABSENT_PAUSES.len() - 1)]).await;
        absences += 1;
    }
}

fn key_of(policy: &Result<Policy, Refused>) -> Key {
    match policy {
        Ok(policy) => policy.key.clone(),
        Err(refused) => refused.key.clone(),
    }
}

fn read<K: Kind>(shared: &SharedPolicies, object: DynamicObject) -> Result<Policy, Refused> {
    let (key, generation) = (key(&object.metadata), object.metadata.generation.unwrap_or_default());
    if let Ok(status) = Status::deserialize(&object.data["status"]) {
        shared.statuses().insert(key.clone(), status);
    }
    let policy = match object.try_parse::<K>() {
        Ok(policy) => policy.read(),
        // As when the resource's definition is newer than the agent.
        Err(error) => {
            Err(Refused { key, generation, problems: vec![format!("this agent does not understand it: {error}")] })
        }
    };
    if let Err(refused) = &policy {
        events::Event::PolicyRefused { refused }.report();
    }
    policy
}
