//! The containers that are known, for whoever asks what was decided of them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::container::{Container, Settled};
use crate::kubernetes::Kubernetes;

/// All containers whose identity is settled.
#[derive(Debug)]
pub struct Known {
    kubernetes: Kubernetes,
    containers: Mutex<HashMap<u64, Weak<Container>>>,
    policies_version: AtomicU64,
}

impl Known {
    /// None yet.
    #[must_use]
    pub fn new(kubernetes: Kubernetes) -> Self {
        Self { kubernetes, containers: Mutex::default(), policies_version: AtomicU64::new(0) }
    }

    /// What the API server tells.
    #[must_use]
    pub const fn kubernetes(&self) -> &Kubernetes {
        &self.kubernetes
    }

    /// Which version of the policies is in force for all containers.
    #[must_use]
    pub fn policies_version(&self) -> u64 {
        self.policies_version.load(Relaxed)
    }

    /// This version of the policies is in force for all containers.
    pub(super) fn set_policies_version(&self, version: u64) {
        self.policies_version.store(version, Relaxed);
    }

    /// A container is settled.
    pub(super) fn insert(&self, container: &Arc<Container>) {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        if containers.len() == containers.capacity() {
            containers.retain(|_, container| container.strong_count() > 0);
        }
        containers.insert(container.cgroup, Arc::downgrade(container));
    }

    /// What is known of all containers, in the order of their names.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Settled>> {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = containers.values().filter_map(|container| container.upgrade()?.settled()).collect();
        drop(containers);
        all.sort_by(|one, two| one.identity.resource.container_name.cmp(&two.identity.resource.container_name));
        all
    }
}
