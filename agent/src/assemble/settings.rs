//! How streams are cut into lines: as typed in the configuration, and as compiled for use.

use std::{sync::Arc, time::Duration};

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    multiline::{Language, Limits, Rules},
    parse::Parser,
};
use crate::{
    config::units::{self, byte_size},
    record::Line,
};

/// How the bytes of a stream become lines.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A longer line is cut, at a character boundary where there is one, and comes out as several marked lines.
    /// At least 64 B, at most 1 GiB.
    #[serde(with = "units::size")]
    pub max_line_bytes: ByteSize,
    /// How long a last line without a newline is held back once nothing more is written.
    #[serde(with = "units::duration")]
    pub idle_flush: Duration,
    /// Which lines are joined into one record; none by default.
    pub multiline: Multiline,
    /// Whether bodies are parsed; not by default.
    pub parse: Parse,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_line_bytes: ByteSize::mib(1),
            idle_flush: Duration::from_secs(5),
            multiline: Multiline::default(),
            parse: Parse::default(),
        }
    }
}

/// Which lines are joined into one record. Off when `rules` and `patterns` are both empty.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Multiline {
    /// Built-in rules for stack traces, tried in this order.
    pub rules: Vec<Language>,
    /// Own rules, tried after the built-in ones, in this order.
    pub patterns: Vec<Pattern>,
    /// A record of more lines is cut and marked. At least 2.
    pub max_lines: usize,
    /// A record of more bytes is cut and marked. At least 1 KiB, at most 1 GiB.
    #[serde(with = "units::size")]
    pub max_bytes: ByteSize,
    /// How long a record is held back for a further line.
    #[serde(with = "units::duration")]
    pub flush_after: Duration,
    /// Whether anybody may have declared the patterns: they are searched for with the engine that was checked.
    #[serde(skip)]
    pub is_declared: bool,
}

impl Default for Multiline {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            patterns: Vec::new(),
            max_lines: 1000,
            max_bytes: ByteSize::kib(256),
            flush_after: Duration::from_secs(1),
            is_declared: false,
        }
    }
}

/// A rule of one's own, by regular expressions (syntax of the crate `regex`, on bytes) that are searched for in each
/// line without its line end.
///
/// - `start` alone: a line that matches begins a record, and all lines up to the next such line belong to it.
/// - `continuation` alone: a line that matches belongs to the record before it.
/// - both: a record begins at a match of `start` and goes on while `continuation` matches; other lines stand alone.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// Matches the first line of a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Matches the further lines of a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuation: Option<String>,
}

impl Pattern {
    /// Whether it has only one of its expressions. One with none is wrong in another way.
    pub(super) const fn takes_every_line(&self) -> bool {
        self.start.is_some() != self.continuation.is_some()
    }
}

/// Whether and how bodies are parsed into attributes, severity and time. The body stays as it was written.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Parse {
    /// What the bodies are.
    pub format: Format,
    /// Keys that hold the severity; the first one with a known value counts. `a.b` also finds `b` inside of `a`.
    pub severity_keys: Vec<String>,
    /// Keys that hold the time (RFC 3339, or seconds, milliseconds, microseconds or nanoseconds since the Unix epoch,
    /// told apart by their magnitude); the first one with a valid value counts.
    pub time_keys: Vec<String>,
}

impl Default for Parse {
    fn default() -> Self {
        let keys = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Self {
            format: Format::None,
            severity_keys: keys(&[
                "level",
                "severity",
                "lvl",
                "log.level",
                "loglevel",
                "severity_text",
                "levelname",
                "@level",
                "Level",
                "LogLevel",
            ]),
            time_keys: keys(&["time", "ts", "timestamp", "@timestamp", "Timestamp", "@t"]),
        }
    }
}

/// What the bodies of a stream are.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text; nothing is parsed.
    #[default]
    None,
    /// JSON objects or logfmt, told apart by the first byte. A line counts as logfmt only when all of it is
    /// `key=value`, at least twice, so that prose is left alone.
    Auto,
    /// A JSON object a line.
    Json,
    /// `key=value` pairs, values quoted where needed; words without a value are `true`.
    Logfmt,
}

/// What is wrong with [`Settings`].
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A figure is outside of what makes sense.
    #[error("{option}: `{value}` is not between `{least}` and `{most}`")]
    OutOfRange {
        /// The option's path below the settings.
        option: &'static str,
        /// As configured.
        value: String,
        /// The least allowed value.
        least: String,
        /// The greatest allowed value.
        most: String,
    },
    /// A regular expression does not compile.
    #[error("multiline.patterns[{index}].{field}: {source}")]
    Pattern {
        /// Which pattern, from 0.
        index: usize,
        /// `start` or `continuation`.
        field: &'static str,
        /// The cause.
        source: Box<regex::Error>,
    },
    /// A pattern has neither of its expressions.
    #[error("multiline.patterns[{index}]: needs `start`, `continuation` or both")]
    EmptyPattern {
        /// Which pattern, from 0.
        index: usize,
    },
    /// A pattern with one expression decides about every line, so no other rule can stand beside it.
    #[error(
        "multiline.patterns[{index}]: with only one of `start` and `continuation` it takes every line, and must be the \
         only rule; give both, or remove the others"
    )]
    NotAlone {
        /// Which pattern, from 0.
        index: usize,
    },
    /// A key is empty.
    #[error("{option}: a key is empty")]
    EmptyKey {
        /// The option's path below the settings.
        option: &'static str,
    },
}

impl SettingsError {
    /// The error on one line: of a regular expression's, which quotes it and marks a place, only the last line.
    #[must_use]
    pub fn on_one_line(&self) -> String {
        if let Self::Pattern { index, field, source } = self {
            let text = source.to_string();
            let reason = text.lines().last().unwrap_or_default();
            let reason = reason.strip_prefix("error: ").unwrap_or(reason);
            return format!("multiline.patterns[{index}].{field}: not a regular expression: {reason}");
        }
        self.to_string()
    }
}

/// [`Settings`] that were checked, ready for use by any number of streams.
#[derive(Debug)]
pub struct Compiled {
    pub(super) max_line_bytes: usize,
    pub(super) idle_flush_nanos: u64,
    pub(super) multiline: Option<Arc<Rules>>,
    /// Tells the rules from others, also those of another agent.
    pub(super) rules_digest: u32,
    pub(super) parser: Option<Parser>,
}

impl Compiled {
    /// Adds to a line what its body says, where bodies are parsed.
    pub fn parse(&self, body: &[u8], line: &mut Line) {
        if let Some(parser) = &self.parser {
            parser.parse(body, line);
        }
    }
}

impl Settings {
    /// Checks the settings and compiles them.
    ///
    /// # Errors
    /// Every option that does not hold, by its path.
    pub fn compile(&self) -> Result<Arc<Compiled>, Vec<SettingsError>> {
        let Self { max_line_bytes, idle_flush, multiline, parse } = self;
        let mut errors = Vec::new();
        let longest = Duration::from_secs(24 * 60 * 60);
        let shortest = Duration::from_millis(1);
        let duration = |duration| humantime::format_duration(duration).to_string();
        let bytes = |size: ByteSize| byte_size::format(size.as_u64());
        let most_bytes = ByteSize::gib(1);
        errors.extend(out_of_range("max_line_bytes", *max_line_bytes, ByteSize::b(64), most_bytes, bytes));
        errors.extend(out_of_range("idle_flush", *idle_flush, shortest, longest, duration));
        errors.extend(out_of_range("multiline.max_bytes", multiline.max_bytes, ByteSize::kib(1), most_bytes, bytes));
        let count = |count: usize| count.to_string();
        errors.extend(out_of_range("multiline.max_lines", multiline.max_lines, 2, 1_000_000, count));
        errors.extend(out_of_range("multiline.flush_after", multiline.flush_after, shortest, longest, duration));
        for (option, keys) in [("parse.severity_keys", &parse.severity_keys), ("parse.time_keys", &parse.time_keys)] {
            if keys.iter().any(String::is_empty) {
                errors.push(SettingsError::EmptyKey { option });
            }
        }
        let limits = Limits {
            lines: multiline.max_lines,
            bytes: multiline.max_bytes.as_u64(),
            flush_nanos: nanos(multiline.flush_after),
        };
        let rules = Rules::compile(multiline, limits).unwrap_or_else(|wrong| {
            errors.extend(wrong);
            None
        });
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Arc::new(Compiled {
            // The range above fits any usize that a BPF machine has.
            max_line_bytes: usize::try_from(max_line_bytes.as_u64()).unwrap_or(usize::MAX),
            idle_flush_nanos: nanos(*idle_flush),
            multiline: rules.map(Arc::new),
            rules_digest: serde_json::to_vec(multiline).map_or(0, |text| crc32fast::hash(&text)),
            parser: Parser::new(parse),
        }))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn out_of_range<T: PartialOrd>(
    option: &'static str,
    value: T,
    least: T,
    most: T,
    shown: impl Fn(T) -> String,
) -> Option<SettingsError> {
    let is_outside = value < least || value > most;
    is_outside.then(|| {
        let [value, least, most] = [value, least, most].map(shown);
        SettingsError::OutOfRange { option, value, least, most }
    })
}
