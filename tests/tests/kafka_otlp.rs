//! Messages of Kafka as OpenTelemetry's collector reads them, decoded by its own definitions.

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    logs::v1::LogsData,
};
use prost::Message as _;
use serde_json::json;
use sidestep_tests::{Agent, Config, Testbed, end_to_end, kafka::Broker};

/// What is compared of a record.
struct Record {
    body: String,
    uid: String,
    position: i64,
    pod: String,
    container: String,
}

fn text(attributes: &[KeyValue], name: &str) -> Result<String> {
    match value(attributes, name)? {
        Value::StringValue(text) => Ok(text),
        other => Err(anyhow::anyhow!("{name} is no text: {other:?}")),
    }
}

fn value(attributes: &[KeyValue], name: &str) -> Result<Value> {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    let value = found.and_then(|attribute| attribute.value.clone()?.value);
    value.with_context(|| format!("no {name} in {attributes:?}"))
}

/// The records of a message, which are of one stream.
fn records(payload: &[u8]) -> Result<Vec<Record>> {
    let mut logs = LogsData::decode(payload)?.resource_logs;
    ensure!(logs.len() == 1 && logs[0].scope_logs.len() == 1, "{logs:?}");
    let mut logs = logs.remove(0);
    let resource = logs.resource.context("a resource")?.attributes;
    let records = logs.scope_logs.remove(0).log_records.into_iter().map(|record| {
        let Some(Value::StringValue(body)) = record.body.and_then(|body| body.value) else {
            anyhow::bail!("a body that is no text")
        };
        let Value::IntValue(position) = value(&record.attributes, "sidestep.position")? else {
            anyhow::bail!("a position that is no number")
        };
        let uid = text(&record.attributes, "log.record.uid")?;
        let (pod, container) = (text(&resource, "k8s.pod.name")?, text(&resource, "container.id")?);
        Ok(Record { body, uid, position, pod, container })
    });
    records.collect()
}

fn config(bed: &Testbed, broker: &Broker<'_>) -> Config {
    let sink = json!({ "type": "kafka", "brokers": [broker.address()], "encoding": "otlp_proto" });
    bed.config().with("/sinks", json!([sink]))
}

#[test]
fn a_message_is_a_request_with_lines_of_one_stream() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        let agent = Agent::start(bed, &config(bed, &broker))?;
        let container = bed.container("app").shell("seq 5000; read hold").start()?;
        container.wait_stdout("5000\n")?;
        agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        let messages = broker.messages("logs.pod")?;
        ensure!(messages.len() < 1000, "{} messages for 5000 lines", messages.len());
        let (mut position, mut number) = (0, 0_u32);
        for message in &messages {
            for record in records(&message.payload)? {
                number += 1;
                ensure!(record.body == number.to_string(), "{} instead of {number}", record.body);
                ensure!(record.position == position, "{} instead of {position}", record.position);
                ensure!(record.uid == format!("{}@{position}", message.key), "{}", record.uid);
                let Record { pod, container: id, .. } = &record;
                ensure!(pod == "app-pod" && id == container.id(), "{pod} {id}");
                position += i64::try_from(record.body.len())? + 1;
            }
        }
        ensure!(number == 5000, "{number} lines");
        agent.stop()
    });
}

#[test]
fn a_line_that_the_topic_does_not_take_is_found_among_others() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        broker.create_topic_with("logs.pod", "max.message.bytes", "20000")?;
        // A broker measures what it gets.
        let config = config(bed, &broker).with("/sinks/0/compression", json!("none"));
        let agent = Agent::start(bed, &config)?;
        // One line of 30,000 bytes among short ones.
        let script = "seq 1000; head -c 30000 /dev/zero | tr '\\0' x; echo; seq 1001 2000; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("2000\n")?;
        let total = container.stdout().len() as u64;
        let ledger = agent.wait_ledger(container.id(), total)?;
        ensure!(ledger.dropped_for("sink", "oversize") == 30_001, "{ledger:?}");
        ensure!(ledger.dropped_total() == 30_001 && ledger.delivered == total - 30_001, "{ledger:?}");
        let mut numbers = Vec::new();
        for message in broker.messages("logs.pod")? {
            for record in records(&message.payload)? {
                numbers.push(record.body.parse::<u32>()?);
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        ensure!(numbers.into_iter().eq(1..=2000), "not every other line is there");
        agent.stop()
    });
}
