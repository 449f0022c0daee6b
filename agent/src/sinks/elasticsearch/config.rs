//! Settings of the Elasticsearch and OpenSearch sink.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::index::IndexTemplate;
use crate::{
    config::units,
    process::Selector,
    record::Class,
    sinks::{
        NamedFile,
        buffer::BufferSettings,
        config::{Common, InvalidSetting, QueueSettings, Tls, all_classes},
        http_client::{Auth, url_problem},
    },
};

/// Settings of the Elasticsearch and OpenSearch sink.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The name in metrics and logs; default `elasticsearch`.
    pub name: String,
    /// The classes of records to send; default all.
    pub classes: Vec<Class>,
    /// Which lines of these classes; default all.
    pub filter: Selector,
    /// The queue in front of the sink.
    pub queue: QueueSettings,
    /// The buffer on disk.
    pub buffer: BufferSettings,
    /// The servers of one cluster, `https://host:9200`, asked in turn; at least one.
    pub urls: Vec<String>,
    /// The index of a record; default `logs-{class}-{date}`, and `logs-{class}-default` with `data_stream`.
    pub index: Option<IndexTemplate>,
    /// Whether `index` names data streams; default no.
    pub data_stream: bool,
    /// Who the agent is, when it is there.
    pub auth: Option<Auth>,
    /// How connections are encrypted where a URL says `https`; default with the authorities of the system.
    pub tls: Option<Tls>,
    /// How requests are compressed; default `gzip`.
    pub compression: Compression,
    /// The most bytes of a request before compression; default 8 MiB. A line that makes more on its own is dropped, and
    /// counted with reason `oversize`.
    #[serde(with = "units::size")]
    pub max_request_bytes: ByteSize,
    /// How long a request that is not full waits for more lines; default 100 ms.
    #[serde(with = "units::duration")]
    pub linger: Duration,
    /// The most requests that are under way at once; default 2.
    pub max_in_flight: usize,
    /// How long a connection may take to come about, TLS included; default 5 s.
    #[serde(with = "units::duration")]
    pub connect_timeout: Duration,
    /// How long a request may take from its beginning to the last byte of its answer; default 30 s.
    #[serde(with = "units::duration")]
    pub request_timeout: Duration,
    /// Whether the sink makes an index template with the fields' mappings, and its retention; default yes.
    pub install_template: bool,
    /// How old an index becomes, where the server has ILM or ISM and `install_template` is on; default 7 days. Zero for
    /// no end.
    #[serde(with = "units::duration")]
    pub retention: Duration,
    /// The index for documents that the server does not take into their own, and for those that there is no room to hold;
    /// default `sidestep-dead-letter`.
    pub dead_letter_index: String,
    /// For how long lines of an index that is missing or may not be written are held and tried again before they are
    /// dropped; default 5 minutes. Lines of a blocked index (read-only, full disk) are held without an end, but for what is
    /// more than half of `buffer.max_unacknowledged` while other indices take lines.
    #[serde(with = "units::duration")]
    pub give_up_after: Duration,
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// gzip.
    #[default]
    Gzip,
    /// Not at all.
    None,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "elasticsearch".to_owned(),
            classes: all_classes(),
            filter: Selector::default(),
            queue: QueueSettings::default(),
            buffer: BufferSettings::default(),
            urls: Vec::new(),
            index: None,
            data_stream: false,
            auth: None,
            tls: None,
            compression: Compression::default(),
            max_request_bytes: ByteSize::mib(8),
            linger: Duration::from_millis(100),
            max_in_flight: 2,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            install_template: true,
            retention: Duration::from_secs(7 * 24 * 3600),
            dead_letter_index: "sidestep-dead-letter".to_owned(),
            give_up_after: Duration::from_secs(300),
        }
    }
}

impl Settings {
    /// What it has as every sink.
    pub(in crate::sinks) const fn common(&self) -> Common<'_> {
        Common {
            name: &self.name,
            classes: &self.classes,
            filter: &self.filter,
            queue: &self.queue,
            buffer: Some(&self.buffer),
        }
    }

    /// The files that it names.
    pub(in crate::sinks) fn files(&self) -> impl Iterator<Item = NamedFile<'_>> {
        self.tls.iter().flat_map(Tls::files).chain(self.auth.iter().map(Auth::file))
    }

    /// The template of the index, given or not.
    pub(in crate::sinks) fn index(&self) -> IndexTemplate {
        let default = if self.data_stream { "logs-{class}-default" } else { "logs-{class}-{date}" };
        self.index.clone().unwrap_or_else(|| default.parse().unwrap_or_else(|_| unreachable!("it is a template")))
    }

    /// Every option that makes no sense.
    pub(crate) fn problems(&self) -> Vec<InvalidSetting> {
        let is_timeout = |value| (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&value);
        let is_plain = |url: &String| url.starts_with("http://");
        let dead_letter = self.dead_letter_index.parse::<IndexTemplate>();
        let is_constant = !self.dead_letter_index.contains('{') && self.dead_letter_index.len() <= 255;
        let dated_stream = self.data_stream && self.index.as_ref().is_some_and(IndexTemplate::has_date);
        let checks = [
            (!self.urls.is_empty(), "urls", "must name at least one server, as `https://host:9200`"),
            (
                self.tls.is_none() || !self.urls.iter().all(is_plain) || self.urls.is_empty(),
                "tls",
                "has no effect on `http://`: write `https://` in `urls`",
            ),
            (!dated_stream, "index", "of a data stream has no `{date}`: the server makes a new index in time itself"),
            (
                (ByteSize::kib(64)..=ByteSize::mib(100)).contains(&self.max_request_bytes),
                "max_request_bytes",
                "must be from 64KiB to 100MiB",
            ),
            (self.linger <= Duration::from_secs(10), "linger", "must be at most 10s"),
            ((1..=64).contains(&self.max_in_flight), "max_in_flight", "must be from 1 to 64"),
            (is_timeout(self.connect_timeout), "connect_timeout", "must be from 10ms to 1h"),
            (is_timeout(self.request_timeout), "request_timeout", "must be from 10ms to 1h"),
            (
                self.retention.is_zero() || self.retention >= Duration::from_secs(3600),
                "retention",
                "must be at least 1h, or 0s for no end",
            ),
            (
                dead_letter.is_ok() && is_constant,
                "dead_letter_index",
                "must be the name of an index: lower-case letters, digits, `.`, `_`, `-` and `+`, at most 255 of them",
            ),
        ];
        let wrong = checks.into_iter().filter(|(holds, ..)| !holds);
        let mut problems: Vec<_> =
            wrong.map(|(_, option, problem)| InvalidSetting { option, problem: problem.to_owned() }).collect();
        problems.extend(self.urls.iter().filter_map(|url| url_problem("urls", url, self.auth.as_ref())));
        problems.extend(self.tls.as_ref().and_then(Tls::problem));
        problems
    }
}
