//! What holds of the API server's policies on this node, of logs and of traffic, for their status.

use std::sync::Arc;

use super::{governor, known::Known};
use jiff::Timestamp;

use crate::{
    kubernetes::{InForce, Kubernetes},
    policy::{Policies, Policy, precedence::Key, traffic::compile::Name},
};

/// Asks all who carry out what policies say.
pub struct PoliciesInForce {
    containers: Arc<Known>,
    governor: governor::Handle,
    kubernetes: Kubernetes,
}

impl PoliciesInForce {
    /// By the containers, and by what governs their traffic.
    #[must_use]
    pub const fn new(containers: Arc<Known>, governor: governor::Handle, kubernetes: Kubernetes) -> Self {
        Self { containers, governor, kubernetes }
    }
}

impl InForce for PoliciesInForce {
    fn policies(&self) -> (u64, Arc<Policies>) {
        // What the one who is behind goes by holds for both, but for policies that were changed since: of these it tells an older
        // generation, which nobody counts.
        let (logs, traffic) = (self.containers.policies(), self.governor.reading().policies.clone());
        if traffic.0 < logs.0 { traffic } else { logs }
    }

    fn conflicts(&self) -> Vec<(Key, String)> {
        self.containers.conflicts()
    }

    fn problems(&self) -> Vec<(Key, String)> {
        let reading = self.governor.reading();
        let mut problems = self.containers.problems();
        let key = |name: &Name| (!name.is_file).then(|| name.key.clone());
        for unmet in &reading.unmet {
            let of = |key: Key| (key, unmet.text.clone());
            let Some(named) = &unmet.policies else {
                let policies = self.kubernetes.policies().get();
                let now = Timestamp::now();
                let says_something = |policy: &&Arc<Policy>| policy.window().is_some_and(|window| window.is_open(now));
                let with_traffic = policies.all().filter(says_something);
                problems.extend(with_traffic.map(|policy| of(policy.key.clone())));
                continue;
            };
            problems.extend(named.iter().filter_map(key).map(of));
        }
        for held in &reading.pods {
            let Some(unmet) = &held.unmet else { continue };
            let text = format!("{}: {unmet}", held.name());
            let named = held.at_interface().filter_map(key);
            problems.extend(named.map(|key| (key, text.clone())));
        }
        problems
    }
}
