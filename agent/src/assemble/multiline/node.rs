//! Node.js: uncaught exceptions, and errors as `console.error` and `error.stack` show them.

use super::{
    rules::{MAX_MESSAGE_LINES, Step},
    text::{indented, is_at_frame, is_carets, is_entry, names_exception},
};

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(in super::super) enum State {
    /// Behind the place that an uncaught exception begins with, or the source shown below it.
    Place { source_lines: u8 },
    /// Behind the carets under that source.
    Carets,
    /// Behind the error's name, or lines of its message.
    Head { message_lines: u8 },
    /// Behind a frame.
    Frames,
    /// Among the error's own properties, in braces.
    Properties,
    /// Behind the last line of the error, and the empty line after it.
    Blank,
    /// Behind the version that Node.js signs off with.
    Version,
}

pub(super) fn may_start(first: u8) -> bool {
    !matches!(first, b'{' | b'"' | b' ' | b'\t')
}

/// `names_exception` is what [`text::names_exception`](super::text::names_exception) says of the line.
pub(super) fn start(text: &[u8], names_exception: bool) -> Option<State> {
    if is_place(text) {
        return Some(State::Place { source_lines: 0 });
    }
    names_exception.then_some(State::Head { message_lines: 0 })
}

/// `/app/server.js:12`, `file:///app/server.mjs:12`, `node:internal/process/promises:389`, `C:\app\server.js:12`.
fn is_place(text: &[u8]) -> bool {
    let rooted = text.starts_with(b"/") || text.starts_with(b"file:///") || text.starts_with(b"node:");
    let digits = text.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let numbered = digits > 0 && text[..text.len() - digits].ends_with(b":");
    numbered && (rooted || matches!(text, [letter, b':', b'\\', ..] if letter.is_ascii_alphabetic()))
}

impl State {
    pub(super) fn next(self, text: &[u8]) -> Step<Self> {
        match self {
            Self::Place { .. } if is_carets(text) => Step::Join(Self::Carets),
            Self::Place { source_lines } if source_lines < 4 => {
                Step::Hold(Self::Place { source_lines: source_lines + 1 })
            }
            Self::Carets if text.is_empty() => Step::Join(Self::Carets),
            Self::Carets if !is_entry(text) => Step::Join(Self::Head { message_lines: 0 }),
            Self::Head { .. } | Self::Frames if is_frame(text) => {
                Step::Join(if text.ends_with(b" {") { Self::Properties } else { Self::Frames })
            }
            Self::Head { .. } if text.starts_with(b"Node.js v") => Step::Join(Self::Version),
            Self::Head { message_lines }
                if message_lines < MAX_MESSAGE_LINES && !is_entry(text) && !names_exception(text) =>
            {
                Step::Hold(Self::Head { message_lines: message_lines + 1 })
            }
            Self::Frames if is_cause(text) => Step::Join(Self::Head { message_lines: 0 }),
            Self::Properties if indented(text).is_some() => Step::Join(Self::Properties),
            // Empty lines stay in the values of properties; what follows the last brace is told by the next line.
            Self::Properties if text.starts_with(b"}") => Step::Join(Self::Frames),
            Self::Frames | Self::Properties if text.is_empty() => Step::Hold(Self::Blank),
            Self::Blank if text.starts_with(b"Node.js v") => Step::Join(Self::Version),
            _ => Step::End,
        }
    }
}

fn is_frame(text: &[u8]) -> bool {
    is_at_frame(text)
        || indented(text)
            .is_some_and(|rest| rest.starts_with(b"... ") && memchr::memmem::find(rest, b" lines matching ").is_some())
}

fn is_cause(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    text.starts_with(b"Caused by: ") || text.starts_with(b"caused by: ")
}
