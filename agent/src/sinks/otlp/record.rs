//! One record as a `LogRecord` of `opentelemetry/proto/logs/v1/logs.proto`.

use std::{fmt, sync::Arc};

use prost::Message as _;

use super::{
    message::{AnyValue, KeyValue},
    wire,
};
use crate::{
    record::{Batch, EVENT_ATTRIBUTE, Line, LineFlags, Origin, REFUSAL_EVENT, Stream},
    sinks::{
        json::{PARSED, flag_names, is_reserved, resource_fields},
        stream_cache::StreamCache,
    },
};

/// How many streams' constant parts are kept; about 900 bytes each.
const STREAMS: usize = 2048;

/// Field numbers of the messages.
mod field {
    /// Of `ExportLogsServiceRequest`, and of `LogsData`.
    pub(super) const RESOURCE_LOGS: u32 = 1;
    /// Of `ResourceLogs`.
    pub(super) const SCOPE_LOGS: u32 = 2;
    /// Of `ScopeLogs`.
    pub(super) const LOG_RECORDS: u32 = 2;

    pub(super) const RESOURCE: u32 = 1;
    pub(super) const RESOURCE_ATTRIBUTES: u32 = 1;
    pub(super) const SCOPE: u32 = 1;
    pub(super) const SCOPE_NAME: u32 = 1;
    pub(super) const SCOPE_VERSION: u32 = 2;

    pub(super) const TIME_UNIX_NANO: u32 = 1;
    pub(super) const SEVERITY_NUMBER: u32 = 2;
    pub(super) const SEVERITY_TEXT: u32 = 3;
    pub(super) const BODY: u32 = 5;
    pub(super) const ATTRIBUTES: u32 = 6;
    pub(super) const OBSERVED_TIME_UNIX_NANO: u32 = 11;

    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const STRING_VALUE: u32 = 1;
    pub(super) const INT_VALUE: u32 = 3;
    pub(super) const BYTES_VALUE: u32 = 7;
}

/// Writes records as `LogRecord`s. What is the same for all records of a stream is rendered once.
#[derive(Default)]
pub struct Encoder {
    streams: StreamCache<Arc<Constant>, STREAMS>,
    /// The record that is being written: its length stands in front of it.
    record: Vec<u8>,
    /// `stream@position`.
    uid: Vec<u8>,
}

/// What all records of a stream have in common.
#[derive(Debug)]
pub(super) struct Constant {
    /// The field `resource` of their `ResourceLogs`.
    pub(super) resource: Box<[u8]>,
    /// The field `scope` of their `ScopeLogs`.
    pub(super) scope: Box<[u8]>,
    /// The attributes of each `LogRecord` that do not change.
    attributes: Box<[u8]>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl Encoder {
    /// Appends a whole `ExportLogsServiceRequest` with lines of a batch, as one message of a queue: what the receivers of
    /// OpenTelemetry's collector call `otlp_proto`.
    pub fn append_lines(&mut self, batch: &Batch, lines: &[Line], out: &mut Vec<u8>) {
        let bytes: usize = lines.iter().map(|line| line.body.len() + 512).sum();
        let mut records = Vec::with_capacity(bytes);
        let constant = lines.iter().map(|line| self.append_record(batch, line, &mut records)).last();
        if let Some(constant) = constant {
            constant.append_resource_logs(&records, out);
        }
    }

    /// Appends one record as a field of its `ScopeLogs`, and tells what goes around it.
    pub(super) fn append_record(&mut self, batch: &Batch, line: &Line, out: &mut Vec<u8>) -> Arc<Constant> {
        let Self { streams, record, uid } = self;
        let constant = streams.get_or_insert_with(&batch.stream, |stream| Arc::new(render(stream)));
        record.clear();
        wire::fixed64(field::TIME_UNIX_NANO, line.time_unix_nano, record);
        wire::fixed64(field::OBSERVED_TIME_UNIX_NANO, line.observed_time_unix_nano, record);
        if let Some(severity) = line.severity {
            wire::integer(field::SEVERITY_NUMBER, severity as u64, record);
            wire::bytes(field::SEVERITY_TEXT, severity.as_str().as_bytes(), record);
        }
        append_body(batch.body(line), record);
        record.extend_from_slice(&constant.attributes);
        uid.clear();
        uid.extend_from_slice(batch.stream.key.as_bytes());
        uid.push(b'@');
        uid.extend_from_slice(itoa::Buffer::new().format(line.position).as_bytes());
        append_text("log.record.uid", uid, field::ATTRIBUTES, record);
        append_integer("sidestep.position", line.position, record);
        append_integer("sidestep.length", line.span, record);
        append_rest(line, record);
        wire::bytes(field::LOG_RECORDS, record, out);
        Arc::clone(constant)
    }
}

impl Constant {
    /// Appends the stream's `ResourceLogs` around `records`, as a field of the request.
    pub(super) fn append_resource_logs(&self, records: &[u8], out: &mut Vec<u8>) {
        let scope_logs = self.scope.len() + records.len();
        let resource_logs = self.resource.len() + wire::bytes_len(scope_logs);
        wire::head(field::RESOURCE_LOGS, resource_logs, out);
        out.extend_from_slice(&self.resource);
        wire::head(field::SCOPE_LOGS, scope_logs, out);
        out.extend_from_slice(&self.scope);
        out.extend_from_slice(records);
    }

    /// How many bytes [`Constant::append_resource_logs`] appends for records of `length` bytes.
    pub(super) const fn resource_logs_len(&self, length: usize) -> usize {
        wire::bytes_len(self.resource.len() + wire::bytes_len(self.scope.len() + length))
    }
}

/// As text, or as bytes where it is none.
fn append_body(body: &[u8], out: &mut Vec<u8>) {
    let is_text = simdutf8::basic::from_utf8(body).is_ok();
    wire::head(field::BODY, wire::bytes_len(body.len()), out);
    wire::bytes(if is_text { field::STRING_VALUE } else { field::BYTES_VALUE }, body, out);
}

/// What only few records have.
fn append_rest(line: &Line, out: &mut Vec<u8>) {
    if line.flags != LineFlags::default() {
        append_value("sidestep.flags".to_owned(), AnyValue::texts(flag_names(line.flags)), out);
    }
    let are_ours = line.flags.contains(LineFlags::SYNTHETIC);
    for (name, value) in line.attributes.iter().flat_map(|attributes| attributes.iter()) {
        let name = if !are_ours && is_reserved(name) { format!("{PARSED}{name}") } else { name.clone() };
        append_value(name, AnyValue::from_json(value), out);
    }
}

fn append_value(key: String, value: AnyValue, out: &mut Vec<u8>) {
    let attribute = KeyValue { key, value: Some(value) };
    wire::bytes(field::ATTRIBUTES, &attribute.encode_to_vec(), out);
}

/// Appends a `KeyValue` of text, as a field of the message that it belongs to.
fn append_text(key: &str, value: &[u8], field: u32, out: &mut Vec<u8>) {
    let value_length = wire::bytes_len(value.len());
    wire::head(field, wire::bytes_len(key.len()) + wire::bytes_len(value_length), out);
    wire::bytes(field::KEY, key.as_bytes(), out);
    wire::head(field::VALUE, value_length, out);
    wire::bytes(field::STRING_VALUE, value, out);
}

/// Appends an attribute with an integer. There is no unsigned one; 2^63 bytes are more than a stream has.
fn append_integer(key: &str, value: u64, out: &mut Vec<u8>) {
    let value_length = 1 + wire::varint_len(value);
    wire::head(field::ATTRIBUTES, wire::bytes_len(key.len()) + wire::bytes_len(value_length), out);
    wire::bytes(field::KEY, key.as_bytes(), out);
    wire::head(field::VALUE, value_length, out);
    wire::integer(field::INT_VALUE, value, out);
}

fn render(stream: &Stream) -> Constant {
    let mut inside = Vec::with_capacity(512);
    for (name, value) in resource_fields(&stream.resource) {
        append_text(name, value.as_bytes(), field::RESOURCE_ATTRIBUTES, &mut inside);
    }
    let mut resource = Vec::with_capacity(inside.len() + 4);
    wire::bytes(field::RESOURCE, &inside, &mut resource);

    inside.clear();
    wire::bytes(field::SCOPE_NAME, b"sidestep", &mut inside);
    wire::bytes(field::SCOPE_VERSION, env!("CARGO_PKG_VERSION").as_bytes(), &mut inside);
    let mut scope = Vec::with_capacity(inside.len() + 4);
    wire::bytes(field::SCOPE, &inside, &mut scope);

    let mut attributes = Vec::with_capacity(256);
    let mut append = |name, value: &str| append_text(name, value.as_bytes(), field::ATTRIBUTES, &mut attributes);
    match &stream.origin {
        Origin::Stdio(iostream) => append("log.iostream", iostream.as_str()),
        Origin::File { path } => {
            append("log.file.path", path);
            append("log.file.name", path.rsplit('/').next().unwrap_or(path));
        }
        Origin::Refusals => append(EVENT_ATTRIBUTE, REFUSAL_EVENT),
    }
    append("sidestep.class", stream.class.as_str());
    append("sidestep.stream", &stream.key);
    Constant { resource: resource.into(), scope: scope.into(), attributes: attributes.into() }
}
