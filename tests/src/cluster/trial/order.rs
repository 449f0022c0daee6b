//! Every stream as it comes out of Kafka: nothing is missing, torn or out of order, and each record tells whose it is.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LABEL, Report, Workload};
use crate::{
    cluster::workload::{Writer, container_id},
    kafka::Message,
    records::Record,
};

/// The streams of all containers, by the container's id.
#[derive(Default)]
pub(super) struct Streams {
    streams: BTreeMap<String, Stream>,
    records: u64,
    repeats: u64,
    /// A few records that do not tell whose they are.
    nameless: Vec<Value>,
}

/// So many nameless records are shown.
const NAMELESS: usize = 5;

struct Stream {
    /// What is in each record.
    names: Vec<(&'static str, String)>,
    expected: Vec<u8>,
    /// The one stream of the container.
    key: Option<String>,
    taken: Vec<u8>,
}

/// The record of a message.
pub(super) fn record(message: &Message) -> Result<Record> {
    Ok(Record { file: "kafka".into(), value: message.record()? })
}

impl Streams {
    /// Adds what a container of a Pod writes.
    pub(super) fn expect(&mut self, pod: &Value, writer: &Writer, workload: &Workload) -> Result<()> {
        let id = container_id(pod, writer.name()).with_context(|| format!("no container {}: {pod}", writer.name()))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut names = vec![
            ("k8s.namespace.name", text(&pod["metadata"]["namespace"])),
            ("k8s.pod.name", text(&pod["metadata"]["name"])),
            ("k8s.pod.uid", text(&pod["metadata"]["uid"])),
            ("k8s.container.name", writer.name().to_owned()),
            (LABEL, workload.app.to_owned()),
        ];
        names.extend(workload.attribute.map(|attribute| (attribute, workload.app.to_owned())));
        let stream = Stream { names, expected: writer.bytes(), key: None, taken: Vec::new() };
        // Of one that is known already something may have come.
        self.streams.entry(id.to_owned()).or_insert(stream);
        Ok(())
    }

    /// Whether a record is of a container that is not expected yet.
    pub(super) fn is_new(&self, record: &Record, namespace: &str) -> bool {
        let is_ours = record.resource("k8s.namespace.name") == namespace;
        is_ours && !self.streams.contains_key(record.resource("container.id"))
    }

    /// Takes a record, in the order of its partition.
    ///
    /// # Errors
    /// Something before it is missing, a repeat differs, or it does not tell whose it is.
    pub(super) fn take(&mut self, record: &Record, namespace: &str) -> Result<()> {
        let of = record.resource("k8s.namespace.name");
        if of.is_empty() && self.nameless.len() < NAMELESS {
            self.nameless.push(record.value.clone());
        }
        if of != namespace {
            return Ok(());
        }
        self.records += 1;
        let id = record.resource("container.id");
        let stream = self.streams.get_mut(id).with_context(|| format!("of an unknown container: {}", record.value))?;
        for (name, value) in &stream.names {
            ensure!(record.resource(name) == value, "{name} is not {value}: {}", record.value);
        }
        let key = stream.key.get_or_insert_with(|| record.stream().to_owned());
        ensure!(key == record.stream(), "a second stream of a container: {}", record.value);
        let (start, bytes) = (usize::try_from(record.position())?, record.bytes()?);
        let end = stream.taken.len();
        ensure!(start <= end, "{} bytes are missing before {}", start - end, record.value);
        if start < end {
            let before = stream.taken.get(start..start + bytes.len());
            ensure!(before == Some(&bytes), "a repeat that differs: {}", record.value);
            self.repeats += 1;
        } else {
            stream.taken.extend(bytes);
        }
        Ok(())
    }

    /// Whether all is there that is expected, and nothing else.
    pub(super) fn is_complete(&self) -> bool {
        self.streams.values().all(|stream| stream.taken == stream.expected)
    }

    /// What is not there, in words.
    pub(super) fn missing(&self) -> String {
        let missing = self.streams.values().filter(|stream| stream.taken != stream.expected);
        let words = missing.map(|stream| {
            format!("{:?}: {} of {} bytes have come", stream.names, stream.taken.len(), stream.expected.len())
        });
        let nameless = self.nameless.iter().map(|record| format!("of nobody: {record}"));
        words.chain(nameless).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn report(&self) -> Report {
        let lines = |stream: &Stream| stream.expected.iter().filter(|byte| **byte == b'\n').count() as u64;
        Report {
            streams: self.streams.len(),
            lines: self.streams.values().map(lines).sum(),
            records: self.records,
            repeats: self.repeats,
        }
    }
}
