//! Servers that a test starts, in a cgroup beside the governed root, so that they can be found and ended with it.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::{DEADLINE, Testbed, cgroup, wait_until};

/// A daemon, ended when dropped; what it doesn't take with it ends with the test bed's cgroups.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it in the test bed's cgroup for daemons; `package` has it.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start(bed: &Testbed, command: &mut Command, log: &Path, package: &str) -> Result<Self> {
        let program = command.get_program().display().to_string();
        let group = cgroup::unified()?.join(bed.engine_cgroup().trim_start_matches('/'));
        fs::create_dir_all(&group).with_context(|| format!("creating {}", group.display()))?;
        let output = File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {program}: apt-get install {package}"))?;
        let daemon = Self { child };
        // It starts its helpers much later than this.
        fs::write(group.join("cgroup.procs"), daemon.child.id().to_string()).context("moving the daemon")?;
        Ok(daemon)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("signalling a daemon")
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// It can't be waited for.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // An unreaped child keeps its pid. It may have ended by itself.
        let _ = self.signal(Signal::CONT);
        let _ = self.signal(Signal::TERM);
        let ended = wait_until("the daemon's end", DEADLINE, || Ok(self.child.try_wait()?));
        if let Err(error) = ended {
            eprintln!("clean-up: {error:#}");
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
