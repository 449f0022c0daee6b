//! What is pinned: while no agent runs the kernel programs go on collecting, and the next agent takes over, also another
//! build or another configuration; and everything can be taken away.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use sidestep_tests::{Agent, Config, Container, DEADLINE, Testbed, agent, end_to_end, wait_until};

/// A container that writes `seq <first> <last>` for each such pair of numbers that it is given.
fn counter(bed: &Testbed, name: &str) -> Result<Container> {
    bed.container(name).shell("while read first last; do seq $first $last; done").start()
}

/// Lets a [`counter`] write, and waits until it has.
fn write(container: &mut Container, first: u32, last: u32) -> Result<()> {
    writeln!(container.stdin(), "{first} {last}")?;
    container.wait_stdout(&format!("{last}\n"))
}

/// How often each line of a container has come.
fn lines(records: &Path, container: &Container) -> Result<BTreeMap<u32, u32>> {
    let mut lines = BTreeMap::new();
    for record in sidestep_tests::records::read(records)? {
        if record.resource("container.id") == container.id() && record.source() == "stdout" {
            let text = record.text("/body");
            let number = text.parse().with_context(|| format!("line {text:?} was never written: {}", record.value))?;
            *lines.entry(number).or_default() += 1;
        }
    }
    Ok(lines)
}

/// Waits until the lines from 1 to `last` have come.
fn wait_lines(agent: &Agent, container: &Container, last: u32) -> Result<BTreeMap<u32, u32>> {
    let mut seen = BTreeMap::new();
    wait_until(&format!("lines 1 to {last} of {}", container.name()), DEADLINE, || {
        seen = lines(agent.records_directory(), container)?;
        Ok((seen.len() as u32 == last && seen.keys().copied().eq(1..=last)).then_some(()))
    })
    .with_context(|| {
        let missing: Vec<_> = (1..=last).filter(|line| !seen.contains_key(line)).collect();
        format!("{} lines are missing, such as {:?}; {}", missing.len(), missing.first(), agent.log())
    })?;
    Ok(seen)
}

fn pinned(bed: &Testbed) -> Config {
    bed.config().with("/capture/pin", json!(bed.pins()))
}

fn exactly_once(lines: &BTreeMap<u32, u32>) -> Result<()> {
    let twice: Vec<_> = lines.iter().filter(|(_, count)| **count != 1).collect();
    ensure!(twice.is_empty(), "{} lines came more than once, such as {:?}", twice.len(), twice[0]);
    Ok(())
}

fn uninstall(bed: &Testbed, arguments: &[&str]) -> Result<Output> {
    let file = bed.path("sidestep.yaml")?;
    let mut command = Command::new(agent::binary()?);
    Ok(command.arg("uninstall").arg("--config").arg(file).args(arguments).output()?)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// The sets below a directory of pins, by name.
fn sets(pins: &Path) -> Result<Vec<PathBuf>> {
    let mut sets: Vec<_> = fs::read_dir(pins)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    sets.sort();
    Ok(sets)
}

#[test]
fn lines_of_the_time_without_an_agent_arrive() {
    end_to_end(|bed| {
        let config = pinned(bed);
        let agent = Agent::start(bed, &config)?;
        let mut container = counter(bed, "long")?;
        write(&mut container, 1, 1000)?;
        exactly_once(&wait_lines(&agent, &container, 1000)?)?;
        agent.wait_ring()?;
        agent.kill()?;

        write(&mut container, 1001, 2000)?;
        // Born and gone while no agent runs.
        let mut short = counter(bed, "short")?;
        write(&mut short, 1, 500)?;
        short.finish()?;

        let agent = Agent::start(bed, &config)?;
        ensure!(agent.log().contains("took over the programs"), "{}", agent.log());
        write(&mut container, 2001, 3000)?;
        exactly_once(&wait_lines(&agent, &container, 3000)?)?;
        exactly_once(&wait_lines(&agent, &short, 500)?)?;
        let ledger = agent.ledger(container.id())?;
        ensure!(ledger.dropped.is_empty(), "{ledger:?}");
        agent.stop()
    });
}

#[test]
fn a_stopped_agent_leaves_the_programs_and_the_next_one_goes_on() {
    end_to_end(|bed| {
        let config = pinned(bed);
        let mut container = counter(bed, "app")?;
        let mut next = 0;
        for _ in 0..4 {
            let agent = Agent::start(bed, &config)?;
            write(&mut container, next + 1, next + 300)?;
            // Nothing is waited for: what this one does not take is the next one's.
            agent.stop()?;
            write(&mut container, next + 301, next + 600)?;
            next += 600;
        }
        let agent = Agent::start(bed, &config)?;
        exactly_once(&wait_lines(&agent, &container, next)?)?;
        ensure!(sets(&bed.pins())?.len() == 1, "{:?}", sets(&bed.pins())?);
        agent.stop()
    });
}

#[test]
fn unload_leaves_nothing() {
    end_to_end(|bed| {
        let agent = Agent::start(bed, &pinned(bed).with("/capture/when_stopped", json!("unload")))?;
        let mut container = counter(bed, "app")?;
        write(&mut container, 1, 100)?;
        wait_lines(&agent, &container, 100)?;
        ensure!(bed.pins().exists());
        agent.stop()?;
        ensure!(!bed.pins().exists(), "{:?}", sets(&bed.pins())?);
        Ok(())
    });
}

#[test]
fn uninstall_leaves_nothing_and_refuses_while_an_agent_runs() {
    end_to_end(|bed| {
        let agent = Agent::start(bed, &pinned(bed))?;
        let refused = uninstall(bed, &["--state"])?;
        ensure!(refused.status.code() == Some(3) && bed.pins().exists(), "{}", text(&refused));
        agent.kill()?;
        let done = uninstall(bed, &["--state"])?;
        ensure!(done.status.success() && text(&done).contains("1 sets"), "{}", text(&done));
        ensure!(!bed.pins().exists() && !bed.directory().join("state/positions.json").exists());
        let again = uninstall(bed, &["--state"])?;
        ensure!(again.status.success() && text(&again).contains("nothing is pinned"), "{}", text(&again));
        Ok(())
    });
}

#[test]
fn a_second_agent_on_the_same_pins_is_refused() {
    end_to_end(|bed| {
        let first = Agent::start(bed, &pinned(bed))?;
        // Another socket, state and sink: only the pins are the same.
        let other = Config::new(bed)
            .with("/capture/pin", json!(bed.pins()))
            .with("/socket", json!(bed.directory().join("other.sock")))
            .with("/state_dir", json!(bed.directory().join("other-state")))
            .with_records(&bed.directory().join("other-logs"));
        let file = bed.path("other.yaml")?;
        fs::write(&file, other.text())?;
        let output = Command::new(agent::binary()?).arg("run").arg("--config").arg(&file).output()?;
        ensure!(
            output.status.code() == Some(1) && text(&output).contains("in use by another agent"),
            "{}",
            text(&output)
        );
        first.stop()
    });
}

#[test]
fn a_directory_elsewhere_is_refused() {
    end_to_end(|bed| {
        let config = bed.config().with("/capture/pin", json!(bed.directory().join("pins")));
        let file = bed.path("sidestep.yaml")?;
        fs::write(&file, config.text())?;
        let output = Command::new(agent::binary()?).arg("run").arg("--config").arg(&file).output()?;
        ensure!(output.status.code() == Some(1) && text(&output).contains("mount -t bpf"), "{}", text(&output));
        Ok(())
    });
}

/// Damages what an agent has left, and looks that the next one starts, says so, and captures what comes, once.
fn survives(damage: impl FnOnce(&Path) -> Result<()>, said: &str) {
    end_to_end(|bed| {
        let config = pinned(bed);
        let agent = Agent::start(bed, &config)?;
        let mut container = counter(bed, "app")?;
        write(&mut container, 1, 500)?;
        wait_lines(&agent, &container, 500)?;
        // What an agent is killed with before the ring has let go of it comes twice.
        agent.wait_ring()?;
        agent.kill()?;
        damage(&bed.pins().join("1"))?;
        let agent = Agent::start(bed, &config)?;
        ensure!(agent.log().contains(said), "{}", agent.log());
        write(&mut container, 501, 1000)?;
        exactly_once(&wait_lines(&agent, &container, 1000)?)?;
        wait_until("the end of the damaged set", DEADLINE, || {
            Ok((sets(&bed.pins())? == [bed.pins().join("2")]).then_some(()))
        })?;
        agent.stop()
    });
}

#[test]
fn a_missing_link_is_made_anew() {
    survives(|set| Ok(fs::remove_file(set.join("links/exit_pwritev"))?), "links are missing: exit_pwritev");
}

#[test]
fn a_missing_map_is_made_anew() {
    survives(|set| Ok(fs::remove_file(set.join("maps/FILES"))?), "maps are missing: FILES");
}

#[test]
fn a_set_that_says_nothing_of_itself_is_made_anew() {
    survives(|set| Ok(fs::remove_file(set.join("about"))?), "damaged");
}

#[test]
fn a_half_made_set_counts_for_nothing() {
    end_to_end(|bed| {
        let half = bed.pins().join("making-7");
        let agent = Agent::start(bed, &pinned(bed))?;
        agent.kill()?;
        fs::create_dir_all(half.join("links"))?;
        let agent = Agent::start(bed, &pinned(bed))?;
        ensure!(agent.log().contains("never counted") && !half.exists(), "{}", agent.log());
        agent.stop()
    });
}

/// A container that writes numbered lines at a steady pace until its stdin is closed, and then how many.
fn steady(bed: &Testbed) -> Result<Container> {
    let program = "import os, select, sys, time\n\
                   number = 0\n\
                   while not select.select([0], [], [], 0)[0]:\n    \
                       for _ in range(4):\n        \
                           number += 1\n        \
                           os.write(1, b'%d\\n' % number)\n    \
                       time.sleep(0.002)\n\
                   os.write(2, b'%d\\n' % number)\n";
    bed.container("steady").python(program).start()
}

/// Lets `first` and then `second` agent run under load; nothing may be lost, nothing come twice.
fn replaced_under_load(bed: &Testbed, first: Agent, second: impl FnOnce() -> Result<Agent>) -> Result<()> {
    let mut container = steady(bed)?;
    container.wait_stdout("\n1000\n")?;
    // In the middle of its work: what it has taken and not delivered it delivers, what it has not taken is in the ring.
    first.stop()?;
    let second = second()?;
    ensure!(second.log().contains("have replaced those"), "{}", second.log());
    let now = container.stdout().iter().filter(|byte| **byte == b'\n').count();
    container.wait_stdout(&format!("\n{}\n", now + 2000))?;
    container.release();
    container.wait()?;
    let last = String::from_utf8(container.stderr())?.trim().parse()?;
    exactly_once(&wait_lines(&second, &container, last)?)?;
    let ledger = second.ledger(container.id())?;
    ensure!(ledger.dropped.is_empty(), "{ledger:?}");
    wait_until("the end of the older set", DEADLINE, || Ok((sets(&bed.pins())?.len() == 1).then_some(())))?;
    second.stop()
}

#[test]
fn another_size_of_the_ring_takes_effect_under_load() {
    end_to_end(|bed| {
        let first = Agent::start(bed, &pinned(bed))?;
        replaced_under_load(bed, first, || Agent::start(bed, &pinned(bed).with("/capture/ring_size", json!("32MiB"))))
    });
}

#[test]
fn a_build_with_another_layout_takes_over_under_load() {
    end_to_end(|bed| {
        let next = agent::next_binary()?;
        let first = Agent::start(bed, &pinned(bed))?;
        replaced_under_load(bed, first, || Agent::spawn_binary(bed, &pinned(bed), &next)?.wait_ready())
    });
}

#[test]
fn a_build_with_another_layout_is_taken_over_under_load() {
    end_to_end(|bed| {
        let first = Agent::spawn_binary(bed, &pinned(bed), &agent::next_binary()?)?.wait_ready()?;
        replaced_under_load(bed, first, || Agent::start(bed, &pinned(bed)))
    });
}

#[test]
fn status_and_doctor_tell_of_pins() {
    end_to_end(|bed| {
        let config = pinned(bed);
        let agent = Agent::start(bed, &config)?;
        agent.signal(Signal::KILL)?;
        drop(agent);
        let agent = Agent::start(bed, &config)?;
        let mut status = Command::new(agent::binary()?);
        let output = status.args(["status", "--output", "json", "--socket"]).arg(config.socket()).output()?;
        let programs = serde_json::from_slice::<Value>(&output.stdout)?["programs"].take();
        ensure!(programs["pinned"] == json!(bed.pins()) && programs["origin"] == "taken_over", "{programs}");
        let mut doctor = Command::new(agent::binary()?);
        let output = doctor.arg("doctor").arg("--config").arg(bed.path("sidestep.yaml")?).output()?;
        ensure!(text(&output).contains("generation 1"), "{}", text(&output));
        agent.stop()
    });
}
