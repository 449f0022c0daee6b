//! The options of sinks, until the sinks are here: `crate::sinks::config` takes the place of this file.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::record::Class;

/// One entry of the configuration's list of sinks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SinkSettings {
    /// Standard output of the agent.
    Console(console::Settings),
    /// A tree of rotated files.
    File(file::Settings),
}

/// The bounded queue in front of a sink.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// The most bytes of lines that wait for the sink; default 16 MiB. One batch is taken however large it is.
    pub max_bytes: ByteSize,
    /// The most batches that wait for the sink; default 8192.
    pub max_batches: usize,
    /// What happens when the queue is full; default `block`.
    pub when_full: WhenFull,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { max_bytes: ByteSize::mib(16), max_batches: 8192, when_full: WhenFull::Block }
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

/// A setting that reads well but makes no sense.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("sink `{sink}`: {option}: {problem}")]
pub struct InvalidSetting {
    /// The sink's name.
    pub sink: String,
    /// The option, as written in the configuration.
    pub option: &'static str,
    /// What is wrong with it, and what is allowed.
    pub problem: String,
}

impl SinkSettings {
    /// The sink's name in metrics and logs.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Console(settings) => &settings.name,
            Self::File(settings) => &settings.name,
        }
    }

    /// The classes of records that the sink wants.
    #[must_use]
    pub fn classes(&self) -> &[Class] {
        match self {
            Self::Console(settings) => &settings.classes,
            Self::File(settings) => &settings.classes,
        }
    }

    /// The queue in front of the sink.
    #[must_use]
    pub const fn queue(&self) -> &QueueSettings {
        match self {
            Self::Console(settings) => &settings.queue,
            Self::File(settings) => &settings.queue,
        }
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        let invalid = |option, problem: &str| {
            Err(InvalidSetting { sink: self.name().to_owned(), option, problem: problem.to_owned() })
        };
        let name = self.name();
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
            return invalid("name", "must be made of letters, digits, `-` and `_`");
        }
        if self.classes().is_empty() {
            return invalid("classes", "must name at least one of `pod`, `business`, `server`");
        }
        if self.queue().max_bytes.as_u64() == 0 {
            return invalid("queue.max_bytes", "must be greater than zero");
        }
        if self.queue().max_batches == 0 {
            return invalid("queue.max_batches", "must be greater than zero");
        }
        match self {
            Self::Console(_) => Ok(()),
            Self::File(settings) => match settings.problem() {
                Some((option, problem)) => invalid(option, problem),
                None => Ok(()),
            },
        }
    }
}

/// Every class: what a sink wants by default.
#[must_use]
fn all_classes() -> Vec<Class> {
    vec![Class::Pod, Class::Business, Class::Server]
}

/// Durations as people write them: `500ms`, `30s`, `7days`.
mod human_duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|error| D::Error::custom(format!("`{text}` is not a duration such as `500ms` or `7d`: {error}")))
    }

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }
}

/// Settings.
pub mod console {

    use serde::{Deserialize, Serialize};

    use crate::{
        config::sections::{QueueSettings, all_classes},
        record::Class,
    };

    /// Settings of the console sink.
    #[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Settings {
        /// The name in metrics and logs; default `console`.
        pub name: String,
        /// The classes of records to write; default all.
        pub classes: Vec<Class>,
        /// The queue in front of the sink.
        pub queue: QueueSettings,
        /// What a line looks like; default `text`.
        pub format: Format,
        /// Whether the fields of the `text` format have colours; default `auto`.
        pub color: Color,
        /// Whether bodies are written as they are in the `text` format, control characters included; default no. A Pod
        /// can then drive the terminal: only for output that no terminal shows.
        pub raw: bool,
    }

    /// What a line of output looks like.
    #[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Format {
        /// For people: time, namespace/Pod/container, stream, body.
        #[default]
        Text,
        /// A record in JSON.
        Json,
    }

    /// When there are colours.
    #[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Color {
        /// On a terminal, unless the environment variable `NO_COLOR` is set and not empty.
        #[default]
        Auto,
        /// Always.
        Always,
        /// Never.
        Never,
    }

    impl Default for Settings {
        fn default() -> Self {
            Self {
                name: "console".to_owned(),
                classes: all_classes(),
                queue: QueueSettings::default(),
                format: Format::default(),
                color: Color::default(),
                raw: false,
            }
        }
    }
}
/// Settings.
pub mod file {

    use std::{path::PathBuf, time::Duration};

    use bytesize::ByteSize;
    use serde::{Deserialize, Serialize};

    use crate::{
        config::sections::{QueueSettings, all_classes, human_duration},
        record::Class,
    };

    /// Settings of the file sink.
    #[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Settings {
        /// The name in metrics and logs; default `file`.
        pub name: String,
        /// The classes of records to write; default all.
        pub classes: Vec<Class>,
        /// The queue in front of the sink.
        pub queue: QueueSettings,
        /// The root of the tree, absolute; made when it is missing. Default `/var/log/sidestep`.
        pub path: PathBuf,
        /// What a line of a file is; default `json`.
        pub format: Format,
        /// A file is closed before it grows beyond this; default 256 MiB. It is closed at the full hour (UTC) anyway.
        pub max_file_bytes: ByteSize,
        /// How closed files are compressed; default `zstd`.
        pub compression: Compression,
        /// Level of the compression: 1 to 22 for zstd, 1 to 9 for gzip; default 3.
        pub compression_level: u8,
        /// Files whose hour is longer ago are deleted; default 7 days.
        #[serde(with = "human_duration")]
        pub retention: Duration,
        /// The most that the tree may take on disk: beyond it the oldest closed files are deleted; default 10 GiB.
        pub quota: ByteSize,
        /// The quota is never more than this share of the file system's size, in percent; default 80.
        pub quota_percent: u8,
        /// When written data is forced to the disk; default each second. Only the loss of the machine makes a
        /// difference: what is written survives the agent in any case.
        pub sync: Sync,
        /// The most files that are held open; default 256. The one that was used longest ago is closed for another.
        pub max_open_files: usize,
    }

    /// What a line of a file is.
    #[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Format {
        /// A record in JSON.
        #[default]
        Json,
        /// The body alone; a body with newlines in it (multiline rules) makes several lines.
        Text,
    }

    /// How closed files are compressed.
    #[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Compression {
        /// Zstandard (RFC 8878).
        #[default]
        Zstd,
        /// gzip (RFC 1952).
        Gzip,
        /// Not at all.
        None,
    }

    /// When written data is forced to the disk with `fdatasync`.
    #[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Sync {
        /// On a thread of its own, with this pause in between.
        Interval(#[serde(with = "human_duration")] Duration),
        /// By the kernel, whenever it likes.
        Never,
        /// Before a receipt is settled; slow.
        Always,
    }

    impl Default for Settings {
        fn default() -> Self {
            Self {
                name: "file".to_owned(),
                classes: all_classes(),
                queue: QueueSettings::default(),
                path: PathBuf::from("/var/log/sidestep"),
                format: Format::default(),
                max_file_bytes: ByteSize::mib(256),
                compression: Compression::default(),
                compression_level: 3,
                retention: Duration::from_secs(7 * 24 * 3600),
                quota: ByteSize::gib(10),
                quota_percent: 80,
                sync: Sync::Interval(Duration::from_secs(1)),
                max_open_files: 256,
            }
        }
    }

    impl Settings {
        /// The first option that makes no sense, and why.
        pub(crate) fn problem(&self) -> Option<(&'static str, &'static str)> {
            let level_max = match self.compression {
                Compression::Zstd => 22,
                Compression::Gzip => 9,
                Compression::None => u8::MAX,
            };
            if !self.path.is_absolute() {
                Some(("path", "must be an absolute path"))
            } else if self.max_file_bytes.as_u64() == 0 {
                Some(("max_file_bytes", "must be greater than zero"))
            } else if !(1..=level_max).contains(&self.compression_level) {
                Some(("compression_level", "must be 1 to 22 for zstd and 1 to 9 for gzip"))
            } else if self.retention.is_zero() {
                Some(("retention", "must be greater than zero"))
            } else if self.quota.as_u64() == 0 {
                Some(("quota", "must be greater than zero"))
            } else if !(1..=100).contains(&self.quota_percent) {
                Some(("quota_percent", "must be 1 to 100"))
            } else if self.sync == Sync::Interval(Duration::ZERO) {
                Some(("sync.interval", "must be greater than zero; `always` syncs before each receipt"))
            } else if self.max_open_files == 0 {
                Some(("max_open_files", "must be greater than zero"))
            } else {
                None
            }
        }
    }
}
