//! The HTTP sink against a server with another implementation of OTLP: lines arrive once and in order, whatever the server
//! does meanwhile.

use std::io::Write as _;

use anyhow::ensure;
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, DEADLINE, Expected, certificates::Authority, config, end_to_end, receiver::Receiver, status::wait_error,
    wait_until,
};

/// A sink of this name.
fn sink(name: &str, url: &str, options: &Value) -> Value {
    config::sink(json!({ "type": "http", "name": name, "url": url }), options)
}

#[test]
fn lines_arrive_with_their_identity_and_in_order_as_ndjson_and_as_otlp() {
    end_to_end(|bed| {
        let ndjson = Receiver::with_tls(bed, "ndjson", &[])?;
        let otlp = Receiver::with_tls(bed, "otlp", &[])?;
        let headers = json!({ "X-Scope-OrgID": "shop" });
        let sinks = [
            sink("ndjson", &ndjson.url(), &json!({ "max_in_flight": 1 })),
            sink("otlp", &otlp.url(), &json!({ "encoding": "otlp_proto", "max_in_flight": 1, "headers": headers })),
        ];
        let agent = Agent::start(bed, &bed.config().with_sinks(&sinks))?;
        let script = "seq 5000; printf 'not \\377 text\\n'; echo error >&2; seq 100 > /var/log/app.log; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("text\n")?;
        let file: String = (1..=100).map(|line| format!("{line}\n")).collect();
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout()).stderr(&container, "error\n");
        expected.file(&container, "/var/log/app.log", &file);
        let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        for receiver in [&ndjson, &otlp] {
            let records = receiver.records()?;
            expected.compare(&records)?;
            let stdout: Vec<_> = records.iter().filter(|record| record.attribute("log.iostream") == "stdout").collect();
            ensure!(stdout.is_sorted_by_key(|record| record.position()), "the lines of a stream are not in order");
        }
        let request = otlp.requests()?.swap_remove(0);
        ensure!(request.path == "/v1/logs" && request.headers["x-scope-orgid"] == "shop", "{request:?}");
        ensure!(request.headers["content-encoding"] == "gzip", "{request:?}");
        agent.stop()
    });
}

#[test]
fn a_server_that_is_away_or_busy_costs_time_and_no_line() {
    end_to_end(|bed| {
        let mut server = Receiver::start(bed)?;
        server.stop();
        let options = json!({ "encoding": "otlp_proto", "request_timeout": "2s" });
        let config = bed.config().with_sinks(&[sink("http", &server.url(), &options)]);
        let agent = Agent::start(bed, &config)?;
        let script = "for step in 1 2 3 4 5 6; do seq $((step * 1000)) $((step * 1000 + 999)); echo end $step; \
                      read go; done; read hold";
        let mut container = bed.container("app").shell(script).start()?;
        wait_error(&config, "http", &["Connection refused", "that the server runs"])?;
        ensure!(agent.get("/healthz")?.status == 200);
        server.run()?;
        for (step, (behaviour, error)) in (1..).zip([
            (json!({ "status": 503, "headers": { "Retry-After": "1" } }), "503 Service Unavailable"),
            (json!({ "status": 429, "body": "slow down" }), "429 Too Many Requests: slow down"),
            (json!({ "garbage": "220 mail.example ESMTP\r\n" }), "another service may listen there"),
            (json!({ "delay": 4 }), "no complete answer in time"),
        ]) {
            container.wait_stdout(&format!("end {step}\n"))?;
            agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
            server.behave(&behaviour)?;
            container.stdin().write_all(b"\n")?;
            wait_error(&config, "http", &[error])?;
            server.behave(&json!({}))?;
        }
        // It takes connections and answers nothing.
        container.wait_stdout("end 5\n")?;
        server.freeze(true)?;
        container.stdin().write_all(b"\n")?;
        server.freeze(false)?;
        container.wait_stdout("end 6\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        // A request whose answer came too late is sent again.
        expected.with_repeats().compare(&server.records()?)?;
        agent.stop()
    });
}

#[test]
fn a_record_that_the_server_refuses_is_dropped_and_counted_alone() {
    end_to_end(|bed| {
        let server = Receiver::start(bed)?;
        server.behave(&json!({ "refuse": "forbidden" }))?;
        let config = bed.config().with_sinks(&[sink("http", &server.url(), &json!({ "encoding": "otlp_proto" }))]);
        let agent = Agent::start(bed, &config)?;
        let container = bed.container("app").shell("seq 500; echo forbidden; seq 500; echo end; read hold").start()?;
        container.wait_stdout("end\n")?;
        let ledger = agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        ensure!(ledger.dropped_for("sink", "rejected") == 10 && ledger.dropped_total() == 10, "{ledger:?}");
        let records = server.records()?;
        ensure!(records.len() == 1001, "{} records", records.len());
        ensure!(records.iter().all(|record| record.text("/body") != "forbidden"));
        wait_error(&config, "http", &["a line is dropped", "400 Bad Request: a record that may not be"])?;
        agent.stop()
    });
}

#[test]
fn a_part_that_the_server_rejects_is_counted() {
    end_to_end(|bed| {
        let server = Receiver::start(bed)?;
        server.behave(&json!({ "rejected": 1 }))?;
        let config = bed.config().with_sinks(&[sink("http", &server.url(), &json!({ "encoding": "otlp_proto" }))]);
        let agent = Agent::start(bed, &config)?;
        let container = bed.container("app").shell("echo line; read hold").start()?;
        container.wait_stdout("line\n")?;
        let ledger = agent.wait_ledger(container.id(), 5)?;
        ensure!(ledger.dropped_for("sink", "rejected") == 5, "{ledger:?}");
        wait_error(&config, "http", &["1 of 1 lines are dropped", "too old"])?;
        agent.stop()
    });
}

#[test]
fn what_can_be_mended_is_told_and_nothing_is_lost_until_then() {
    end_to_end(|bed| {
        let server = Receiver::start(bed)?;
        let config = bed.config().with_sinks(&[sink("http", &server.url(), &json!({}))]);
        let agent = Agent::start(bed, &config)?;
        server.behave(&json!({ "status": 401 }))?;
        let container = bed.container("app").shell("seq 100; read hold").start()?;
        for (behaviour, error) in [
            (json!({ "status": 401 }), "see `auth` and `headers`"),
            (json!({ "status": 404 }), "see the path in `url`"),
            (json!({ "status": 302, "headers": { "Location": "/login" } }), "redirects are not followed"),
        ] {
            server.behave(&behaviour)?;
            if error.contains("auth") {
                container.wait_stdout("100\n")?;
            }
            wait_error(&config, "http", &[error, "lines are held"])?;
        }
        server.behave(&json!({}))?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        agent.wait_ledger(container.id(), expected.total(container.id()))?;
        expected.compare(&server.records()?)?;
        agent.stop()
    });
}

#[test]
fn certificates_are_checked_on_both_sides() {
    end_to_end(|bed| {
        let authority = Authority::new(bed, "ours")?;
        let stranger = Authority::new(bed, "stranger")?;
        let (cert, key) = authority.issue("server", 2)?;
        let (client_cert, client_key) = authority.issue("client", 2)?;
        let (old_cert, old_key) = authority.issue("old", -1)?;
        let mutual = Receiver::with_tls(bed, "mutual", &[&cert, &key, &authority.file()])?;
        let expired = Receiver::with_tls(bed, "expired", &[&old_cert, &old_key])?;
        let ca = json!({ "ca_file": authority.file() });
        let certified = json!({ "ca_file": authority.file(), "cert_file": client_cert, "key_file": client_key });
        let with = |tls: &Value| json!({ "tls": tls, "queue": { "when_full": "drop_newest" } });
        let config = bed.config().with_sinks(&[
            sink("certified", &mutual.url(), &with(&certified)),
            sink("anonymous", &mutual.url(), &with(&ca)),
            sink("strange", &mutual.url(), &with(&json!({ "ca_file": stranger.file() }))),
            sink("expired", &expired.url(), &with(&ca)),
            sink("plain", &mutual.url().replace("https", "http"), &json!({})),
        ]);
        let agent = Agent::start(bed, &config)?;
        let container = bed.container("app").shell("seq 100; read hold").start()?;
        container.wait_stdout("100\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        let lines = wait_until("the lines", DEADLINE, || {
            let records = mutual.records()?;
            Ok((records.len() >= 100).then_some(records))
        })?;
        expected.compare(&lines)?;
        wait_error(&config, "anonymous", &["tls.cert_file"])?;
        wait_error(&config, "strange", &["`tls.ca_file`"])?;
        wait_error(&config, "expired", &["Expired", "renew the server's certificate"])?;
        wait_error(&config, "plain", &["http"])?;
        ensure!(expired.records()?.is_empty());
        drop(agent);
        Ok(())
    });
}
