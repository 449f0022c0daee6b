//! A batch as bytes and back.
//!
//! A byte for the version, then the stream as JSON, then the lines, then their bodies; numbers are little-endian. What a
//! later version adds to the stream or to the end of a line is passed over by this one.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::record::{Batch, Class, IoStream, Line, LineFlags, Origin, Resource, Severity};

/// The version that is written, and the only one that is read.
const VERSION: u8 = 1;
/// Bytes of a line without its attributes and body: two times, position, span (8 each), length of the body and of the
/// attributes (4 each), flags, severity (1 each).
const LINE: usize = 42;
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
        } = resource.clone();
        Self { host_name, container_runtime, container_id, container_name, image, namespace, pod, pod_uid, cgroup }
    }
}

impl Head {
    fn of(batch: &Batch) -> Self {
        let stream = &batch.stream;
        let origin = match &stream.origin {
            Origin::Stdio(IoStream::Stdout) => HeadOrigin::Stdout,
            Origin::Stdio(IoStream::Stderr) => HeadOrigin::Stderr,
            Origin::File { path } => HeadOrigin::File(Arc::clone(path)),
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
        } = self.resource;
        Resource { host_name, container_runtime, container_id, container_name, image, namespace, pod, pod_uid, cgroup }
    }
}

/// The parts of an encoded batch.
#[derive(Debug)]
pub(super) struct Encoded {
    /// The stream, as JSON; equal for all batches of a stream.
    pub(super) head: Bytes,
    /// The bodies, one after the other.
    pub(super) data: Bytes,
    pub(super) lines: Vec<Line>,
}

/// Appends a batch to `out`.
pub(super) fn encode(batch: &Batch, out: &mut Vec<u8>) {
    out.push(VERSION);
    // Strings and a map of strings always serialize.
    let head = serde_json::to_vec(&Head::of(batch)).unwrap_or_default();
    out.extend_from_slice(&length(head.len()).to_le_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(&length(batch.lines.len()).to_le_bytes());
    out.extend_from_slice(&(LINE as u16).to_le_bytes());
    for line in &batch.lines {
        let attributes = line.attributes.as_ref().map(|attributes| serde_json::to_vec(attributes).unwrap_or_default());
        for number in [line.time_unix_nano, line.observed_time_unix_nano, line.position, line.span] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&length(line.body.len()).to_le_bytes());
        out.extend_from_slice(&attributes.as_ref().map_or(NONE, |text| length(text.len())).to_le_bytes());
        out.push(line.flags.0);
        out.push(line.severity.map_or(0, |severity| severity as u8));
        out.extend_from_slice(attributes.as_deref().unwrap_or_default());
    }
    for line in &batch.lines {
        out.extend_from_slice(batch.body(line));
    }
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
    let bytes = Bytes::from(bytes);
    let mut reader = Reader { bytes: &bytes, at: 0 };
    match reader.number(1)? {
        version if version == u64::from(VERSION) => {}
        version => return Err(DecodeError::Version(u8::try_from(version).unwrap_or_default())),
    }
    let head_length = reader.length()?;
    let head = bytes.slice(reader.take(head_length)?);
    let count = reader.length()?;
    let line_size = usize::try_from(reader.number(2)?).unwrap_or_default();
    // A line takes at least its size: a wrong count takes no memory.
    if line_size < LINE || count > reader.left() / line_size {
        return Err(DecodeError::Shape);
    }
    let mut lines = Vec::with_capacity(count);
    let mut end = 0_usize;
    for _ in 0..count {
        let [time_unix_nano, observed_time_unix_nano, position, span] =
            [reader.number(8)?, reader.number(8)?, reader.number(8)?, reader.number(8)?];
        let body = reader.length()?;
        let attributes = reader.number(4)?;
        let flags = LineFlags(reader.number(1)? as u8);
        let severity = severity(reader.number(1)?);
        reader.take(line_size - LINE)?;
        let attributes = match attributes {
            none if none == u64::from(NONE) => None,
            length => {
                let text = reader.take(usize::try_from(length).unwrap_or(usize::MAX))?;
                Some(serde_json::from_slice(&bytes[text]).map_err(DecodeError::Attributes)?)
            }
        };
        let start = end;
        end = start.checked_add(body).ok_or(DecodeError::Shape)?;
        let body = start..end;
        lines.push(Line { time_unix_nano, observed_time_unix_nano, body, position, span, flags, severity, attributes });
    }
    let data = bytes.slice(reader.take(end)?);
    if reader.left() > 0 {
        return Err(DecodeError::Shape);
    }
    Ok(Encoded { head, data, lines })
}

fn severity(number: u64) -> Option<Severity> {
    use Severity::{Debug, Error, Fatal, Info, Trace, Warn};
    [Trace, Debug, Info, Warn, Error, Fatal].into_iter().find(|severity| u64::from(*severity as u8) == number)
}

struct Reader<'bytes> {
    bytes: &'bytes [u8],
    at: usize,
}

impl Reader<'_> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, length: usize) -> Result<std::ops::Range<usize>, DecodeError> {
        if length > self.left() {
            return Err(DecodeError::Shape);
        }
        self.at += length;
        Ok(self.at - length..self.at)
    }

    fn number(&mut self, size: usize) -> Result<u64, DecodeError> {
        let range = self.take(size)?;
        Ok(self.bytes[range].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn length(&mut self) -> Result<usize, DecodeError> {
        self.number(4).map(|length| usize::try_from(length).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests;
