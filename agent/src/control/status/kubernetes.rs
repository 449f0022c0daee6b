//! How fresh what the API server tells is.

use serde::{Deserialize, Serialize};

use crate::{
    kubernetes::health::{Freshness, WatchReading},
    telemetry::snapshot::KubernetesReading,
};

/// What the API server tells.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct KubernetesStatus {
    /// Pods of the node that are known.
    pub pods: u64,
    /// Every watch.
    pub watches: Vec<WatchStatus>,
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
    /// Why it is not live.
    pub error: Option<String>,
}

impl KubernetesStatus {
    pub(super) fn of(reading: &KubernetesReading) -> Self {
        Self { pods: reading.pods, watches: reading.watches.iter().map(WatchStatus::of).collect() }
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
            error: reading.error.clone(),
        }
    }
}
