//! .NET: `Exception.ToString`, unhandled exceptions, and the entries of the console logger, which span lines always.

use super::{
    rules::{MAX_MESSAGE_LINES, Step},
    text::{indented, is_at_frame, is_entry, qualified_type},
};

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(in super::super) enum State {
    /// Behind the name of an exception, or lines of its message.
    Head {
        /// Whether the head can be nothing else, so that its message may go on over several lines.
        certain: bool,
        message_lines: u8,
    },
    /// Behind a frame.
    Frames,
    /// Behind an empty line that may stand between two inner exceptions.
    Blank,
    /// In an entry of the console logger.
    Entry,
}

pub(super) fn may_start(first: u8) -> bool {
    !matches!(first, b'{' | b'"' | b' ' | b'\t')
}

/// `names_exception` is what [`text::names_exception`](super::text::names_exception) says of the line.
pub(super) fn start(text: &[u8], names_exception: bool) -> Option<State> {
    if is_logger_head(text) {
        return Some(State::Entry);
    }
    if is_certain_head(text) {
        return Some(State::Head { certain: true, message_lines: 0 });
    }
    names_exception.then_some(State::Head { certain: false, message_lines: 0 })
}

fn is_certain_head(text: &[u8]) -> bool {
    text.starts_with(b"Unhandled exception. ")
        || text.starts_with(b"Unhandled Exception: ")
        || qualified_type(text).is_some_and(|length| text[..length].ends_with(b"Exception"))
}

/// `fail: Category[3]`, whose message follows with six spaces before each line.
fn is_logger_head(text: &[u8]) -> bool {
    let levels = [&b"trce: "[..], b"dbug: ", b"info: ", b"warn: ", b"fail: ", b"crit: "];
    text.ends_with(b"]") && levels.iter().any(|level| text.starts_with(level))
}

impl State {
    pub(super) fn next(self, text: &[u8]) -> Step<Self> {
        if self == Self::Entry {
            return if text.starts_with(b"      ") { Step::Join(self) } else { Step::End };
        }
        if text.trim_ascii_start().starts_with(b"---> ") {
            return Step::Join(Self::Head { certain: true, message_lines: 0 });
        }
        if is_frame(text) {
            return Step::Join(Self::Frames);
        }
        match self {
            Self::Head { certain: true, message_lines }
                if message_lines < MAX_MESSAGE_LINES && !is_entry(text) && !is_certain_head(text) =>
            {
                Step::Hold(Self::Head { certain: true, message_lines: message_lines + 1 })
            }
            Self::Frames if text.is_empty() => Step::Hold(Self::Blank),
            _ => Step::End,
        }
    }
}

fn is_frame(text: &[u8]) -> bool {
    is_at_frame(text)
        || text.starts_with(b"--- End of stack trace from previous location")
        || indented(text).is_some_and(|rest| rest.starts_with(b"--- End of "))
        || text.ends_with(b"<---")
}
