//! Every metric that the endpoint gives: name, type, labels, meaning. The collector and `docs/metrics.md` (by a test)
//! both hold to this table. Names follow Prometheus' conventions: base units, `_total` for counters.

use prometheus::proto::MetricType;

/// A metric with `N` labels.
#[derive(Clone, Copy, Debug)]
pub struct Definition<const N: usize> {
    /// The family's name.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: MetricType,
    /// Names of the labels, in the order in which the collector gives their values.
    pub labels: [&'static str; N],
    /// What it says, in one sentence.
    pub help: &'static str,
}

/// A [`Definition`] of any number of labels.
#[derive(Clone, Copy, Debug)]
pub struct AnyDefinition {
    /// The family's name.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: MetricType,
    /// Names of the labels.
    pub labels: &'static [&'static str],
    /// What it says, in one sentence.
    pub help: &'static str,
}

/// The metrics of [`SinkReading::figures`](super::snapshot::SinkReading::figures): of one type of sink only.
pub const SINK_FIGURES: &[Definition<2>] = &[
    ELASTICSEARCH_REQUESTS,
    ELASTICSEARCH_RETRIED,
    ELASTICSEARCH_DEAD_LETTERS,
    ELASTICSEARCH_HELD,
    KAFKA_BROKERS,
    KAFKA_BROKERS_UP,
    KAFKA_BUFFERED_MESSAGES,
    KAFKA_BUFFERED_BYTES,
    KAFKA_REQUESTS,
    KAFKA_ROUND_TRIP_MEDIAN,
    KAFKA_ROUND_TRIP_P99,
    KAFKA_THROTTLE,
    KAFKA_TRANSMIT_ERRORS,
    KAFKA_TRANSMIT_RETRIES,
    KAFKA_TIMEOUTS,
    KAFKA_TRANSMITTED,
    KAFKA_HELD_TOPICS,
    KAFKA_HELD_BYTES,
];

/// Declares the definitions and [`ALL`], so that none can be missing there.
macro_rules! definitions {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Definition<{ <[&str]>::len(&[$($label),*]) }> =
                Definition { name: $name, kind: MetricType::$kind, labels: [$($label),*], help: $help };
        )*

        /// Every definition, in the order of the reference.
        pub const ALL: &[AnyDefinition] = &[
            $(AnyDefinition { name: $name, kind: MetricType::$kind, labels: &[$($label),*], help: $help },)*
        ];
    };
}

definitions! {
    BUILD_INFO: GAUGE "sidestep_build_info" ["version", "commit", "kernel"]
        "What runs: version, git commit and kernel release; always 1.";

    READY: GAUGE "sidestep_ready" []
        "1 while /readyz says that the agent is ready, else 0.";
    EVENTS: COUNTER "sidestep_events_total" ["event"]
        "What an operator has to hear of; each is one line of the agent's own log.";
    OWN_LOG_LEFT_OUT: COUNTER "sidestep_own_log_left_out_lines_total" []
        "Lines of the agent's own log that were left out because they came too fast.";

    LOG_PRODUCED_BYTES: COUNTER "sidestep_log_produced_bytes_total" ["namespace", "pod", "container", "container_id"]
        "Bytes that the container wrote to its log streams.";
    LOG_DELIVERED_BYTES: COUNTER "sidestep_log_delivered_bytes_total" ["namespace", "pod", "container", "container_id"]
        "Bytes of log streams that every sink has acknowledged.";
    LOG_DELIVERED_LINES: COUNTER "sidestep_log_delivered_lines_total" ["namespace", "pod", "container", "container_id"]
        "Lines that every sink has acknowledged.";
    LOG_PENDING_BYTES: GAUGE "sidestep_log_pending_bytes" ["namespace", "pod", "container", "container_id"]
        "Bytes of log streams on their way: neither delivered nor dropped.";
    LOG_DROPPED_BYTES: COUNTER "sidestep_log_dropped_bytes_total"
        ["namespace", "pod", "container", "container_id", "stage", "reason"]
        "Bytes of log streams that were lost, by stage and reason; absent while zero.";
    LOG_CONTAINERS: GAUGE "sidestep_log_containers" []
        "Accounts in the ledger: containers that the agent knows, and the node itself.";
    LOG_OVERFLOW_CONTAINERS: GAUGE "sidestep_log_overflow_containers" []
        "Containers beyond the limit on series, booked together as container_id _overflow.";

    RING_CAPACITY: GAUGE "sidestep_ring_capacity_bytes" []
        "Size of the ring buffer between kernel and agent.";
    RING_FILL: GAUGE "sidestep_ring_fill_bytes" []
        "Bytes in the ring buffer that wait to be drained.";
    RING_HELD: GAUGE "sidestep_ring_held_bytes" []
        "Bytes in the ring buffer that were drained and are kept there until sinks or their buffers have them.";
    RING_WAKEUPS: COUNTER "sidestep_ring_wakeups_total" []
        "How often the kernel woke the agent to drain the ring buffer.";
    RING_RECORDS: COUNTER "sidestep_ring_records_total" []
        "Records drained from the ring buffer.";
    RING_LAG: GAUGE "sidestep_ring_lag_seconds" []
        "Time from the end of the system call to the draining of the newest record.";
    RING_UNREADABLE: COUNTER "sidestep_ring_unreadable_records_total" []
        "Records of the ring buffer that this version of the agent could not read.";
    RING_LOST_EVENTS: COUNTER "sidestep_ring_lost_events_total" ["event"]
        "Announcements of files and containers that the ring buffer, or a map of the kernel programs, did not take; the agent finds what they were about by other ways. `refused`: records of refusals, which were counted all the same.";

    REPAIR_GAPS: COUNTER "sidestep_repair_gaps_total" []
        "Gaps in log files that were filled by reading the file.";
    REPAIR_BYTES: COUNTER "sidestep_repair_read_bytes_total" []
        "Bytes read back from log files to fill gaps.";
    REPAIR_UNJUDGED: COUNTER "sidestep_repair_unjudged_bytes_total" []
        "Bytes written to files of which the agent could not tell whether they are logs; they are in no ledger.";

    STREAM_REPAIR_GAPS: COUNTER "sidestep_stream_repair_gaps_total" []
        "Gaps in stdout and stderr that were filled from the runtime's log.";
    STREAM_REPAIR_BYTES: COUNTER "sidestep_stream_repair_read_bytes_total" []
        "Bytes of stdout and stderr that the ring buffer could not hold and that were taken from the runtime's log.";
    STREAM_REPAIR_REFUSED: COUNTER "sidestep_stream_repair_refused_gaps_total" []
        "Gaps in stdout and stderr that were looked for in the runtime's log and not found there for certain.";

    PROBE_HEALTH: GAUGE "sidestep_probe_health" ["probe", "attach", "health"]
        "1 for the state that the probe is in (healthy, degraded, unsupported, failed), 0 for the others.";

    PROCESSOR_DROPPED_LINES: COUNTER "sidestep_processor_dropped_lines_total" ["processor", "reason"]
        "Lines that the processor has dropped on purpose, by reason; absent while zero.";
    PROCESSOR_REDACTIONS: COUNTER "sidestep_processor_redactions_total" ["processor"]
        "Matches that the processor has redacted, in bodies and in attributes.";

    SINK_QUEUED_BATCHES: GAUGE "sidestep_sink_queued_batches" ["sink", "type"]
        "Batches that wait in the sink's queue.";
    SINK_QUEUED_BYTES: GAUGE "sidestep_sink_queued_bytes" ["sink", "type"]
        "Bytes that wait in the sink's queue.";
    SINK_QUEUE_CAPACITY: GAUGE "sidestep_sink_queue_capacity_bytes" ["sink", "type"]
        "The most bytes that the sink's queue holds.";
    SINK_DELIVERED_RECORDS: COUNTER "sidestep_sink_delivered_records_total" ["sink", "type"]
        "Records that the sink has acknowledged.";
    SINK_DELIVERED_BYTES: COUNTER "sidestep_sink_delivered_bytes_total" ["sink", "type"]
        "Bytes of log streams that the sink has acknowledged.";
    SINK_DROPPED_RECORDS: COUNTER "sidestep_sink_dropped_records_total" ["sink", "type", "reason"]
        "Records that the sink has given up, by reason; absent while zero.";
    SINK_DROPPED_BYTES: COUNTER "sidestep_sink_dropped_bytes_total" ["sink", "type", "reason"]
        "Bytes of log streams that the sink has given up, by reason; absent while zero.";
    SINK_LAG: GAUGE "sidestep_sink_lag_seconds" ["sink", "type"]
        "Time since the oldest line was written that the sink was given and has not settled; 0 when there is none.";
    SINK_BEHIND_RECORDS: GAUGE "sidestep_sink_behind_records" ["sink", "type"]
        "Records that the sink was given and has not settled: in its queue, on their way, and in its buffer on disk.";
    SINK_BEHIND_BYTES: GAUGE "sidestep_sink_behind_bytes" ["sink", "type"]
        "Bytes of log streams in these records; what is on disk only counts as it is there.";
    SINK_ACKNOWLEDGED: GAUGE "sidestep_sink_acknowledged_timestamp_seconds" ["sink", "type"]
        "Unix time up to which all that the sink was given is settled, by when it was written; absent before it was given the first.";
    SINK_ERRORS: COUNTER "sidestep_sink_errors_total" ["sink", "type"]
        "Errors of the sink; each is tried again.";
    SINK_LAST_ERROR: GAUGE "sidestep_sink_last_error_timestamp_seconds" ["sink", "type"]
        "Unix time of the sink's last error; absent before the first.";
    SINK_FAILING: GAUGE "sidestep_sink_failing_seconds" ["sink", "type"]
        "For how long every attempt of the sink has failed; 0 while it works.";
    SINK_LAST_SUCCESS: GAUGE "sidestep_sink_last_success_timestamp_seconds" ["sink", "type"]
        "Unix time of the sink's last turn without an error, also one that had nothing to send; absent before the first.";
    SINK_BUFFER_BYTES: GAUGE "sidestep_sink_buffer_bytes" ["sink", "type"]
        "Bytes in the sink's buffer on disk.";
    SINK_BUFFER_CAPACITY: GAUGE "sidestep_sink_buffer_capacity_bytes" ["sink", "type"]
        "The most bytes that the sink's buffer on disk may have.";
    SINK_BUFFER_RECORDS: GAUGE "sidestep_sink_buffer_records" ["sink", "type"]
        "Records in the sink's buffer on disk that the sink has not acknowledged.";
    SINK_BUFFER_AGE: GAUGE "sidestep_sink_buffer_oldest_seconds" ["sink", "type"]
        "Age of the oldest file of the sink's buffer; 0 while it is empty.";
    SINK_BUFFER_IN_FILES: GAUGE "sidestep_sink_buffer_in_files_bytes" ["sink", "type"]
        "Bytes of log files that are left there until the sink's buffer has room for them.";
    SINK_BUFFER_DAMAGED: COUNTER "sidestep_sink_buffer_damaged_total" ["sink", "type"]
        "Places in the sink's buffer on disk that could not be read.";

    ELASTICSEARCH_REQUESTS: GAUGE "sidestep_elasticsearch_requests_in_flight" ["sink", "type"]
        "Requests to servers that wait for their answers.";
    ELASTICSEARCH_RETRIED: COUNTER "sidestep_elasticsearch_retried_records_total" ["sink", "type"]
        "Records that the server did not take at first, one by one, and that are sent again.";
    ELASTICSEARCH_DEAD_LETTERS: COUNTER "sidestep_elasticsearch_dead_letter_records_total" ["sink", "type"]
        "Records that their index does not take, and that go to the dead-letter index.";
    ELASTICSEARCH_HELD: GAUGE "sidestep_elasticsearch_held_records" ["sink", "type"]
        "Records that are held, as their index is blocked, missing or may not be written.";

    KAFKA_BROKERS: GAUGE "sidestep_kafka_brokers" ["sink", "type"]
        "Brokers of the cluster, as far as one of them has told.";
    KAFKA_BROKERS_UP: GAUGE "sidestep_kafka_brokers_up" ["sink", "type"]
        "Brokers that the sink has a working connection to.";
    KAFKA_BUFFERED_MESSAGES: GAUGE "sidestep_kafka_buffered_messages" ["sink", "type"]
        "Messages in the producer that are not acknowledged.";
    KAFKA_BUFFERED_BYTES: GAUGE "sidestep_kafka_buffered_bytes" ["sink", "type"]
        "Bytes of messages in the producer that are not acknowledged.";
    KAFKA_REQUESTS: GAUGE "sidestep_kafka_requests_in_flight" ["sink", "type"]
        "Requests to brokers that wait for their answers.";
    KAFKA_ROUND_TRIP_MEDIAN: GAUGE "sidestep_kafka_round_trip_median_seconds" ["sink", "type"]
        "Time from a request to its answer, median of the last seconds, of the slowest broker.";
    KAFKA_ROUND_TRIP_P99: GAUGE "sidestep_kafka_round_trip_p99_seconds" ["sink", "type"]
        "Time from a request to its answer, 99th percentile of the last seconds, of the slowest broker.";
    KAFKA_THROTTLE: GAUGE "sidestep_kafka_throttle_seconds" ["sink", "type"]
        "The longest that a broker has asked to wait, by its quotas, in the last seconds.";
    KAFKA_TRANSMIT_ERRORS: COUNTER "sidestep_kafka_transmit_errors_total" ["sink", "type"]
        "Requests that could not be sent, or were answered by nothing that can be read.";
    KAFKA_TRANSMIT_RETRIES: COUNTER "sidestep_kafka_transmit_retries_total" ["sink", "type"]
        "Requests that were sent again.";
    KAFKA_TIMEOUTS: COUNTER "sidestep_kafka_request_timeouts_total" ["sink", "type"]
        "Requests that were not answered in time.";
    KAFKA_TRANSMITTED: COUNTER "sidestep_kafka_transmitted_bytes_total" ["sink", "type"]
        "Bytes sent to brokers, compressed as they are.";
    KAFKA_HELD_TOPICS: GAUGE "sidestep_kafka_held_topics" ["sink", "type"]
        "Topics that can't be written now, as they are missing or may not be written.";
    KAFKA_HELD_BYTES: GAUGE "sidestep_kafka_held_bytes" ["sink", "type"]
        "Bytes of lines that are held for such topics.";

    LOG_CONTAINER_LABELS: GAUGE "sidestep_log_container_labels" ["namespace", "pod", "container", "container_id"]
        "Labels of the container's Pod, each as `label_` and its key; always 1. Absent without kubernetes.metric_labels.";
    KUBERNETES_WATCH_LIVE: GAUGE "sidestep_kubernetes_watch_live" ["resource"]
        "1 while the API server tells of changes as they happen, else 0; absent when it is not asked.";
    KUBERNETES_LAST_EVENT: GAUGE "sidestep_kubernetes_last_event_seconds" ["resource"]
        "Time since the API server has last told of something; absent before the first time.";
    KUBERNETES_LISTS: COUNTER "sidestep_kubernetes_lists_total" ["resource"]
        "How often everything was listed: once at the start, and again when the watch could not go on.";
    KUBERNETES_REQUESTS: COUNTER "sidestep_kubernetes_requests_total" ["verb", "resource", "outcome"]
        "Requests to the API server, by how they went.";
    KUBERNETES_PODS: GAUGE "sidestep_kubernetes_pods" ["state"]
        "Pods that the agent knows: those of the node, and deleted ones that linger for their last records.";
    KUBERNETES_LEFT_OUT: COUNTER "sidestep_kubernetes_left_out_total" ["what"]
        "Labels and annotations, and whole Pods, that were left out as there was too much of them.";

    POLICY_IN_FORCE: GAUGE "sidestep_policy_in_force" ["scope"]
        "Policies that the agent applies: SidestepPolicy (namespaced) and ClusterSidestepPolicy (cluster).";
    POLICY_REFUSED: GAUGE "sidestep_policy_refused" ["scope"]
        "Policies that can't be in force, as something in them is wrong; their condition Accepted says what.";
    POLICY_CONFLICTED: GAUGE "sidestep_policy_conflicted" ["scope"]
        "Policies of which another one of the same kind and priority decides a field, for a container of the node.";
    POLICY_WATCH_LIVE: GAUGE "sidestep_policy_watch_live" ["scope"]
        "1 while the API server tells of changes of policies as they happen, else 0, also where they are not defined.";
    POLICY_STATUS_LEADER: GAUGE "sidestep_policy_status_leader" []
        "1 on the node whose agent writes the status of policies, else 0.";
    POLICY_DECLARATIONS_REFUSED: COUNTER "sidestep_policy_declarations_refused_total" ["reason"]
        "What was declared for Pods of the node, by annotations or policies, and does not hold.";

    GOVERNANCE_IN_FORCE: GAUGE "sidestep_governance_in_force" []
        "1 while all that policies say of traffic is in the kernel, else 0: `sidestep policy show` says why.";
    GOVERNANCE_PODS: GAUGE "sidestep_governance_pods" []
        "Pods of the node of whose traffic a policy says something.";
    GOVERNANCE_REFUSED: COUNTER "sidestep_governance_refused_total" ["namespace", "pod", "scope", "mode", "direction", "reason", "policy", "rule"]
        "What policies have refused (enforce), or would have (observe), since their kernel programs were loaded; `policy` and `rule` where a limit of requests is counted on its own.";

    GOVERNANCE_MARKED: COUNTER "sidestep_governance_marked_total" ["namespace", "pod", "scope", "direction"]
        "Packets that were let through with a mark that tells who sends to send less (ECN), as a limit of bytes was nearly used up.";

    IDENTITY_CACHE_ENTRIES: GAUGE "sidestep_identity_cache_entries" ["cache"]
        "Entries of the cache.";

    PROCESS_CPU: COUNTER "process_cpu_seconds_total" []
        "User and system CPU time of the agent.";
    PROCESS_RESIDENT: GAUGE "process_resident_memory_bytes" []
        "Resident memory of the agent.";
    PROCESS_VIRTUAL: GAUGE "process_virtual_memory_bytes" []
        "Virtual memory of the agent.";
    PROCESS_THREADS: GAUGE "process_threads" []
        "Threads of the agent.";
    PROCESS_OPEN_FDS: GAUGE "process_open_fds" []
        "File descriptors that the agent has open.";
    PROCESS_MAX_FDS: GAUGE "process_max_fds" []
        "File descriptors that the agent may have open.";
    PROCESS_START: GAUGE "process_start_time_seconds" []
        "Unix time when the agent started.";
}
