//! What the running agent tells about itself, as plain data.
//!
//! The stages know nothing of metrics, HTTP or the status view: whoever holds them all implements [`Observe`], and
//! everything that this module and `control` show comes from there.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    control::{
        explain::{ExplainReport, ExplainRequest},
        governance::{GovernanceReport, PolicySources, RefusalsReport},
        judgement::{JudgeRequest, Judgement},
    },
    kubernetes::health::{Request, WatchReading},
    ledger::{Balance, Ledger, Reason},
    process::ProcessorStats,
    record::Resource,
    sinks::{Rate, buffer::BufferStats, receipt::Amount},
};
pub use crate::{
    load::{Health, pins::Origin},
    pipeline::readings::{RingReading, StreamReading},
};

/// Gives readings of the running agent. Calls come from the thread that serves HTTP and the control socket, so an
/// implementation reads counters and takes short locks only.
pub trait Observe: Send + Sync + 'static {
    /// Everything but the streams, now.
    fn snapshot(&self) -> Snapshot;

    /// Every stream that the agent follows, now. There may be thousands, and only the status view asks for them.
    fn streams(&self) -> Vec<StreamReading>;

    /// Every governed root, now. Only the status view asks, since it takes a look at the cgroups.
    fn roots(&self) -> Vec<RootReading>;

    /// What was decided of a Pod's containers.
    ///
    /// # Errors
    /// None of them is known here, and what to do.
    fn explain(&self, request: &ExplainRequest) -> Result<ExplainReport, String>;

    /// What holds for the traffic of Pods, and what was refused.
    fn governance(&self) -> GovernanceReport;

    /// The same, with those who were refused last.
    fn refusals(&self) -> RefusalsReport;

    /// What policies say of a connection, datagram or request of a Pod.
    fn judge(&self, request: &JudgeRequest) -> Judgement;

    /// From where it has policies.
    fn policy_sources(&self) -> PolicySources;

    /// Reads the policies of files again; the version of what was read, or why nothing has changed.
    fn read_policies(&self) -> PoliciesRead<'_>;

    /// Where that Pod is when no container of it is known here, and whom to ask; `None` when that can't be known.
    fn whereabouts<'a>(&'a self, request: &'a ExplainRequest) -> Whereabouts<'a>;
}

/// The answer to [`Observe::whereabouts`], which may take a while.
pub type Whereabouts<'a> = Pin<Box<dyn Future<Output = Option<String>> + Send + 'a>>;

/// The answer to [`Observe::read_policies`], which takes as long as the files need to come to rest.
pub type PoliciesRead<'a> = Pin<Box<dyn Future<Output = Result<u64, String>> + Send + 'a>>;

/// One reading of the agent.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What was built, and what it runs on.
    pub build: Build,
    /// When the agent started.
    pub started: SystemTime,
    /// Why the last reload was refused, if it was.
    pub reload_refused: Option<String>,
    /// How often each typed event has happened, by name.
    pub events: Vec<(&'static str, u64)>,
    /// Lines of the agent's own log that were left out.
    pub own_log_left_out: u64,
    /// The ledger: the containers that the agent knows, and the node itself.
    pub accounts: Vec<AccountReading>,
    /// The ring buffer between kernel and agent.
    pub ring: RingReading,
    /// Gap repair of files.
    pub repair: RepairReading,
    /// Gap repair of standard streams.
    pub stream_repair: StreamRepairReading,
    /// How the agent came to its programs; `None` when nothing is pinned.
    pub programs: Option<ProgramsReading>,
    /// Every probe that was to be attached.
    pub probes: Vec<ProbeReading>,
    /// Every configured processor, in order.
    pub processors: Vec<ProcessorStats>,
    /// How long a sink may fail before the agent is not ready.
    pub sink_failing_limit: Duration,
    /// Every configured sink.
    pub sinks: Vec<SinkReading>,
    /// Entries of each identity cache, by the cache's name.
    pub identity: Vec<(&'static str, u64)>,
    /// What the API server tells; `None` when it is not asked.
    pub kubernetes: Option<KubernetesReading>,
}

/// Policies of one scope.
#[derive(Clone, Copy, Debug, Default)]
pub struct PolicyReading {
    /// `namespaced` or `cluster`.
    pub scope: &'static str,
    /// Those in force.
    pub in_force: u64,
    /// Those that can't be.
    pub refused: u64,
    /// Those that lose a field to another one of their kind and priority here.
    pub conflicted: u64,
    /// Whether changes come as they happen.
    pub is_live: bool,
}

/// What the API server tells, and what that costs it.
#[derive(Clone, Debug)]
pub struct KubernetesReading {
    /// Every watch.
    pub watches: Vec<WatchReading>,
    /// Policies; none when they are not asked for.
    pub policies: Vec<PolicyReading>,
    /// Whether this agent writes their status.
    pub leads: bool,
    /// What was declared and does not hold, by reason.
    pub declarations_refused: Vec<(&'static str, u64)>,
    /// Requests by verb, resource and outcome.
    pub requests: Vec<(Request, u64)>,
    /// Pods of the node.
    pub pods: u64,
    /// Deleted Pods that are known still.
    pub lingering: u64,
    /// Labels and annotations that were left out.
    pub left_out: u64,
    /// Pods that there was no room for.
    pub refused: u64,
}

/// What was built, and what it runs on.
#[derive(Clone, Debug)]
pub struct Build {
    /// The package's version.
    pub version: &'static str,
    /// The commit that it was built from, when the build said so in `SIDESTEP_GIT_COMMIT`.
    pub commit: Option<&'static str>,
    /// Release of the running kernel (`uname -r`).
    pub kernel: String,
}

impl Build {
    /// This agent on this kernel.
    #[must_use]
    pub fn current() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".to_owned(), |release| release.trim().to_owned());
        Self { version: env!("CARGO_PKG_VERSION"), commit: option_env!("SIDESTEP_GIT_COMMIT"), kernel }
    }
}

/// One account of the ledger.
#[derive(Clone, Debug)]
pub struct AccountReading {
    /// The container's cgroup id; 0 is the node itself.
    pub cgroup_id: u64,
    /// Whose account it is.
    pub resource: Arc<Resource>,
    /// Its figures.
    pub balance: Balance,
    /// Labels of its Pod for metrics, by their names there; `None` where none are asked for, or the Pod is not known.
    pub labels: Option<Vec<(String, String)>>,
}

impl AccountReading {
    /// Reads every account of a ledger, ordered by cgroup id.
    #[must_use]
    pub fn all(ledger: &Ledger) -> Vec<Self> {
        let mut readings: Vec<Self> = ledger
            .accounts()
            .into_iter()
            .map(|(cgroup_id, account)| Self {
                cgroup_id,
                resource: Arc::clone(&account.resource),
                balance: account.balance(),
                labels: None,
            })
            .collect();
        readings.sort_unstable_by_key(|reading| reading.cgroup_id);
        readings
    }
}

/// One governed root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootReading {
    /// As configured.
    pub path: String,
    /// Whether it is there.
    pub present: bool,
}

/// Gap repair of files.
#[derive(Clone, Copy, Debug, Default)]
pub struct RepairReading {
    /// Gaps that were filled.
    pub gaps: u64,
    /// Bytes that were read back from files.
    pub bytes: u64,
    /// Bytes of files of which nobody could tell whether they are logs.
    pub unjudged: u64,
}

/// Gap repair of standard streams, from the runtimes' logs.
#[derive(Clone, Copy, Debug, Default)]
pub struct StreamRepairReading {
    /// Gaps that were filled.
    pub gaps: u64,
    /// Bytes that were taken from the runtimes' logs.
    pub bytes: u64,
    /// Gaps that were looked for and not found for certain.
    pub refused: u64,
}

/// Programs and maps that are pinned.
#[derive(Clone, Debug)]
pub struct ProgramsReading {
    /// The directory of pins.
    pub directory: String,
    /// How the agent came to them.
    pub origin: Origin,
    /// Their generation: one more for each set that took the place of another.
    pub generation: u64,
    /// Version of the agent that has attached them.
    pub version: String,
    /// When.
    pub made: SystemTime,
    /// Whether they go on when the agent stops.
    pub keep: bool,
}

/// One probe.
#[derive(Clone, Debug)]
pub struct ProbeReading {
    /// What it captures, as `write` or `exec`.
    pub name: &'static str,
    /// How it is attached: `fexit`, `tracepoint`, `raw_tracepoint`.
    pub attach: &'static str,
    /// How well it works.
    pub health: Health,
    /// Why it is not healthy; empty when it is.
    pub reason: String,
    /// Whether the agent is of no use without it: it is not ready while such a probe is not attached.
    pub required: bool,
}

/// One sink.
#[derive(Clone, Debug)]
pub struct SinkReading {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Its type: `console`, `file`.
    pub kind: &'static str,
    /// Batches that wait in its queue.
    pub queued_batches: u64,
    /// Bytes that wait in its queue.
    pub queued_bytes: u64,
    /// The most bytes that its queue holds.
    pub queue_capacity_bytes: u64,
    /// Records that it has acknowledged.
    pub delivered_records: u64,
    /// Bytes of streams that it has acknowledged.
    pub delivered_bytes: u64,
    /// What it has acknowledged in the last ten seconds.
    pub rate: Rate,
    /// Records that it was given and has not settled.
    pub behind_records: u64,
    /// Bytes of these.
    pub behind_bytes: u64,
    /// How long ago the oldest of these was written.
    pub lag: Duration,
    /// All that it was given and that was written before this is settled; `None` before it was given anything.
    pub acknowledged_up_to: Option<SystemTime>,
    /// Records and bytes of streams that it has given up, by reason.
    pub dropped: Vec<(Reason, Amount)>,
    /// Errors so far.
    pub errors: u64,
    /// The last error.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<SystemTime>,
    /// When it last wrote without an error.
    pub last_success: Option<SystemTime>,
    /// For how long every attempt has failed, by a clock that nobody sets; `None` while it works.
    pub failing_for: Option<Duration>,
    /// What only sinks of its type have: the metric's name (one of [`names::SINK_FIGURES`](super::names::SINK_FIGURES))
    /// and its value.
    pub figures: Vec<(&'static str, f64)>,
    /// Its buffer on disk, where it has one.
    pub buffer: Option<BufferStats>,
}
