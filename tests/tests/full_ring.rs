//! Files that nobody could announce, because the ring was full: the agent finds them all the same, and what it can't find
//! it counts.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use sidestep_tests::{Agent, Config, Container, DEADLINE, Testbed, end_to_end, python, wait_until};

/// Says `first`, and when it is told to go on fills its share of the ring with lines, so that the kernel has no room for
/// what the rest of the program does to files.
const FILLS: &str = "
os.write(1, b'first\\n')
sys.stdin.readline()
for n in range(40000): os.write(1, b'%06d of a stream that fills the ring\\n' % n)
";

/// A small ring, so that little has to be written.
fn config(bed: &Testbed) -> Config {
    bed.config().with("/capture/ring_size", json!("256KiB"))
}

/// A container that fills the ring and then does `then` to files.
fn start(bed: &Testbed, then: &str) -> Result<Container> {
    python::start(bed, &format!("{FILLS}{then}"))
}

fn first_line(agent: &Agent, container: &Container) -> Result<()> {
    agent.wait_ledger(container.id(), b"first\n".len() as u64).map(drop)
}

fn fill(container: &mut Container) -> Result<()> {
    container.stdin().write_all(b"go\n")?;
    python::wait_done(container)
}

/// Waits until each of these lines of a file has come, once.
fn wait_lines(agent: &Agent, container: &Container, path: &str, lines: &[&str]) -> Result<()> {
    let mut found = Vec::new();
    wait_until(&format!("the lines of {path}"), DEADLINE, || {
        let records = agent.records()?.into_iter();
        let of_file = records.filter(|record| record.resource("container.id") == container.id());
        found =
            of_file.filter(|record| record.source() == path).map(|record| record.text("/body").to_owned()).collect();
        Ok((found.len() >= lines.len()).then_some(()))
    })
    .with_context(|| format!("there are {found:?}; {}", agent.log()))?;
    ensure!(found == lines, "{found:?} are not {lines:?}");
    Ok(())
}

/// Nothing but what the ring could not hold of the standard streams is lost, and the books balance.
fn balances(agent: &Agent, container: &Container) -> Result<()> {
    wait_until("a ledger that balances", DEADLINE, || {
        let ledger = agent.ledger(container.id())?;
        Ok((ledger.pending == 0 && ledger.difference() == 0).then_some(()))
    })
    .with_context(|| format!("{:?}", agent.ledger(container.id())))?;
    let ledger = agent.ledger(container.id())?;
    let of_ring = ledger.dropped_for("capture", "quota") + ledger.dropped_for("capture", "ring_full");
    ensure!(of_ring > 0, "the ring was never full: {ledger:?}");
    ensure!(ledger.dropped_total() == of_ring, "a loss of another kind: {ledger:?}");
    let unjudged = agent.metrics()?.sum("sidestep_repair_unjudged_bytes_total");
    ensure!(unjudged == 0.0, "{unjudged} bytes of files that nobody knows");
    Ok(())
}

/// A file in a directory of which nothing was ever heard, written once.
const ONCE: &str = "
os.makedirs('/srv/never/heard/of')
with open('/srv/never/heard/of/once.log', 'w') as file: file.write('one\\ntwo\\nthree\\n')
";

#[test]
fn a_file_that_is_written_once_while_the_agent_stands_still() {
    end_to_end(|bed| {
        let agent = Agent::start(bed, &config(bed))?;
        let mut container = start(bed, ONCE)?;
        first_line(&agent, &container)?;
        agent.pause()?;
        fill(&mut container)?;
        agent.signal(Signal::CONT)?;
        wait_lines(&agent, &container, "/srv/never/heard/of/once.log", &["one", "two", "three"])?;
        balances(&agent, &container)?;
        agent.stop()
    });
}

#[test]
fn a_file_that_is_written_once_while_no_agent_runs() {
    end_to_end(|bed| {
        let config = config(bed).with("/capture/pin", json!(bed.pins())).with("/capture/runtime_logs", json!(false));
        let agent = Agent::start(bed, &config)?;
        let mut container = start(bed, ONCE)?;
        first_line(&agent, &container)?;
        agent.kill()?;
        fill(&mut container)?;
        let agent = Agent::start(bed, &config)?;
        wait_lines(&agent, &container, "/srv/never/heard/of/once.log", &["one", "two", "three"])?;
        balances(&agent, &container)?;
        agent.stop()
    });
}

#[test]
fn a_deleted_file_that_is_still_open() {
    let then = "
held = os.open('/srv/gone.log', os.O_CREAT | os.O_WRONLY)
os.write(held, b'one\\n'); os.unlink('/srv/gone.log')
";
    end_to_end(|bed| {
        let agent = Agent::start(bed, &config(bed))?;
        let mut container = start(bed, &format!("os.makedirs('/srv', exist_ok=True)\n{then}"))?;
        first_line(&agent, &container)?;
        agent.pause()?;
        fill(&mut container)?;
        agent.signal(Signal::CONT)?;
        wait_lines(&agent, &container, "/srv/gone.log", &["one"])?;
        balances(&agent, &container)?;
        agent.stop()
    });
}

#[test]
fn a_directory_that_another_container_only_reads() {
    end_to_end(|bed| {
        let shared = bed.path("shared")?;
        std::fs::create_dir(&shared)?;
        let agent = Agent::start(bed, &config(bed))?;
        // It sees every log of the volume, and has written none of them.
        let program = "os.write(1, b'there\\n')\nsys.stdin.readline()\n";
        let mut reader = bed
            .container("reader")
            .bind_read_only(&shared, "/srv/logs")
            .python(&format!("import os, sys\n{program}"))
            .start()?;
        reader.wait_stdout("there\n")?;
        let program = format!(
            "import os, sys\n{FILLS}open('/srv/logs/own.log', 'w').write('one\\n')\nos.write(2, b'done\\n')\nsys.stdin.read()\n"
        );
        let mut writer = bed.container("writer").bind(&shared, "/srv/logs").python(&program).start()?;
        first_line(&agent, &writer)?;
        agent.pause()?;
        fill(&mut writer)?;
        agent.signal(Signal::CONT)?;
        wait_lines(&agent, &writer, "/srv/logs/own.log", &["one"])?;
        balances(&agent, &writer)?;
        reader.release();
        agent.stop()
    });
}

#[test]
fn what_is_gone_is_counted() {
    let then = "
open('/srv.log', 'w').write('x' * 1000)
os.unlink('/srv.log')
";
    end_to_end(|bed| {
        let agent = Agent::start(bed, &config(bed))?;
        let mut container = start(bed, then)?;
        first_line(&agent, &container)?;
        agent.pause()?;
        fill(&mut container)?;
        agent.signal(Signal::CONT)?;
        let unjudged = || -> Result<f64> { Ok(agent.metrics()?.sum("sidestep_repair_unjudged_bytes_total")) };
        wait_until("the count of bytes that are gone", DEADLINE, || Ok((unjudged()? == 1000.0).then_some(())))
            .with_context(|| format!("{:?}", unjudged()))?;
        agent.stop()
    });
}
