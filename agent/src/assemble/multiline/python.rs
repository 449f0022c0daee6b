//! Python's tracebacks, as the interpreter, `traceback` and `logging` print them.

use super::{
    rules::{MAX_MESSAGE_LINES, Step},
    text::{indented, is_entry},
};

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(in super::super) enum State {
    /// Behind `Exception in thread`, which a traceback follows.
    Thread,
    /// Among the frames.
    Frames,
    /// In an exception group, drawn with bars.
    Group,
    /// Behind the exception, or lines of its message.
    Exception { message_lines: u8 },
    /// Behind the sentence that leads over to the next exception.
    Chain,
}

const CHAINS: [&[u8]; 2] = [
    b"The above exception was the direct cause of the following exception:",
    b"During handling of the above exception, another exception occurred:",
];

pub(super) fn may_start(first: u8) -> bool {
    first != b'{' && first != b'"'
}

pub(super) fn start(text: &[u8]) -> Option<State> {
    if let Some(state) = traceback(text) {
        return Some(state);
    }
    // A syntax error has a place, but no traceback.
    if text.starts_with(b"  File \"") {
        return Some(State::Frames);
    }
    (text.starts_with(b"Exception in thread ") && text.ends_with(b":")).then_some(State::Thread)
}

/// The head of a traceback, which may stand behind a message on the same line.
fn traceback(text: &[u8]) -> Option<State> {
    let before = text.strip_suffix(b"Traceback (most recent call last):")?;
    Some(if before.ends_with(b"+ Exception Group ") { State::Group } else { State::Frames })
}

impl State {
    pub(super) fn next(self, text: &[u8]) -> Step<Self> {
        match self {
            Self::Thread | Self::Chain if self == Self::Chain && text.is_empty() => Step::Join(Self::Chain),
            Self::Thread | Self::Chain => traceback(text).map_or(Step::End, Step::Join),
            Self::Frames => match indented(text) {
                Some(_) => Step::Join(Self::Frames),
                None if is_exception(text) => Step::Join(Self::Exception { message_lines: 0 }),
                None => Step::End,
            },
            Self::Group => match indented(text) {
                Some([b'|' | b'+', ..]) => Step::Join(Self::Group),
                _ => Self::after_exception(text, 0),
            },
            Self::Exception { message_lines } => Self::after_exception(text, message_lines),
        }
    }

    /// A message has no end mark: its further lines are joined when the chain goes on behind them.
    fn after_exception(text: &[u8], message_lines: u8) -> Step<Self> {
        if CHAINS.contains(&text) {
            Step::Join(Self::Chain)
        } else if message_lines < MAX_MESSAGE_LINES && !is_entry_or_start(text) {
            Step::Hold(Self::Exception { message_lines: message_lines + 1 })
        } else {
            Step::End
        }
    }
}

fn is_entry_or_start(text: &[u8]) -> bool {
    // `[SQL: ...]`, which SQLAlchemy adds, begins like an entry and is none.
    (is_entry(text) && !text.starts_with(b"[SQL: ") && !text.starts_with(b"[parameters: ")) || start(text).is_some()
}

/// `Name`, `package.Name` or either with `: message`.
fn is_exception(text: &[u8]) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'<' | b'>') || byte >= 0x80;
    let length = text.iter().take_while(|&&byte| is_part(byte)).count();
    length > 0 && matches!(text.get(length), None | Some(b':'))
}
