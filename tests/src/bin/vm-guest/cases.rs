//! What is tested on each kernel, for each way to attach.

use std::{fs, io::Write as _};

use anyhow::{Context, Result, ensure};
use sidestep_tests::{Agent, Config, Container, DEADLINE, Expected, Testbed, wait_until};

use crate::writer::{LOG, Mode, SPLICED};

/// A test: it gets a place of its own and the configuration to run the agent with.
pub(crate) type Case = fn(&Testbed, &Config) -> Result<()>;

/// All of them. Starting an agent takes seconds in an emulated machine, so what can share one does.
pub(crate) const ALL: [(&str, Case); 2] = [("capture", capture), ("splice", splice)];

/// The library directories of the machine, and this program, so that it runs in containers.
fn writer(bed: &Testbed, mode: Mode) -> Result<Container> {
    const PROGRAM: &str = "/bin/writer";
    let own = std::env::current_exe().context("finding this program")?;
    let mut builder = bed.container(mode.argument().trim_start_matches("--write=")).args(&[PROGRAM, &mode.argument()]);
    for libraries in ["/lib", "/lib64"] {
        builder = builder.bind(fs::canonicalize(libraries)?, format!("/usr{libraries}"));
    }
    builder.bind(own, PROGRAM).start()
}

fn wait_stderr(container: &Container, text: &str) -> Result<()> {
    wait_until(&format!("{text:?} on stderr of {}", container.name()), DEADLINE, || {
        Ok((container.stderr() == text.as_bytes()).then_some(()))
    })
    .with_context(|| format!("stderr is {:?}", String::from_utf8_lossy(&container.stderr())))
}

/// Containers of every kind below one agent; then everything is compared, byte for byte, and every ledger balances.
fn capture(bed: &Testbed, config: &Config) -> Result<()> {
    let mut expected = Expected::new();

    // One runs before the agent does.
    let earlier = bed.container("earlier").shell("read go; echo found; read hold").start()?;
    let agent = Agent::start(bed, config)?;
    let mut earlier = earlier;
    earlier.stdin().write_all(b"go\n")?;
    earlier.wait_stdout("found\n")?;
    expected.stdout(&earlier, "found\n");

    let script = "for i in $(seq 50); do echo out $i; echo err $i >&2; done; echo done; read hold";
    let streams = bed.container("streams").shell(script).start()?;
    streams.wait_stdout("done\n")?;
    expected.stdout(&streams, streams.stdout()).stderr(&streams, streams.stderr());
    ensure!(streams.stderr().ends_with(b"err 50\n"));

    let terminal = bed.container("terminal").terminal().shell("seq 50; echo done; sleep 100000").start()?;
    terminal.wait_stdout("done\r\n")?;
    // The application writes LF; the line discipline makes CR LF of it on the way to the runtime.
    expected.stdout(&terminal, String::from_utf8(terminal.stdout())?.replace("\r\n", "\n"));

    for number in 0..5 {
        let script = format!("echo first {number}; echo error {number} >&2; sleep 0.02; echo last {number}");
        let mut short = bed.container(&format!("short-{number}")).shell(&script).start()?;
        short.wait()?;
        ensure!(short.stdout() == format!("first {number}\nlast {number}\n").as_bytes());
        expected.stdout(&short, short.stdout()).stderr(&short, short.stderr());
    }

    let session = bed.container("session").shell("echo start; read hold").start()?;
    session.wait_stdout("start\n")?;
    let output = session.exec(&["sh", "-c", "echo session; echo session >&2; seq 100"])?;
    ensure!(output.stdout.starts_with(b"session\n1\n"));
    expected.stdout(&session, "start\n");

    let mut running = vec![earlier, streams, terminal, session];
    for mode in [Mode::Large, Mode::Vectors, Mode::Positions, Mode::Rename] {
        let container = writer(bed, mode)?;
        wait_stderr(&container, "done\n")?;
        wait_until(
            "the runtime's end of stdout",
            DEADLINE,
            || Ok((container.stdout() == mode.stdout()).then_some(())),
        )?;
        expected.stdout(&container, mode.stdout()).stderr(&container, "done\n");
        expected.file(&container, LOG, mode.file());
        running.push(container);
    }
    running.push(copytruncate(bed, &mut expected)?);
    expected.verify(agent, &running.iter().collect::<Vec<_>>())
}

/// As logrotate does it: a copy, then a truncation, while the writer holds.
fn copytruncate(bed: &Testbed, expected: &mut Expected) -> Result<Container> {
    let mut container = writer(bed, Mode::Truncate)?;
    wait_stderr(&container, "half\n")?;
    let log = container.rootfs().join(LOG.trim_start_matches('/'));
    fs::copy(&log, bed.path("copy")?)?;
    fs::File::options().write(true).truncate(true).open(&log)?;
    container.stdin().write_all(b"!")?;
    wait_stderr(&container, "half\ndone\n")?;
    expected.stderr(&container, "half\ndone\n").file(&container, LOG, Mode::Truncate.file());
    Ok(container)
}

/// Bytes that nobody can see are counted with their size.
fn splice(bed: &Testbed, config: &Config) -> Result<()> {
    let agent = Agent::start(bed, config)?;
    let container = writer(bed, Mode::Splice)?;
    wait_stderr(&container, "done\n")?;
    let shown = Mode::Splice.stdout().len() + "done\n".len();
    let ledger = agent.wait_ledger(container.id(), (shown + SPLICED) as u64)?;
    let unreadable = ledger.dropped_for("capture", "unreadable");
    ensure!(unreadable == SPLICED as u64 && ledger.dropped_total() == unreadable, "{ledger:?}");
    let records = agent.records()?;
    let stdout = records.iter().filter(|record| record.source() == "stdout");
    let lines: Vec<_> = stdout.map(|record| record.text("/body")).collect();
    ensure!(lines == ["seen before", "seen after"], "{lines:?}");
    agent.stop()
}
