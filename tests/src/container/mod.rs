//! Real containers by `runc`, laid out as containerd's CRI plugin does it: bundle, annotations, cgroup path, stdio.

mod builder;
mod capture;
mod console;
mod spec;

use std::{
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};

pub use builder::{ContainerBuilder, Stdio};
pub use capture::Capture;

use crate::{DEADLINE, RuntimeLog, wait_until};

/// How a container's first process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// A running container. Dropping it kills it.
#[derive(Debug)]
pub struct Container {
    id: String,
    name: String,
    pod: String,
    namespace: String,
    cgroup: String,
    runtime_root: PathBuf,
    rootfs: PathBuf,
    pid: Pid,
    exit: Option<Exit>,
    stdin: Option<std::io::PipeWriter>,
    stdout: Option<Capture>,
    stderr: Option<Capture>,
    log: Option<RuntimeLog>,
}

/// Makes this process the parent of containers' first processes once `runc create` has ended, as a shim is, so that
/// their exit status can be waited for.
///
/// # Errors
/// The kernel refuses.
pub fn become_subreaper() -> Result<()> {
    set_child_subreaper(Some(rustix::process::getpid())).context("PR_SET_CHILD_SUBREAPER")
}

impl Container {
    /// The runtime's id: 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `k8s.container.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `k8s.pod.name`.
    #[must_use]
    pub fn pod(&self) -> &str {
        &self.pod
    }

    /// `k8s.namespace.name`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Path of its cgroup in the v2 hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// The first process, in the pid namespace of the test.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The container's root as seen from the host.
    #[must_use]
    pub fn rootfs(&self) -> &std::path::Path {
        &self.rootfs
    }

    /// What the runtime's end of stdout (or of the terminal) has received so far.
    ///
    /// # Panics
    /// Stdout isn't a pipe or terminal.
    #[must_use]
    pub fn stdout(&self) -> Vec<u8> {
        self.stdout.as_ref().expect("stdout is captured").bytes()
    }

    /// The runtime's log of its stdout.
    ///
    /// # Panics
    /// The runtime writes none.
    #[must_use]
    pub fn log(&self) -> &RuntimeLog {
        self.log.as_ref().expect("stdout is logged")
    }

    /// What the runtime's end of stderr has received so far.
    ///
    /// # Panics
    /// Stderr isn't a pipe.
    #[must_use]
    pub fn stderr(&self) -> Vec<u8> {
        self.stderr.as_ref().expect("stderr is captured").bytes()
    }

    /// Waits until stdout contains `marker`.
    ///
    /// # Errors
    /// It doesn't in time; the error shows what both streams have.
    pub fn wait_stdout(&self, marker: &str) -> Result<()> {
        wait_until(&format!("{:?} on stdout of {}", marker, self.name), DEADLINE, || {
            let stdout = self.stdout();
            Ok(stdout.windows(marker.len()).any(|window| window == marker.as_bytes()).then_some(()))
        })
        .with_context(|| self.shown())
    }

    /// Waits until stderr is `text`, and until all is read that was written to stdout before that.
    ///
    /// # Errors
    /// It isn't in time; the error shows what both streams have.
    pub fn wait_stderr(&self, text: &str) -> Result<()> {
        wait_until(&format!("{:?} on stderr of {}", text, self.name), DEADLINE, || {
            Ok((self.stderr() == text.as_bytes()).then_some(()))
        })
        .with_context(|| self.shown())?;
        self.wait_drained()
    }

    /// Waits until all is read that was written to stdout so far.
    ///
    /// # Errors
    /// It is not in time.
    pub fn wait_drained(&self) -> Result<()> {
        let Some(stdout) = &self.stdout else { return Ok(()) };
        wait_until(&format!("all of stdout of {}", self.name), DEADLINE, || Ok(stdout.is_drained()?.then_some(())))
    }

    /// Both streams' last bytes, for error messages.
    fn shown(&self) -> String {
        let last = |capture: &Option<Capture>| {
            let bytes = capture.as_ref().map(Capture::bytes).unwrap_or_default();
            String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned()
        };
        format!("container {}: stdout {:?}, stderr {:?}", self.name, last(&self.stdout), last(&self.stderr))
    }

    /// Closes stdin: a script that holds with `read` goes on.
    pub fn release(&mut self) {
        self.stdin = None;
    }

    /// The writing end of stdin.
    ///
    /// # Panics
    /// After [`Container::release`].
    pub fn stdin(&mut self) -> &mut std::io::PipeWriter {
        self.stdin.as_mut().expect("stdin is open")
    }

    /// Runs `command` in the container as `kubectl exec` would: a process from outside with stdio of its own.
    ///
    /// # Errors
    /// It can't be started, or ends with another status than 0.
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        let output = self.runc().arg("exec").arg(&self.id).args(command).output().context("running runc exec")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "exec of {command:?} in {}: {}: {stderr}", self.name, output.status);
        Ok(output)
    }

    /// Sends `signal` to the first process.
    ///
    /// # Errors
    /// It is gone already.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        ensure!(self.exit.is_none(), "container {} has ended: {:?}", self.name, self.exit);
        kill_process(self.pid, signal).with_context(|| format!("killing container {}", self.name))
    }

    /// Waits for the end of the first process and of its output.
    ///
    /// # Errors
    /// It is still running after `limit`.
    pub fn wait_for(&mut self, limit: Duration) -> Result<Exit> {
        let exit = match self.exit {
            Some(exit) => exit,
            None => wait_until(&format!("end of container {}", self.name), limit, || self.poll_exit())
                .with_context(|| self.shown())?,
        };
        self.exit = Some(exit);
        for capture in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            capture.wait_end(limit)?;
        }
        Ok(exit)
    }

    /// Waits for the end with status 0.
    ///
    /// # Errors
    /// It is still running after [`DEADLINE`], or failed.
    pub fn wait(&mut self) -> Result<()> {
        let exit = self.wait_for(DEADLINE)?;
        ensure!(exit == Exit::Status(0), "container {} ended with {exit:?}; {}", self.name, self.shown());
        Ok(())
    }

    /// Closes stdin and waits for the end with status 0.
    ///
    /// # Errors
    /// As [`Container::wait`].
    pub fn finish(&mut self) -> Result<()> {
        self.release();
        self.wait()
    }

    fn poll_exit(&self) -> Result<Option<Exit>> {
        let waited = waitpid(Some(self.pid), WaitOptions::NOHANG).context("waiting for the container")?;
        Ok(waited.and_then(|(_, status)| {
            status.exit_status().map(Exit::Status).or_else(|| status.terminating_signal().map(Exit::Signal))
        }))
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.runtime_root);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.exit.is_none() {
            // An unreaped child keeps its pid, so this can't hit another process.
            let _ = kill_process(self.pid, Signal::KILL);
            if let Err(error) = wait_until("end of a killed container", DEADLINE, || self.poll_exit()) {
                eprintln!("clean-up of container {}: {error:#}", self.name);
            }
        }
        // Removes the runtime's state and the leaf cgroups; the test bed removes what is above them.
        let _ = self.runc().args(["delete", "--force", &self.id]).output();
        if let Err(error) = crate::mounts::unmount_below(&self.rootfs) {
            eprintln!("clean-up of container {}: {error:#}", self.name);
        }
    }
}
