//! Maps of the kernel programs that are full: what has no room is counted, and found again when there is some.

use std::{fmt::Write, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidestep_abi::{
    container::Container,
    stdio::{InodeKey, Stdio},
};
use sidestep_tests::{Agent, DEADLINE, Ledger, Testbed, end_to_end, wait_until};

/// Ids that no cgroup has.
const STRANGERS: std::ops::Range<u64> = 1 << 40..(1 << 40) + 40_000;

/// Finds a map by its name among those that the agent holds.
fn map_id(agent: &Agent, name: &str) -> Result<u64> {
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", agent.pid()))? {
        // A descriptor may have been closed since.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let Some(id) = text.lines().find_map(|line| line.strip_prefix("map_id:")) else { continue };
        let output = Command::new("bpftool").args(["--json", "map", "show", "id", id.trim()]).output();
        let map: Value = serde_json::from_slice(&output.context("running bpftool: apt-get install bpftool")?.stdout)?;
        if map["name"] == name {
            return id.trim().parse().context("the map's id");
        }
    }
    anyhow::bail!("the agent has no map {name}")
}

/// A batch of one bpftool command for each stranger, by its key.
fn batch(bed: &Testbed, name: &str, command: impl Fn(&str) -> String) -> Result<PathBuf> {
    let mut text = String::new();
    for stranger in STRANGERS {
        let key = stranger.to_le_bytes().map(|byte| format!("{byte:02x}")).join(" ");
        writeln!(text, "map {}", command(&key))?;
    }
    let path = bed.path(name)?;
    fs::write(&path, text)?;
    Ok(path)
}

fn run(batch: &PathBuf) -> Result<bool> {
    let output = Command::new("bpftool").args(["batch", "file"]).arg(batch).output().context("running bpftool")?;
    Ok(output.status.success())
}

fn wait_ledger(agent: &Agent, id: &str, what: &str, condition: impl Fn(&Ledger) -> bool) -> Result<Ledger> {
    let mut last = Ledger::default();
    wait_until(what, DEADLINE, || {
        last = agent.ledger(id)?;
        Ok(condition(&last).then_some(()))
    })
    .with_context(|| format!("{last:?}\n{}", agent.log()))?;
    Ok(last)
}

/// Fills a map whose values have `value` bytes and whose keys have 8 and `rest`, starts a container, waits until the
/// agent has noticed, makes room, and expects every line from some line on.
fn has_room_again(bed: &Testbed, agent: Agent, name: &str, rest: usize, value: usize, counted: bool) -> Result<()> {
    let map = map_id(&agent, name)?;
    let (rest, value) = (" 00".repeat(rest), " 00".repeat(value));
    let fill = batch(bed, "fill", |key| format!("update id {map} key hex {key}{rest} value hex{value}"))?;
    let clear = batch(bed, "clear", |key| format!("delete id {map} key hex {key}{rest}"))?;
    ensure!(!run(&fill)?, "the map took all that it was given");

    let script = "while [ ! -e /data/stop ]; do echo line; usleep 20000; done; echo last; read hold";
    let container = bed.container("app").shell(script).start()?;
    wait_until("a search for what had no room", DEADLINE, || {
        Ok(agent.log().contains("not every container is captured").then_some(()))
    })
    .with_context(|| agent.log())?;
    ensure!(agent.metrics()?.sum("sidestep_ring_lost_events_total") > 0.0);
    if counted {
        wait_ledger(&agent, container.id(), "a loss for a full map", |ledger| {
            ledger.dropped_for("capture", "map_full") > 0
        })?;
    }
    ensure!(agent.ledger(container.id())?.delivered == 0, "there was room");

    // It ends at the first stranger that was not taken.
    run(&clear)?;
    wait_ledger(&agent, container.id(), "a line that came through", |ledger| ledger.delivered > 0)?;
    fs::write(container.rootfs().join("data/stop"), "")?;
    container.wait_stdout("last\n")?;
    wait_until("the last line", DEADLINE, || {
        Ok(agent.records()?.last().is_some_and(|record| record.text("/body") == "last").then_some(()))
    })?;
    let ledger = wait_ledger(&agent, container.id(), "a settled ledger", |ledger| ledger.pending == 0)?;
    ensure!(ledger.difference() == 0, "{ledger:?}");
    ensure!(ledger.dropped_total() == ledger.dropped_for("capture", "map_full"), "{ledger:?}");
    ensure!(counted == (ledger.dropped_total() > 0), "{ledger:?}");
    agent.stop()
}

#[test]
fn a_container_without_a_share_is_counted_and_then_captured() {
    end_to_end(|bed| has_room_again(bed, bed.agent()?, "CONTAINERS", 0, size_of::<Container>(), true));
}

#[test]
fn a_container_whose_streams_had_no_room_is_captured_when_there_is_some() {
    end_to_end(|bed| has_room_again(bed, bed.agent()?, "STDIO", size_of::<InodeKey>() - 8, size_of::<Stdio>(), false));
}

#[test]
fn a_cgroup_that_had_no_room_below_its_root_is_governed_when_there_is_some() {
    end_to_end(|bed| {
        let root = format!("{}/kube*", bed.cgroup_root());
        let agent = Agent::start(bed, &bed.config().with("/capture/cgroup_roots", json!([root])))?;
        has_room_again(bed, agent, "MEMBERS", 0, 4, false)
    });
}
