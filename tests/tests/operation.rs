//! Life of the agent under load: reload, drain, kill, and starting again.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use sidestep_tests::{
    Agent, Config, Container, DEADLINE, Expected, Testbed, agent::binary, end_to_end, python, wait_until,
};

/// A writer that puts numbered lines into a file and on stdout until the test makes `/data/stop`.
fn steady_writer(bed: &Testbed) -> Result<Container> {
    python::start(
        bed,
        "
import time
fd = os.open('/var/log/load.log', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
n = 0
while not os.path.exists('/data/stop'):
    for _ in range(20):
        line = b'load %d\\n' % n
        os.write(fd, line); os.write(1, line)
        n += 1
    time.sleep(0.002)
",
    )
}

fn stop_writer(container: &Container) -> Result<()> {
    fs::write(container.rootfs().join("data/stop"), "")?;
    python::wait_done(container)
}

fn load_log(container: &Container) -> Result<Vec<u8>> {
    fs::read(container.rootfs().join("var/log/load.log")).context("reading what the writer wrote")
}

/// Waits until the writer's file has grown by `bytes`.
fn wait_growth(container: &Container, bytes: usize) -> Result<()> {
    let target = load_log(container).map(|text| text.len()).unwrap_or_default() + bytes;
    wait_until("the writer's progress", DEADLINE, || {
        Ok(load_log(container).is_ok_and(|text| text.len() >= target).then_some(()))
    })
}

#[test]
fn a_killed_agent_completes_the_files_when_it_is_back() {
    end_to_end(|bed| {
        let config = bed.config();
        let container = {
            let agent = Agent::start(bed, &config)?;
            let container = steady_writer(bed)?;
            wait_growth(&container, 50_000)?;
            agent.kill()?;
            container
        };
        // Lines that no agent sees.
        wait_growth(&container, 50_000)?;
        for _ in 0..2 {
            let agent = Agent::start(bed, &config)?;
            wait_growth(&container, 50_000)?;
            agent.kill()?;
        }
        let agent = Agent::start(bed, &config)?;
        wait_growth(&container, 20_000)?;
        stop_writer(&container)?;

        let expected = load_log(&container)?;
        let mut file = Expected::new().with_repeats();
        file.file(&container, "/var/log/load.log", expected);
        let mut difference = String::new();
        wait_until("all of the file", DEADLINE, || {
            // Lines on stdout while no agent ran are lost; the records of the file must be exact.
            let mut records = agent.records()?;
            records.retain(|record| record.source() == "/var/log/load.log");
            let result = file.compare(&records);
            difference = result.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
            Ok(result.is_ok().then_some(()))
        })
        .with_context(|| format!("{difference}\n{}", agent.log()))?;
        agent.stop()
    });
}

#[test]
fn an_agent_that_was_stopped_goes_on_without_a_repeat() {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        let container = steady_writer(bed)?;
        wait_growth(&container, 50_000)?;
        agent.stop()?;
        wait_growth(&container, 50_000)?;
        let agent = Agent::start(bed, &config)?;
        wait_growth(&container, 20_000)?;
        stop_writer(&container)?;
        let mut file = Expected::new();
        file.file(&container, "/var/log/load.log", load_log(&container)?);
        wait_until("all of the file, once", DEADLINE, || {
            let mut records = agent.records()?;
            records.retain(|record| record.source() == "/var/log/load.log");
            Ok(file.compare(&records).is_ok().then_some(()))
        })?;
        agent.stop()
    });
}

/// How an agent is gone for a while.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Absence {
    /// It was stopped: everything is delivered exactly once.
    Stopped,
    /// It was killed: everything is delivered at least once.
    Killed,
}

/// While no agent runs, a container renames its log, writes on, begins a new one, and makes another that it closes at
/// once. With `goes_on` it writes the new one again when the next agent runs; else nobody announces what is new.
fn rotation_without_an_agent_is_complete(absence: Absence, goes_on: bool) {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        let container = python::start(
            bed,
            "
import time
def until(name):
    while not os.path.exists('/data/' + name): time.sleep(0.002)
def begin(path): return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
def lines(fd, name, count):
    for n in range(count): os.write(fd, b'%s %d\\n' % (name, n))
log = begin('/var/log/app.log')
lines(log, b'before', 500)
os.write(1, b'before\\n')
until('rotate')
os.rename('/var/log/app.log', '/var/log/app.log.1')
lines(log, b'renamed', 200)
os.close(log)
log = begin('/var/log/app.log')
lines(log, b'new', 300)
other = begin('/var/log/other.log')
lines(other, b'other', 100)
os.close(other)
os.write(1, b'rotated\\n')
until('go')
if os.path.exists('/data/goes-on'): lines(log, b'later', 50)
",
        )?;
        container.wait_stdout("before\n")?;
        let text = |name: &str, count: u32| (0..count).map(|n| format!("{name} {n}\n")).collect::<String>();
        let mut expected = match absence {
            Absence::Stopped => Expected::new(),
            Absence::Killed => Expected::new().with_repeats(),
        };
        expected.file(&container, "/var/log/app.log", text("before", 500));
        let files = |expected: &Expected, agent: &Agent| {
            let mut difference = String::new();
            wait_until("all of the files", DEADLINE, || {
                // What went to stdout while no agent ran is lost.
                let mut records = agent.records()?;
                records.retain(|record| record.class() == "business");
                let result = expected.compare(&records);
                difference = result.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
                Ok(result.is_ok().then_some(()))
            })
            .with_context(|| format!("{difference}\n{}", agent.log()))
        };
        files(&expected, &agent)?;
        match absence {
            Absence::Stopped => agent.stop()?,
            Absence::Killed => agent.kill()?,
        }
        fs::write(container.rootfs().join("data/rotate"), "")?;
        container.wait_stdout("rotated\n")?;
        let agent = Agent::start(bed, &config)?;
        expected.file(&container, "/var/log/app.log", text("renamed", 200) + &text("new", 300));
        expected.file(&container, "/var/log/other.log", text("other", 100));
        if goes_on {
            fs::write(container.rootfs().join("data/goes-on"), "")?;
            fs::write(container.rootfs().join("data/go"), "")?;
            expected.file(&container, "/var/log/app.log", text("later", 50));
        }
        files(&expected, &agent)?;
        // Nothing comes twice later, from this agent or the next.
        agent.stop()?;
        let agent = Agent::start(bed, &config)?;
        fs::write(container.rootfs().join("data/go"), "")?;
        python::wait_done(&container)?;
        files(&expected, &agent)?;
        agent.stop()
    });
}

#[test]
fn a_rotation_while_the_agent_was_stopped_is_complete_when_the_writer_goes_on() {
    rotation_without_an_agent_is_complete(Absence::Stopped, true);
}

#[test]
fn a_rotation_while_the_agent_was_stopped_is_complete_when_nothing_more_is_written() {
    rotation_without_an_agent_is_complete(Absence::Stopped, false);
}

#[test]
fn a_rotation_after_the_agent_was_killed_is_complete() {
    rotation_without_an_agent_is_complete(Absence::Killed, true);
    rotation_without_an_agent_is_complete(Absence::Killed, false);
}

#[test]
fn sigterm_drains_what_was_written_before() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let script = "seq 50000; seq 50000 > /var/log/app.log; echo done >&2; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stderr("done\n")?;
        let lines: String = (1..=50_000).map(|number| format!("{number}\n")).collect();
        let mut expected = Expected::new();
        expected.stdout(&container, &lines).file(&container, "/var/log/app.log", &lines).stderr(&container, "done\n");
        let directory = agent.records_directory().to_owned();
        agent.stop()?;
        expected.compare(&sidestep_tests::records::read(&directory)?)
    });
}

#[test]
fn sighup_reloads_without_losing_a_line() {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        let container = steady_writer(bed)?;
        for round in 1..=5 {
            wait_growth(&container, 20_000)?;
            let changed = config.clone().with("/lines/idle_flush", json!(format!("{round}s")));
            fs::write(agent.config_file(), changed.text())?;
            agent.reload()?;
        }
        // A configuration that doesn't hold is refused, and the old one stays.
        fs::write(agent.config_file(), "capture: { no_such_option: 1 }\n")?;
        agent.reload()?;
        wait_until("the refusal", DEADLINE, || Ok(agent.log().contains("no_such_option").then_some(())))?;
        wait_growth(&container, 20_000)?;
        stop_writer(&container)?;
        let text = load_log(&container)?;
        wait_until("the runtime's end", DEADLINE, || Ok((container.stdout() == text).then_some(())))?;
        let mut expected = Expected::new();
        expected.stdout(&container, &text).file(&container, "/var/log/load.log", &text).stderr(&container, "done\n");
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_sink_that_moves_under_load_loses_no_line() {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        let container = steady_writer(bed)?;
        let mut folders = vec![agent.records_directory().to_owned()];
        for round in 1..=4 {
            wait_growth(&container, 20_000)?;
            // Twice another folder, twice other settings for the same one.
            let folder = bed.directory().join(format!("logs-{}", round / 2));
            let changed = config.clone().with_records(&folder).with("/sinks/0/max_open_files", json!(10 + round));
            fs::write(agent.config_file(), changed.text())?;
            agent.reload()?;
            wait_until("the reload", DEADLINE, || {
                Ok((agent.log().matches("reload done").count() == round).then_some(()))
            })?;
            folders.push(folder);
        }
        folders.dedup();
        wait_growth(&container, 20_000)?;
        stop_writer(&container)?;
        let text = load_log(&container)?;
        wait_until("the runtime's end", DEADLINE, || Ok((container.stdout() == text).then_some(())))?;
        let mut expected = Expected::new();
        expected.stdout(&container, &text).file(&container, "/var/log/load.log", &text).stderr(&container, "done\n");
        let ledger = agent.wait_ledger(container.id(), expected.total(container.id()))?;
        ensure!(ledger.dropped.is_empty(), "{ledger:?}");
        agent.stop()?;
        let mut records = Vec::new();
        for folder in &folders {
            let found = sidestep_tests::records::read(folder)?;
            ensure!(!found.is_empty(), "nothing came to {}", folder.display());
            records.extend(found);
        }
        expected.compare(&records)
    });
}

#[test]
fn new_path_rules_hold_after_a_reload() {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        let script =
            "echo before > /data/a.txt; echo one; read go; echo after > /data/b.txt; echo two; exec sleep 1000";
        let mut container = bed.container("app").shell(script).start()?;
        container.wait_stdout("one\n")?;
        let changed = config.clone().with("/capture/files/include", json!(["/var/log/**", "**/*.txt"]));
        fs::write(agent.config_file(), changed.text())?;
        agent.reload()?;
        wait_until("the reload", DEADLINE, || Ok(agent.log().contains("reload").then_some(())))?;
        container.release();
        container.wait_stdout("two\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, "one\ntwo\n").file(&container, "/data/b.txt", "after\n");
        expected.wait_delivered(&agent)?;
        agent.stop()
    });
}

#[test]
fn a_file_that_is_no_log_any_more_ends_with_what_it_holds() {
    end_to_end(|bed| {
        // Nothing but the end of the file brings its unfinished line.
        let config = bed.config().with("/lines/idle_flush", json!("1h"));
        let agent = Agent::start(bed, &config)?;
        let script = "exec 3> /var/log/app.log; printf 'one\\nunfinished' >&3; echo one; \
                      read go; echo after >&3; echo two; exec sleep 1000";
        let mut container = bed.container("app").shell(script).start()?;
        container.wait_stdout("one\n")?;
        let mut expected = Expected::new();
        expected.file(&container, "/var/log/app.log", "one\n").stdout(&container, "one\n");
        expected.wait_delivered(&agent)?;
        let changed = config.clone().with("/capture/files/include", json!(["/var/log/other.log"]));
        fs::write(agent.config_file(), changed.text())?;
        agent.reload()?;
        let mut expected = Expected::new();
        expected.file(&container, "/var/log/app.log", "one\nunfinished").stdout(&container, "one\n");
        expected.wait_delivered(&agent)?;
        container.release();
        container.wait_stdout("two\n")?;
        let mut expected = Expected::new();
        expected.file(&container, "/var/log/app.log", "one\nunfinished").stdout(&container, "one\ntwo\n");
        expected.wait_delivered(&agent)?;
        agent.stop()
    });
}

#[test]
fn a_second_agent_leaves_the_first_alone() {
    end_to_end(|bed| {
        let first = bed.agent()?;
        let other = Testbed::new()?;
        let second = other.agent()?;
        let here = bed.container("here").shell("seq 1000; read hold").start()?;
        let there = other.container("there").shell("seq 2000; read hold").start()?;
        here.wait_stdout("1000\n")?;
        there.wait_stdout("2000\n")?;
        let mut expected = Expected::new();
        expected.stdout(&there, there.stdout());
        expected.verify(second, &[&there])?;
        let mut expected = Expected::new();
        expected.stdout(&here, here.stdout());
        expected.verify(first, &[&here])
    });
}

/// Standard error of an agent that does not start.
fn refused(bed: &Testbed, config: &Config) -> Result<String> {
    let file = bed.path("second.yaml")?;
    fs::write(&file, config.text())?;
    let output = Command::new(binary()?).arg("run").arg("--config").arg(&file).output()?;
    ensure!(!output.status.success(), "it starts");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_second_agent_on_one_configuration_ends_before_it_attaches() {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        // The same in all, then in the sink's directory alone, then in the address alone.
        let other_socket = config.clone().with("/socket", json!(bed.path("other.sock")?));
        let other_sink = other_socket.clone().with_records(&bed.path("other-logs")?);
        for (config, part) in [
            (&config, config.socket().display().to_string()),
            (&other_socket, config.records().display().to_string()),
            (&other_sink, config.telemetry().to_string()),
        ] {
            let stderr = refused(bed, config)?;
            let reason = stderr.lines().last().unwrap_or_default();
            ensure!(reason.contains("another agent is running") || reason.contains("is another agent"), "{stderr}");
            ensure!(reason.contains(&part), "{part} is not in {stderr}");
            ensure!(!stderr.contains("tried again") && !stderr.contains("probes:"), "it has attached: {stderr}");
        }
        ensure!(!bed.path("other.sock")?.exists(), "a socket stays behind");
        let container = bed.container("app").shell("seq 1000; read hold").start()?;
        container.wait_stdout("1000\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        expected.verify(agent, &[&container])
    });
}

#[test]
fn an_agent_says_what_it_governs() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        wait_until("the start", DEADLINE, || Ok(agent.log().contains("ready").then_some(())))?;
        let log = agent.log();
        for part in ["sidestep starts", "kernel=", &format!("governed cgroups: {}", bed.cgroup_root()), " probes: "] {
            ensure!(log.contains(part), "{part} is not in {log}");
        }
        agent.stop()?;

        let absent = format!("{}/not-yet", bed.cgroup_root());
        let config = bed.config().with("/capture/cgroup_roots", json!([absent]));
        let agent = Agent::start(bed, &config)?;
        let warning =
            format!("no governed cgroup is there, so nothing is captured until one of them is made: {absent}");
        wait_until("the start", DEADLINE, || Ok(agent.log().contains("ready").then_some(())))?;
        ensure!(agent.log().lines().any(|line| line.contains("WARN") && line.contains(&warning)), "{}", agent.log());
        let status = || -> Result<String> {
            let output = Command::new(binary()?).args(["status", "--socket"]).arg(config.socket()).output()?;
            Ok(String::from_utf8(output.stdout)?)
        };
        ensure!(status()?.contains("roots    none is there, so nothing is captured"), "{}", status()?);
        fs::create_dir(sidestep_tests::cgroup::unified()?.join(absent.trim_start_matches('/')))?;
        let come = format!("governed cgroups have come or gone; there now: {absent}");
        wait_until("the root in the log", DEADLINE, || Ok(agent.log().contains(&come).then_some(())))?;
        ensure!(status()?.contains(&format!("roots    {absent}\n")), "{}", status()?);
        agent.stop()
    });
}

#[test]
fn an_agent_below_its_own_root_does_not_see_itself() {
    end_to_end(|bed| {
        // Every file is a log: what the agent writes to its stderr, its records and its positions would be ones too, if
        // it saw itself. Its cgroup is governed.
        let config = bed.config().with("/log/level", json!("debug")).with("/capture/files/include", json!(["/**"]));
        let agent = Agent::spawn(bed, &config)?;
        let governed = sidestep_tests::cgroup::unified()?.join(bed.cgroup_root().trim_start_matches('/'));
        let enter = |group: &str, pid: &dyn std::fmt::Display| -> Result<()> {
            fs::create_dir_all(governed.join(group))?;
            fs::write(governed.join(group).join("cgroup.procs"), pid.to_string()).context("entering a cgroup")
        };
        enter("agent", &agent.pid().as_raw_nonzero())?;
        let agent = agent.wait_ready()?;
        let container = bed.container("app").shell("seq 1000; read hold").start()?;
        container.wait_stdout("1000\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        // It has written records and positions by now, and it writes to its stderr.
        expected.wait_delivered(&agent)?;
        fs::write(agent.config_file(), config.clone().with("/lines/idle_flush", json!("2s")).text())?;
        agent.reload()?;
        wait_until("the reload", DEADLINE, || Ok(agent.log().contains("reload done").then_some(())))?;
        // Another process of the node that is governed, and that no runtime knows either: it writes after the agent has
        // written, and its identity is waited for as long. So once its line is here, the agent's would be too.
        let file = bed.path("beside.txt")?;
        let path = file.to_str().context("a UTF-8 path")?;
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("read go; echo beside > {path}; read hold")]).stdin(Stdio::piped());
        let mut beside = shell.spawn().context("starting a shell")?;
        enter("beside", &beside.id())?;
        beside.stdin.as_mut().context("its stdin")?.write_all(b"go\n")?;
        expected.add_stream("", path, "business", b"beside\n");
        expected.wait_delivered(&agent)?;
        drop(beside.stdin.take());
        beside.wait()?;
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_signal_during_the_start_ends_it_cleanly() {
    end_to_end(|bed| {
        let agent = Agent::spawn(bed, &bed.config())?;
        wait_until("the first sign of life", DEADLINE, || Ok((!agent.log().is_empty()).then_some(())))?;
        agent.signal(Signal::TERM)?;
        agent.stop_or_killed_by_term()
    });
}

#[test]
fn version_health_and_metrics_answer() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        ensure!(agent.get("/healthz")?.status == 200);
        ensure!(agent.get("/version")?.body.contains(env!("CARGO_PKG_VERSION")));
        ensure!(agent.get("/no-such-page")?.status == 404);
        let metrics = agent.metrics()?;
        ensure!(metrics.sum("sidestep_ring_capacity_bytes") >= f64::from(16 << 20));
        ensure!(metrics.samples.iter().any(|sample| sample.name == "sidestep_probe_health"));
        agent.stop()
    });
}
