use std::sync::Arc;

use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse},
    common::v1::{AnyValue, KeyValue, any_value::Value as Kind},
    logs::v1::{LogRecord, LogsData, ResourceLogs},
};
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Map, Value, json};

use super::*;
use crate::{
    record::{Batch, Class, IoStream, LineFlags, Metadata, Origin, Resource, Severity, Stream},
    sinks::{json, testing},
};

fn full_stream(origin: Origin, pod: &str) -> Arc<Stream> {
    let text = |value: &str| Some(Arc::<str>::from(value));
    let resource = Resource {
        host_name: text("node-1"),
        container_runtime: text("containerd"),
        container_id: text("c0ffee"),
        container_name: text("app"),
        image: text("registry/app:1"),
        namespace: text("shop"),
        pod: text(pod),
        pod_uid: text("1-2-3"),
        cgroup: text("/kubepods/x"),
        metadata: Some(Arc::new(Metadata {
            workload: Some("cart".into()),
            attributes: vec![
                ("k8s.statefulset.name".into(), "cart".into()),
                ("k8s.pod.label.app".into(), "cart".into()),
                ("k8s.pod.label.app.kubernetes.io/name".into(), "shop \"1\"".into()),
            ],
            pod: None,
        })),
    };
    Arc::new(Stream {
        key: format!("{pod}/stdout").into(),
        class: Class::Pod,
        origin,
        resource: Arc::new(resource),
        account: Arc::default(),
        source: None,
    })
}

fn stdout(pod: &str) -> Arc<Stream> {
    full_stream(Origin::Stdio(IoStream::Stdout), pod)
}

fn request(encoder: &mut Encoder, batches: &[Batch]) -> Vec<ResourceLogs> {
    let mut request = Request::default();
    for batch in batches {
        for line in &batch.lines {
            assert_eq!(request.add(encoder, batch, line, usize::MAX), Fit::In);
        }
    }
    let length = request.len();
    let bytes = request.finish();
    assert_eq!(bytes.len(), length, "the length is known before");
    assert!(request.is_empty());
    ExportLogsServiceRequest::decode(&bytes[..]).expect("a request").resource_logs
}

fn only_records(mut logs: Vec<ResourceLogs>) -> Vec<LogRecord> {
    assert_eq!(logs.len(), 1);
    let mut scopes = logs.remove(0).scope_logs;
    assert_eq!(scopes.len(), 1);
    let scope = scopes[0].scope.take().expect("a scope");
    assert_eq!((&*scope.name, &*scope.version), ("sidestep", env!("CARGO_PKG_VERSION")));
    scopes.remove(0).log_records
}

/// A value of OpenTelemetry as one of JSON.
fn to_json(value: &AnyValue) -> Value {
    match value.value.as_ref() {
        None => Value::Null,
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::BoolValue(value)) => json!(value),
        Some(Kind::IntValue(value)) => json!(value),
        Some(Kind::DoubleValue(value)) => json!(value),
        Some(Kind::ArrayValue(array)) => array.values.iter().map(to_json).collect(),
        Some(Kind::KvlistValue(list)) => Value::Object(map(&list.values)),
        other => panic!("not a value of JSON: {other:?}"),
    }
}

fn map(attributes: &[KeyValue]) -> Map<String, Value> {
    let entry = |attribute: &KeyValue| (attribute.key.clone(), to_json(attribute.value.as_ref().expect("a value")));
    let map: Map<_, _> = attributes.iter().map(entry).collect();
    assert_eq!(map.len(), attributes.len(), "a name stands there twice");
    map
}

/// The JSON record that says the same, made of nothing but the OTLP record.
fn as_json(resource: &[KeyValue], record: &LogRecord) -> Value {
    let mut attributes = map(&record.attributes);
    let mut take = |name: &str| attributes.remove(name);
    let time = |nanos: u64| {
        let mut out = Vec::new();
        crate::sinks::timestamp::Rfc3339::default().append(nanos, &mut out);
        String::from_utf8(out).expect("text")
    };
    let mut json = json!({
        "timestamp": time(record.time_unix_nano),
        "observed_timestamp": time(record.observed_time_unix_nano),
        "position": take("sidestep.position"),
        "length": take("sidestep.length"),
        "class": take("sidestep.class"),
        "stream": take("sidestep.stream"),
        "resource": map(resource),
    });
    let uid = take("log.record.uid").expect("an identity");
    assert_eq!(uid, format!("{}@{}", json["stream"].as_str().expect("text"), json["position"]));
    if let Some(flags) = take("sidestep.flags") {
        json["flags"] = flags;
    }
    if record.severity_number != 0 {
        json["severity_number"] = json!(record.severity_number);
        json["severity_text"] = json!(record.severity_text);
    }
    match record.body.as_ref().and_then(|body| body.value.as_ref()).expect("a body") {
        Kind::StringValue(text) => json["body"] = json!(text),
        Kind::BytesValue(bytes) => {
            assert!(std::str::from_utf8(bytes).is_err(), "text is text");
            json["body"] = json!(String::from_utf8_lossy(bytes));
            attributes.insert(json::BODY_BASE64.to_owned(), json!(data_encoding::BASE64.encode(bytes)));
        }
        other => panic!("{other:?}"),
    }
    json["attributes"] = Value::Object(attributes);
    json
}

fn check_agreement(batch: &Batch) -> Vec<LogRecord> {
    let logs = request(
        &mut Encoder::default(),
        &[Batch { stream: Arc::clone(&batch.stream), data: batch.data.clone(), lines: batch.lines.clone() }],
    );
    let resource = logs[0].resource.clone().expect("a resource").attributes;
    let records = only_records(logs);
    assert_eq!(records.len(), batch.lines.len());
    for (record, line) in records.iter().zip(&batch.lines) {
        let mut line_json = Vec::new();
        json::Encoder::default().append_line(batch, line, &mut line_json);
        let expected: Value = serde_json::from_slice(&line_json).expect("JSON");
        assert_eq!(as_json(&resource, record), expected);
    }
    records
}

#[test]
fn a_full_record_says_what_the_json_record_says() {
    let mut batch = testing::batch(&stdout("cart-0"), 7, &[b"payment failed", b"\xff\0", b""]);
    let line = &mut batch.lines[0];
    line.severity = Some(Severity::Error);
    line.flags = LineFlags::CUT.with(LineFlags::MULTILINE);
    let parsed = json!({
        "user": "ann", "n": 1.5, "i": -3, "deep": {"a": [null, true]}, "log.iostream": "forged",
        "sidestep.position": 1, "log.record.uid": "forged"
    });
    line.attributes = Some(Box::new(parsed.as_object().expect("an object").clone()));
    line.observed_time_unix_nano += 5;
    let records = check_agreement(&batch);
    assert_eq!(records[0].severity_number, 17);
    assert_eq!(records[1].body.clone().and_then(|body| body.value), Some(Kind::BytesValue(b"\xff\0".to_vec())));

    let file = full_stream(Origin::File { path: "/var/log/a/x.log".into() }, "cart-0");
    check_agreement(&testing::batch(&file, 0, &[b"x"]));
    check_agreement(&testing::batch(&testing::pod_stream("shop", "cart", "app"), 0, &[b"x"]));
}

#[test]
fn a_request_has_one_part_for_each_stream_in_the_order_of_lines() {
    let (first, second) = (stdout("a"), stdout("b"));
    let batches = [
        testing::batch(&first, 0, &[b"1", b"2"]),
        testing::batch(&second, 0, &[b"3"]),
        testing::batch(&first, 4, &[b"4"]),
    ];
    let mut encoder = Encoder::default();
    for _ in 0..2 {
        let logs = request(&mut encoder, &batches);
        let bodies: Vec<Vec<_>> = logs
            .iter()
            .map(|logs| logs.scope_logs[0].log_records.iter().map(|record| record.body.clone()).collect())
            .collect();
        let text = |text: &str| Some(AnyValue { value: Some(Kind::StringValue(text.to_owned())) });
        assert_eq!(bodies, [vec![text("1"), text("2"), text("4")], vec![text("3")]]);
    }
}

#[test]
fn a_request_is_never_larger_than_it_may_be() {
    let batch = testing::batch(&stdout("a"), 0, &[b"0123456789", &[b'x'; 2000], b"0123456789", b"0123456789"]);
    let mut encoder = Encoder::default();
    let mut request = Request::default();
    let mut add =
        |request: &mut Request, index: usize, limit| request.add(&mut encoder, &batch, &batch.lines[index], limit);
    assert_eq!(add(&mut request, 0, usize::MAX), Fit::In);
    let one = request.len();
    assert_eq!(add(&mut request, 1, 2000), Fit::TooLarge);
    // Its position takes more digits.
    assert_eq!(add(&mut request, 2, one + 20), Fit::Full);
    assert_eq!(request.len(), one);
    assert_eq!(add(&mut request, 2, 2000), Fit::In);
    let two = request.len();
    request.finish();
    assert_eq!(add(&mut request, 0, one), Fit::In);
    assert_eq!(add(&mut request, 2, two - 1), Fit::Full);
    assert_eq!(add(&mut request, 2, two), Fit::In);
    assert_eq!(request.finish().len(), two);
}

#[test]
fn a_message_is_a_request_of_its_own() {
    let batch = testing::batch(&stdout("a"), 3, &[b"one", b"two", b"three"]);
    let mut out = Vec::new();
    Encoder::default().append_lines(&batch, &batch.lines[1..], &mut out);
    let logs = LogsData::decode(&out[..]).expect("logs").resource_logs;
    assert_eq!(ExportLogsServiceRequest::decode(&out[..]).expect("a request").resource_logs, logs);
    let records = only_records(logs);
    let uids: Vec<_> = records.iter().map(|record| map(&record.attributes)["log.record.uid"].clone()).collect();
    assert_eq!(uids, ["a/stdout@7", "a/stdout@11"]);
}

#[test]
fn what_has_no_type_in_otlp_becomes_text() {
    let deep = (0..60).fold(json!(1), |inner, _| json!({ "a": [inner] }));
    let parsed = json!({"large": u64::MAX, "deep": deep});
    let mut batch = testing::batch(&stdout("a"), 0, &[b"x"]);
    batch.lines[0].attributes = Some(Box::new(parsed.as_object().expect("an object").clone()));
    let records = only_records(request(&mut Encoder::default(), &[batch]));
    let attributes = map(&records[0].attributes);
    assert_eq!(attributes["large"], u64::MAX.to_string());
    // Sixteen levels down it goes on as text.
    let mut value = &attributes["deep"];
    let mut expected = &deep;
    for _ in 0..8 {
        (value, expected) = (&value["a"][0], &expected["a"][0]);
    }
    assert_eq!(serde_json::from_str::<Value>(value.as_str().expect("text")).expect("JSON"), *expected);
}

#[test]
fn answers_are_understood() {
    let answer = |rejected, message: &str| {
        ExportLogsServiceResponse {
            partial_success: Some(ExportLogsPartialSuccess {
                rejected_log_records: rejected,
                error_message: message.to_owned(),
            }),
        }
        .encode_to_vec()
    };
    let expected = |rejected, message: &str| Some(answer::PartialSuccess { rejected, message: message.to_owned() });
    assert_eq!(answer::partial_success(false, b""), None);
    assert_eq!(answer::partial_success(false, &answer(0, "")), None);
    assert_eq!(answer::partial_success(false, &answer(3, "too old")), expected(3, "too old"));
    assert_eq!(answer::partial_success(false, &answer(-3, "odd")), expected(0, "odd"));
    assert_eq!(answer::partial_success(false, b"<html>OK</html>"), None);
    let json = br#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"too old"}}"#;
    assert_eq!(answer::partial_success(true, json), expected(3, "too old"));
    assert_eq!(answer::partial_success(true, b"{}"), None);
    assert_eq!(answer::partial_success(true, b"OK"), None);
}

fn parsed_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Read back exactly, which `serde_json` does not do with each last digit.
        any::<i32>().prop_map(|value| Value::from(f64::from(value) + 0.5)),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 20, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,10}", inner, 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn every_record_says_what_its_json_says(
        bodies in prop::collection::vec(
            prop_oneof![prop::collection::vec(any::<u8>(), 0..300), "\\PC{0,80}".prop_map(String::into_bytes)],
            1..10,
        ),
        position in 0..u64::MAX / 4,
        flags in 0..32_u8,
        severity in prop::sample::select(&[None, Some(Severity::Trace), Some(Severity::Fatal)][..]),
        attributes in prop::option::of(
            prop::collection::btree_map("(log\\.|sidestep\\.|parsed\\.)?[a-z]{0,8}", parsed_value(), 0..6)
        ),
    ) {
        let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        let mut batch = testing::batch(&stdout("cart-0"), position, &slices);
        for line in &mut batch.lines {
            line.flags = LineFlags(flags);
            line.severity = severity;
            line.attributes = attributes.clone().map(|entries| Box::new(entries.into_iter().collect()));
        }
        check_agreement(&batch);
    }

    #[test]
    fn no_answer_is_too_odd_to_look_at(body in prop::collection::vec(any::<u8>(), 0..200), is_json: bool) {
        let _ = answer::partial_success(is_json, &body);
        let _ = answer::status_message(&body);
    }
}
