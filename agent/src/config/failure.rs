//! A deserializer's error, before it is a problem of a file.

use std::fmt;

use serde::de::{self, Unexpected};

use super::{report::Problem, tree::Span};

/// Where a failure is, and what to leave out to get past it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The node to leave out.
    pub(super) node: usize,
    pub(super) span: Span,
    pub(super) path: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Message(String),
    Expected { expected: String, found: String },
    MissingField(&'static str),
    UnknownField { field: String, expected: &'static [&'static str] },
    UnknownVariant { variant: String, expected: &'static [&'static str] },
}

/// A deserializer's error before it is a [`Problem`].
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) place: Option<Place>,
}

impl Failure {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, place: None }
    }

    pub(super) fn problem(&self, path: String, span: Span) -> Problem {
        let (message, help) = match &self.kind {
            Kind::Message(message) => (message.clone(), None),
            Kind::Expected { expected, found } => (format!("expected {expected}, found {found}"), None),
            Kind::MissingField(field) => (format!("the option `{field}` is missing here"), None),
            Kind::UnknownField { field, expected } => {
                (format!("unknown option `{field}`"), Some(suggest(field, expected)))
            }
            Kind::UnknownVariant { variant, expected } => {
                (format!("`{variant}` is not allowed here"), Some(suggest(variant, expected)))
            }
        };
        Problem { path, span: Some(span), message, help }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem(String::new(), 0..0).message)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Message(message.to_string()))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(Kind::Expected { expected: plain(&expected.to_string()), found: describe(unexpected) })
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Kind::MissingField(field))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownField { field: field.to_owned(), expected })
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownVariant { variant: variant.to_owned(), expected })
    }
}

/// What was probably meant, then all that is allowed.
fn suggest(typed: &str, allowed: &[&str]) -> String {
    // Hyphens, camel case and a missing plural are the usual slips; the metric puts those first.
    let normal = typed.to_lowercase().replace('-', "_");
    let best = allowed
        .iter()
        .map(|name| (strsim::jaro_winkler(&normal, name), name))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0));
    let list = allowed.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match best {
        Some((_, name)) => format!("did you mean `{name}`? Allowed here: {list}"),
        None => format!("allowed here: {list}"),
    }
}

/// What serde says of Rust's types, in words for operators.
fn plain(expected: &str) -> String {
    let whole = |range: &str| format!("a whole number {range}");
    match expected {
        "u8" => whole("from 0 to 255"),
        "u16" => whole("from 0 to 65535"),
        "u32" => whole("from 0 to 4294967295"),
        "u64" | "usize" | "a nonzero u64" | "a nonzero usize" => whole("of at least 0"),
        "i8" | "i16" | "i32" | "i64" | "isize" => whole("in range"),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a sequence" => "a list".to_owned(),
        "path string" => "a path".to_owned(),
        other if other.starts_with("struct ") || other.contains("tagged enum") => "a section of options".to_owned(),
        other => other.to_owned(),
    }
}

fn describe(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("the number `{value}`"),
        Unexpected::Signed(value) => format!("the number `{value}`"),
        Unexpected::Float(value) => format!("the number `{value}`"),
        Unexpected::Str(value) => format!("`{value}`"),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a section of options".to_owned(),
        other => other.to_string(),
    }
}
