//! Stack traces of the Java virtual machine, as `Throwable.printStackTrace` and the loggers print them.

use super::{
    rules::{MAX_MESSAGE_LINES, Step},
    text::{indented, is_at_frame, is_entry, number_then, qualified_type},
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
}

pub(super) fn may_start(first: u8) -> bool {
    !matches!(first, b'{' | b'"' | b' ' | b'\t')
}

/// `names_exception` is what [`text::names_exception`](super::text::names_exception) says of the line.
pub(super) fn start(text: &[u8], names_exception: bool) -> Option<State> {
    if is_certain_head(text) {
        return Some(State::Head { certain: true, message_lines: 0 });
    }
    names_exception.then_some(State::Head { certain: false, message_lines: 0 })
}

fn is_certain_head(text: &[u8]) -> bool {
    text.starts_with(b"Exception in thread \"") || is_cause(text) || qualified_type(text).is_some()
}

impl State {
    pub(super) fn next(self, text: &[u8]) -> Step<Self> {
        if is_cause(text.trim_ascii_start()) {
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
            _ => Step::End,
        }
    }
}

fn is_cause(text: &[u8]) -> bool {
    match text.first() {
        Some(b'C') => text.starts_with(b"Caused by: "),
        Some(b'S') => text.starts_with(b"Suppressed: "),
        Some(b'W') => text.starts_with(b"Wrapped by: "),
        Some(b'n') => text.starts_with(b"nested exception is:"),
        _ => false,
    }
}

fn is_frame(text: &[u8]) -> bool {
    let Some(rest) = indented(text) else { return false };
    // Monitors (`- locked <0x...>`) stand between the frames of a thread dump.
    is_at_frame(text)
        || rest.starts_with(b"- ")
        || rest.starts_with(b"[CIRCULAR REFERENCE")
        || rest.strip_prefix(b"... ").is_some_and(|more| number_then(more, b" more") || number_then(more, b" common"))
}
