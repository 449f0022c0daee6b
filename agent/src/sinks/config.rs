//! What the configuration says about sinks: one entry a sink, told apart by `type`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytesize::ByteSize;
use serde::{
    Deserialize, Serialize,
    de::{self, MapAccess, value::MapAccessDeserializer},
};

use super::{
    Sink, SinkError,
    buffer::{BufferSettings, Buffered, Home},
    console, elasticsearch, file, http, kafka,
    named_file::NamedFile,
    reopen::Reopen,
    stats::Counters,
};
use crate::{
    config::{Tagged, units},
    process::Selector,
    record::Class,
};

/// What file systems take as the name of a file.
const MAX_NAME_BYTES: usize = 255;

/// One entry of the configuration's list of sinks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SinkSettings {
    /// Standard output of the agent.
    Console(console::Settings),
    /// Indices of Elasticsearch or OpenSearch.
    #[serde(alias = "opensearch")]
    Elasticsearch(elasticsearch::Settings),
    /// A tree of rotated files.
    File(file::Settings),
    /// Requests to a server of HTTP.
    Http(http::Settings),
    /// Topics of Kafka.
    Kafka(kafka::Settings),
}

impl Tagged for SinkSettings {
    const KINDS: &'static [&'static str] = &["console", "elasticsearch", "file", "http", "kafka", "opensearch"];

    fn read<'de, A: MapAccess<'de>>(kind: &str, options: MapAccessDeserializer<A>) -> Result<Self, A::Error> {
        match kind {
            "console" => console::Settings::deserialize(options).map(Self::Console),
            "elasticsearch" | "opensearch" => elasticsearch::Settings::deserialize(options).map(Self::Elasticsearch),
            "file" => file::Settings::deserialize(options).map(Self::File),
            "http" => http::Settings::deserialize(options).map(Self::Http),
            "kafka" => kafka::Settings::deserialize(options).map(Self::Kafka),
            other => Err(de::Error::unknown_variant(other, Self::KINDS)),
        }
    }
}

/// The bounded queue in front of a sink.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// The most bytes of lines that wait for the sink; default 64 MiB. One batch is taken however large it is.
    #[serde(with = "units::size")]
    pub max_bytes: ByteSize,
    /// The most batches that wait for the sink; default 8192.
    pub max_batches: usize,
    /// What happens when the queue is full; default `block`.
    pub when_full: WhenFull,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { max_bytes: ByteSize::mib(64), max_batches: 8192, when_full: WhenFull::Block }
    }
}

/// The rule of a full queue.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The pipeline waits, and with it every other sink.
    #[default]
    Block,
    /// The new batch is dropped for this sink, and counted with stage `sink` and reason `queue_full`.
    DropNewest,
}

/// How a sink encrypts its connections.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The authorities that the server's certificate is checked against, in PEM; default those of the system.
    pub ca_file: Option<PathBuf>,
    /// The agent's own certificate, in PEM, where the server wants one; with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Its key, in PEM.
    pub key_file: Option<PathBuf>,
}

impl Tls {
    /// The files that are named, each once.
    pub(super) fn files(&self) -> impl Iterator<Item = NamedFile<'_>> {
        let files =
            [("tls.ca_file", &self.ca_file), ("tls.cert_file", &self.cert_file), ("tls.key_file", &self.key_file)];
        files.into_iter().filter_map(|(option, path)| Some(NamedFile::new(option, path.as_deref()?)))
    }

    /// What makes no sense.
    pub(super) fn problem(&self) -> Option<InvalidSetting> {
        (self.cert_file.is_some() != self.key_file.is_some()).then(|| InvalidSetting {
            option: "tls",
            problem: "needs `cert_file` and `key_file` together, or neither".to_owned(),
        })
    }
}

/// What the settings of every sink have. They are fields of each, as serde can't tell unknown options from known ones in
/// flattened parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common<'settings> {
    pub(super) name: &'settings String,
    pub(super) classes: &'settings Vec<Class>,
    pub(super) filter: &'settings Selector,
    pub(super) queue: &'settings QueueSettings,
    /// `None` for a kind of sink that has none.
    pub(super) buffer: Option<&'settings BufferSettings>,
}

/// A setting that reads well but makes no sense.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidSetting {
    /// The option, as written in the configuration.
    pub option: &'static str,
    /// What is wrong with it, and what is allowed.
    pub problem: String,
}

impl SinkSettings {
    /// What every sink has.
    const fn common(&self) -> Common<'_> {
        match self {
            Self::Console(settings) => settings.common(),
            Self::Elasticsearch(settings) => settings.common(),
            Self::File(settings) => settings.common(),
            Self::Http(settings) => settings.common(),
            Self::Kafka(settings) => settings.common(),
        }
    }

    /// The sink's name in metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &str {
        self.common().name.as_str()
    }

    /// The classes of records that the sink wants.
    #[must_use]
    pub const fn classes(&self) -> &[Class] {
        self.common().classes.as_slice()
    }

    /// Which lines of these classes the sink wants.
    #[must_use]
    pub const fn filter(&self) -> &Selector {
        self.common().filter
    }

    /// Whether the sink goes by what the API server tells of a Pod.
    #[must_use]
    pub fn needs_metadata(&self) -> bool {
        let template = match self {
            Self::Kafka(settings) => settings.topic.needs_metadata(),
            Self::Elasticsearch(settings) => settings.index().needs_metadata(),
            Self::Console(_) | Self::File(_) | Self::Http(_) => false,
        };
        template || self.filter().needs_metadata()
    }

    /// Labels of Pods that the names of its topics or indices are made of.
    #[must_use]
    pub fn labels(&self) -> Vec<String> {
        match self {
            Self::Kafka(settings) => settings.topic.labels().map(str::to_owned).collect(),
            Self::Elasticsearch(settings) => settings.index().labels().map(str::to_owned).collect(),
            Self::Console(_) | Self::File(_) | Self::Http(_) => Vec::new(),
        }
    }

    /// The queue in front of the sink.
    #[must_use]
    pub const fn queue(&self) -> &QueueSettings {
        self.common().queue
    }

    /// The buffer on disk in front of the sink; `None` for a sink without one.
    #[must_use]
    pub fn buffer(&self) -> Option<&BufferSettings> {
        self.common().buffer.filter(|buffer| buffer.enabled)
    }

    /// The folder that the sink has to itself.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Console(_) | Self::Elasticsearch(_) | Self::Http(_) | Self::Kafka(_) => None,
            Self::File(settings) => Some(&settings.path),
        }
    }

    /// The files that the settings name, which are read when the sink starts or sends.
    #[must_use]
    pub fn files(&self) -> Vec<NamedFile<'_>> {
        match self {
            Self::Console(_) | Self::File(_) => Vec::new(),
            Self::Elasticsearch(settings) => settings.files().collect(),
            Self::Http(settings) => settings.files().collect(),
            Self::Kafka(settings) => settings.files().collect(),
        }
    }

    /// Checks what serde cannot: every setting that makes no sense.
    #[must_use]
    pub fn problems(&self) -> Vec<InvalidSetting> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, option, problem: &str| {
            if !holds {
                problems.push(InvalidSetting { option, problem: problem.to_owned() });
            }
        };
        let name = self.name();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        require(!name.is_empty() && name.bytes().all(is_plain), "name", "must be made of letters, digits, `-` and `_`");
        require(
            name.len() <= MAX_NAME_BYTES,
            "name",
            "must have at most 255 bytes: the buffer's directory is named so",
        );
        require(!self.classes().is_empty(), "classes", "must name at least one of `pod`, `business`, `server`");
        require(self.queue().max_bytes.as_u64() > 0, "queue.max_bytes", "must be greater than zero");
        require(self.queue().max_batches > 0, "queue.max_batches", "must be greater than zero");
        for error in self.filter().compile().err().unwrap_or_default() {
            problems.push(InvalidSetting { option: filter_option(error.option), problem: error.problem });
        }
        problems.extend(self.buffer().map(BufferSettings::problems).unwrap_or_default());
        match self {
            Self::Console(_) => {}
            Self::Elasticsearch(settings) => problems.extend(settings.problems()),
            Self::File(settings) => problems.extend(settings.problems()),
            Self::Http(settings) => problems.extend(settings.problems()),
            Self::Kafka(settings) => problems.extend(settings.problems()),
        }
        problems
    }

    /// What keeps lines of so many bytes from the sink.
    #[must_use]
    pub fn line_problem(&self, max_line_bytes: ByteSize) -> Option<InvalidSetting> {
        let buffer = self.buffer()?.max_bytes;
        let [most, line] = [buffer, max_line_bytes].map(|size| units::byte_size::format(size.as_u64()));
        (buffer < max_line_bytes).then(|| InvalidSetting {
            option: "buffer.max_bytes",
            problem: format!(
                "is `{most}`, and `lines.max_line_bytes` is `{line}`: a line could be larger than the whole \
                 buffer; raise the one or lower the other"
            ),
        })
    }

    /// Makes the sink, behind its buffer if it has one. `counters` are those of its queue.
    ///
    /// # Errors
    /// As [`SinkSettings::build`]; and the buffer can't be used, with `ResourceBusy` while another sink has it.
    pub(super) fn build_in(&self, home: &Home, counters: &Arc<Counters>) -> Result<Box<dyn Sink>, SinkError> {
        self.build_behind(home, counters, || self.build())
    }

    /// The same for an agent that starts, which must not end for one sink: what can't be made yet, as with a file that
    /// is missing, fails and is tried again, and what is for it waits in its buffer.
    ///
    /// # Errors
    /// The buffer can't be used; another agent has what the sink needs for itself.
    pub(super) fn start_in(&self, home: &Home, counters: &Arc<Counters>) -> Result<Box<dyn Sink>, SinkError> {
        let build = || match self.build() {
            // Two agents on one configuration are a mistake that does not mend itself.
            Err(error) if error.source.kind() == std::io::ErrorKind::ResourceBusy => Err(error),
            Err(_) => {
                let settings = self.clone();
                Ok(Box::new(Reopen::new(self.name(), move || settings.build())) as Box<dyn Sink>)
            }
            Ok(sink) => Ok(sink),
        };
        self.build_behind(home, counters, build)
    }

    fn build_behind(
        &self,
        home: &Home,
        counters: &Arc<Counters>,
        build: impl FnOnce() -> Result<Box<dyn Sink>, SinkError>,
    ) -> Result<Box<dyn Sink>, SinkError> {
        match self.buffer() {
            Some(buffer) => Ok(Box::new(Buffered::open(self.name(), buffer, home, counters, build)?)),
            None => {
                counters.set_buffer(None);
                build()
            }
        }
    }

    /// Makes the sink itself.
    ///
    /// # Errors
    /// When what the sink needs from the start, as the directory of its files, cannot be had.
    pub(super) fn build(&self) -> Result<Box<dyn Sink>, SinkError> {
        Ok(match self {
            Self::Console(settings) => Box::new(console::ConsoleSink::stdout(settings)),
            Self::Elasticsearch(settings) => Box::new(elasticsearch::ElasticsearchSink::new(settings.clone())?),
            Self::File(settings) => Box::new(file::FileSink::new(settings.clone())?),
            Self::Http(settings) => Box::new(http::HttpSink::new(settings.clone())?),
            Self::Kafka(settings) => Box::new(kafka::KafkaSink::new(settings.clone())?),
        })
    }
}

/// The option's path below the sink.
fn filter_option(option: &'static str) -> &'static str {
    match option {
        "namespace" => "filter.namespace",
        "pod" => "filter.pod",
        "container" => "filter.container",
        "labels" => "filter.labels",
        "namespace_labels" => "filter.namespace_labels",
        "workload" => "filter.workload",
        "severity_below" => "filter.severity_below",
        "unknown_severity" => "filter.unknown_severity",
        "body" => "filter.body",
        "body_not" => "filter.body_not",
        _ => "filter",
    }
}

/// Every class: what a sink wants by default.
#[must_use]
pub(super) fn all_classes() -> Vec<Class> {
    Class::ALL.to_vec()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn options(settings: &SinkSettings) -> Vec<&'static str> {
        settings.problems().iter().map(|problem| problem.option).collect()
    }

    fn parse(value: serde_json::Value) -> Result<SinkSettings, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_read_as_people_write_them() {
        let settings = parse(json!({
            "type": "file", "name": "disk", "path": "/data/logs", "classes": ["pod"],
            "queue": {"max_bytes": "4MiB", "when_full": "drop_newest"},
            "max_file_bytes": "1GiB", "retention": "36h", "compression": "gzip", "sync": {"interval": "250ms"},
        }))
        .expect("valid");
        let SinkSettings::File(file) = &settings else { panic!("a file sink") };
        assert_eq!(file.max_file_bytes, ByteSize::gib(1));
        assert_eq!(file.retention, Duration::from_secs(36 * 3600));
        assert_eq!(file.sync, file::Sync::Interval(Duration::from_millis(250)));
        assert_eq!(settings.queue().when_full, WhenFull::DropNewest);
        assert_eq!(settings.queue().max_batches, QueueSettings::default().max_batches);
        assert_eq!(settings.problems(), []);
        let again = serde_json::to_value(&settings).expect("serializes");
        assert_eq!(parse(again).expect("reads back"), settings);
    }

    #[test]
    fn what_is_unknown_or_makes_no_sense_is_named() {
        let unknown = parse(json!({"type": "file", "path": "/x", "colour": true})).expect_err("unknown");
        assert!(unknown.contains("unknown field `colour`"), "{unknown}");
        let unknown = parse(json!({"type": "console", "queue": {"size": 1}})).expect_err("unknown");
        assert!(unknown.contains("unknown field `size`"), "{unknown}");
        let bad = parse(json!({"type": "file", "retention": "soon"})).expect_err("no duration");
        assert!(bad.contains("a duration with its unit"), "{bad}");
        for (option, value) in [
            ("name", json!({"type": "console", "name": "a b"})),
            ("name", json!({"type": "console", "name": "a".repeat(256)})),
            ("classes", json!({"type": "console", "classes": []})),
            ("filter.body", json!({"type": "console", "filter": {"body": "("}})),
            ("filter.pod", json!({"type": "file", "filter": {"pod": ["["]}})),
            ("queue.max_batches", json!({"type": "console", "queue": {"max_batches": 0}})),
            ("path", json!({"type": "file", "path": "logs"})),
            ("max_file_bytes", json!({"type": "file", "max_file_bytes": 0})),
            ("max_open_files", json!({"type": "file", "max_open_files": 0})),
            ("quota_percent", json!({"type": "file", "quota_percent": 101})),
            ("compression_level", json!({"type": "file", "compression_level": 23})),
        ] {
            let options = options(&parse(value).expect("parses"));
            assert!(options.contains(&option), "{option} is not in {options:?}");
        }
    }

    #[test]
    fn every_setting_that_makes_no_sense_is_named() {
        let all_wrong = json!({
            "type": "file", "name": "", "classes": [], "queue": {"max_bytes": 0, "max_batches": 0}, "path": "logs",
            "max_file_bytes": 0, "compression_level": 23, "retention": "0s", "quota": 0, "quota_percent": 0,
            "sync": {"interval": "0s"}, "max_open_files": 0,
        });
        let settings = parse(all_wrong).expect("parses");
        let expected = [
            "name",
            "classes",
            "queue.max_bytes",
            "queue.max_batches",
            "path",
            "max_file_bytes",
            "compression_level",
            "retention",
            "quota",
            "quota_percent",
            "sync.interval",
            "max_open_files",
        ];
        assert_eq!(options(&settings), expected);
    }

    #[test]
    fn a_quota_below_one_file_is_refused() {
        let settings = parse(json!({"type": "file", "quota": 1})).expect("parses");
        let problems = settings.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(
            problems[0].problem,
            "must be at least `max_file_bytes`, which is `256MiB`: the file that is written to is never deleted"
        );
        let settings = parse(json!({"type": "file", "quota": "1MiB", "max_file_bytes": "1MiB"})).expect("parses");
        assert_eq!(settings.problems(), []);
    }
}
