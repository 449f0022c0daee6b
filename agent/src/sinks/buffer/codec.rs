//! A batch as bytes and back.
//!
//! ```text
//! prologue, prologue   version (1), lines (4), bytes of an entry (2), bytes of the stream (4), checksum (4)
//! stream, stream       JSON, checksum (4)
//! an entry a line      times, position, span (8 each), where its attributes begin, their length, length of the body
//!                      (4 each), flags, severity (1 each), checksum of the entry, attributes and body (4)
//! attributes and body of each line
//! ```
//!
//! Numbers are little-endian. What all lines need is there twice and each line has a checksum of its own, so damage costs
//! the lines that it is in. What a later version adds to the stream or to the end of an entry is passed over by this one.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::record::{Batch, Class, IoStream, Line, LineFlags, Metadata, Origin, Resource, Route, Severity};

/// The version that is written, and the only one that is read.
const VERSION: u8 = 2;
/// Bytes of one copy of the prologue.
const PROLOGUE: usize = 15;
/// Bytes of an entry.
const ENTRY: usize = 50;
/// Bytes of an entry before its checksum, which is the last that this version knows of it.
const FIELDS: usize = ENTRY - CHECKSUM;
const CHECKSUM: usize = 4;
/// No attributes, which is not the same as an empty set of them.
const NONE: u32 = u32::MAX;

/// Why bytes are no batch.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("it is of version {0}, and this agent reads version {VERSION}; an agent of the version that wrote it can")]
    Version(u8),
    #[error("it ends too early, or its parts do not fit together")]
    Shape,
    #[error("its stream is not understood: {0}")]
    Stream(serde_json::Error),
    #[error("attributes are not understood: {0}")]
    Attributes(serde_json::Error),
}

/// What is written of a stream.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Head {
    pub(super) key: Arc<str>,
    pub(super) class: Class,
    origin: HeadOrigin,
    #[serde(default)]
    resource: HeadResource,
    /// The account's cgroup id.
    #[serde(default)]
    pub(super) cgroup: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum HeadOrigin {
    Stdout,
    Stderr,
    File(Arc<str>),
    Refusals,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct HeadResource {
    #[serde(skip_serializing_if = "Option::is_none")]
    host_name: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_runtime: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_id: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_name: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_uid: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<HeadMetadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<Route>,
}

/// Rules have been applied before it is written, so the Pod itself is not in it.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct HeadMetadata {
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<Arc<str>>,
    attributes: Vec<(Arc<str>, Arc<str>)>,
}

impl HeadResource {
    /// Names every field, so that none is forgotten here when there is one more.
    fn of(resource: &Resource) -> Self {
        let Resource {
            host_name,
            container_runtime,
            container_id,
            container_name,
            image,
            namespace,
            pod,
            pod_uid,
            cgroup,
            metadata,
            route,
        } = resource.clone();
        let metadata = metadata.map(|metadata| HeadMetadata {
            workload: metadata.workload.clone(),
            attributes: metadata.attributes.clone(),
        });
        Self {
            host_name,
            container_runtime,
            container_id,
            container_name,
            image,
            namespace,
            pod,
            pod_uid,
            cgroup,
            metadata,
            route: route.as_deref().cloned(),
        }
    }
}

impl Head {
    fn of(batch: &Batch) -> Self {
        let stream = &batch.stream;
        let origin = match &stream.origin {
            Origin::Stdio(IoStream::Stdout) => HeadOrigin::Stdout,
            Origin::Stdio(IoStream::Stderr) => HeadOrigin::Stderr,
            Origin::File { path } => HeadOrigin::File(Arc::clone(path)),
            Origin::Refusals => HeadOrigin::Refusals,
        };
        Self {
            key: Arc::clone(&stream.key),
            class: stream.class,
            origin,
            resource: HeadResource::of(&stream.resource),
            cgroup: stream.account.cgroup,
        }
    }

    /// Reads what [`Encoded::head`] has.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        serde_json::from_slice(bytes).map_err(DecodeError::Stream)
    }

    pub(super) fn origin(&self) -> Origin {
        match &self.origin {
            HeadOrigin::Stdout => Origin::Stdio(IoStream::Stdout),
            HeadOrigin::Stderr => Origin::Stdio(IoStream::Stderr),
            HeadOrigin::File(path) => Origin::File { path: Arc::clone(path) },
            HeadOrigin::Refusals => Origin::Refusals,
        }
    }

    pub(super) fn resource(self) -> Resource {
        let HeadResource {
            host_name,
            container_runtime,
            container_id,
            container_name,
            image,
            namespace,
            pod,
            pod_uid,
            cgroup,
            metadata,
            route,
        } = self.resource;
        let metadata = metadata
            .map(|HeadMetadata { workload, attributes }| Arc::new(Metadata { workload, attributes, pod: None }));
        Resource {
            host_name,
            container_runtime,
            container_id,
            container_name,
            image,
            namespace,
            pod,
            pod_uid,
            cgroup,
            metadata,
            route: route.map(Arc::new),
        }
    }
}

/// The parts of an encoded batch.
#[derive(Debug)]
pub(super) struct Encoded {
    /// The stream, as JSON; equal for all batches of a stream.
    pub(super) head: Bytes,
    /// Attributes and bodies, one after the other.
    pub(super) data: Bytes,
    pub(super) lines: Vec<Line>,
}

/// Appends a batch to `out`.
pub(super) fn encode(batch: &Batch, out: &mut Vec<u8>) {
    // Strings and a map of strings always serialize.
    let head = serde_json::to_vec(&Head::of(batch)).unwrap_or_default();
    let mut prologue = vec![VERSION];
    prologue.extend_from_slice(&length(batch.lines.len()).to_le_bytes());
    prologue.extend_from_slice(&(ENTRY as u16).to_le_bytes());
    prologue.extend_from_slice(&length(head.len()).to_le_bytes());
    for part in [&prologue, &prologue, &head, &head] {
        out.extend_from_slice(part);
        out.extend_from_slice(&crc32fast::hash(part).to_le_bytes());
    }
    let attributes: Vec<Option<Vec<u8>>> = (batch.lines.iter())
        .map(|line| line.attributes.as_ref().map(|attributes| serde_json::to_vec(attributes).unwrap_or_default()))
        .collect();
    let mut start = 0;
    for (line, attributes) in batch.lines.iter().zip(&attributes) {
        let at = out.len();
        for number in [line.time_unix_nano, line.observed_time_unix_nano, line.position, line.span] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let text = attributes.as_deref().unwrap_or_default();
        let attributes = attributes.as_ref().map_or(NONE, |text| length(text.len()));
        for number in [length(start), attributes, length(line.body.len())] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(line.flags.0);
        out.push(line.severity.map_or(0, |severity| severity as u8));
        let checksum = checksum(&out[at..], &[text, batch.body(line)]);
        out.extend_from_slice(&checksum.to_le_bytes());
        start += text.len() + line.body.len();
    }
    for (line, attributes) in batch.lines.iter().zip(&attributes) {
        out.extend_from_slice(attributes.as_deref().unwrap_or_default());
        out.extend_from_slice(batch.body(line));
    }
}

fn checksum(fields: &[u8], rest: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(fields);
    rest.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// Frames are shorter than 4 GiB: a longer batch is refused as a whole.
fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Reads a batch.
///
/// # Errors
/// It is of another version, or no batch.
pub(super) fn decode(bytes: Vec<u8>) -> Result<Encoded, DecodeError> {
    let (table, head, data) = open(bytes)?;
    let lines = table.entries().map(|entry| entry.and_then(|entry| entry.line(&data))).collect::<Result<_, _>>()?;
    Ok(Encoded { head, data, lines })
}

/// Reads what is left of a damaged batch: the lines whose checksums are right.
///
/// # Errors
/// It is of another version, or so much of it is damaged that no line can be read.
pub(super) fn salvage(bytes: Vec<u8>) -> Result<Encoded, DecodeError> {
    let (table, head, data) = open(bytes)?;
    let whole = table.entries().flatten().filter(|entry| entry.is_whole(&data));
    let lines = whole.filter_map(|entry| entry.line(&data).ok()).collect();
    Ok(Encoded { head, data, lines })
}

/// The table of a batch, its stream, and its attributes and bodies.
fn open(bytes: Vec<u8>) -> Result<(Table, Bytes, Bytes), DecodeError> {
    let bytes = Bytes::from(bytes);
    let prologue = whole_copy(&bytes, PROLOGUE - CHECKSUM).ok_or(DecodeError::Shape)?;
    let mut reader = Reader(&prologue);
    match reader.number(1)? {
        version if version == u64::from(VERSION) => {}
        version => return Err(DecodeError::Version(u8::try_from(version).unwrap_or_default())),
    }
    let (count, size, head) = (reader.length(4)?, reader.length(2)?, reader.length(4)?);
    let rest = bytes.slice(2 * PROLOGUE..);
    let stream = whole_copy(&rest, head).ok_or(DecodeError::Shape)?;
    let mut rest = rest.slice(2 * (head + CHECKSUM)..);
    // An entry takes at least its size: a wrong count takes no memory.
    if size < ENTRY || count > rest.len() / size {
        return Err(DecodeError::Shape);
    }
    let table = rest.split_to(count * size);
    Ok((Table { bytes: table, size }, stream, rest))
}

/// The first of two copies of `length` bytes at the start of `bytes` that fits its checksum; `None` too where they are
/// shorter than that.
fn whole_copy(bytes: &Bytes, length: usize) -> Option<Bytes> {
    let with_checksum = length.checked_add(CHECKSUM)?;
    let copies = bytes.get(..with_checksum.checked_mul(2)?)?;
    let is_whole = |copy: &[u8]| {
        copy.split_last_chunk().is_some_and(|(copy, checksum)| crc32fast::hash(copy) == u32::from_le_bytes(*checksum))
    };
    let copy = copies.chunks(with_checksum).find(|copy| is_whole(copy))?;
    Some(bytes.slice_ref(&copy[..length]))
}

/// The entries of the lines.
struct Table {
    bytes: Bytes,
    size: usize,
}

impl Table {
    fn entries(&self) -> impl Iterator<Item = Result<Entry<'_>, DecodeError>> {
        self.bytes.chunks_exact(self.size).map(Entry::parse)
    }
}

/// An entry, and where its attributes and its body are.
struct Entry<'bytes> {
    fields: &'bytes [u8],
    attributes: Option<Range<usize>>,
    body: Range<usize>,
    checksum: u32,
}

impl<'bytes> Entry<'bytes> {
    fn parse(bytes: &'bytes [u8]) -> Result<Self, DecodeError> {
        let (fields, rest) = bytes.split_at_checked(FIELDS).ok_or(DecodeError::Shape)?;
        let checksum = u32::from_le_bytes(*rest.first_chunk().ok_or(DecodeError::Shape)?);
        let mut reader = Reader(&fields[4 * 8..]);
        let (start, attributes, body) = (reader.length(4)?, reader.number(4)?, reader.length(4)?);
        let length = if attributes == u64::from(NONE) { 0 } else { usize::try_from(attributes).unwrap_or(usize::MAX) };
        let middle = start.checked_add(length).ok_or(DecodeError::Shape)?;
        let end = middle.checked_add(body).ok_or(DecodeError::Shape)?;
        let attributes = (attributes != u64::from(NONE)).then_some(start..middle);
        Ok(Self { fields, attributes, body: middle..end, checksum })
    }

    fn is_whole(&self, data: &[u8]) -> bool {
        let start = self.attributes.as_ref().map_or(self.body.start, |attributes| attributes.start);
        data.get(start..self.body.end).is_some_and(|rest| checksum(self.fields, &[rest]) == self.checksum)
    }

    fn line(&self, data: &[u8]) -> Result<Line, DecodeError> {
        let mut reader = Reader(self.fields);
        let [time_unix_nano, observed_time_unix_nano, position, span] =
            [reader.number(8)?, reader.number(8)?, reader.number(8)?, reader.number(8)?];
        reader.take(3 * 4)?;
        let flags = LineFlags(reader.number(1)? as u8);
        let severity = severity(reader.number(1)?);
        let body = self.body.clone();
        if body.end > data.len() {
            return Err(DecodeError::Shape);
        }
        let attributes = match self.attributes.clone() {
            None => None,
            Some(text) => {
                let text = data.get(text).ok_or(DecodeError::Shape)?;
                Some(serde_json::from_slice(text).map_err(DecodeError::Attributes)?)
            }
        };
        Ok(Line { time_unix_nano, observed_time_unix_nano, body, position, span, flags, severity, attributes })
    }
}

fn severity(number: u64) -> Option<Severity> {
    use Severity::{Debug, Error, Fatal, Info, Trace, Warn};
    [Trace, Debug, Info, Warn, Error, Fatal].into_iter().find(|severity| u64::from(*severity as u8) == number)
}

/// Takes numbers from the front.
struct Reader<'bytes>(&'bytes [u8]);

impl<'bytes> Reader<'bytes> {
    fn take(&mut self, length: usize) -> Result<&'bytes [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Shape)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, size: usize) -> Result<u64, DecodeError> {
        Ok(self.take(size)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn length(&mut self, size: usize) -> Result<usize, DecodeError> {
        self.number(size).map(|length| usize::try_from(length).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests;
