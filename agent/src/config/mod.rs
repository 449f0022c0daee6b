//! The configuration: read once, as typed ([`Raw`]), and checked once into [`Config`]; later code never meets an
//! invalid value.
//!
//! Every error is reported, each with file, line, column, option and what is allowed.

pub mod at_rest;
mod changes;
mod failure;
mod interpret;
mod load;
mod patterns;
pub mod policy_directory;
pub mod policy_files;
mod raw;
mod reader;
mod report;
mod tagged;
mod tree;
pub mod units;
mod validate;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

pub use changes::{Changes, Part};
pub use load::{Environment, MAX_FILE_BYTES, display_name, read_text};
pub use patterns::{CgroupPattern, Globs, Slash};
pub use raw::{Attach, Log, LogFormat, LogLevel, Policies, Raw, StartAt, WhenStopped};
pub use report::{ConfigError, Problem, Report, render_warning};
pub(crate) use tagged::Tagged;
pub use units::{Percent, byte_size};

use crate::{
    assemble, attribute, kubernetes, policy,
    process::{ProcessorSettings, Selector},
    record::Resource,
    sinks::{SinkSettings, console},
};

/// Where the configuration is, unless `--config` names another place.
pub const DEFAULT_PATH: &str = "/etc/sidestep/sidestep.yaml";

/// Where the agent answers, unless `socket` names another place.
pub const DEFAULT_SOCKET: &str = "/run/sidestep/sidestep.sock";

/// Where programs and maps are pinned, unless `capture.pin` names another place.
pub const DEFAULT_PIN: &str = "/sys/fs/bpf/sidestep";

/// Every option with its default and what it is for; a valid configuration.
pub const EXAMPLE: &str = include_str!("example.yaml");

/// A configuration in which every value holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `host.name` of every record.
    pub node_name: Arc<str>,
    /// What survives a restart: positions in files.
    pub state_dir: PathBuf,
    /// The socket of `sidestep logs` and `sidestep status`.
    pub socket: PathBuf,
    /// How long SIGTERM waits for what is on its way.
    pub shutdown_timeout: Duration,
    /// What is taken from containers.
    pub capture: Capture,
    /// The node's own log files.
    pub server: Server,
    /// From bytes to lines, where no rule says otherwise.
    pub lines: Lines,
    /// Who wrote.
    pub identity: attribute::Settings,
    /// What the API server is asked, and what of it goes where.
    pub kubernetes: kubernetes::Settings,
    /// What may be declared for Pods, and where.
    pub policies: Policies,
    /// What is done with lines before they go there, in this order; each with a name of its own.
    pub processors: Vec<ProcessorSettings>,
    /// Where records go; at least one, each with a name of its own.
    pub sinks: Vec<SinkSettings>,
    /// Where the HTTP endpoint listens; `None` when it is off.
    pub telemetry_listen: Option<SocketAddr>,
    /// How long a sink may fail before the agent is not ready.
    pub sink_failing_limit: Duration,
    /// What the agent says of itself.
    pub log: Log,
}

/// How streams are cut into lines: as typed, and ready for use.
#[derive(Clone, Debug)]
pub struct Lines {
    settings: assemble::Settings,
    compiled: Arc<assemble::Compiled>,
}

/// What is taken from containers, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    /// Where containers live in the cgroup v2 hierarchy; at least one.
    pub cgroup_roots: Vec<CgroupPattern>,
    /// Where that hierarchy is mounted; to be found when `None`.
    pub cgroup_mount: Option<PathBuf>,
    /// Bytes of the ring: a power of two, 64 KiB to 1 GiB.
    pub ring_size: NonZeroU32,
    /// The part of the ring that one container may hold.
    pub container_share: Percent,
    /// How the probes are attached.
    pub attach: Attach,
    /// Where programs and maps are pinned, on a BPF file system; `None` when they end with the agent.
    pub pin: Option<PathBuf>,
    /// What becomes of the pinned programs when the agent stops.
    pub when_stopped: WhenStopped,
    /// Whether what the ring could not hold is taken from the runtimes' logs.
    pub runtime_logs: bool,
    /// Whether terminals count as stdout.
    pub terminals: bool,
    /// Log files of containers for which no rule says otherwise.
    pub files: Files,
    /// What is different for some containers; the first that matches decides.
    pub rules: Vec<Rule>,
}

/// Which files are read, and from where.
#[derive(Clone, Debug, PartialEq)]
pub struct Files {
    /// Paths that are logs ...
    pub include: Globs,
    /// ... unless they are here.
    pub exclude: Globs,
    /// Where to begin in a file that was there before the agent.
    pub start_at: StartAt,
}

/// What is different for the containers that match.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Which containers.
    pub matches: Match,
    /// Whether anything of them is captured.
    pub logs: bool,
    /// Their log files.
    pub files: Files,
    /// How their lines are cut, joined and parsed.
    pub lines: Lines,
    /// What it says itself, for whoever asks who has decided.
    pub declares: policy::Settings,
}

/// Globs over what is known of a container. An empty one says nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Over `k8s.namespace.name`.
    pub namespace: Globs,
    /// Over `k8s.pod.name`.
    pub pod: Globs,
    /// Over `container.name`.
    pub container: Globs,
    /// Over `container.image.name`.
    pub image: Globs,
}

/// The node's own log files.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Which.
    pub files: Files,
    /// How often new files and new bytes are looked for.
    pub poll_interval: Duration,
}

impl Config {
    /// Whether records have to wait for what the API server tells of their Pod: a rule goes by labels or the workload.
    #[must_use]
    pub fn needs_metadata(&self) -> bool {
        self.sinks.iter().any(SinkSettings::needs_metadata) || self.selectors().any(Selector::needs_metadata)
    }

    /// Whether the labels of namespaces are asked for.
    #[must_use]
    pub fn needs_namespaces(&self) -> bool {
        !self.kubernetes.namespace_labels.is_empty()
            || self.policies.resources
            || !self.policies.files.is_empty()
            || self.selectors().any(|selector| selector.namespace_labels.is_some())
    }

    /// Filters of sinks and matches of processors.
    fn selectors(&self) -> impl Iterator<Item = &Selector> {
        let matches = self.processors.iter().map(ProcessorSettings::matches);
        self.sinks.iter().map(SinkSettings::filter).chain(matches)
    }
}

impl Lines {
    /// Checks and compiles `settings`.
    pub(crate) fn new(settings: assemble::Settings) -> Result<Self, Vec<assemble::SettingsError>> {
        settings.compile().map(|compiled| Self { settings, compiled })
    }

    /// As typed.
    #[must_use]
    pub fn settings(&self) -> &assemble::Settings {
        &self.settings
    }

    /// For the streams that they apply to.
    #[must_use]
    pub fn compiled(&self) -> &Arc<assemble::Compiled> {
        &self.compiled
    }
}

/// What is compiled follows from what is typed.
impl PartialEq for Lines {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Files {
    /// Whether the file at `path` is a log.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        self.include.is_match(path) && !self.exclude.is_match(path)
    }
}

impl Capture {
    /// The rule for a container, if there is one.
    #[must_use]
    pub fn rule(&self, resource: &Resource) -> Option<&Rule> {
        self.numbered_rule(resource).map(|(_, rule)| rule)
    }

    /// As [`Capture::rule`], with its place among the rules.
    #[must_use]
    pub fn numbered_rule(&self, resource: &Resource) -> Option<(usize, &Rule)> {
        self.rules.iter().enumerate().find(|(_, rule)| rule.matches.is_match(resource))
    }
}

impl Match {
    /// Whether all that is asked for holds; what is unknown of the container matches no glob.
    #[must_use]
    pub fn is_match(&self, resource: &Resource) -> bool {
        [
            (&self.namespace, &resource.namespace),
            (&self.pod, &resource.pod),
            (&self.container, &resource.container_name),
            (&self.image, &resource.image),
        ]
        .into_iter()
        .all(|(globs, value)| globs.is_empty() || value.as_deref().is_some_and(|value| globs.is_match(value)))
    }
}

/// Without a file, records go where a first user looks: to the terminal.
fn default_sinks() -> Vec<SinkSettings> {
    vec![SinkSettings::Console(console::Settings::default())]
}
