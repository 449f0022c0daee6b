//! Records as lines of JSON, shared by all sinks that write JSON; the schema is in `docs/records.md`.

mod decode;
mod escape;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

pub use decode::exact_body;

use super::{stream_cache::StreamCache, timestamp::Rfc3339};
use crate::record::{
    ANNOTATION_ATTRIBUTE, Attributes, Batch, EVENT_ATTRIBUTE, LABEL_ATTRIBUTE, Line, LineFlags,
    NAMESPACE_LABEL_ATTRIBUTE, Origin, REFUSAL_EVENT, Resource, Stream, TENANT_ATTRIBUTE,
};

/// The attribute that carries the exact bytes of a body that is not UTF-8.
pub const BODY_BASE64: &str = "sidestep.body.base64";

/// Attributes of a structured body whose names begin with one of these get the last of them in front, so that a
/// Pod can neither forge an attribute of ours nor hide one of its own.
pub(crate) const RESERVED_PREFIXES: [&str; 3] = ["log.", "sidestep.", "parsed."];
pub(super) const PARSED: &str = "parsed.";

/// How many streams' constant parts are kept; about 600 bytes each.
const STREAMS: usize = 2048;

/// Names of the flags, in the order of a record's list.
const FLAGS: [(LineFlags, &str); 6] = [
    (LineFlags::CUT, "cut"),
    (LineFlags::CONTINUATION, "continuation"),
    (LineFlags::UNTERMINATED, "unterminated"),
    (LineFlags::AFTER_GAP, "after_gap"),
    (LineFlags::MULTILINE, "multiline"),
    (LineFlags::SYNTHETIC, "synthetic"),
];

/// Writes records as JSON. What is the same for all records of a stream is rendered once.
#[derive(Default)]
pub struct Encoder {
    time: Rfc3339,
    observed_time: Rfc3339,
    streams: Rendered,
    /// See [`Encoder::grouping_labels`].
    groups_labels: bool,
}

/// The constant part of each stream's records.
type Rendered = StreamCache<Box<[u8]>, STREAMS>;

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl Encoder {
    /// Writes labels as an object each of Pod and namespace, by their keys, for stores that take a dot in a name for the
    /// border of an object: the labels `app` and `app.kubernetes.io/name` would be in conflict there.
    #[must_use]
    pub fn grouping_labels() -> Self {
        Self { groups_labels: true, ..Self::default() }
    }

    /// Appends every record of a batch, each ended by a newline (NDJSON).
    pub fn append_batch(&mut self, batch: &Batch, out: &mut Vec<u8>) {
        let Self { time, observed_time, streams, groups_labels } = self;
        let rendered = render(streams, &batch.stream, *groups_labels);
        // Enough for a batch without escapes; what more it takes is allocated once and kept by the caller.
        out.reserve(batch.data.len() + batch.lines.len() * (rendered.len() + 200));
        for line in &batch.lines {
            append_record(time, observed_time, rendered, batch, line, out);
            out.push(b'\n');
        }
    }

    /// Appends one record without a newline.
    pub fn append_line(&mut self, batch: &Batch, line: &Line, out: &mut Vec<u8>) {
        let Self { time, observed_time, streams, groups_labels } = self;
        append_record(time, observed_time, render(streams, &batch.stream, *groups_labels), batch, line, out);
    }
}

/// The constant part of a stream's records, from the cache or rendered now.
fn render<'cache>(streams: &'cache mut Rendered, stream: &Arc<Stream>, groups_labels: bool) -> &'cache [u8] {
    streams.get_or_insert_with(stream, |stream| render_stream(stream, groups_labels).into_boxed_slice())
}

fn append_record(
    time: &mut Rfc3339,
    observed_time: &mut Rfc3339,
    rendered: &[u8],
    batch: &Batch,
    line: &Line,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"timestamp\":\"");
    time.append(line.time_unix_nano, out);
    out.extend_from_slice(b"\",\"observed_timestamp\":\"");
    observed_time.append(line.observed_time_unix_nano, out);
    out.push(b'"');
    if let Some(severity) = line.severity {
        out.extend_from_slice(b",\"severity_text\":\"");
        out.extend_from_slice(severity.as_str().as_bytes());
        out.extend_from_slice(b"\",\"severity_number\":");
        append_number(severity as u64, out);
    }
    out.extend_from_slice(b",\"body\":\"");
    let body = batch.body(line);
    let exact = if let Ok(text) = simdutf8::basic::from_utf8(body) {
        escape::append(text, out);
        true
    } else {
        for chunk in body.utf8_chunks() {
            escape::append(chunk.valid(), out);
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
        false
    };
    out.extend_from_slice(b"\",\"position\":");
    append_number(line.position, out);
    out.extend_from_slice(b",\"length\":");
    append_number(line.span, out);
    if line.flags != LineFlags::default() {
        append_flags(line.flags, out);
    }
    // The constant part ends within the attributes, which are never empty, so that more can follow it.
    out.extend_from_slice(rendered);
    if !exact {
        append_base64(body, out);
    }
    if let Some(attributes) = &line.attributes {
        append_attributes(attributes, line.flags.contains(LineFlags::SYNTHETIC), out);
    }
    out.extend_from_slice(b"}}");
}

fn append_number(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn append_flags(flags: LineFlags, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"flags\":[");
    let mut separator: &[u8] = b"\"";
    for name in flag_names(flags) {
        out.extend_from_slice(separator);
        out.extend_from_slice(name.as_bytes());
        out.push(b'"');
        separator = b",\"";
    }
    out.push(b']');
}

/// The names of the flags that are set.
pub(super) fn flag_names(flags: LineFlags) -> impl Iterator<Item = &'static str> {
    FLAGS.into_iter().filter(move |(flag, _)| flags.contains(*flag)).map(|(_, name)| name)
}

/// Whether an attribute of a structured body may not have this name.
pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn append_base64(body: &[u8], out: &mut Vec<u8>) {
    append_name(BODY_BASE64, "", out);
    out.push(b'"');
    let start = out.len();
    out.resize(start + data_encoding::BASE64.encode_len(body.len()), 0);
    data_encoding::BASE64.encode_mut(body, &mut out[start..]);
    out.push(b'"');
}

fn append_attributes(attributes: &Attributes, are_ours: bool, out: &mut Vec<u8>) {
    for (name, value) in attributes {
        append_name(name, if !are_ours && is_reserved(name) { PARSED } else { "" }, out);
        match value {
            serde_json::Value::String(text) => {
                out.push(b'"');
                escape::append(text, out);
                out.push(b'"');
            }
            // `Display` of a value is its JSON, and writing to a vector cannot fail.
            other => out.extend_from_slice(other.to_string().as_bytes()),
        }
    }
}

/// Appends `,"prefix name":`.
fn append_name(name: &str, prefix: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(prefix.as_bytes());
    escape::append(name, out);
    out.extend_from_slice(b"\":");
}

fn render_stream(stream: &Stream, groups_labels: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(640);
    append_field("class", stream.class.as_str(), &mut out);
    append_field("stream", &stream.key, &mut out);
    out.extend_from_slice(b",\"resource\":");
    let resource_start = out.len();
    append_resource(&stream.resource, groups_labels, &mut out);
    open_object(resource_start, &mut out);
    out.extend_from_slice(b"},\"attributes\":");
    let attributes_start = out.len();
    match &stream.origin {
        Origin::Stdio(iostream) => append_field("log.iostream", iostream.as_str(), &mut out),
        Origin::File { path } => {
            append_field("log.file.path", path, &mut out);
            append_field("log.file.name", path.rsplit('/').next().unwrap_or(path), &mut out);
        }
        Origin::Refusals => append_field(EVENT_ATTRIBUTE, REFUSAL_EVENT, &mut out),
    }
    open_object(attributes_start, &mut out);
    out
}

/// Makes the comma at `start`, with which the first field begins, the opening brace of an object.
fn open_object(start: usize, out: &mut Vec<u8>) {
    match out.get_mut(start) {
        Some(comma) => *comma = b'{',
        None => out.push(b'{'),
    }
}

fn append_resource(resource: &Resource, groups_labels: bool, out: &mut Vec<u8>) {
    let group_of = |name: &str| GROUPS.into_iter().find(|group| groups_labels && name.starts_with(group));
    let alone = resource_fields(resource).filter(|(name, _)| group_of(name).is_none());
    alone.for_each(|(name, value)| append_field(name, value, out));
    for group in GROUPS {
        let mut members = resource_fields(resource).filter(|(name, _)| group_of(name) == Some(group)).peekable();
        if members.peek().is_none() {
            continue;
        }
        append_name(group.trim_end_matches('.'), "", out);
        let start = out.len();
        members.for_each(|(name, value)| append_field(name.strip_prefix(group).unwrap_or(name), value, out));
        open_object(start, out);
        out.push(b'}');
    }
}

/// What [`Encoder::grouping_labels`] makes an object of.
const GROUPS: [&str; 3] = [LABEL_ATTRIBUTE, ANNOTATION_ATTRIBUTE, NAMESPACE_LABEL_ATTRIBUTE];

/// What is known of a resource, by the names of records.
pub(super) fn resource_fields(resource: &Resource) -> impl Iterator<Item = (&str, &str)> {
    let in_kubernetes = resource.pod.is_some();
    let fields = [
        ("host.name", &resource.host_name),
        ("k8s.namespace.name", &resource.namespace),
        ("k8s.pod.name", &resource.pod),
        ("k8s.pod.uid", &resource.pod_uid),
        ("k8s.container.name", if in_kubernetes { &resource.container_name } else { &None }),
        ("container.id", &resource.container_id),
        ("container.name", &resource.container_name),
        ("container.runtime.name", &resource.container_runtime),
        ("container.image.name", &resource.image),
        // The path names the container only where nothing better does.
        ("process.linux.cgroup", if resource.container_id.is_none() { &resource.cgroup } else { &None }),
    ];
    let told = resource.metadata.iter().flat_map(|metadata| &metadata.attributes);
    let told = told.map(|(name, value)| (&**name, &**value));
    let tenant = resource.route.as_ref().and_then(|route| Some((TENANT_ATTRIBUTE, route.tenant.as_deref()?)));
    fields.into_iter().filter_map(|(name, value)| value.as_deref().map(|value| (name, value))).chain(told).chain(tenant)
}

/// Appends `,"name":"value"`.
fn append_field(name: &str, value: &str, out: &mut Vec<u8>) {
    append_name(name, "", out);
    out.push(b'"');
    escape::append(value, out);
    out.push(b'"');
}
