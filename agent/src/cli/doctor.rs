//! `sidestep doctor`

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;

use super::{Format, ignore_closed_pipe, run::effective_path};
use crate::{
    config::{Config, Environment, display_name},
    control::{Color, Screen},
    doctor,
};

/// Say what works on this node, what does not, and what to do about it
///
/// Looks at the kernel, its BTF, the cgroup hierarchies, the process' capabilities and what the configuration names,
/// and loads and attaches each probe for a moment, without capturing anything. It needs no running agent, and does not
/// disturb one. Exit code 0: all works, or works in a lesser way; 1: the agent cannot run.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep doctor
  sidestep doctor --output json | jq '.[] | select(.health != \"healthy\")'")]
pub struct DoctorArgs {
    /// The configuration to look with; without it /etc/sidestep/sidestep.yaml, and all defaults where that is missing
    #[arg(short, long, value_name = "FILE", env = "SIDESTEP_CONFIG")]
    pub config: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

impl DoctorArgs {
    /// Looks at everything and prints it; the exit code says whether the agent can run.
    ///
    /// # Errors
    /// The output could not be written.
    pub fn execute(&self, environment: &Environment, output: &mut impl Write) -> io::Result<ExitCode> {
        let path = effective_path(self.config.clone());
        let config = match &path {
            Some(path) => Config::load(path, environment).map(|config| (display_name(path), config)),
            None => Config::defaults(environment).map(|config| ("defaults".to_owned(), config)),
        };
        let findings = doctor::examine(config, Config::defaults(environment).ok());
        let text = match self.output {
            Format::Text => doctor::text(&findings, Screen::stdout(Color::Auto)),
            Format::Json => doctor::json(&findings) + "\n",
        };
        ignore_closed_pipe(output.write_all(text.as_bytes()).and_then(|()| output.flush()))?;
        Ok(if doctor::can_run(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
