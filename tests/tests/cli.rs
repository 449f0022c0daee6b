//! The commands that people use beside a running agent.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sidestep_tests::{Agent, DEADLINE, Testbed, agent::binary, cgroup, container::Capture, end_to_end, wait_until};

fn sidestep(arguments: &[&str], socket: &Path) -> Result<Output> {
    let output = Command::new(binary()?).args(arguments).arg("--socket").arg(socket).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

fn numbered(count: u32) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

#[test]
fn logs_follows_the_chosen_pod() {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        let mut follow = Command::new(binary()?);
        follow.args(["logs", "--follow", "--output", "raw", "--namespace", "shop", "--pod", "chosen-*", "--socket"]);
        let mut follow = follow.arg(config.socket()).stdout(Stdio::piped()).spawn()?;
        let output = Capture::start(follow.stdout.take().context("a pipe")?)?;
        let script = "for i in $(seq 500); do echo $i; usleep 1000; done; read hold";
        let other = bed.container("app").pod("shop", "other-0").shell(script).start()?;
        // The follower may take a moment to connect: lines that come before are in what the agent still has.
        let chosen = bed.container("app").pod("shop", "chosen-0").shell(script).start()?;
        chosen.wait_stdout("500\n")?;
        other.wait_stdout("500\n")?;
        let followed = wait_until("all lines of the Pod", DEADLINE, || {
            Ok((output.bytes() == numbered(500).as_bytes()).then_some(()))
        })
        .with_context(|| String::from_utf8_lossy(&output.bytes()).into_owned());
        // Also when it has not come to what is expected.
        follow.kill()?;
        follow.wait()?;
        followed?;
        agent.stop()
    });
}

#[test]
fn logs_prints_what_the_agent_still_has() {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        let script = "seq 200; seq 10 > /var/log/app.log; echo needle; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("needle\n")?;
        agent.wait_ledger(container.id(), (numbered(200).len() + numbered(10).len() + "needle\n".len()) as u64)?;
        let lines = |arguments: &[&str]| -> Result<String> {
            let mut all = vec!["logs", "--output", "raw"];
            all.extend(arguments);
            Ok(String::from_utf8(sidestep(&all, config.socket())?.stdout)?)
        };
        ensure!(lines(&["--class", "business"])? == numbered(10));
        ensure!(lines(&["--class", "pod"])? == format!("{}needle\n", numbered(200)));
        ensure!(lines(&["--grep", "^need"])? == "needle\n");
        ensure!(lines(&["--pod", "nobody"])?.is_empty());
        agent.stop()
    });
}

#[test]
fn logs_says_when_nothing_can_come() {
    end_to_end(|bed| {
        let notice = |roots: &[&str]| -> Result<String> {
            let config = bed.config().with("/capture/cgroup_roots", json!(roots));
            let agent = Agent::start(bed, &config)?;
            let output = sidestep(&["logs"], config.socket())?;
            agent.stop()?;
            ensure!(output.stdout.is_empty());
            Ok(String::from_utf8(output.stderr)?)
        };
        let absent = format!("{}/nowhere", bed.cgroup_root());
        let text = notice(&[&absent])?;
        ensure!(text.contains(&absent) && text.contains("no container is captured"), "{text}");
        let text = notice(&[&bed.cgroup_root()])?;
        ensure!(text.is_empty(), "{text}");
        Ok(())
    });
}

#[test]
fn status_shows_the_ledger() {
    end_to_end(|bed| {
        let config = bed.config();
        let agent = Agent::start(bed, &config)?;
        let container = bed.container("app").shell("seq 200; read hold").start()?;
        container.wait_stdout("200\n")?;
        let ledger = agent.wait_ledger(container.id(), numbered(200).len() as u64)?;
        let output = sidestep(&["status", "--output", "json"], config.socket())?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let containers = status["containers"].as_array().context("containers")?;
        let shown =
            containers.iter().find(|shown| shown.to_string().contains(container.pod())).context("the container")?;
        ensure!(shown["produced_bytes"] == ledger.produced && shown["delivered_bytes"] == ledger.delivered, "{shown}");
        let text = String::from_utf8(sidestep(&["status"], config.socket())?.stdout)?;
        ensure!(text.contains(container.pod()), "{text}");
        agent.stop()
    });
}

#[test]
fn a_bad_configuration_is_named_with_file_and_line() {
    end_to_end(|bed| {
        let file = bed.path("bad.yaml")?;
        fs::write(&file, "node_name: test\ncapture:\n  ring_sise: 16MiB\n")?;
        for arguments in [&["run", "--config"][..], &["config", "check"]] {
            let output = Command::new(binary()?).args(arguments).arg(&file).output()?;
            let stderr =
                String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
            ensure!(!output.status.success(), "{arguments:?} accepts it");
            let place = format!("{}:3", file.display());
            ensure!(stderr.contains(&place) && stderr.contains("ring_sise"), "{arguments:?}: {stderr}");
        }
        let missing = bed.path("missing.yaml")?;
        let output = Command::new(binary()?).arg("run").arg("--config").arg(&missing).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && stderr.contains("missing.yaml"), "{stderr}");
        Ok(())
    });
}

/// Exit code and standard error of a command that fails.
fn failing(arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output =
        Command::new(binary()?).args(arguments).env_remove("SIDESTEP_SOCKET").env_remove("SIDESTEP_CONFIG").output()?;
    ensure!(!output.status.success(), "{arguments:?} succeeds");
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// A process that no runtime knows, in a cgroup of its own below the governed root. Dropping it kills it.
struct Stranger(Child);

impl Stranger {
    fn start(bed: &Testbed, script: &str) -> Result<Self> {
        let group = cgroup::unified()?.join(bed.cgroup_root().trim_start_matches('/')).join("stranger");
        fs::create_dir_all(&group)?;
        // The shell enters the cgroup and only then executes the writer, as a runtime does.
        let enter = format!("echo $$ > {}/cgroup.procs && exec sh -c '{script}'", group.display());
        let mut command = Command::new("sh");
        Ok(Self(command.args(["-c", &enter]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_no_runtime_knows_is_shown_by_its_cgroup() {
    end_to_end(|bed| {
        let config = bed.config().with("/sinks/1", json!({ "type": "console" }));
        let console = bed.path("console.txt")?;
        let agent = Agent::spawn_with_output(bed, &config, File::create(&console)?.into())?.wait_ready()?;
        let stranger = Stranger::start(bed, "echo from nowhere; read hold")?;
        let expected = format!(" {}/stranger stdout from nowhere\n", bed.cgroup_root());
        let logs = || -> Result<_> { Ok(String::from_utf8(sidestep(&["logs"], config.socket())?.stdout)?) };
        let shown =
            || Ok((logs()?.ends_with(&expected) && fs::read_to_string(&console)?.ends_with(&expected)).then_some(()));
        wait_until("the line", DEADLINE, shown)
            .with_context(|| format!("{:?}, {:?}", logs().ok(), fs::read_to_string(&console).ok()))?;
        let status = String::from_utf8(sidestep(&["status"], config.socket())?.stdout)?;
        let name = format!("{}/stranger ", bed.cgroup_root());
        ensure!(status.lines().any(|line| line.starts_with(&name)), "{status}");
        ensure!(!status.contains("(node)"), "the node has no log files here: {status}");
        drop(stranger);
        agent.stop()
    });
}

#[test]
fn the_socket_is_found_by_the_configuration() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let file = agent.config_file().to_owned();
        let by_option = Command::new(binary()?).args(["status", "--config"]).arg(&file).output()?;
        ensure!(by_option.status.success(), "{}", String::from_utf8_lossy(&by_option.stderr));
        let by_variable = Command::new(binary()?).arg("logs").env("SIDESTEP_CONFIG", &file).output()?;
        ensure!(by_variable.status.success(), "{}", String::from_utf8_lossy(&by_variable.stderr));
        let text = String::from_utf8(by_option.stdout)?;
        ensure!(text.contains(&format!("roots    {}\n", bed.cgroup_root())), "{text}");
        ensure!(text.contains("\nprobes   "), "{text}");
        agent.stop()?;

        let nowhere = bed.path("nowhere.sock")?;
        for command in ["status", "logs"] {
            let (code, stderr) = failing(&[command, "--socket", nowhere.to_str().context("UTF-8")?])?;
            ensure!(code == Some(3), "{code:?}: {stderr}");
            for part in ["--socket PATH", "SIDESTEP_SOCKET", "--config FILE", "SIDESTEP_CONFIG"] {
                ensure!(stderr.contains(part), "{part} is not in {stderr}");
            }
        }
        fs::write(&file, "socket: relative\n")?;
        let (code, stderr) = failing(&["status", "--config", file.to_str().context("UTF-8")?])?;
        ensure!(code == Some(2) && stderr.contains("must be an absolute path"), "{code:?}: {stderr}");
        Ok(())
    });
}

#[test]
fn the_status_is_not_watched_faster_than_anyone_reads() {
    end_to_end(|_| {
        for (arguments, part) in [
            (&["status", "--watch", "--interval", "0s"][..], "the shortest is `100ms`"),
            (&["status", "--interval", "1s"], "--watch"),
        ] {
            let (code, stderr) = failing(arguments)?;
            ensure!(code == Some(2) && stderr.contains(part), "{code:?}: {stderr}");
        }
        Ok(())
    });
}

#[test]
fn what_run_would_refuse_is_named_before() {
    end_to_end(|bed| {
        let file = bed.path("refused.yaml")?;
        let logs = bed.path("logs")?;
        let sink = |name: &str| json!({ "type": "file", "name": name, "path": logs, "quota": 1, "quota_percent": 0 });
        let config = json!({
            "capture": { "cgroup_roots": ["/sys/fs/cgroup/unified/x", "/a", "/a/b"] },
            "lines": { "idle_flush": "0s", "multiline": { "patterns": [{ "start": "(", "continuation": "[" }] } },
            "sinks": [sink("one"), sink("two")],
        });
        fs::write(&file, format!("{config:#}\n"))?;
        let (code, stderr) = failing(&["config", "check", file.to_str().context("UTF-8")?])?;
        ensure!(code == Some(1), "{code:?}");
        for part in [
            "without `/sys/fs/cgroup/unified`: `/x`",
            "`/a/b` overlaps with `/a`",
            "`0s` is not between",
            "unclosed group",
            "unclosed character class",
            "`quota` must be at least",
            "`quota_percent` must be 1 to 100",
            "is the directory of `sinks[0]` too",
        ] {
            ensure!(stderr.contains(part), "{part} is not in {stderr}");
        }
        // What only the node knows is the doctor's.
        let socket = bed.path("directory")?;
        fs::create_dir(&socket)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let config = bed.config().with("/socket", json!(socket));
        let config = config.with("/telemetry/listen", json!(listener.local_addr()?.to_string()));
        fs::write(&file, config.text())?;
        let output = Command::new(binary()?).args(["doctor", "--output", "json", "--config"]).arg(&file).output()?;
        let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)?;
        let failed: Vec<_> =
            findings.iter().filter(|finding| finding["health"] == "failed").map(|finding| &finding["check"]).collect();
        ensure!(failed == ["socket", "telemetry.listen"] && output.status.code() == Some(1), "{findings:#?}");
        Ok(())
    });
}
