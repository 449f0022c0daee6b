//! Fills the metric families at each scrape from one snapshot of the agent. Nothing is kept between scrapes, so the
//! metrics of a container that is gone go with it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{
    names::{self, Definition},
    process::ProcessReading,
    readiness::Readiness,
    series::{Admission, Labels, sanitize},
    snapshot::{Health, KubernetesReading, Observe, PolicyReading, ProbeReading, SinkReading, Snapshot},
};
use crate::{
    control::governance::GovernanceReport,
    kubernetes::health::{Freshness, Request, WatchReading},
    ledger::Reason,
    process::ProcessorStats,
    sinks::{buffer::BufferStats, receipt::Amount},
};

/// The collector of every family in [`names`].
pub struct AgentCollector {
    observe: Arc<dyn Observe>,
    descriptions: Vec<Desc>,
    /// The only memory between scrapes: which containers have series of their own.
    admission: Mutex<Admission>,
}

impl AgentCollector {
    /// A collector for the agent behind `observe`, with series for at most `max_containers` containers.
    ///
    /// # Errors
    /// A name or label in [`names`] that Prometheus does not take.
    pub fn new(observe: Arc<dyn Observe>, max_containers: usize) -> Result<Self, prometheus::Error> {
        let describe = |definition: &names::AnyDefinition| {
            let labels = definition.labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(definition.name.to_owned(), definition.help.to_owned(), labels, Default::default())
        };
        let descriptions = names::ALL.iter().map(describe).collect::<Result<_, _>>()?;
        Ok(Self { observe, descriptions, admission: Mutex::new(Admission::new(max_containers)) })
    }
}

impl Collector for AgentCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshot = self.observe.snapshot();
        let mut families = Families(Vec::with_capacity(names::ALL.len()));
        families.agent(&snapshot);
        families.logs(&snapshot, &mut self.admission.lock().unwrap_or_else(PoisonError::into_inner));
        families.capture(&snapshot);
        families.governance(&self.observe.governance());
        families.kubernetes(&snapshot);
        families.processors(&snapshot.processors);
        families.sinks(&snapshot.sinks);
        families.process(&snapshot);
        families.0
    }
}

/// The families of one scrape.
struct Families(Vec<MetricFamily>);

impl Families {
    /// Adds a family; one without samples is left out, as the text format has no place for it.
    fn push<const N: usize>(&mut self, definition: &Definition<N>, samples: impl Iterator<Item = ([String; N], f64)>) {
        let metrics: Vec<Metric> = samples.map(|(values, value)| metric(definition, values, value)).collect();
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(definition.name.to_owned());
        family.set_help(definition.help.to_owned());
        family.set_field_type(definition.kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    fn single(&mut self, definition: &Definition<0>, value: f64) {
        self.push(definition, std::iter::once(([], value)));
    }

    fn agent(&mut self, snapshot: &Snapshot) {
        let build = &snapshot.build;
        let labels = [build.version.to_owned(), build.commit.unwrap_or("unknown").to_owned(), sanitize(&build.kernel)];
        self.push(&names::BUILD_INFO, std::iter::once((labels, 1.0)));
        let ready = Readiness::of(snapshot, snapshot.sink_failing_limit).ready;
        self.single(&names::READY, f64::from(u8::from(ready)));
        let events = snapshot.events.iter().map(|(event, count)| ([(*event).to_owned()], number(*count)));
        self.push(&names::EVENTS, events);
        self.single(&names::OWN_LOG_LEFT_OUT, number(snapshot.own_log_left_out));
        let caches = snapshot.identity.iter().map(|(cache, entries)| ([(*cache).to_owned()], number(*entries)));
        self.push(&names::IDENTITY_CACHE_ENTRIES, caches);
    }

    fn logs(&mut self, snapshot: &Snapshot, admission: &mut Admission) {
        let arranged = admission.arrange(&snapshot.accounts);
        self.single(&names::LOG_CONTAINERS, number(snapshot.accounts.len() as u64));
        self.single(&names::LOG_OVERFLOW_CONTAINERS, number(arranged.overflow_containers));
        let series = || arranged.series.iter().map(|(labels, figures)| (labels.clone(), figures));
        self.push(&names::LOG_PRODUCED_BYTES, series().map(|(labels, f)| (labels, number(f.produced))));
        self.push(&names::LOG_DELIVERED_BYTES, series().map(|(labels, f)| (labels, number(f.delivered))));
        self.push(&names::LOG_DELIVERED_LINES, series().map(|(labels, f)| (labels, number(f.delivered_lines))));
        // Below zero it shows a mistake in the ledger, so it is not hidden.
        self.push(&names::LOG_PENDING_BYTES, series().map(|(labels, f)| (labels, signed(f.pending))));
        let dropped = series().flat_map(|([namespace, pod, container, id], figures)| {
            figures.dropped.iter().map(move |((stage, reason), bytes)| {
                let (stage, reason) = (stage.as_str().to_owned(), reason.as_str().to_owned());
                let labels = [namespace.clone(), pod.clone(), container.clone(), id.clone(), stage, reason];
                (labels, number(*bytes))
            })
        });
        self.push(&names::LOG_DROPPED_BYTES, dropped);
        self.container_labels(&arranged.pod_labels);
    }

    fn governance(&mut self, report: &GovernanceReport) {
        self.single(&names::GOVERNANCE_IN_FORCE, f64::from(u8::from(report.problem.is_none())));
        self.single(&names::GOVERNANCE_PODS, number(report.pods.iter().filter(|pod| pod.is_governed()).count() as u64));
        let tiers = report.pods.iter().flat_map(|pod| pod.tiers.iter().map(move |tier| (pod, tier)));
        // Containers without a Pod have the same labels.
        let (mut sums, mut marked) = (BTreeMap::<_, u64>::new(), BTreeMap::<_, u64>::new());
        for (pod, tier) in tiers {
            for of_direction in &tier.marked {
                let labels = [&pod.namespace, &pod.pod, &tier.scope, &of_direction.direction].map(String::as_str);
                *marked.entry(labels.map(sanitize)).or_default() += of_direction.count;
            }
            for refused in &tier.refused {
                // Of lists and limits of which a tier has one the policies change, and the count goes on.
                let policy = refused.policies.first().filter(|_| refused.has_own_rule());
                let policy = policy.map(String::as_str).unwrap_or_default();
                let rule = refused.rule.as_deref().unwrap_or_default();
                let what = [&tier.scope, &tier.mode, &refused.direction, &refused.reason].map(String::as_str);
                let [scope, mode, direction, reason] = what;
                let labels = [&pod.namespace, &pod.pod, scope, mode, direction, reason, policy, rule];
                *sums.entry(labels.map(sanitize)).or_default() += refused.count;
            }
        }
        self.push(&names::GOVERNANCE_MARKED, marked.into_iter().map(|(labels, count)| (labels, number(count))));
        self.push(&names::GOVERNANCE_REFUSED, sums.into_iter().map(|(labels, count)| (labels, number(count))));
    }

    /// The only family whose labels are not the same for all: a series of its own for each container, so that a label that
    /// comes late or changes makes no other counter begin anew.
    fn container_labels(&mut self, containers: &BTreeMap<Labels, Vec<(String, String)>>) {
        let definition = &names::LOG_CONTAINER_LABELS;
        self.push(definition, containers.keys().map(|labels| (labels.clone(), 1.0)));
        if containers.is_empty() {
            return;
        }
        let Some(family) = self.0.last_mut() else { return };
        for (metric, pod_labels) in family.mut_metric().iter_mut().zip(containers.values()) {
            let mut all = metric.get_label().to_vec();
            all.extend(pod_labels.iter().map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name(name.clone());
                pair.set_value(sanitize(value));
                pair
            }));
            metric.set_label(all);
        }
    }

    fn capture(&mut self, snapshot: &Snapshot) {
        let ring = &snapshot.ring;
        self.single(&names::RING_CAPACITY, number(ring.capacity));
        self.single(&names::RING_FILL, number(ring.fill));
        self.single(&names::RING_HELD, number(ring.held));
        self.single(&names::RING_WAKEUPS, number(ring.wakeups));
        self.single(&names::RING_RECORDS, number(ring.records));
        self.single(&names::RING_LAG, ring.lag.as_secs_f64());
        self.single(&names::RING_UNREADABLE, number(ring.unreadable));
        let lost = ring.lost_events.iter().map(|(event, count)| ([(*event).to_owned()], number(*count)));
        self.push(&names::RING_LOST_EVENTS, lost);
        self.single(&names::REPAIR_GAPS, number(snapshot.repair.gaps));
        self.single(&names::REPAIR_BYTES, number(snapshot.repair.bytes));
        self.single(&names::REPAIR_UNJUDGED, number(snapshot.repair.unjudged));
        self.single(&names::STREAM_REPAIR_GAPS, number(snapshot.stream_repair.gaps));
        self.single(&names::STREAM_REPAIR_BYTES, number(snapshot.stream_repair.bytes));
        self.single(&names::STREAM_REPAIR_REFUSED, number(snapshot.stream_repair.refused));
        self.push(&names::PROBE_HEALTH, snapshot.probes.iter().flat_map(probe_states));
    }

    fn kubernetes(&mut self, snapshot: &Snapshot) {
        let Some(reading) = &snapshot.kubernetes else { return };
        let watches = || reading.watches.iter().map(|watch| ([watch.resource.to_owned()], watch));
        let live = |watch: &WatchReading| f64::from(u8::from(watch.freshness == Freshness::Live));
        self.push(&names::KUBERNETES_WATCH_LIVE, watches().map(|(labels, watch)| (labels, live(watch))));
        let last = watches().filter_map(|(labels, watch)| Some((labels, watch.last_event?.as_secs_f64())));
        self.push(&names::KUBERNETES_LAST_EVENT, last);
        self.push(&names::KUBERNETES_LISTS, watches().map(|(labels, watch)| (labels, number(watch.lists))));
        let requests = reading.requests.iter().map(|(request, count)| {
            let Request { verb, resource, outcome } = request;
            ([(*verb).to_owned(), sanitize(resource), (*outcome).to_owned()], number(*count))
        });
        self.push(&names::KUBERNETES_REQUESTS, requests);
        let pods = [("known", reading.pods), ("lingering", reading.lingering)];
        self.push(&names::KUBERNETES_PODS, pods.into_iter().map(|(state, n)| ([state.to_owned()], number(n))));
        let left_out = [("labels", reading.left_out), ("pods", reading.refused)];
        self.policies(reading);
        self.push(&names::KUBERNETES_LEFT_OUT, left_out.into_iter().map(|(what, n)| ([what.to_owned()], number(n))));
    }

    fn policies(&mut self, reading: &KubernetesReading) {
        let each = || reading.policies.iter().map(|policies| ([policies.scope.to_owned()], policies));
        self.push(&names::POLICY_IN_FORCE, each().map(|(labels, policies)| (labels, number(policies.in_force))));
        self.push(&names::POLICY_REFUSED, each().map(|(labels, policies)| (labels, number(policies.refused))));
        self.push(&names::POLICY_CONFLICTED, each().map(|(labels, policies)| (labels, number(policies.conflicted))));
        let live = |policies: &PolicyReading| f64::from(u8::from(policies.is_live));
        self.push(&names::POLICY_WATCH_LIVE, each().map(|(labels, policies)| (labels, live(policies))));
        if !reading.policies.is_empty() {
            self.single(&names::POLICY_STATUS_LEADER, f64::from(u8::from(reading.leads)));
        }
        let refused = reading.declarations_refused.iter();
        let refused = refused.map(|(reason, count)| ([(*reason).to_owned()], number(*count)));
        self.push(&names::POLICY_DECLARATIONS_REFUSED, refused);
    }

    fn processors(&mut self, processors: &[ProcessorStats]) {
        let dropped = processors.iter().flat_map(|stats| {
            let lines = stats.dropped_lines.iter();
            lines.map(|(reason, lines)| ([stats.name.to_string(), reason.as_str().to_owned()], number(*lines)))
        });
        self.push(&names::PROCESSOR_DROPPED_LINES, dropped);
        let redactions = processors.iter().map(|stats| ([stats.name.to_string()], number(stats.redactions)));
        self.push(&names::PROCESSOR_REDACTIONS, redactions);
    }

    fn sinks(&mut self, sinks: &[SinkReading]) {
        let each = || sinks.iter().map(|sink| ([sanitize(&sink.name), sink.kind.to_owned()], sink));
        self.push(&names::SINK_QUEUED_BATCHES, each().map(|(labels, sink)| (labels, number(sink.queued_batches))));
        self.push(&names::SINK_QUEUED_BYTES, each().map(|(labels, sink)| (labels, number(sink.queued_bytes))));
        self.push(&names::SINK_QUEUE_CAPACITY, each().map(|(labels, s)| (labels, number(s.queue_capacity_bytes))));
        self.push(&names::SINK_DELIVERED_RECORDS, each().map(|(labels, s)| (labels, number(s.delivered_records))));
        self.push(&names::SINK_DELIVERED_BYTES, each().map(|(labels, s)| (labels, number(s.delivered_bytes))));
        let dropped = |of: fn(&Amount) -> u64| {
            each().flat_map(move |([name, kind], sink)| {
                let labels = move |reason: &Reason| [name.clone(), kind.clone(), reason.as_str().to_owned()];
                sink.dropped.iter().map(move |(reason, amount)| (labels(reason), number(of(amount))))
            })
        };
        self.push(&names::SINK_DROPPED_RECORDS, dropped(|amount| amount.lines));
        self.push(&names::SINK_DROPPED_BYTES, dropped(|amount| amount.span));
        self.push(&names::SINK_LAG, each().map(|(labels, sink)| (labels, sink.lag.as_secs_f64())));
        self.push(&names::SINK_BEHIND_RECORDS, each().map(|(labels, sink)| (labels, number(sink.behind_records))));
        self.push(&names::SINK_BEHIND_BYTES, each().map(|(labels, sink)| (labels, number(sink.behind_bytes))));
        let acknowledged = each().filter_map(|(labels, sink)| Some((labels, unix_seconds(sink.acknowledged_up_to?))));
        self.push(&names::SINK_ACKNOWLEDGED, acknowledged);
        self.push(&names::SINK_ERRORS, each().map(|(labels, sink)| (labels, number(sink.errors))));
        let error = each().filter_map(|(labels, sink)| Some((labels, unix_seconds(sink.last_error_at?))));
        self.push(&names::SINK_LAST_ERROR, error);
        let failing = |sink: &SinkReading| sink.failing_for.unwrap_or_default().as_secs_f64();
        self.push(&names::SINK_FAILING, each().map(|(labels, sink)| (labels, failing(sink))));
        let success = each().filter_map(|(labels, sink)| Some((labels, unix_seconds(sink.last_success?))));
        self.push(&names::SINK_LAST_SUCCESS, success);
        for definition in names::SINK_FIGURES {
            let figure = |sink: &SinkReading| sink.figures.iter().find(|(name, _)| *name == definition.name).copied();
            let samples = each().filter_map(|(labels, sink)| Some((labels, figure(sink)?.1)));
            self.push(definition, samples);
        }
        let buffers = || each().filter_map(|(labels, sink)| Some((labels, sink.buffer?)));
        self.push(&names::SINK_BUFFER_BYTES, buffers().map(|(labels, buffer)| (labels, number(buffer.bytes))));
        self.push(
            &names::SINK_BUFFER_CAPACITY,
            buffers().map(|(labels, buffer)| (labels, number(buffer.capacity_bytes))),
        );
        self.push(&names::SINK_BUFFER_RECORDS, buffers().map(|(labels, buffer)| (labels, number(buffer.records))));
        let age = |buffer: BufferStats| buffer.oldest.unwrap_or_default().as_secs_f64();
        self.push(&names::SINK_BUFFER_AGE, buffers().map(|(labels, buffer)| (labels, age(buffer))));
        self.push(&names::SINK_BUFFER_IN_FILES, buffers().map(|(labels, buffer)| (labels, number(buffer.in_files))));
        self.push(&names::SINK_BUFFER_DAMAGED, buffers().map(|(labels, buffer)| (labels, number(buffer.damaged))));
    }

    fn process(&mut self, snapshot: &Snapshot) {
        self.single(&names::PROCESS_START, unix_seconds(snapshot.started));
        let process = match ProcessReading::now() {
            Ok(process) => process,
            Err(error) => {
                tracing::debug!(%error, "the agent's own CPU and memory could not be read");
                return;
            }
        };
        self.single(&names::PROCESS_CPU, process.cpu.as_secs_f64());
        self.single(&names::PROCESS_RESIDENT, number(process.resident));
        self.single(&names::PROCESS_VIRTUAL, number(process.virtual_memory));
        self.single(&names::PROCESS_THREADS, number(process.threads));
        self.single(&names::PROCESS_OPEN_FDS, number(process.open_fds));
        self.single(&names::PROCESS_MAX_FDS, number(process.max_fds));
    }
}

fn probe_states(probe: &ProbeReading) -> impl Iterator<Item = ([String; 3], f64)> + '_ {
    Health::ALL.into_iter().map(|health| {
        let labels = [probe.name.to_owned(), probe.attach.to_owned(), health.as_str().to_owned()];
        (labels, f64::from(u8::from(health == probe.health)))
    })
}

fn metric<const N: usize>(definition: &Definition<N>, values: [String; N], value: f64) -> Metric {
    let pair = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    };
    let mut metric = Metric::from_label(definition.labels.into_iter().zip(values).map(pair).collect());
    if definition.kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

/// Prometheus knows only `f64`, which is exact up to 9 PB.
#[expect(clippy::cast_precision_loss, reason = "the text format carries f64, and 2^53 bytes are beyond a node's logs")]
fn number(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "the text format carries f64, and 2^53 bytes are beyond a node's logs")]
fn signed(value: i64) -> f64 {
    value as f64
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
