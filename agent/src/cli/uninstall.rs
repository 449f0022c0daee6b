//! `sidestep uninstall`

mod everywhere;

use std::{
    fs, io,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use everywhere::{Step, StepError};

use super::run::effective_path;
use crate::{
    config::{Config, ConfigError, Environment},
    kubernetes::saved,
    load::{PinError, pins},
};

/// Remove what the agent leaves on the node: pinned programs and maps, and with --state its files
///
/// While no agent runs, pinned programs go on collecting. This detaches them and removes every pin; lines that wait for
/// an agent are gone then. It does nothing where nothing is left. Exit code 0: nothing is left; 1: something could not
/// be removed; 2: wrong use; 3: an agent runs, and nothing was removed.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "\
Examples:
  sidestep uninstall                            programs and maps
  sidestep uninstall --state                    positions, buffers and the socket as well
  kubectl exec -n sidestep POD -- sidestep uninstall --force",
    args_conflicts_with_subcommands = true
)]
pub struct UninstallArgs {
    /// The configuration that names the places; without it /etc/sidestep/sidestep.yaml, and all defaults where that is
    /// missing
    #[arg(short, long, value_name = "FILE", env = "SIDESTEP_CONFIG")]
    pub config: Option<PathBuf>,
    /// Remove the files of state too: positions, buffers and the socket. What is in a buffer is lost
    #[arg(long)]
    pub state: bool,
    /// Do it although an agent runs; that one captures nothing from then on
    #[arg(long)]
    pub force: bool,
    /// For the hook of the chart, which does this on every node.
    #[command(subcommand)]
    pub step: Option<Step>,
}

/// What the names of files and directories of state begin with; all else in `state_dir` is not the agent's, or may be
/// what a sink has written.
const STATE: [&str; 6] = ["positions.json", "streams.", "journal", "buffers", saved::PODS, saved::POLICIES];

/// What a command exits with when an agent runs.
const IN_USE: u8 = 3;

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An agent runs.
    #[error("an agent runs and answers at {}; stop it first, or use --force", .0.display())]
    Running(PathBuf),
    /// The pins could not be removed.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A file could not be removed.
    #[error("removing {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Not all nodes could be waited for.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The output could not be written.
    #[error(transparent)]
    Output(#[from] io::Error),
}

impl UninstallArgs {
    /// Removes everything and says what it was; returns the exit code.
    #[must_use]
    pub fn execute(&self, environment: &Environment, output: &mut impl Write) -> ExitCode {
        match self.remove(environment, output) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(match error {
                    UninstallError::Config(_) => 2,
                    UninstallError::Running(_) | UninstallError::Pin(PinError::InUse(_)) => IN_USE,
                    _ => 1,
                })
            }
        }
    }

    fn remove(&self, environment: &Environment, output: &mut impl Write) -> Result<(), UninstallError> {
        if let Some(step) = &self.step {
            return Ok(step.execute(output)?);
        }
        let config = match effective_path(self.config.clone()) {
            Some(path) => Config::load(&path, environment)?,
            None => Config::defaults(environment)?,
        };
        // An agent without pins of its own may run.
        if !self.force && UnixStream::connect(&config.socket).is_ok() {
            return Err(UninstallError::Running(config.socket));
        }
        match &config.capture.pin {
            Some(path) => {
                let removed = pins::uninstall(path, self.force)?;
                match removed.directory {
                    Some(directory) => writeln!(
                        output,
                        "removed {}: {} sets of programs and maps, {} programs detached",
                        directory.display(),
                        removed.sets,
                        removed.links
                    )?,
                    None => writeln!(output, "nothing is pinned at {}", path.display())?,
                }
            }
            None => writeln!(output, "`capture.pin` is null: nothing is pinned")?,
        }
        if self.state {
            remove_state(&config.state_dir, output)?;
            if remove_path(&config.socket)? {
                writeln!(output, "removed {}", config.socket.display())?;
            }
        }
        Ok(())
    }
}

/// Removes the files of state in a directory, and the directory when nothing else is in it.
fn remove_state(directory: &Path, output: &mut impl Write) -> Result<(), UninstallError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            writeln!(output, "no state is in {}", directory.display())?;
            return Ok(());
        }
        entries => entries.map_err(|source| UninstallError::File { path: directory.to_owned(), source })?,
    };
    let (mut removed, mut left) = (Vec::new(), 0);
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if STATE.iter().any(|state| name.starts_with(state)) {
            remove_path(&path)?;
            removed.push(name);
        } else {
            left += 1;
        }
    }
    let shown = directory.display();
    match removed.as_slice() {
        [] => writeln!(output, "no state is in {shown}")?,
        names => writeln!(output, "removed from {shown}: {}", names.join(", "))?,
    }
    if left > 0 {
        writeln!(output, "left in {shown}: {left} files and directories that are no state of the agent")?;
    } else {
        match fs::remove_dir(directory) {
            // A volume of a container.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => result.map_err(|source| UninstallError::File { path: directory.to_owned(), source })?,
        }
    }
    Ok(())
}

/// Removes a file, or a directory with all that is in it; whether it was there.
fn remove_path(path: &Path) -> Result<bool, UninstallError> {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(UninstallError::File { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_goes_and_all_else_stays() {
        let folder = tempfile::tempdir().expect("a directory");
        let state = folder.path().join("state");
        fs::create_dir_all(state.join("buffers/kafka")).expect("directory");
        fs::create_dir_all(state.join("logs")).expect("directory");
        fs::write(state.join("positions.json"), "{}").expect("file");
        let mut output = Vec::new();
        remove_state(&state, &mut output).expect("removed");
        assert!(state.join("logs").exists() && !state.join("buffers").exists());
        assert!(!state.join("positions.json").exists());
        fs::remove_dir(state.join("logs")).expect("removed");
        remove_state(&state, &mut output).expect("nothing is there");
        assert!(!state.exists());
        remove_state(&state, &mut output).expect("a second time");
        let text = String::from_utf8(output).expect("text");
        assert!(text.contains("1 files and directories that are no state"), "{text}");
    }
}
