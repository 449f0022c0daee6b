//! A real broker with TLS, users and rights: who says what is asked for gets through; who does not is told what is wrong,
//! and loses nothing once it is put right.

use std::{fs, path::Path};

use anyhow::ensure;
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, DEADLINE, Expected, config, end_to_end,
    kafka::{
        Broker,
        security::{PASSWORD, Security, USER},
    },
    status::wait_error,
    wait_until,
};

/// A sink with a topic of its own.
fn sink(name: &str, broker: &str, options: &Value) -> Value {
    config::sink(
        json!({ "type": "kafka", "name": name, "brokers": [broker], "topic": format!("logs.{name}") }),
        options,
    )
}

fn sasl(mechanism: &str, password_file: &Path) -> Value {
    json!({ "mechanism": mechanism, "username": USER, "password_file": password_file })
}

#[test]
fn who_is_who_is_said_and_what_is_wrong_is_told() {
    end_to_end(|bed| {
        let broker = Broker::with_security(bed, "", Security::new(bed)?)?;
        let security = broker.security();
        let (right, wrong) = (bed.path("right")?, bed.path("wrong")?);
        fs::write(&right, format!("{PASSWORD}\n"))?;
        fs::write(&wrong, "guessed")?;
        let tls = json!({ "ca_file": security.ca() });
        let strange = json!({ "ca_file": security.stranger() });
        let certified =
            json!({ "ca_file": security.ca(), "cert_file": security.client().0, "key_file": security.client().1 });
        let (with_sasl, mutual) = (security.sasl(), security.mutual());
        let secured = |mechanism: &str| json!({ "tls": tls, "sasl": sasl(mechanism, &right) });
        let mut sinks = vec![
            sink("plain", &with_sasl, &secured("PLAIN")),
            sink("scram256", &with_sasl, &secured("SCRAM-SHA-256")),
            sink("scram512", &with_sasl, &secured("SCRAM-SHA-512")),
            sink("cleartext", &security.plain_sasl(), &json!({ "sasl": sasl("SCRAM-SHA-256", &right) })),
            sink("certified", &mutual, &json!({ "tls": certified })),
        ];
        let good = sinks.len();
        sinks.extend([
            sink("password", &with_sasl, &json!({ "tls": tls, "sasl": sasl("SCRAM-SHA-512", &wrong) })),
            sink("mechanism", &security.plain_sasl(), &json!({ "sasl": sasl("SCRAM-SHA-512", &right) })),
            sink("expired", &security.expired(), &json!({ "tls": certified })),
            sink("stranger", &mutual, &json!({ "tls": strange })),
            sink("anonymous", &mutual, &json!({ "tls": tls })),
            sink("without", &mutual, &json!({})),
            sink("needless", &broker.address(), &json!({ "tls": tls })),
        ]);
        let config = bed.config().with_sinks(&sinks);
        let agent = Agent::start(bed, &config)?;
        let container = bed.container("app").shell("seq 500; read hold").start()?;
        container.wait_stdout("500\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        for sink in &sinks[..good] {
            let name = sink["name"].as_str().unwrap_or_default();
            wait_until(&format!("the lines of sink {name}"), DEADLINE, || {
                Ok((agent.metrics()?.of_sink("sidestep_sink_delivered_records_total", name) == Some(500.0))
                    .then_some(()))
            })?;
            expected.compare(&broker.records(&format!("logs.{name}"))?)?;
        }
        for (name, parts) in [
            ("password", &["uthentication", "see `sasl.username`, `sasl.password_file`"][..]),
            ("mechanism", &["SCRAM-SHA-512", "`sasl.mechanism`"]),
            ("expired", &["certificate has expired", "certificate of expired", "renew it on the broker"]),
            ("stranger", &["signed by test authority ca", "put the authority that signed it into `tls.ca_file`"]),
            ("anonymous", &["`tls.cert_file`"]),
            ("without", &["whether they expect TLS"]),
            ("needless", &["knows no TLS at this port"]),
        ] {
            println!("{name}: {}", wait_error(&config, name, parts)?);
            let metrics = agent.metrics()?;
            ensure!(metrics.of_sink("sidestep_sink_delivered_records_total", name) == Some(0.0), "{name}");
            wait_until(&format!("sink {name} to be failing"), DEADLINE, || {
                let failing = agent.metrics()?.of_sink("sidestep_sink_failing_seconds", name);
                Ok(failing.is_some_and(|seconds| seconds > 2.0).then_some(()))
            })?;
        }
        // The producers tell every two seconds.
        wait_until("the producers' figures", DEADLINE, || {
            let metrics = agent.metrics()?;
            let is_told = metrics.of_sink("sidestep_kafka_brokers_up", "password") == Some(0.0)
                && metrics.of_sink("sidestep_kafka_brokers_up", "plain") == Some(1.0)
                && metrics.of_sink("sidestep_kafka_transmitted_bytes_total", "plain") > Some(500.0);
            Ok(is_told.then_some(()))
        })?;
        ensure!(agent.metrics()?.of_sink("sidestep_sink_failing_seconds", "plain") == Some(0.0));

        // The password is put right in its file, which needs no reload; the rest by settings.
        fs::write(&wrong, PASSWORD)?;
        for (name, change) in [
            ("mechanism", json!({ "brokers": [with_sasl], "tls": tls })),
            ("expired", json!({ "brokers": [mutual] })),
            ("stranger", json!({ "tls": certified })),
            ("anonymous", json!({ "tls": certified })),
            ("without", json!({ "tls": certified })),
            ("needless", json!({ "tls": null })),
        ] {
            let sink = sinks.iter_mut().find(|sink| sink["name"] == name).expect("it is there");
            for (option, value) in change.as_object().into_iter().flatten() {
                sink[option] = value.clone();
            }
        }
        fs::write(agent.config_file(), config.with_sinks(&sinks).text())?;
        agent.reload()?;
        let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        for sink in &sinks[good..] {
            let name = sink["name"].as_str().unwrap_or_default();
            let topic = format!("logs.{name}");
            // The account is one for all sinks: where several buffers had the lines, it is even before the last has them.
            let lines = container.stdout().iter().filter(|byte| **byte == b'\n').count() as u64;
            wait_until(&format!("the lines of sink {name}"), DEADLINE, || {
                Ok((broker.count(&topic)? >= lines).then_some(()))
            })?;
            expected.compare(&broker.records(&topic)?)?;
        }
        agent.stop()
    });
}

#[test]
fn files_that_come_later_are_waited_for() {
    end_to_end(|bed| {
        let broker = Broker::with_security(bed, "", Security::new(bed)?)?;
        let (ca, password) = (bed.path("secret/ca.pem")?, bed.path("secret/password")?);
        let options = json!({ "tls": { "ca_file": ca }, "sasl": sasl("SCRAM-SHA-512", &password) });
        let config = bed.config().with("/sinks/1", sink("late", &broker.security().sasl(), &options));
        let agent = Agent::start(bed, &config)?;
        let container = bed.container("app").shell("seq 500; read hold").start()?;
        container.wait_stdout("500\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        expected.wait_delivered(&agent)?;
        wait_error(
            &config,
            "late",
            &["sasl.password_file", &password.to_string_lossy(), "No such file", "put it there"],
        )?;
        fs::create_dir_all(bed.path("secret")?)?;
        fs::write(&password, PASSWORD)?;
        wait_error(&config, "late", &["tls.ca_file", &ca.to_string_lossy(), "No such file"])?;
        fs::write(&ca, "no certificate")?;
        wait_error(&config, "late", &["tls.ca_file", "no certificate in PEM"])?;
        fs::copy(broker.security().ca(), &ca)?;
        let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        wait_until("the lines of the late sink", DEADLINE, || Ok((broker.count("logs.late")? >= 500).then_some(())))?;
        expected.compare(&broker.records("logs.late")?)?;
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_topic_that_may_not_be_written_loses_its_own_lines_only() {
    end_to_end(|bed| {
        let broker = Broker::with_security(bed, "", Security::new(bed)?)?;
        let password = bed.path("password")?;
        fs::write(&password, PASSWORD)?;
        broker.create_topic("logs.denied")?;
        broker.deny_topic("logs.denied")?;
        let options = json!({
            "topic": "logs.{container}",
            "give_up_after": "5s",
            "tls": { "ca_file": broker.security().ca() },
            "sasl": sasl("SCRAM-SHA-512", &password),
        });
        let config = bed.config().with_sinks(&[sink("kafka", &broker.security().sasl(), &options)]);
        let agent = Agent::start(bed, &config)?;
        let denied = bed.container("denied").shell("seq 200; read hold").start()?;
        let allowed = bed.container("allowed").shell("seq 300; read hold").start()?;
        denied.wait_stdout("200\n")?;
        allowed.wait_stdout("300\n")?;
        wait_error(&config, "kafka", &["topic logs.denied", "the right to write the topic"])?;
        let mut expected = Expected::new();
        expected.stdout(&allowed, allowed.stdout());
        let ledger = agent.wait_ledger(allowed.id(), expected.total(allowed.id()))?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        expected.compare(&broker.records("logs.allowed")?)?;
        let written = denied.stdout().len() as u64;
        let ledger = agent.wait_ledger(denied.id(), written)?;
        ensure!(ledger.dropped_for("sink", "rejected") == written && ledger.dropped_total() == written, "{ledger:?}");
        wait_error(&config, "kafka", &["a line for topic logs.denied is dropped"])?;
        ensure!(broker.messages("logs.denied")?.is_empty());
        agent.stop()
    });
}
