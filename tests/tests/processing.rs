//! Filters of sinks and processors, with real containers and the real agent.

use anyhow::{Result, ensure};
use serde_json::json;
use sidestep_tests::{Agent, DEADLINE, end_to_end, python, records, wait_until};

/// Debug lines, errors, addresses on stdout; a flood in a file.
const WRITER: &str = "
out = b''
for n in range(200):
    out += b'debug %d\\n' % n
    out += b'ERROR bad %d\\n' % n if n % 10 == 0 else b'fine %d\\n' % n
    out += b'mail to user%d@example.com sent\\n' % n
for at in range(0, len(out), 1000):
    os.write(1, out[at:at + 1000])
fd = os.open('/var/log/flood.log', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
flood = b''.join(b'flood %04d\\n' % n for n in range(2000))
os.write(fd, flood)
";

#[test]
fn sinks_have_filters_of_their_own_and_processors_are_for_all() {
    end_to_end(|bed| {
        let errors = bed.path("errors")?;
        let config = bed
            .config()
            .with(
                "/sinks/1",
                json!({
                    "type": "file", "name": "errors", "path": errors, "compression": "none",
                    "classes": ["pod"], "filter": { "container": ["app"], "body": "^ERROR" },
                }),
            )
            .with(
                "/processors",
                json!([
                    { "type": "drop", "name": "debug", "match": { "classes": ["pod"], "body": "^debug" } },
                    { "type": "redact", "name": "privacy", "rules": ["email"] },
                    { "type": "add_fields", "fields": { "deployment.environment.name": "test" } },
                    {
                        "type": "rate_limit", "name": "flood", "match": { "classes": ["business"] },
                        "lines_per_second": 10, "burst": 100, "summary_interval": "1s",
                    },
                ]),
            );
        let agent = Agent::start(bed, &config)?;
        let container = python::run(bed, WRITER)?;
        let file = std::fs::read(container.rootfs().join("var/log/flood.log"))?;
        let stdout = container.stdout();
        let produced = file.len() + stdout.len() + container.stderr().len();
        let ledger = agent.wait_ledger(container.id(), u64::try_from(produced)?)?;

        // What was dropped on purpose is booked as that, to the byte.
        let debug: usize = stdout
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| line.starts_with(b"debug"))
            .map(<[u8]>::len)
            .sum();
        ensure!(ledger.dropped_for("process", "filtered") == debug as u64, "{ledger:?}");
        let suppressed = ledger.dropped_for("process", "suppressed") / 11;
        ensure!(ledger.dropped_total() == debug as u64 + suppressed * 11, "{ledger:?}");
        ensure!((1..=1900).contains(&suppressed), "{ledger:?}");

        // The stream tells what is missing in it, also when nothing more is written to it.
        wait_until("the summaries of the flood", DEADLINE, || Ok((told(&agent)? == suppressed).then_some(())))?;
        let all = agent.records()?;
        let of = |prefix: &str| all.iter().filter(|record| record.text("/body").starts_with(prefix)).count();
        ensure!((of("debug"), of("fine"), of("ERROR"), of("mail to [REDACTED] sent")) == (0, 180, 20, 200));
        ensure!(of("flood") as u64 + suppressed == 2000, "{} and {suppressed}", of("flood"));
        ensure!(all.iter().all(|record| record.attribute("deployment.environment.name") == "test"
            || record.has_flag("synthetic")));
        ensure!(!all.iter().any(|record| record.value.to_string().contains("@example.com")));
        let mut identities: Vec<_> =
            all.iter().map(|record| (record.stream(), record.position(), record.value["length"].as_u64())).collect();
        identities.sort_unstable();
        ensure!(identities.windows(2).all(|pair| pair[0] != pair[1]), "two records are the same");

        let filtered = records::read(&errors)?;
        ensure!(filtered.len() == 20 && filtered.iter().all(|record| record.text("/body").starts_with("ERROR bad")));

        let metrics = agent.metrics()?;
        let of = |name: &str, processor: &str| {
            let samples = metrics.samples.iter().filter(|sample| sample.name == name);
            samples.filter(|sample| sample.labels["processor"] == processor).map(|sample| sample.value).sum::<f64>()
        };
        ensure!(of("sidestep_processor_dropped_lines_total", "debug") == 200.0);
        ensure!(of("sidestep_processor_dropped_lines_total", "flood") == suppressed as f64);
        ensure!(of("sidestep_processor_redactions_total", "privacy") == 200.0);
        agent.stop()
    });
}

/// How many lines the records of the rate limit tell of.
fn told(agent: &Agent) -> Result<u64> {
    let records = agent.records()?;
    let summaries = records.iter().filter(|record| record.has_flag("synthetic"));
    Ok(summaries.filter_map(|record| record.value["attributes"]["sidestep.suppressed.lines"].as_u64()).sum())
}

#[test]
fn a_reload_changes_filters_and_processors() {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        let container = python::start(
            bed,
            "
import time
n = 0
while not os.path.exists('/data/stop'):
    os.write(1, b'secret=%d line\\n' % n)
    n += 1
    time.sleep(0.01)
",
        )?;
        let seen = |text: &str| -> Result<bool> {
            Ok(agent.records()?.iter().any(|record| record.text("/body").starts_with(text)))
        };
        wait_until("a line as it was written", DEADLINE, || Ok(seen("secret=")?.then_some(())))?;
        let changed = config.with(
            "/processors",
            json!([{ "type": "redact", "patterns": [{ "pattern": "^secret=[0-9]+", "replacement": "hidden" }] }]),
        );
        std::fs::write(agent.config_file(), changed.text())?;
        agent.reload()?;
        wait_until("a redacted line", DEADLINE, || Ok(seen("hidden line")?.then_some(())))?;
        let filtered = changed.with("/sinks/0/filter", json!({ "body": "^nothing" }));
        std::fs::write(agent.config_file(), filtered.text())?;
        agent.reload()?;
        wait_until("lines that no sink wants", DEADLINE, || {
            Ok((agent.ledger(container.id())?.dropped_for("sink", "filtered") > 0).then_some(()))
        })?;
        std::fs::write(container.rootfs().join("data/stop"), "")?;
        python::wait_done(&container)?;
        let produced = container.stdout().len() + container.stderr().len();
        agent.wait_ledger(container.id(), u64::try_from(produced)?)?;
        agent.stop()
    });
}
