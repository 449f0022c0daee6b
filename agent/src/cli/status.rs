//! `sidestep status`

use std::{io, process::ExitCode, time::Duration};

use clap::Args;

use super::{Format, ask_agent, socket::SocketArgs};
use crate::control::{
    StatusOptions,
    client::{
        status::{StatusOutput, status},
        terminal::{Color, Screen},
    },
};

/// Show each container's streams and its ledger, and how far each sink is
///
/// The ledger says what became of every byte that a container wrote: produced = delivered + pending + dropped, the
/// dropped ones by stage and reason. PENDING are bytes on their way; LEDGER says `ok` when the sum holds, else by how many
/// bytes it is off, as it may be for a moment while they move.
///
/// Of a sink: LAG is how old the oldest line is that it has not acknowledged, BEHIND how many lines wait for that, BUFFERED
/// how much of them is in its buffer on disk; the rate is that of the last ten seconds; ERRORS were each tried again. Asks the
/// running agent over its socket.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep status
  sidestep status --watch --interval 500ms
  sidestep status --probes                      how each probe is attached
  sidestep status --output json | jq '.containers[] | select(.dropped != [])'")]
pub struct StatusArgs {
    /// Show it again and again until interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// How often, with --watch; at least 100ms
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval, requires = "watch")]
    pub interval: Duration,
    /// Show each probe with how it is attached, and why one is not healthy
    #[arg(long)]
    pub probes: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Where the agent answers.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Faster than this nobody reads, and it would only cost the node.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("the shortest is `{}`", humantime::format_duration(SHORTEST_INTERVAL)));
    }
    Ok(interval)
}

impl StatusArgs {
    /// Prints the status; returns the exit code: 0, 2 for a bad configuration, 3 when no agent runs, 4 without permission.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        let options = StatusOptions {
            watch: self.watch.then_some(self.interval),
            probes: self.probes,
            output: match self.output {
                Format::Text => StatusOutput::Table,
                Format::Json => StatusOutput::Json,
            },
        };
        ask_agent(&self.socket, |socket| status(socket, &options, Screen::stdout(Color::Auto), &mut io::stdout()))
    }
}
