//! `sidestep status`: streams and the ledger of each container, once or live.

use std::{io::Write, path::Path, thread, time::Duration};

use super::{
    ClientError, Connection, quiet_on_broken_pipe,
    table::render,
    terminal::{Screen, append_json},
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
    let mut connection = Connection::ask(socket, Ask::Status)?;
    loop {
        match connection.next()? {
            Frame::Status(report) => return Ok(*report),
            Frame::End {} => return Err(ClientError::Closed),
            Frame::Record(_) | Frame::Lost { .. } | Frame::Explain(_) | Frame::Governance(_) | Frame::Error { .. } => {}
        }
    }
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
                let size = terminal_size::terminal_size().map(|(width, height)| (width.0.into(), height.0.into()));
                append_frame(&report, options.probes, screen, size, first, &mut text);
            }
            StatusOutput::Table => {
                if !first {
                    text.push(b'\n');
                }
                render(&report, options.probes, screen, &mut text);
            }
        }
        out.write_all(&text).and_then(|()| out.flush()).map_err(ClientError::Output)?;
        let Some(interval) = options.watch else { return Ok(()) };
        thread::sleep(interval);
        first = false;
    }
}

/// A live picture: over the last one, without a flicker, and no larger than the screen.
fn append_frame(
    report: &StatusReport,
    probes: bool,
    screen: Screen,
    size: Option<(usize, usize)>,
    first: bool,
    out: &mut Vec<u8>,
) {
    let mut picture = Vec::new();
    render(report, probes, screen, &mut picture);
    let picture = String::from_utf8_lossy(&picture);
    let (width, height) = size.unwrap_or((usize::MAX, usize::MAX));
    let lines: Vec<&str> = picture.lines().collect();
    let shown = if lines.len() < height { lines.len() } else { height.saturating_sub(2) };
    out.extend_from_slice(if first { b"\x1b[2J\x1b[H" } else { b"\x1b[H" });
    for line in &lines[..shown] {
        out.extend_from_slice(fitting(line, width).as_bytes());
        out.extend_from_slice(b"\x1b[0m\x1b[K\n");
    }
    if shown < lines.len() {
        out.extend_from_slice(format!("... {} more lines\x1b[K", lines.len() - shown).as_bytes());
    }
    out.extend_from_slice(b"\x1b[J");
}

/// The part of a line that fits into `width` columns; sequences of ours take none.
fn fitting(line: &str, width: usize) -> &str {
    let mut columns = 0;
    let mut in_sequence = false;
    for (index, c) in line.char_indices() {
        if in_sequence {
            in_sequence = c != 'm';
        } else if c == '\x1b' {
            in_sequence = true;
        } else if columns == width {
            return &line[..index];
        } else {
            columns += 1;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::testing;

    #[test]
    fn a_live_picture_stays_on_the_screen() {
        let report = StatusReport::of(&testing::snapshot(), Vec::new(), Vec::new());
        let screen = Screen { terminal: true, color: true };
        for (width, height) in [(40, 10), (1, 1), (0, 0), (500, 500)] {
            let mut out = Vec::new();
            append_frame(&report, true, screen, Some((width, height)), false, &mut out);
            let text = String::from_utf8(out).expect("UTF-8");
            assert!(text.lines().count() <= height.max(1), "{width}x{height}: {text}");
            assert_eq!(text.contains("more lines"), height < 100);
        }
    }

    #[test]
    fn cuts_by_columns_and_not_by_bytes() {
        assert_eq!(fitting("\x1b[31mäbc\x1b[0m", 2), "\x1b[31mäb");
        assert_eq!(fitting("abc", 3), "abc");
        assert_eq!(fitting("abc", 0), "");
    }
}
