//! Traces as the languages' own tools print them. In `traces/`, a line of dashes stands before each record but the
//! first; it is no part of the stream. Java, Python, Go, Node and Ruby wrote theirs; .NET's are after its source.

use std::time::Duration;

use bytesize::ByteSize;

use super::super::{Assembler, Language, Multiline, Pattern, Settings, tests::stream};
use crate::record::LineFlags;

const SEPARATOR: &str = "----- next record -----\n";

fn assembler(multiline: Multiline) -> Assembler {
    let settings = Settings { multiline, ..Settings::default() };
    Assembler::new(&settings.compile().expect("valid settings"))
}

fn with_rules(rules: &[Language]) -> Multiline {
    Multiline { rules: rules.to_vec(), ..Multiline::default() }
}

fn with_pattern(start: Option<&str>, continuation: Option<&str>) -> Multiline {
    let pattern = Pattern { start: start.map(str::to_owned), continuation: continuation.map(str::to_owned) };
    Multiline { patterns: vec![pattern], ..Multiline::default() }
}

fn records(assembler: &mut Assembler) -> Vec<(String, LineFlags)> {
    let Some(batch) = assembler.take_batch(&stream()) else { return Vec::new() };
    let text = |line| String::from_utf8(batch.body(line).to_vec()).expect("UTF-8");
    batch.lines.iter().map(|line| (text(line), line.flags)).collect()
}

fn joined(multiline: Multiline, text: &str) -> Vec<String> {
    let mut assembler = assembler(multiline);
    assembler.push(1, 1, 0, text.as_bytes());
    assembler.finish();
    records(&mut assembler).into_iter().map(|(body, _)| body).collect()
}

/// Records of the fixture, as the rules join its lines, against those that the separators tell.
fn assert_joins(rules: &[Language], fixture: &str) {
    let expected: Vec<_> = fixture.split(SEPARATOR).map(|record| record.strip_suffix('\n').unwrap_or(record)).collect();
    assert!(expected.len() > 1);
    assert_eq!(joined(with_rules(rules), &fixture.replace(SEPARATOR, "")), expected);
    // The same from a container on a terminal, which ends its lines with CR LF.
    let expected: Vec<_> = expected.iter().map(|record| record.replace('\n', "\r\n") + "\r").collect();
    assert_eq!(joined(with_rules(rules), &fixture.replace(SEPARATOR, "").replace('\n', "\r\n")), expected);
}

const JAVA: &str = include_str!("traces/java.txt");
const PYTHON: &str = include_str!("traces/python.txt");
const PYTHON_CHAINED: &str = include_str!("traces/python_chained.txt");
const GO: &str = include_str!("traces/go.txt");
const RUBY: &str = include_str!("traces/ruby.txt");
const NODE: &str = include_str!("traces/node.txt");
const DOTNET: &str = include_str!("traces/dotnet.txt");

#[test]
fn java() {
    assert_joins(&[Language::Java], JAVA);
}

#[test]
fn python() {
    assert_joins(&[Language::Python], PYTHON);
    assert_joins(&[Language::Python], PYTHON_CHAINED);
}

#[test]
fn go() {
    assert_joins(&[Language::Go], GO);
}

#[test]
fn ruby() {
    assert_joins(&[Language::Ruby], RUBY);
}

#[test]
fn node() {
    assert_joins(&[Language::Node], NODE);
}

#[test]
fn dotnet() {
    assert_joins(&[Language::Dotnet], DOTNET);
}

#[test]
fn a_line_that_starts_no_trace_is_not_held() {
    use Language::{Dotnet, Go, Java, Node, Python, Ruby};
    let mut lines = assembler(with_rules(&[Java, Python, Go, Ruby, Node, Dotnet]));
    let plain = [
        "2025-11-21 00:00:00 INFO [main] app.Service - listening on 0.0.0.0:8080",
        "{\"level\":\"error\",\"msg\":\"java.lang.Error: x\"}",
        "level=info msg=\"no error\"",
        "\tat nothing",
        "10.0.0.1 - - [21/Nov/2025:00:00:00 +0000] \"GET / HTTP/1.1\" 200 12",
        "",
        "goroutine leak",
        "an error was found: none",
    ];
    let text = plain.join("\n") + "\n";
    lines.push(1, 1, 0, text.as_bytes());
    let bodies: Vec<_> = records(&mut lines).into_iter().map(|(body, _)| body).collect();
    assert_eq!(bodies, plain);
    assert_eq!((lines.pending(), lines.next_deadline()), (0, None));
}

#[test]
fn a_trace_is_let_out_when_nothing_more_comes() {
    let mut lines =
        assembler(Multiline { flush_after: Duration::from_nanos(2_000_000), ..with_rules(&[Language::Java]) });
    lines.push(1, 100, 0, b"java.lang.Error: x\n\tat a.B.c(D.java:1)\n");
    assert_eq!(lines.next_deadline(), Some(2_000_100));
    lines.idle(2_000_099);
    assert_eq!(lines.ready_lines(), 0);
    lines.idle(2_000_100);
    let trace = "java.lang.Error: x\n\tat a.B.c(D.java:1)".to_owned();
    assert_eq!(records(&mut lines), [(trace, LineFlags::MULTILINE)]);
    assert_eq!(lines.pending(), 0);
}

#[test]
fn a_gap_ends_a_trace() {
    let mut lines = assembler(with_rules(&[Language::Java]));
    lines.push(1, 1, 0, b"java.lang.Error: x\n\tat a.B.c(D.ja");
    lines.gap(33, 10);
    lines.push(1, 1, 43, b"\tat a.B.c(D.java:1)\nnext\n");
    let expected = [
        ("java.lang.Error: x\n\tat a.B.c(D.ja", LineFlags::MULTILINE.with(LineFlags::UNTERMINATED)),
        ("\tat a.B.c(D.java:1)", LineFlags::AFTER_GAP),
        ("next", LineFlags::default()),
    ];
    assert_eq!(records(&mut lines), expected.map(|(body, flags)| (body.to_owned(), flags)));
}

#[test]
fn lines_held_on_trial_may_begin_a_trace_themselves() {
    let text = "/app/a.js:12\nTypeError: x\n    at f (/app/a.js:1:2)\nnext\n";
    assert_eq!(
        joined(with_rules(&[Language::Node]), text),
        ["/app/a.js:12", "TypeError: x\n    at f (/app/a.js:1:2)", "next"]
    );
}

#[test]
fn a_record_over_the_limits_goes_on_in_a_marked_one() {
    let (cut, continuation, multiline) = (LineFlags::CUT, LineFlags::CONTINUATION, LineFlags::MULTILINE);
    let by_lines = Multiline { max_lines: 3, ..with_rules(&[Language::Java]) };
    let by_bytes = Multiline { max_bytes: ByteSize::kib(1), ..with_rules(&[Language::Java]) };
    let long = format!("\tat {}\n", "x".repeat(400));
    for (multiline_settings, frame) in [(by_lines, "\tat f\n"), (by_bytes, long.as_str())] {
        let mut lines = assembler(multiline_settings);
        lines.push(1, 1, 0, format!("java.lang.Error: x\n{}next\n", frame.repeat(6)).as_bytes());
        let flags: Vec<_> = records(&mut lines).into_iter().map(|(_, flags)| flags).collect();
        let parts = if frame.len() < 100 {
            vec![cut.with(multiline), cut.with(multiline).with(continuation), continuation]
        } else {
            let part = cut.with(multiline).with(continuation);
            vec![cut.with(multiline), part, multiline.with(continuation)]
        };
        assert_eq!(flags, [parts, vec![LineFlags::default()]].concat());
    }
}

#[test]
fn own_patterns() {
    let text = "  stray\n[1] a\nb\n  c\n[2] d\n";
    assert_eq!(joined(with_pattern(Some(r"^\[\d+\]"), None), text), ["  stray", "[1] a\nb\n  c", "[2] d"]);
    assert_eq!(joined(with_pattern(None, Some(r"^\s")), text), ["  stray", "[1] a", "b\n  c", "[2] d"]);
    assert_eq!(joined(with_pattern(Some(r"^\[1\]"), Some("^[a-z]$")), text), ["  stray", "[1] a\nb", "  c", "[2] d"]);
    // An expression sees the line without its CR LF, and bytes that are no UTF-8.
    let mut lines = assembler(with_pattern(Some("^start$"), Some(r"(?-u:\xFF)$")));
    lines.push(1, 1, 0, b"start\r\n\xFF\r\nend\n");
    let batch = lines.take_batch(&stream()).expect("lines");
    let bodies: Vec<_> = batch.lines.iter().map(|line| batch.body(line)).collect();
    assert_eq!(bodies, [&b"start\r\n\xFF\r"[..], b"end"]);
}
