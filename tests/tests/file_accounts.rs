//! Every byte that is written to a log is in the ledger, also when nobody could read it any more.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::{mount::MountFlags, process::Signal};
use serde_json::json;
use sidestep_tests::{Agent, Container, DEADLINE, Ledger, end_to_end, mounts, python, wait_until};

/// What the writer has written, by its own count on stdout, both streams included.
fn written(container: &Container) -> Result<u64> {
    let count: u64 = String::from_utf8(container.stdout())?.trim().parse().context("the writer's count")?;
    Ok(count + (container.stdout().len() + container.stderr().len()) as u64)
}

/// Waits until the account of a container whose processes have ended is complete.
fn complete(agent: &Agent, container: &mut Container) -> Result<Ledger> {
    let written = written(container)?;
    container.release();
    container.wait_for(DEADLINE)?;
    let mut last = Ledger::default();
    wait_until("a complete account", DEADLINE, || {
        last = agent.ledger(container.id())?;
        Ok((last.produced >= written && last.pending == 0).then_some(()))
    })
    .with_context(|| format!("{written} bytes were written, and the ledger stands at {last:?}"))?;
    ensure!(last.difference() == 0, "it does not balance: {last:?}");
    ensure!(last.produced == written, "{written} bytes were written, and the ledger says {last:?}");
    let of_files = last.dropped_for("repair", "unavailable");
    ensure!(last.dropped_total() == of_files, "a loss of another kind: {last:?}");
    Ok(last)
}

#[test]
fn large_files_that_live_for_a_moment() {
    let program = "
total = 0
for size in (300, 600, 1200):
    block = b'%0999d\\n' % size
    for turn in range(8):
        path = '/var/log/%d-%d.log' % (size, turn)
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        for n in range(size): total += os.write(fd, block)
        os.close(fd); os.unlink(path)
os.write(1, b'%d\\n' % total)
";
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let mut container = python::run(bed, program)?;
        complete(&agent, &mut container)?;
        agent.stop()
    });
}

/// Rotates `/var/log/app.log` many times by 1 MB, when the test says so, and keeps nothing but the last files.
const ROTATES: &str = "
import time
def opened(): return os.open('/var/log/app.log', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
fd = opened()
total = os.write(fd, b'first\\n')
sys.stdin.readline()
for turn in range(25):
    os.close(fd); fd = opened()
    for n in range(1000): total += os.write(fd, b'%03d-%0995d\\n' % (turn, n))
    os.rename('/var/log/app.log', '/var/log/app.log.1')
";

#[test]
fn rotated_away_while_the_agent_stands_still() {
    let program = format!("{ROTATES}    os.unlink('/var/log/app.log.1')\nos.write(1, b'%d\\n' % total)\n");
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let mut container = python::start(bed, &program)?;
        agent.wait_ledger(container.id(), b"first\n".len() as u64)?;
        agent.pause()?;
        std::io::Write::write_all(container.stdin(), b"go\n")?;
        python::wait_done(&container)?;
        agent.signal(Signal::CONT)?;
        let ledger = complete(&agent, &mut container)?;
        ensure!(ledger.dropped_total() > 0, "nothing was lost, so nothing was tested: {ledger:?}");
        agent.stop()
    });
}

#[test]
fn rotated_away_while_a_sink_takes_nothing() {
    let program = format!("{ROTATES}    time.sleep(0.05)\nos.write(1, b'%d\\n' % total)\n");
    end_to_end(|bed| {
        let disk = bed.path("disk")?;
        mounts::tmpfs(&disk, "2m")?;
        let queue = json!({ "max_bytes": "1MiB", "max_batches": 64, "when_full": "block" });
        let config = bed.config().with_records(&disk.join("logs")).with("/sinks/0/queue", queue);
        let agent = Agent::start(bed, &config)?;
        let mut container = python::start(bed, &program)?;
        agent.wait_ledger(container.id(), b"first\n".len() as u64)?;
        ensure!(fs::write(disk.join("filler"), vec![0; 8 << 20]).is_err(), "the disk isn't full");
        std::io::Write::write_all(container.stdin(), b"go\n")?;
        python::wait_done(&container)?;
        fs::remove_file(disk.join("filler"))?;
        mounts::remount(&disk, "size=512m", MountFlags::empty())?;
        let ledger = complete(&agent, &mut container)?;
        ensure!(ledger.dropped_total() > 0, "nothing was lost, so nothing was tested: {ledger:?}");
        agent.stop()
    });
}
