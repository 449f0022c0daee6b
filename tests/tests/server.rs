//! The node's own log files: class `server`.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use anyhow::Result;
use serde_json::json;
use sidestep_tests::{Agent, DEADLINE, Expected, end_to_end, wait_until};

fn numbered(range: std::ops::Range<u32>) -> String {
    range.map(|number| format!("node {number}\n")).collect()
}

#[test]
fn node_files_are_followed_through_rotation_and_truncation() {
    end_to_end(|bed| {
        let log = bed.path("node/system.txt")?;
        let rotated = bed.path("node/system.txt.1")?;
        let config = bed.config().with("/server/include", json!([log]));
        let agent = Agent::start(bed, &config)?;
        let mut file = File::options().create(true).append(true).open(&log)?;
        let path = log.to_str().expect("a UTF-8 path");
        let mut expected = Expected::new();
        let mut write = |file: &mut File, range: std::ops::Range<u32>| {
            file.write_all(numbered(range.clone()).as_bytes())?;
            expected.add_stream("", path, "server", numbered(range).as_bytes());
            expected.wait_delivered(&agent)
        };
        write(&mut file, 0..500)?;
        fs::rename(&log, &rotated)?;
        write(&mut file, 500..600)?;
        let mut file = File::options().create(true).append(true).open(&log)?;
        write(&mut file, 600..1000)?;
        file.set_len(0)?;
        write(&mut file, 1000..1100)?;
        expected.verify(agent, &[])
    });
}

#[test]
fn node_files_written_while_no_agent_ran_are_completed() {
    end_to_end(|bed| {
        let log = bed.path("node/system.txt")?;
        let config = bed.config().with("/server/include", json!([log]));
        let agent = Agent::start(bed, &config)?;
        let mut file = File::options().create(true).append(true).open(&log)?;
        file.write_all(numbered(0..100).as_bytes())?;
        let path = log.to_str().expect("a UTF-8 path");
        let mut expected = Expected::new().with_repeats();
        expected.add_stream("", path, "server", numbered(0..100).as_bytes());
        expected.wait_delivered(&agent)?;
        agent.kill()?;
        file.write_all(numbered(100..200).as_bytes())?;
        let agent = Agent::start(bed, &config)?;
        expected.add_stream("", path, "server", numbered(100..200).as_bytes());
        expected.wait_delivered(&agent)?;
        // The node's account is the one that no container has.
        wait_until("the node's ledger", DEADLINE, || {
            let ledger = agent.ledger("_node")?;
            Ok((ledger.delivered > 0 && ledger.pending == 0 && ledger.difference() == 0).then_some(()))
        })?;
        agent.stop()
    });
}

/// While no agent runs, a log of the node is renamed and written on, a new one takes its name, and another is made.
fn node_rotation_without_an_agent_is_complete(end: impl Fn(Agent) -> Result<()>, expected: Expected) {
    end_to_end(|bed| {
        let mut expected = expected;
        let log = bed.path("node/system.txt")?;
        let other = bed.path("node/other.txt")?;
        let config = bed.config().with("/server/include", json!([bed.path("node/*.txt")?]));
        let agent = Agent::start(bed, &config)?;
        let append = |path: &Path, range: std::ops::Range<u32>| -> Result<File> {
            let mut file = File::options().create(true).append(true).open(path)?;
            file.write_all(numbered(range).as_bytes())?;
            Ok(file)
        };
        let path = log.to_str().expect("a UTF-8 path");
        let mut file = append(&log, 0..100)?;
        expected.add_stream("", path, "server", numbered(0..100).as_bytes());
        expected.wait_delivered(&agent)?;
        end(agent)?;
        fs::rename(&log, bed.path("node/system.txt.1")?)?;
        file.write_all(numbered(100..200).as_bytes())?;
        append(&log, 200..300)?;
        append(&other, 0..50)?;
        let agent = Agent::start(bed, &config)?;
        expected.add_stream("", path, "server", numbered(100..300).as_bytes());
        expected.add_stream("", other.to_str().expect("a UTF-8 path"), "server", numbered(0..50).as_bytes());
        expected.wait_delivered(&agent)?;
        agent.stop()?;
        let agent = Agent::start(bed, &config)?;
        append(&log, 300..310)?;
        expected.add_stream("", path, "server", numbered(300..310).as_bytes());
        expected.wait_delivered(&agent)?;
        agent.stop()
    });
}

#[test]
fn a_rotation_while_no_agent_ran_is_complete() {
    node_rotation_without_an_agent_is_complete(Agent::stop, Expected::new());
    node_rotation_without_an_agent_is_complete(Agent::kill, Expected::new().with_repeats());
}
