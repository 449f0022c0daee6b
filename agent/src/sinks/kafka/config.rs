//! Settings of the Kafka sink.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use rdkafka::ClientConfig;
use serde::{Deserialize, Serialize};

use super::{options, topic::TopicTemplate};
use crate::{
    config::units,
    policy::Allowed,
    process::Selector,
    record::{Class, Stream},
    sinks::{
        NamedFile, SinkError,
        buffer::BufferSettings,
        config::{Common, InvalidSetting, QueueSettings, Tls, all_classes},
    },
};

/// Settings of the Kafka sink.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The name in metrics and logs; default `kafka`.
    pub name: String,
    /// The classes of records to send; default all.
    pub classes: Vec<Class>,
    /// Which lines of these classes; default all.
    pub filter: Selector,
    /// The queue in front of the sink.
    pub queue: QueueSettings,
    /// The buffer on disk.
    pub buffer: BufferSettings,
    /// Brokers to ask for all others, `host:port`; at least one.
    pub brokers: Vec<String>,
    /// The topic of a record; default `logs.{class}`.
    pub topic: TopicTemplate,
    /// Topics that Pods and policies of namespaces may choose in its place; default none.
    pub allow_declared: Allowed,
    /// What a message is; default `json`.
    pub encoding: Encoding,
    /// How messages are compressed; default `zstd`, at its level 1, which costs the least.
    pub compression: Compression,
    /// How long the producer waits for more messages of a partition before it sends; default 20 ms.
    #[serde(with = "units::duration")]
    pub linger: Duration,
    /// The most bytes of messages that wait in the producer for the brokers' acknowledgement; default 32 MiB.
    #[serde(with = "units::size")]
    pub producer_buffer: ByteSize,
    /// A larger message is dropped, and counted with reason `oversize`; default 1000000, as brokers take by default.
    #[serde(with = "units::size")]
    pub max_message_bytes: ByteSize,
    /// Whether the identity of a record's container, and its position in its stream, go into the message's headers too;
    /// default yes.
    pub headers: bool,
    /// For how long lines of a topic that is missing, or may not be written, are held and tried again before they are
    /// dropped; default 5 minutes.
    #[serde(with = "units::duration")]
    pub give_up_after: Duration,
    /// Encrypts the connections when it is there.
    pub tls: Option<Tls>,
    /// Says who the agent is, when it is there.
    pub sasl: Option<Sasl>,
    /// More options of librdkafka by their own names; they win over all of the above, but none that would break what the
    /// sink promises, or that holds a secret.
    pub options: BTreeMap<String, String>,
}

/// What a message is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// A record in JSON.
    #[default]
    Json,
    /// A record as OpenTelemetry's `ExportLogsServiceRequest` in protobuf, as its collector reads it (`otlp_proto`).
    OtlpProto,
}

/// How messages are compressed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Zstandard; Kafka 2.1 and later.
    #[default]
    Zstd,
    /// LZ4.
    Lz4,
    /// Snappy.
    Snappy,
    /// gzip.
    Gzip,
    /// Not at all.
    None,
}

impl Compression {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Snappy => "snappy",
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }
}

/// Who the agent is, for the brokers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// How it is said.
    pub mechanism: Mechanism,
    /// The user.
    pub username: String,
    /// The file with the password, as Kubernetes mounts a Secret; a newline at its end does not count.
    pub password_file: PathBuf,
}

/// A mechanism of SASL (RFC 4422).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Mechanism {
    /// RFC 4616; sends the password, so not without `tls`.
    #[serde(rename = "PLAIN")]
    Plain,
    /// RFC 5802 with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// RFC 5802 with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl Mechanism {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

impl Sasl {
    fn file(&self) -> NamedFile<'_> {
        NamedFile::new("sasl.password_file", &self.password_file)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "kafka".to_owned(),
            classes: all_classes(),
            filter: Selector::default(),
            queue: QueueSettings::default(),
            buffer: BufferSettings::default(),
            brokers: Vec::new(),
            topic: TopicTemplate::default(),
            allow_declared: Allowed::default(),
            encoding: Encoding::default(),
            compression: Compression::default(),
            linger: Duration::from_millis(20),
            producer_buffer: ByteSize::mib(32),
            max_message_bytes: ByteSize::b(1_000_000),
            headers: true,
            give_up_after: Duration::from_secs(300),
            tls: None,
            sasl: None,
            options: BTreeMap::new(),
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

    /// The topic of the records of `stream`: what is declared for it, where that may be chosen.
    pub(super) fn topic_of(&self, stream: &Stream) -> String {
        let declared = stream.resource.route.as_ref().and_then(|route| route.topic.as_ref());
        let declared = self.allow_declared.permitted(declared, &stream.resource);
        declared.map_or_else(|| self.topic.topic(stream), str::to_owned)
    }

    /// The files that it names.
    pub(in crate::sinks) fn files(&self) -> impl Iterator<Item = NamedFile<'_>> {
        self.tls.iter().flat_map(Tls::files).chain(self.sasl.iter().map(Sasl::file))
    }

    /// Every option that makes no sense.
    pub(crate) fn problems(&self) -> Vec<InvalidSetting> {
        let has_port = |broker: &String| {
            let is_odd = |character: char| character.is_whitespace() || matches!(character, ',' | '/' | '@');
            let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
            let parts = broker.rsplit_once(':');
            parts.is_some_and(|(host, port)| !host.is_empty() && is_port(port)) && !broker.contains(is_odd)
        };
        let is_plain = self.sasl.as_ref().is_some_and(|sasl| sasl.mechanism == Mechanism::Plain);
        let checks = [
            (!self.brokers.is_empty(), "brokers", "must name at least one broker, as `host:9092`"),
            (
                self.brokers.iter().all(has_port),
                "brokers",
                "must be written as `host:port`, one in an item, without a scheme: `tls` and `sasl` say that",
            ),
            (
                (ByteSize::mib(1)..=ByteSize::gib(2)).contains(&self.producer_buffer),
                "producer_buffer",
                "must be from 1MiB to 2GiB",
            ),
            (
                (1_000..=1_000_000_000).contains(&self.max_message_bytes.as_u64()),
                "max_message_bytes",
                "must be from 1000 to 1000000000",
            ),
            (self.linger <= Duration::from_secs(900), "linger", "must be at most 15m"),
            (
                !is_plain || self.tls.is_some(),
                "sasl",
                "with PLAIN would send the password in clear text: it needs `tls`",
            ),
        ];
        let wrong = checks.into_iter().filter(|(holds, ..)| !holds);
        let mut problems: Vec<_> =
            wrong.map(|(_, option, problem)| InvalidSetting { option, problem: problem.to_owned() }).collect();
        problems.extend(self.tls.as_ref().and_then(Tls::problem));
        problems.extend(options::problem(self));
        problems
    }

    /// The options of librdkafka.
    ///
    /// # Errors
    /// The password can't be read.
    pub(super) fn client(&self) -> Result<ClientConfig, SinkError> {
        let mut config = ClientConfig::new();
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", "sidestep")
            .set("security.protocol", protocol)
            .set("enable.idempotence", "true")
            // Every replica in sync has it.
            .set("acks", "all")
            // No message is given up because a broker is away: that takes place in front of the sink, by its rule.
            .set("message.timeout.ms", "0")
            .set("topic.metadata.propagation.max.ms", "10000")
            .set("reconnect.backoff.max.ms", "5000")
            .set("linger.ms", self.linger.as_millis().to_string())
            .set("compression.type", self.compression.as_str())
            .set("queue.buffering.max.kbytes", (self.producer_buffer.as_u64() / 1024).to_string())
            // The bytes are the bound.
            .set("queue.buffering.max.messages", "10000000")
            .set("message.max.bytes", self.max_message_bytes.as_u64().to_string())
            // As the Java producer does it, so that others who write the topic agree on the partition of a key.
            .set("partitioner", "murmur2_random")
            .set("statistics.interval.ms", "2000");
        if let Some(tls) = &self.tls {
            // OpenSSL's own default is a folder of the distribution that built it, which the agent's image has not.
            config.set("ssl.ca.location", "probe");
            let files = [
                ("ssl.ca.location", &tls.ca_file),
                ("ssl.certificate.location", &tls.cert_file),
                ("ssl.key.location", &tls.key_file),
            ];
            for (option, file) in files {
                if let Some(file) = file {
                    config.set(option, file.to_string_lossy());
                }
            }
            config.set("ssl.endpoint.identification.algorithm", "https");
        }
        if let Some(sasl) = &self.sasl {
            config
                .set("sasl.mechanism", sasl.mechanism.as_str())
                .set("sasl.username", &sasl.username)
                .set("sasl.password", sasl.file().secret().map_err(SinkError::of_file)?);
        }
        if self.compression == Compression::Zstd {
            config.set("compression.level", "1");
        }
        for (option, value) in &self.options {
            config.set(option, value);
        }
        Ok(config)
    }
}
