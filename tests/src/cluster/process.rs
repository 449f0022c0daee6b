//! The processes of a cluster: each in its node's cgroup, detached from who starts it, known by a file with its number.

use std::{
    fmt,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::{DEADLINE, cgroup, wait_until};

/// A process that outlives who starts it.
#[derive(Clone, Debug)]
pub struct Process {
    file: PathBuf,
    log: PathBuf,
    /// Its cgroup, by which it is known that the number is still its own.
    cgroup: String,
}

impl Process {
    /// The process whose number stands in `file`, running or not.
    pub(super) const fn new(file: PathBuf, log: PathBuf, cgroup: String) -> Self {
        Self { file, log, cgroup }
    }

    /// Starts `command` in the cgroup, with its output appended to the log.
    ///
    /// # Errors
    /// It can't be started.
    pub(super) fn start(&self, command: &[&str]) -> Result<()> {
        let group = cgroup::unified()?.join(self.cgroup.trim_start_matches('/'));
        fs::create_dir_all(&group).with_context(|| format!("creating {}", group.display()))?;
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("opening {}", self.log.display()))?;
        // A shell enters the cgroup before the program can start any other. It and all after it keep its number.
        let mut shell = Command::new("setsid");
        shell.args(["sh", "-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs")).args(command);
        // Where Debian keeps programs of root, which a user's PATH lacks.
        let path = std::env::var("PATH").unwrap_or_default();
        shell.env("PATH", format!("{path}:/usr/sbin:/sbin")).env_remove("KUBECONFIG");
        shell.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = shell.spawn().with_context(|| format!("starting {}", command.join(" ")))?;
        fs::write(&self.file, child.id().to_string()).with_context(|| format!("writing {}", self.file.display()))?;
        // In its cgroup it is known; when it ends before, that is for who waits for what it does.
        let entered = || self.pid().is_some() || !Path::new("/proc").join(child.id().to_string()).exists();
        wait_until(&format!("the start of {self}"), DEADLINE, || Ok(entered().then_some(())))
    }

    /// Its number, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        let pid = Pid::from_raw(fs::read_to_string(&self.file).ok()?.trim().parse().ok()?)?;
        // When it is a child of ours that has ended, its number is let go of; all else is somebody else's child.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        // Before it is in its cgroup it can't be told from another; that is for a moment.
        let here = own.lines().any(|line| line.strip_prefix("0::") == Some(&self.cgroup));
        let running = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']));
        (here && running).then_some(pid)
    }

    /// Sends a signal and waits until it has ended; nothing happens when it does not run.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        // It may end by itself in between.
        let _ = kill_process(pid, signal);
        wait_until(&format!("the end of {self} after {signal:?}"), DEADLINE, || Ok(self.pid().is_none().then_some(())))
    }

    /// The end of its output.
    #[must_use]
    pub fn last_words(&self) -> String {
        tail(&self.log)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.log.file_stem().unwrap_or_default();
        formatter.write_str(&name.to_string_lossy())
    }
}

/// The last lines of a file; empty when there is none.
fn tail(file: &Path) -> String {
    const SHOWN: usize = 4 * 1024;
    let bytes = fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(SHOWN)..]).into_owned()
}
