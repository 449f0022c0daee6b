//! Settings of the HTTP sink.

use std::{collections::BTreeMap, time::Duration};

use bytesize::ByteSize;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::headers::{self, HeaderText};
use crate::{
    config::units,
    process::Selector,
    record::Class,
    sinks::{
        NamedFile,
        buffer::BufferSettings,
        config::{Common, InvalidSetting, QueueSettings, Tls, all_classes},
        http_client::{self, Auth},
    },
};

/// Settings of the HTTP sink.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The name in metrics and logs; default `http`.
    pub name: String,
    /// The classes of records to send; default all.
    pub classes: Vec<Class>,
    /// Which lines of these classes; default all.
    pub filter: Selector,
    /// The queue in front of the sink.
    pub queue: QueueSettings,
    /// The buffer on disk.
    pub buffer: BufferSettings,
    /// Where to, with the whole path, as `https://collector:4318/v1/logs`; it has to be given.
    pub url: String,
    /// What a request is made of; default `ndjson`.
    pub encoding: Encoding,
    /// How requests are compressed; default `gzip`.
    pub compression: Compression,
    /// Says who the agent is, when it is there.
    pub auth: Option<Auth>,
    /// More headers by their names; `Content-Type` too where the encoding is `ndjson`.
    pub headers: BTreeMap<String, HeaderText>,
    /// How connections are encrypted where the URL says `https`; default with the authorities of the system.
    pub tls: Option<Tls>,
    /// How long a connection may take to come about, TLS included; default 5 s.
    #[serde(with = "units::duration")]
    pub connect_timeout: Duration,
    /// How long a request may take from its beginning to the last byte of its answer; default 30 s.
    #[serde(with = "units::duration")]
    pub request_timeout: Duration,
    /// The most bytes of a request before compression; default 2 MiB. A line that makes more on its own is dropped, and
    /// counted with reason `oversize`.
    #[serde(with = "units::size")]
    pub max_request_bytes: ByteSize,
    /// How long a request that is not full waits for more lines; default 50 ms.
    #[serde(with = "units::duration")]
    pub linger: Duration,
    /// The most requests that are under way at once; default 2. With 1 the lines of a stream never change their order.
    pub max_in_flight: usize,
}

/// What a request is made of.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// A record of JSON a line, `application/x-ndjson`.
    #[default]
    Ndjson,
    /// One `ExportLogsServiceRequest` of OpenTelemetry in protobuf, `application/x-protobuf`.
    OtlpProto,
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// gzip (RFC 1952); every server that is named in the documentation takes it.
    #[default]
    Gzip,
    /// Zstandard (RFC 8878), which takes less CPU and makes less of it.
    Zstd,
    /// Not at all.
    None,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "http".to_owned(),
            classes: all_classes(),
            filter: Selector::default(),
            queue: QueueSettings::default(),
            buffer: BufferSettings::default(),
            url: String::new(),
            encoding: Encoding::default(),
            compression: Compression::default(),
            auth: None,
            headers: BTreeMap::new(),
            tls: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            max_request_bytes: ByteSize::mib(2),
            linger: Duration::from_millis(50),
            max_in_flight: 2,
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
        let headers = self.headers.iter().filter_map(|(name, text)| text.file(name));
        self.tls.iter().flat_map(Tls::files).chain(self.auth.iter().map(Auth::file)).chain(headers)
    }

    /// Every option that makes no sense.
    pub(crate) fn problems(&self) -> Vec<InvalidSetting> {
        let is_timeout = |value| (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&value);
        let is_plain = self.url.starts_with("http://");
        let checks = [
            (!self.url.is_empty(), "url", "must be given, as `https://collector:4318/v1/logs`"),
            (!is_plain || self.tls.is_none(), "tls", "has no effect on `http://`: write `https://` in `url`"),
            (is_timeout(self.connect_timeout), "connect_timeout", "must be from 10ms to 1h"),
            (is_timeout(self.request_timeout), "request_timeout", "must be from 10ms to 1h"),
            (
                (ByteSize::kib(16)..=ByteSize::mib(256)).contains(&self.max_request_bytes),
                "max_request_bytes",
                "must be from 16KiB to 256MiB",
            ),
            (self.linger <= Duration::from_secs(60), "linger", "must be at most 1m"),
            ((1..=64).contains(&self.max_in_flight), "max_in_flight", "must be from 1 to 64"),
        ];
        let wrong = checks.into_iter().filter(|(holds, ..)| !holds);
        let mut problems: Vec<_> =
            wrong.map(|(_, option, problem)| InvalidSetting { option, problem: problem.to_owned() }).collect();
        if !self.url.is_empty() {
            problems.extend(http_client::url_problem("url", &self.url, self.auth.as_ref()));
        }
        problems.extend(self.path_problem());
        problems.extend(headers::problem(self));
        problems.extend(self.tls.as_ref().and_then(Tls::problem));
        problems
    }

    /// A URL of OTLP that no server takes logs at: other programs are given the URL without its path, or that of another
    /// signal.
    fn path_problem(&self) -> Option<InvalidSetting> {
        let url = Url::parse(&self.url).ok().filter(|_| self.encoding == Encoding::OtlpProto)?;
        let path = url.path().trim_end_matches('/');
        let is_other = ["/v1/traces", "/v1/metrics", "/v1development/profiles"].iter().any(|end| path.ends_with(end));
        let problem = match path {
            "" => "has no path; servers of OTLP take logs at `/v1/logs` as a rule".to_owned(),
            path if is_other => format!("has the path `{path}`, which takes no logs; `/v1/logs` does as a rule"),
            _ => return None,
        };
        Some(InvalidSetting { option: "url", problem })
    }

    /// What a request is made of, for its header.
    pub(super) const fn content_type(&self) -> &'static str {
        match self.encoding {
            Encoding::Ndjson => "application/x-ndjson",
            Encoding::OtlpProto => "application/x-protobuf",
        }
    }
}
