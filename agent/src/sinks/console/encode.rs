//! A record as a line for people. Nothing that a Pod writes reaches the terminal as a command.

use std::{fmt::Write as _, sync::Arc};

use crate::{
    record::{Batch, Class, IoStream, Line, LineFlags, Origin, Severity, Stream},
    sinks::timestamp::Rfc3339,
};

const DIM: &str = "\x1b[2m";
const CYAN: &str = "\x1b[36m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// Writes records as lines for people: time, namespace/Pod/container, stream, severity, body.
#[derive(Debug, Default)]
pub struct TextEncoder {
    color: bool,
    raw: bool,
    time: Rfc3339,
    time_text: Vec<u8>,
}

impl TextEncoder {
    /// With colours or without, and with control characters in bodies kept (`raw`) or escaped.
    #[must_use]
    pub fn new(color: bool, raw: bool) -> Self {
        Self { color, raw, ..Self::default() }
    }

    /// Appends every line of a batch, each ended by a newline.
    pub fn append_batch(&mut self, batch: &Batch, out: &mut Vec<u8>) {
        let source = self.source(&batch.stream);
        for line in &batch.lines {
            self.append_time(line, out);
            out.extend_from_slice(source.as_bytes());
            self.append_severity(line, out);
            let body = batch.body(line);
            if self.raw {
                out.extend_from_slice(body);
            } else {
                append_printable(body, out);
            }
            if line.flags.contains(LineFlags::CUT) {
                self.append_painted(DIM, " [cut]", out);
            }
            out.push(b'\n');
        }
    }

    fn append_time(&mut self, line: &Line, out: &mut Vec<u8>) {
        self.time_text.clear();
        self.time.append(line.time_unix_nano, &mut self.time_text);
        // Milliseconds are what people read; the zone is UTC.
        self.time_text.truncate("2026-11-21T05:00:00.000".len());
        self.time_text.push(b'Z');
        if self.color {
            out.extend_from_slice(DIM.as_bytes());
        }
        out.extend_from_slice(&self.time_text);
        if self.color {
            out.extend_from_slice(RESET.as_bytes());
        }
        out.push(b' ');
    }

    /// Who wrote and where to: the same for all lines of a batch.
    fn source(&self, stream: &Stream) -> String {
        let resource = &stream.resource;
        let mut who = String::new();
        let parts = [&resource.namespace, &resource.pod, &resource.container_name];
        for part in parts.into_iter().flatten() {
            if !who.is_empty() {
                who.push('/');
            }
            who.push_str(part);
        }
        if who.is_empty() {
            let other = match stream.class {
                Class::Server | Class::Governance => resource.host_name.as_ref(),
                Class::Pod | Class::Business => resource.container_id.as_ref().or(resource.cgroup.as_ref()),
            };
            who = other.map_or_else(|| "-".to_owned(), Arc::<str>::to_string);
        }
        let (color, place) = match &stream.origin {
            Origin::Stdio(iostream @ IoStream::Stdout) => (GREEN, iostream.as_str()),
            Origin::Stdio(iostream @ IoStream::Stderr) => (YELLOW, iostream.as_str()),
            Origin::File { path } => (DIM, &**path),
            Origin::Refusals => (RED, "refused"),
        };
        let mut out = Vec::new();
        let mut printable = Vec::new();
        append_printable(who.as_bytes(), &mut printable);
        self.append_painted(CYAN, &String::from_utf8_lossy(&printable), &mut out);
        out.push(b' ');
        printable.clear();
        append_printable(place.as_bytes(), &mut printable);
        self.append_painted(color, &String::from_utf8_lossy(&printable), &mut out);
        out.push(b' ');
        String::from_utf8_lossy(&out).into_owned()
    }

    fn append_severity(&self, line: &Line, out: &mut Vec<u8>) {
        let Some(severity) = line.severity else { return };
        let color = match severity {
            Severity::Trace | Severity::Debug => DIM,
            Severity::Info => GREEN,
            Severity::Warn => YELLOW,
            Severity::Error | Severity::Fatal => RED,
        };
        self.append_painted(color, severity.as_str(), out);
        out.push(b' ');
    }

    fn append_painted(&self, color: &str, text: &str, out: &mut Vec<u8>) {
        if self.color {
            out.extend_from_slice(color.as_bytes());
        }
        out.extend_from_slice(text.as_bytes());
        if self.color {
            out.extend_from_slice(RESET.as_bytes());
        }
    }
}

/// Appends text in which nothing commands a terminal: control characters as `\n`, `\x1b` or `\u{9b}`, bytes that
/// are not UTF-8 as `\xff`. A tab stays.
pub(super) fn append_printable(bytes: &[u8], out: &mut Vec<u8>) {
    let plain = |byte: &u8| (0x20..0x7f).contains(byte) || *byte == b'\t';
    if bytes.iter().all(plain) {
        out.extend_from_slice(bytes);
        return;
    }
    let mut text = String::with_capacity(bytes.len() * 2);
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            append_character(character, &mut text);
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    out.extend_from_slice(text.as_bytes());
}

fn append_character(character: char, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = match character {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\t"),
        '\0'..='\x1f' | '\x7f' => write!(out, "\\x{:02x}", u32::from(character)),
        character if is_hidden_command(character) => write!(out, "\\u{{{:x}}}", u32::from(character)),
        character => out.write_char(character),
    };
}

/// Control characters beyond ASCII (U+009B starts a command as ESC [ does), and those that turn the order of what
/// is shown or break lines.
fn is_hidden_command(character: char) -> bool {
    matches!(character,
        '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Escapes in JSON what JSON allows but a terminal obeys.
pub(super) fn append_json_for_terminal(json: &[u8], out: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(json);
    let mut rest = &*text;
    while let Some(at) = rest.find(|character| character == '\x7f' || is_hidden_command(character)) {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let mut characters = rest[at..].chars();
        if let Some(character) = characters.next() {
            // All of them are in the basic plane, so that four digits are enough.
            out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
        }
        rest = characters.as_str();
    }
    out.extend_from_slice(rest.as_bytes());
}
