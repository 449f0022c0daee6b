//! `sidestep status`

use std::{io, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;

use super::{Format, exit_code};
use crate::control::{
    StatusOptions,
    client::{
        status::{StatusOutput, status},
        terminal::{Color, Screen},
    },
};

/// Show each container's streams and its ledger
///
/// The ledger says what became of every byte that a container wrote: produced = delivered + pending + dropped, the
/// dropped ones by stage and reason. Asks the running agent over its socket.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep status
  sidestep status --watch --interval 500ms
  sidestep status --output json | jq '.containers[] | select(.dropped != [])'")]
pub struct StatusArgs {
    /// Show it again and again until interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// How often, with --watch
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    pub interval: Duration,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// The agent's socket, when its configuration names another
    #[arg(long, value_name = "PATH", default_value = "/run/sidestep/sidestep.sock", env = "SIDESTEP_SOCKET")]
    pub socket: PathBuf,
}

impl StatusArgs {
    /// Prints the status; returns the exit code: 0, 3 when no agent runs, 4 without permission.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        let options = StatusOptions {
            watch: self.watch.then_some(self.interval),
            output: match self.output {
                Format::Text => StatusOutput::Table,
                Format::Json => StatusOutput::Json,
            },
        };
        exit_code(status(&self.socket, &options, Screen::stdout(Color::Auto), &mut io::stdout()))
    }
}
