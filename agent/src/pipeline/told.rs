//! What the API server tells of a container's Pod, and whether its records wait for that.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::container::Told;
use crate::{
    config::Config,
    kubernetes::{Kubernetes, Pod, Projection},
    record::Resource,
};

/// Joins containers with their Pods.
#[derive(Debug)]
pub struct Teller {
    kubernetes: Kubernetes,
    projection: Projection,
    /// Whether a rule goes by what the API server tells.
    is_needed: bool,
    wait: Duration,
    /// How far [`Teller::news`] has come.
    seen: u64,
}

impl Teller {
    /// Tells what `kubernetes` knows, by a configuration.
    #[must_use]
    pub fn new(config: &Config, kubernetes: Kubernetes) -> Self {
        Self {
            kubernetes,
            projection: Projection::new(&config.kubernetes),
            is_needed: config.needs_metadata(),
            wait: config.kubernetes.wait,
            seen: 0,
        }
    }

    /// Says whether a rule goes by what the API server tells.
    pub(super) const fn set_needed(&mut self, is_needed: bool) {
        self.is_needed = is_needed;
    }

    /// What is known of the Pod of `resource`. Records that do not `go_on` wait for it, if a rule needs it and the API server
    /// may tell it.
    #[must_use]
    pub(super) fn tell(&self, resource: &Arc<Resource>, go_on: bool) -> Told {
        let Some(uid) = &resource.pod_uid else { return Told::default() };
        let pod = self.kubernetes.pods().get(uid);
        let is_missing = pod.as_ref().is_none_or(|pod| !pod.owners_known);
        let awaits = is_missing && !go_on && self.is_needed && !self.wait.is_zero() && self.kubernetes.may_tell();
        let with_metadata = |pod| {
            let metadata = Some(Arc::new(self.projection.metadata(&pod)));
            Arc::new(Resource { metadata, ..Resource::clone(resource) })
        };
        Told { resource: pod.map(with_metadata), awaits }
    }

    /// Pods that are new, or not as they were.
    pub(super) fn news(&mut self) -> Vec<Arc<Pod>> {
        self.kubernetes.pods().changed_since(&mut self.seen)
    }

    /// Whether records that wait since then have waited long enough.
    #[must_use]
    pub(super) fn is_over(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) >= self.wait
    }
}
