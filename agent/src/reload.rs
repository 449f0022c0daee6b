//! SIGHUP: a running agent takes over a changed configuration.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    cli::run::effective_path,
    config::{self, Config, Environment, at_rest::at_rest, display_name, policy_files},
    events::Event,
    observe::Agent,
    own_log::OwnLog,
    pipeline::Reloader,
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
    pub own_log: OwnLog,
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
                Event::ReloadRefused { error: &error, file: file.as_deref() }.report();
                self.agent.set_reload_refused(Some(error));
                None
            }
        }
    }

    fn take_over(&self, config: &Config) -> Result<Config, String> {
        let new = match effective_path(self.path.clone()) {
            Some(file) => {
                let text = whole_text(&file)?;
                Config::parse(&display_name(&file), &text, &Environment::current())
            }
            None => Config::defaults(&Environment::current()),
        };
        let new = new.map_err(|error| error.to_string())?;
        let changes = config.diff(&new);
        for part in changes.needs_restart() {
            tracing::warn!(option = part.as_str(), "reload: this option needs a restart of the agent");
        }
        let next = config.with_in_place_changes(&new);
        let governor = self.pipeline.governor();
        let version = governor.next_files();
        let policies = policy_files::read_at_rest(&next.policies.files)?;
        self.pipeline.reload(config, &next).map_err(|error| error.to_string())?;
        governor.set_files(version, Arc::new(policies));
        self.own_log.set_level(&next);
        self.agent.set_sinks(&next);
        Event::ReloadDone { changes: &changes }.report();
        Ok(next)
    }
}

/// The text of a file that nobody is writing: a part of a configuration may be a valid one, with defaults for the rest.
fn whole_text(file: &Path) -> Result<String, String> {
    let read = || config::read_text(file).map(|(_, text)| text).map_err(|error| error.to_string());
    match at_rest(read, |text| !text.is_empty())? {
        Some(text) => Ok(text),
        None if read()?.is_empty() => Err("the file is empty".to_owned()),
        None => Err("the file does not come to rest".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, thread};

    use super::*;
    use crate::config::at_rest::LOOKS;

    #[test]
    fn a_file_that_is_being_written_is_waited_for() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("sidestep.yaml");
        let mut file = fs::File::create(&path).expect("file");
        let writer = thread::spawn(move || {
            for part in ["node_name: a\n", "log:\n", "  level: debug\n"] {
                thread::sleep(LOOKS.0 / 2);
                file.write_all(part.as_bytes()).expect("written");
            }
        });
        assert_eq!(whole_text(&path).as_deref(), Ok("node_name: a\nlog:\n  level: debug\n"));
        writer.join().expect("the writer");
    }

    #[test]
    fn an_empty_file_is_no_configuration() {
        let file = tempfile::NamedTempFile::new().expect("file");
        assert_eq!(whole_text(file.path()).expect_err("empty"), "the file is empty");
    }
}
