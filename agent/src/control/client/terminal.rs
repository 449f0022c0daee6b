//! What may reach a terminal: colours of ours, and of what a Pod wrote only what cannot steer the terminal.

use std::{
    fmt::Write as _,
    io::{IsTerminal, Write},
};

use crate::telemetry::series::is_formatting;

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What the output goes to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Screen {
    /// Whether it is a terminal.
    pub terminal: bool,
    /// Whether to use colours.
    pub color: bool,
}

impl Screen {
    /// The process' standard output.
    #[must_use]
    pub fn stdout(color: Color) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let color = match color {
            Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            Color::Always => true,
            Color::Never => false,
        };
        Self { terminal, color }
    }

    /// Writes `text` in a colour or style, given as the number in an SGR sequence, when colours are in use.
    pub(crate) fn paint(self, out: &mut Vec<u8>, style: &str, text: &str) {
        // Writing to memory cannot fail.
        let _ = if self.color { write!(out, "\x1b[{style}m{text}\x1b[0m") } else { write!(out, "{text}") };
    }
}

/// Appends bytes of a Pod so that no byte steers the terminal: control and formatting characters and invalid UTF-8 come
/// out as `\x1b`, `\u{202e}`, `\xff`. Tabs and newlines stay.
pub fn append_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    let mut escaped = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            // Writing to memory cannot fail.
            let _ = match c {
                '\t' | '\n' => escaped.write_char(c),
                '\0'..='\x7f' if c.is_control() => write!(escaped, "\\x{:02x}", u32::from(c)),
                c if c.is_control() || is_formatting(c) => write!(escaped, "{}", c.escape_unicode()),
                c => escaped.write_char(c),
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(escaped, "\\x{byte:02x}");
        }
    }
    out.extend_from_slice(escaped.as_bytes());
}

/// One line of a table or a notice: like [`append_escaped`], but with nothing that leaves the line or its column.
#[must_use]
pub fn escaped_word(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    append_escaped(text.as_bytes(), &mut out);
    String::from_utf8(out).unwrap_or_default().replace('\n', "\\n").replace('\t', "\\t")
}

/// Appends JSON. Its encoder escapes what JSON demands; on a terminal the further control characters that JSON allows
/// in strings, and nowhere else, are escaped as well.
pub fn append_json(json: &str, screen: Screen, out: &mut Vec<u8>) {
    let dangerous = |c: char| c.is_control() || is_formatting(c);
    if !screen.terminal || !json.contains(dangerous) {
        out.extend_from_slice(json.as_bytes());
        return;
    }
    for c in json.chars() {
        if dangerous(c) {
            // All of these are in the basic plane, so one escape is enough. Writing to memory cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

/// A live picture: over the last one unless it is the `first`, without a flicker, and no larger than the screen.
pub(super) fn append_picture(picture: &[u8], first: bool, out: &mut Vec<u8>) {
    let size = terminal_size::terminal_size().map(|(width, height)| (width.0.into(), height.0.into()));
    append_picture_of(picture, size, first, out);
}

fn append_picture_of(picture: &[u8], size: Option<(usize, usize)>, first: bool, out: &mut Vec<u8>) {
    let picture = String::from_utf8_lossy(picture);
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

    #[test]
    fn a_live_picture_stays_on_the_screen() {
        let picture = "\x1b[31ma line that is long\x1b[0m\n".repeat(60);
        for (width, height) in [(40, 10), (1, 1), (0, 0), (500, 500)] {
            let mut out = Vec::new();
            append_picture_of(picture.as_bytes(), Some((width, height)), false, &mut out);
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

    #[test]
    fn nothing_of_a_pod_steers_the_terminal() {
        let mut out = Vec::new();
        append_escaped(b"a\tb\x1b[2J\x07\x7f\xc2\x9b31m \xff\xe2\x80\xae\r\nc\0 \xc3\xa4", &mut out);
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(text, "a\tb\\x1b[2J\\x07\\x7f\\u{9b}31m \\xff\\u{202e}\\x0d\nc\\x00 ä");
        assert_eq!(escaped_word("web\n\x1b[31m\tx"), "web\\n\\x1b[31m\\tx");
    }

    #[test]
    fn json_on_a_terminal_is_still_the_same_json() {
        let json = "{\"body\":\"\u{9b}31m \u{7f}\u{202e} ä\"}";
        let terminal = Screen { terminal: true, color: false };
        let mut out = Vec::new();
        append_json(json, terminal, &mut out);
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(text, "{\"body\":\"\\u009b31m \\u007f\\u202e ä\"}");
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(parse(&text), parse(json));
        let mut out = Vec::new();
        append_json(json, Screen::default(), &mut out);
        assert_eq!(out, json.as_bytes());
    }
}
