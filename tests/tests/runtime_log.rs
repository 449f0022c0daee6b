//! What the ring could not hold while no agent ran is taken from the runtime's log; what is not there is counted.

use std::{fs, io::Write as _, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sidestep_tests::{Agent, Config, Container, DEADLINE, Stdio, Testbed, end_to_end, mounts, wait_until};

/// Lines of which the ring holds a small part.
const MANY: u64 = 60_000;

/// A container that writes `seq <first> <last>` for each such pair of numbers that it is given, and whose log the runtime
/// writes.
fn counter(bed: &Testbed) -> Result<Container> {
    let script = "while read first last; do seq $first $last; done";
    bed.container("app").shell(script).stdout(Stdio::Logged).start()
}

/// Lets a [`counter`] write from 1 on, what it has written before included, and waits until the runtime has it.
fn write(container: &mut Container, first: u64, last: u64) -> Result<()> {
    writeln!(container.stdin(), "{first} {last}")?;
    let bytes = length(last);
    wait_until(&format!("{bytes} bytes in the runtime's log"), DEADLINE, || {
        Ok((container.log().written() == bytes).then_some(()))
    })
    .with_context(|| format!("there are {}", container.log().written()))
}

/// Bytes of the lines from 1 to `last`.
fn length(last: u64) -> u64 {
    (1..=last).map(|line| u64::from(line.ilog10()) + 2).sum()
}

/// A small ring, so that little has to be written; the programs go on without an agent.
fn config(bed: &Testbed) -> Config {
    bed.config().with("/capture/pin", json!(bed.pins())).with("/capture/ring_size", json!("256KiB"))
}

/// The numbers of the lines, in the order of their places.
fn lines(records: &Path, container: &Container) -> Result<Vec<u64>> {
    let mut lines = Vec::new();
    for record in sidestep_tests::records::read(records)? {
        // What a gap has left of the lines at its ends.
        let torn = record.has_flag("after_gap") || record.has_flag("unterminated");
        if record.resource("container.id") == container.id() && record.source() == "stdout" && !torn {
            let text = record.text("/body");
            let number = text.parse().with_context(|| format!("line {text:?} was never written: {}", record.value))?;
            lines.push((record.position(), number));
        }
    }
    lines.sort_unstable();
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

/// Waits until each line from 1 to `last` has come, once.
fn wait_complete(agent: &Agent, container: &Container, last: u64) -> Result<()> {
    wait_until(&format!("lines 1 to {last}"), DEADLINE, || {
        let lines = lines(agent.records_directory(), container)?;
        Ok((lines.len() as u64 >= last).then_some(()))
    })
    .with_context(|| format!("{:?} {}", agent.ledger(container.id()), agent.log()))?;
    let lines = lines(agent.records_directory(), container)?;
    let wrong = (1..=last).zip(&lines).find(|(expected, line)| expected != *line);
    ensure!(lines.len() as u64 == last && wrong.is_none(), "{} lines, expected and found: {wrong:?}", lines.len());
    Ok(())
}

/// Nothing is dropped, the books balance, and the runtime's log has given something.
fn wait_repaired(agent: &Agent, container: &Container) -> Result<()> {
    wait_until("a ledger without drops", DEADLINE, || {
        let ledger = agent.ledger(container.id())?;
        Ok((ledger.pending == 0 && ledger.dropped.is_empty() && ledger.difference() == 0).then_some(()))
    })
    .with_context(|| format!("{:?}", agent.ledger(container.id())))?;
    let bytes = agent.metrics()?.sum("sidestep_stream_repair_read_bytes_total");
    ensure!(bytes > 100_000.0, "{bytes} bytes of the runtime's log");
    Ok(())
}

/// The next agent has each line once, what no agent has seen and what comes then.
fn is_repaired(bed: &Testbed, container: &mut Container) -> Result<()> {
    let agent = Agent::start(bed, &config(bed))?;
    write(container, MANY + 1, MANY + 1000)?;
    wait_complete(&agent, container, MANY + 1000)?;
    wait_repaired(&agent, container)?;
    agent.stop()
}

/// An agent that has delivered the first lines and is killed.
fn begin(bed: &Testbed) -> Result<Container> {
    let agent = Agent::start(bed, &config(bed))?;
    let mut container = counter(bed)?;
    write(&mut container, 1, 1000)?;
    wait_complete(&agent, &container, 1000)?;
    agent.wait_ring()?;
    agent.kill()?;
    Ok(container)
}

#[test]
fn what_was_written_without_an_agent_comes_from_the_log() {
    end_to_end(|bed| {
        let mut container = begin(bed)?;
        write(&mut container, 1001, MANY)?;
        is_repaired(bed, &mut container)
    });
}

#[test]
fn a_gap_at_the_end_of_what_was_written_is_filled() {
    end_to_end(|bed| {
        let mut container = begin(bed)?;
        write(&mut container, 1001, MANY)?;
        let agent = Agent::start(bed, &config(bed))?;
        wait_complete(&agent, &container, MANY)?;
        wait_repaired(&agent, &container)?;
        agent.stop()
    });
}

#[test]
fn a_container_that_has_ended_is_complete() {
    end_to_end(|bed| {
        let mut container = begin(bed)?;
        write(&mut container, 1001, MANY)?;
        container.finish()?;
        container.log().wait_end()?;
        let agent = Agent::start(bed, &config(bed))?;
        wait_complete(&agent, &container, MANY)?;
        wait_repaired(&agent, &container)?;
        agent.stop()
    });
}

#[test]
fn rotated_files_are_read_in_order() {
    end_to_end(|bed| {
        let mut container = begin(bed)?;
        write(&mut container, 1001, MANY / 2)?;
        let oldest = container.log().rotate("20241121-101010")?;
        writeln!(container.stdin(), "{} {}", MANY / 2 + 1, MANY)?;
        let half = container.log().written();
        wait_until("some more lines", DEADLINE, || Ok((container.log().written() > half).then_some(())))?;
        container.log().rotate("20241121-101110")?;
        ensure!(Command::new("gzip").arg(&oldest).status()?.success(), "gzip {}", oldest.display());
        let agent = Agent::start(bed, &config(bed))?;
        wait_until("all lines", DEADLINE, || Ok((container.log().written() == length(MANY)).then_some(())))?;
        write(&mut container, MANY + 1, MANY + 1000)?;
        wait_complete(&agent, &container, MANY + 1000)?;
        wait_repaired(&agent, &container)?;
        agent.stop()
    });
}

#[test]
fn what_lies_before_the_oldest_file_is_not_missed() {
    end_to_end(|bed| {
        let mut container = begin(bed)?;
        let oldest = container.log().rotate("20241121-101010")?;
        write(&mut container, 1001, MANY)?;
        // Nobody can count from the start any more.
        fs::remove_file(&oldest)?;
        is_repaired(bed, &mut container)
    });
}

#[test]
fn a_kill_between_repair_and_delivery_repeats_the_repair() {
    end_to_end(|bed| {
        let records = bed.directory().join("logs");
        mounts::tmpfs(&records, "128m")?;
        let mut container = begin(bed)?;
        write(&mut container, 1001, MANY)?;
        // Nothing is delivered while the disk is full, however fast the agent is.
        let filler = records.join("filler");
        ensure!(fs::write(&filler, vec![0; 129 << 20]).is_err(), "the disk isn't full");
        for _ in 0..3 {
            let agent = Agent::start(bed, &config(bed))?;
            wait_until("bytes of the log", DEADLINE, || {
                Ok((agent.metrics()?.sum("sidestep_stream_repair_read_bytes_total") > 0.0).then_some(()))
            })?;
            agent.kill()?;
        }
        fs::remove_file(&filler)?;
        let agent = Agent::start(bed, &config(bed))?;
        write(&mut container, MANY + 1, MANY + 1000)?;
        let mut wrong = None;
        wait_until("each line", DEADLINE, || {
            let mut lines = lines(agent.records_directory(), &container)?;
            lines.dedup();
            wrong = (1..=MANY + 1000).zip(lines.iter().copied()).find(|(expected, line)| expected != line);
            Ok((wrong.is_none() && lines.len() as u64 == MANY + 1000).then_some(()))
        })
        .with_context(|| format!("expected and found: {wrong:?}, {}", agent.log()))?;
        agent.stop()
    });
}

/// Damages the log, or the way to it, and expects that the gap is counted and all else delivered.
fn counted(config: impl Fn(&Testbed) -> Config, damage: impl FnOnce(&Container) -> Result<()>) {
    end_to_end(|bed| {
        let mut container = begin(bed)?;
        write(&mut container, 1001, MANY)?;
        damage(&container)?;
        let agent = Agent::start(bed, &config(bed))?;
        agent.wait_ring()?;
        write(&mut container, MANY + 1, MANY + 1000)?;
        wait_until("the last line", DEADLINE, || {
            Ok((lines(agent.records_directory(), &container)?.last() == Some(&(MANY + 1000))).then_some(()))
        })
        .with_context(|| agent.log())?;
        wait_until("a ledger with the gap", DEADLINE, || {
            let ledger = agent.ledger(container.id())?;
            let lost = ledger.dropped_for("capture", "quota") + ledger.dropped_for("capture", "ring_full");
            Ok((lost > 100_000 && lost == ledger.dropped_total() && ledger.pending == 0).then_some(()))
        })
        .with_context(|| format!("{:?}", agent.ledger(container.id())))?;
        agent.stop()
    });
}

#[test]
fn without_the_file_the_gap_is_counted() {
    counted(config, |container| Ok(fs::remove_file(container.log().path())?));
}

#[test]
fn bytes_that_are_not_those_of_the_gap_are_not_taken() {
    counted(config, |container| {
        let text = fs::read_to_string(container.log().path())?;
        // As if the runtime had left something out.
        let without: String =
            text.lines().filter(|line| !line.ends_with(" 40000")).map(|line| format!("{line}\n")).collect();
        ensure!(without.len() < text.len());
        Ok(fs::write(container.log().path(), without)?)
    });
}

#[test]
fn switched_off_the_gap_is_counted() {
    counted(|bed| config(bed).with("/capture/runtime_logs", json!(false)), |_| Ok(()));
}
