//! The real agent as a child process of a test.

use std::{
    env,
    fs::{self, File},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, set_parent_process_death_signal, setrlimit};

use crate::{Config, DEADLINE, Ledger, Testbed, http, ledger::Metrics, records, records::Record, wait_until};

/// Numbers the agents' stderr files; a test may start several one after the other.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// How long a draining agent may take; it is given work of seconds at most.
const DRAIN: Duration = Duration::from_secs(30);

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    config_file: PathBuf,
    stderr: PathBuf,
    telemetry: SocketAddr,
    records: PathBuf,
}

/// The agent's binary: `SIDESTEP_AGENT`, or the one beside this test's binary in the target directory.
///
/// # Errors
/// There is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SIDESTEP_AGENT") {
        return Ok(path.into());
    }
    let own = env::current_exe().context("finding the test binary")?;
    let directories = own.ancestors().skip(1).take(2);
    let found = directories.map(|directory| directory.join("sidestep")).find(|path| path.is_file());
    found.context("no agent: run `cargo xtask build` first, or name the binary in SIDESTEP_AGENT")
}

/// The binary of an agent with another layout of records: `cargo xtask build --next` makes it.
///
/// # Errors
/// There is none.
pub fn next_binary() -> Result<PathBuf> {
    let next = binary()?.with_file_name("sidestep-next");
    ensure!(next.is_file(), "{} is not there; make it with `cargo xtask build --next`", next.display());
    Ok(next)
}

impl Agent {
    /// Starts an agent and waits until it is ready: its probes are attached and it has found what runs already.
    ///
    /// # Errors
    /// There is no agent, it ended, or isn't ready in time; the error has its last words.
    pub fn start(bed: &Testbed, config: &Config) -> Result<Self> {
        let agent = Self::spawn(bed, config)?;
        agent.wait_ready()
    }

    /// Starts an agent and doesn't wait.
    ///
    /// # Errors
    /// There is no agent, or no space for its configuration.
    pub fn spawn(bed: &Testbed, config: &Config) -> Result<Self> {
        Self::spawn_with_output(bed, config, Stdio::null())
    }

    /// As [`Agent::spawn`], of another build.
    ///
    /// # Errors
    /// As [`Agent::spawn`].
    pub fn spawn_binary(bed: &Testbed, config: &Config, binary: &Path) -> Result<Self> {
        Self::spawn_command(bed, config, Stdio::null(), binary)
    }

    /// As [`Agent::spawn`], with a standard output for a console sink.
    ///
    /// # Errors
    /// As [`Agent::spawn`].
    pub fn spawn_with_output(bed: &Testbed, config: &Config, output: Stdio) -> Result<Self> {
        Self::spawn_command(bed, config, output, &binary()?)
    }

    fn spawn_command(bed: &Testbed, config: &Config, output: Stdio, binary: &Path) -> Result<Self> {
        let config_file = bed.path("sidestep.yaml")?;
        fs::write(&config_file, config.text()).context("writing the configuration")?;
        let stderr = bed.path(format!("agent-{}.stderr", NEXT.fetch_add(1, Ordering::Relaxed)))?;
        let mut command = Command::new(binary);
        command.arg("run").arg("--config").arg(&config_file);
        command.stdin(Stdio::null()).stdout(output).stderr(File::create(&stderr)?);
        // Ctrl-C is for the test, which then ends its agent in order.
        command.process_group(0);
        let open_files = config.open_files().map(|limit| Rlimit { current: Some(limit), maximum: Some(limit) });
        // SAFETY: the closure makes system calls, which are async-signal-safe, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                if let Some(limit) = open_files {
                    setrlimit(Resource::Nofile, limit)?;
                }
                Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
            });
        }
        let child = command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self { child, config_file, stderr, telemetry: config.telemetry(), records: config.records().to_owned() })
    }

    /// Waits until `/readyz` is 200.
    ///
    /// # Errors
    /// It ended, or isn't ready in time.
    pub fn wait_ready(mut self) -> Result<Self> {
        wait_until("the agent's /readyz", DEADLINE, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended: {status}");
            }
            Ok(self.get("/readyz").ok().filter(|answer| answer.status == 200))
        })
        .with_context(|| self.log())?;
        Ok(self)
    }

    /// What it wrote to stderr so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.stderr).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The configuration file, for changes before [`Agent::reload`].
    #[must_use]
    pub fn config_file(&self) -> &Path {
        &self.config_file
    }

    /// Its process id.
    ///
    /// # Panics
    /// Never: a child's id is positive.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Its resident memory in bytes.
    ///
    /// # Errors
    /// It is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// `GET` from its HTTP endpoint.
    ///
    /// # Errors
    /// No answer.
    pub fn get(&self, path: &str) -> Result<http::Answer> {
        http::get(self.telemetry, path)
    }

    /// All metrics now.
    ///
    /// # Errors
    /// No answer, or not the text format.
    pub fn metrics(&self) -> Result<Metrics> {
        let answer = self.get("/metrics")?;
        ensure!(answer.status == 200, "/metrics: {}", answer.status);
        Metrics::parse(&answer.body)
    }

    /// The ledger of a container now; all zero when it has none yet.
    ///
    /// # Errors
    /// No answer.
    pub fn ledger(&self, container_id: &str) -> Result<Ledger> {
        Ok(self.metrics()?.ledger(container_id))
    }

    /// Waits until nothing of a container is pending and `produced` bytes are accounted for, checks that the ledger
    /// balances, and returns it.
    ///
    /// # Errors
    /// Not in time, or not balanced.
    pub fn wait_ledger(&self, container_id: &str, produced: u64) -> Result<Ledger> {
        let mut last = Ledger::default();
        wait_until(&format!("{produced} bytes in the ledger of {container_id}"), DEADLINE, || {
            last = self.ledger(container_id)?;
            // A reading may be off by what moved meanwhile.
            Ok((last.produced >= produced && last.pending == 0 && last.difference() == 0).then_some(()))
        })
        .with_context(|| format!("the ledger stands at {last:?}"))?;
        ensure!(last.produced == produced, "{produced} bytes were produced, and the ledger says {last:?}");
        Ok(last)
    }

    /// Waits until it has read all that the ring has and let go of it: what is delivered is not repeated after a kill then.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_ring(&self) -> Result<()> {
        wait_until("an empty ring", DEADLINE, || {
            let metrics = self.metrics()?;
            let bytes = ["sidestep_ring_held_bytes", "sidestep_ring_fill_bytes"].map(|name| metrics.sum(name));
            Ok((bytes == [0.0; 2]).then_some(()))
        })
    }

    /// All records that the file sink has written, in the order of their files.
    ///
    /// # Errors
    /// A file can't be read or has a line that is no record.
    pub fn records(&self) -> Result<Vec<Record>> {
        records::read(&self.records)
    }

    /// The file sink's directory.
    #[must_use]
    pub fn records_directory(&self) -> &Path {
        &self.records
    }

    /// Makes it read its configuration again.
    ///
    /// # Errors
    /// It is gone.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid(), signal).context("signalling the agent")
    }

    /// Stops all its threads, so that nobody drains the ring until [`Signal::CONT`].
    ///
    /// # Errors
    /// It has ended, or does not stop.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let threads = format!("/proc/{}/task", self.pid());
        wait_until("the agent's standstill", DEADLINE, || {
            for thread in fs::read_dir(&threads)? {
                let stat = fs::read_to_string(thread?.path().join("stat"))?;
                if stat.rsplit_once(") ").is_none_or(|(_, rest)| !rest.starts_with('T')) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    /// Kills it as the kernel would: at once.
    ///
    /// # Errors
    /// It has ended by itself.
    pub fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the agent ended: {status}\n{}", self.log());
        }
        self.child.kill().context("killing the agent")?;
        self.child.wait().context("waiting for the agent")?;
        Ok(())
    }

    /// Asks it to drain and to end (SIGTERM), and waits for a good end.
    ///
    /// # Errors
    /// It takes too long, or fails.
    pub fn stop(self) -> Result<()> {
        self.stop_with_log().map(drop)
    }

    /// As [`Agent::stop`]; returns all that it wrote to stderr.
    ///
    /// # Errors
    /// It takes too long, or fails.
    pub fn stop_with_log(mut self) -> Result<String> {
        self.signal(Signal::TERM)?;
        let status: ExitStatus = wait_until("the agent's end after SIGTERM", DRAIN, || Ok(self.child.try_wait()?))
            .with_context(|| self.log())?;
        ensure!(status.success(), "the agent ended with {status}: {}", self.log());
        Ok(self.log())
    }
}

impl Agent {
    /// Waits for an end by SIGTERM that came before the agent had installed its handler, or a good end after it.
    ///
    /// # Errors
    /// It takes too long, or fails otherwise.
    pub fn stop_or_killed_by_term(mut self) -> Result<()> {
        let status: ExitStatus = wait_until("the agent's end after SIGTERM", DRAIN, || Ok(self.child.try_wait()?))?;
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::TERM.as_raw());
        ensure!(status.success() || killed, "the agent ended with {status}: {}", self.log());
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only when it has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
