//! Ruby's uncaught exceptions (`full_message`), and exceptions as Rails and `Logger` print them.

use super::{
    rules::{MAX_MESSAGE_LINES, Step},
    text::{indented, is_carets, is_entry},
};

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(in super::super) enum State {
    /// Behind the message, or further lines of it, or the source that `error_highlight` shows.
    Head { message_lines: u8 },
    /// Behind a frame.
    Frames,
}

pub(super) fn may_start(first: u8) -> bool {
    !matches!(first, b'{' | b'"' | b' ' | b'\t')
}

pub(super) fn start(text: &[u8]) -> Option<State> {
    (is_place(text) || ends_with_class(text)).then_some(State::Head { message_lines: 0 })
}

impl State {
    pub(super) fn next(self, text: &[u8]) -> Step<Self> {
        if is_frame(text) {
            return Step::Join(Self::Frames);
        }
        match self {
            // A cause follows its effect, with a head like that of the first.
            _ if is_place(text) => {
                let head = Self::Head { message_lines: 0 };
                // Rails prints frames that begin like heads and name no class.
                Step::Join(if ends_with_class(text) { head } else { Self::Frames })
            }
            // `error_highlight` shows the source, and an exception at the top level has no frame behind it.
            Self::Head { .. } if is_carets(text) => Step::Join(Self::Frames),
            Self::Head { message_lines } if message_lines < MAX_MESSAGE_LINES && !is_entry(text) => {
                Step::Hold(Self::Head { message_lines: message_lines + 1 })
            }
            _ => Step::End,
        }
    }
}

/// `path:12:in 'method'`, with a backtick before Ruby 3.4.
fn is_place(text: &[u8]) -> bool {
    // A path with spaces is not recognised: most lines are decided by their first word.
    let Some(space) = memchr::memchr(b' ', &text[..text.len().min(1024)]) else { return false };
    let Some(numbered) = text[..space].strip_suffix(b":in") else { return false };
    let digits = numbered.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let path = numbered[..numbered.len() - digits].strip_suffix(b":");
    digits > 0 && path.is_some_and(|path| !path.is_empty()) && matches!(text.get(space + 1), Some(b'`' | b'\''))
}

/// Indented `from path:12:in 'method'`, `12: from path...` (Ruby 2.5 to 2.7), `path.rb:12:in 'method'`, or the count of
/// frames left out.
fn is_frame(text: &[u8]) -> bool {
    let Some(rest) = indented(text) else { return false };
    without_number(rest).starts_with(b"from ")
        || is_place(rest)
        || (rest.starts_with(b"... ") && rest.ends_with(b" levels..."))
}

/// `message (Some::ClassName)`, or Rails' `Some::ClassError (message):`.
fn ends_with_class(text: &[u8]) -> bool {
    let is_class = |name: &[u8]| {
        name.first().is_some_and(u8::is_ascii_uppercase)
            && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
    };
    let is_error = |name: &[u8]| is_class(name) && (name.ends_with(b"Error") || name.ends_with(b"Exception"));
    if let Some(rails) = text.strip_suffix(b"):") {
        return memchr::memmem::find(rails, b" (").is_some_and(|at| is_error(&rails[..at]));
    }
    let Some(inner) = text.strip_suffix(b")") else { return false };
    let near = &inner[inner.len().saturating_sub(128)..];
    let class = memchr::memrchr(b'(', near).map(|at| &near[at + 1..]);
    class.is_some_and(|class| if is_place(text) { is_class(class) } else { is_error(class) })
}

/// A frame without its number (`12: `), as Ruby 2.5 to 2.7 print it.
fn without_number(text: &[u8]) -> &[u8] {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match &text[digits..] {
        [b':', b' ', rest @ ..] if digits > 0 => rest,
        _ => text,
    }
}
