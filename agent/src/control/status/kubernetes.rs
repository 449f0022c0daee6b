//! How fresh what the API server tells is.

use serde::{Deserialize, Serialize};

use super::unix_seconds;
use crate::{
    kubernetes::health::{Freshness, WatchReading},
    telemetry::snapshot::{KubernetesReading, PolicyReading},
};

/// What the API server tells.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct KubernetesStatus {
    /// Pods of the node that are known.
    pub pods: u64,
    /// Every watch.
    pub watches: Vec<WatchStatus>,
    /// Policies of each scope; none when they are not asked for.
    #[serde(default)]
    pub policies: Vec<PolicyStatus>,
    /// Whether this agent writes their status.
    #[serde(default)]
    pub writes_policy_status: bool,
}

/// Policies of one scope.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PolicyStatus {
    /// `namespaced` or `cluster`.
    pub scope: String,
    /// Those in force.
    pub in_force: u64,
    /// Those that can't be.
    pub refused: u64,
    /// Those that lose a field to another one of their kind and priority on this node.
    pub conflicted: u64,
}

/// One watch.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct WatchStatus {
    /// What is watched.
    pub resource: String,
    /// `live`, `stale`, or `never` when there was no answer since the start.
    pub state: String,
    /// For how long it has been stale.
    pub stale_seconds: Option<u64>,
    /// Seconds since the API server has last told of something.
    pub last_event_seconds: Option<u64>,
    /// While the state is `never`: when an agent before has saved what is known, in seconds since the Unix epoch.
    #[serde(default)]
    pub saved_unix_seconds: Option<u64>,
    /// Why it is not live.
    pub error: Option<String>,
}

impl KubernetesStatus {
    pub(super) fn of(reading: &KubernetesReading) -> Self {
        Self {
            pods: reading.pods,
            watches: reading.watches.iter().map(WatchStatus::of).collect(),
            policies: reading.policies.iter().map(PolicyStatus::of).collect(),
            writes_policy_status: reading.leads,
        }
    }
}

impl PolicyStatus {
    fn of(reading: &PolicyReading) -> Self {
        let PolicyReading { scope, in_force, refused, conflicted, .. } = *reading;
        Self { scope: scope.to_owned(), in_force, refused, conflicted }
    }
}

impl WatchStatus {
    fn of(reading: &WatchReading) -> Self {
        Self {
            resource: reading.resource.to_owned(),
            state: reading.freshness.as_str().to_owned(),
            stale_seconds: match reading.freshness {
                Freshness::Stale(since) => Some(since.as_secs()),
                Freshness::Live | Freshness::Never => None,
            },
            last_event_seconds: reading.last_event.map(|last| last.as_secs()),
            saved_unix_seconds: reading.saved.map(unix_seconds),
            error: reading.error.clone(),
        }
    }
}
