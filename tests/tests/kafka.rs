//! A real Kafka broker: lines arrive once and in order, whatever the broker does meanwhile.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use sidestep_tests::{Agent, Config, DEADLINE, Expected, Testbed, end_to_end, kafka::Broker, wait_until};

/// The usual configuration with a Kafka sink beside the file sink.
fn config(bed: &Testbed, broker: &Broker<'_>, options: Value) -> Config {
    let mut sink = json!({ "type": "kafka", "brokers": [broker.address()] });
    for (name, value) in options.as_object().into_iter().flatten() {
        sink[name] = value.clone();
    }
    bed.config().with("/sinks", json!([sink]))
}

#[test]
fn lines_arrive_with_their_identity_and_in_order() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        let agent = Agent::start(bed, &config(bed, &broker, json!({})))?;
        let container =
            bed.container("app").shell("seq 5000; echo error >&2; seq 100 > /var/log/app.log; read hold").start()?;
        container.wait_stdout("5000\n")?;
        let file: String = (1..=100).map(|line| format!("{line}\n")).collect();
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout()).stderr(&container, "error\n");
        expected.file(&container, "/var/log/app.log", &file);
        agent.wait_ledger(container.id(), expected.total(container.id()))?;

        let mut records = broker.records("logs.pod")?;
        records.extend(broker.records("logs.business")?);
        expected.compare(&records)?;
        let messages = broker.messages("logs.pod")?;
        let stdout: Vec<_> = messages.iter().filter(|message| message.key.contains("/stdout/")).collect();
        ensure!(stdout.len() == 5000 && stdout.iter().all(|message| message.partition == stdout[0].partition));
        let bodies: Result<Vec<Value>, _> =
            stdout.iter().map(|message| serde_json::from_slice(&message.payload)).collect();
        let in_order = bodies?.iter().zip(1..).all(|(record, number)| record["body"] == number.to_string());
        ensure!(in_order, "the lines of a stream are not in order");
        let header = |name: &str| stdout[0].headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
        ensure!(header("k8s.pod.name") == Some("app-pod") && header("class") == Some("pod"), "{:?}", stdout[0].headers);
        agent.stop()
    });
}
