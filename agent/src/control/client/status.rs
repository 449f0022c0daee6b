//! `sidestep status`: streams and the ledger of each container, once or live.

use std::{io::Write, path::Path, thread, time::Duration};

use super::{
    ClientError, quiet_on_broken_pipe,
    table::render,
    terminal::{Screen, append_json, append_picture},
    write_out,
};
use crate::control::{
    protocol::{Ask, Frame},
    status::StatusReport,
};

/// What `sidestep status` is asked for.
#[derive(Clone, Copy, Debug)]
pub struct StatusOptions {
    /// Go on until interrupted, a reading each time.
    pub watch: Option<Duration>,
    /// Show each probe, not only how many are in which state.
    pub probes: bool,
    /// In which form.
    pub output: StatusOutput,
}

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum StatusOutput {
    /// Tables for people.
    #[default]
    Table,
    /// One [`StatusReport`] a line.
    Json,
}

/// Prints the agent's status.
///
/// # Errors
/// The agent does not run or refuses, or the output cannot be written (a closed pipe is not an error).
pub fn status(socket: &Path, options: &StatusOptions, screen: Screen, out: &mut dyn Write) -> Result<(), ClientError> {
    quiet_on_broken_pipe(print(socket, options, screen, out))
}

/// Asks the agent once.
///
/// # Errors
/// The agent does not run or refuses.
pub fn fetch(socket: &Path) -> Result<StatusReport, ClientError> {
    super::fetch(socket, Ask::Status, |frame| if let Frame::Status(report) = frame { Some(*report) } else { None })
}

fn print(socket: &Path, options: &StatusOptions, screen: Screen, out: &mut dyn Write) -> Result<(), ClientError> {
    let mut first = true;
    loop {
        let report = fetch(socket)?;
        let mut text = Vec::new();
        match options.output {
            StatusOutput::Json => {
                append_json(&serde_json::to_string(&report)?, screen, &mut text);
                text.push(b'\n');
            }
            StatusOutput::Table if options.watch.is_some() && screen.terminal => {
                let mut picture = Vec::new();
                render(&report, options.probes, screen, &mut picture);
                append_picture(&picture, first, &mut text);
            }
            StatusOutput::Table => {
                if !first {
                    text.push(b'\n');
                }
                render(&report, options.probes, screen, &mut text);
            }
        }
        write_out(out, &text)?;
        let Some(interval) = options.watch else { return Ok(()) };
        thread::sleep(interval);
        first = false;
    }
}
