//! `sidestep run`

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, ConfigError, DEFAULT_PATH, Environment};

/// Run the agent in the foreground
///
/// It needs root, or the capabilities that `sidestep doctor` lists. SIGHUP reads the configuration again without
/// losing a byte; SIGTERM and SIGINT wait for what is on its way, up to `shutdown_timeout`, and say what was left.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep run                                  with /etc/sidestep/sidestep.yaml, if it is there
  sidestep run --config sidestep.yaml
  kill -HUP $(pidof sidestep)                   take over a changed configuration; with the unit
                                                of deploy/sidestep.service: systemctl reload sidestep")]
pub struct RunArgs {
    /// The configuration; without it /etc/sidestep/sidestep.yaml, and all defaults where that is missing
    #[arg(short, long, value_name = "FILE", env = "SIDESTEP_CONFIG")]
    pub config: Option<PathBuf>,
}

impl RunArgs {
    /// Reads the configuration; to be called again at SIGHUP.
    ///
    /// # Errors
    /// It could not be read, or is wrong.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let environment = Environment::current();
        match effective_path(self.config.clone()) {
            Some(path) => Config::load(&path, &environment),
            None => Config::defaults(&environment),
        }
    }
}

/// The named file, else the usual one where there is one.
#[must_use]
pub fn effective_path(named: Option<PathBuf>) -> Option<PathBuf> {
    let usual = PathBuf::from(DEFAULT_PATH);
    // A broken link counts as there: going on with defaults would hide the mistake.
    named.or_else(|| usual.symlink_metadata().is_ok().then_some(usual))
}
