//! What the Go runtime prints when a program dies, and what `net/http` logs of a handler that panics.

use super::{
    rules::{MAX_MESSAGE_LINES, Step},
    text::{is_entry, number_then},
};

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(in super::super) enum State {
    /// Behind the reason, or further lines of it.
    Head { message_lines: u8 },
    /// Behind the empty line before a goroutine.
    Blank,
    /// Among the frames of a goroutine.
    Frames,
}

/// Lengths of the dates that `log` puts before a line: to the second, and to the microsecond.
const DATE_LENGTHS: [usize; 2] = ["2006/01/02 15:04:05 ".len(), "2006/01/02 15:04:05.000000 ".len()];

pub(super) fn may_start(first: u8) -> bool {
    matches!(first, b'p' | b'f' | b'g' | b'u' | b'r' | b'S' | b'h') || first.is_ascii_digit()
}

pub(super) fn start(text: &[u8]) -> Option<State> {
    if is_goroutine(text) {
        return Some(State::Frames);
    }
    let dated = || DATE_LENGTHS.iter().filter_map(|&length| text.get(length..)).any(is_reason);
    let reason = is_reason(text) || (text.get(4) == Some(&b'/') && dated());
    reason.then_some(State::Head { message_lines: 0 })
}

fn is_reason(text: &[u8]) -> bool {
    const REASONS: [&str; 8] = [
        "panic: ",
        "fatal error: ",
        "http: panic serving ",
        "http2: panic serving ",
        "unexpected fault address ",
        "runtime: goroutine stack exceeds ",
        "SIGQUIT: ",
        "SIGABRT: ",
    ];
    REASONS.iter().any(|reason| text.starts_with(reason.as_bytes()))
}

fn is_goroutine(text: &[u8]) -> bool {
    text.strip_prefix(b"goroutine ").is_some_and(|rest| number_then(rest, b" ") && rest.ends_with(b":"))
}

impl State {
    pub(super) fn next(self, text: &[u8]) -> Step<Self> {
        if is_goroutine(text) || text == b"runtime stack:" {
            return Step::Join(Self::Frames);
        }
        match self {
            Self::Blank if is_register(text) => Step::Join(Self::Frames),
            Self::Blank => Step::End,
            Self::Frames if text.is_empty() => Step::Hold(Self::Blank),
            Self::Frames if is_frame(text) || is_register(text) => Step::Join(Self::Frames),
            Self::Frames => Step::End,
            Self::Head { message_lines } if text.is_empty() || text.first() == Some(&b'\t') => {
                // A panic value of several lines is indented, but nothing says that it ends.
                Step::Hold(Self::Head { message_lines })
            }
            Self::Head { .. } if is_reason(text) || text.starts_with(b"[signal ") => {
                Step::Join(Self::Head { message_lines: 0 })
            }
            Self::Head { message_lines } if message_lines < MAX_MESSAGE_LINES && !is_entry(text) => {
                Step::Hold(Self::Head { message_lines: message_lines + 1 })
            }
            Self::Head { .. } => Step::End,
        }
    }
}

/// A place (`\t/src/main.go:4 +0x1d`), a function with its arguments, or where the goroutine was created.
fn is_frame(text: &[u8]) -> bool {
    let arguments = memchr::memchr(b'(', text);
    let is_call = |at: usize| at > 0 && text.ends_with(b")") && !text[..at].contains(&b' ');
    text.first() == Some(&b'\t')
        || arguments.is_some_and(is_call)
        || text.starts_with(b"created by ")
        || text.starts_with(b"...additional frames elided...")
        || text.starts_with(b"[originating from ")
}

/// A register with its value, as printed at the end: `rip    0x4a1a74`.
fn is_register(text: &[u8]) -> bool {
    let name = text.iter().take(7).take_while(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()).count();
    (2..=6).contains(&name) && text[name..].starts_with(b" ") && text[name..].trim_ascii_start().starts_with(b"0x")
}
