//! SIGHUP: a running agent takes over a changed configuration.

use std::{path::PathBuf, sync::Arc};

use crate::{
    cli::run::{RunArgs, effective_path},
    config::Config,
    observe::Agent,
    pipeline::Reloader,
    run::{LogLevelHandle, set_log_level},
};

/// What a reload needs of the running agent.
pub struct Reload {
    /// The configuration file, as the command line names it.
    pub path: Option<PathBuf>,
    /// The stages.
    pub pipeline: Reloader,
    /// What the status shows.
    pub agent: Arc<Agent>,
    /// The agent's own log.
    pub log_level: LogLevelHandle,
}

impl Reload {
    /// Takes over what a running agent can, and returns the configuration that is in force then. Waits for sinks that
    /// are replaced. A bad configuration changes nothing: `None`.
    pub fn run(&self, config: &Config) -> Option<Config> {
        match self.take_over(config) {
            Ok(next) => {
                self.agent.set_reload_refused(None);
                Some(next)
            }
            Err(error) => {
                let file = effective_path(self.path.clone());
                tracing::error!(error, ?file, "reload refused: the configuration in force stays");
                self.agent.set_reload_refused(Some(error));
                None
            }
        }
    }

    fn take_over(&self, config: &Config) -> Result<Config, String> {
        let file = effective_path(self.path.clone());
        // A file that is written anew is empty for a moment, and an empty one is a valid configuration: all defaults.
        if file.as_ref().is_some_and(|file| std::fs::metadata(file).is_ok_and(|metadata| metadata.len() == 0)) {
            return Err("the file is empty".to_owned());
        }
        let new = RunArgs { config: self.path.clone() }.load().map_err(|error| error.to_string())?;
        let changes = config.diff(&new);
        for part in changes.needs_restart() {
            tracing::warn!(option = part.as_str(), "reload: this option needs a restart of the agent");
        }
        let next = config.with_in_place_changes(&new);
        self.pipeline.reload(config, &next).map_err(|error| error.to_string())?;
        set_log_level(&self.log_level, &next);
        self.agent.set_sinks(&next);
        tracing::info!(%changes, "reload done");
        Ok(next)
    }
}
