//! From [`Raw`] to [`Config`]: what a type alone cannot say.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytesize::ByteSize;
use sidestep_abi::kernel::MAX_ROOTS;

use super::{
    Capture, CgroupPattern, Config, Files, Globs, Lines, Match, Raw, Rule, Server, Slash, StartAt, raw,
    report::Problem,
    units::{Percent, byte_size},
};
use crate::{
    assemble, attribute, kubernetes,
    policy::{
        self,
        settings::{FileSettings, MultilineSettings},
    },
    process::{MAX_PROCESSORS, ProcessorProblem, ProcessorSettings},
    sinks::{SinkSettings, config::InvalidSetting},
};

/// A quarter of the ring: three floods at once still leave room for the quiet ones.
pub(super) const DEFAULT_SHARE: Percent = match Percent::new(50) {
    Some(share) => share,
    None => unreachable!(),
};

const MIN_RING: u64 = 64 << 10;
const MAX_RING: u64 = 1 << 30;
/// `sun_path` has 108 bytes, with a zero at the end.
const MAX_SOCKET_BYTES: usize = 107;
/// What Kubernetes allows as the name of a node.
const MAX_NODE_NAME_BYTES: usize = 253;

/// A node has far fewer containers; an entry takes about a kilobyte.
const MAX_CACHED: usize = 1 << 20;

/// Checks everything.
///
/// # Errors
/// All that is wrong; the problems have a path and no span yet.
pub(super) fn validate(raw: &Raw) -> Result<Config, Vec<Problem>> {
    let mut check = Check::default();
    let node_name = check.node_name(raw.node_name.as_deref());
    check.path("state_dir", &raw.state_dir);
    check.path("socket", &raw.socket);
    if raw.socket.as_os_str().len() > MAX_SOCKET_BYTES {
        check.wrong(
            "socket",
            format!("the path has more than {MAX_SOCKET_BYTES} bytes, the kernel's limit for a socket"),
        );
    }
    check.duration("shutdown_timeout", raw.shutdown_timeout, Duration::ZERO, Duration::from_hours(1));
    let capture = check.capture(raw);
    let server = check.server(&raw.server);
    let lines = check.lines("lines", &raw.lines);
    check.identity(&raw.identity);
    check.kubernetes(&raw.kubernetes);
    for (index, path) in raw.policies.files.iter().enumerate() {
        check.path(&format!("policies.files[{index}]"), path);
    }
    check.processors(&raw.processors);
    check.sinks(&raw.sinks, raw.lines.max_line_bytes);
    check.template_labels(&raw.sinks, &raw.kubernetes);
    check.duration(
        "telemetry.sink_failing_limit",
        raw.telemetry.sink_failing_limit,
        Duration::from_secs(1),
        Duration::from_hours(24),
    );
    match (node_name, capture, server, lines, check.problems.is_empty()) {
        (Some(node_name), Some(capture), Some(server), Some(lines), true) => Ok(Config {
            node_name,
            state_dir: raw.state_dir.clone(),
            socket: raw.socket.clone(),
            shutdown_timeout: raw.shutdown_timeout,
            capture,
            server,
            lines,
            identity: raw.identity.clone(),
            kubernetes: raw.kubernetes.clone(),
            policies: raw.policies.clone(),
            processors: raw.processors.clone(),
            sinks: raw.sinks.clone(),
            telemetry_listen: raw.telemetry.listen,
            sink_failing_limit: raw.telemetry.sink_failing_limit,
            log: raw.log.clone(),
        }),
        _ => Err(check.problems),
    }
}

/// Collects problems: each method gives `None` exactly when it has noted one.
#[derive(Default)]
struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn wrong(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), span: None, message: message.into(), help: None });
    }

    fn node_name(&mut self, name: Option<&str>) -> Option<Arc<str>> {
        match name {
            None => self.wrong("node_name", "neither the configuration, the variable NODE_NAME nor the kernel has one"),
            Some("") => self.wrong("node_name", "the name may not be empty"),
            Some(name) if name.len() > MAX_NODE_NAME_BYTES => {
                self.wrong("node_name", format!("the name has more than {MAX_NODE_NAME_BYTES} bytes"));
            }
            Some(name) if name.chars().any(char::is_control) => {
                self.wrong("node_name", "the name may not have control characters");
            }
            Some(name) => return Some(Arc::from(name)),
        }
        None
    }

    fn path(&mut self, option: &str, path: &Path) {
        if !path.is_absolute() {
            self.wrong(option, format!("`{}` must be an absolute path", path.display()));
        }
    }

    fn duration(&mut self, option: &str, value: Duration, least: Duration, most: Duration) {
        if value < least || value > most {
            let [value, least, most] = [value, least, most].map(humantime::format_duration);
            self.wrong(option, format!("`{value}` is not between `{least}` and `{most}`"));
        }
    }

    fn capture(&mut self, raw: &Raw) -> Option<Capture> {
        let capture = &raw.capture;
        if capture.cgroup_roots.is_empty() {
            self.wrong("capture.cgroup_roots", "without a root nothing is captured; name at least one");
        }
        let cgroup_roots = self.cgroup_roots(capture);
        if let Some(mount) = &capture.cgroup_mount {
            self.path("capture.cgroup_mount", mount);
        }
        if let Some(pin) = &capture.pin {
            self.path("capture.pin", pin);
        }
        let ring_size = self.ring_size(capture.ring_size);
        let files = self.files("capture.files", &capture.files.include, &capture.files.exclude, capture.files.start_at);
        let rules: Vec<_> = capture.rules.iter().enumerate().map(|(index, rule)| self.rule(index, rule, raw)).collect();
        Some(Capture {
            cgroup_roots,
            cgroup_mount: capture.cgroup_mount.clone(),
            ring_size: ring_size?,
            container_share: capture.container_share,
            attach: capture.attach,
            pin: capture.pin.clone(),
            when_stopped: capture.when_stopped,
            runtime_logs: capture.runtime_logs,
            terminals: capture.terminals,
            files: files?,
            rules: rules.into_iter().collect::<Option<_>>()?,
        })
    }

    fn cgroup_roots(&mut self, capture: &raw::Capture) -> Vec<CgroupPattern> {
        let texts = &capture.cgroup_roots;
        if texts.len() > MAX_ROOTS {
            let message = format!("{} roots are more than the {MAX_ROOTS} that the kernel programs hold", texts.len());
            self.wrong("capture.cgroup_roots", message);
        }
        let mut roots: Vec<(usize, CgroupPattern)> = Vec::with_capacity(texts.len().min(MAX_ROOTS));
        for (index, text) in texts.iter().enumerate() {
            let path = format!("capture.cgroup_roots[{index}]");
            let pattern = match CgroupPattern::new(text, capture.cgroup_mount.as_deref()) {
                Ok(pattern) => pattern,
                Err(message) => {
                    self.wrong(path, message);
                    continue;
                }
            };
            // Beyond the limit nothing more is compared: a file of any length is answered soon.
            let overlapping = roots.iter().take(MAX_ROOTS).find(|(_, other)| pattern.overlaps(other));
            if let Some((first, other)) = overlapping {
                let message = if pattern == *other {
                    format!("`{text}` is named by `capture.cgroup_roots[{first}]` already; remove one of them")
                } else {
                    format!("`{text}` overlaps with `{other}`, `capture.cgroup_roots[{first}]`; keep the outer one")
                };
                self.wrong(path, message);
            }
            roots.push((index, pattern));
        }
        roots.into_iter().map(|(_, pattern)| pattern).collect()
    }

    fn ring_size(&mut self, bytes: u64) -> Option<NonZeroU32> {
        const OPTION: &str = "capture.ring_size";
        let [least, most, typed] = [MIN_RING, MAX_RING, bytes].map(byte_size::format);
        if !(MIN_RING..=MAX_RING).contains(&bytes) {
            self.wrong(OPTION, format!("`{typed}` is not between `{least}` and `{most}`"));
            return None;
        }
        if !bytes.is_power_of_two() {
            let above = bytes.next_power_of_two();
            let [below, above] = [above / 2, above].map(byte_size::format);
            self.wrong(OPTION, format!("`{typed}` is not a power of two; the next ones are `{below}` and `{above}`"));
            return None;
        }
        u32::try_from(bytes).ok().and_then(NonZeroU32::new)
    }

    fn rule(&mut self, index: usize, rule: &raw::Rule, raw: &Raw) -> Option<Rule> {
        let path = format!("capture.rules[{index}]");
        let raw::Match { namespace, pod, container, image } = &rule.matches;
        if [namespace, pod, container, image].iter().all(|globs| globs.is_empty()) {
            self.wrong(
                format!("{path}.match"),
                "the rule matches every container; say so with `pod: [\"*\"]`, or name some by `namespace`, `pod`, \
                 `container` or `image`",
            );
        }
        let namespace = self.names(&format!("{path}.match.namespace"), namespace);
        let pod = self.names(&format!("{path}.match.pod"), pod);
        let container = self.names(&format!("{path}.match.container"), container);
        let image = self.names(&format!("{path}.match.image"), image);
        let general = &raw.capture.files;
        let own = rule.files.clone().unwrap_or_default();
        // Inherited globs are checked where they stand, so a mistake there is not reported again for each rule.
        let include = own.include.unwrap_or_else(|| compiling(&general.include));
        let exclude = own.exclude.unwrap_or_else(|| compiling(&general.exclude));
        let start_at = own.start_at.unwrap_or(general.start_at);
        let files = self.files(&format!("{path}.files"), &include, &exclude, start_at);
        let mut lines = raw.lines.clone();
        if let Some(multiline) = &rule.multiline {
            lines.multiline = multiline.clone();
        }
        if let Some(parse) = &rule.parse {
            lines.parse = parse.clone();
        }
        // What is inherited is checked where it stands; an option of the rule has its path below the rule.
        let has_own = rule.multiline.is_some() || rule.parse.is_some();
        let lines = if has_own { self.lines(&path, &lines) } else { Lines::new(lines).ok() };
        Some(Rule {
            matches: Match { namespace: namespace?, pod: pod?, container: container?, image: image? },
            logs: rule.logs.unwrap_or(true),
            files: files?,
            lines: lines?,
            declares: declared_by(rule),
        })
    }

    fn server(&mut self, server: &raw::Server) -> Option<Server> {
        self.duration("server.poll_interval", server.poll_interval, Duration::from_millis(10), Duration::from_hours(1));
        for (index, pattern) in server.include.iter().enumerate() {
            if !pattern.starts_with('/') {
                let message = format!("`{pattern}` must begin with `/`: the whole node is never searched");
                self.wrong(format!("server.include[{index}]"), message);
            }
        }
        let files = self.files("server", &server.include, &server.exclude, server.start_at)?;
        Some(Server { files, poll_interval: server.poll_interval })
    }

    fn files(&mut self, path: &str, include: &[String], exclude: &[String], start_at: StartAt) -> Option<Files> {
        let include = self.globs(&format!("{path}.include"), include, Slash::Separates);
        let exclude = self.globs(&format!("{path}.exclude"), exclude, Slash::Separates);
        Some(Files { include: include?, exclude: exclude?, start_at })
    }

    fn names(&mut self, path: &str, patterns: &[String]) -> Option<Globs> {
        self.globs(path, patterns, Slash::IsPlain)
    }

    fn globs(&mut self, path: &str, patterns: &[String], slash: Slash) -> Option<Globs> {
        match Globs::new(patterns, slash) {
            Ok(globs) => Some(globs),
            Err(errors) => {
                for (index, message) in errors {
                    self.wrong(format!("{path}[{index}]"), message);
                }
                None
            }
        }
    }

    fn lines(&mut self, path: &str, settings: &assemble::Settings) -> Option<Lines> {
        match Lines::new(settings.clone()) {
            Ok(lines) => Some(lines),
            Err(errors) => {
                for error in &errors {
                    // An error begins with the option's path below the settings.
                    let text = error.on_one_line();
                    let (option, message) = text.split_once(": ").unwrap_or(("", &text));
                    let separator = if option.is_empty() { "" } else { "." };
                    self.wrong(format!("{path}{separator}{option}"), message);
                }
                None
            }
        }
    }

    fn identity(&mut self, identity: &attribute::Settings) {
        let attribute::Settings { host_root, pod_logs, exited_containers, live_cgroups, .. } = identity;
        self.path("identity.host_root", host_root);
        self.path("identity.pod_logs", pod_logs);
        let lists = [
            ("containerd_state", &identity.containerd_state),
            ("docker_root", &identity.docker_root),
            ("container_storage", &identity.container_storage),
            ("runc_state", &identity.runc_state),
            ("crun_state", &identity.crun_state),
        ];
        for (option, paths) in lists {
            for (index, path) in paths.iter().enumerate() {
                self.path(&format!("identity.{option}[{index}]"), path);
            }
        }
        for (option, count) in [("exited_containers", exited_containers), ("live_cgroups", live_cgroups)] {
            if !(1..=MAX_CACHED).contains(count) {
                self.wrong(format!("identity.{option}"), format!("`{count}` is not between `1` and `{MAX_CACHED}`"));
            }
        }
    }

    fn kubernetes(&mut self, settings: &kubernetes::Settings) {
        if let Some(path) = &settings.kubeconfig {
            self.path("kubernetes.kubeconfig", path);
        }
        let lists = [
            ("labels", &settings.labels),
            ("annotations", &settings.annotations),
            ("namespace_labels", &settings.namespace_labels),
            ("metric_labels", &settings.metric_labels),
        ];
        for (option, patterns) in lists {
            self.globs(&format!("kubernetes.{option}"), patterns, Slash::IsPlain);
        }
        self.duration("kubernetes.wait", settings.wait, Duration::ZERO, Duration::from_mins(1));
    }

    fn processors(&mut self, processors: &[ProcessorSettings]) {
        if processors.len() > MAX_PROCESSORS {
            self.wrong(
                "processors",
                format!("{} are more than the {MAX_PROCESSORS} that there may be", processors.len()),
            );
        }
        let mut names = HashMap::new();
        for (index, processor) in processors.iter().enumerate().take(MAX_PROCESSORS) {
            for ProcessorProblem { option, problem } in processor.problems() {
                self.wrong(format!("processors[{index}].{option}"), format!("`{option}` {problem}"));
            }
            let name = processor.name();
            let first = *names.entry(name).or_insert(index);
            if first != index {
                let message =
                    format!("the name `{name}` is that of `processors[{first}]` too; each needs its own `name`");
                self.wrong(format!("processors[{index}].name"), message);
            }
        }
    }

    /// A buffer on disk has of a Pod what records have, so names are made of nothing else.
    fn template_labels(&mut self, sinks: &[SinkSettings], kubernetes: &kubernetes::Settings) {
        let Ok(allowed) = Globs::new(&kubernetes.labels, Slash::IsPlain) else { return };
        for (index, sink) in sinks.iter().enumerate() {
            for key in sink.labels().into_iter().filter(|key| !allowed.is_match(key)) {
                let option = if matches!(sink, SinkSettings::Kafka(_)) { "topic" } else { "index" };
                let message =
                    format!("`{{label:{key}}}` is a label that records don't have; add it to `kubernetes.labels`");
                self.wrong(format!("sinks[{index}].{option}"), message);
            }
        }
    }

    fn sinks(&mut self, sinks: &[SinkSettings], max_line_bytes: ByteSize) {
        if sinks.is_empty() {
            self.wrong("sinks", "without a sink nothing leaves the node; name at least one");
        }
        let mut names = HashMap::new();
        let mut paths = HashMap::new();
        for (index, sink) in sinks.iter().enumerate() {
            for InvalidSetting { option, problem } in
                sink.problems().into_iter().chain(sink.line_problem(max_line_bytes))
            {
                self.wrong(format!("sinks[{index}].{option}"), format!("`{option}` {problem}"));
            }
            let name = sink.name();
            let first = *names.entry(name).or_insert(index);
            if first != index {
                let message =
                    format!("the name `{name}` is that of `sinks[{first}]` too; each sink needs its own `name`");
                self.wrong(format!("sinks[{index}].name"), message);
            }
            let SinkSettings::File(file) = sink else { continue };
            // Components, so that `/a//b/` is `/a/b`.
            let first = *paths.entry(file.path.components().collect::<PathBuf>()).or_insert(index);
            if first != index {
                let path = file.path.display();
                let message = format!("`{path}` is the directory of `sinks[{first}]` too; each sink needs its own");
                self.wrong(format!("sinks[{index}].path"), message);
            }
        }
    }
}

/// What a rule says itself.
fn declared_by(rule: &raw::Rule) -> policy::Settings {
    let files = rule.files.clone().unwrap_or_default();
    policy::Settings {
        enabled: rule.logs,
        files: FileSettings { include: files.include, exclude: files.exclude, start_at: files.start_at },
        multiline: rule.multiline.as_ref().map(MultilineSettings::of),
        parse: rule.parse.as_ref().map(|parse| parse.format),
        ..policy::Settings::default()
    }
}

/// Those that are globs.
fn compiling(patterns: &[String]) -> Vec<String> {
    let compiles = |pattern: &&String| Globs::new(std::slice::from_ref(pattern), Slash::Separates).is_ok();
    patterns.iter().filter(compiles).cloned().collect()
}
