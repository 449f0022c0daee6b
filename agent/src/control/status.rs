//! What `sidestep status` shows, as it goes over the socket and comes out of `--output json`.

mod kubernetes;
mod sink;

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

pub use kubernetes::{KubernetesStatus, PolicyStatus, WatchStatus};
pub use sink::{BufferStatus, SinkDroppedStatus, SinkStatus};

use crate::{
    load::pins,
    record::{Class, Origin},
    telemetry::{
        readiness::Readiness,
        snapshot::{AccountReading, Health, ProgramsReading, RootReading, Snapshot, StreamReading},
    },
};

/// The agent at one moment. Bytes are those of the streams.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StatusReport {
    /// The agent itself.
    pub agent: AgentStatus,
    /// One entry for each account of the ledger: containers by namespace, Pod and name, the node last.
    pub containers: Vec<ContainerStatus>,
    /// The ring buffer between kernel and agent.
    pub ring: RingStatus,
    /// Gap repair of files.
    pub repair: RepairStatus,
    /// The governed roots; none from an agent that is older than they are here.
    #[serde(default)]
    pub roots: Vec<RootStatus>,
    /// The pinned programs; none when nothing is pinned, or from an agent that is older than pins are here.
    #[serde(default)]
    pub programs: Option<ProgramsStatus>,
    /// Every probe.
    pub probes: Vec<ProbeStatus>,
    /// Every sink.
    pub sinks: Vec<SinkStatus>,
    /// Entries of each identity cache.
    pub identity: Vec<CacheStatus>,
    /// What the API server tells; none when it is not asked, or from an agent that is older than that is here.
    #[serde(default)]
    pub kubernetes: Option<KubernetesStatus>,
}

/// The agent itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AgentStatus {
    /// Its version.
    pub version: String,
    /// The commit that it was built from.
    pub commit: Option<String>,
    /// Release of the kernel.
    pub kernel: String,
    /// When it started, in seconds since the Unix epoch.
    pub started_unix_seconds: u64,
    /// For how long it has run.
    pub uptime_seconds: u64,
    /// Whether logs are captured and leave the node.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// Why the last reload was refused, if it was: the configuration before it is in force.
    pub reload_refused: Option<String>,
}

/// One account of the ledger with its streams.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ContainerStatus {
    /// Cgroup id; 0 is the node itself.
    pub cgroup_id: u64,
    /// `k8s.namespace.name`
    pub namespace: Option<String>,
    /// `k8s.pod.name`
    pub pod: Option<String>,
    /// `container.name`
    pub container: Option<String>,
    /// `container.id`
    pub container_id: Option<String>,
    /// `process.linux.cgroup`: its path, the only name of a container that no runtime knows.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Bytes written to the streams.
    pub produced_bytes: u64,
    /// Bytes that every sink has acknowledged.
    pub delivered_bytes: u64,
    /// Lines that every sink has acknowledged.
    pub delivered_lines: u64,
    /// Bytes on their way.
    pub pending_bytes: i64,
    /// Bytes lost, by stage and reason.
    pub dropped: Vec<DroppedStatus>,
    /// Produced minus all that is accounted for: 0 when the ledger balances, or a little off under load, as the figures
    /// are read one after the other.
    pub difference_bytes: i64,
    /// The streams, by key.
    pub streams: Vec<StreamStatus>,
}

/// Bytes lost at one stage for one reason.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DroppedStatus {
    /// Where.
    pub stage: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub bytes: u64,
}

/// One stream.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StreamStatus {
    /// Its key in records.
    pub key: String,
    /// Its class.
    pub class: Class,
    /// `stdout`, `stderr`, or the path of the file.
    pub origin: String,
    /// Bytes seen from its start.
    pub position: u64,
    /// Bytes of these that are not acknowledged.
    pub pending_bytes: u64,
}

/// The ring buffer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RingStatus {
    /// Its size.
    pub capacity_bytes: u64,
    /// What waits in it.
    pub fill_bytes: u64,
    /// Wake-ups by the kernel.
    pub wakeups: u64,
    /// Records drained.
    pub records: u64,
    /// Age of the newest record when it was drained.
    pub lag_seconds: f64,
}

/// Gap repair.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RepairStatus {
    /// Gaps filled.
    pub gaps: u64,
    /// Bytes read back.
    pub read_bytes: u64,
}

/// One governed root.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RootStatus {
    /// As configured.
    pub path: String,
    /// Whether it is there.
    pub present: bool,
}

/// Programs and maps that are pinned.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ProgramsStatus {
    /// The directory of pins.
    pub pinned: String,
    /// How the agent came to them: `new`, `taken_over` or `replaced`.
    pub origin: pins::Origin,
    /// Their generation: one more for each set that took the place of another.
    pub generation: u64,
    /// Version of the agent that has attached them.
    pub version: String,
    /// When, in seconds since the Unix epoch.
    pub since_unix_seconds: u64,
    /// Whether they go on when the agent stops.
    pub keep: bool,
}

/// One probe.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ProbeStatus {
    /// What it captures.
    pub name: String,
    /// How it is attached.
    pub attach: String,
    /// How well it works.
    pub health: Health,
    /// Why it is not healthy.
    pub reason: String,
    /// Whether the agent is of no use without it.
    pub required: bool,
}

/// One identity cache.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CacheStatus {
    /// Its name.
    pub cache: String,
    /// Its entries.
    pub entries: u64,
}

impl StatusReport {
    /// The report of one reading.
    #[must_use]
    pub fn of(snapshot: &Snapshot, streams: Vec<StreamReading>, roots: Vec<RootReading>) -> Self {
        let mut streams_by_account: HashMap<u64, Vec<StreamStatus>> = HashMap::new();
        for stream in streams {
            streams_by_account.entry(stream.cgroup_id).or_default().push(StreamStatus::of(stream));
        }
        let mut containers: Vec<_> = snapshot
            .accounts
            .iter()
            .map(|account| {
                let mut streams = streams_by_account.remove(&account.cgroup_id).unwrap_or_default();
                streams.sort_unstable_by(|left, right| left.key.cmp(&right.key));
                ContainerStatus::of(account, streams)
            })
            .collect();
        containers.sort_by_cached_key(|container| {
            let ContainerStatus { cgroup_id, namespace, pod, container, .. } = container;
            (*cgroup_id == 0, namespace.clone(), pod.clone(), container.clone(), *cgroup_id)
        });
        let ring = &snapshot.ring;
        Self {
            agent: AgentStatus::of(snapshot),
            containers,
            ring: RingStatus {
                capacity_bytes: ring.capacity,
                fill_bytes: ring.fill,
                wakeups: ring.wakeups,
                records: ring.records,
                lag_seconds: ring.lag.as_secs_f64(),
            },
            repair: RepairStatus { gaps: snapshot.repair.gaps, read_bytes: snapshot.repair.bytes },
            roots: roots.into_iter().map(|RootReading { path, present }| RootStatus { path, present }).collect(),
            programs: snapshot.programs.as_ref().map(ProgramsStatus::of),
            probes: snapshot.probes.iter().map(ProbeStatus::of).collect(),
            sinks: snapshot.sinks.iter().map(SinkStatus::of).collect(),
            identity: snapshot
                .identity
                .iter()
                .map(|(cache, entries)| CacheStatus { cache: (*cache).to_owned(), entries: *entries })
                .collect(),
            kubernetes: snapshot.kubernetes.as_ref().map(KubernetesStatus::of),
        }
    }
}

impl ProgramsStatus {
    fn of(programs: &ProgramsReading) -> Self {
        Self {
            pinned: programs.directory.clone(),
            origin: programs.origin,
            generation: programs.generation,
            version: programs.version.clone(),
            since_unix_seconds: unix_seconds(programs.made),
            keep: programs.keep,
        }
    }
}

impl AgentStatus {
    fn of(snapshot: &Snapshot) -> Self {
        let Readiness { ready, reasons } = Readiness::of(snapshot, snapshot.sink_failing_limit);
        Self {
            version: snapshot.build.version.to_owned(),
            commit: snapshot.build.commit.map(str::to_owned),
            kernel: snapshot.build.kernel.clone(),
            started_unix_seconds: unix_seconds(snapshot.started),
            uptime_seconds: snapshot.started.elapsed().unwrap_or_default().as_secs(),
            ready,
            reasons,
            reload_refused: snapshot.reload_refused.clone(),
        }
    }
}

impl ContainerStatus {
    fn of(account: &AccountReading, streams: Vec<StreamStatus>) -> Self {
        let text = |value: &Option<std::sync::Arc<str>>| value.as_deref().map(str::to_owned);
        let (resource, balance) = (&account.resource, &account.balance);
        let difference = balance.difference().clamp(i128::from(i64::MIN), i128::from(i64::MAX));
        Self {
            cgroup_id: account.cgroup_id,
            namespace: text(&resource.namespace),
            pod: text(&resource.pod),
            container: text(&resource.container_name),
            container_id: text(&resource.container_id),
            cgroup: text(&resource.cgroup),
            produced_bytes: balance.produced,
            delivered_bytes: balance.delivered,
            delivered_lines: balance.delivered_lines,
            pending_bytes: balance.pending,
            dropped: balance
                .dropped
                .iter()
                .map(|(stage, reason, bytes)| DroppedStatus {
                    stage: stage.as_str().to_owned(),
                    reason: reason.as_str().to_owned(),
                    bytes: *bytes,
                })
                .collect(),
            difference_bytes: i64::try_from(difference).unwrap_or(i64::MAX),
            streams,
        }
    }
}

impl StreamStatus {
    fn of(stream: StreamReading) -> Self {
        let origin = match stream.origin {
            Origin::Stdio(iostream) => iostream.as_str().to_owned(),
            Origin::File { path } => path.as_ref().to_owned(),
            Origin::Refusals => "refusals".to_owned(),
        };
        let StreamReading { key, class, position, pending, .. } = stream;
        Self { key: key.as_ref().to_owned(), class, origin, position, pending_bytes: pending }
    }
}

impl ProbeStatus {
    fn of(probe: &crate::telemetry::snapshot::ProbeReading) -> Self {
        Self {
            name: probe.name.to_owned(),
            attach: probe.attach.to_owned(),
            health: probe.health,
            reason: probe.reason.clone(),
            required: probe.required,
        }
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
