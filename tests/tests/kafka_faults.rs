//! A broker that is no broker, and one that has lost its disk: what was not acknowledged arrives, in order.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, Config, Container, DEADLINE, Expected, Testbed, end_to_end, kafka::Broker, status::wait_error, wait_until,
};

fn config(bed: &Testbed, address: &str, options: &Value) -> Config {
    let mut sink = json!({ "type": "kafka", "brokers": [address] });
    for (name, value) in options.as_object().into_iter().flatten() {
        sink[name] = value.clone();
    }
    bed.config().with("/sinks", json!([sink]))
}

fn reload(agent: &Agent, config: &Config) -> Result<()> {
    fs::write(agent.config_file(), config.text())?;
    agent.reload()
}

/// Numbers of the lines in the partitions of a topic, one partition after the other.
fn numbers(broker: &Broker<'_>, topic: &str) -> Result<Vec<u64>> {
    let number = |record: &sidestep_tests::records::Record| record.text("/body").parse().context("a number");
    broker.records(topic)?.iter().map(number).collect()
}

/// Listens, takes every connection, and answers what no broker would. It ends when dropped.
struct Babbler {
    address: String,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Babbler {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for answer in
                [b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(), &[0xff; 64], &[0, 0, 0, 8, 0, 0, 0, 1, 9, 9, 9, 9]]
                    .iter()
                    .cycle()
            {
                let mut connection = loop {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    match listener.accept() {
                        Ok((connection, _)) => break connection,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(10)),
                        Err(_) => return,
                    }
                };
                // The client may be gone already.
                let _ = connection.set_nonblocking(false);
                let _ = connection.set_read_timeout(Some(Duration::from_secs(1)));
                let _ = connection.read(&mut [0; 256]);
                let _ = connection.write_all(answer);
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for Babbler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn who_answers_garbage_gets_nothing_and_breaks_nothing() {
    end_to_end(|bed| {
        let babbler = Babbler::start()?;
        let wrong = config(bed, &babbler.address, &json!({}));
        let agent = Agent::start(bed, &wrong)?;
        let container = bed.container("app").shell("seq 3000; read hold").start()?;
        container.wait_stdout("3000\n")?;
        println!("{}", wait_error(&wrong, "kafka", &["no broker can be reached", &babbler.address, "see `brokers`"])?);
        let broker = Broker::start(bed)?;
        ensure!(agent.get("/healthz")?.status == 200);
        reload(&agent, &config(bed, &broker.address(), &json!({})))?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        expected.compare(&broker.records("logs.pod")?)?;
        ensure!(numbers(&broker, "logs.pod")?.into_iter().eq(1..=3000), "a stream is out of order");
        agent.stop()
    });
}

#[test]
fn a_broker_that_comes_back_empty_gets_all_that_it_has_not_acknowledged() {
    end_to_end(|bed| {
        let mut broker = Broker::start(bed)?;
        let first = config(bed, &broker.address(), &json!({}));
        let agent = Agent::start(bed, &first)?;
        let script =
            "seq 1000; read go; seq 1001 2000; read go; seq 2001 4000; read go; seq 4001 5000; echo end; read go";
        let mut container = bed.container("app").shell(script).start()?;
        let settled = |container: &Container, lines: &str| -> Result<()> {
            container.wait_stdout(lines)?;
            let ledger = agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
            ensure!(ledger.dropped_total() == 0, "{ledger:?}");
            Ok(())
        };
        // Its partitions have seen several leaders when it is lost, and the new one begins to count anew.
        settled(&container, "1000\n")?;
        container.stdin().write_all(b"\n")?;
        for _ in 0..2 {
            broker.stop();
            broker.run()?;
        }
        settled(&container, "2000\n")?;
        // Nothing that comes now is acknowledged before the disk is lost.
        broker.stop();
        container.stdin().write_all(b"\n")?;
        container.wait_stdout("4000\n")?;
        wait_error(&first, "kafka", &["no broker can be reached"])?;
        // The sink is replaced while nobody takes what it has.
        let second = config(bed, &broker.address(), &json!({ "linger": "10ms" }));
        reload(&agent, &second)?;
        wait_until("the new sink", Duration::from_secs(30), || Ok(agent.log().contains("reload done").then_some(())))?;
        broker.wipe()?;
        broker.run()?;
        let ledger = agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        let found = numbers(&broker, "logs.pod")?;
        let wrong = found.iter().zip(2001..).find(|(number, expected)| *number != expected);
        ensure!(
            wrong.is_none() && found.len() == 2000,
            "{} lines, and a line is not in its place: {wrong:?}",
            found.len()
        );
        // Lost once more, under a producer that knows the cluster.
        broker.stop();
        container.stdin().write_all(b"\n")?;
        container.wait_stdout("end\n")?;
        broker.wipe()?;
        broker.run()?;
        let ledger = agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        let bodies: Vec<_> = broker.records("logs.pod")?.iter().map(|record| record.text("/body").to_owned()).collect();
        let expected: Vec<_> = (4001..=5000).map(|number| number.to_string()).chain(["end".to_owned()]).collect();
        ensure!(bodies == expected, "a line is missing, twice or out of order: {} lines", bodies.len());
        agent.stop()
    });
}

#[test]
fn a_line_over_the_brokers_limit_is_dropped_alone() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        broker.create_topic_with("logs.pod", "max.message.bytes", "20000")?;
        // Nothing is compressed away, and many lines wait for one batch.
        let options = json!({ "compression": "none", "linger": "500ms", "max_message_bytes": 500_000 });
        let agent = Agent::start(bed, &config(bed, &broker.address(), &options))?;
        let script =
            "seq 1000; head -c 60000 /dev/zero | tr '\\0' x; echo; seq 1001 2000; read go; seq 2001 2020; read hold";
        let mut container = bed.container("app").shell(script).start()?;
        container.wait_stdout("2000\n")?;
        let ledger = agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        ensure!(ledger.dropped_for("sink", "oversize") == 60_001 && ledger.dropped_total() == 60_001, "{ledger:?}");
        // The line is found, so that others need no small batches any more.
        ensure!(agent.log().contains("the next ones have at most"), "no batch was refused");
        wait_until("large batches", DEADLINE, || {
            Ok(agent.log().contains("batches are as large as before").then_some(()))
        })?;
        container.stdin().write_all(b"\n")?;
        container.wait_stdout("2020\n")?;
        let ledger = agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        ensure!(ledger.dropped_total() == 60_001, "{ledger:?}");
        let mut found = numbers(&broker, "logs.pod")?;
        // What was on its way while the batches became smaller may come twice.
        found.sort_unstable();
        found.dedup();
        ensure!(found.into_iter().eq(1..=2020), "a line is missing");
        agent.stop()
    });
}

#[test]
fn a_topic_that_is_made_after_an_outage_gets_its_lines_though_patience_would_be_over() {
    end_to_end(|bed| {
        let mut broker = Broker::with_options(bed, "auto.create.topics.enable=false")?;
        let config = config(bed, &broker.address(), &json!({ "give_up_after": "15s" }));
        let agent = Agent::start(bed, &config)?;
        let container = bed.container("app").shell("seq 500; read hold").start()?;
        container.wait_stdout("500\n")?;
        wait_error(&config, "kafka", &["topic logs.pod", "create the topic"])?;
        broker.stop();
        wait_error(&config, "kafka", &["no broker can be reached"])?;
        wait_until("an outage longer than the sink's patience", DEADLINE * 2, || {
            let failing = agent.metrics()?.of_sink("sidestep_sink_failing_seconds", "kafka");
            Ok((failing > Some(25.0)).then_some(()))
        })?;
        broker.run()?;
        broker.create_topic("logs.pod")?;
        let ledger = agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        ensure!(numbers(&broker, "logs.pod")?.into_iter().eq(1..=500), "a line is missing or not in its place");
        agent.stop()
    });
}
