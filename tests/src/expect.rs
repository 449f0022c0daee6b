//! Exact comparison of all that the agent delivered with what the containers wrote.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    Agent, Container, DEADLINE,
    records::{Record, Tail},
    wait_until,
};

/// Which stream: container id and source (`stdout`, `stderr`, or the path of a file as the writer sees it).
type Key = (String, String);

/// Everything that shall be delivered, byte for byte, and nothing else.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    streams: BTreeMap<Key, Vec<u8>>,
    classes: BTreeMap<Key, &'static str>,
    names: BTreeMap<String, [String; 3]>,
    repeats: bool,
}

impl Expected {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records may come twice, with the same stream and position: an agent was killed meanwhile.
    #[must_use]
    pub fn with_repeats(mut self) -> Self {
        self.repeats = true;
        self
    }

    /// Adds bytes that `container` has written to its stdout.
    pub fn stdout(&mut self, container: &Container, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.add(container, "stdout", "pod", bytes.as_ref())
    }

    /// Adds bytes that `container` has written to its stderr.
    pub fn stderr(&mut self, container: &Container, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.add(container, "stderr", "pod", bytes.as_ref())
    }

    /// Adds bytes that `container` has written to the log file `path`.
    pub fn file(&mut self, container: &Container, path: &str, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.add(container, path, "business", bytes.as_ref())
    }

    /// Adds bytes that the container with this id has written to its stdout; its names are those of the container, the
    /// Pod and the namespace.
    pub fn pod_stdout(&mut self, id: &str, names: [&str; 3], bytes: &[u8]) -> &mut Self {
        self.names.insert(id.to_owned(), names.map(str::to_owned));
        self.add_stream(id, "stdout", "pod", bytes)
    }

    fn add(&mut self, container: &Container, source: &str, class: &'static str, bytes: &[u8]) -> &mut Self {
        let names = [container.name(), container.pod(), container.namespace()].map(str::to_owned);
        self.names.insert(container.id().to_owned(), names);
        self.add_stream(container.id(), source, class, bytes)
    }

    /// Adds bytes of a stream of a container that the harness didn't start itself, or of the node (no id).
    pub fn add_stream(&mut self, id: &str, source: &str, class: &'static str, bytes: &[u8]) -> &mut Self {
        let key = (id.to_owned(), source.to_owned());
        self.classes.insert(key.clone(), class);
        self.streams.entry(key).or_default().extend_from_slice(bytes);
        self
    }

    /// Bytes of all streams of a container.
    #[must_use]
    pub fn total(&self, id: &str) -> u64 {
        self.streams.iter().filter(|((container, _), _)| container == id).map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Waits until everything has been delivered, exactly, with the right identity.
    ///
    /// # Errors
    /// Something is missing, different or too much at the deadline.
    pub fn wait_delivered(&self, agent: &Agent) -> Result<()> {
        self.wait_in(&[agent.records_directory()], DEADLINE).with_context(|| agent.log())
    }

    /// As [`Expected::wait_delivered`], for the file sinks of agents that others have started, within `limit`.
    ///
    /// # Errors
    /// Something is missing, different or too much at the deadline.
    pub fn wait_in(&self, directories: &[&Path], limit: Duration) -> Result<()> {
        let mut problem = None;
        let mut tails: Vec<(&Path, Tail)> = directories.iter().map(|path| (*path, Tail::default())).collect();
        let mut records = Vec::new();
        wait_until("exactly the expected records", limit, || {
            for (directory, tail) in &mut tails {
                records.extend(tail.poll(directory)?);
            }
            problem = self.compare(&records).err();
            Ok(problem.is_none().then_some(()))
        })
        .map_err(|late| problem.take().map_or(late, |problem| problem.context("at the deadline")))
    }

    /// Waits for delivery, checks the ledgers of `running` containers (those whose account is still open), stops the
    /// agent with SIGTERM, and compares once more: nothing may come late, twice or from anywhere else.
    ///
    /// # Errors
    /// Something is missing, different or too much, or a ledger doesn't balance.
    pub fn verify(&self, agent: Agent, running: &[&Container]) -> Result<()> {
        self.wait_delivered(&agent)?;
        for container in running {
            let ledger = agent.wait_ledger(container.id(), self.total(container.id()))?;
            ensure!(ledger.dropped.is_empty(), "container {} lost bytes: {ledger:?}", container.name());
        }
        let directory = agent.records_directory().to_owned();
        agent.stop()?;
        self.compare(&crate::records::read(&directory)?).context("after the agent's end")
    }

    /// Compares records with what is expected.
    ///
    /// # Errors
    /// The first difference, with its place.
    pub fn compare(&self, records: &[Record]) -> Result<()> {
        let mut streams: BTreeMap<Key, Vec<&Record>> = BTreeMap::new();
        for record in records {
            let key = (record.resource("container.id").to_owned(), record.source().to_owned());
            streams.entry(key).or_default().push(record);
        }
        for (key, expected) in self.streams.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            let records = streams.remove(key).unwrap_or_default();
            let bytes = assemble(&records, self.repeats).with_context(|| format!("stream {key:?}"))?;
            compare_bytes(expected, &bytes).with_context(|| format!("stream {key:?}, {} records", records.len()))?;
            for record in records {
                self.check_identity(key, record)?;
            }
        }
        match streams.into_iter().next() {
            Some((key, records)) => {
                bail!("{} records of an unexpected stream {key:?}: {}", records.len(), records[0].value)
            }
            None => Ok(()),
        }
    }

    fn check_identity(&self, key: &Key, record: &Record) -> Result<()> {
        ensure!(record.class() == self.classes[key], "class of {}", record.value);
        if let Some([name, pod, namespace]) = self.names.get(&key.0) {
            let got = ["k8s.container.name", "k8s.pod.name", "k8s.namespace.name"].map(|field| record.resource(field));
            ensure!(got == [name, pod, namespace], "identity of {}", record.value);
        }
        Ok(())
    }
}

/// The bytes of a source, whose streams (a truncated file starts a new one) follow each other.
fn assemble(records: &[&Record], repeats: bool) -> Result<Vec<u8>> {
    let mut streams: BTreeMap<&str, BTreeMap<u64, &Record>> = BTreeMap::new();
    for record in records {
        let of_stream = streams.entry(record.stream()).or_default();
        if let Some(before) = of_stream.get(&record.position()) {
            ensure!(repeats, "position {} came twice in {}", record.position(), record.stream());
            ensure!(
                before.value["body"] == record.value["body"],
                "a repeat differs: {} {}",
                before.value,
                record.value
            );
            // The stream began when the first of them was seen.
            if before.text("/observed_timestamp") <= record.text("/observed_timestamp") {
                continue;
            }
        }
        of_stream.insert(record.position(), record);
    }
    let mut streams: Vec<_> = streams.into_iter().collect();
    // Between streams only time tells the order; within one it is the position. The form of a time is fixed.
    streams.sort_by_key(|(_, records)| records.values().next().map(|record| record.text("/observed_timestamp")));
    let mut bytes = Vec::new();
    for (stream, records) in &streams {
        let mut end = None;
        for (position, record) in records {
            ensure!(end.is_none_or(|end| end == *position), "stream {stream} jumps from {end:?} to {position}");
            let line = record.bytes()?;
            end = Some(position + line.len() as u64);
            bytes.extend(line);
        }
    }
    Ok(bytes)
}

/// Says where two byte sequences part, with a little of both.
fn compare_bytes(expected: &[u8], got: &[u8]) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    let common = expected.iter().zip(got).take_while(|(left, right)| left == right).count();
    let from = common.saturating_sub(40);
    let part = |bytes: &[u8]| bytes[from.min(bytes.len())..(common + 80).min(bytes.len())].escape_ascii().to_string();
    bail!(
        "{} bytes expected, {} came; they part at {common}:\n  expected ...{}\n       got ...{}",
        expected.len(),
        got.len(),
        part(expected),
        part(got)
    )
}
