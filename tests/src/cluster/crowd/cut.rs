//! Pods that are deleted in the middle of what they write. How far each came is not known before; the runtime's own log, which
//! the kubelet removes with the Pod, tells: it is held open.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{CONTAINER, CutReport, NAMESPACE, NUMBER, is_wanted, named, phase};
use crate::{
    cluster::{
        Node,
        workload::{Writer, container_id},
    },
    ledger::{Ledger, Metrics},
    records::Record,
};

/// The lines that a container writes when nobody ends it: its log stays below the size from which the kubelet rotates it (10 MiB).
const LINES: u64 = 150_000;
/// So many at a time, as fast as it can.
const BURST: u64 = 500;
/// Pause after these.
const PAUSE: Duration = Duration::from_millis(100);
/// A Pod is deleted when its log has so many bytes, or up to [`STEPS`] times as many: each at another point.
const STEP: u64 = 100_000;
const STEPS: u64 = 8;

/// What each of them writes.
pub(super) fn writer() -> Writer {
    Writer::new(CONTAINER, LINES).with_pause(PAUSE).in_bursts(BURST)
}

/// The Pods that have run, and what has come of them.
#[derive(Debug)]
pub(super) struct Cut {
    /// All that each was to write.
    all: Vec<u8>,
    /// By the ids of their containers, as the following.
    pods: BTreeMap<String, Pod>,
    streams: BTreeMap<String, Stream>,
    /// Gaps of all of them that the agent has filled so far.
    gaps: f64,
}

#[derive(Debug)]
struct Pod {
    name: String,
    /// The log of the runtime. It can be read for as long as it is open, also when the kubelet has removed it.
    log: File,
    /// It is deleted when its log has so many bytes.
    limit: u64,
    is_deleted: bool,
    /// Its account, as the agent told of it last.
    ledger: Ledger,
}

/// What has come of a container: all from its first byte to this one, once.
#[derive(Debug)]
struct Stream {
    key: String,
    pod: String,
    end: usize,
}

impl Default for Cut {
    fn default() -> Self {
        Self { all: writer().bytes(), pods: BTreeMap::new(), streams: BTreeMap::new(), gaps: 0.0 }
    }
}

impl Cut {
    /// Takes in what has begun to run, and returns the names of those that are to be deleted now.
    pub(super) fn look(&mut self, node: &Node, pods: &[Value]) -> Result<Vec<String>> {
        for pod in pods.iter().filter(|pod| is_wanted(pod) && phase(pod) == "Running") {
            let Some(id) = container_id(pod, CONTAINER).filter(|id| !self.pods.contains_key(*id)) else { continue };
            let limit = STEP * (1 + self.pods.len() as u64 % STEPS);
            self.pods.insert(id.to_owned(), Pod::new(node, pod, limit)?);
        }
        let mut names = Vec::new();
        for pod in self.pods.values_mut().filter(|pod| !pod.is_deleted) {
            if pod.log.metadata()?.len() >= pod.limit {
                pod.is_deleted = true;
                names.push(pod.name.clone());
            }
        }
        Ok(names)
    }

    /// Takes a record, in the order of the sink.
    ///
    /// # Errors
    /// It came before, something before it has not come, it is not what was written, or it does not tell whose it is.
    pub(super) fn take(&mut self, record: &Record) -> Result<()> {
        let id = record.resource("container.id");
        let pod = record.resource("k8s.pod.name");
        let whose = ["k8s.namespace.name", "k8s.container.name"].map(|name| record.resource(name));
        let is_whole = whose == [NAMESPACE, CONTAINER] && pod == named(record.resource(NUMBER));
        ensure!(
            is_whole && record.class() == "pod",
            "a line without what there is to tell of its Pod: {}",
            record.value
        );
        let stream = self.streams.entry(id.to_owned()).or_insert_with(|| Stream {
            key: record.stream().to_owned(),
            pod: pod.to_owned(),
            end: 0,
        });
        ensure!(stream.key == record.stream() && stream.pod == pod, "a second stream of a container: {}", record.value);
        let (start, bytes) = (usize::try_from(record.position())?, record.bytes()?);
        ensure!(start == stream.end, "at {start}, and not at {}: {}", stream.end, record.value);
        let end = start + bytes.len();
        ensure!(self.all.get(start..end) == Some(&bytes), "not what was written at {start}: {}", record.value);
        stream.end = end;
        Ok(())
    }

    /// Whether none of their processes is there any more.
    pub(super) fn are_gone(&self, node: &Node) -> Result<bool> {
        Ok(node.processes_of(|cgroup| self.pods.keys().any(|id| cgroup.contains(id)))?.is_empty())
    }

    /// Notes the accounts: they go soon after the containers.
    pub(super) fn note(&mut self, metrics: &Metrics) {
        self.gaps = metrics.sum("sidestep_stream_repair_gaps_total");
        for (id, pod) in &mut self.pods {
            let ledger = metrics.ledger(id);
            if ledger != Ledger::default() {
                pod.ledger = ledger;
            }
        }
    }

    /// Whether all has come that the runtime's logs have, and the account of each Pod is even, as it was noted last: nothing
    /// was on its way any more, and nothing was lost.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn check(&self) -> Result<()> {
        let strange = self.streams.keys().find(|id| !self.pods.contains_key(*id));
        ensure!(strange.is_none(), "records of a container that was not seen: {strange:?}");
        for (id, Pod { name, ledger, .. }) in &self.pods {
            self.beyond(id)?;
            let end = self.end(id);
            let is_even = ledger.pending == 0 && ledger.difference() == 0 && ledger.delivered == end as u64;
            ensure!(is_even && ledger.dropped.is_empty(), "{name}, with {end} bytes of records: {ledger:?}");
        }
        Ok(())
    }

    /// What came of it.
    pub(super) fn report(&self) -> Result<CutReport> {
        let pods = self.streams.values().filter(|stream| stream.end < self.all.len()).count();
        let beyond: Vec<usize> = self.pods.keys().map(|id| self.beyond(id)).collect::<Result<_>>()?;
        Ok(CutReport { pods, beyond: beyond.into_iter().sum(), gaps: self.gaps })
    }

    /// Bytes of a container that have come, from the first one on.
    fn end(&self, id: &str) -> usize {
        self.streams.get(id).map_or(0, |stream| stream.end)
    }

    /// How many bytes of a container have come that the runtime's log has not: they were in the pipe when its reader ended.
    ///
    /// # Errors
    /// It is the other way round.
    fn beyond(&self, id: &str) -> Result<usize> {
        let pod = &self.pods[id];
        let (logged, end) = (pod.logged()?, self.end(id));
        ensure!(self.all.starts_with(&logged), "the runtime's log of {} is not what it was to write", pod.name);
        let beyond = end.checked_sub(logged.len());
        beyond.with_context(|| format!("{}: {end} of {} bytes of the runtime's log", pod.name, logged.len()))
    }
}

impl Pod {
    fn new(node: &Node, pod: &Value, limit: u64) -> Result<Self> {
        let [namespace, name, uid] = ["namespace", "name", "uid"].map(|key| pod["metadata"][key].as_str());
        let name = name.context("a Pod's name")?;
        let directory = format!("{}_{name}_{}", namespace.context("a namespace")?, uid.context("a Pod's UID")?);
        let path = node.path(&format!("/var/log/pods/{directory}/{CONTAINER}/0.log"));
        let log = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { name: name.to_owned(), log, limit, is_deleted: false, ledger: Ledger::default() })
    }

    /// What the container has written, as the runtime has it: `TIME stdout F LINE`.
    fn logged(&self) -> Result<Vec<u8>> {
        let (mut file, mut text) = (&self.log, String::new());
        file.rewind()?;
        file.read_to_string(&mut text).with_context(|| format!("the runtime's log of {}", self.name))?;
        let mut bytes = Vec::new();
        for line in text.split_inclusive('\n') {
            let line = line.splitn(4, ' ').nth(3).with_context(|| format!("no line of a runtime's log: {line:?}"))?;
            bytes.extend_from_slice(line.as_bytes());
        }
        Ok(bytes)
    }
}
