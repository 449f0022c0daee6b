//! Resident memory of the agent with many containers that write.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use sidestep_tests::{Container, Testbed};

use crate::{
    process::memory_bytes,
    report::{Figure, Target},
    session::Session,
};

/// In MiB.
const TARGET: f64 = 60.0;

const MIB: f64 = (1 << 20) as f64;

/// One line a second to stdout and to a log file.
const SCRIPT: &str = "n=0; while true; do n=$((n+1)); echo request $n answered; \
    echo request $n answered >> /var/log/app.log; sleep 1; done";

/// runc waits more than it works.
const STARTERS: usize = 4;

pub(crate) fn run(session: &mut Session) -> Result<()> {
    let count = session.choose(100, 20);
    session.step(&format!("memory: {count} containers with two lines a second each"));
    let bed = Testbed::new()?;
    let agent = session.agent(&bed, &bed.config())?;
    let alone = memory_bytes(agent.pid(), "VmRSS")?;
    let containers = start(&bed, count)?;
    let end = Instant::now() + session.choose(Duration::from_secs(20), Duration::from_secs(4));
    while Instant::now() < end {
        session.check()?;
        thread::sleep(Duration::from_millis(100));
    }
    let metrics = agent.metrics()?;
    let silent = containers.iter().filter(|container| metrics.ledger(container.id()).delivered == 0).count();
    if silent > 0 {
        session.report.note(format!("memory: nothing was delivered of {silent} of {count} containers"));
    }
    let figure = |name: &str, what: &str, bytes: u64| {
        Figure::of(name, what, "MiB", vec![bytes as f64 / MIB]).context("a figure of memory")
    };
    let resident = figure(
        "resident_memory",
        &format!("resident memory with {count} containers"),
        memory_bytes(agent.pid(), "VmRSS")?,
    )?;
    session.report.add(resident.target(Target::AtMost(TARGET)));
    for (name, key, what) in [
        ("resident_memory_anonymous", "RssAnon", "  of this anonymous"),
        ("resident_memory_file", "RssFile", "  of this files (program, libraries)"),
        ("resident_memory_shared", "RssShmem", "  of this shared"),
        ("resident_memory_peak", "VmHWM", "  highest so far"),
    ] {
        let part = figure(name, what, memory_bytes(agent.pid(), key)?)?;
        session.report.add(part);
    }
    let alone = figure("resident_memory_alone", "  before the first container", alone)?;
    session.report.add(alone);
    agent.stop()?;
    remove(containers);
    Ok(())
}

fn start(bed: &Testbed, count: usize) -> Result<Vec<Container>> {
    let start = |number| bed.container(&format!("app-{number}")).shell(SCRIPT).start();
    // The first one makes the image that all share.
    let mut containers = vec![start(0)?];
    thread::scope(|scope| {
        let starters: Vec<_> = (0..STARTERS)
            .map(|starter| {
                scope.spawn(move || {
                    let mine = (1 + starter..count).step_by(STARTERS);
                    mine.map(start).collect()
                })
            })
            .collect();
        for starter in starters {
            let started: Result<Vec<_>> = starter.join().map_err(|_| anyhow!("a starting thread panicked"))?;
            containers.extend(started?);
        }
        Ok(containers)
    })
}

/// Dropping a container waits for runc.
fn remove(mut containers: Vec<Container>) {
    thread::scope(|scope| {
        while !containers.is_empty() {
            let some = containers.split_off(containers.len().saturating_sub(containers.len().div_ceil(STARTERS)));
            scope.spawn(move || drop(some));
        }
    });
}
