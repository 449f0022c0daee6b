//! What is in a request.

use std::io::Read as _;

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest, common::v1::any_value::Value, logs::v1::LogRecord,
};
use prost::Message as _;

/// The bodies of all records.
pub(super) fn bodies(content_type: Option<&str>, content_encoding: Option<&str>, body: &[u8]) -> Vec<String> {
    let mut plain = Vec::new();
    match content_encoding {
        None => plain = body.to_vec(),
        Some("gzip") => {
            flate2::read::GzDecoder::new(body).read_to_end(&mut plain).expect("gzip");
        }
        Some("zstd") => plain = zstd::stream::decode_all(body).expect("zstd"),
        other => panic!("{other:?}"),
    }
    match content_type {
        Some("application/x-ndjson") => {
            let lines = plain.split_inclusive(|&byte| byte == b'\n');
            lines
                .map(|line| serde_json::from_slice::<serde_json::Value>(line).expect("JSON"))
                .map(|record| json_body(&record))
                .collect()
        }
        Some("application/x-protobuf") => {
            let request = ExportLogsServiceRequest::decode(&plain[..]).expect("a request");
            let scopes = request.resource_logs.into_iter().flat_map(|logs| logs.scope_logs);
            scopes.flat_map(|scope| scope.log_records).map(otlp_body).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn json_body(record: &serde_json::Value) -> String {
    record["body"].as_str().expect("text").to_owned()
}

fn otlp_body(record: LogRecord) -> String {
    match record.body.and_then(|body| body.value) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{other:?}"),
    }
}
