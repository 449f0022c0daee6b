//! The words of the data path: what a stream is, who wrote it, and the batches of lines that stages hand on.
//!
//! The field names that leave the node are OpenTelemetry's semantic conventions; see `docs/records.md`.

use std::{fmt, ops::Range, sync::Arc};

use crate::{files::Source, kubernetes::Pod, ledger::Account};

/// The classes of the log center.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A container's stdout or stderr.
    Pod,
    /// A log file that an application in a container writes.
    Business,
    /// A log file of the node itself.
    Server,
    /// What policies for traffic have refused: no bytes that anybody wrote, but records of the agent.
    Governance,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pod, Self::Business, Self::Server, Self::Governance];

    /// The name in records, paths and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Business => "business",
            Self::Server => "server",
            Self::Governance => "governance",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `log.iostream` of a container's standard stream.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum IoStream {
    /// File descriptor 1. A terminal, and a pipe that is both 1 and 2, count as stdout.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl IoStream {
    /// The value of the attribute `log.iostream`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where the bytes of a stream are written to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Origin {
    /// A container's stdout or stderr.
    Stdio(IoStream),
    /// A log file, by the path that the writer sees (`log.file.path`).
    File {
        /// Path inside the container, or on the node for class `server`. Chosen by the Pod: never use it as a path of ours.
        path: Arc<str>,
    },
    /// Nobody has written them: the kernel programs have refused something.
    Refusals,
}

/// The attribute by which the agent's own events are known: no line can have it.
pub const EVENT_ATTRIBUTE: &str = "sidestep.event.name";
/// Its value in records of refusals.
pub const REFUSAL_EVENT: &str = "governance.refusal";

/// Who wrote: the resource of the OpenTelemetry log data model. Everything unknown is `None` and left out of records.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Resource {
    /// `host.name`: the node.
    pub host_name: Option<Arc<str>>,
    /// `container.runtime.name`: `containerd`, `cri-o`, `docker`, `podman`, `runc`.
    pub container_runtime: Option<Arc<str>>,
    /// `container.id`: the runtime's full id.
    pub container_id: Option<Arc<str>>,
    /// `container.name`; inside Kubernetes `k8s.container.name` as well.
    pub container_name: Option<Arc<str>>,
    /// `container.image.name`, as the runtime was asked for it, with tag or digest.
    pub image: Option<Arc<str>>,
    /// `k8s.namespace.name`.
    pub namespace: Option<Arc<str>>,
    /// `k8s.pod.name`.
    pub pod: Option<Arc<str>>,
    /// `k8s.pod.uid`.
    pub pod_uid: Option<Arc<str>>,
    /// Path of the cgroup in the v2 hierarchy; the only name of a container that no runtime knows.
    pub cgroup: Option<Arc<str>>,
    /// What the API server tells of the Pod; `None` until it has. It comes and changes later than all else, so it is
    /// saved nowhere with it.
    #[serde(skip)]
    pub metadata: Option<Arc<Metadata>>,
    /// Where the records go, where annotations or policies say so. Like `metadata` it comes and changes later.
    #[serde(skip)]
    pub route: Option<Arc<Route>>,
}

/// The name of the attribute that has [`Route::tenant`].
pub const TENANT_ATTRIBUTE: &str = "sidestep.tenant";

/// Where records go, as far as annotations or policies have decided it.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub struct Route {
    /// The topic of Kafka, in the place of the sink's template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<Chosen>,
    /// The index of Elasticsearch, in the place of the sink's template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<Chosen>,
    /// `sidestep.tenant`. One that the Pod may not choose never gets here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Arc<str>>,
    /// The names of the sinks that want the records, of those that would anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sinks: Option<Vec<Arc<str>>>,
}

/// A name, and who has chosen it.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Chosen {
    /// The name.
    pub name: Arc<str>,
    /// One who may choose any name has; else the sink says which may be chosen.
    pub by_administrator: bool,
    /// The name that comes next in precedence, for sinks where this one may not be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Box<Self>>,
}

/// The names of attributes that have a label of a Pod begin so; the key follows.
pub const LABEL_ATTRIBUTE: &str = "k8s.pod.label.";

/// The same for an annotation.
pub const ANNOTATION_ATTRIBUTE: &str = "k8s.pod.annotation.";
/// The same for a label of the Pod's namespace.
pub const NAMESPACE_LABEL_ATTRIBUTE: &str = "k8s.namespace.label.";

/// What the API server tells of a Pod, as far as the configuration lets it into records.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Metadata {
    /// Name of the workload: what made the Pod in the end.
    pub workload: Option<Arc<str>>,
    /// Attributes by name: `k8s.deployment.name`, `k8s.pod.label.<key>`, `k8s.pod.annotation.<key>`,
    /// `k8s.namespace.label.<key>`.
    pub attributes: Vec<(Arc<str>, Arc<str>)>,
    /// The Pod with all of its labels, for rules; `None` for what comes from a buffer on disk.
    pub pod: Option<Arc<Pod>>,
}

impl Resource {
    fn memory(&self) -> usize {
        let texts = [
            &self.container_runtime,
            &self.container_id,
            &self.container_name,
            &self.image,
            &self.namespace,
            &self.pod,
            &self.pod_uid,
            &self.cgroup,
        ];
        let texts = texts.into_iter().flatten().map(|text| TEXT + text.len()).sum::<usize>();
        size_of::<Self>() + texts + self.metadata.as_ref().map_or(0, |metadata| metadata.memory())
    }
}

/// What a text of its own costs beside its characters.
const TEXT: usize = 48;

impl Metadata {
    fn memory(&self) -> usize {
        let attributes = self.attributes.iter().map(|(name, value)| 2 * TEXT + name.len() + value.len());
        let attributes = attributes.sum::<usize>();
        size_of::<Self>() + attributes + self.pod.as_ref().map_or(0, |pod| pod.memory())
    }

    /// A label of the Pod that records have.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let is_it = |name: &str| name.strip_prefix(LABEL_ATTRIBUTE) == Some(key);
        self.attributes.iter().find(|(name, _)| is_it(name)).map(|(_, value)| &**value)
    }
}

/// One sequence of log bytes. A rotated file that continues under a new name is the same stream; a file that was
/// truncated to start over is a new one.
#[derive(Debug)]
pub struct Stream {
    /// Unique on this node and stable across restarts of the agent; with a line's position it identifies a record.
    /// Made of `[A-Za-z0-9:._/-]`.
    pub key: Arc<str>,
    /// Class of every record of the stream.
    pub class: Class,
    /// Where the bytes are written to.
    pub origin: Origin,
    /// Who writes them.
    pub resource: Arc<Resource>,
    /// The account that the stream's bytes are booked on.
    pub account: Arc<Account>,
    /// Where its bytes can be read again; `None` for a pipe, and for what comes from a buffer on disk.
    pub source: Option<Arc<Source>>,
}

impl Stream {
    /// Memory that it holds when nothing else holds its container's account and identity, in bytes; roughly.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Self>() + size_of::<Account>() + self.key.len() + self.resource.memory()
    }

    /// The same stream, of which more is known: what is kept for a stream is kept by its address, so it has another one.
    #[must_use]
    pub fn with_resource(&self, resource: Arc<Resource>) -> Arc<Self> {
        self.renewed(resource, self.class)
    }

    /// As [`Stream::with_resource`], and its records are of this class.
    #[must_use]
    pub fn renewed(&self, resource: Arc<Resource>, class: Class) -> Arc<Self> {
        Arc::new(Self {
            key: Arc::clone(&self.key),
            class,
            origin: self.origin.clone(),
            resource,
            account: Arc::clone(&self.account),
            source: self.source.clone(),
        })
    }
}

/// `SeverityNumber` of the OpenTelemetry log data model, by its six ranges (`TRACE` = 1, `DEBUG` = 5, ...).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Severity {
    /// 1
    Trace = 1,
    /// 5
    Debug = 5,
    /// 9
    Info = 9,
    /// 13
    Warn = 13,
    /// 17
    Error = 17,
    /// 21
    Fatal = 21,
}

impl Severity {
    /// `severity_text`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// What a line went through, as bits.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LineFlags(pub u8);

impl LineFlags {
    /// The line was longer than the limit and was cut here; the rest follows as further lines.
    pub const CUT: Self = Self(1);
    /// The line ended without a newline (end of the stream, or idle for too long).
    pub const UNTERMINATED: Self = Self(1 << 1);
    /// Bytes before this line are missing, and counted in the ledger.
    pub const AFTER_GAP: Self = Self(1 << 2);
    /// Several lines of the stream were joined by a multiline rule.
    pub const MULTILINE: Self = Self(1 << 3);
    /// The line continues one that was cut.
    pub const CONTINUATION: Self = Self(1 << 4);
    /// The line is the agent's own, as a summary of what was suppressed: it has no bytes of the stream, and its
    /// attributes come from nobody else.
    pub const SYNTHETIC: Self = Self(1 << 5);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One line of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// When it was written, or what the line itself says; nanoseconds since the Unix epoch.
    pub time_unix_nano: u64,
    /// When the kernel saw the end of the write; nanoseconds since the Unix epoch.
    pub observed_time_unix_nano: u64,
    /// The line's bytes in [`Batch::data`], without the final newline.
    pub body: Range<usize>,
    /// Position of the line's first byte in its stream.
    pub position: u64,
    /// How many bytes of the stream the line accounts for, its newline included.
    pub span: u64,
    /// What it went through.
    pub flags: LineFlags,
    /// From the body, when parsing is on.
    pub severity: Option<Severity>,
    /// From the body, when parsing is on.
    pub attributes: Option<Box<Attributes>>,
}

/// Attributes taken from a structured body, in the order of their appearance.
pub type Attributes = serde_json::Map<String, serde_json::Value>;

/// Lines of one stream, in order; the unit that stages hand on and that sinks acknowledge.
#[derive(Debug)]
pub struct Batch {
    /// The stream that all lines belong to.
    pub stream: Arc<Stream>,
    /// The bytes that the lines' bodies point into.
    pub data: bytes::Bytes,
    /// The lines, by rising position.
    pub lines: Vec<Line>,
}

impl Batch {
    /// A line's bytes.
    #[must_use]
    pub fn body(&self, line: &Line) -> &[u8] {
        &self.data[line.body.clone()]
    }

    /// How many bytes of the stream the batch accounts for.
    #[must_use]
    pub fn span(&self) -> u64 {
        self.lines.iter().map(|line| line.span).sum()
    }

    /// Memory that it holds, in bytes; roughly where attributes are concerned.
    #[must_use]
    pub fn memory(&self) -> usize {
        const ATTRIBUTE: usize = 160;
        let attributes = |line: &Line| line.attributes.as_ref().map_or(0, |attributes| attributes.len() * ATTRIBUTE);
        let lines = self.lines.iter().map(|line| size_of::<Line>() + attributes(line));
        self.data.len() + lines.sum::<usize>()
    }

    /// Position of the first line.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.lines.first().map_or(0, |line| line.position)
    }

    /// The position after the last line.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.lines.last().map_or(0, |line| line.position + line.span)
    }
}
