//! Bad input and bad surroundings: the agent stays up, a loss is counted, and nothing else is lost.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, Container, DEADLINE, Expected, Testbed, agent, certificates::Authority, cgroup, end_to_end, mounts,
    receiver::Receiver, status::wait_error, wait_until,
};

/// A container that writes `seq 1 <count>` at its start and `seq <count + 1> <2 * count>` when it is released.
fn two_halves(bed: &Testbed, count: u32) -> Result<Container> {
    let script = format!("seq {count}; read go; seq {} {}; echo done >&2; exec sleep 1000", count + 1, 2 * count);
    bed.container("app").shell(&script).start()
}

fn lines(range: std::ops::RangeInclusive<u32>) -> String {
    range.map(|number| format!("{number}\n")).collect()
}

/// Starts the agent in a mount namespace of its own where `shell`, the last command of which takes a command to execute,
/// has taken something away, and returns what it and its doctor say. Neither may live.
fn refused(bed: &Testbed, shell: &str) -> Result<(String, String)> {
    let config = bed.config();
    let file = bed.path("sidestep.yaml")?;
    fs::write(&file, config.text())?;
    let mut texts = ["run", "doctor"].into_iter().map(|command| {
        let script = format!("{shell} \"$0\" {command} --config \"$1\"");
        let mut process = Command::new("unshare");
        process.args(["--mount", "sh", "-ec", &script]).arg(agent::binary()?).arg(&file);
        let output = process.output()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.code() == Some(1), "{command} ended with {}: {text}", output.status);
        Ok(text)
    });
    Ok((texts.next().context("run")??, texts.next().context("doctor")??))
}

#[test]
fn without_capabilities_it_says_which_and_how_to_give_them() {
    end_to_end(|bed| {
        // Root with a bounding set has what is in the set.
        let (run, doctor) = refused(bed, "exec setpriv --bounding-set=-bpf,-sys_admin,-perfmon")?;
        ensure!(run.contains("CAP_BPF") && run.contains("CAP_PERFMON"), "{run}");
        ensure!(doctor.contains("CAP_BPF") && doctor.contains("securityContext.capabilities.add"), "{doctor}");
        Ok(())
    });
}

#[test]
fn without_btf_it_says_which_kernel_has_it() {
    end_to_end(|bed| {
        let (run, doctor) = refused(bed, "mount -t tmpfs none /sys/kernel/btf; exec")?;
        ensure!(run.contains("CONFIG_DEBUG_INFO_BTF=y"), "{run}");
        ensure!(doctor.contains("CONFIG_DEBUG_INFO_BTF=y") && doctor.contains("FAILED"), "{doctor}");
        Ok(())
    });
}

#[test]
fn with_cgroup_v1_alone_it_says_how_to_mount_v2() {
    end_to_end(|bed| {
        let mount = cgroup::unified()?;
        let (run, doctor) = refused(bed, &format!("umount -l {}; exec", mount.display()))?;
        ensure!(run.contains("mount -t cgroup2"), "{run}");
        ensure!(doctor.contains("cgroup_v2") && doctor.contains("unified_cgroup_hierarchy"), "{doctor}");
        Ok(())
    });
}

/// What is expected after the trouble is over: all lines, once, and a ledger that balances without a loss.
fn everything_arrives(agent: Agent, container: &Container, count: u32) -> Result<()> {
    let mut expected = Expected::new();
    expected.stdout(container, lines(1..=2 * count)).stderr(container, "done\n");
    expected.verify(agent, &[container])
}

#[test]
fn a_full_disk_delays_and_loses_nothing() {
    end_to_end(|bed| {
        let disk = bed.path("disk")?;
        mounts::tmpfs(&disk, "2m")?;
        let agent = Agent::start(bed, &bed.config().with_records(&disk.join("logs")))?;
        let mut container = two_halves(bed, 1000)?;
        container.wait_stdout("1000\n")?;
        let mut first = Expected::new();
        first.stdout(&container, lines(1..=1000));
        first.wait_delivered(&agent)?;

        // Something else fills the disk.
        let filled = fs::write(disk.join("filler"), vec![0; 8 << 20]);
        ensure!(filled.is_err(), "the disk isn't full");
        container.release();
        container.wait_stderr("done\n")?;
        wait_until("the sink's errors", DEADLINE, || {
            Ok((agent.metrics()?.sum("sidestep_sink_errors_total") > 0.0).then_some(()))
        })?;
        ensure!(agent.get("/healthz")?.status == 200);
        let ledger = agent.ledger(container.id())?;
        ensure!(ledger.difference() == 0 && ledger.pending > 0 && ledger.dropped.is_empty(), "{ledger:?}");

        mounts::remount(&disk, "size=64m", MountFlags::empty())?;
        everything_arrives(agent, &container, 1000)
    });
}

#[test]
fn a_sink_that_can_not_be_started_leaves_the_old_one_in_force() {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        let mut container = two_halves(bed, 1000)?;
        container.wait_stdout("1000\n")?;
        fs::write(bed.path("wall")?, "")?;
        let refused = || -> Result<Value> {
            let mut status = Command::new(agent::binary()?);
            let output = status.args(["status", "--output", "json", "--socket"]).arg(config.socket()).output()?;
            Ok(serde_json::from_slice::<Value>(&output.stdout)?["agent"]["reload_refused"].take())
        };
        ensure!(refused()?.is_null());
        let bad = config.clone().with("/sinks/0/path", json!(bed.path("wall")?.join("below")));
        fs::write(agent.config_file(), bad.text())?;
        agent.reload()?;
        wait_until("the refusal in the status", DEADLINE, || {
            Ok(refused()?.as_str().is_some_and(|text| text.contains("wall/below")).then_some(()))
        })?;
        container.release();
        fs::write(agent.config_file(), config.clone().with("/lines/idle_flush", json!("3s")).text())?;
        agent.reload()?;
        wait_until("a status without a refusal", DEADLINE, || Ok(refused()?.is_null().then_some(())))?;
        everything_arrives(agent, &container, 1000)
    });
}

#[test]
fn a_sink_whose_files_come_later_starts_then_and_holds_no_other() {
    end_to_end(|bed| {
        let authority = Authority::new(bed, "ours")?;
        let (cert, key) = authority.issue("server", 2)?;
        let server = Receiver::with_tls(bed, "late", &[&cert, &key])?;
        let (ca_file, token_file) = (bed.path("secret/ca.pem")?, bed.path("secret/token")?);
        let late = json!({
            "type": "http", "name": "late", "url": server.url(), "encoding": "otlp_proto",
            "tls": { "ca_file": ca_file }, "auth": { "bearer": { "token_file": token_file } },
        });
        let config = bed.config().with("/sinks/1", late).with("/telemetry/sink_failing_limit", json!("1s"));
        let agent = Agent::spawn(bed, &config)?;
        let unready = wait_until("an agent that says which sink is not ready", DEADLINE, || {
            let Ok(answer) = agent.get("/readyz") else { return Ok(None) };
            Ok((answer.status == 503 && answer.body.contains("late")).then_some(answer.body))
        })?;
        ensure!(agent.get("/healthz")?.status == 200, "{unready}");
        let mut container = two_halves(bed, 1000)?;
        container.wait_stdout("1000\n")?;
        let mut first = Expected::new();
        first.stdout(&container, lines(1..=1000));
        first.wait_delivered(&agent)?;
        wait_error(&config, "late", &["tls.ca_file", &ca_file.to_string_lossy(), "No such file", "put it there"])?;
        ensure!(agent.log().contains("event=\"sink_failing\" sink=\"late\""), "{}", agent.log());

        fs::create_dir_all(ca_file.parent().context("a parent")?)?;
        fs::copy(authority.file(), &ca_file)?;
        wait_error(&config, "late", &["auth.bearer.token_file", &token_file.to_string_lossy(), "No such file"])?;
        ensure!(server.records()?.is_empty(), "a request without the token");
        fs::write(&token_file, "secret\n")?;
        container.release();
        container.wait_stderr("done\n")?;
        wait_until("an agent that is ready", DEADLINE, || Ok((agent.get("/readyz")?.status == 200).then_some(())))?;
        let total = container.stdout().len() + container.stderr().len();
        let ledger = agent.wait_ledger(container.id(), total as u64)?;
        ensure!(ledger.dropped_total() == 0, "{ledger:?}");
        let mut expected = Expected::new();
        expected.stdout(&container, lines(1..=2000)).stderr(&container, "done\n");
        let arrived = wait_until("all lines at the late sink", DEADLINE, || {
            let records = server.records()?;
            Ok((records.len() > 2000).then_some(records))
        })?;
        expected.compare(&arrived)?;
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_target_that_is_read_only_for_a_while() {
    end_to_end(|bed| {
        let disk = bed.path("disk")?;
        mounts::tmpfs(&disk, "16m")?;
        mounts::remount(&disk, "size=16m", MountFlags::RDONLY)?;
        let agent = Agent::start(bed, &bed.config().with_records(&disk.join("logs")))?;
        let mut container = two_halves(bed, 1000)?;
        container.release();
        container.wait_stderr("done\n")?;
        wait_until("the sink's errors", DEADLINE, || {
            Ok((agent.metrics()?.sum("sidestep_sink_errors_total") > 0.0).then_some(()))
        })?;
        mounts::remount(&disk, "size=16m", MountFlags::empty())?;
        everything_arrives(agent, &container, 1000)
    });
}

#[test]
fn a_target_deleted_under_way_is_made_again() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let mut container = two_halves(bed, 1000)?;
        container.wait_stdout("1000\n")?;
        let mut first = Expected::new();
        first.stdout(&container, lines(1..=1000));
        first.wait_delivered(&agent)?;
        fs::remove_dir_all(agent.records_directory())?;
        // The sink looks whether its files are still there about once a second.
        container.release();
        container.wait_stderr("done\n")?;
        let witness = wait_until("records in a new directory", DEADLINE, || {
            let witness = bed.container("witness").shell("echo here; read hold").start()?;
            agent.wait_ledger(witness.id(), 5)?;
            let records = agent.records()?;
            let found = records.iter().any(|record| record.resource("container.id") == witness.id());
            Ok(found.then_some(witness))
        })?;
        ensure!(agent.ledger(witness.id())?.difference() == 0);
        let total = (lines(1..=2000).len() + b"done\n".len()) as u64;
        let ledger = agent.wait_ledger(container.id(), total)?;
        ensure!(ledger.difference() == 0, "{ledger:?}");
        agent.stop()
    });
}

/// All files below `directory`.
fn files(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

#[test]
fn names_that_want_to_be_paths_stay_names() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let long = "x".repeat(300);
        let hostile = [
            ("../../..", "../../../evil"),
            ("/etc", "/evil/../.."),
            ("..", "."),
            ("evil\nnewline", "evil\u{202e}\u{1b}[31m"),
            ("evil", long.as_str()),
        ];
        let mut containers = Vec::new();
        let mut expected = Expected::new();
        for (namespace, pod) in hostile {
            let container = bed.container("evil-app").pod(namespace, pod).shell("echo mine; read hold").start()?;
            expected.stdout(&container, "mine\n");
            containers.push(container);
        }
        expected.wait_delivered(&agent)?;
        let logs = files(agent.records_directory())?;
        ensure!(logs.len() >= containers.len(), "containers share files: {logs:?}");
        for directory in [bed.directory(), Path::new("/etc"), Path::new("/")] {
            let stray =
                fs::read_dir(directory)?.flatten().find(|entry| entry.file_name().to_string_lossy().contains("evil"));
            ensure!(stray.is_none(), "a file outside of the sink's directory: {stray:?}");
        }
        let running: Vec<&Container> = containers.iter().collect();
        expected.verify(agent, &running)
    });
}

#[test]
fn names_of_log_files_that_want_to_be_more() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let script = "mkdir -p '/var/log/a b'; echo one > '/var/log/a b/c\"d.log'; echo two > '/var/log/line\nbreak.log'; \
                      echo done; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("done\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, "done\n");
        expected.file(&container, "/var/log/a b/c\"d.log", "one\n");
        expected.file(&container, "/var/log/line\nbreak.log", "two\n");
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_container_without_a_bundle_is_delivered_by_its_cgroup() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let container = bed.container("app").without_annotations().shell("echo done; read hold").start()?;
        container.wait_stdout("done\n")?;
        let mut expected = Expected::new();
        expected.add_stream(container.id(), "stdout", "pod", b"done\n");
        expected.wait_delivered(&agent)?;
        agent.wait_ledger(container.id(), 5)?;
        agent.stop()
    });
}
