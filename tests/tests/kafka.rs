//! A real Kafka broker: lines arrive once and in order, whatever the broker does meanwhile.

use std::io::Write as _;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sidestep_tests::{Agent, Config, Expected, Testbed, end_to_end, kafka::Broker, status::wait_error};

/// The usual configuration with a Kafka sink beside the file sink.
fn config(bed: &Testbed, broker: &Broker<'_>, options: &Value) -> Config {
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
        let agent = Agent::start(bed, &config(bed, &broker, &json!({})))?;
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
        let in_order = bodies?
            .iter()
            .zip(1..)
            .all(|(record, number)| record["body"].as_str() == Some(number.to_string().as_str()));
        ensure!(in_order, "the lines of a stream are not in order");
        let header = |name: &str| stdout[0].headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
        ensure!(header("position") == Some("0") && header("container.id").is_none(), "{:?}", stdout[0].headers);
        ensure!(header("k8s.pod.name") == Some("app-pod") && header("class") == Some("pod"), "{:?}", stdout[0].headers);
        agent.stop()
    });
}

#[test]
fn a_broker_that_is_away_costs_time_and_no_line() {
    end_to_end(|bed| {
        let mut broker = Broker::start(bed)?;
        broker.stop();
        let config = config(bed, &broker, &json!({}));
        let agent = Agent::start(bed, &config)?;
        let script = "seq 2000; read go; seq 2001 4000; read go; seq 4001 6000; echo end; read go";
        let mut container = bed.container("app").shell(script).start()?;
        container.wait_stdout("2000\n")?;
        wait_error(&config, "kafka", &["no broker can be reached", "Connection refused", "see `brokers`"])?;
        ensure!(agent.get("/healthz")?.status == 200);
        broker.run()?;
        agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        // It takes connections and answers nothing.
        broker.freeze(true)?;
        container.stdin().write_all(b"\n")?;
        container.wait_stdout("4000\n")?;
        broker.freeze(false)?;
        agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        // Restarted while lines come.
        container.stdin().write_all(b"\n")?;
        broker.stop();
        container.wait_stdout("end\n")?;
        broker.run()?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        expected.compare(&broker.records("logs.pod")?)?;
        agent.stop()
    });
}

#[test]
fn a_missing_topic_holds_its_own_lines_only() {
    end_to_end(|bed| {
        let broker = Broker::with_options(bed, "auto.create.topics.enable=false")?;
        broker.create_topic("logs.there")?;
        let config = config(bed, &broker, &json!({ "topic": "logs.{container}" }));
        let agent = Agent::start(bed, &config)?;
        let there = bed.container("there").shell("seq 100; read hold").start()?;
        let missing = bed.container("missing").shell("seq 200; read hold").start()?;
        there.wait_stdout("100\n")?;
        missing.wait_stdout("200\n")?;
        let mut expected = Expected::new();
        expected.stdout(&there, there.stdout());
        agent.wait_ledger(there.id(), expected.total(there.id()))?;
        expected.compare(&broker.records("logs.there")?)?;
        wait_error(&config, "kafka", &["topic logs.missing", "create the topic"])?;
        broker.create_topic("logs.missing")?;
        let mut expected = Expected::new();
        expected.stdout(&missing, missing.stdout());
        agent.wait_ledger(missing.id(), expected.total(missing.id()))?;
        expected.compare(&broker.records("logs.missing")?)?;
        agent.stop()
    });
}

#[test]
fn a_line_that_is_too_large_is_dropped_and_counted_alone() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        let agent = Agent::start(bed, &config(bed, &broker, &json!({ "max_message_bytes": 20_000 })))?;
        let script = "echo before; head -c 30000 /dev/zero | tr '\\0' x; echo; echo after; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("after\n")?;
        let ledger = agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        ensure!(ledger.dropped_for("sink", "oversize") == 30_001 && ledger.dropped_total() == 30_001, "{ledger:?}");
        let records = broker.records("logs.pod")?;
        let bodies: Vec<_> = records.iter().map(|record| record.text("/body")).collect();
        ensure!(bodies == ["before", "after"], "{bodies:?}");
        agent.stop()
    });
}
