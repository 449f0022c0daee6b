//! The commands that people use beside a running agent.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use sidestep_tests::{Agent, DEADLINE, agent::binary, container::Capture, end_to_end, wait_until};

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
        let output = Capture::start(follow.stdout.take().context("a pipe")?);
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
