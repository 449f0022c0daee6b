//! A real OpenSearch behind TLS, passwords and certificates: who is who gets through; who is not is told what is wrong, and
//! loses nothing once it is put right.

use std::fs;

use anyhow::ensure;
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, DEADLINE, Expected,
    certificates::Authority,
    config, end_to_end,
    front::{Front, PASSWORD, USER},
    opensearch::OpenSearch,
    status::wait_error,
    wait_until,
};

/// A sink with indices of its own.
fn sink(name: &str, url: &str, options: &Value) -> Value {
    let index = format!("{name}-{{class}}");
    config::sink(json!({ "type": "opensearch", "name": name, "urls": [url], "index": index }), options)
}

#[test]
fn who_is_who_is_said_and_what_is_wrong_is_told() {
    end_to_end(|bed| {
        let server = OpenSearch::start(bed)?;
        let front = Front::start(bed, server.port())?;
        let stranger = Authority::new(bed, "stranger")?;
        let (cert, key) = front.authority().issue("client", 2)?;
        let (old_cert, old_key) = front.authority().issue("old", -1)?;
        let (right, wrong) = (bed.path("right")?, bed.path("wrong")?);
        fs::write(&right, format!("{PASSWORD}\n"))?;
        fs::write(&wrong, "guessed")?;
        let tls = json!({ "ca_file": front.authority().file() });
        let certified = json!({ "ca_file": front.authority().file(), "cert_file": cert, "key_file": key });
        let outdated = json!({ "ca_file": front.authority().file(), "cert_file": old_cert, "key_file": old_key });
        let strange = json!({ "ca_file": stranger.file() });
        let user = |file| json!({ "basic": { "username": USER, "password_file": file } });
        let (password, mutual) = (front.password(), front.mutual());
        let good = [
            sink("user", &password, &json!({ "tls": tls, "auth": user(&right) })),
            sink("certified", &mutual, &json!({ "tls": certified })),
        ];
        let mut bad = [
            sink("password", &password, &json!({ "tls": tls, "auth": user(&wrong) })),
            sink("nobody", &password, &json!({ "tls": tls })),
            sink("strange", &mutual, &json!({ "tls": strange })),
            sink("expired", &front.expired(), &json!({ "tls": tls })),
            sink("anonymous", &mutual, &json!({ "tls": tls })),
            sink("outdated", &mutual, &json!({ "tls": outdated })),
            sink("plain", &password.replace("https", "http"), &json!({ "auth": user(&right) })),
        ];
        let config = bed.config().with_sinks(&[&good[..], &bad[..]].concat());
        let agent = Agent::start(bed, &config)?;
        let container = bed.container("app").shell("seq 500; read hold").start()?;
        container.wait_stdout("500\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        let arrive = |name: &str| {
            let index = format!("{name}-pod");
            wait_until(&format!("the lines of sink {name}"), DEADLINE, || {
                Ok((server.count(&index)? >= 500).then_some(()))
            })?;
            expected.compare(&server.records(&index)?)
        };
        arrive("user")?;
        arrive("certified")?;
        for (name, parts) in [
            ("password", ["401", "see `auth`"]),
            ("nobody", ["401", "see `auth`"]),
            ("strange", ["UnknownIssuer", "`tls.ca_file`"]),
            ("expired", ["Expired", "renew the server's certificate"]),
            ("anonymous", ["No required SSL certificate", "see `tls.cert_file`"]),
            ("outdated", ["SSL certificate error", "see `tls.cert_file`"]),
            ("plain", ["HTTPS port", "write `https://`"]),
        ] {
            println!("{name}: {}", wait_error(&config, name, &parts)?);
            let metrics = agent.metrics()?;
            ensure!(metrics.of_sink("sidestep_sink_delivered_records_total", name) == Some(0.0), "{name}");
        }
        // The password is put right in its file, which needs no reload; the rest by settings.
        fs::write(&wrong, PASSWORD)?;
        arrive("password")?;
        for (sink, change) in bad.iter_mut().skip(1).zip([
            json!({ "auth": user(&right) }),
            json!({ "tls": certified }),
            json!({ "urls": [mutual], "tls": certified }),
            json!({ "tls": certified }),
            json!({ "tls": certified }),
            json!({ "urls": [password], "tls": tls }),
        ]) {
            for (option, value) in change.as_object().into_iter().flatten() {
                sink[option] = value.clone();
            }
        }
        fs::write(agent.config_file(), bed.config().with_sinks(&[&good[..], &bad[..]].concat()).text())?;
        agent.reload()?;
        let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        for sink in &bad {
            arrive(sink["name"].as_str().unwrap_or_default())?;
        }
        agent.stop()
    });
}
