//! The comparison finds what it is there to find.

use serde_json::json;

use super::*;

/// A record of the stream `stream` of container `c`.
fn record(stream: &str, position: u64, body: &str) -> Record {
    let value = json!({
        "body": body, "position": position, "length": body.len() + 1, "class": "pod", "stream": stream,
        "resource": { "container.id": "c" }, "attributes": { "log.iostream": "stdout" },
    });
    Record { file: "x.ndjson".into(), value }
}

fn expected() -> Expected {
    let mut expected = Expected::new();
    expected.add_stream("c", "stdout", "pod", b"one\ntwo\n");
    expected
}

fn problem(records: &[Record]) -> String {
    format!("{:#}", expected().compare(records).expect_err("a difference"))
}

#[test]
fn accepts_exactly_the_expected() {
    expected().compare(&[record("s", 10, "one"), record("s", 14, "two")]).expect("no difference");
    // A new stream of the same source goes on at a position of its own.
    expected().compare(&[record("s", 10, "one"), record("t", 0, "two")]).expect("no difference");
}

#[test]
fn accepts_the_exact_bytes_and_a_missing_newline() {
    let mut value = record("s", 0, "\u{fffd}x").value;
    value["attributes"]["sidestep.body.base64"] = json!("/3g=");
    value["flags"] = json!(["unterminated"]);
    value["length"] = json!(2);
    let mut expected = Expected::new();
    expected.add_stream("c", "stdout", "pod", b"\xffx");
    expected.compare(&[Record { file: "x.ndjson".into(), value }]).expect("no difference");
}

#[test]
fn finds_what_is_missing_or_different() {
    assert!(problem(&[]).contains("8 bytes expected, 0 came"));
    assert!(problem(&[record("s", 0, "one")]).contains("they part at 4"));
    assert!(problem(&[record("s", 0, "one"), record("s", 4, "tw0")]).contains("they part at 6"));
}

#[test]
fn finds_a_gap_a_repeat_and_a_stranger() {
    assert!(problem(&[record("s", 0, "one"), record("s", 5, "two")]).contains("jumps"));
    let twice = [record("s", 0, "one"), record("s", 0, "one"), record("s", 4, "two")];
    assert!(problem(&twice).contains("came twice"));
    expected().with_repeats().compare(&twice).expect("repeats are allowed");
    let mut stranger = record("u", 0, "three");
    stranger.value["attributes"]["log.iostream"] = json!("stderr");
    assert!(problem(&[record("s", 0, "one"), record("s", 4, "two"), stranger]).contains("unexpected stream"));
}

#[test]
fn finds_a_wrong_length_and_a_wrong_class() {
    let mut short = record("s", 0, "one");
    short.value["length"] = json!(3);
    assert!(problem(&[short, record("s", 4, "two")]).contains("length"));
    let mut class = record("s", 4, "two");
    class.value["class"] = json!("business");
    assert!(problem(&[record("s", 0, "one"), class]).contains("class"));
}
