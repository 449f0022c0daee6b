//! The containers that are known, for whoever asks what was decided of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use super::container::{Container, Profile};
use crate::{
    kubernetes::InForce,
    policy::{Field, Policies, annotations::Problem, precedence::Key},
};

/// All containers whose identity is settled.
#[derive(Default)]
pub struct Known {
    containers: Mutex<HashMap<u64, Weak<Container>>>,
    /// Those that are in force for all containers, and their version.
    policies: Mutex<(u64, Arc<Policies>)>,
    /// Told of every container that is new.
    watcher: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Known {
    /// Has `watcher` told of every container that is new; there is one.
    pub(super) fn watch(&self, watcher: impl Fn() + Send + Sync + 'static) {
        let _ = self.watcher.set(Box::new(watcher));
    }

    /// These policies are in force for all containers.
    pub(super) fn set_policies(&self, policies: (u64, Arc<Policies>)) {
        *self.policies.lock().unwrap_or_else(PoisonError::into_inner) = policies;
    }

    /// A container is settled.
    pub(super) fn insert(&self, container: &Arc<Container>) {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        if containers.len() == containers.capacity() {
            containers.retain(|_, container| container.strong_count() > 0);
        }
        containers.insert(container.cgroup, Arc::downgrade(container));
        drop(containers);
        if let Some(watcher) = self.watcher.get() {
            watcher();
        }
    }

    /// What is known of all containers, in the order of their names.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Profile>> {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = containers.values().filter_map(|container| container.upgrade()?.settled()).collect();
        drop(containers);
        all.sort_by(|one, two| one.identity.resource.container_name.cmp(&two.identity.resource.container_name));
        all
    }
}

impl InForce for Known {
    fn policies(&self) -> (u64, Arc<Policies>) {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn conflicts(&self) -> Vec<(Key, String)> {
        let of = |settled: &Profile| {
            let pod = pod_of(settled);
            let conflict = |(loser, field, winner): (&Key, Field, &Key)| {
                (loser.clone(), format!("spec.logs.{} for {pod} is decided by {winner}", field.as_str()))
            };
            settled.effective.conflicts().map(conflict).collect::<Vec<_>>()
        };
        self.all().iter().flat_map(|settled| of(settled)).collect()
    }

    fn problems(&self) -> Vec<(Key, String)> {
        let of = |settled: &Profile| {
            let pod = pod_of(settled);
            let of_policy = |problem: &Problem| {
                let policy = problem.policy.clone()?;
                Some((policy, format!("{pod}: {}", problem.message)))
            };
            settled.problems.iter().filter_map(of_policy).collect::<Vec<_>>()
        };
        self.all().iter().flat_map(|settled| of(settled)).collect()
    }
}

fn pod_of(settled: &Profile) -> String {
    let resource = &settled.identity.resource;
    let [namespace, pod] = [&resource.namespace, &resource.pod].map(|name| name.as_deref().unwrap_or("?"));
    format!("Pod {namespace}/{pod}")
}
