use proptest::prelude::*;

use super::*;
use crate::{
    ledger::Account,
    record::{Attributes, Chosen, Metadata, Route, Stream},
};

fn text() -> impl Strategy<Value = Option<Arc<str>>> {
    proptest::option::of("\\PC{0,20}".prop_map(|text: String| Arc::from(text.as_str())))
}

fn metadata() -> impl Strategy<Value = Option<Arc<Metadata>>> {
    let some = |text: String| Arc::<str>::from(text);
    let attribute = ("\\PC{0,20}".prop_map(some), "\\PC{0,20}".prop_map(some));
    let attributes = proptest::collection::vec(attribute, 0..5);
    let told = (text(), attributes).prop_map(|(workload, attributes)| Metadata { workload, attributes, pod: None });
    proptest::option::of(told.prop_map(Arc::new))
}

fn route() -> impl Strategy<Value = Option<Arc<Route>>> {
    let names = proptest::collection::vec(("[a-z]{1,9}", any::<bool>()), 0..4);
    let chosen = names.prop_map(|names| {
        names.into_iter().fold(None, |otherwise, (name, by_administrator)| {
            Some(Chosen { name: name.as_str().into(), by_administrator, otherwise: otherwise.map(Box::new) })
        })
    });
    let sinks =
        proptest::option::of(proptest::collection::vec("[a-z]{1,9}".prop_map(|name| Arc::from(name.as_str())), 1..3));
    let route = (chosen.clone(), chosen, text(), sinks);
    let route = route.prop_map(|(topic, index, tenant, sinks)| Arc::new(Route { topic, index, tenant, sinks }));
    proptest::option::of(route)
}

fn resource() -> impl Strategy<Value = Resource> {
    let fields = ((text(), text(), text(), text(), text()), (text(), text(), text(), text()), metadata(), route());
    fields.prop_map(
        |(
            (host_name, container_runtime, container_id, container_name, image),
            (namespace, pod, pod_uid, cgroup),
            metadata,
            route,
        )| {
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
                route,
            }
        },
    )
}

fn stream() -> impl Strategy<Value = Stream> {
    let origin = prop_oneof![
        Just(Origin::Stdio(IoStream::Stdout)),
        Just(Origin::Stdio(IoStream::Stderr)),
        "\\PC{0,30}".prop_map(|path: String| Origin::File { path: path.into() }),
    ];
    let class = prop_oneof![Just(Class::Pod), Just(Class::Business), Just(Class::Server)];
    ("[a-z0-9:/]{1,30}", class, origin, resource(), any::<u64>()).prop_map(|(key, class, origin, resource, cgroup)| {
        let resource = Arc::new(resource);
        let account = Arc::new(Account::new(cgroup, Arc::clone(&resource)));
        Stream { key: key.as_str().into(), class, origin, resource, account, source: None }
    })
}

fn attributes() -> impl Strategy<Value = Option<Box<Attributes>>> {
    let value = prop_oneof![
        any::<i64>().prop_map(serde_json::Value::from),
        any::<bool>().prop_map(serde_json::Value::from),
        "\\PC{0,10}".prop_map(serde_json::Value::from),
        Just(serde_json::json!({"b": [1, null], "a": {}})),
    ];
    let entries = proptest::collection::vec(("\\PC{0,8}", value), 0..4);
    proptest::option::of(entries.prop_map(|entries| Box::new(entries.into_iter().collect())))
}

type Parts = (Vec<u8>, [u64; 4], u8, u64, Option<Box<Attributes>>);

fn line() -> impl Strategy<Value = Parts> {
    (proptest::collection::vec(any::<u8>(), 0..50), any::<[u64; 4]>(), 0..32_u8, 0..26_u64, attributes())
}

fn batch(stream: Stream, lines: Vec<Parts>) -> Batch {
    let mut data = Vec::new();
    let mut made = Vec::new();
    for (body, [time_unix_nano, observed_time_unix_nano, position, span], flags, number, attributes) in lines {
        let start = data.len();
        data.extend_from_slice(&body);
        let (body, flags, severity) = (start..data.len(), LineFlags(flags), severity(number));
        made.push(Line { time_unix_nano, observed_time_unix_nano, body, position, span, flags, severity, attributes });
        data.push(b'\n');
    }
    Batch { stream: Arc::new(stream), data: data.into(), lines: made }
}

fn encoded(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(batch, &mut bytes);
    bytes
}

/// Everything but the newlines between the bodies.
fn assert_same(batch: &Batch, read: &Encoded) {
    assert_eq!(batch.lines.len(), read.lines.len());
    for (before, after) in batch.lines.iter().zip(&read.lines) {
        assert_eq!(batch.body(before), &read.data[after.body.clone()]);
        assert_eq!(Line { body: 0..0, ..before.clone() }, Line { body: 0..0, ..after.clone() });
    }
    let head = Head::parse(&read.head).expect("a stream");
    let stream = &batch.stream;
    assert_eq!((&head.key, head.class, head.origin()), (&stream.key, stream.class, stream.origin.clone()));
    assert_eq!(head.cgroup, stream.account.cgroup);
    assert_eq!(head.resource(), *stream.resource);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_batch_is_read_back_as_it_was(stream in stream(), lines in proptest::collection::vec(line(), 0..8)) {
        let batch = batch(stream, lines);
        assert_same(&batch, &decode(encoded(&batch)).expect("decodes"));
    }

    #[test]
    fn what_is_no_batch_is_refused_and_takes_no_memory(
        stream in stream(),
        lines in proptest::collection::vec(line(), 0..4),
        cut in any::<proptest::sample::Index>(),
        noise in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let whole = encoded(&batch(stream, lines));
        decode(whole[..cut.index(whole.len())].to_vec()).expect_err("it is cut");
        // Whatever it is, it does not panic.
        let _ = decode(noise.clone());
        let _ = salvage(noise);
    }

    #[test]
    fn any_damaged_byte_costs_its_own_line_alone(
        stream in stream(),
        lines in proptest::collection::vec(line(), 1..6),
        at in any::<proptest::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        let batch = batch(stream, lines);
        let mut bytes = encoded(&batch);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let left = salvage(bytes).expect("a batch");
        let mut missing = Vec::new();
        let mut found = left.lines.iter().peekable();
        for line in &batch.lines {
            let is_here = |other: &&Line| {
                batch.body(line) == &left.data[other.body.clone()]
                    && Line { body: 0..0, ..line.clone() } == Line { body: 0..0, ..(*other).clone() }
            };
            if found.next_if(is_here).is_none() {
                missing.push(line);
            }
        }
        prop_assert!(missing.len() <= 1 && found.next().is_none(), "byte {at}: {missing:?}");
    }
}

#[test]
fn another_version_is_told() {
    let stream = crate::sinks::testing::pod_stream("a", "b", "c");
    let mut bytes = encoded(&crate::sinks::testing::batch(&stream, 0, &[b"x"]));
    bytes[0] = 9;
    let checksum = crc32fast::hash(&bytes[..PROLOGUE - 4]).to_le_bytes();
    bytes[PROLOGUE - 4..PROLOGUE].copy_from_slice(&checksum);
    let error = decode(bytes).expect_err("unknown").to_string();
    assert!(error.contains("version 9"), "{error}");
}

#[test]
fn what_a_later_version_adds_is_passed_over() {
    let stream = crate::sinks::testing::pod_stream("a", "b", "c");
    let made = crate::sinks::testing::batch(&stream, 7, &[b"hello"]);
    let bytes = encoded(&made);
    let head = usize::try_from(u32::from_le_bytes(bytes[7..11].try_into().expect("four"))).expect("small");
    let table = 2 * PROLOGUE + 2 * (head + 4);
    let text = &bytes[2 * PROLOGUE..][..head];
    let mut stream: serde_json::Value = serde_json::from_slice(text).expect("JSON");
    stream["later"] = serde_json::json!([1]);
    stream["resource"]["later"] = serde_json::json!({});
    let text = serde_json::to_vec(&stream).expect("serializes");
    let mut prologue = bytes[..5].to_vec();
    prologue.extend_from_slice(&(ENTRY as u16 + 3).to_le_bytes());
    prologue.extend_from_slice(&u32::try_from(text.len()).expect("short").to_le_bytes());
    let mut later = Vec::new();
    for part in [&prologue, &prologue, &text, &text] {
        later.extend_from_slice(part);
        later.extend_from_slice(&crc32fast::hash(part).to_le_bytes());
    }
    later.extend_from_slice(&bytes[table..table + ENTRY]);
    later.extend_from_slice(&[1, 2, 3]);
    later.extend_from_slice(&bytes[table + ENTRY..]);
    assert_same(&made, &decode(later.clone()).expect("decodes"));
    assert_same(&made, &salvage(later).expect("decodes"));
}
