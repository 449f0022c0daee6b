//! Everything that is wrong is named, at once, each with its place.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{config, environment};
use crate::config::{ConfigError, EXAMPLE, Raw};

/// The report as one line for each problem.
fn errors(text: &str) -> Vec<String> {
    let error = Raw::parse("sidestep.yaml", text, &environment()).expect_err("wrong");
    error.to_string().lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_error(text: &str, expected: &str) {
    assert_eq!(errors(text), [expected], "{text}");
}

#[test]
fn an_unknown_option_is_named_with_its_place_and_what_was_meant() {
    assert_error(
        "capture:\n  ring_sizes: 1MiB\n",
        "sidestep.yaml:2:3: capture.ring_sizes: unknown option `ring_sizes`; did you mean `ring_size`? Allowed here: \
         `cgroup_roots`, `cgroup_mount`, `ring_size`, `container_share`, `attach`, `pin`, `when_stopped`, `runtime_logs`, `terminals`, `files`, `rules`",
    );
    assert_error(
        "log: {level: info, colour: red}",
        "sidestep.yaml:1:20: log.colour: unknown option `colour`; allowed here: `level`, `format`",
    );
    let hyphen = errors("capture: {cgroup-roots: []}");
    assert!(hyphen[0].contains("did you mean `cgroup_roots`?"), "{hyphen:?}");
}

#[test]
fn a_wrong_type_is_named_with_its_place_and_what_is_allowed() {
    for (text, expected) in [
        (
            "shutdown_timeout: 10",
            "1:19: shutdown_timeout: expected a duration with its unit, such as `500ms`, `10s` or `1h 30m`, found the number `10`",
        ),
        (
            "shutdown_timeout:",
            "1:1: shutdown_timeout: expected a duration with its unit, such as `500ms`, `10s` or `1h 30m`, found nothing",
        ),
        ("capture:\n  terminals: maybe", "2:14: capture.terminals: expected `true` or `false`, found `maybe`"),
        (
            "capture:\n  container_share: 25",
            "2:20: capture.container_share: expected a share from `1%` to `100%`, found the number `25`",
        ),
        ("capture: [1]", "1:1: capture: expected a section of options, found a list"),
        (
            "capture:\n  files:\n    include: /var/log/**",
            "3:14: capture.files.include: expected a list, found `/var/log/**`",
        ),
        (
            "capture:\n  files:\n    include:\n      - a\n      - 5",
            "5:9: capture.files.include[1]: expected a string, found the number `5`",
        ),
        (
            "log:\n  level: verbose",
            "2:10: log.level: `verbose` is not allowed here; allowed here: `error`, `warn`, `info`, `debug`, `trace`",
        ),
        (
            "log: {level: 3}",
            "1:14: log.level: expected one of `error`, `warn`, `info`, `debug`, `trace`, found the number `3`",
        ),
        (
            "telemetry: {listen: 9464}",
            "1:21: telemetry.listen: expected an IP address and a port, such as `127.0.0.1:9464`, found the number `9464`",
        ),
        (
            "telemetry: {listen: localhost}",
            "1:21: telemetry.listen: expected an IP address and a port, such as `127.0.0.1:9464`, found `localhost`",
        ),
        (
            "capture: {ring_size: big}",
            "1:22: capture.ring_size: expected a size such as `64KiB`, `16MiB` or `1GiB`, found `big`",
        ),
        ("just words", "1:1: expected a section of options, found `just words`"),
        ("- a", "1:1: expected a section of options, found a list"),
    ] {
        assert_error(text, &format!("sidestep.yaml:{expected}"));
    }
}

#[test]
fn values_that_do_not_hold_are_named_with_their_place() {
    let long = "x".repeat(108);
    for (text, expected) in [
        ("node_name: ''", "1:12: node_name: the name may not be empty"),
        ("node_name: \"a\\nb\"", "1:12: node_name: the name may not have control characters"),
        ("state_dir: var/lib", "1:12: state_dir: `var/lib` must be an absolute path"),
        (&format!("socket: /{long}"), "1:9: socket: the path has more than 107 bytes, the kernel's limit for a socket"),
        ("shutdown_timeout: 2h", "1:19: shutdown_timeout: `2h` is not between `0s` and `1h`"),
        (
            "capture: {ring_size: 3MiB}",
            "1:22: capture.ring_size: `3MiB` is not a power of two; the next ones are `2MiB` and `4MiB`",
        ),
        ("capture: {ring_size: 4KiB}", "1:22: capture.ring_size: `4KiB` is not between `64KiB` and `1GiB`"),
        (
            "capture: {cgroup_roots: []}",
            "1:11: capture.cgroup_roots: without a root nothing is captured; name at least one",
        ),
        (
            "capture:\n  cgroup_roots:\n    - /a\n    - b",
            "4:7: capture.cgroup_roots[1]: `b` must begin with `/`, the root of the cgroup v2 hierarchy",
        ),
        (
            "capture:\n  files:\n    exclude: ['[']",
            "3:15: capture.files.exclude[0]: `[` is not a glob: unclosed character class; missing ']'",
        ),
        (
            "server: {include: ['*.log']}",
            "1:20: server.include[0]: `*.log` must begin with `/`: the whole node is never searched",
        ),
        ("server: {poll_interval: 1ms}", "1:25: server.poll_interval: `1ms` is not between `10ms` and `1h`"),
        ("sinks: []", "1:1: sinks: without a sink nothing leaves the node; name at least one"),
        (
            "capture:\n  rules:\n    - match: {pod: ['{a']}",
            "3:21: capture.rules[0].match.pod[0]: `{a` is not a glob: unclosed alternate group; missing '}' (maybe escape '{' with '[{]'?)",
        ),
    ] {
        assert_error(text, &format!("sidestep.yaml:{expected}"));
    }
}

#[test]
fn errors_in_other_stages_sections_have_their_place_too() {
    for (text, expected) in [
        ("lines:\n  max_line_bytes: 1\n", "2:19: lines.max_line_bytes: `1` is not between"),
        ("lines:\n  max_line_bytes: wide\n", "2:19: lines.max_line_bytes: "),
        ("lines: {idle_flush: soon}", "1:21: lines.idle_flush: "),
        ("lines: {idle_flush: 5}", "1:21: lines.idle_flush: expected a duration with its unit, such as"),
        (
            "lines: {multiline: {rules: [cobol]}}",
            "1:29: lines.multiline.rules[0]: `cobol` is not allowed here; allowed here: `java`",
        ),
        (
            "lines:\n  multiline:\n    patterns:\n      - start: '('\n",
            "4:16: lines.multiline.patterns[0].start: not a regular expression: unclosed group",
        ),
        (
            "capture:\n  rules:\n    - match: {pod: [x]}\n      multiline: {patterns: [{start: '['}]}",
            "4:38: capture.rules[0].multiline.patterns[0].start: not a regular expression: unclosed character class",
        ),
        ("identity: {docker_root: [/a, b]}", "1:30: identity.docker_root[1]: `b` must be an absolute path"),
        ("identity: {live_cgroups: 0}", "1:26: identity.live_cgroups: `0` is not between"),
        (
            "sinks:\n  - {type: console}\n  - {type: consol}\n",
            "3:12: sinks[1].type: `consol` is not allowed here; did you mean `console`?",
        ),
        ("sinks:\n  - name: x\n", "2:5: sinks[0]: the option `type` is missing here"),
        (
            "sinks:\n  - type: console\n    colour: auto\n",
            "3:5: sinks[0].colour: unknown option `colour`; did you mean `color`?",
        ),
        ("sinks:\n  - type: console\n    queue: {size: 1}\n", "3:13: sinks[0].queue.size: unknown option `size`"),
        (
            "sinks:\n  - type: console\n    raw: 1\n",
            "3:10: sinks[0].raw: expected `true` or `false`, found the number `1`",
        ),
        ("sinks:\n  - type: file\n    retention: soon\n", "3:16: sinks[0].retention: "),
        (
            "sinks:\n  - type: file\n    sync: {interval: 0}\n",
            "3:22: sinks[0].sync.interval: expected a duration with its unit, such as `500ms`, `10s` or `1h 30m`, found the number `0`",
        ),
        ("sinks:\n  - type: file\n    sync: {interval: 0s}\n", "3:22: sinks[0].sync.interval: "),
        (
            "sinks:\n  - type: file\n    quota_percent: 101\n",
            "3:20: sinks[0].quota_percent: `quota_percent` must be 1 to 100",
        ),
        (
            "sinks: [{type: console}, {type: console}]",
            "1:27: sinks[1].name: the name `console` is that of `sinks[0]` too",
        ),
    ] {
        let errors = errors(text);
        assert!(
            errors.len() == 1 && errors[0].starts_with(&format!("sidestep.yaml:{expected}")),
            "{text}: {expected:?} is not in {errors:#?}"
        );
    }
}

#[test]
fn errors_in_nested_sections_of_a_sink_have_their_place() {
    // `^` stands before what is wrong.
    for (sink, expected) in [
        ("auth: {^basic: {username: a}}", "auth.basic: the option `password_file` is missing here"),
        ("auth: {basic: {username: ^5, password_file: /x}}", "auth.basic.username: expected a string, found"),
        ("auth: {basic: {^user: a, username: b, password_file: /x}}", "auth.basic.user: unknown option `user`"),
        ("^auth: {token: /x}", "auth: `token` is not allowed here; allowed here: `basic`, `bearer`"),
        ("auth: ^basic", "auth: "),
        ("^auth: {username: a, password_file: /x}", "auth: expected one of `basic`, `bearer`, `api_key`"),
        ("tls: {^ca: /x}", "tls.ca: unknown option `ca`"),
        ("tls: {^ca_file: [/x]}", "tls.ca_file: expected a path"),
        ("tls: ^yes", "tls: expected a section of options, found `true`"),
        ("headers: {X-A: {file: /x, ^fil: /x}}", "headers.X-A.fil: unknown option `fil`; did you mean `file`?"),
        ("headers: {X-A: ^5}", "headers.X-A: expected a text, or `file: /path`, found the number `5`"),
        ("^compresion: gzip", "compresion: unknown option `compresion`; did you mean `compression`?"),
        ("^compression: {level: 3}", "compression: `level` is not allowed here"),
    ] {
        let line = format!("  - {{type: http, {sink}}}");
        let column = line.find('^').expect("a place") + 1;
        let errors = errors(&format!("sinks:\n{}\n", line.replace('^', "")));
        let others: Vec<_> = errors.iter().filter(|error| !error.contains("`url` must be given")).collect();
        assert!(
            others.len() == 1 && others[0].starts_with(&format!("sidestep.yaml:2:{column}: sinks[0].{expected}")),
            "{sink}: {expected:?} at {column} is not in {errors:#?}"
        );
    }
    let kafka = "sinks:\n  - type: kafka\n    brokers: [a:1]\n    sasl:\n      username: a\n      mechanism: SCRAM\n";
    let errors = errors(kafka);
    assert!(errors[0].starts_with("sidestep.yaml:6:18: sinks[0].sasl.mechanism: `SCRAM` is not allowed"), "{errors:?}");
}

#[test]
fn the_kind_of_a_sink_may_stand_anywhere_in_its_section() {
    let shared = config("sinks: [{raw: true, type: console, name: last}]");
    assert_eq!(shared.sinks[0].name(), "last");
}

#[test]
fn several_errors_in_tagged_sections_are_told_apart() {
    let text = "\
sinks:
  - type: console
    raw: 1
    colour: x
    queue: {max_batches: many}
  - type: console
    name: b
    raw: 1
";
    let errors = errors(text);
    for expected in
        ["3:10: sinks[0].raw:", "4:5: sinks[0].colour:", "5:26: sinks[0].queue.max_batches:", "8:10: sinks[1].raw:"]
    {
        assert!(errors.iter().any(|error| error.contains(expected)), "{expected} is not in {errors:#?}");
    }
    assert_eq!(errors.len(), 4, "{errors:#?}");
}

#[test]
fn what_follows_from_an_error_is_no_error_of_its_own() {
    // Without its only items the list is empty, without its only glob the rule matches everything.
    for (text, expected) in [
        ("sinks: [{type: consol}]", "1:16: sinks[0].type: `consol`"),
        ("capture: {cgroup_roots: [7]}", "1:26: capture.cgroup_roots[0]: expected a string"),
        ("capture: {rules: [{match: {pods: [a]}}]}", "1:28: capture.rules[0].match.pods: unknown option"),
        ("node_name: [a]", "1:1: node_name: expected a string"),
    ] {
        let errors = errors(text);
        assert!(errors.len() == 1 && errors[0].contains(expected), "{text}: {errors:#?}");
    }
    // Items after one that was left out keep their number.
    let errors = errors("server: {include: [7, a, /b, 8, c]}");
    let places: Vec<_> = errors.iter().map(|error| error.split(": ").take(2).collect::<Vec<_>>().join(" ")).collect();
    let expected = ["20 server.include[0]", "23 server.include[1]", "30 server.include[3]", "33 server.include[4]"];
    assert_eq!(places, expected.map(|place| format!("sidestep.yaml:1:{place}")));
}

#[test]
fn every_error_is_reported_at_once_in_the_order_of_the_file() {
    let text = "\
node_nam: x
state_dir: relative
capture:
  ring_size: 3MiB
  attach: kprobe
  files:
    include: [ok, '[', 7]
  rules:
    - match: {namespace: [a], pods: [b]}
      logs: often
    - logs: false
log:
  level: 9
  colour: yes
";
    let places: Vec<_> = errors(text)
        .iter()
        .map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(" ").replace("sidestep.yaml:", ""))
        .collect();
    assert_eq!(
        places,
        [
            "1:1 node_nam",
            "2:12 state_dir",
            "4:14 capture.ring_size",
            "5:11 capture.attach",
            "7:19 capture.files.include[1]",
            "7:24 capture.files.include[2]",
            "9:31 capture.rules[0].match.pods",
            "10:13 capture.rules[0].logs",
            "11:7 capture.rules[1].match",
            "13:10 log.level",
            "14:3 log.colour",
        ]
    );
}

#[test]
fn text_that_is_no_yaml_is_named_with_its_place() {
    for (text, expected) in [
        ("a: [1\nb: 2\n", "2:2: this is not valid YAML: "),
        ("log:\n  level: 'info\n", ": this is not valid YAML: "),
        ("log: {}\nlog: {}\n", "2:1: the option `log` stands twice in the same section; remove one of them"),
        ("log:\n  level: info\n  level: warn\n", "3:3: the option `level` stands twice in the same section"),
        ("log: {}\n---\nlog: {}\n", "3:1: a second YAML document begins here; keep one document in the file"),
        ("log: *nowhere\n", "1:6: this is not valid YAML: alias references unknown anchor"),
        ("über: [1\nö: 2\n", "2:2: this is not valid YAML: "),
    ] {
        let errors = errors(text);
        assert_eq!(errors.len(), 1, "{text:?}: {errors:?}");
        assert!(errors[0].contains(expected), "{text:?}: {errors:?}");
    }
}

#[test]
fn anchors_work_and_bombs_do_not() {
    let shared = config("capture: {files: {include: &logs [/a/*]}}\nserver: {include: *logs}\n");
    assert_eq!(shared.server.files.include.patterns(), ["/a/*"]);
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let previous = format!("*a{},", level - 1).repeat(10);
        bomb += &format!("a{level}: &a{level} [{previous}]\n");
    }
    assert_eq!(errors(&bomb).len(), 1);
    let deep = "[".repeat(100_000);
    assert_eq!(errors(&deep).len(), 1);
}

#[test]
fn a_file_that_is_wrong_from_end_to_end_ends_the_search() {
    let text: String = (0..1000).map(|index| format!("option_{index}: 1\n")).collect();
    assert_eq!(errors(&text).len(), 50);
    let text = format!("capture:\n  cgroup_roots: [{}]", "1,".repeat(1000));
    assert_eq!(errors(&text).len(), 50);
}

#[test]
fn a_huge_file_is_answered_soon() {
    let started = Instant::now();
    for item in ["{type: console, raw: 1},", "{type: console},", "{type: console, raw: 1, name: 5},"] {
        let text = format!("sinks: [{}]", item.repeat(5_000));
        assert_eq!(errors(&text).len(), 50, "{item}");
    }
    let roots = format!("capture: {{cgroup_roots: [{}]}}", "7,x,".repeat(20_000));
    assert_eq!(errors(&roots).len(), 50);
    // Even a debug build on a busy machine: quadratic work would take many minutes.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn the_report_shows_the_line_as_compilers_do() {
    let error = Raw::parse("/etc/s.yaml", "log:\n  level: loud\n  fromat: json\n", &environment()).expect_err("wrong");
    assert_eq!(
        error.render(false),
        "\
error: `loud` is not allowed here
 --> /etc/s.yaml:2:10
  |
2 |   level: loud
  |          ^^^^
  |
  = note: option `log.level`
  = help: allowed here: `error`, `warn`, `info`, `debug`, `trace`

error: unknown option `fromat`
 --> /etc/s.yaml:3:3
  |
3 |   fromat: json
  |   ^^^^^^
  |
  = note: option `log.fromat`
  = help: did you mean `format`? Allowed here: `level`, `format`

error: /etc/s.yaml: 2 problems"
    );
    assert!(error.render(true).contains('\u{1b}'));
}

proptest! {
    /// Whatever stands in the file, there is an answer, and each problem has a place in the file.
    #[test]
    fn any_text_is_answered(text in "[a-z:\\- \n\\[\\]{}'\"#&*!|>%@?,0-9é\t]{0,200}") {
        if let Err(error) = Raw::parse("f", &text, &environment()) {
            prop_assert!(error.render(false).starts_with("error: "));
            let ConfigError::Invalid(report) = error else { panic!("{error}") };
            for problem in &report.problems {
                let (line, _) = report.position(problem);
                prop_assert!(line <= text.lines().count() + 1);
            }
        }
    }

    /// The example with one line damaged is answered too.
    #[test]
    fn a_damaged_example_is_answered(at in 0..EXAMPLE.len(), junk in "[\\[:{'a-z\n -]{1,4}") {
        if EXAMPLE.is_char_boundary(at) {
            let text = format!("{}{junk}{}", &EXAMPLE[..at], &EXAMPLE[at..]);
            if let Err(error) = Raw::parse("f", &text, &environment()) {
                prop_assert!(!error.render(true).is_empty());
            }
        }
    }
}
