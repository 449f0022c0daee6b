//! Running other programs: errors that name the command, and exit codes that are passed on.

use std::{
    env,
    ffi::OsStr,
    fmt,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// A program that ran and failed; its exit code becomes that of the task.
#[derive(Debug)]
pub struct Failed {
    command: String,
    status: ExitStatus,
}

/// The failure of a program that ran elsewhere, such as in an emulated machine.
pub fn failed(command: String, code: u8) -> anyhow::Error {
    // The form in which `wait` tells of an exit.
    Failed { command, status: ExitStatus::from_raw(i32::from(code) << 8) }.into()
}

impl fmt::Display for Failed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` ended with {}", self.command, self.status)
    }
}

impl std::error::Error for Failed {}

/// The exit code for `error`: that of the program that failed, as a shell would report it, or 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let Some(failed) = error.downcast_ref::<Failed>() else { return 1 };
    let code = failed.status.code().or_else(|| failed.status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Runs `command` with the terminal's input and output.
///
/// # Errors
/// It can't be started, or it fails ([`Failed`]).
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if status.success() { Ok(()) } else { Err(Failed { command: shown(command), status }.into()) }
}

/// As [`run`], for a program that cleans up after itself: signals that end this one are left to it, and it is waited
/// for. A terminal sends Ctrl-C to both; what is sent to this process alone (SIGTERM, SIGHUP) is passed on.
///
/// # Errors
/// As [`run`].
pub fn run_to_its_end(command: &mut Command) -> Result<()> {
    // A handler, not "ignore": that the program would inherit. SIGCHLD ends the wait.
    let mut signals = Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGTERM]).context("cannot handle signals")?;
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", shown(command)))?;
    let status = loop {
        // It is not waited for while signals are passed on, so its number can't have become another's.
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for `{}`", shown(command)))? {
            break status;
        }
        for signal in signals.wait() {
            let passed_on = match signal {
                SIGTERM => Signal::TERM,
                SIGHUP => Signal::HUP,
                _ => continue,
            };
            // It fails only when the program has ended, which the next round sees.
            let _ = kill_process(Pid::from_child(&child), passed_on);
        }
    };
    if status.success() { Ok(()) } else { Err(Failed { command: shown(command), status }.into()) }
}

/// Whether `error` is only that somebody has interrupted a program, and it has said so itself.
pub fn is_interrupt(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failed>().is_some() && exit_code(error) == INTERRUPTED
}

/// What a shell reports for a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Runs `command` and returns its standard output, without the white space around it.
///
/// # Errors
/// It can't be started, fails (with what it wrote to standard error), or writes invalid UTF-8.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let failed = anyhow::Error::new(Failed { command: shown(command), status: output.status });
        return Err(if said.is_empty() { failed } else { failed.context(said) });
    }
    let text = String::from_utf8(output.stdout).with_context(|| format!("output of `{}`", shown(command)))?;
    Ok(text.trim().to_owned())
}

/// The first executable called `name` in `PATH`, then where Debian keeps programs of root, which a user's `PATH` lacks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|program| is_executable(program))
}

/// Whether `path` is a file that may be executed by someone.
pub fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The command line, cut where it gets too long to help.
fn shown(command: &Command) -> String {
    const LONGEST: usize = 200;
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut line = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(cut);
        line.push_str(" ...");
    }
    line
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn exit_code_is_that_of_the_program() {
        let error = run(&mut shell("exit 7")).unwrap_err();
        assert_eq!(exit_code(&error), 7);
        assert_eq!(exit_code(&error.context("while testing")), 7);
    }

    #[test]
    fn exit_code_of_a_killed_program_is_as_in_a_shell() {
        assert_eq!(exit_code(&run(&mut shell("kill -KILL $$")).unwrap_err()), 137);
    }

    #[test]
    fn a_program_that_cleans_up_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!(
            "cd {}; trap 'touch cleaned; exit 7' TERM; touch ready; while :; do sleep 0.05; done",
            folder.path().display()
        );
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || sender.send(run_to_its_end(&mut shell(&script))));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !folder.path().join("ready").exists() {
            assert!(Instant::now() < deadline, "the program does not start");
            thread::yield_now();
        }
        let own = rustix::process::getpid();
        // Ctrl-C reaches the program by itself; here it would end this process if it were not left to the program.
        kill_process(own, Signal::INT).unwrap();
        kill_process(own, Signal::TERM).unwrap();
        let error = ended.recv_timeout(Duration::from_secs(20)).unwrap().unwrap_err();
        assert_eq!(exit_code(&error), 7, "{error:#}");
        assert!(folder.path().join("cleaned").exists());
        assert!(!is_interrupt(&error));
        assert!(is_interrupt(&run_to_its_end(&mut shell("exit 130")).unwrap_err()));
    }

    #[test]
    fn failed_output_tells_what_was_said() {
        let error = output(&mut shell("echo no such thing >&2; exit 3")).unwrap_err();
        assert!(format!("{error:#}").contains("no such thing"), "{error:#}");
        assert_eq!(exit_code(&error), 3);
    }

    #[test]
    fn finds_programs() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("no-such-program-of-sidestep"), None);
    }
}
