//! What an operator has to hear of: a closed set of events, each of which is one line of the agent's log and one count of
//! the metric `sidestep_events_total`. `docs/runbook.md` says what to do.

use std::{
    fmt::Display,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Something that happened.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// A sink has failed; logged at most every 30 seconds for a sink, and counted as often as it is logged.
    SinkFailing {
        /// Its name.
        sink: &'a str,
        /// Failures since the last such line.
        suppressed: u64,
        /// What failed, the cause and the remedy.
        error: &'a dyn Display,
    },
    /// A sink that failed works again.
    SinkRecovered {
        /// Its name.
        sink: &'a str,
    },
    /// A sink that is replaced does not return from a call.
    SinkStuck {
        /// Its name.
        sink: &'a str,
    },
    /// The queue of a sink that drops when it is full has begun to drop.
    QueueFull {
        /// The sink's name.
        sink: &'a str,
    },
    /// A sink has given records up for good.
    RecordsRejected {
        /// The reason in the ledger.
        reason: &'static str,
        /// How many.
        lines: u64,
        /// The stream that they are of.
        stream: &'a str,
    },
    /// A record in the ring can't be read.
    RecordUnreadable {
        /// Why.
        error: &'a dyn Display,
    },
    /// A map of the kernel programs is full.
    MapFull {
        /// Which, and what that means.
        error: &'a dyn Display,
    },
    /// The file with the positions in log files is damaged.
    PositionsUnreadable {
        /// The file.
        path: &'a Path,
        /// What is wrong with it.
        error: &'a dyn Display,
        /// Where it was put aside.
        kept_as: Option<&'a Path>,
    },
    /// The file with the positions in log files can't be written.
    PositionsUnwritable {
        /// The file.
        path: &'a Path,
        /// The cause.
        error: &'a dyn Display,
    },
    /// The file with the positions in log files is of a time to come.
    PositionsFromFuture {
        /// The file.
        path: &'a Path,
        /// How far it is ahead of the clock.
        seconds: u64,
    },
    /// A position in a log file that can't be.
    PositionImplausible {
        /// The log file, as its writer sees it.
        path: &'a str,
        /// Where the agent before is said to have stood.
        position: u64,
        /// The file's size.
        size: u64,
    },
    /// The journal of standard streams is damaged.
    JournalUnreadable {
        /// What is wrong with it; names the file.
        error: &'a dyn Display,
        /// Where it was put aside.
        kept_as: Option<&'a Path>,
    },
    /// The journal says of a stream what can't be.
    JournalImplausible {
        /// The stream.
        stream: &'a dyn Display,
        /// What, and what is done.
        what: &'a dyn Display,
    },
    /// A log file can't be read.
    FileUnreadable {
        /// The file, as its writer sees it.
        path: &'a str,
        /// The cause.
        error: &'a dyn Display,
    },
    /// Probes are less than healthy.
    ProbesDegraded {
        /// Which, why, and what is missing for it.
        text: &'a str,
    },
    /// A new configuration is in force.
    ReloadDone {
        /// What changed.
        changes: &'a dyn Display,
    },
    /// A new configuration was refused.
    ReloadRefused {
        /// What is wrong with it.
        error: &'a str,
        /// The file.
        file: Option<&'a Path>,
    },
    /// The API server does not answer, or not as it should; logged at most every minute for a watch.
    KubernetesUnreachable {
        /// What is watched.
        resource: &'a str,
        /// What happened.
        error: &'a str,
    },
    /// The API server refuses a request for want of a right.
    KubernetesForbidden {
        /// The verb that the role lacks.
        verb: &'a str,
        /// Of which resource.
        resource: &'a str,
        /// The answer.
        error: &'a str,
    },
    /// The API server tells of changes again.
    KubernetesWatchRecovered {
        /// What is watched.
        resource: &'a str,
        /// After how long.
        after: std::time::Duration,
    },
    /// A Pod has more labels or annotations than are kept.
    KubernetesMetadataLeftOut {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
        /// How many are left out.
        count: usize,
    },
    /// The API server does not know a resource of policies.
    PoliciesAbsent {
        /// `sidesteppolicies` or `clustersidesteppolicies`.
        resource: &'a str,
    },
    /// A policy can't be in force.
    PolicyRefused {
        /// Its name, and each field with what is wrong.
        refused: &'a dyn Display,
    },
    /// The node's report has no room for all policies, or for all that is to be told of them; once in the agent's life.
    PolicyReportCut {
        /// Policies that it does not have.
        policies: usize,
        /// Conflicts and problems of those that it has.
        texts: usize,
    },
    /// What was declared for a Pod does not hold.
    DeclarationRefused {
        /// The Pod's namespace.
        namespace: &'a str,
        /// The Pod's name.
        name: &'a str,
        /// What kind of problem.
        reason: &'a str,
        /// The annotation or policy, its value, the cause and the remedy.
        problem: &'a dyn Display,
    },
    /// The file with the Pods, or that with the policies, can't be read or written.
    KubernetesStateUnusable {
        /// The file.
        path: &'a Path,
        /// The cause.
        error: &'a dyn Display,
    },
    /// The agent has stopped before everything was delivered.
    StoppedEarly {
        /// What was left.
        bytes: u64,
        /// The limit that it had.
        limit: std::time::Duration,
    },
}

/// Names of all events: the values of the metric's label, in the order of [`Event::index`].
pub const NAMES: [&str; 27] = [
    "sink_failing",
    "sink_recovered",
    "sink_stuck",
    "queue_full",
    "records_rejected",
    "record_unreadable",
    "map_full",
    "positions_unreadable",
    "positions_unwritable",
    "file_unreadable",
    "probes_degraded",
    "reload_done",
    "reload_refused",
    "stopped_early",
    "position_implausible",
    "journal_unreadable",
    "journal_implausible",
    "positions_from_future",
    "kubernetes_unreachable",
    "kubernetes_forbidden",
    "kubernetes_watch_recovered",
    "kubernetes_metadata_left_out",
    "kubernetes_state_unusable",
    "policies_absent",
    "policy_refused",
    "declaration_refused",
    "policy_report_cut",
];

/// How often each has happened. Events come from everywhere, so the count belongs to the process.
static COUNTS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// How often each event has happened since the start, by name.
#[must_use]
pub fn counts() -> Vec<(&'static str, u64)> {
    NAMES.into_iter().zip(&COUNTS).map(|(name, count)| (name, count.load(Relaxed))).collect()
}

impl Event<'_> {
    /// Logs and counts it.
    pub fn report(self) {
        COUNTS[self.index()].fetch_add(1, Relaxed);
        self.log();
    }

    const fn index(self) -> usize {
        match self {
            Self::SinkFailing { .. } => 0,
            Self::SinkRecovered { .. } => 1,
            Self::SinkStuck { .. } => 2,
            Self::QueueFull { .. } => 3,
            Self::RecordsRejected { .. } => 4,
            Self::RecordUnreadable { .. } => 5,
            Self::MapFull { .. } => 6,
            Self::PositionsUnreadable { .. } => 7,
            Self::PositionsUnwritable { .. } => 8,
            Self::FileUnreadable { .. } => 9,
            Self::ProbesDegraded { .. } => 10,
            Self::ReloadDone { .. } => 11,
            Self::ReloadRefused { .. } => 12,
            Self::StoppedEarly { .. } => 13,
            Self::PositionImplausible { .. } => 14,
            Self::JournalUnreadable { .. } => 15,
            Self::JournalImplausible { .. } => 16,
            Self::PositionsFromFuture { .. } => 17,
            Self::KubernetesUnreachable { .. } => 18,
            Self::KubernetesForbidden { .. } => 19,
            Self::KubernetesWatchRecovered { .. } => 20,
            Self::KubernetesMetadataLeftOut { .. } => 21,
            Self::KubernetesStateUnusable { .. } => 22,
            Self::PoliciesAbsent { .. } => 23,
            Self::PolicyRefused { .. } => 24,
            Self::DeclarationRefused { .. } => 25,
            Self::PolicyReportCut { .. } => 26,
        }
    }

    fn log(self) {
        let event = NAMES[self.index()];
        match self {
            Self::SinkFailing { sink, suppressed, error } => tracing::error!(event, sink, suppressed, "{error}"),
            Self::SinkRecovered { sink } => tracing::info!(event, sink, "the sink works again"),
            Self::SinkStuck { sink } => tracing::warn!(
                event,
                sink,
                "the sink is stuck in a call: what it has taken goes to the new one when it returns"
            ),
            Self::QueueFull { sink } => tracing::warn!(
                event,
                sink,
                "the queue of the sink is full and drops what is new: the sink is slower than its records come; give it \
                 a larger `queue.max_bytes`, or `when_full: block`"
            ),
            Self::RecordsRejected { reason, lines, stream } => tracing::error!(
                event,
                reason,
                lines,
                stream,
                "a sink has given records up for good; its last error in `sidestep status` says why"
            ),
            Self::RecordUnreadable { error } => {
                tracing::error!(event, %error, "a record of the kernel programs can't be read");
            }
            Self::MapFull { error } => {
                tracing::warn!(event, %error, "not every container is captured until others have ended");
            }
            Self::PositionsUnreadable { path, error, kept_as } => tracing::warn!(
                event,
                path = %path.display(),
                %error,
                kept_as = kept_as.map(|path| path.display().to_string()),
                "the positions in log files can't be used: every log is read from its beginning, so lines are repeated, and \
                 none is lost; restore the file before the agent starts, if there is a good copy"
            ),
            Self::PositionsUnwritable { path, error } => tracing::warn!(
                event,
                path = %path.display(),
                %error,
                "positions in log files can't be written; after a restart lines may be repeated"
            ),
            Self::PositionsFromFuture { path, seconds } => tracing::warn!(
                event,
                path = %path.display(),
                seconds,
                "the positions in log files are ahead of the clock: they are gone by, and a log that they do not have \
                 is read from its beginning, so lines may be repeated; look at the node's clock"
            ),
            Self::PositionImplausible { path, position, size } => tracing::warn!(
                event,
                path,
                position,
                size,
                "positions.json is ahead of a log file that begins as before: the file is read from its beginning, so \
                 lines may be repeated; look whether it was cut off, or state_dir was restored from another time"
            ),
            Self::JournalUnreadable { error, kept_as } => tracing::warn!(
                event,
                %error,
                kept_as = kept_as.map(|path| path.display().to_string()),
                "the positions in standard streams can't be used: each begins with the first record that the ring has, \
                 so lines may be torn or repeated at the restart, and none is lost"
            ),
            Self::JournalImplausible { stream, what } => tracing::warn!(
                event,
                %stream,
                "streams.journal does not fit what the kernel has counted: {what}; look whether state_dir was restored \
                 from another time"
            ),
            Self::FileUnreadable { path, error } => tracing::warn!(event, path, %error, "a log file can't be read"),
            Self::ProbesDegraded { text } => tracing::warn!(event, "{text}"),
            Self::ReloadDone { changes } => tracing::info!(event, %changes, "reload done"),
            Self::ReloadRefused { error, file } => {
                tracing::error!(event, error, ?file, "reload refused: the configuration in force stays");
            }
            Self::KubernetesUnreachable { resource, error } => tracing::warn!(
                event,
                resource,
                error,
                "the API server does not tell of changes: labels and workloads are as they were, or missing; records go on"
            ),
            Self::KubernetesForbidden { verb, resource, error } => tracing::warn!(
                event,
                verb,
                resource,
                error,
                "the API server refuses `{verb}` of `{resource}`: add it to the agent's ClusterRole"
            ),
            Self::KubernetesWatchRecovered { resource, after } => {
                tracing::info!(event, resource, ?after, "the API server tells of changes again");
            }
            Self::KubernetesMetadataLeftOut { namespace, name, count } => tracing::warn!(
                event,
                namespace,
                pod = name,
                count,
                "labels or annotations of the Pod are left out: they are too large, or too many"
            ),
            Self::PoliciesAbsent { resource } => tracing::info!(
                event,
                resource,
                "the API server does not know the resource: no policies; `sidestep crds | kubectl apply --server-side -f -` \
                 installs them, which is noticed within 10 minutes"
            ),
            Self::PolicyRefused { refused } => tracing::warn!(event, %refused, "a policy is not in force"),
            Self::PolicyReportCut { policies, texts } => tracing::warn!(
                event,
                policies,
                texts,
                "there are more policies, or conflicts and problems of them, than the node's report has room for: all are \
                 in force, but conditions do not tell all of it; bound `count/sidesteppolicies.sidestep.dev` by a ResourceQuota"
            ),
            Self::DeclarationRefused { namespace, name, reason, problem } => tracing::warn!(
                event,
                namespace,
                pod = name,
                reason,
                %problem,
                "what is declared for a Pod does not hold; all else of it does"
            ),
            Self::KubernetesStateUnusable { path, error } => tracing::warn!(
                event,
                path = %path.display(),
                %error,
                "Pods or policies in state_dir can't be read or written: an agent that starts while the API server is \
                 down goes without"
            ),
            Self::StoppedEarly { bytes, limit } => {
                tracing::warn!(event, bytes, ?limit, "stopped before everything was delivered");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(name: &str) -> u64 {
        counts().into_iter().find(|(other, _)| *other == name).expect("an event").1
    }

    #[test]
    fn every_event_has_a_name_and_a_count_of_its_own() {
        let path = Path::new("/x");
        let error: &dyn Display = &"broken";
        let events = [
            Event::SinkFailing { sink: "a", suppressed: 0, error },
            Event::SinkRecovered { sink: "a" },
            Event::SinkStuck { sink: "a" },
            Event::QueueFull { sink: "a" },
            Event::RecordsRejected { reason: "rejected", lines: 1, stream: "a" },
            Event::RecordUnreadable { error },
            Event::MapFull { error },
            Event::PositionsUnreadable { path, error, kept_as: None },
            Event::PositionsUnwritable { path, error },
            Event::FileUnreadable { path: "/x", error },
            Event::ProbesDegraded { text: "write" },
            Event::ReloadDone { changes: error },
            Event::ReloadRefused { error: "broken", file: None },
            Event::StoppedEarly { bytes: 1, limit: std::time::Duration::ZERO },
            Event::PositionImplausible { path: "/x", position: 2, size: 1 },
            Event::JournalUnreadable { error, kept_as: None },
            Event::JournalImplausible { stream: error, what: error },
            Event::PositionsFromFuture { path, seconds: 1 },
            Event::KubernetesUnreachable { resource: "pods", error: "refused" },
            Event::KubernetesForbidden { verb: "get", resource: "jobs", error: "refused" },
            Event::KubernetesWatchRecovered { resource: "pods", after: std::time::Duration::ZERO },
            Event::KubernetesMetadataLeftOut { namespace: "a", name: "b", count: 1 },
            Event::KubernetesStateUnusable { path, error },
            Event::PoliciesAbsent { resource: "sidesteppolicies" },
            Event::PolicyRefused { refused: error },
            Event::DeclarationRefused { namespace: "a", name: "b", reason: "c", problem: error },
            Event::PolicyReportCut { policies: 1, texts: 2 },
        ];
        assert_eq!(events.len(), NAMES.len());
        for (index, event) in events.into_iter().enumerate() {
            assert_eq!(event.index(), index);
            // Other tests of this process report events too.
            let before = count(NAMES[index]);
            event.report();
            assert!(count(NAMES[index]) > before, "{}", NAMES[index]);
        }
    }
}
