//! The buffer on disk before a real Kafka broker that freezes, while agents are killed.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, Config, Container, DEADLINE, Expected, Testbed, end_to_end, kafka::Broker, mounts, wait_until,
};

/// The usual configuration with a Kafka sink only.
fn config(bed: &Testbed, broker: &Broker<'_>, options: &Value) -> Config {
    let mut sink = json!({ "type": "kafka", "brokers": [broker.address()] });
    for (name, value) in options.as_object().into_iter().flatten() {
        sink[name] = value.clone();
    }
    bed.config().with("/sinks", json!([sink]))
}

fn of_sink(agent: &Agent, name: &str) -> Result<u64> {
    let value = agent.metrics()?.of_sink(&format!("sidestep_sink_{name}"), "kafka");
    Ok(value.with_context(|| format!("no metric {name}"))? as u64)
}

/// Waits until so many records are in the buffer on disk.
fn wait_buffered(agent: &Agent, records: u64) -> Result<()> {
    let mut last = 0;
    wait_until(&format!("{records} records in the buffer"), DEADLINE, || {
        last = of_sink(agent, "buffer_records")?;
        Ok((last >= records).then_some(()))
    })
    .with_context(|| format!("{last} are there: {}", agent.log()))
}

/// Waits until the buffer has nothing any more, and that is booked.
fn wait_empty(agent: &Agent, container: &Container) -> Result<()> {
    wait_until("an empty buffer", DEADLINE, || {
        let ledger = agent.ledger(container.id())?;
        let is_booked = ledger.pending == 0 && ledger.difference() == 0;
        Ok((is_booked && of_sink(agent, "buffer_bytes")? == 0).then_some(()))
    })
    .with_context(|| agent.log())
}

#[test]
fn a_killed_agent_leaves_its_buffer_to_the_next() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        let config = config(bed, &broker, &json!({ "buffer": { "spill_after": "50ms" } }));
        let agent = Agent::start(bed, &config)?;
        let mut container = bed.container("app").shell("seq 1000; read go; seq 1001 60000; read hold").start()?;
        container.wait_stdout("1000\n")?;
        agent.wait_ledger(container.id(), container.stdout().len() as u64)?;

        // It takes connections and answers nothing.
        broker.freeze(true)?;
        container.stdin().write_all(b"\n")?;
        container.wait_stdout("60000\n")?;
        let total = container.stdout().len() as u64;
        wait_buffered(&agent, 59_000)?;
        let ledger = agent.ledger(container.id())?;
        ensure!(ledger.produced == total && ledger.dropped_total() == 0 && ledger.difference() == 0, "{ledger:?}");
        ensure!(ledger.pending > 0, "{ledger:?}");
        agent.kill()?;

        let agent = Agent::start(bed, &config)?;
        ensure!(of_sink(&agent, "buffer_bytes")? > 0);
        broker.freeze(false)?;
        wait_empty(&agent, &container)?;
        let ledger = agent.ledger(container.id())?;
        ensure!(ledger.difference() == 0 && ledger.dropped_total() == 0 && ledger.pending == 0, "{ledger:?}");
        ensure!(ledger.delivered > 0, "{ledger:?}");
        let mut expected = Expected::new().with_repeats();
        expected.stdout(&container, container.stdout());
        wait_until("every line", DEADLINE, || Ok(expected.compare(&broker.records("logs.pod")?).ok()))
            .or_else(|late| expected.compare(&broker.records("logs.pod")?).context(late))?;
        agent.stop()
    });
}

#[test]
fn flipped_bits_cost_the_records_that_they_hit() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        let buffer = json!({ "spill_after": "50ms", "max_bytes": "16MiB", "max_unacknowledged": "256KiB" });
        let config = config(bed, &broker, &json!({ "buffer": buffer }));
        let agent = Agent::start(bed, &config)?;
        // The topic is there, and librdkafka knows it.
        let mut container = bed.container("app").shell("seq 10; read go; seq 11 60000; read hold").start()?;
        agent.wait_ledger(container.id(), 21)?;
        broker.freeze(true)?;
        container.stdin().write_all(b"\n")?;
        container.wait_stdout("60000\n")?;
        wait_buffered(&agent, 59_900)?;
        agent.kill()?;

        let directory = bed.directory().join("state/buffers/kafka");
        let mut files: Vec<_> = std::fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "segment"));
        let mut flipped = 0;
        for path in &files {
            let mut bytes = std::fs::read(path)?;
            for at in (5_000..bytes.len()).step_by(20_000) {
                bytes[at] ^= 0x10;
                flipped += 1;
            }
            std::fs::write(path, bytes)?;
        }
        ensure!(flipped > 10, "{flipped} bits");

        let agent = Agent::start(bed, &config)?;
        broker.freeze(false)?;
        wait_empty(&agent, &container)?;
        let mut lines = Vec::new();
        wait_until("all lines but those that were hit", DEADLINE, || {
            lines = broker.records("logs.pod")?.iter().map(|record| record.text("/body").to_owned()).collect();
            lines.sort_unstable();
            lines.dedup();
            ensure!(lines.iter().all(|line| line.parse().is_ok_and(|line: u32| line <= 60_000)), "a line nobody wrote");
            Ok((lines.len() + flipped >= 60_000).then_some(()))
        })
        .with_context(|| format!("{} lines, {flipped} bits", lines.len()))?;
        let missing = 60_000 - lines.len() as u64;
        let dropped =
            agent.metrics()?.of_sink("sidestep_sink_dropped_records_total", "kafka").unwrap_or_default() as u64;
        // What the killed agent had sent already came to the broker when that went on: some that were hit are there.
        let is_counted = (missing..=flipped as u64).contains(&dropped);
        ensure!(missing > 0 && is_counted, "{dropped} counted, {missing} missing, {flipped} bits");
        let ledger = agent.ledger(container.id())?;
        ensure!(ledger.difference() == 0 && ledger.pending == 0, "{ledger:?}");
        ensure!(
            ledger.dropped_for("sink", "damaged") == ledger.dropped_total() && ledger.dropped_total() > 0,
            "{ledger:?}"
        );
        agent.stop()
    });
}

#[test]
fn memory_stays_as_it_is_while_a_frozen_broker_fills_the_buffer() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        let config = config(
            bed,
            &broker,
            &json!({ "producer_buffer": "4MiB", "buffer": { "max_unacknowledged": "2MiB", "spill_after": "50ms" } }),
        );
        let agent = Agent::start(bed, &config)?;
        // In parts, each when the one before is in the buffer: beside it there is the queue, which a slow disk lets grow.
        let script = "echo 0; for part in 1 2 3 4 5 6; do read go; \
                      awk -v part=$part 'BEGIN { for (i = 0; i < 10000; i++) printf \"%0999d\\n\", part * 10000 + i }'; done; \
                      echo end; read hold";
        let mut container = bed.container("app").shell(script).start()?;
        container.wait_stdout("0\n")?;
        agent.wait_ledger(container.id(), 2)?;
        broker.freeze(true)?;
        let before = agent.resident_bytes()?;
        for part in 1..=6 {
            container.stdin().write_all(b"\n")?;
            wait_buffered(&agent, part * 10_000)?;
        }
        container.wait_stdout("end\n")?;
        let total = container.stdout().len() as u64;
        wait_until("all of it in the buffer", DEADLINE, || {
            let ledger = agent.ledger(container.id())?;
            Ok((ledger.produced == total && of_sink(&agent, "buffer_records")? >= 60_000).then_some(()))
        })
        .with_context(|| agent.log())?;
        ensure!(of_sink(&agent, "buffer_bytes")? > 60_000_000);
        // 60 MB have come. What the sink has at once is 2 MiB, and what librdkafka makes of it.
        let more = agent.resident_bytes()?.saturating_sub(before);
        ensure!(more < 40_000_000, "{more} bytes more");
        broker.freeze(false)?;
        let ledger = agent.wait_ledger(container.id(), total)?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        expected.compare(&broker.records("logs.pod")?)?;
        agent.stop()
    });
}

#[test]
fn what_a_clean_end_leaves_is_delivered_once() {
    end_to_end(|bed| {
        let mut broker = Broker::start(bed)?;
        broker.stop();
        let config = config(bed, &broker, &json!({})).with("/shutdown_timeout", json!("5s"));
        let agent = Agent::start(bed, &config)?;
        let container = bed.container("app").shell("seq 3000; read hold").start()?;
        container.wait_stdout("3000\n")?;
        wait_buffered(&agent, 3000)?;
        let log = agent.stop_with_log()?;
        ensure!(log.contains("left in the buffer for the next agent"), "{log}");
        ensure!(!log.contains("stopped before everything was delivered"), "{log}");
        broker.run()?;
        let agent = Agent::start(bed, &config)?;
        wait_empty(&agent, &container)?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        expected.compare(&broker.records("logs.pod")?)?;
        let ledger = agent.ledger(container.id())?;
        ensure!(ledger.difference() == 0 && ledger.pending == 0 && ledger.delivered >= container.stdout().len() as u64);
        agent.stop()
    });
}

#[test]
fn a_full_disk_loses_no_line_of_a_file() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        let config = config(
            bed,
            &broker,
            &json!({ "buffer": { "max_unacknowledged": "64KiB", "spill_after": "50ms" }, "queue": {"max_bytes": "1MiB"} }),
        );
        // Large enough for positions, too small for the buffer.
        let buffers = bed.path("state/buffers/kafka")?;
        mounts::tmpfs(&buffers, "1m")?;
        let agent = Agent::start(bed, &config)?;
        let script = "echo 0; read go; awk 'BEGIN { for (i = 1; i <= 40000; i++) printf \"%0199d\\n\", i }' > /var/log/app.log; \
                      read go; echo end; read hold";
        let mut container = bed.container("app").shell(script).start()?;
        container.wait_stdout("0\n")?;
        agent.wait_ledger(container.id(), 2)?;
        broker.freeze(true)?;
        container.stdin().write_all(b"\n")?;
        wait_until("a clear error", DEADLINE, || Ok(agent.log().contains("free the disk of state_dir").then_some(())))
            .with_context(|| agent.log())?;
        broker.freeze(false)?;
        let in_file = 40_000 * 200;
        agent.wait_ledger(container.id(), in_file + 2)?;
        // Not before there is room again: a pipe has no other place for it.
        container.stdin().write_all(b"\n")?;
        container.wait_stdout("end\n")?;
        let file: String = (1..=40_000).map(|line| format!("{line:0199}\n")).collect();
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout()).file(&container, "/var/log/app.log", &file);
        let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        let mut records = broker.records("logs.pod")?;
        records.extend(broker.records("logs.business")?);
        expected.compare(&records)?;
        agent.stop()
    });
}
