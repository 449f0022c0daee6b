//! Messages of Kafka as OpenTelemetry's collector reads them, decoded by its own definitions.

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    logs::v1::LogsData,
};
use prost::Message as _;
use serde_json::json;
use sidestep_tests::{Agent, end_to_end, kafka::Broker};

/// What is compared of the one record in a message.
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

fn record(payload: &[u8]) -> Result<Record> {
    let mut logs = LogsData::decode(payload)?.resource_logs;
    ensure!(logs.len() == 1 && logs[0].scope_logs.len() == 1, "{logs:?}");
    let mut logs = logs.remove(0);
    let resource = logs.resource.context("a resource")?.attributes;
    let mut records = logs.scope_logs.remove(0).log_records;
    ensure!(records.len() == 1, "{records:?}");
    let record = records.remove(0);
    let Some(Value::StringValue(body)) = record.body.and_then(|body| body.value) else {
        anyhow::bail!("a body that is no text")
    };
    let Value::IntValue(position) = value(&record.attributes, "sidestep.position")? else {
        anyhow::bail!("a position that is no number")
    };
    Ok(Record {
        body,
        uid: text(&record.attributes, "log.record.uid")?,
        position,
        pod: text(&resource, "k8s.pod.name")?,
        container: text(&resource, "container.id")?,
    })
}

#[test]
fn a_message_is_a_request_of_one_record() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        let sink = json!({ "type": "kafka", "brokers": [broker.address()], "encoding": "otlp_proto" });
        let agent = Agent::start(bed, &bed.config().with("/sinks", json!([sink])))?;
        let container = bed.container("app").shell("seq 500; read hold").start()?;
        container.wait_stdout("500\n")?;
        agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        let messages = broker.messages("logs.pod")?;
        ensure!(messages.len() == 500, "{} messages", messages.len());
        let mut position = 0;
        for (message, number) in messages.iter().zip(1_u32..) {
            let record = record(&message.payload)?;
            ensure!(record.body == number.to_string(), "{} instead of {number}", record.body);
            ensure!(record.position == position, "{} instead of {position}", record.position);
            ensure!(record.uid == format!("{}@{position}", message.key), "{}", record.uid);
            ensure!(
                record.pod == "app-pod" && record.container == container.id(),
                "{} {}",
                record.pod,
                record.container
            );
            position += i64::try_from(record.body.len())? + 1;
        }
        agent.stop()
    });
}
