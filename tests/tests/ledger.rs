//! The ledger under load: one container's flood costs no other container a line, and every byte is accounted for.

use std::io::Write;

use anyhow::ensure;
use rustix::process::Signal;
use serde_json::json;
use sidestep_tests::{Agent, DEADLINE, Expected, end_to_end, python, wait_until};

/// 16 MB as fast as the pipe takes them. The lines are long, so that comparing what came of them is quick.
const FLOOD: &str = "line=$(printf '%03999d' 7); yes $line | head -c 16000000; echo done >&2; read hold";
const FLOOD_BYTES: u64 = 16_000_000;
/// Containers that flood at once: many more than would fit with fixed shares of the ring.
const FLOODS: u32 = 8;
const FLOOD_LINE: usize = 3999;

#[test]
fn floods_cost_a_quiet_container_nothing() {
    end_to_end(|bed| {
        // A ring that a flood fills at once.
        let config = bed.config().with("/capture/ring_size", json!("1MiB"));
        let agent = Agent::start(bed, &config)?;
        let quiet = "i=0; while [ $i -lt 400 ]; do echo quiet $i; echo file $i >> /var/log/quiet.log; i=$((i+1)); \
                     usleep 5000; done; echo done; read hold";
        let quiet = bed.container("quiet").shell(quiet).start()?;
        let mut floods = Vec::new();
        for number in 0..FLOODS {
            floods.push(bed.container(&format!("flood-{number}")).shell(FLOOD).start()?);
        }
        for flood in &floods {
            wait_until("the end of the flood", 4 * DEADLINE, || {
                Ok((flood.stdout().len() as u64 == FLOOD_BYTES && flood.stderr() == b"done\n").then_some(()))
            })?;
        }
        quiet.wait_stdout("done\n")?;

        let count = |word: &str| (0..400).map(|number| format!("{word} {number}\n")).collect::<String>();
        let total = (quiet.stdout().len() + count("file").len()) as u64;
        let ledger = agent.wait_ledger(quiet.id(), total)?;
        ensure!(ledger.dropped.is_empty(), "the quiet container lost bytes: {ledger:?}");
        let records = agent.records()?;
        let mut expected = Expected::new();
        expected.stdout(&quiet, quiet.stdout()).file(&quiet, "/var/log/quiet.log", count("file"));
        let of_quiet: Vec<_> =
            records.iter().filter(|record| record.resource("container.id") == quiet.id()).cloned().collect();
        expected.compare(&of_quiet)?;

        for flood in &floods {
            let ledger = agent.wait_ledger(flood.id(), FLOOD_BYTES + b"done\n".len() as u64)?;
            let records = agent.records()?;
            let mut length = 0;
            for record in records.iter().filter(|record| record.resource("container.id") == flood.id()) {
                length += record.bytes()?.len() as u64;
                let whole = record.text("/body").len() == FLOOD_LINE || record.source() == "stderr";
                ensure!(whole || !ledger.dropped.is_empty(), "a torn line without a loss: {}", record.value);
            }
            ensure!(length == ledger.delivered, "{length} bytes of records, and the ledger says {ledger:?}");
        }
        agent.stop()
    });
}

#[test]
fn a_flood_of_short_lines_costs_a_quiet_container_nothing() {
    // Each line is two bytes in two buffers, as musl's stdio writes them, and takes the ring a record of two kilobytes.
    let writev = "for _ in range(200000): os.writev(1, [b'x', b'\\n'])";
    let write = "for _ in range(200000): os.write(1, b'y\\n')";
    end_to_end(|bed| {
        let config = bed.config().with("/capture/ring_size", json!("1MiB"));
        let agent = Agent::start(bed, &config)?;
        let quiet = "i=0; while [ $i -lt 400 ]; do echo quiet $i; i=$((i+1)); usleep 5000; done; echo done; read hold";
        let quiet = bed.container("quiet").shell(quiet).start()?;
        let floods = [writev, write].map(|program| python::start(bed, program));
        for flood in floods {
            let flood = flood?;
            python::wait_done(&flood)?;
            let ledger = agent.wait_ledger(flood.id(), 400_000 + b"done\n".len() as u64)?;
            ensure!(ledger.dropped_for("capture", "ring_full") == 0, "it had the whole ring: {ledger:?}");
        }
        quiet.wait_stdout("done\n")?;
        let ledger = agent.wait_ledger(quiet.id(), quiet.stdout().len() as u64)?;
        ensure!(ledger.dropped.is_empty(), "the quiet container lost bytes: {ledger:?}");
        agent.stop()
    });
}

#[test]
fn files_that_are_made_leave_room_for_the_containers_own_lines() {
    end_to_end(|bed| {
        let config = bed.config().with("/capture/ring_size", json!("1MiB"));
        let agent = Agent::start(bed, &config)?;
        let program = "
os.write(1, b'first\\n')
sys.stdin.readline()
for n in range(2000):
    with open('/data/file-%d' % n, 'w') as file: file.write('content')
for n in range(100): os.write(1, b'line %d\\n' % n)
";
        let mut container = python::start(bed, program)?;
        agent.wait_ledger(container.id(), b"first\n".len() as u64)?;
        // Nobody drains the ring, so what the announcements take is not given back.
        agent.pause()?;
        container.stdin().write_all(b"go\n")?;
        python::wait_done(&container)?;
        agent.signal(Signal::CONT)?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout()).stderr(&container, "done\n");
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_file_whose_announcement_the_ring_did_not_take_is_announced_again() {
    end_to_end(|bed| {
        let config =
            bed.config().with("/capture/ring_size", json!("64KiB")).with("/capture/container_share", json!("100%"));
        let agent = Agent::start(bed, &config)?;
        let flood = "read go; for n in $(seq 1000); do echo $n; done; echo flooded >&2; read hold";
        let mut flood = bed.container("flood").shell(flood).start()?;
        let script = "echo ready; read go; echo first > /var/log/app.log; touch /data/mark; \
                      read go; echo second >> /var/log/app.log; touch /data/end; read hold";
        let mut container = bed.container("app").shell(script).start()?;
        agent.wait_ledger(container.id(), b"ready\n".len() as u64)?;
        // Nobody drains the ring, and one container alone fills it.
        agent.pause()?;
        flood.stdin().write_all(b"go\n")?;
        flood.wait_stderr("flooded\n")?;
        container.stdin().write_all(b"go\n")?;
        let mark = container.rootfs().join("data/mark");
        wait_until("the first line", DEADLINE, || Ok(mark.exists().then_some(())))?;
        agent.signal(Signal::CONT)?;
        agent.wait_ledger(flood.id(), (flood.stdout().len() + flood.stderr().len()) as u64)?;
        wait_until("a lost announcement, or nothing was tested", DEADLINE, || {
            Ok((agent.metrics()?.sum("sidestep_ring_lost_events_total") > 0.0).then_some(()))
        })?;
        container.stdin().write_all(b"go\n")?;
        let end = container.rootfs().join("data/end");
        wait_until("the second line", DEADLINE, || Ok(end.exists().then_some(())))?;
        let mut expected = Expected::new();
        expected.stdout(&container, "ready\n").file(&container, "/var/log/app.log", "first\nsecond\n");
        wait_until("both lines", DEADLINE, || {
            let mut records = agent.records()?;
            records.retain(|record| record.resource("container.id") == container.id());
            Ok(expected.compare(&records).is_ok().then_some(()))
        })?;
        agent.stop()
    });
}

#[test]
fn a_flood_into_a_file_is_complete_with_a_small_ring() {
    end_to_end(|bed| {
        let config = bed.config().with("/capture/ring_size", json!("1MiB"));
        let agent = Agent::start(bed, &config)?;
        let script =
            "line=$(printf '%01999d' 7); yes $line | head -c 20000000 > /var/log/flood.log; echo done; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("done\n")?;
        let mut expected = Expected::new();
        let line = format!("{:01999}\n", 7);
        expected.stdout(&container, "done\n").file(&container, "/var/log/flood.log", line.repeat(10_000));
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_container_at_its_quota_loses_only_what_the_ledger_says() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let container = bed.container("app").shell(FLOOD).start()?;
        wait_until("the end of the flood", 2 * DEADLINE, || {
            Ok((container.stdout().len() as u64 == FLOOD_BYTES).then_some(()))
        })?;
        // Figures move together: no reading may show more accounted for than was produced, and the sum settles.
        let ledger = agent.wait_ledger(container.id(), FLOOD_BYTES + b"done\n".len() as u64)?;
        ensure!(ledger.delivered > 0, "{ledger:?}");
        ensure!(agent.get("/healthz")?.status == 200);
        Ok(())
    });
}

#[test]
fn metrics_of_a_gone_container_go() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let mut container = bed.container("app").shell("seq 100; read hold").start()?;
        container.wait_stdout("100\n")?;
        agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        container.release();
        container.wait_for(DEADLINE)?;
        drop(container);
        // Identity and account stay until the last record is out, and for a time that is configured.
        wait_until("the metrics' end", 4 * DEADLINE, || {
            let metrics = agent.metrics()?;
            let series = metrics.samples.iter().filter(|sample| sample.name == "sidestep_log_produced_bytes_total");
            Ok((series.filter(|sample| sample.labels["container"] == "app").count() == 0).then_some(()))
        })?;
        agent.stop()
    });
}
