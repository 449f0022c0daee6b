//! Containers that come and go: many of them, and while nobody listens.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, DEADLINE, Expected, agent::binary, cgroup, end_to_end, kernel::Entries, process, wait_until,
};

/// Containers that are started and end.
const CONTAINERS: usize = 10_000;
/// Threads that start them.
const STARTERS: usize = 4;

/// The id of the `number`th container, as a runtime would name its cgroup.
fn id(number: usize) -> String {
    format!("{number:064x}")
}

/// What a runtime does, without the runtime: a cgroup, a pipe, a process whose first program is executed in the cgroup,
/// or in the one called `below` under it; when it has ended, the cgroup goes.
fn live_and_die(root: &Path, number: usize, below: &str) -> Result<()> {
    let own = root.join(id(number));
    let directory = own.join(below);
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let output = Command::new("sh")
        .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec busybox echo container \"$1\""])
        .arg(&directory)
        .arg(number.to_string())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.stdout == format!("container {number}\n").as_bytes(), "container {number} wrote {output:?}");
    wait_until("an empty cgroup", DEADLINE, || Ok(fs::remove_dir(&directory).is_ok().then_some(())))?;
    if !below.is_empty() {
        fs::remove_dir(&own)?;
    }
    Ok(())
}

#[test]
fn ten_thousand_containers_started_and_gone() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let root = cgroup::unified()?.join(bed.cgroup_root().trim_start_matches('/'));
        thread::scope(|scope| -> Result<()> {
            let starters: Vec<_> = (0..STARTERS)
                .map(|first| {
                    let root = &root;
                    scope.spawn(move || {
                        (first..CONTAINERS).step_by(STARTERS).try_for_each(|number| live_and_die(root, number, ""))
                    })
                })
                .collect();
            starters.into_iter().try_for_each(|starter| starter.join().expect("a starter panicked"))
        })?;
        // After all of them a container is served as at the beginning.
        let last = bed.container("last").shell("seq 1000; read hold").start()?;
        last.wait_stdout("1000\n")?;
        let mut expected = Expected::new();
        for number in 0..CONTAINERS {
            expected.add_stream(&id(number), "stdout", "pod", format!("container {number}\n").as_bytes());
        }
        expected.stdout(&last, last.stdout());
        expected.wait_delivered(&agent)?;
        let metrics = agent.metrics()?;
        ensure!(metrics.sum("sidestep_log_dropped_bytes_total") == 0.0);
        // The last one's.
        wait_until("maps without the containers that ended", DEADLINE, || {
            let entries = Entries::of(&agent)?;
            Ok((entries.containers <= 2 && entries.stdio <= 2).then_some(()))
        })
        .with_context(|| format!("{:?}", Entries::of(&agent)))?;
        // 512 that ended linger, so that those that live have series of their own.
        ensure!(metrics.sum("sidestep_log_containers") <= 520.0, "{}", metrics.sum("sidestep_log_containers"));
        let memory = metrics.sum("process_resident_memory_bytes");
        ensure!(memory < 256e6, "the agent has {memory} bytes");
        // The ring is none of it. Two KiB for each container that is gone would be 20 MiB.
        let anonymous = process::memory(agent.pid(), "RssAnon")?;
        ensure!(anonymous < 20 << 20, "the agent holds {anonymous} bytes");
        expected.verify(agent, &[&last])
    });
}

#[test]
fn a_container_that_lives_in_a_cgroup_below_its_own() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let root = cgroup::unified()?.join(bed.cgroup_root().trim_start_matches('/'));
        let mut expected = Expected::new();
        for number in 0..20 {
            live_and_die(&root, number, "container")?;
            expected.add_stream(&id(number), "stdout", "pod", format!("container {number}\n").as_bytes());
        }
        expected.wait_delivered(&agent)?;
        wait_until("maps without the containers that ended", DEADLINE, || {
            Ok((Entries::of(&agent)? == Entries { containers: 0, stdio: 0 }).then_some(()))
        })
        .with_context(|| format!("{:?}", Entries::of(&agent)))?;
        expected.verify(agent, &[])
    });
}

/// How many streams of a container `sidestep status` shows; `None` when it does not know the container.
fn streams(socket: &Path, container_id: &str) -> Result<Option<usize>> {
    let output = Command::new(binary()?).args(["status", "--output", "json", "--socket"]).arg(socket).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let containers = report["containers"].as_array().context("no containers")?;
    let container = containers.iter().find(|container| container["container_id"] == container_id);
    Ok(container.and_then(|container| container["streams"].as_array()).map(Vec::len))
}

#[test]
fn an_end_that_the_ring_did_not_take_is_found() {
    end_to_end(|bed| {
        let config =
            bed.config().with("/capture/ring_size", json!("64KiB")).with("/capture/container_share", json!("100%"));
        let agent = Agent::start(bed, &config)?;
        let script =
            "echo first; read go; seq 100000; for n in $(seq 500); do echo; done; echo flooded >&2; exec sleep 1000";
        let mut container = bed.container("app").shell(script).start()?;
        container.wait_stdout("first\n")?;
        wait_until("the streams", DEADLINE, || {
            Ok((streams(config.socket(), container.id())?.is_some_and(|streams| streams > 0)).then_some(()))
        })?;
        // Nobody drains the ring while one container floods it, others take what room is left with their births and
        // ends, and then the first one ends and is removed.
        agent.signal(Signal::STOP)?;
        container.release();
        container.wait_stderr("flooded\n")?;
        for number in 0..8 {
            bed.container(&format!("short-{number}")).shell("true").start()?.wait()?;
        }
        let id = container.id().to_owned();
        let written = (container.stdout().len() + container.stderr().len()) as u64;
        drop(container);
        agent.signal(Signal::CONT)?;
        wait_until("the end of the stream", DEADLINE, || {
            Ok((streams(config.socket(), &id)?.unwrap_or(0) == 0).then_some(()))
        })?;
        let ledger = agent.wait_ledger(&id, written)?;
        ensure!(ledger.dropped_total() > 0, "nothing was lost, so nothing was tested: {ledger:?}");
        ensure!(agent.metrics()?.sum("sidestep_ring_lost_events_total") > 0.0, "every event was taken");
        agent.stop()
    });
}
