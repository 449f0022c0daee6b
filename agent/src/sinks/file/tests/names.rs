//! Names that a Pod chooses never lead out of the tree and never meet.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{
    super::path::{FileName, Form, Hour, Target},
    *,
};
use crate::{
    record::{Class, IoStream, Origin},
    sinks::testing::{pod_stream, stream},
};

#[test]
fn names_stay_readable() {
    for (name, encoded) in [
        ("cart-7d9c5b6f4d-x2x9p", "cart-7d9c5b6f4d-x2x9p"),
        ("/var/log/App Server.log", "+var+log+=app%20=server.log"),
        ("..", "%2e."),
        ("-rf", "%2drf"),
        ("_", "%5f"),
        ("", "%"),
        ("a\0b\u{e9}", "a%00b%c3%a9"),
    ] {
        assert_eq!(encode_component(name.as_bytes()), encoded);
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        prop::collection::vec(prop::sample::select(&b"aA./%=+_-~\0@2e"[..]), 0..8),
        prop::collection::vec(prop::sample::select(&b"aA/"[..]), 90..300),
    ]
}

fn check_component(encoded: &str) {
    assert!((1..=200).contains(&encoded.len()), "{encoded}");
    assert!(
        encoded.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-%=+~".contains(&byte))
    );
    assert!(!encoded.starts_with(['.', '-']) && encoded != "_", "{encoded}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_name_is_one_safe_component_and_can_be_decoded(name in name()) {
        let encoded = encode_component(&name);
        check_component(&encoded);
        match decode_component(&encoded) {
            Some(decoded) => prop_assert_eq!(decoded, name),
            None => prop_assert!(encoded.len() == 200 && encoded.contains('~')),
        }
    }

    #[test]
    fn different_names_never_meet(names in prop::collection::hash_set(name(), 2..20)) {
        let mut seen = HashMap::new();
        for name in names {
            // Lower case, as a file system that ignores it sees them.
            let encoded = encode_component(&name).to_lowercase();
            if let Some(other) = seen.insert(encoded, name.clone()) {
                prop_assert!(false, "{:?} and {:?}", name, other);
            }
        }
    }

    #[test]
    fn file_names_read_back(path in "\\PC{0,40}", time in any::<u64>(), number in 0..2000_u32) {
        let stream = stream(Class::Business, Origin::File { path: path.into() }, "a", "b", "c");
        let base = Target::of(&stream).base;
        let name = FileName { base, hour: Hour::of(time), number, extension: Format::Json.extension() };
        for form in [Form::Plain, Form::Zstd, Form::Gzip, Form::Temporary] {
            prop_assert_eq!(FileName::parse(&name.with(form)), Some((name.clone(), form)));
        }
    }
}

#[test]
fn names_of_others_are_left_alone() {
    for name in [
        "",
        "notes.txt",
        "stdout.ndjson",
        "stdout-20261121T05-.ndjson",
        "stdout-20261121T5-000.ndjson",
        "-20261121T05-000.ndjson",
        "stdout-20261121T05-0000.ndjson",
        "stdout-20261121T05-000.ndjson.bak",
    ] {
        assert_eq!(FileName::parse(name), None, "{name}");
    }
}

#[test]
fn a_long_name_is_cut_with_a_digest_that_tells_it_apart() {
    let (a, b) = ("x".repeat(300), format!("{}y", "x".repeat(299)));
    let (a, b) = (encode_component(a.as_bytes()), encode_component(b.as_bytes()));
    assert_ne!(a, b);
    assert_eq!((a.len(), &a[..160]), (200, &b[..160]));
}

#[test]
fn a_file_is_never_taken_for_a_standard_stream() {
    let base = |origin| Target::of(&stream(Class::Pod, origin, "a", "b", "c")).base;
    let stdout = base(Origin::Stdio(IoStream::Stdout));
    for path in ["stdout", "/stdout", "", "/", "+stdout", "@stdout"] {
        assert_ne!(base(Origin::File { path: path.into() }), stdout, "{path}");
    }
    assert_ne!(base(Origin::File { path: "/a".into() }), base(Origin::File { path: "a".into() }));
}

#[test]
fn hostile_names_are_written_below_the_root() {
    let mut fixture = Fixture::new(|_| {});
    let long = "n".repeat(5000);
    let hostile =
        ["../../../../etc", "/etc/passwd", "a/../../b", "..", ".", "", "\0", &long, "CON", "con", "_", "\u{202e}x"];
    for name in hostile {
        fixture.write(&pod_stream(name, name, name), &[name.as_bytes()]).expect("written");
        let file = stream(Class::Business, Origin::File { path: name.into() }, "a", "b", "c");
        fixture.write(&file, &[name.as_bytes()]).expect("written");
    }
    assert_eq!(fixture.delivered(), 2 * hostile.len());
    let files = fixture.files();
    assert_eq!(files.len(), 2 * hostile.len());
    for file in &files {
        assert_eq!(fixture.bodies(file).len(), 1, "{file}");
        assert_eq!(file.split('/').count(), 5, "{file}");
    }
    let beside: Vec<_> = fs::read_dir(fixture.directory.path()).expect("readable").collect();
    assert_eq!(beside.len(), 1);
}

#[test]
fn what_is_unknown_has_a_name_that_no_pod_can_have() {
    let stream = Arc::new(Stream {
        key: "k".into(),
        class: Class::Server,
        origin: Origin::File { path: "/var/log/syslog".into() },
        resource: Arc::default(),
        account: Arc::default(),
        source: None,
    });
    let target = Target::of(&stream);
    assert_eq!(target.directories, ["server", "_", "_", "_"]);
    assert_eq!(target.base, "+var+log+syslog");
}

#[test]
fn links_do_not_lead_out() {
    let mut fixture = Fixture::new(|_| {});
    let outside = fixture.directory.path().join("outside");
    fs::create_dir(&outside).expect("made");
    let root = fixture.settings.path.clone();
    fs::create_dir_all(root.join("pod/shop")).expect("made");
    std::os::unix::fs::symlink(&outside, root.join("pod/shop/cart")).expect("linked");
    let error = fixture.write(&pod_stream("shop", "cart", "app"), &[b"x"]).expect_err("a link");
    assert!(error.to_string().contains("stands where a directory should"), "{error}");
    assert_eq!(fixture.delivered(), 0);

    // A link in the place of a file is stepped over.
    fs::remove_file(root.join("pod/shop/cart")).expect("removed");
    fs::create_dir_all(root.join("pod/shop/cart/app")).expect("made");
    let link = root.join("pod/shop/cart/app/stdout-20261121T05-000.ndjson");
    std::os::unix::fs::symlink(outside.join("stolen"), link).expect("linked");
    fixture.retry().expect("written");
    assert_eq!(fixture.delivered(), 1);
    assert_eq!(fixture.bodies("pod/shop/cart/app/stdout-20261121T05-001.ndjson"), ["x"]);
    assert_eq!(fs::read_dir(&outside).expect("readable").count(), 0);
}
