//! What the agent has left of itself is damaged, from another time, or from the future: it says so, repeats lines rather than
//! losing any, and drops nothing.

use std::{collections::BTreeSet, fs, io::Write as _, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidestep_tests::{Agent, Config, Container, DEADLINE, Testbed, end_to_end, wait_until};

/// A container that writes `seq <first> <last>` for each such pair of numbers that it is given, to its stdout and a file.
fn counter(bed: &Testbed) -> Result<Container> {
    bed.container("app").shell("while read first last; do seq $first $last | tee -a /app.log; done").start()
}

fn write(container: &mut Container, first: u32, last: u32) -> Result<()> {
    writeln!(container.stdin(), "{first} {last}")?;
    container.wait_stdout(&format!("{last}\n"))
}

/// No log of the runtime: what is missing is not found elsewhere.
fn config(bed: &Testbed) -> Config {
    bed.config().with("/capture/pin", json!(bed.pins())).with("/capture/runtime_logs", json!(false))
}

fn state(bed: &Testbed, name: &str) -> PathBuf {
    bed.directory().join("state").join(name)
}

/// Waits until each line from 1 to `last` has come of both streams, at least once, and nothing that was never written.
fn wait_lines(agent: &Agent, container: &Container, last: u32) -> Result<()> {
    for source in ["stdout", "/app.log"] {
        let mut seen = BTreeSet::new();
        wait_until(&format!("lines 1 to {last} of {source}"), DEADLINE, || {
            seen.clear();
            for record in agent.records()? {
                if record.resource("container.id") == container.id() && record.source() == source {
                    let text = record.text("/body");
                    seen.insert(text.parse::<u32>().with_context(|| format!("line {text:?} was never written"))?);
                }
            }
            Ok((seen.len() as u32 == last).then_some(()))
        })
        .with_context(|| format!("there are {} of them; {}", seen.len(), agent.log()))?;
    }
    Ok(())
}

/// Waits until the ring and the state know of everything that was delivered.
fn settled(agent: &Agent, container: &Container) -> Result<()> {
    wait_until("an empty ring", DEADLINE, || {
        let metrics = agent.metrics()?;
        let bytes = ["sidestep_ring_held_bytes", "sidestep_ring_fill_bytes"].map(|name| metrics.sum(name));
        Ok((bytes == [0.0; 2] && agent.ledger(container.id())?.pending == 0).then_some(()))
    })
}

/// Damages what an agent has left that is killed after 1000 lines; `early` is a copy of its journal after 500. The next one
/// has to say `event`, and to have every line and no drop.
fn survives(damage: impl FnOnce(&Testbed) -> Result<()>, event: &str) {
    end_to_end(|bed| {
        let agent = Agent::start(bed, &config(bed))?;
        let mut container = counter(bed)?;
        for last in [500, 1000] {
            write(&mut container, last - 499, last)?;
            wait_lines(&agent, &container, last)?;
            settled(&agent, &container)?;
            if last == 500 {
                fs::copy(state(bed, "streams.journal"), state(bed, "early"))?;
            }
        }
        agent.kill()?;
        damage(bed)?;
        write(&mut container, 1001, 1500)?;
        let agent = Agent::start(bed, &config(bed))?;
        write(&mut container, 1501, 2000)?;
        wait_lines(&agent, &container, 2000)?;
        wait_until(event, DEADLINE, || Ok(agent.log().contains(&format!("event=\"{event}\"")).then_some(())))
            .with_context(|| agent.log())?;
        ensure!(agent.metrics()?.sum("sidestep_events_total") > 0.0);
        container.finish()?;
        wait_until("a ledger that balances", DEADLINE, || {
            let ledger = agent.ledger(container.id())?;
            Ok((ledger.pending == 0 && ledger.difference() == 0).then_some(()))
        })?;
        let ledger = agent.ledger(container.id())?;
        ensure!(ledger.dropped.is_empty(), "{ledger:?}\n{}", agent.log());
        agent.stop()
    });
}

fn keeps_aside(bed: &Testbed, name: &str) -> Result<()> {
    ensure!(state(bed, name).exists(), "{name} was not kept");
    Ok(())
}

#[test]
fn positions_with_a_flipped_bit() {
    survives(
        |bed| {
            let path = state(bed, "positions.json");
            let mut bytes = fs::read(&path)?;
            let position = bytes.windows(11).position(|text| text == b"\"position\":").context("a position")? + 11;
            // A higher number, which nothing but the checksum tells from the true one.
            bytes[position] ^= 1;
            Ok(fs::write(path, bytes)?)
        },
        "positions_unreadable",
    );
}

#[test]
fn positions_of_a_later_version_are_kept_aside() {
    end_to_end(|bed| {
        fs::create_dir_all(bed.directory().join("state"))?;
        fs::write(state(bed, "positions.json"), "{\"version\":99,\"checksum\":0,\"content\":{}}")?;
        fs::write(state(bed, "streams.journal"), [b"sidestrm".as_slice(), &99u32.to_le_bytes(), &[0; 36]].concat())?;
        let agent = Agent::start(bed, &config(bed))?;
        for said in ["version 99", "positions.json.bad", "streams.journal.bad"] {
            ensure!(agent.log().contains(said), "{said}: {}", agent.log());
        }
        keeps_aside(bed, "positions.json.bad")?;
        keeps_aside(bed, "streams.journal.bad")?;
        let mut container = counter(bed)?;
        write(&mut container, 1, 100)?;
        wait_lines(&agent, &container, 100)?;
        agent.stop()
    });
}

/// Writes positions without a checksum, as an older version did, after a change.
fn change_positions(bed: &Testbed, change: impl FnOnce(&mut Value)) -> Result<()> {
    let path = state(bed, "positions.json");
    let mut content = serde_json::from_slice::<Value>(&fs::read(&path)?)?["content"].take();
    content["version"] = json!(1);
    change(&mut content);
    Ok(fs::write(path, content.to_string())?)
}

#[test]
fn a_position_beyond_the_end_of_the_file() {
    survives(
        |bed| change_positions(bed, |content| content["files"][0]["position"] = json!(1_000_000)),
        "position_implausible",
    );
}

#[test]
fn positions_of_a_time_to_come() {
    survives(
        |bed| change_positions(bed, |content| content["complete_until"] = json!(4_000_000_000_000_000_000_u64)),
        "positions_from_future",
    );
}

#[test]
fn a_journal_with_a_flipped_bit() {
    survives(
        |bed| {
            let path = state(bed, "streams.journal");
            let mut bytes = fs::read(&path)?;
            // In the checksum of the first frame.
            bytes[8 + 4 + 36 + 8] ^= 1;
            Ok(fs::write(path, bytes)?)
        },
        "journal_unreadable",
    );
}

#[test]
fn a_journal_that_is_cut_off() {
    survives(
        |bed| {
            let path = state(bed, "streams.journal");
            // The head alone: no stream is known.
            Ok(fs::write(&path, &fs::read(&path)?[..8 + 4 + 36])?)
        },
        "journal_implausible",
    );
}

#[test]
fn a_journal_from_an_earlier_time() {
    survives(
        |bed| fs::rename(state(bed, "early"), state(bed, "streams.journal")).context("an older copy"),
        "journal_implausible",
    );
}
