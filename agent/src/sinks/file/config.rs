//! Settings of the file sink.

use std::{path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::{
    config::units::{self, byte_size},
    process::Selector,
    record::Class,
    sinks::config::{Common, InvalidSetting, QueueSettings, all_classes},
};

/// Settings of the file sink.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The name in metrics and logs; default `file`.
    pub name: String,
    /// The classes of records to write; default all.
    pub classes: Vec<Class>,
    /// Which lines of these classes; default all.
    pub filter: Selector,
    /// The queue in front of the sink.
    pub queue: QueueSettings,
    /// The root of the tree, absolute; made when it is missing. Default `/var/log/sidestep`.
    pub path: PathBuf,
    /// What a line of a file is; default `json`.
    pub format: Format,
    /// A file is closed before it grows beyond this; default 256 MiB. It is closed at the full hour (UTC) anyway.
    #[serde(with = "units::size")]
    pub max_file_bytes: ByteSize,
    /// How closed files are compressed; default `zstd`.
    pub compression: Compression,
    /// Level of the compression: 1 to 22 for zstd, 1 to 9 for gzip; default 1, which makes a
    /// fifteenth of JSON records and takes a quarter less CPU than 3.
    pub compression_level: u8,
    /// Files whose hour is longer ago are deleted; default 7 days.
    #[serde(with = "units::duration")]
    pub retention: Duration,
    /// The most that the tree may take on disk: beyond it the oldest closed files are deleted; default 10 GiB.
    #[serde(with = "units::size")]
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

impl Format {
    pub(super) const fn extension(self) -> &'static str {
        match self {
            Self::Json => "ndjson",
            Self::Text => "log",
        }
    }
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
    Interval(#[serde(with = "units::duration")] Duration),
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
            filter: Selector::default(),
            queue: QueueSettings::default(),
            path: PathBuf::from("/var/log/sidestep"),
            format: Format::default(),
            max_file_bytes: ByteSize::mib(256),
            compression: Compression::default(),
            compression_level: 1,
            retention: Duration::from_secs(7 * 24 * 3600),
            quota: ByteSize::gib(10),
            quota_percent: 80,
            sync: Sync::Interval(Duration::from_secs(1)),
            max_open_files: 256,
        }
    }
}

impl Settings {
    /// What it has as every sink.
    pub(in crate::sinks) const fn common(&self) -> Common<'_> {
        Common { name: &self.name, classes: &self.classes, filter: &self.filter, queue: &self.queue, buffer: None }
    }

    /// Every option that makes no sense, and why.
    pub(crate) fn problems(&self) -> Vec<InvalidSetting> {
        let level_max = match self.compression {
            Compression::Zstd => 22,
            Compression::Gzip => 9,
            Compression::None => u8::MAX,
        };
        let mut problems = Vec::new();
        let mut require = |holds: bool, option, problem: &str| {
            if !holds {
                problems.push(InvalidSetting { option, problem: problem.to_owned() });
            }
        };
        let positive = "must be greater than zero";
        require(self.path.is_absolute(), "path", "must be an absolute path");
        require(self.max_file_bytes.as_u64() > 0, "max_file_bytes", positive);
        let is_level = (1..=level_max).contains(&self.compression_level);
        require(is_level, "compression_level", "must be 1 to 22 for zstd and 1 to 9 for gzip");
        require(!self.retention.is_zero(), "retention", positive);
        if self.quota.as_u64() == 0 {
            require(false, "quota", positive);
        } else if self.quota < self.max_file_bytes {
            let least = byte_size::format(self.max_file_bytes.as_u64());
            let problem = format!(
                "must be at least `max_file_bytes`, which is `{least}`: the file that is written to is never deleted"
            );
            require(false, "quota", &problem);
        }
        require((1..=100).contains(&self.quota_percent), "quota_percent", "must be 1 to 100");
        let is_interval = self.sync != Sync::Interval(Duration::ZERO);
        require(is_interval, "sync.interval", "must be greater than zero; `always` syncs before each receipt");
        require(self.max_open_files > 0, "max_open_files", positive);
        problems
    }
}
