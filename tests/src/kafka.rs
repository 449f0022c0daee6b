//! A real Kafka broker, alone with itself (KRaft), and what it holds.

pub mod consumer;
pub mod security;

use std::{fmt::Write as _, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::{
    ClientConfig, Message as _, Offset,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode,
    message::{BorrowedMessage, Headers as _},
    metadata::MetadataTopic,
};
use rustix::process::Signal;
use serde_json::Value;

use self::{consumer::Follower, security::Security};
use crate::{DEADLINE, Testbed, daemon::Daemon, http::free_port, maven, records::Record, wait_until};

/// Partitions of topics that are made by being written to.
const PARTITIONS: u32 = 3;

/// A broker. It is ended when dropped.
#[derive(Debug)]
pub struct Broker<'bed> {
    bed: &'bed Testbed,
    jars: PathBuf,
    data: PathBuf,
    port: u16,
    options: String,
    security: Option<Security>,
    daemon: Option<Daemon>,
}

/// One message.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where it stood.
    pub partition: i32,
    /// Its key.
    pub key: String,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Milliseconds since the Unix epoch.
    pub timestamp: Option<i64>,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// The record that it is.
    ///
    /// # Errors
    /// It is none.
    pub fn record(&self) -> Result<Value> {
        serde_json::from_slice(&self.payload).context("a message that is no record")
    }

    fn new(message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Self {
            partition: message.partition(),
            key: text(message.key()),
            headers: headers.map(|header| (header.key.to_owned(), text(header.value))).collect(),
            timestamp: message.timestamp().to_millis(),
            payload: message.payload().unwrap_or_default().to_vec(),
        }
    }

    /// The value of a header; empty when it has none of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

impl<'bed> Broker<'bed> {
    /// Starts a broker with an empty disk, and waits until it answers.
    ///
    /// # Errors
    /// There is no Java, its jars can't be fetched, or it does not come up.
    pub fn start(bed: &'bed Testbed) -> Result<Self> {
        Self::with_options(bed, "")
    }

    /// The same with more lines for `server.properties`.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub fn with_options(bed: &'bed Testbed, options: &str) -> Result<Self> {
        Self::make(bed, options, None)
    }

    /// The same with all of the listeners of `security`, and an authorizer that allows everything that is not denied.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub fn with_security(bed: &'bed Testbed, options: &str, security: Security) -> Result<Self> {
        Self::make(bed, options, Some(security))
    }

    fn make(bed: &'bed Testbed, options: &str, security: Option<Security>) -> Result<Self> {
        let (jars, data, options) = (maven::kafka()?, bed.path("kafka/data")?, options.to_owned());
        let mut broker = Self { bed, jars, data, port: free_port()?, options, security, daemon: None };
        broker.format()?;
        broker.run()?;
        Ok(broker)
    }

    /// The listeners with TLS and users.
    ///
    /// # Panics
    /// It was started without.
    #[must_use]
    pub fn security(&self) -> &Security {
        self.security.as_ref().expect("a broker with security")
    }

    /// Denies the user of [`Security`] to do anything with a topic.
    ///
    /// # Errors
    /// The broker does not take it.
    pub fn deny_topic(&self, topic: &str) -> Result<()> {
        security::deny_topic(&self.address(), topic)
    }

    /// `127.0.0.1:port`
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends the broker in order; [`Broker::run`] starts it again with what it holds.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// Ends the broker at once, as when its machine fails; [`Broker::run`] starts it again with what it holds.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("the broker is stopped")?.signal(Signal::KILL)
    }

    /// Takes away all that it holds, while it is stopped.
    ///
    /// # Errors
    /// The directory can't be emptied.
    pub fn wipe(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the broker runs");
        fs::remove_dir_all(&self.data)?;
        self.format()
    }

    /// Lets it answer nothing any more, or go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self, freeze: bool) -> Result<()> {
        let daemon = self.daemon.as_ref().context("the broker is stopped")?;
        daemon.signal(if freeze { Signal::STOP } else { Signal::CONT })
    }

    /// Starts it, and waits until it answers.
    ///
    /// # Errors
    /// It does not come up in time.
    pub fn run(&mut self) -> Result<()> {
        let mut command = self.java();
        command.args(["-Xmx512m", "kafka.Kafka"]).arg(self.properties());
        let log = self.bed.path("kafka/broker.stderr")?;
        let mut daemon = Daemon::start(self.bed, &mut command, &log, "default-jre-headless")?;
        let client = self.client().create::<BaseConsumer>()?;
        wait_until("the broker", DEADLINE * 4, || {
            if let Some(status) = daemon.ended()? {
                bail!("the broker ended: {status}");
            }
            Ok(client.fetch_metadata(None, Duration::from_secs(1)).is_ok().then_some(()))
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn java(&self) -> Command {
        let mut command = Command::new("java");
        // Neither compiles for long nor takes memory before it needs it.
        command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
        command.arg(self.jars.join("*"));
        command
    }

    fn properties(&self) -> PathBuf {
        self.data.with_file_name("server.properties")
    }

    fn format(&mut self) -> Result<()> {
        let controller = free_port()?;
        let (port, data) = (self.port, self.data.display());
        let listeners = self.security.as_ref().map(Security::listeners).unwrap_or_default();
        let mut text = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}\n\
             controller.listener.names=CONTROLLER\nlog.dirs={data}\noffsets.topic.replication.factor=1\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\nnum.partitions={PARTITIONS}\n"
        );
        text += &self.security.as_ref().map(Security::properties).unwrap_or_default();
        writeln!(text, "{}", self.options)?;
        fs::write(self.properties(), text)?;
        let mut command = self.java();
        command.args(["kafka.tools.StorageTool", "format", "-t", "c2lkZXN0ZXAtdGVzdHMtMQ", "-c"]);
        command.arg(self.properties());
        if self.security.is_some() {
            command.args(Security::users());
        }
        let output = command.output().context("running java: apt-get install maven")?;
        ensure!(output.status.success(), "formatting: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.address()).set("group.id", "tests").set("log_level", "0");
        config
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// The broker does not make it.
    pub fn create_topic(&self, topic: &str) -> Result<()> {
        self.make_topic(&NewTopic::new(topic, PARTITIONS.try_into()?, TopicReplication::Fixed(1)))
    }

    fn make_topic(&self, topic: &NewTopic<'_>) -> Result<()> {
        let admin = self.client().create::<AdminClient<DefaultClientContext>>()?;
        let results = futures_executor::block_on(admin.create_topics([topic], &AdminOptions::new()))?;
        for result in results {
            result.map_err(|(topic, code)| anyhow::anyhow!("making topic {topic}: {code}"))?;
        }
        Ok(())
    }

    /// Makes a topic with an option (`max.message.bytes`).
    ///
    /// # Errors
    /// The broker does not make it.
    pub fn create_topic_with(&self, topic: &str, option: &str, value: &str) -> Result<()> {
        self.make_topic(&NewTopic::new(topic, PARTITIONS.try_into()?, TopicReplication::Fixed(1)).set(option, value))
    }

    /// All messages of a topic, partition by partition; none when there is no such topic.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn messages(&self, topic: &str) -> Result<Vec<Message>> {
        let consumer = self.client().create::<BaseConsumer>()?;
        // Of all topics: a question for this one would make it.
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(10)).context("the broker's metadata")?;
        let mut messages = Vec::new();
        if metadata.topics().iter().any(|known| known.name() == topic) {
            self.follow(topic, Offset::Beginning)?.drain(|message| {
                messages.push(message);
                Ok(())
            })?;
        }
        messages.sort_by_key(|message| message.partition);
        Ok(messages)
    }

    /// How many messages a topic holds; none when there is no such topic.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn count(&self, topic: &str) -> Result<u64> {
        let consumer = self.client().create::<BaseConsumer>()?;
        let limit = Duration::from_secs(10);
        let metadata = consumer.fetch_metadata(Some(topic), limit).context("the broker's metadata")?;
        let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        let counts = partitions.map(|partition| {
            match consumer.fetch_watermarks(topic, partition.id(), limit) {
                Ok((low, high)) => Ok(high.abs_diff(low)),
                // One that was just made has no leader yet.
                Err(error) if error.rdkafka_error_code().is_some_and(is_being_made) => Ok(0),
                Err(error) => Err(error.into()),
            }
        });
        counts.sum()
    }

    /// Follows a topic from its end on, or from its beginning, as soon as messages come.
    ///
    /// # Errors
    /// The broker does not answer, or has no such topic.
    pub fn follow(&self, topic: &str, from: Offset) -> Result<Follower> {
        Follower::new(self, &[topic], from)
    }

    /// The records in the messages of a topic.
    ///
    /// # Errors
    /// The broker does not answer, or a message is no record.
    pub fn records(&self, topic: &str) -> Result<Vec<Record>> {
        let parse = |message: Message| Ok(Record { file: topic.into(), value: message.record()? });
        self.messages(topic)?.into_iter().map(parse).collect()
    }
}

/// Whether a partition is only just being made.
const fn is_being_made(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::LeaderNotAvailable
            | RDKafkaErrorCode::NotLeaderForPartition
    )
}
