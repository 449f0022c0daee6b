//! A real OpenSearch: each line is one document, whatever the server does meanwhile.

use std::{
    io::{self, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, Config, DEADLINE, Expected, Testbed, config, end_to_end,
    opensearch::OpenSearch,
    records::Record,
    status::{last_error, wait_error},
    wait_until,
};

/// The usual configuration with the sink in the place of the file sink.
fn config(bed: &Testbed, url: &str, options: &Value) -> Config {
    bed.config().with_sinks(&[config::sink(json!({ "type": "opensearch", "urls": [url] }), options)])
}

/// One server for all cases: it takes long to start. Each case has indices of its own.
#[test]
fn a_real_server_gets_every_line_once() {
    end_to_end(|bed| {
        let mut server = OpenSearch::start(bed)?;
        a_blocked_index_never_holds_others(bed, &server).context("a_blocked_index_never_holds_others")?;
        lines_arrive_with_their_identity(bed, &server).context("lines_arrive_with_their_identity")?;
        data_streams_take_them_too(bed, &server).context("data_streams_take_them_too")?;
        a_conflict_concerns_its_line_alone(bed, &server).context("a_conflict_concerns_its_line_alone")?;
        a_blocked_index_holds_its_own_lines_only(bed, &server).context("a_blocked_index_holds_its_own_lines_only")?;
        garbage_is_no_success(bed, &server).context("garbage_is_no_success")?;
        an_outage_costs_time_and_no_line(bed, &mut server).context("an_outage_costs_time_and_no_line")
    });
}

fn lines_arrive_with_their_identity(bed: &Testbed, server: &OpenSearch<'_>) -> Result<()> {
    let agent = Agent::start(bed, &config(bed, &server.url(), &json!({})))?;
    let container =
        bed.container("app").shell("seq 5000; echo an error >&2; seq 100 > /var/log/app.log; read hold").start()?;
    container.wait_stdout("5000\n")?;
    let file: String = (1..=100).map(|line| format!("{line}\n")).collect();
    let mut expected = Expected::new();
    expected.stdout(&container, container.stdout()).stderr(&container, "an error\n");
    expected.file(&container, "/var/log/app.log", &file);
    agent.wait_ledger(container.id(), expected.total(container.id()))?;
    expected.compare(&server.records("logs-*")?)?;

    let found = server.search("logs-pod-*", &json!({ "match": { "body": "error" } }))?;
    ensure!(found.len() == 1 && found[0]["_source"]["body"] == "an error", "{found:?}");
    let pod = json!({ "term": { "resource.k8s.pod.name": "app-pod" } });
    ensure!(server.search("logs-*", &pod)?.len() == 5101);
    let stderr = json!({ "term": { "attributes.log.iostream": "stderr" } });
    ensure!(server.search("logs-*", &stderr)?.len() == 1);
    let mappings = server.call("GET", "/logs-pod-*/_mapping", None)?;
    let index = mappings.as_object().and_then(|indices| indices.values().next()).context("an index")?;
    let of = |field: &str| index.pointer(&format!("/mappings/properties/{field}/type")).cloned();
    ensure!(of("body") == Some(json!("match_only_text")) && of("timestamp") == Some(json!("date_nanos")), "{index}");
    // This server has no ISM, which costs no line and is told.
    let told = "no retention is set up, as the server has neither ILM nor ISM";
    ensure!(agent.log().matches(told).count() == 1, "{}", agent.log());
    agent.stop()
}

fn data_streams_take_them_too(bed: &Testbed, server: &OpenSearch<'_>) -> Result<()> {
    let options = json!({ "data_stream": true, "index": "streams-{class}-default", "name": "streams" });
    let agent = Agent::start(bed, &config(bed, &server.url(), &options))?;
    let container = bed.container("streams").shell("seq 500; read hold").start()?;
    container.wait_stdout("500\n")?;
    let mut expected = Expected::new();
    expected.stdout(&container, container.stdout());
    agent.wait_ledger(container.id(), expected.total(container.id()))?;
    expected.compare(&server.records("streams-pod-default")?)?;
    let streams = server.call("GET", "/_data_stream/streams-pod-default", None)?;
    ensure!(streams["data_streams"].as_array().is_some_and(|streams| streams.len() == 1), "{streams}");
    agent.stop()
}

fn a_conflict_concerns_its_line_alone(bed: &Testbed, server: &OpenSearch<'_>) -> Result<()> {
    let mapping = json!({ "mappings": { "properties": { "body": { "type": "integer" } } } });
    server.call("PUT", "/numbers-pod", Some(&mapping))?;
    let options = json!({ "install_template": false, "index": "numbers-{class}", "dead_letter_index": "dead" });
    let agent = Agent::start(bed, &config(bed, &server.url(), &options))?;
    let container = bed.container("numbers").shell("echo 1; echo two; echo 3; read hold").start()?;
    container.wait_stdout("3\n")?;
    let ledger = agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
    ensure!(ledger.dropped_total() == 0, "{ledger:?}");
    ensure!(server.count("numbers-pod")? == 2);
    let dead = server.search("dead", &json!({ "match_all": {} }))?;
    ensure!(dead.len() == 1, "{dead:?}");
    let letter = &dead[0]["_source"];
    let original: Value = serde_json::from_str(letter["original"].as_str().context("the original")?)?;
    ensure!(original["body"] == "two" && letter["error.type"] == "mapper_parsing_exception", "{letter}");
    ensure!(letter["index"] == "numbers-pod", "{letter}");
    let count = || agent.metrics().map(|metrics| metrics.sum("sidestep_elasticsearch_dead_letter_records_total"));
    wait_until("the figure", DEADLINE, || Ok((count()? == 1.0).then_some(())))?;
    agent.stop()
}

fn a_blocked_index_holds_its_own_lines_only(bed: &Testbed, server: &OpenSearch<'_>) -> Result<()> {
    server.call("PUT", "/blocked-one", Some(&json!({ "settings": { "index.blocks.write": true } })))?;
    let full = json!({ "settings": { "index.blocks.read_only_allow_delete": true } });
    server.call("PUT", "/blocked-two", Some(&full))?;
    let config = config(bed, &server.url(), &json!({ "index": "blocked-{container}", "give_up_after": "1ms" }));
    let agent = Agent::start(bed, &config)?;
    let one = bed.container("one").shell("seq 300; read hold").start()?;
    let open = bed.container("open").shell("seq 200; read hold").start()?;
    one.wait_stdout("300\n")?;
    open.wait_stdout("200\n")?;
    agent.wait_ledger(open.id(), open.stdout().len() as u64)?;
    ensure!(server.count("blocked-open")? == 200);
    wait_error(&config, "elasticsearch", &["index.blocks.write"])?;
    ensure!(
        last_error(&config, "elasticsearch")?.contains("300 lines are held"),
        "{}",
        last_error(&config, "elasticsearch")?
    );
    server.call("PUT", "/blocked-one/_settings", Some(&json!({ "index.blocks.write": false })))?;
    let mut expected = Expected::new();
    expected.stdout(&one, one.stdout());
    agent.wait_ledger(one.id(), expected.total(one.id()))?;
    expected.compare(&server.records("blocked-one")?)?;

    let two = bed.container("two").shell("seq 100; read hold").start()?;
    two.wait_stdout("100\n")?;
    wait_error(&config, "elasticsearch", &["disk is almost full"])?;
    server.call("PUT", "/blocked-two/_settings", Some(&json!({ "index.blocks.read_only_allow_delete": null })))?;
    let ledger = agent.wait_ledger(two.id(), two.stdout().len() as u64)?;
    ensure!(ledger.dropped_total() == 0 && server.count("blocked-two")? == 100, "{ledger:?}");
    agent.stop()
}

/// The room behind the buffer fills with lines of one index that is blocked, in three steps: they wait for ever where no
/// index takes lines, go to the dead-letter index where others do, and are dropped and counted where that is blocked too.
fn a_blocked_index_never_holds_others(bed: &Testbed, server: &OpenSearch<'_>) -> Result<()> {
    let blocked = json!({ "settings": { "index.blocks.write": true } });
    let block = |index: &str, is_blocked: bool| {
        server.call("PUT", &format!("/{index}/_settings"), Some(&json!({ "index.blocks.write": is_blocked })))
    };
    for index in ["room-closed", "room-open"] {
        server.call("PUT", &format!("/{index}"), Some(&blocked))?;
    }
    let options = json!({
        "index": "room-{container}", "dead_letter_index": "dead-room",
        "buffer": { "max_unacknowledged": "64KiB", "spill_after": "10ms" },
    });
    let config = config(bed, &server.url(), &options);
    let agent = Agent::start(bed, &config)?;
    // Each round is more than the sink may have at once.
    let script = "round() { for line in $(seq 2000); do echo $1 line $line of the index that takes nothing; done; \
                  echo end $1; read go; }; for number in 1 2 3 4; do round $number; done";
    let mut closed = bed.container("closed").shell(script).start()?;
    let mut open = bed.container("open").shell("while true; do echo tick; read go || exit; done").start()?;
    closed.wait_stdout("end 1\n")?;
    // No index takes lines: all wait.
    wait_error(&config, "elasticsearch", &["PUT /room-closed/_settings {\"index.blocks.write\": false}"])?;
    let ledger = agent.metrics()?.ledger(closed.id());
    ensure!((ledger.delivered, ledger.dropped_total()) == (0, 0), "{ledger:?}");
    block("room-closed", false)?;
    let mut expected = Expected::new();
    expected.stdout(&closed, closed.stdout());
    agent.wait_ledger(closed.id(), expected.total(closed.id()))?;
    expected.compare(&server.records("room-closed")?)?;
    block("room-open", false)?;
    agent.wait_ledger(open.id(), open.stdout().len() as u64)?;

    // Blocked again, while the other goes on: it goes on whatever comes, and nothing is lost.
    block("room-closed", true)?;
    closed.stdin().write_all(b"\n")?;
    closed.wait_stdout("end 2\n")?;
    let mut ticks = 1;
    let mut tick_until = |what: &str, done: &dyn Fn() -> Result<bool>| {
        wait_until(what, DEADLINE * 2, || {
            ticks += 1;
            open.stdin().write_all(b"\n")?;
            open.wait_stdout(&"tick\n".repeat(ticks))?;
            wait_until("a line of the open index", DEADLINE, || {
                Ok((server.count("room-open")? == ticks as u64).then_some(()))
            })?;
            Ok(done()?.then_some(()))
        })
    };
    tick_until("dead letters", &|| Ok(server.count("dead-room")? > 1000))?;
    let ledger = agent.metrics()?.ledger(closed.id());
    ensure!(ledger.dropped_total() == 0, "{ledger:?}");

    // The dead-letter index takes nothing either: what there is no room for is dropped, and counted to the line.
    block("dead-room", true)?;
    closed.stdin().write_all(b"\n")?;
    closed.wait_stdout("end 3\n")?;
    tick_until("drops", &|| Ok(agent.metrics()?.ledger(closed.id()).dropped_for("sink", "blocked") > 10_000))?;
    wait_error(&config, "elasticsearch", &["index.blocks.write"])?;
    for index in ["room-closed", "dead-room"] {
        block(index, false)?;
    }
    // The sink learns of it with its next trial; what comes before that may still be dropped.
    agent.wait_ledger(closed.id(), closed.stdout().len() as u64)?;
    closed.stdin().write_all(b"\n")?;
    closed.wait_stdout("end 4\n")?;
    let ledger = agent.wait_ledger(closed.id(), closed.stdout().len() as u64)?;
    let dropped = ledger.dropped_for("sink", "blocked");
    ensure!(dropped == ledger.dropped_total() && ledger.difference() == 0, "{ledger:?}");
    let bytes = |records: Vec<Record>| records.iter().map(|record| record.text("/body").len() as u64 + 1).sum::<u64>();
    let mut there = bytes(server.records("room-closed")?);
    for letter in server.search("dead-room", &json!({ "match_all": {} }))? {
        let original: Value = serde_json::from_str(letter["_source"]["original"].as_str().context("the original")?)?;
        there += original["body"].as_str().context("a body")?.len() as u64 + 1;
    }
    ensure!(there + dropped == closed.stdout().len() as u64, "{there} bytes are there, and {dropped} are counted");
    let end = json!({ "match_phrase": { "body": "4 line" } });
    ensure!(server.search("room-closed", &end)?.len() == 2000, "what was written after it was opened");
    agent.stop()
}

/// Stands before the server: answers garbage, until it is told to let everything through.
fn front(port: u16, honest: Arc<AtomicBool>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let own = listener.local_addr()?.port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let honest = Arc::clone(&honest);
            thread::spawn(move || {
                if honest.load(SeqCst) { forward(&client, port) } else { (&client).write_all(b"220 mail ready\r\n") }
            });
        }
    });
    Ok(own)
}

fn forward(client: &TcpStream, port: u16) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", port))?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let requests = thread::spawn(move || {
        let _ = io::copy(&mut &from, &mut &to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let _ = io::copy(&mut &server, &mut &*client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = requests.join();
    Ok(())
}

fn garbage_is_no_success(bed: &Testbed, server: &OpenSearch<'_>) -> Result<()> {
    let honest = Arc::new(AtomicBool::new(false));
    let port = front(server.port(), Arc::clone(&honest))?;
    let config = config(bed, &format!("http://127.0.0.1:{port}"), &json!({ "index": "garbage-{class}" }));
    let agent = Agent::start(bed, &config)?;
    let container = bed.container("garbage").shell("seq 1000; read hold").start()?;
    container.wait_stdout("1000\n")?;
    wait_error(&config, "elasticsearch", &["another service may listen there"])?;
    honest.store(true, SeqCst);
    let mut expected = Expected::new();
    expected.stdout(&container, container.stdout());
    let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
    ensure!(ledger.dropped_total() == 0, "{ledger:?}");
    expected.compare(&server.records("garbage-pod")?)?;
    agent.stop()
}

fn an_outage_costs_time_and_no_line(bed: &Testbed, server: &mut OpenSearch<'_>) -> Result<()> {
    let config = config(bed, &server.url(), &json!({ "index": "outage-{class}", "request_timeout": "3s" }));
    let agent = Agent::start(bed, &config)?;
    let script = "seq 2000; read go; seq 2001 4000; read go; seq 4001 6000; read go; seq 6001 8000; read go";
    let mut container = bed.container("outage").shell(script).start()?;
    container.wait_stdout("2000\n")?;
    agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
    // It takes connections and answers nothing; the same lines are sent again after the timeout.
    server.freeze(true)?;
    container.stdin().write_all(b"\n")?;
    container.wait_stdout("4000\n")?;
    wait_error(&config, "elasticsearch", &["no complete answer in time"])?;
    server.freeze(false)?;
    agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
    // Gone while lines come.
    server.stop();
    container.stdin().write_all(b"\n")?;
    container.wait_stdout("6000\n")?;
    wait_error(&config, "elasticsearch", &["Connection refused"])?;
    server.run()?;
    let mut expected = Expected::new();
    expected.stdout(&container, container.stdout());
    let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
    ensure!(ledger.dropped_total() == 0, "{ledger:?}");
    expected.compare(&server.records("outage-pod")?)?;
    ensure!(server.count("outage-pod")? == 6000);
    // Its disk is lost: what comes then finds its mappings again.
    server.stop();
    server.wipe()?;
    container.stdin().write_all(b"\n")?;
    container.wait_stdout("8000\n")?;
    wait_error(&config, "elasticsearch", &["Connection refused"])?;
    server.run()?;
    agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
    ensure!(server.count("outage-pod")? == 2000);
    let mapping = server.call("GET", "/outage-pod/_mapping", None)?;
    let body = mapping.pointer("/outage-pod/mappings/properties/body/type");
    ensure!(body == Some(&json!("match_only_text")), "{mapping}");
    agent.stop()
}
