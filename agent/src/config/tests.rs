use std::{collections::BTreeSet, fs, io::Write, path::Path};

use proptest::prelude::*;

use super::{
    tree::{Node, Value},
    *,
};
use crate::record::Resource;

fn environment() -> Environment {
    Environment { node_name: None, host_name: Some("node-1".to_owned()) }
}

fn config(text: &str) -> Config {
    Raw::parse("sidestep.yaml", text, &environment()).unwrap_or_else(|error| panic!("{error}")).1
}

/// The report as one line for each problem.
fn errors(text: &str) -> Vec<String> {
    let error = Raw::parse("sidestep.yaml", text, &environment()).expect_err("wrong");
    error.to_string().lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_error(text: &str, expected: &str) {
    assert_eq!(errors(text), [expected], "{text}");
}

/// The options of a file as paths, lists as `[]`.
fn option_paths(text: &str) -> BTreeSet<String> {
    fn walk(node: &Node, path: &str, into: &mut BTreeSet<String>) {
        match &node.value {
            Value::Mapping(entries) => {
                for entry in entries {
                    let path = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                    into.insert(path.clone());
                    walk(&entry.node, &path, into);
                }
            }
            Value::Sequence(items) => items.iter().for_each(|item| walk(item, &format!("{path}[]"), into)),
            _ => {}
        }
    }
    let mut paths = BTreeSet::new();
    walk(&Node::parse(text).unwrap_or_else(|problem| panic!("{problem:?}")), "", &mut paths);
    paths
}

/// The example with what it shows in the place of empty lists.
fn example_in_full() -> String {
    let shown = |line: &'static str| line.strip_prefix('#').filter(|rest| rest.starts_with("  "));
    let mut lines = EXAMPLE.lines().peekable();
    let mut full = Vec::new();
    while let Some(line) = lines.next() {
        let is_replaced = lines.peek().and_then(|next| shown(next)).is_some_and(|next| line == format!("{next} []"));
        if !is_replaced {
            full.push(shown(line).unwrap_or(line));
        }
    }
    full.join("\n")
}

#[test]
fn an_empty_file_is_all_defaults() {
    for text in ["", "\n", "# only a comment\n", "---\n", "capture:\nlines:\n", "{}"] {
        let (raw, config) =
            Raw::parse("sidestep.yaml", text, &environment()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert_eq!(raw, Raw { node_name: Some("node-1".to_owned()), ..Raw::default() }, "{text:?}");
        assert_eq!(&*config.node_name, "node-1");
        assert_eq!(config.capture.ring_size.get(), 16 << 20);
    }
}

#[test]
fn the_example_is_the_defaults_and_names_every_option() {
    let (raw, _) = Raw::parse("example.yaml", EXAMPLE, &Environment::default().with_host("x")).expect("valid");
    assert_eq!(raw, Raw { node_name: Some("x".to_owned()), ..Raw::default() });
    let defaults = serde_saphyr::to_string(&Raw::default()).expect("serializes");
    let missing: Vec<_> = option_paths(&defaults).difference(&option_paths(EXAMPLE)).cloned().collect();
    assert!(missing.is_empty(), "the example does not name {missing:?}");
}

#[test]
fn what_the_example_shows_in_the_place_of_lists_is_valid_and_names_every_option() {
    let text = example_in_full();
    let (raw, _) = Raw::parse("example.yaml", &text, &environment()).unwrap_or_else(|error| panic!("{error}"));
    let rule = &raw.capture.rules[0];
    let mut full = Raw { capture: raw::Capture { rules: vec![rule.clone()], ..Default::default() }, ..Raw::default() };
    // Where the example leaves an option of a rule out, its key is in the serialized form only.
    full.lines.multiline.patterns.clone_from(&raw.lines.multiline.patterns);
    let serialized = serde_saphyr::to_string(&full).expect("serializes");
    let inherited = |path: &String| {
        ["capture.rules[].multiline.", "capture.rules[].parse."].iter().any(|section| path.starts_with(section))
    };
    let missing: Vec<_> =
        option_paths(&serialized).difference(&option_paths(&text)).filter(|path| !inherited(path)).cloned().collect();
    assert!(missing.is_empty(), "the example does not name {missing:?}");
    let pattern = &raw.lines.multiline.patterns[0];
    assert!(pattern.start.is_some() && pattern.continuation.is_some());
}

#[test]
fn what_is_shown_is_read_back_as_the_same() {
    for text in [EXAMPLE.to_owned(), example_in_full()] {
        let (raw, config) = Raw::parse("a", &text, &environment()).unwrap_or_else(|error| panic!("{error}"));
        let (again, config_again) = Raw::parse("b", &raw.to_yaml(), &Environment::default()).expect("valid");
        assert_eq!((raw, config), (again, config_again));
    }
}

#[test]
fn a_name_comes_from_the_file_then_the_environment_then_the_kernel() {
    let environment = Environment { node_name: Some("from-env".to_owned()), host_name: Some("kernel".to_owned()) };
    let name = |text| Raw::parse("f", text, &environment).expect("valid").1.node_name;
    assert_eq!(&*name("node_name: typed"), "typed");
    assert_eq!(&*name(""), "from-env");
    let error = Config::defaults(&Environment::default()).expect_err("no name");
    assert!(error.to_string().contains("node_name: neither the configuration"), "{error}");
}

#[test]
fn an_unknown_option_is_named_with_its_place_and_what_was_meant() {
    assert_error(
        "capture:\n  ring_sizes: 1MiB\n",
        "sidestep.yaml:2:3: capture.ring_sizes: unknown option `ring_sizes`; did you mean `ring_size`? Allowed here: \
         `cgroup_roots`, `cgroup_mount`, `ring_size`, `container_share`, `attach`, `terminals`, `files`, `rules`",
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
        ("- a", "1:3: expected a section of options, found a list"),
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

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("sidestep.yaml");
    let load = |path: &Path| Config::load(path, &environment()).expect_err("refused");
    let missing = load(&path);
    assert!(matches!(&missing, ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
    assert!(missing.to_string().contains(&path.display().to_string()), "{missing}");
    let is_directory = load(directory.path());
    assert!(
        matches!(&is_directory, ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::IsADirectory)
    );
    // Root reads what has no permissions; a descriptor that was opened for writing alone refuses root too.
    let closed = fs::OpenOptions::new().write(true).create(true).truncate(true).open(&path).expect("made");
    let not_readable = load(Path::new("/proc/self/mem"));
    assert!(matches!(not_readable, ConfigError::Read { .. }), "{not_readable}");
    drop(closed);
    fs::write(&path, b"log:\n  level: \xffinfo\n").expect("written");
    let not_text = load(&path);
    assert!(matches!(not_text, ConfigError::NotText { line: 2, column: 10, byte: 0xff, .. }), "{not_text}");
    let mut file = fs::File::create(&path).expect("made");
    for _ in 0..10 {
        file.write_all(&vec![b'#'; 1 << 20]).expect("written");
    }
    let large = load(&path);
    assert!(matches!(large, ConfigError::TooLarge { .. }), "{large}");
    assert!(large.render(false).starts_with("error: the configuration"), "{}", large.render(false));
    fs::write(&path, "\u{feff}log:\r\n  level: warn\r\n").expect("written");
    assert_eq!(Config::load(&path, &environment()).expect("valid").log.level, LogLevel::Warn);
    fs::write(&path, "").expect("written");
    assert!(Config::load(&path, &environment()).is_ok());
}

#[test]
fn the_first_rule_that_matches_decides_and_inherits() {
    let config = config(
        "
capture:
  files: {include: [/general/**], start_at: beginning}
  rules:
    - match: {namespace: [kube-*], container: [proxy]}
      logs: false
    - match: {image: ['registry/*']}
      files: {exclude: ['**/skip.log']}
",
    );
    let resource = |namespace: Option<&str>, container: &str, image: &str| Resource {
        namespace: namespace.map(Into::into),
        container_name: Some(container.into()),
        image: Some(image.into()),
        ..Resource::default()
    };
    let logs = |resource: &Resource| config.capture.rule(resource).map(|rule| rule.logs);
    assert_eq!(logs(&resource(Some("kube-system"), "proxy", "registry/a/b:1")), Some(false));
    assert_eq!(logs(&resource(Some("kube-system"), "app", "registry/a/b:1")), Some(true));
    assert_eq!(logs(&resource(None, "proxy", "other")), None);
    let files = &config.capture.rules[1].files;
    assert!(files.matches("/general/a.log") && !files.matches("/general/skip.log") && !files.matches("/x.log"));
    assert_eq!(files.start_at, StartAt::Beginning);
}

#[test]
fn the_default_paths_are_logs_and_nothing_else() {
    let config = config("");
    for path in ["/var/log/app", "/var/log/nginx/access.log", "/srv/a/b.log", "/a.log"] {
        assert!(config.capture.files.matches(path), "{path}");
    }
    for path in
        ["/var/log/a.log.1.gz", "/var/log/wtmp", "/var/log/journal/x/system.journal", "/etc/passwd", "/a.log.bak"]
    {
        assert!(!config.capture.files.matches(path), "{path}");
    }
    assert!(config.server.files.matches("/var/log/syslog") && config.server.files.matches("/var/log/kern.log"));
    assert!(!config.server.files.matches("/var/log/containers/a.log"));
}

#[test]
fn changes_are_named_and_only_those_in_place_are_taken_over() {
    let old = config("");
    assert!(old.diff(&old).is_empty());
    assert_eq!(old.diff(&old).to_string(), "nothing changed");
    let new = config("socket: /s\nlog: {level: debug, format: json}\ncapture: {ring_size: 1MiB, terminals: false}");
    let changes = old.diff(&new);
    assert_eq!(
        changes.to_string(),
        "changed: capture.terminals, log.level; after a restart: socket, capture.ring_size, log.format"
    );
    assert!(changes.contains(Part::RingSize) && !changes.contains(Part::Sinks));
    let next = old.with_in_place_changes(&new);
    assert_eq!((next.log.level, next.log.format), (LogLevel::Debug, LogFormat::Text));
    assert_eq!((next.capture.ring_size, next.capture.terminals), (old.capture.ring_size, false));
    assert_eq!(next.diff(&new).in_place().count(), 0);
}

/// For each part a configuration in which it alone is other than the default.
#[test]
fn every_part_is_seen_and_copied() {
    let old = config("");
    let texts = [
        (Part::NodeName, "node_name: other"),
        (Part::StateDir, "state_dir: /other"),
        (Part::Socket, "socket: /other"),
        (Part::ShutdownTimeout, "shutdown_timeout: 1s"),
        (Part::CgroupRoots, "capture: {cgroup_roots: [/other]}"),
        (Part::CgroupMount, "capture: {cgroup_mount: /other}"),
        (Part::RingSize, "capture: {ring_size: 1MiB}"),
        (Part::ContainerShare, "capture: {container_share: 1%}"),
        (Part::Attach, "capture: {attach: fexit}"),
        (Part::Terminals, "capture: {terminals: false}"),
        (Part::Files, "capture: {files: {start_at: beginning}}"),
        (Part::Rules, "capture: {rules: [{match: {pod: [x]}}]}"),
        (Part::Server, "server: {poll_interval: 2s}"),
        (Part::Lines, "lines: {idle_flush: 1s}"),
        (Part::Identity, IDENTITY_CHANGED),
        (Part::Sinks, SINKS_CHANGED),
        (Part::TelemetryListen, "telemetry: {listen: null}"),
        (Part::LogLevel, "log: {level: warn}"),
        (Part::LogFormat, "log: {format: json}"),
    ];
    assert_eq!(texts.map(|(part, _)| part), Part::ALL);
    for (part, text) in texts {
        let new = config(text);
        assert_ne!(new, old, "{part:?}");
        assert_eq!(old.diff(&new).to_string().contains("restart"), !part.changes_in_place(), "{part:?}");
        assert!(old.diff(&new).contains(part), "{part:?}");
        let next = old.with_in_place_changes(&new);
        assert_eq!(next == new, part.changes_in_place(), "{part:?}");
    }
}

impl Environment {
    fn with_host(mut self, name: &str) -> Self {
        self.host_name = Some(name.to_owned());
        self
    }
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

const IDENTITY_CHANGED: &str = "identity: {live_cgroups: 1}";
const SINKS_CHANGED: &str = "sinks: [{type: console, name: other}]";
