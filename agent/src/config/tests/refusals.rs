//! What `sidestep run` would refuse, or would do nothing with, is refused by `sidestep config check`, all at once.

use super::environment;
use crate::config::Raw;

/// Option and message of each problem.
fn problems(text: &str) -> Vec<(String, String)> {
    let error = Raw::parse("s.yaml", text, &environment()).expect_err(text).to_string();
    let parts = |line: &str| {
        let mut parts = line.splitn(3, ": ").skip(1).map(str::to_owned);
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    };
    error.lines().map(parts).collect()
}

#[track_caller]
fn assert_problems(text: &str, expected: &[(&str, &str)]) {
    let problems = problems(text);
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for ((option, message), (expected_option, part)) in problems.iter().zip(expected) {
        assert_eq!(option, expected_option);
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn every_range_error_of_a_sink_is_named() {
    assert_problems(
        "sinks:\n  - type: file\n    path: logs\n    max_file_bytes: 0\n    quota_percent: 101\n    max_open_files: 0\n",
        &[
            ("sinks[0].path", "must be an absolute path"),
            ("sinks[0].max_file_bytes", "must be greater than zero"),
            ("sinks[0].quota_percent", "must be 1 to 100"),
            ("sinks[0].max_open_files", "must be greater than zero"),
        ],
    );
}

#[test]
fn every_error_of_lines_is_named_regular_expressions_too() {
    assert_problems(
        "lines:\n  max_line_bytes: 1\n  idle_flush: 0s\n  multiline:\n    patterns:\n      - {start: '(', \
         continuation: '['}\n      - {start: x, continuation: '*'}\n",
        &[
            ("lines.max_line_bytes", "`1` is not between `64` and `1GiB`"),
            ("lines.idle_flush", "`0s` is not between `1ms` and `1day`"),
            ("lines.multiline.patterns[0].start", "unclosed group"),
            ("lines.multiline.patterns[0].continuation", "unclosed character class"),
            ("lines.multiline.patterns[1].continuation", "repetition operator missing expression"),
        ],
    );
}

#[test]
fn sinks_that_would_share_a_directory_are_refused() {
    assert_problems(
        "sinks:\n  - {type: file, name: a, path: /data/logs}\n  - {type: console}\n  - {type: file, name: b, path: \
         /data//logs/}\n",
        &[("sinks[2].path", "is the directory of `sinks[0]` too")],
    );
}

#[test]
fn a_quota_that_keeps_nothing_is_refused() {
    assert_problems(
        "sinks:\n  - {type: file, quota: 1}\n",
        &[("sinks[0].quota", "must be at least `max_file_bytes`, which is `256MiB`")],
    );
}

#[test]
fn a_line_that_is_larger_than_a_buffer_is_refused() {
    assert_problems(
        "lines: {max_line_bytes: 4MiB}\nsinks:\n  - {type: kafka, brokers: ['a:1'], buffer: {max_bytes: 2MiB}}\n  - \
         {type: kafka, name: without, brokers: ['a:1'], buffer: {enabled: false, max_bytes: 2MiB}}\n",
        &[("sinks[0].buffer.max_bytes", "is `2MiB`, and `lines.max_line_bytes` is `4MiB`")],
    );
}

#[test]
fn traps_of_kafka_and_otlp_are_refused() {
    let text =
        "sinks:\n  - type: kafka\n    brokers: ['a:1']\n    options: {acks: '1', colour: red, sasl.password: x}\n";
    for part in ["`acks: 1`", "`colour`, which librdkafka does not take", "`sasl.password`, which `config show` would"]
    {
        assert_problems(text, &[("sinks[0].options", part)]);
    }
    for (path, part) in [("", "has no path"), ("/", "has no path"), ("/v1/traces", "which takes no logs")] {
        let text = format!("sinks:\n  - {{type: http, url: 'http://otel:4318{path}', encoding: otlp_proto}}\n");
        assert_problems(&text, &[("sinks[0].url", part)]);
    }
}

#[test]
fn roots_that_name_nothing_or_the_same_are_refused() {
    assert_problems(
        "capture:\n  cgroup_roots: [/sys/fs/cgroup/unified/x, /a, /a, /a/b, /c/d-*, /c/d-1/e]\n",
        &[
            ("capture.cgroup_roots[0]", "without `/sys/fs/cgroup/unified`: `/x`"),
            ("capture.cgroup_roots[2]", "`/a` is named by `capture.cgroup_roots[1]` already"),
            ("capture.cgroup_roots[3]", "`/a/b` overlaps with `/a`, `capture.cgroup_roots[1]`"),
            ("capture.cgroup_roots[5]", "`/c/d-1/e` overlaps with `/c/d-*`"),
        ],
    );
    assert_problems(
        "capture:\n  cgroup_mount: /mnt/cg\n  cgroup_roots: [/mnt/cg/x]\n",
        &[("capture.cgroup_roots[0]", "without `/mnt/cg`: `/x`")],
    );
    let many: Vec<_> = (0..17).map(|number| format!("/root{number}")).collect();
    assert_problems(
        &format!("capture: {{cgroup_roots: [{}]}}", many.join(", ")),
        &[("capture.cgroup_roots", "17 roots are more than the 16")],
    );
}

#[test]
fn the_report_does_not_say_the_option_twice() {
    let shown = |text| Raw::parse("s", text, &environment()).expect_err(text).render(false);
    let top = shown("nodename: x\n");
    assert!(top.contains("unknown option `nodename`") && !top.contains("note: option"), "{top}");
    let inner = shown("log: {lvl: x}\n");
    assert!(inner.contains("note: option `log.lvl`"), "{inner}");
}

#[test]
fn sizes_are_shown_as_they_are_typed() {
    let text = "lines: {max_line_bytes: 3MiB}\nsinks:\n  - {type: file, max_file_bytes: 1500000000, quota: 2GiB}\n";
    let (raw, _) = Raw::parse("s", text, &environment()).expect("valid");
    let shown = raw.to_yaml();
    for line in ["max_line_bytes: 3MiB", "max_file_bytes: \"1500000000\"", "quota: 2GiB", "max_bytes: 64MiB"] {
        assert!(shown.contains(line), "{line} is not in\n{shown}");
    }
}
