//! The running agent as `telemetry` and `control` see it.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use crate::{
    config::{Config, policy_files},
    control::{
        explain::{ExplainReport, ExplainRequest},
        governance::{GovernanceReport, PolicySources, RefusalsReport},
        judgement::{JudgeRequest, Judgement},
    },
    events, files,
    kubernetes::{Kubernetes, MetricLabels},
    ledger::Ledger,
    load::{AttachPoint, Pinned, Probe, Programs, RootPattern, Roots},
    own_log,
    pipeline::{Pipeline, governor, known::Known, outlet::Outlet, readings::Readings},
    policy::precedence::{Key, Scope},
    sinks::{SinkSettings, SinkStats},
    telemetry::{
        Observe, Snapshot, Whereabouts,
        snapshot::{
            AccountReading, Build, KubernetesReading, PoliciesRead, PolicyReading, ProbeReading, ProgramsReading,
            RepairReading, RootReading, SinkReading, StreamReading, StreamRepairReading,
        },
    },
};

/// Holds what every stage tells about itself.
pub struct Agent {
    started: SystemTime,
    ledger: Arc<Ledger>,
    readings: Arc<Readings>,
    containers: Arc<Known>,
    node: Arc<str>,
    governor: governor::Handle,
    /// `policies.files` of the configuration, which a reload does not change.
    policy_files: Arc<[PathBuf]>,
    files: Arc<files::Readings>,
    outlet: Arc<Outlet>,
    programs: Option<ProgramsReading>,
    probes: Vec<ProbeReading>,
    roots: Roots,
    kubernetes: Kubernetes,
    metric_labels: MetricLabels,
    sink_failing_limit: Duration,
    /// Type of each sink by its name.
    kinds: Mutex<HashMap<String, &'static str>>,
    /// Why the last reload was refused, if it was.
    reload_refused: Mutex<Option<String>>,
}

impl Agent {
    /// Observes a running pipeline.
    #[must_use]
    pub fn new(
        config: &Config,
        pipeline: &Pipeline,
        programs: &Programs,
        roots: Roots,
        kubernetes: Kubernetes,
    ) -> Self {
        let agent = Self {
            started: SystemTime::now(),
            ledger: pipeline.ledger(),
            readings: pipeline.readings(),
            containers: pipeline.containers(),
            node: Arc::clone(&config.node_name),
            governor: pipeline.governor(),
            policy_files: config.policies.files.as_slice().into(),
            files: pipeline.file_readings(),
            outlet: pipeline.outlet(),
            programs: programs.pinned.as_ref().map(pinned),
            probes: programs.probes.iter().map(probe).collect(),
            roots,
            metric_labels: MetricLabels::new(&config.kubernetes),
            kubernetes,
            sink_failing_limit: config.sink_failing_limit,
            kinds: Mutex::default(),
            reload_refused: Mutex::default(),
        };
        agent.set_sinks(config);
        agent
    }

    /// Takes over the sinks of a new configuration.
    pub fn set_sinks(&self, config: &Config) {
        let kinds = config.sinks.iter().map(|sink| (sink.name().to_owned(), kind(sink))).collect();
        *self.kinds.lock().unwrap_or_else(PoisonError::into_inner) = kinds;
    }

    /// Notes how a reload went: why it was refused, or `None`.
    pub fn set_reload_refused(&self, error: Option<String>) {
        *self.reload_refused.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    fn accounts(&self) -> Vec<AccountReading> {
        let mut accounts = AccountReading::all(&self.ledger);
        if !self.metric_labels.is_empty() {
            for account in &mut accounts {
                let pod = account.resource.pod_uid.as_ref().and_then(|uid| self.kubernetes.pods().get(uid));
                account.labels = pod.map(|pod| self.metric_labels.of(&pod.labels));
            }
        }
        accounts
    }

    fn kubernetes_reading(&self) -> KubernetesReading {
        let (pods, health) = (self.kubernetes.pods(), self.kubernetes.health());
        let (known, lingering) = pods.count();
        let declarations_refused = self.kubernetes.pod_events().counts();
        KubernetesReading {
            watches: health.readings(Instant::now()),
            policies: if self.kubernetes.watches_policies() { self.policy_readings() } else { Vec::new() },
            leads: self.kubernetes.policies().leads(),
            declarations_refused: declarations_refused
                .into_iter()
                .map(|(reason, count)| (reason.as_str(), count))
                .collect(),
            requests: health.requests(),
            pods: known as u64,
            lingering: lingering as u64,
            left_out: health.left_out(),
            refused: pods.refused(),
        }
    }

    fn policy_readings(&self) -> Vec<PolicyReading> {
        let policies = self.kubernetes.policies();
        let current = policies.get();
        let mut conflicted = BTreeSet::new();
        for settled in self.containers.all() {
            conflicted.extend(settled.effective.conflicts().map(|(loser, _, _)| loser.clone()));
        }
        let count =
            |keys: &mut dyn Iterator<Item = &Key>, scope: Scope| keys.filter(|key| key.scope() == scope).count() as u64;
        let reading = |scope: Scope| PolicyReading {
            scope: scope.as_str(),
            in_force: count(&mut current.all().map(|policy| &policy.key), scope),
            refused: count(&mut current.refused().map(|refused| &refused.key), scope),
            conflicted: count(&mut conflicted.iter(), scope),
            is_live: policies.is_live(scope),
        };
        Scope::ALL.map(reading).into()
    }

    fn sink(&self, stats: SinkStats) -> SinkReading {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        SinkReading {
            kind: kinds.get(&stats.name).copied().unwrap_or("unknown"),
            failing_for: stats.failing_for,
            buffer: stats.buffer,
            name: stats.name.into(),
            queued_batches: stats.queued_batches,
            queued_bytes: stats.queued_bytes,
            queue_capacity_bytes: stats.queue_capacity_bytes,
            delivered_records: stats.delivered_records,
            delivered_bytes: stats.delivered_bytes,
            rate: stats.rate,
            behind_records: stats.behind_records,
            behind_bytes: stats.behind_bytes,
            lag: stats.lag,
            acknowledged_up_to: stats.acknowledged_up_to,
            dropped: stats.dropped,
            errors: stats.errors,
            last_error: stats.last_error,
            last_error_at: stats.last_error_at,
            last_success: stats.last_success,
            figures: stats.figures.into_iter().map(|figure| (figure.name, figure.value)).collect(),
        }
    }
}

impl Observe for Agent {
    fn snapshot(&self) -> Snapshot {
        let identities = self.readings.identities();
        Snapshot {
            build: Build::current(),
            started: self.started,
            reload_refused: self.reload_refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            events: events::counts(),
            own_log_left_out: own_log::left_out(),
            accounts: self.accounts(),
            ring: self.readings.ring(),
            repair: RepairReading {
                gaps: self.files.gaps(),
                bytes: self.files.read_bytes(),
                unjudged: self.files.unjudged_bytes(),
            },
            stream_repair: self.readings.repairs().map_or_else(StreamRepairReading::default, |repairs| {
                StreamRepairReading {
                    gaps: repairs.gaps.load(Relaxed),
                    bytes: repairs.bytes.load(Relaxed),
                    refused: repairs.refused.load(Relaxed),
                }
            }),
            programs: self.programs.clone(),
            probes: self.probes.clone(),
            processors: self.outlet.processor_stats(),
            sink_failing_limit: self.sink_failing_limit,
            sinks: self.outlet.stats().into_iter().map(|stats| self.sink(stats)).collect(),
            identity: vec![
                ("live", identities.live as u64),
                ("exited", identities.exited as u64),
                ("incomplete", identities.incomplete as u64),
            ],
            kubernetes: self.kubernetes.is_on().then(|| self.kubernetes_reading()),
        }
    }

    fn governance(&self) -> GovernanceReport {
        GovernanceReport::of(&self.governor.reading(), &self.node)
    }

    fn refusals(&self) -> RefusalsReport {
        RefusalsReport { governance: self.governance(), recent: self.governor.recent().all() }
    }

    fn judge(&self, request: &JudgeRequest) -> Judgement {
        Judgement::of(&self.governor.reading(), request, &self.node)
    }

    fn explain(&self, request: &ExplainRequest) -> Result<ExplainReport, String> {
        ExplainReport::of(&self.containers, &self.kubernetes, &self.node, request)
    }

    fn policy_sources(&self) -> PolicySources {
        PolicySources { files: self.policy_files.to_vec(), api_server: self.kubernetes.watches_policies() }
    }

    fn read_policies(&self) -> PoliciesRead<'_> {
        let (governor, files) = (self.governor.clone(), Arc::clone(&self.policy_files));
        let read = move || {
            let version = governor.next_files();
            let policies = policy_files::read_at_rest(&files)?;
            governor.set_files(version, Arc::new(policies));
            Ok(version)
        };
        Box::pin(async { tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())? })
    }

    fn whereabouts<'a>(&'a self, request: &'a ExplainRequest) -> Whereabouts<'a> {
        Box::pin(async {
            let is_here = !request.containers(&self.containers).is_empty();
            if is_here { None } else { self.kubernetes.whereabouts(&request.namespace, &request.pod).await }
        })
    }

    fn streams(&self) -> Vec<StreamReading> {
        let mut streams = self.readings.streams();
        streams.extend(self.files.streams().into_iter().map(|reading| StreamReading {
            cgroup_id: reading.stream.account.cgroup,
            key: Arc::clone(&reading.stream.key),
            class: reading.stream.class,
            origin: reading.stream.origin.clone(),
            position: reading.position,
            pending: reading.pending,
        }));
        streams
    }

    fn roots(&self) -> Vec<RootReading> {
        let reading = |root: &RootPattern| RootReading {
            path: root.as_str().to_owned(),
            present: root.exists(&self.roots.mount),
        };
        self.roots.patterns().iter().map(reading).collect()
    }
}

fn pinned(pinned: &Pinned) -> ProgramsReading {
    ProgramsReading {
        directory: pinned.directory().display().to_string(),
        origin: pinned.origin,
        generation: pinned.generation(),
        version: pinned.version.clone(),
        made: pinned.made,
        keep: pinned.keeps(),
    }
}

fn probe(probe: &Probe) -> ProbeReading {
    ProbeReading {
        name: probe.name,
        attach: probe.attached.map_or("none", AttachPoint::as_str),
        health: probe.health,
        reason: probe.reason.clone(),
        required: probe.required,
    }
}

const fn kind(sink: &SinkSettings) -> &'static str {
    match sink {
        SinkSettings::Console(_) => "console",
        SinkSettings::Elasticsearch(_) => "elasticsearch",
        SinkSettings::File(_) => "file",
        SinkSettings::Http(_) => "http",
        SinkSettings::Kafka(_) => "kafka",
    }
}
