//! A made-up agent for the tests of `telemetry` and `control`: every part of the snapshot has figures.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use super::{
    names,
    snapshot::{
        AccountReading, Build, Health, KubernetesReading, Observe, PoliciesRead, PolicyReading, ProbeReading,
        RepairReading, RingReading, RootReading, SinkReading, Snapshot, StreamReading, StreamRepairReading,
        Whereabouts,
    },
};
use crate::{
    control::{
        explain::{ExplainReport, ExplainRequest},
        governance::{GovernanceReport, GovernedPod, GovernedTier, PolicySources, Refusals, RefusalsReport},
        judgement::{JudgeRequest, Judgement},
    },
    kubernetes::health::{Freshness, Request, WatchReading},
    ledger::{Account, Ledger, Reason, Stage},
    process::ProcessorStats,
    record::{Class, IoStream, Origin, Resource},
    sinks::{Rate, buffer::BufferStats, receipt::Amount},
};

/// An agent that says what the test wants.
pub(crate) struct Made {
    pub(crate) snapshot: Mutex<Snapshot>,
    pub(crate) streams: Vec<StreamReading>,
}

impl Observe for Made {
    fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().expect("no test panics while it holds the lock").clone()
    }

    fn streams(&self) -> Vec<StreamReading> {
        self.streams.clone()
    }

    fn governance(&self) -> GovernanceReport {
        let refusals = Refusals {
            reason: "not_allowed".to_owned(),
            direction: "egress".to_owned(),
            policies: vec!["SidestepPolicy shop/web".to_owned()],
            rule: None,
            kind: 1,
            count: 3,
        };
        let tier = GovernedTier {
            scope: "namespace".to_owned(),
            mode: "enforce".to_owned(),
            egress: Some(vec!["SidestepPolicy shop/cart".to_owned()]),
            marked: vec![Refusals { reason: "byte_rate".to_owned(), kind: 2, ..refusals.clone() }],
            refused: vec![refusals],
            ..GovernedTier::default()
        };
        let (namespace, pod) = ("shop".to_owned(), "cart-1".to_owned());
        let pods = vec![GovernedPod { namespace, pod, cgroup: 41, tiers: vec![tier], ..GovernedPod::default() }];
        GovernanceReport { node: "node-1".to_owned(), pods, ..GovernanceReport::default() }
    }

    fn judge(&self, _: &JudgeRequest) -> Judgement {
        Judgement::default()
    }

    fn refusals(&self) -> RefusalsReport {
        RefusalsReport { governance: self.governance(), recent: Vec::new() }
    }

    fn explain(&self, request: &ExplainRequest) -> Result<ExplainReport, String> {
        Err(format!("no container of Pod {}/{} is known", request.namespace, request.pod))
    }

    fn whereabouts<'a>(&'a self, _: &'a ExplainRequest) -> Whereabouts<'a> {
        Box::pin(std::future::ready(None))
    }

    fn policy_sources(&self) -> PolicySources {
        PolicySources::default()
    }

    fn read_policies(&self) -> PoliciesRead<'_> {
        Box::pin(std::future::ready(Err("there are none".to_owned())))
    }

    fn roots(&self) -> Vec<RootReading> {
        [("/kubepods", true), ("/docker", false)]
            .map(|(path, present)| RootReading { path: path.to_owned(), present })
            .to_vec()
    }
}

pub(crate) fn agent() -> Arc<Made> {
    let stream = |key: &str, class, origin| StreamReading {
        cgroup_id: 42,
        key: key.into(),
        class,
        origin,
        position: 1000,
        pending: 50,
    };
    let streams = vec![
        stream("c0ffee/stdout", Class::Pod, Origin::Stdio(IoStream::Stdout)),
        stream("c0ffee/file/1", Class::Business, Origin::File { path: "/var/log/shop/orders.log".into() }),
    ];
    Arc::new(Made { snapshot: Mutex::new(snapshot()), streams })
}

pub(crate) fn resource() -> Arc<Resource> {
    Arc::new(Resource {
        container_id: Some("c0ffee0123456789abcdef".into()),
        container_name: Some("web".into()),
        namespace: Some("shop".into()),
        pod: Some("web-7d9f".into()),
        ..Resource::default()
    })
}

pub(crate) fn snapshot() -> Snapshot {
    let ledger = Ledger::default();
    book(&ledger.open(42, &resource()), 1000);
    book(&ledger.open(0, &Arc::default()), 500);
    let probe = |name, required| ProbeReading {
        name,
        attach: "tracepoint",
        health: Health::Healthy,
        reason: String::new(),
        required,
    };
    let mut accounts = AccountReading::all(&ledger);
    accounts.iter_mut().filter(|account| account.cgroup_id != 0).for_each(|account| account.labels = Some(Vec::new()));
    Snapshot {
        build: Build::current(),
        started: SystemTime::now() - Duration::from_secs(3600),
        reload_refused: None,
        events: vec![("sink_failing", 1), ("reload_done", 0)],
        own_log_left_out: 3,
        accounts,
        ring: RingReading {
            capacity: 64 << 20,
            fill: 12345,
            held: 54321,
            wakeups: 77,
            records: 9001,
            lag: Duration::from_millis(2),
            unreadable: 0,
            lost_events: vec![("file_seen", 0), ("container_started", 2)],
        },
        programs: None,
        repair: RepairReading { gaps: 3, bytes: 4096, unjudged: 17 },
        stream_repair: StreamRepairReading { gaps: 2, bytes: 8192, refused: 1 },
        probes: vec![probe("write", true), probe("exec", true), probe("splice", false)],
        processors: vec![ProcessorStats {
            name: "flood".into(),
            dropped_lines: vec![(Reason::Suppressed, 5)],
            redactions: 2,
        }],
        sink_failing_limit: Duration::from_secs(60),
        sinks: vec![SinkReading {
            name: "files".into(),
            kind: "file",
            queued_batches: 4,
            queued_bytes: 8192,
            queue_capacity_bytes: 64 << 20,
            delivered_records: 100,
            delivered_bytes: 20000,
            rate: Rate { records: 12.5, bytes: 2048.0 },
            behind_records: 90,
            behind_bytes: 3 << 10,
            lag: Duration::from_millis(2500),
            acknowledged_up_to: Some(SystemTime::now() - Duration::from_millis(2500)),
            dropped: vec![(Reason::BufferFull, Amount { lines: 7, span: 700 })],
            errors: 1,
            last_error: None,
            last_error_at: Some(SystemTime::now()),
            last_success: Some(SystemTime::now()),
            failing_for: None,
            figures: names::SINK_FIGURES.iter().map(|definition| (definition.name, 1.5)).collect(),
            buffer: Some(BufferStats {
                bytes: 1 << 20,
                capacity_bytes: 1 << 30,
                records: 70,
                oldest: Some(Duration::from_secs(3)),
                damaged: 0,
                in_files: 5000,
                unread_records: 50,
                unread_bytes: 1 << 19,
            }),
        }],
        identity: vec![("containers", 12), ("cgroups", 30)],
        kubernetes: Some(KubernetesReading {
            watches: vec![WatchReading {
                resource: "pods",
                freshness: Freshness::Live,
                last_event: Some(Duration::from_secs(3)),
                lists: 1,
                error: None,
                saved: None,
            }],
            policies: vec![PolicyReading { scope: "cluster", in_force: 2, is_live: true, ..PolicyReading::default() }],
            leads: true,
            declarations_refused: vec![("too_long", 1)],
            requests: vec![(Request { verb: "watch", resource: "pods".to_owned(), outcome: "ok" }, 2)],
            pods: 30,
            lingering: 2,
            left_out: 1,
            refused: 0,
        }),
    }
}

fn book(account: &Account, bytes: u64) {
    account.produce(bytes);
    account.deliver(bytes - 150, 9);
    account.drop_bytes(Stage::Capture, Reason::Quota, 100);
}
