use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::record::{Class, IoStream, Metadata, Severity};

fn stream(origin: Origin, resource: Resource) -> Arc<Stream> {
    let class = if matches!(origin, Origin::Stdio(_)) { Class::Pod } else { Class::Business };
    Arc::new(Stream {
        key: "node/c0ffee/stdout".into(),
        class,
        origin,
        resource: Arc::new(resource),
        account: Arc::default(),
        source: None,
    })
}

fn batch(stream: &Arc<Stream>, bodies: &[&[u8]]) -> Batch {
    let mut data = Vec::new();
    let mut lines = Vec::new();
    for body in bodies {
        let start = data.len();
        data.extend_from_slice(body);
        lines.push(Line {
            time_unix_nano: 1_795_237_200_000_000_001,
            observed_time_unix_nano: 1_795_237_201_999_999_999,
            body: start..data.len(),
            position: start as u64,
            span: body.len() as u64 + 1,
            ..Line::default()
        });
        data.push(b'\n');
    }
    Batch { stream: Arc::clone(stream), data: data.into(), lines }
}

fn records(encoder: &mut Encoder, batch: &Batch) -> Vec<Value> {
    let mut out = Vec::new();
    encoder.append_batch(batch, &mut out);
    assert!(out.is_empty() || out.ends_with(b"\n"));
    out.split_inclusive(|&byte| byte == b'\n')
        .map(|line| serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
        .collect()
}

#[test]
fn a_full_record_has_every_field_under_its_standard_name() {
    let text = |value: &str| Some(Arc::<str>::from(value));
    let resource = Resource {
        host_name: text("node-1"),
        container_runtime: text("containerd"),
        container_id: text("c0ffee"),
        container_name: text("app"),
        image: text("registry/app:1"),
        namespace: text("shop"),
        pod: text("cart-0"),
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
        route: Some(Arc::new(crate::record::Route { tenant: Some("shop".into()), ..Default::default() })),
    };
    let mut batch = batch(&stream(Origin::Stdio(IoStream::Stderr), resource), &[b"a \"quoted\"\r\x1b[31m\0"]);
    let line = &mut batch.lines[0];
    line.severity = Some(Severity::Error);
    line.flags = LineFlags::CUT.with(LineFlags::MULTILINE);
    line.attributes = Some(Box::new(
        json!({"user": "ann", "n": 1.5, "deep": {"a": [null, true]}}).as_object().expect("an object").clone(),
    ));
    let record = records(&mut Encoder::default(), &batch).remove(0);
    assert_eq!(
        record,
        json!({
            "timestamp": "2026-11-21T05:00:00.000000001Z",
            "observed_timestamp": "2026-11-21T05:00:01.999999999Z",
            "severity_text": "ERROR",
            "severity_number": 17,
            "body": "a \"quoted\"\r\u{1b}[31m\0",
            "position": 0,
            "length": 18,
            "flags": ["cut", "multiline"],
            "class": "pod",
            "stream": "node/c0ffee/stdout",
            "resource": {
                "host.name": "node-1",
                "k8s.namespace.name": "shop",
                "k8s.pod.name": "cart-0",
                "k8s.pod.uid": "1-2-3",
                "k8s.container.name": "app",
                "container.id": "c0ffee",
                "container.name": "app",
                "container.runtime.name": "containerd",
                "container.image.name": "registry/app:1",
                "k8s.statefulset.name": "cart",
                "k8s.pod.label.app": "cart",
                "k8s.pod.label.app.kubernetes.io/name": "shop \"1\"",
                "sidestep.tenant": "shop",
            },
            "attributes": {"log.iostream": "stderr", "user": "ann", "n": 1.5, "deep": {"a": [null, true]}},
        })
    );
    let grouped = records(&mut Encoder::grouping_labels(), &batch).remove(0);
    let mut resource = record["resource"].as_object().expect("an object").clone();
    resource.retain(|name, _| !name.starts_with("k8s.pod.label"));
    resource.insert("k8s.pod.label".to_owned(), json!({"app": "cart", "app.kubernetes.io/name": "shop \"1\""}));
    assert_eq!(grouped["resource"], Value::Object(resource));
}

#[test]
fn what_is_unknown_is_left_out_and_a_file_has_its_path() {
    let path = "/var/log/a\"b/x.log";
    let batch = batch(&stream(Origin::File { path: path.into() }, Resource::default()), &[b""]);
    let record = records(&mut Encoder::default(), &batch).remove(0);
    assert_eq!(record["resource"], json!({}));
    assert_eq!(record["class"], "business");
    assert_eq!(record["body"], "");
    assert_eq!(record["attributes"], json!({"log.file.path": path, "log.file.name": "x.log"}));
    assert!(record.get("flags").is_none() && record.get("severity_text").is_none());
}

#[test]
fn a_label_can_break_no_record() {
    let odd = "a\u{0}\u{1b}[31m\n\"}\u{2028}\u{202e}";
    let attributes = vec![(format!("k8s.pod.label.{odd}").into(), odd.into())];
    let metadata = Some(Arc::new(Metadata { attributes, ..Metadata::default() }));
    let stream = stream(Origin::Stdio(IoStream::Stdout), Resource { metadata, ..Resource::default() });
    let records = records(&mut Encoder::default(), &batch(&stream, &[b"one", b"two"]));
    assert_eq!(records.len(), 2, "a line each");
    assert!(records.iter().all(|record| record["resource"][format!("k8s.pod.label.{odd}")] == odd));
}

#[test]
fn a_body_cannot_forge_attributes_of_ours() {
    let mut batch = batch(&stream(Origin::Stdio(IoStream::Stdout), Resource::default()), &[b"\xff"]);
    let parsed = json!({
        "log.iostream": "forged", "parsed.log.iostream": "too", BODY_BASE64: "Zm9yZ2Vk", "logger": "kept"
    });
    batch.lines[0].attributes = Some(Box::new(parsed.as_object().expect("an object").clone()));
    let record = records(&mut Encoder::default(), &batch).remove(0);
    assert_eq!(
        record["attributes"],
        json!({
            "log.iostream": "stdout",
            BODY_BASE64: "/w==",
            "parsed.log.iostream": "forged",
            "parsed.parsed.log.iostream": "too",
            "parsed.sidestep.body.base64": "Zm9yZ2Vk",
            "logger": "kept",
        })
    );
}

#[test]
fn the_cache_is_bounded_and_never_mixes_up_streams() {
    let mut encoder = Encoder::default();
    let mut kept = Vec::new();
    for index in 0..STREAMS * 3 {
        let resource = Resource { pod: Some(format!("pod-{index}").into()), ..Resource::default() };
        let stream = stream(Origin::Stdio(IoStream::Stdout), resource);
        let record = records(&mut encoder, &batch(&stream, &[b"x"])).remove(0);
        assert_eq!(record["resource"]["k8s.pod.name"], format!("pod-{index}"));
        assert!(encoder.streams.len() <= STREAMS);
        if index % 2 == 0 {
            kept.push(stream);
        }
    }
    assert_eq!(kept.len(), STREAMS * 3 / 2);
}

proptest! {
    #[test]
    fn every_byte_of_every_line_comes_back(
        bodies in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "\\PC{0,80}".prop_map(String::into_bytes),
                prop::collection::vec(prop::sample::select(&b"a\0\x1b\"\\\r\n\x7f\xff\xc3\xa9\xf0\x9f"[..]), 0..80),
            ],
            0..20,
        ),
    ) {
        let stream = stream(Origin::Stdio(IoStream::Stdout), Resource::default());
        let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        let records = records(&mut Encoder::default(), &batch(&stream, &slices));
        let decoded: Vec<Vec<u8>> = records.iter().map(|record| exact_body(record).expect("a record")).collect();
        for (record, body) in records.iter().zip(&bodies) {
            prop_assert_eq!(record["body"].as_str().expect("text"), String::from_utf8_lossy(body));
        }
        prop_assert_eq!(decoded, bodies);
    }
}
