//! What is wrong with a configuration: every problem with its place, printed the way compilers do.

use std::{fmt, fmt::Write as _, io, path::PathBuf, sync::LazyLock};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use regex::Regex;

use super::{load::display_name, tree::Span};

/// More than a person reads at once; it also bounds the work on a file that is wrong from end to end.
pub(super) const MAX_PROBLEMS: usize = 50;

/// One thing to put right.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The option, such as `capture.ring_size` or `sinks[1].name`; empty when the file as a whole is meant.
    pub path: String,
    /// Bytes of the file that are meant; `None` when nothing in the file can be pointed at.
    pub span: Option<Span>,
    /// What is wrong.
    pub message: String,
    /// What is allowed, or what was probably meant.
    pub help: Option<String>,
}

/// All problems of one file, at least one, in the order of the file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// The file, or `<stdin>`.
    pub file: String,
    /// Its text.
    pub text: String,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}", display_name(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("the configuration {} is larger than {limit} bytes; is this the right file?", display_name(path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes that are read at most.
        limit: u64,
    },
    /// The file is not text.
    #[error("the configuration {}:{line}:{column}: not UTF-8 text: byte 0x{byte:02x}", display_name(path))]
    NotText {
        /// The file.
        path: PathBuf,
        /// Line of the first bad byte, from 1.
        line: usize,
        /// Column of the first bad byte in bytes, from 1.
        column: usize,
        /// The byte.
        byte: u8,
    },
    /// The file was read, and is wrong.
    #[error("{0}")]
    Invalid(Box<Report>),
}

impl ConfigError {
    /// For a person at a terminal: with the lines of the file, and colours if wanted.
    #[must_use]
    pub fn render(&self, colors: bool) -> String {
        match self {
            Self::Invalid(report) => report.render(colors),
            other => renderer(colors).render(&[Group::with_title(Level::ERROR.primary_title(other.to_string()))]),
        }
    }
}

/// A warning for a person at a terminal.
#[must_use]
pub fn render_warning(text: &str, colors: bool) -> String {
    renderer(colors).render(&[Group::with_title(Level::WARNING.primary_title(text))])
}

impl Report {
    /// Line and column, from 1, columns in characters; of the file's first byte for what has no place.
    #[must_use]
    pub fn position(&self, problem: &Problem) -> (usize, usize) {
        let start = problem.span.as_ref().map_or(0, |span| span.start).min(self.text.len());
        let before = self.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.bytes().filter(|byte| *byte == b'\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    fn render(&self, colors: bool) -> String {
        let renderer = renderer(colors);
        let text = without_secrets(&self.text);
        let mut output = String::new();
        for problem in &self.problems {
            let mut group = Level::ERROR.primary_title(problem.message.as_str()).element(
                Snippet::source(text.as_str())
                    .path(self.file.as_str())
                    .annotation(AnnotationKind::Primary.span(problem.span.clone().unwrap_or(0..0))),
            );
            if !problem.path.is_empty() && !problem.message.contains(&format!("`{}`", problem.path)) {
                group = group.element(Level::NOTE.message(format!("option `{}`", problem.path)));
            }
            if let Some(help) = &problem.help {
                group = group.element(Level::HELP.message(help.as_str()));
            }
            let _ = writeln!(output, "{}\n", renderer.render(&[group]));
        }
        let count = self.problems.len();
        let plural = if count == 1 { "" } else { "s" };
        let more = if count < MAX_PROBLEMS { "" } else { ", perhaps more" };
        let summary = format!("{}: {count} problem{plural}{more}", self.file);
        let _ = write!(output, "{}", renderer.render(&[Group::with_title(Level::ERROR.primary_title(summary))]));
        output
    }
}

/// One line for each problem, as logs and editors take it: `file:line:column: option: message; help`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let (line, column) = self.position(problem);
            if index > 0 {
                f.write_char('\n')?;
            }
            write!(f, "{}:{line}:{column}: ", self.file)?;
            if !problem.path.is_empty() {
                write!(f, "{}: ", problem.path)?;
            }
            f.write_str(&problem.message)?;
            if let Some(help) = &problem.help {
                write!(f, "; {help}")?;
            }
        }
        Ok(())
    }
}

/// The text with a star for each byte of what may be a secret: what is shown may come into a journal. Secrets have files of
/// their own, but this is for who did not know that.
fn without_secrets(text: &str) -> String {
    static SECRETS: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let keys =
            r#"(?i)(?:password|passwd|passphrase|secret|token|api_?key|authorization)["']?\s*:[ \t]*([^\n,}\]]+)"#;
        Regex::new(&format!(r"{keys}|://([^\s/@]+)@")).ok()
    });
    let mut bytes = text.as_bytes().to_vec();
    for found in SECRETS.iter().flat_map(|secrets| secrets.captures_iter(text)) {
        if let Some(secret) = found.get(1).or_else(|| found.get(2)) {
            bytes[secret.range()].fill(b'*');
        }
    }
    // Whole characters were replaced.
    String::from_utf8(bytes).unwrap_or_default()
}

fn renderer(colors: bool) -> Renderer {
    if colors { Renderer::styled() } else { Renderer::plain() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        for (text, shown) in [
            ("password: hunter2\nname: x", "password: *******\nname: x"),
            ("sasl: {password: hunter2, username: x}", "sasl: {password: *******, username: x}"),
            ("headers: {Authorization: \"Bearer é\"}", "headers: {Authorization: ***********}"),
            ("url: https://u:hunter2@c/x", "url: https://*********@c/x"),
            ("password_file: /etc/p", "password_file: /etc/p"),
            ("urls: [https://c:9200/a@b]", "urls: [https://c:9200/a@b]"),
        ] {
            assert_eq!(without_secrets(text), shown);
        }
    }
}
