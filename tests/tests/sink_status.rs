//! What `sidestep status` says of a sink while its broker answers, is frozen, and answers again.

use std::{
    io::Write as _,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidestep_tests::{Agent, Config, DEADLINE, agent::binary, end_to_end, kafka::Broker, status::of_sink, wait_until};

fn number(status: &Value, name: &str) -> f64 {
    status[name].as_f64().unwrap_or_default()
}

/// Waits until what it says of the sink is as it should be.
fn wait(config: &Config, what: &str, good: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    wait_until(what, DEADLINE, || {
        last = of_sink(config, "kafka")?;
        Ok(good(&last).then(|| last.clone()))
    })
    .with_context(|| format!("{last:#}"))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[test]
fn a_frozen_broker_shows_as_lag() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        let sink =
            json!({ "type": "kafka", "brokers": [broker.address()], "buffer": { "max_unacknowledged": "64KiB" } });
        let config = bed.config().with("/sinks", json!([sink]));
        let agent = Agent::start(bed, &config)?;
        let status = of_sink(&config, "kafka")?;
        ensure!(
            number(&status, "lag_seconds") == 0.0 && status["acknowledged_up_to_unix_seconds"].is_null(),
            "{status}"
        );

        let mut container = bed.container("app").shell("seq 1000; read go; seq 1001 60000; read hold").start()?;
        container.wait_stdout("1000\n")?;
        let begin = now();
        let status = wait(&config, "all of it acknowledged", |status| {
            number(status, "delivered_records") == 1000.0 && number(status, "behind_records") == 0.0
        })?;
        ensure!(number(&status, "lag_seconds") == 0.0 && number(&status, "behind_bytes") == 0.0, "{status}");
        ensure!(number(&status, "records_per_second") > 0.0 && number(&status, "bytes_per_second") > 0.0, "{status}");
        let up_to = number(&status, "acknowledged_up_to_unix_seconds");
        ensure!(up_to > begin - 60.0 && up_to <= now(), "{up_to} is not between {begin} and now");

        // More than the sink has at once, so that some of it is on disk only.
        broker.freeze(true)?;
        container.stdin().write_all(b"\n")?;
        container.wait_stdout("60000\n")?;
        let frozen = now();
        let status = wait(&config, "a lag that grows", |status| {
            number(status, "lag_seconds") > 3.0
                && number(status, "behind_records") == 59_000.0
                && status["buffer"]["records"].as_f64().is_some_and(|records| records > 50_000.0)
        })?;
        // As they are in the stream, or more where they are on disk only.
        let written = container.stdout().len() - 3893;
        ensure!(number(&status, "behind_bytes") >= written as f64, "{written} bytes: {status}");
        let stands = number(&status, "acknowledged_up_to_unix_seconds");
        ensure!(stands >= up_to && stands <= frozen, "{stands} is not between {up_to} and {frozen}");
        wait(&config, "a rate of nothing", |status| number(status, "records_per_second") == 0.0)?;
        let mut shown = Command::new(binary()?);
        let shown = shown.args(["status", "--socket"]).arg(config.socket()).output()?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        for part in ["LAG", "BEHIND", "59000", "acknowledged up to 20", "buffer: "] {
            ensure!(shown.contains(part), "{part} is not in\n{shown}");
        }

        broker.freeze(false)?;
        let status = wait(&config, "no lag any more", |status| {
            number(status, "delivered_records") == 60_000.0 && number(status, "lag_seconds") == 0.0
        })?;
        ensure!(number(&status, "behind_records") == 0.0 && number(&status, "records_per_second") > 0.0, "{status}");
        ensure!(number(&status, "acknowledged_up_to_unix_seconds") > stands, "{status}");
        agent.stop()
    });
}
