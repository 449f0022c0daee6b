//! What bodies say of themselves, and that what they do not say clearly is left alone.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::settings::{Format, Parse},
    MAX_DEPTH, MAX_VALUES, Parser, severity, time,
};
use crate::record::{Line, LineFlags, Severity};

fn parse(format: Format, body: &[u8]) -> Line {
    parse_with(&Parse { format, ..Parse::default() }, body, LineFlags::default())
}

fn parse_with(settings: &Parse, body: &[u8], flags: LineFlags) -> Line {
    let parser = Parser::new(settings).expect("a format");
    let mut line = Line { time_unix_nano: 7, body: 3..3 + body.len(), flags, ..Line::default() };
    parser.parse(body, &mut line);
    assert_eq!(line.body, 3..3 + body.len(), "the body stays");
    line
}

fn attributes(line: &Line) -> Option<Value> {
    line.attributes.as_deref().map(|attributes| Value::Object(attributes.clone()))
}

#[test]
fn nothing_is_parsed_by_default() {
    assert!(Parser::new(&Parse::default()).is_none());
}

#[test]
fn a_json_object_becomes_attributes() {
    let body = br#"{"level":"warn","time":"2025-11-21T00:00:00.5Z","n":[1,-2.5,null],"o":{"k":"\u00e9"},"n2":true}"#;
    let line = parse(Format::Json, &[&body[..], b"\r"].concat());
    assert_eq!(attributes(&line), serde_json::from_slice(body).ok());
    assert_eq!(line.severity, Some(Severity::Warn));
    assert_eq!(line.time_unix_nano, 1_763_683_200_500_000_000);
    let order: Vec<_> = line.attributes.iter().flat_map(|attributes| attributes.keys()).collect();
    assert_eq!(order, ["level", "time", "n", "o", "n2"]);
}

#[test]
fn keys_of_pino_ecs_and_others_are_known() {
    let pino = parse(Format::Auto, br#"{"level":50,"time":1763683200123,"msg":"x"}"#);
    assert_eq!((pino.severity, pino.time_unix_nano), (Some(Severity::Error), 1_763_683_200_123_000_000));
    let ecs = parse(Format::Auto, br#"{"@timestamp":"2025-11-21T01:00:00+01:00","log":{"level":"ERROR"}}"#);
    assert_eq!((ecs.severity, ecs.time_unix_nano), (Some(Severity::Error), 1_763_683_200_000_000_000));
    let flat = parse(Format::Auto, br#"{"log.level":"debug"}"#);
    assert_eq!((flat.severity, flat.time_unix_nano), (Some(Severity::Debug), 7));
    let zap = parse(Format::Auto, br#"{"level":"dpanic","ts":1763683200.123456}"#);
    assert_eq!((zap.severity, zap.time_unix_nano), (Some(Severity::Fatal), 1_763_683_200_123_456_000));
    let odd_first = parse(Format::Auto, br#"{"level":"gold","severity":"NOTICE","time":"noon","ts":"1763683200"}"#);
    assert_eq!((odd_first.severity, odd_first.time_unix_nano), (Some(Severity::Info), 1_763_683_200_000_000_000));
    let own = Parse { format: Format::Json, severity_keys: vec!["a.b.c".into()], time_keys: Vec::new() };
    let own = parse_with(&own, br#"{"a":{"b":{"c":"fatal"}},"level":"info","time":1763683200}"#, LineFlags::default());
    assert_eq!((own.severity, own.time_unix_nano), (Some(Severity::Fatal), 7));
}

#[test]
fn what_is_no_object_or_over_the_limits_stays_a_body() {
    let nested = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
    let many =
        |count: usize| format!("{{{}}}", (0..count).map(|i| format!(r#""{i}":0"#)).collect::<Vec<_>>().join(","));
    for body in ["", "{", "[1]", "1", "\"x\"", "{}x", "{'a':1}", r#"{"a":1}{"b":2}"#, "text", "nul\0"] {
        assert_eq!(
            parse(Format::Json, body.as_bytes()),
            Line { time_unix_nano: 7, body: 3..3 + body.len(), ..Line::default() }
        );
    }
    assert!(parse(Format::Json, b"{\"a\":\"\xFF\"}").attributes.is_none());
    assert!(parse(Format::Json, nested(MAX_DEPTH).as_bytes()).attributes.is_some());
    assert!(parse(Format::Json, nested(MAX_DEPTH + 1).as_bytes()).attributes.is_none());
    assert!(parse(Format::Json, nested(100_000).as_bytes()).attributes.is_none());
    assert!(parse(Format::Json, many(MAX_VALUES).as_bytes()).attributes.is_some());
    assert!(parse(Format::Json, many(MAX_VALUES + 1).as_bytes()).attributes.is_none());
    assert!(parse(Format::Json, format!("{{\"a\":[{}1]}}", "1,".repeat(MAX_VALUES)).as_bytes()).attributes.is_none());
}

#[test]
fn logfmt_becomes_attributes() {
    let body = r#"ts=2025-11-21T00:00:00Z level=error msg="say \"hi\"\n" path=/a=b empty= quoted="" é=ü done"#;
    let line = parse(Format::Logfmt, body.as_bytes());
    let expected = json!({"ts": "2025-11-21T00:00:00Z", "level": "error", "msg": "say \"hi\"\n", "path": "/a=b",
        "empty": "", "quoted": "", "é": "ü", "done": true});
    assert_eq!(attributes(&line), Some(expected));
    assert_eq!((line.severity, line.time_unix_nano), (Some(Severity::Error), 1_763_683_200_000_000_000));
    // An escape that JSON does not know stays as it is.
    assert_eq!(attributes(&parse(Format::Logfmt, br#"p="C:\dir""#)), Some(json!({"p": r"C:\dir"})));
    assert_eq!(attributes(&parse(Format::Logfmt, b"a=1\r")), Some(json!({"a": "1"})));
}

#[test]
fn prose_is_no_logfmt() {
    for body in ["", " ", "=", "=a", "hello a=b", "a", "a=\"b", "a=\"b\\", "a=\"b\"c", "a=b\"c\"", "a=1 =2"] {
        assert_eq!(parse(Format::Logfmt, body.as_bytes()).attributes, None, "{body}");
    }
    assert_eq!(parse(Format::Logfmt, b"a=\xFF").attributes, None);
    for body in ["a=b", "x=1 is what we found", "level=info msg=hello world", "done a=1 b=2"] {
        assert_eq!(parse(Format::Auto, body.as_bytes()).attributes, None, "{body}");
    }
    assert_eq!(attributes(&parse(Format::Auto, b"level=info msg=hi")), Some(json!({"level": "info", "msg": "hi"})));
}

#[test]
fn pieces_of_lines_are_not_parsed() {
    let settings = Parse { format: Format::Auto, ..Parse::default() };
    for flags in [LineFlags::CUT, LineFlags::CONTINUATION, LineFlags::AFTER_GAP] {
        assert_eq!(parse_with(&settings, b"vel=info a=b c=d", flags).attributes, None);
    }
    assert!(parse_with(&settings, b"{\"a\":1}", LineFlags::AFTER_GAP).attributes.is_some());
    assert!(parse_with(&settings, b"{\"a\":1}", LineFlags::CUT).attributes.is_none());
    assert!(parse_with(&settings, b"level=info a=b", LineFlags::UNTERMINATED).attributes.is_some());
}

#[test]
fn severities() {
    for (value, expected) in [
        (json!("Information"), Some(Severity::Info)),
        (json!(" WARNING "), Some(Severity::Warn)),
        (json!("emerg"), Some(Severity::Fatal)),
        (json!("informational"), Some(Severity::Info)),
        (json!("finest"), Some(Severity::Trace)),
        (json!("30"), Some(Severity::Info)),
        (json!(0), Some(Severity::Fatal)),
        (json!(3), Some(Severity::Error)),
        (json!(7), Some(Severity::Debug)),
        (json!(10), Some(Severity::Trace)),
        (json!(60), Some(Severity::Fatal)),
        (json!(8), None),
        (json!(-1), None),
        (json!(""), None),
        (json!("a longer word than any"), None),
        (json!(true), None),
        (json!({"name": "info"}), None),
    ] {
        assert_eq!(severity::of(&value), expected, "{value}");
    }
}

#[test]
fn times() {
    let second = 1_763_683_200_000_000_000;
    for (value, expected) in [
        (json!("2025-11-21T00:00:00Z"), Some(second)),
        (json!("2025-11-21 00:00:00.000000001Z"), Some(second + 1)),
        (json!("2025-11-20T19:00:00,25-05:00"), Some(second + 250_000_000)),
        (json!("2025-11-21T00:00:00.123+0000"), Some(second + 123_000_000)),
        (json!(1_763_683_200), Some(second)),
        (json!(1_763_683_200.5), Some(second + 500_000_000)),
        (json!("1763683200.000000001999"), Some(second + 1)),
        (json!(1_763_683_200_001_u64), Some(second + 1_000_000)),
        (json!("1763683200001.5"), Some(second + 1_500_000)),
        (json!(1_763_683_200_000_001_u64), Some(second + 1_000)),
        (json!(1_763_683_200_000_000_001_u64), Some(second + 1)),
        (json!(u64::MAX), Some(u64::MAX)),
        (json!(12.5), None),
        (json!(-1), None),
        (json!(1e300), None),
        (json!("1763683200.x"), None),
        (json!("1763683200.-5"), None),
        (json!("2025-11-21T00:00:00"), None),
        (json!("1969-12-31T23:59:59Z"), None),
        (json!("9999-12-31T00:00:00Z"), None),
        (json!("Fri, 21 Nov 2025"), None),
        (json!(null), None),
    ] {
        assert_eq!(time::of(&value), expected, "{value}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_json_that_serde_reads_is_read_the_same(
        entries in prop::collection::vec((".{0,8}", prop_oneof![
            any::<i64>().prop_map(|n| json!(n)),
            ".{0,12}".prop_map(|s| json!(s)),
            Just(json!([1, {"a": null}])),
        ]), 0..20),
    ) {
        let object = Value::Object(entries.into_iter().collect());
        prop_assert_eq!(attributes(&parse(Format::Auto, object.to_string().as_bytes())), Some(object));
    }

    #[test]
    fn logfmt_reads_what_it_is_given(
        pairs in prop::collection::vec(("[a-z.@_-]{1,8}", ".{0,12}"), 2..20),
    ) {
        let body: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}={}", json!(value))).collect();
        let expected: Value = Value::Object(pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect());
        prop_assert_eq!(attributes(&parse(Format::Logfmt, body.join(" ").as_bytes())), Some(expected));
    }

    #[test]
    fn no_bytes_are_too_odd(body in prop::collection::vec(any::<u8>(), 0..60), prefix in "(\\{\"a\":|a=\"|a=b c=)?") {
        let body = [prefix.as_bytes(), &body].concat();
        for format in [Format::Auto, Format::Json, Format::Logfmt] {
            let line = parse(format, &body);
            prop_assert!(line.attributes.is_some() || (line.severity.is_none() && line.time_unix_nano == 7));
        }
    }
}
