//! What the API server tells of a container's Pod, and whether its records wait for that.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::container::Joined;
use crate::{
    config::{Capture, Config},
    kubernetes::{Kubernetes, Pod, Projection},
    policy::{Permits, Policies, annotations::Declared},
    record::Resource,
};

/// Joins containers with their Pods.
#[derive(Debug)]
pub struct PodJoin {
    kubernetes: Kubernetes,
    projection: Projection,
    /// Whether a rule goes by what the API server tells.
    is_needed: bool,
    wait: Duration,
    /// Whether annotations count.
    annotations: bool,
    permits: Permits,
    policies: Arc<Policies>,
    /// Of which version those are.
    policies_version: u64,
    /// How far [`PodJoin::news`] has come.
    seen: u64,
}

impl PodJoin {
    /// Tells what `kubernetes` knows, by a configuration.
    #[must_use]
    pub fn new(config: &Config, kubernetes: Kubernetes) -> Self {
        Self {
            policies: kubernetes.policies().get(),
            kubernetes,
            projection: Projection::new(&config.kubernetes),
            is_needed: config.needs_metadata(),
            wait: config.kubernetes.wait,
            annotations: config.policies.annotations,
            permits: Permits::of(config),
            // Joined to all once it is taken, too.
            policies_version: 0,
            seen: 0,
        }
    }

    /// Takes over another configuration.
    pub(super) fn reload(&mut self, config: &Config) {
        self.is_needed = config.needs_metadata();
        self.permits = Permits::of(config);
    }

    /// What is known of the Pod of `resource`, and what is declared for its container, over what the rule of `capture` says.
    /// Records that do not `go_on` wait for it, if a rule or a policy may need it and the API server may tell it.
    #[must_use]
    pub(super) fn join(&self, resource: &Arc<Resource>, go_on: bool, capture: &Capture) -> Joined {
        let rule = capture.numbered_rule(resource).map(|(index, rule)| (index, &rule.declares));
        let container = resource.container_name.as_deref().unwrap_or_default();
        let uid = resource.pod_uid.as_ref();
        let pod = uid.and_then(|uid| self.kubernetes.pods().get(uid));
        let is_missing = pod.as_ref().is_none_or(|pod| self.kubernetes.is_incomplete(pod));
        // What the annotations of such a Pod declare may be anything; who made it is known soon after.
        let is_needed = self.is_needed || self.annotations;
        let may_wait = uid.is_some() && !go_on && !self.wait.is_zero() && self.kubernetes.may_tell();
        let policies = self.kubernetes.policies();
        // In this order: a list that comes between the two raises the version.
        let has_other_policies = policies.is_starting() || policies.version() != self.policies_version;
        let awaits = may_wait && (is_missing && is_needed || has_other_policies);
        let declared = match &pod {
            Some(pod) if self.annotations => Arc::clone(&pod.declared),
            _ => Arc::<Declared>::default(),
        };
        let subject = pod.as_ref().map(|pod| pod.subject(&declared));
        let mut effective = self.policies.effective(rule, subject.as_ref(), container);
        let (route, mut problems) = self.permits.route(&mut effective, resource.namespace.as_deref());
        problems.splice(0..0, declared.problems.iter().cloned());
        if let Some(pod) = &pod {
            self.kubernetes.pod_events().tell(pod, &problems);
        }
        let with_metadata = |pod: Arc<Pod>| {
            let metadata = Some(Arc::new(self.projection.metadata(&pod)));
            Arc::new(Resource { metadata, route, ..Resource::clone(resource) })
        };
        Joined { resource: pod.map(with_metadata), awaits, effective, problems }
    }

    /// The policies that are in force, and their version.
    pub(super) fn policies(&self) -> (u64, Arc<Policies>) {
        (self.policies_version, Arc::clone(&self.policies))
    }

    /// Whether policies have changed; from now on the new ones are in force.
    pub(super) fn take_policies(&mut self) -> bool {
        let shared = self.kubernetes.policies();
        if shared.version() == self.policies_version {
            return false;
        }
        (self.policies_version, self.policies) = shared.versioned();
        true
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
