//! The configuration as typed: every option with its default, nothing checked beyond its type.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    tagged,
    units::{self, Percent},
};
use crate::{
    assemble::{self, Multiline, Parse},
    attribute, kubernetes,
    policy::Allowed,
    process::ProcessorSettings,
    sinks::SinkSettings,
};

/// The whole file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// `host.name` of every record; from the environment or the kernel when not given.
    pub node_name: Option<String>,
    /// What survives a restart: positions in files.
    pub state_dir: PathBuf,
    /// The socket of `sidestep logs` and `sidestep status`.
    pub socket: PathBuf,
    /// How long SIGTERM waits for what is on its way.
    #[serde(with = "units::duration")]
    pub shutdown_timeout: Duration,
    /// What is taken from containers.
    pub capture: Capture,
    /// The node's own log files.
    pub server: Server,
    /// From bytes to lines.
    pub lines: assemble::Settings,
    /// Who wrote.
    pub identity: attribute::Settings,
    /// What the API server tells of Pods.
    pub kubernetes: kubernetes::Settings,
    /// What may be declared for Pods.
    pub policies: Policies,
    /// What is done with lines before they go there.
    #[serde(deserialize_with = "tagged::deserialize")]
    pub processors: Vec<ProcessorSettings>,
    /// Where records go.
    #[serde(deserialize_with = "tagged::deserialize")]
    pub sinks: Vec<SinkSettings>,
    /// The HTTP endpoint.
    pub telemetry: Telemetry,
    /// What the agent says of itself.
    pub log: Log,
}

/// What is taken from containers, and how.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capture {
    /// Where containers live in the cgroup v2 hierarchy.
    pub cgroup_roots: Vec<String>,
    /// Where that hierarchy is mounted; found when not given.
    pub cgroup_mount: Option<PathBuf>,
    /// Bytes of the ring between kernel and agent.
    #[serde(with = "units::byte_size")]
    pub ring_size: u64,
    /// The part of the ring that one container may hold.
    pub container_share: Percent,
    /// How the probes are attached.
    pub attach: Attach,
    /// Where programs and maps are pinned; `null` when they end with the agent.
    pub pin: Option<PathBuf>,
    /// What becomes of the pinned programs when the agent stops.
    pub when_stopped: WhenStopped,
    /// Whether what the ring could not hold is taken from the runtimes' logs.
    pub runtime_logs: bool,
    /// Whether terminals count as stdout.
    pub terminals: bool,
    /// Log files in containers.
    pub files: Files,
    /// What is different for some containers.
    pub rules: Vec<Rule>,
}

/// How the probes see the end of a system call.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Attach {
    /// The first of the others that the kernel has, in their order here.
    #[default]
    Auto,
    /// `fexit` on the system calls' wrappers.
    Fexit,
    /// The tracepoints `syscalls:sys_exit_*`.
    Tracepoint,
    /// The raw tracepoint `sys_exit`.
    RawTracepoint,
}

/// What becomes of pinned programs when the agent stops.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenStopped {
    /// They go on collecting into the ring, for the next agent.
    #[default]
    Keep,
    /// They are detached and removed.
    Unload,
}

/// Which log files of a container are read.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// Globs over the path as the container sees it.
    pub include: Vec<String>,
    /// Globs over paths that are left out all the same.
    pub exclude: Vec<String>,
    /// Where to begin in a file that was there before the agent.
    pub start_at: StartAt,
}

/// Where to begin in a file that was there before the agent first saw it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StartAt {
    /// At its first byte.
    Beginning,
    /// At its end: only what is written from now on.
    #[default]
    End,
}

/// What is different for the containers that match.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// Which containers: those for which all that is given holds.
    #[serde(rename = "match")]
    pub matches: Match,
    /// Whether anything of them is captured.
    pub logs: Option<bool>,
    /// Their log files.
    pub files: Option<RuleFiles>,
    /// Which of their lines are joined.
    pub multiline: Option<Multiline>,
    /// Whether their bodies are parsed.
    pub parse: Option<Parse>,
}

/// Globs over what is known of a container; an empty list says nothing.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// `k8s.namespace.name`.
    pub namespace: Vec<String>,
    /// `k8s.pod.name`.
    pub pod: Vec<String>,
    /// `container.name`.
    pub container: Vec<String>,
    /// `container.image.name`, with tag or digest.
    pub image: Vec<String>,
}

/// A rule's own [`Files`]; what is not given is taken from `capture.files`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuleFiles {
    /// In the place of `capture.files.include`.
    pub include: Option<Vec<String>>,
    /// In the place of `capture.files.exclude`.
    pub exclude: Option<Vec<String>>,
    /// In the place of `capture.files.start_at`.
    pub start_at: Option<StartAt>,
}

/// The node's own log files.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Globs over paths on the node.
    pub include: Vec<String>,
    /// Globs over paths that are left out all the same.
    pub exclude: Vec<String>,
    /// Where to begin in a file that was there before the agent.
    pub start_at: StartAt,
    /// How often new files and new bytes are looked for.
    #[serde(with = "units::duration")]
    pub poll_interval: Duration,
}

/// What may be declared for Pods, and where.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policies {
    /// Whether annotations `sidestep.dev/` of Pods count.
    pub annotations: bool,
    /// Whether `SidestepPolicy` and `ClusterSidestepPolicy` are watched.
    pub resources: bool,
    /// Globs over the tenants that Pods and policies of namespaces may choose.
    pub allow_tenants: Allowed,
    /// Files with policies, and directories of such files.
    pub files: Vec<PathBuf>,
    /// Whether what the node itself sends to a Pod is let through, whatever policies say.
    pub exempt_node: bool,
}

/// The HTTP endpoint.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Where it listens; nowhere when null.
    #[serde(with = "units::address")]
    pub listen: Option<SocketAddr>,
    /// How long a sink may fail before the agent is not ready.
    #[serde(with = "units::duration")]
    pub sink_failing_limit: Duration,
}

/// What the agent says of itself, on its standard error.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// From which level on.
    pub level: LogLevel,
    /// For people or for machines.
    pub format: LogFormat,
}

/// How much the agent says.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what needs somebody.
    Error,
    /// What works less well than it should.
    Warn,
    /// What happens seldom.
    #[default]
    Info,
    /// What helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

/// How the agent says it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

impl Raw {
    /// What may be wrong on this machine and right where the agent is to run: files that sinks name and that can't be read.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let unreadable = |(index, sink): (usize, &SinkSettings)| {
            let faults = sink.files().into_iter().filter_map(|file| file.read().err());
            faults.map(|fault| format!("sinks[{index}], `{}`: {fault}", sink.name())).collect::<Vec<_>>()
        };
        self.sinks.iter().enumerate().flat_map(unreadable).collect()
    }
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            node_name: None,
            state_dir: PathBuf::from("/var/lib/sidestep"),
            socket: PathBuf::from(super::DEFAULT_SOCKET),
            shutdown_timeout: Duration::from_secs(10),
            capture: Capture::default(),
            server: Server::default(),
            lines: assemble::Settings::default(),
            identity: attribute::Settings::default(),
            kubernetes: kubernetes::Settings::default(),
            policies: Policies::default(),
            processors: Vec::new(),
            sinks: super::default_sinks(),
            telemetry: Telemetry::default(),
            log: Log::default(),
        }
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            cgroup_roots: strings(&[
                "/kubepods",
                "/kubepods.slice",
                "/kubelet/kubepods",
                "/kubelet.slice/kubelet-kubepods.slice",
                "/docker",
                "/system.slice/docker-*.scope",
                "/system.slice/cri-containerd-*.scope",
                "/system.slice/crio-*.scope",
                "/system.slice/nerdctl-*.scope",
                "/machine.slice",
            ]),
            cgroup_mount: None,
            ring_size: 16 << 20,
            container_share: super::validate::DEFAULT_SHARE,
            attach: Attach::Auto,
            pin: Some(super::DEFAULT_PIN.into()),
            when_stopped: WhenStopped::Keep,
            runtime_logs: true,
            terminals: true,
            files: Files::default(),
            rules: Vec::new(),
        }
    }
}

impl Default for Files {
    fn default() -> Self {
        Self {
            include: strings(&["/var/log/**", "**/*.log"]),
            exclude: strings(&[
                COMPRESSED,
                "**/*.journal",
                "/var/log/{btmp,faillog,lastlog,tallylog,wtmp}*",
                "/{dev,proc,sys}/**",
                "/memfd:*",
            ]),
            start_at: StartAt::End,
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            include: strings(&[
                "/var/log/*.log",
                "/var/log/{cron,maillog,messages,secure,syslog}",
                "/var/log/audit/audit.log",
            ]),
            exclude: strings(&[COMPRESSED, "/var/log/{containers,pods}/**"]),
            start_at: StartAt::End,
            poll_interval: Duration::from_secs(1),
        }
    }
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            annotations: true,
            resources: true,
            allow_tenants: Allowed::default(),
            files: Vec::new(),
            exempt_node: true,
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))), sink_failing_limit: Duration::from_secs(60) }
    }
}

/// What log rotation leaves: its bytes were read before they were compressed.
const COMPRESSED: &str = "**/*.{bz2,gz,lz4,xz,zip,zst}";

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}
