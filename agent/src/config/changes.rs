//! What a new configuration changes in a running agent.

use std::fmt;

use super::Config;

/// A part of the configuration that changes as a whole.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Part {
    /// `node_name`
    NodeName,
    /// `state_dir`
    StateDir,
    /// `socket`
    Socket,
    /// `shutdown_timeout`
    ShutdownTimeout,
    /// `capture.cgroup_roots`
    CgroupRoots,
    /// `capture.cgroup_mount`
    CgroupMount,
    /// `capture.ring_size`
    RingSize,
    /// `capture.container_share`
    ContainerShare,
    /// `capture.attach`
    Attach,
    /// `capture.pin`
    Pin,
    /// `capture.when_stopped`
    WhenStopped,
    /// `capture.runtime_logs`
    RuntimeLogs,
    /// `capture.terminals`
    Terminals,
    /// `capture.files`
    Files,
    /// `capture.rules`
    Rules,
    /// `server`
    Server,
    /// `lines`
    Lines,
    /// `identity`
    Identity,
    /// `kubernetes`
    Kubernetes,
    /// `policies`
    Policies,
    /// `processors`
    Processors,
    /// `sinks`
    Sinks,
    /// `telemetry.listen`
    TelemetryListen,
    /// `telemetry.sink_failing_limit`
    SinkFailingLimit,
    /// `log.level`
    LogLevel,
    /// `log.format`
    LogFormat,
}

impl Part {
    /// Every part, in the order of the file.
    pub const ALL: [Self; 26] = [
        Self::NodeName,
        Self::StateDir,
        Self::Socket,
        Self::ShutdownTimeout,
        Self::CgroupRoots,
        Self::CgroupMount,
        Self::RingSize,
        Self::ContainerShare,
        Self::Attach,
        Self::Pin,
        Self::WhenStopped,
        Self::RuntimeLogs,
        Self::Terminals,
        Self::Files,
        Self::Rules,
        Self::Server,
        Self::Lines,
        Self::Identity,
        Self::Kubernetes,
        Self::Policies,
        Self::Processors,
        Self::Sinks,
        Self::TelemetryListen,
        Self::SinkFailingLimit,
        Self::LogLevel,
        Self::LogFormat,
    ];

    /// The option's path in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeName => "node_name",
            Self::StateDir => "state_dir",
            Self::Socket => "socket",
            Self::ShutdownTimeout => "shutdown_timeout",
            Self::CgroupRoots => "capture.cgroup_roots",
            Self::CgroupMount => "capture.cgroup_mount",
            Self::RingSize => "capture.ring_size",
            Self::ContainerShare => "capture.container_share",
            Self::Attach => "capture.attach",
            Self::Pin => "capture.pin",
            Self::WhenStopped => "capture.when_stopped",
            Self::RuntimeLogs => "capture.runtime_logs",
            Self::Terminals => "capture.terminals",
            Self::Files => "capture.files",
            Self::Rules => "capture.rules",
            Self::Server => "server",
            Self::Lines => "lines",
            Self::Identity => "identity",
            Self::Kubernetes => "kubernetes",
            Self::Policies => "policies",
            Self::Processors => "processors",
            Self::Sinks => "sinks",
            Self::TelemetryListen => "telemetry.listen",
            Self::SinkFailingLimit => "telemetry.sink_failing_limit",
            Self::LogLevel => "log.level",
            Self::LogFormat => "log.format",
        }
    }

    /// Whether a running agent can take it over: what the kernel was loaded with, and what others find the agent
    /// by, stays until a restart.
    #[must_use]
    pub const fn changes_in_place(self) -> bool {
        match self {
            Self::ShutdownTimeout
            | Self::Terminals
            | Self::Files
            | Self::Rules
            | Self::Server
            | Self::Lines
            | Self::Processors
            | Self::Sinks
            | Self::LogLevel => true,
            Self::NodeName
            | Self::StateDir
            | Self::Socket
            | Self::CgroupRoots
            | Self::CgroupMount
            | Self::RingSize
            | Self::ContainerShare
            | Self::Attach
            | Self::Pin
            | Self::WhenStopped
            | Self::RuntimeLogs
            | Self::Identity
            | Self::Kubernetes
            | Self::Policies
            | Self::TelemetryListen
            | Self::SinkFailingLimit
            | Self::LogFormat => false,
        }
    }

    fn differs(self, old: &Config, new: &Config) -> bool {
        match self {
            Self::NodeName => old.node_name != new.node_name,
            Self::StateDir => old.state_dir != new.state_dir,
            Self::Socket => old.socket != new.socket,
            Self::ShutdownTimeout => old.shutdown_timeout != new.shutdown_timeout,
            Self::CgroupRoots => old.capture.cgroup_roots != new.capture.cgroup_roots,
            Self::CgroupMount => old.capture.cgroup_mount != new.capture.cgroup_mount,
            Self::RingSize => old.capture.ring_size != new.capture.ring_size,
            Self::ContainerShare => old.capture.container_share != new.capture.container_share,
            Self::Attach => old.capture.attach != new.capture.attach,
            Self::Pin => old.capture.pin != new.capture.pin,
            Self::WhenStopped => old.capture.when_stopped != new.capture.when_stopped,
            Self::Terminals => old.capture.terminals != new.capture.terminals,
            Self::RuntimeLogs => old.capture.runtime_logs != new.capture.runtime_logs,
            Self::Files => old.capture.files != new.capture.files,
            Self::Rules => old.capture.rules != new.capture.rules,
            Self::Server => old.server != new.server,
            Self::Lines => old.lines != new.lines,
            Self::Identity => old.identity != new.identity,
            Self::Kubernetes => old.kubernetes != new.kubernetes,
            Self::Policies => old.policies != new.policies,
            Self::Processors => old.processors != new.processors,
            Self::Sinks => old.sinks != new.sinks,
            Self::TelemetryListen => old.telemetry_listen != new.telemetry_listen,
            Self::SinkFailingLimit => old.sink_failing_limit != new.sink_failing_limit,
            Self::LogLevel => old.log.level != new.log.level,
            Self::LogFormat => old.log.format != new.log.format,
        }
    }

    fn copy(self, from: &Config, to: &mut Config) {
        match self {
            Self::NodeName => to.node_name = from.node_name.clone(),
            Self::StateDir => to.state_dir = from.state_dir.clone(),
            Self::Socket => to.socket = from.socket.clone(),
            Self::ShutdownTimeout => to.shutdown_timeout = from.shutdown_timeout,
            Self::CgroupRoots => to.capture.cgroup_roots = from.capture.cgroup_roots.clone(),
            Self::CgroupMount => to.capture.cgroup_mount = from.capture.cgroup_mount.clone(),
            Self::RingSize => to.capture.ring_size = from.capture.ring_size,
            Self::ContainerShare => to.capture.container_share = from.capture.container_share,
            Self::Attach => to.capture.attach = from.capture.attach,
            Self::Pin => to.capture.pin = from.capture.pin.clone(),
            Self::WhenStopped => to.capture.when_stopped = from.capture.when_stopped,
            Self::Terminals => to.capture.terminals = from.capture.terminals,
            Self::RuntimeLogs => to.capture.runtime_logs = from.capture.runtime_logs,
            Self::Files => to.capture.files = from.capture.files.clone(),
            Self::Rules => to.capture.rules = from.capture.rules.clone(),
            Self::Server => to.server = from.server.clone(),
            Self::Lines => to.lines = from.lines.clone(),
            Self::Identity => to.identity = from.identity.clone(),
            Self::Kubernetes => to.kubernetes = from.kubernetes.clone(),
            Self::Policies => to.policies = from.policies.clone(),
            Self::Processors => to.processors = from.processors.clone(),
            Self::Sinks => to.sinks = from.sinks.clone(),
            Self::TelemetryListen => to.telemetry_listen = from.telemetry_listen,
            Self::SinkFailingLimit => to.sink_failing_limit = from.sink_failing_limit,
            Self::LogLevel => to.log.level = from.log.level,
            Self::LogFormat => to.log.format = from.log.format,
        }
    }
}

/// The parts in which two configurations differ, in the order of the file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes(Vec<Part>);

impl Changes {
    /// Whether the two are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this part changed.
    #[must_use]
    pub fn contains(&self, part: Part) -> bool {
        self.0.contains(&part)
    }

    /// What changed and can be taken over by the running agent.
    pub fn in_place(&self) -> impl Iterator<Item = Part> {
        self.0.iter().copied().filter(|part| part.changes_in_place())
    }

    /// What changed and waits for a restart.
    pub fn needs_restart(&self) -> impl Iterator<Item = Part> {
        self.0.iter().copied().filter(|part| !part.changes_in_place())
    }
}

/// For the log: `changed: sinks, log.level; after a restart: socket`.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |parts: &mut dyn Iterator<Item = Part>| parts.map(Part::as_str).collect::<Vec<_>>().join(", ");
        let now = names(&mut self.in_place());
        let later = names(&mut self.needs_restart());
        match (now.is_empty(), later.is_empty()) {
            (true, true) => f.write_str("nothing changed"),
            (false, true) => write!(f, "changed: {now}"),
            (true, false) => write!(f, "after a restart: {later}"),
            (false, false) => write!(f, "changed: {now}; after a restart: {later}"),
        }
    }
}

impl Config {
    /// What `new` changes.
    #[must_use]
    pub fn diff(&self, new: &Self) -> Changes {
        Changes(Part::ALL.into_iter().filter(|part| part.differs(self, new)).collect())
    }

    /// The configuration to go on with: `new`, but with the old values of what needs a restart.
    #[must_use]
    pub fn with_in_place_changes(&self, new: &Self) -> Self {
        let mut next = self.clone();
        for part in self.diff(new).in_place() {
            part.copy(new, &mut next);
        }
        next
    }
}
