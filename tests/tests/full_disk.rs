//! A sink that takes nothing, behind a queue that is full: it holds nobody up who wants to end it or the agent.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;
use serde_json::{Value, json};
use sidestep_tests::{Agent, Config, Container, DEADLINE, Expected, Testbed, end_to_end, mounts, records, wait_until};

/// What a busy machine may add to a limit.
const SLOW: Duration = Duration::from_secs(15);

/// Batches that the queue of a sink takes before it is full, in tests that want it to be.
const FEW: usize = 2;

/// A container that writes a line to stdout and one to a file every now and then, until the test ends it: each time
/// makes batches of its own.
fn patient_writer(bed: &Testbed) -> Result<Container> {
    let script = "n=0; while [ ! -e /data/stop ]; do n=$((n + 1)); echo line $n; echo line $n >> /var/log/app.log; \
                  usleep 20000; done; echo done >&2; exec sleep 1000";
    bed.container("app").shell(script).start()
}

fn end_writer(container: &Container) -> Result<String> {
    fs::write(container.rootfs().join("data/stop"), "")?;
    container.wait_stderr("done\n")?;
    Ok(fs::read_to_string(container.rootfs().join("var/log/app.log"))?)
}

/// A sink whose queue is soon full.
fn small_sink(name: &str, path: &Path, classes: &[&str]) -> Value {
    let queue = json!({ "max_batches": FEW });
    json!({ "type": "file", "name": name, "path": path, "classes": classes, "queue": queue, "compression": "none" })
}

/// Fills a disk, and waits until the sink `stuck`, which writes there, has a full queue that somebody waits for.
fn fill(disk: &Path, agent: &Agent, container: &Container) -> Result<()> {
    ensure!(fs::write(disk.join("filler"), vec![0; 8 << 20]).is_err(), "the disk isn't full");
    wait_until("a full queue", DEADLINE, || {
        let queued = agent.metrics()?.of_sink("sidestep_sink_queued_batches", "stuck");
        Ok(queued.is_some_and(|queued| queued >= FEW as f64).then_some(()))
    })?;
    // The next line, and each after it, is a batch that finds no room. So few of them that the stages before the sinks
    // are not held up as well, where the sink takes files only.
    let before = container.stdout().len();
    wait_until("more lines", DEADLINE, || Ok((container.stdout().len() > before + 100).then_some(())))
}

#[test]
fn another_path_frees_what_a_full_disk_holds_up() {
    end_to_end(|bed| {
        let disk = bed.path("disk")?;
        mounts::tmpfs(&disk, "2m")?;
        let classes = ["pod", "business", "server"];
        let config = |path: &Path| bed.config().with("/sinks", json!([small_sink("stuck", path, &classes)]));
        let agent = Agent::start(bed, &config(&disk.join("logs")))?;
        let container = patient_writer(bed)?;
        container.wait_stdout("line 10\n")?;
        fill(&disk, &agent, &container)?;

        // A folder that can't be is refused, and everything else goes on meanwhile.
        fs::write(bed.path("wall")?, "")?;
        fs::write(agent.config_file(), config(&bed.path("wall")?.join("below")).text())?;
        agent.reload()?;
        wait_until("the refusal", DEADLINE, || Ok(agent.log().contains("reload refused").then_some(())))?;
        ensure!(agent.get("/healthz")?.status == 200);
        ensure!(agent.ledger(container.id())?.dropped.is_empty());

        let other = bed.path("other")?;
        fs::write(agent.config_file(), config(&other).text())?;
        agent.reload()?;
        wait_until("the reload", DEADLINE, || {
            ensure!(agent.get("/healthz")?.status == 200);
            Ok(agent.log().contains("reload done").then_some(()))
        })?;
        let text = end_writer(&container)?;
        let mut expected = Expected::new();
        expected.stdout(&container, &text).file(&container, "/var/log/app.log", &text).stderr(&container, "done\n");
        let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
        ensure!(ledger.dropped.is_empty(), "{ledger:?}");
        agent.stop()?;
        let [first, last] = [records::read(&disk.join("logs"))?, records::read(&other)?];
        ensure!(!first.is_empty() && !last.is_empty());
        expected.compare(&[first, last].concat())
    });
}

/// The agent is asked to end while the disk is full for a sink of these classes, and a second one completes the file.
fn ends_on_a_full_disk(bed: &Testbed, classes: &[&str]) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(4);
    let disk = bed.path("disk")?;
    mounts::tmpfs(&disk, "2m")?;
    let works = json!({ "type": "file", "name": "works", "path": bed.path("works")?, "classes": ["pod"] });
    let sinks = json!([small_sink("stuck", &disk.join("logs"), classes), works]);
    let config: Config = bed.config().with("/sinks", sinks).with("/shutdown_timeout", json!("4s"));
    let agent = Agent::start(bed, &config)?;
    let container = patient_writer(bed)?;
    container.wait_stdout("line 10\n")?;
    fill(&disk, &agent, &container)?;

    let start = Instant::now();
    let log = agent.stop_with_log()?;
    let took = start.elapsed();
    ensure!(took < LIMIT + SLOW, "it took {took:?}\n{log}");
    ensure!(log.contains("stopped before everything was delivered"), "{log}");
    ensure!(!log.contains("could not be saved"), "{log}");

    mounts::remount(&disk, "size=64m", MountFlags::empty())?;
    let agent = Agent::start(bed, &config)?;
    let text = end_writer(&container)?;
    let mut expected = Expected::new().with_repeats();
    expected.file(&container, "/var/log/app.log", text);
    let mut difference = String::new();
    wait_until("all of the file", DEADLINE, || {
        let mut records = records::read(&disk.join("logs"))?;
        // Of the pipes, what had no room is lost, and counted.
        records.retain(|record| record.source() == "/var/log/app.log");
        let result = expected.compare(&records);
        difference = result.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        Ok(result.is_ok().then_some(()))
    })
    .with_context(|| format!("{difference}\n{}", agent.log()))?;
    agent.stop()
}

#[test]
fn sigterm_on_a_full_disk_ends_in_time_and_the_next_agent_completes_the_files() {
    end_to_end(|bed| ends_on_a_full_disk(bed, &["pod", "business", "server"]));
}

#[test]
fn sigterm_with_only_the_files_held_up_ends_in_time_too() {
    end_to_end(|bed| ends_on_a_full_disk(bed, &["business"]));
}

#[test]
fn sigterm_with_a_last_line_that_finds_no_room_ends_in_time_and_says_what_is_left() {
    end_to_end(|bed| {
        let disk = bed.path("disk")?;
        mounts::tmpfs(&disk, "2m")?;
        let sinks = json!([small_sink("stuck", &disk.join("logs"), &["pod", "business", "server"])]);
        // The unfinished line comes out at the end and not before.
        let config = bed.config().with("/sinks", sinks).with("/lines/idle_flush", json!("1h"));
        let agent = Agent::start(bed, &config.with("/shutdown_timeout", json!("2s")))?;
        // Lines of 8,000 bytes: short ones would still find room in the last page of the sink's file.
        let script = "echo one; read go; printf '%07999d\\n' 2; sleep 1; printf '%07999d\\n' 3; sleep 1; printf rest; \
                      exec sleep 1000";
        let mut container = bed.container("app").shell(script).start()?;
        agent.wait_ledger(container.id(), 4)?;
        ensure!(fs::write(disk.join("filler"), vec![0; 8 << 20]).is_err(), "the disk isn't full");
        container.release();
        wait_until("all that is written", DEADLINE, || {
            Ok((agent.ledger(container.id())?.produced == 16_008).then_some(()))
        })?;
        let metrics = agent.metrics()?;
        ensure!(metrics.of_sink("sidestep_sink_queued_batches", "stuck") == Some(FEW as f64));
        let start = Instant::now();
        let log = agent.stop_with_log()?;
        ensure!(start.elapsed() < Duration::from_secs(2) + SLOW, "it took {:?}\n{log}", start.elapsed());
        ensure!(log.contains("stopped before everything was delivered") && log.contains("bytes=16004"), "{log}");
        Ok(())
    });
}
