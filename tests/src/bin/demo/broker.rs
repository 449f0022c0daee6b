//! A Kafka broker beside the agent, and a consumer that reads what comes to it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rdkafka::Offset;
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, Testbed,
    kafka::{Broker, consumer::Follower},
    ledger::Metrics,
};

use crate::{account::Accounts, samples::Samples, screen::Screen};

/// The sink's name.
const SINK: &str = "kafka";

/// The topics of the default template.
const TOPICS: [&str; 2] = ["logs.pod", "logs.business"];

/// How often the account is shown.
const PERIOD: Duration = Duration::from_secs(2);

/// How long the consumer may take for what is left.
const CATCH_UP: Duration = Duration::from_secs(20);

/// The broker and its reader.
pub(crate) struct Kafka<'bed> {
    // Before the broker, which it talks to.
    reader: Follower,
    broker: Broker<'bed>,
    /// Bytes of streams that the consumer has read, by container id.
    received: HashMap<String, u64>,
    shown: Instant,
}

impl<'bed> Kafka<'bed> {
    /// Starts a broker and a consumer.
    pub(crate) fn start(bed: &'bed Testbed) -> Result<Self> {
        let broker = Broker::start(bed)?;
        TOPICS.iter().try_for_each(|topic| broker.create_topic(topic))?;
        let reader = Follower::new(&broker, &TOPICS, Offset::Beginning)?;
        Ok(Self { reader, broker, received: HashMap::new(), shown: Instant::now() })
    }

    /// The broker's address.
    pub(crate) fn address(&self) -> String {
        self.broker.address()
    }

    /// The sink that delivers to it.
    pub(crate) fn sink(&self) -> Value {
        json!({ "type": "kafka", "name": SINK, "brokers": [self.address()] })
    }

    /// Reads what has come, and shows the account now and then.
    pub(crate) fn tick(&mut self, agent: &Agent, screen: &Screen) -> Result<()> {
        self.read()?;
        if self.shown.elapsed() >= PERIOD {
            self.shown = Instant::now();
            self.show(&agent.metrics()?, screen)?;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        while let Some(message) = self.reader.next(Duration::ZERO)? {
            let record = message.record()?;
            let length = record["length"].as_u64().context("a record without its length")?;
            let container = record["resource"]["container.id"].as_str().unwrap_or_default().to_owned();
            *self.received.entry(container).or_default() += length;
        }
        Ok(())
    }

    fn show(&self, metrics: &Metrics, screen: &Screen) -> Result<()> {
        let of_sink = |name| metrics.of_sink(name, SINK).unwrap_or_default();
        screen.note(&format!(
            "kafka: {} lines acknowledged (by whole batches), {} in the producer, round trip {:.0} ms (p99); \
             a consumer has read {}, {} behind",
            of_sink("sidestep_sink_delivered_records_total"),
            of_sink("sidestep_kafka_buffered_messages"),
            1e3 * of_sink("sidestep_kafka_round_trip_p99_seconds"),
            self.reader.read(),
            self.reader.lag()?,
        ));
        Ok(())
    }

    /// Lets the consumer read all that there is, and compares: what the ledgers call delivered is what it has read.
    pub(crate) fn finish(
        &mut self,
        agent: &Agent,
        accounts: &mut Accounts,
        samples: &Samples,
        screen: &Screen,
    ) -> Result<()> {
        let end = Instant::now() + CATCH_UP;
        while self.reader.lag()? > 0 && Instant::now() < end {
            self.read()?;
        }
        self.show(&agent.metrics()?, screen)?;
        for (id, row) in samples.all().map(|sample| sample.container.id()).zip(accounts.table(samples)?) {
            let received = self.received.get(id).copied().unwrap_or_default();
            ensure!(
                received == row.ledger.delivered,
                "{}: the ledger says that {} bytes are delivered, and a consumer of Kafka has read {received}",
                row.pod,
                row.ledger.delivered
            );
        }
        screen.text("what the ledgers call delivered is, for each Pod, what the consumer has read from Kafka");
        Ok(())
    }
}
