//! The name of a record's index.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    record::{Class, Stream},
    sinks::{
        template::{Part, Rules, STREAM_FIELDS, StreamField, UNKNOWN, label, labels},
        timestamp::Utc,
    },
};

/// The name of an index with placeholders: `{class}`, `{namespace}`, `{pod}`, `{container}`, `{node}`,
/// `{workload}`, `{label:KEY}` for a label of the Pod, and `{date}`, the day (UTC) on which the kernel saw the line. Not the day that a line says itself: a Pod could make an index for each
/// day of a thousand years.
///
/// What a Pod chose (its names) can't lead out of the template: letters become lower case, and a character that indices
/// may not have becomes `_`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct IndexTemplate {
    text: String,
    parts: Vec<Part<Field>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Field {
    Stream(StreamField),
    Date,
}

const RULES: Rules<'_, Field> = Rules {
    what: "an index",
    fields: &FIELDS,
    is_allowed,
    allowed: "lower-case letters, digits, `.`, `_`, `-` and `+`",
};

const FIELDS: [(&str, Field); 7] = {
    let mut fields = [("date", Field::Date); 7];
    let mut index = 0;
    while index < STREAM_FIELDS.len() {
        fields[index] = (STREAM_FIELDS[index].0, Field::Stream(STREAM_FIELDS[index].1));
        index += 1;
    }
    fields
};

/// The most bytes of an index's name (`MetadataCreateIndexService.MAX_INDEX_NAME_BYTES`).
const MAX_BYTES: usize = 255;
/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// The day of a time, counted from 1970 in UTC.
pub(super) const fn day(unix_nano: u64) -> u64 {
    unix_nano / (DAY * crate::sinks::timestamp::NANOS_PER_SECOND)
}

impl IndexTemplate {
    /// The index for the records of `stream` on this day: always a name that the server takes.
    pub(super) fn index(&self, stream: &Stream, day: u64) -> String {
        let mut index = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => index.push_str(text),
                Part::Field(Field::Stream(field)) => index.extend(field.of(stream).chars().map(allowed)),
                Part::Label(key) => index.extend(label(stream, key).chars().map(allowed)),
                Part::Field(Field::Date) => {
                    let date = Utc::from_unix_nano(day * DAY * crate::sinks::timestamp::NANOS_PER_SECOND);
                    index.push_str(&format!("{:04}.{:02}.{:02}", date.year, date.month, date.day));
                }
            }
        }
        index.truncate(MAX_BYTES);
        // With a dot begin the indices that the server keeps for itself; the others are not taken.
        let start = index.trim_start_matches(['-', '_', '+', '.']);
        if start.is_empty() { UNKNOWN.to_owned() } else { start.to_owned() }
    }

    /// Patterns that match every index of these classes, and as little else as can be.
    pub(super) fn patterns(&self, classes: &[Class]) -> Vec<String> {
        let mut patterns: Vec<_> = classes.iter().map(|class| self.pattern(*class)).collect();
        patterns.dedup();
        patterns
    }

    fn pattern(&self, class: Class) -> String {
        let mut pattern = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => pattern.push_str(text),
                Part::Field(Field::Stream(StreamField::Class)) => pattern.push_str(class.as_str()),
                Part::Field(_) | Part::Label(_) if pattern.ends_with('*') => {}
                Part::Field(_) | Part::Label(_) => pattern.push('*'),
            }
        }
        pattern
    }

    /// Labels of Pods that it is made of.
    pub(in crate::sinks) fn labels(&self) -> impl Iterator<Item = &str> {
        labels(&self.parts)
    }

    /// Whether it is made of what the API server tells of a Pod.
    pub(in crate::sinks) fn needs_metadata(&self) -> bool {
        let workload = Part::Field(Field::Stream(StreamField::Workload));
        self.labels().next().is_some() || self.parts.contains(&workload)
    }

    /// Whether the name changes from day to day.
    pub(super) fn has_date(&self) -> bool {
        self.parts.contains(&Part::Field(Field::Date))
    }
}

fn allowed(char: char) -> char {
    let char = char.to_ascii_lowercase();
    if is_allowed(char) { char } else { '_' }
}

const fn is_allowed(char: char) -> bool {
    char.is_ascii_lowercase() || char.is_ascii_digit() || matches!(char, '.' | '_' | '-' | '+')
}

impl FromStr for IndexTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(['-', '_', '+', '.']) {
            return Err("an index may not begin with `-`, `_`, `+` or `.`".to_owned());
        }
        Ok(Self { text: text.to_owned(), parts: RULES.parse(text)? })
    }
}

impl TryFrom<String> for IndexTemplate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<IndexTemplate> for String {
    fn from(template: IndexTemplate) -> Self {
        template.text
    }
}

impl fmt::Display for IndexTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::testing::{FIVE_O_CLOCK, pod_stream};

    fn index(template: &str, pod: &str) -> String {
        let template: IndexTemplate = template.parse().expect("valid");
        template.index(&pod_stream("Shop", pod, "app"), day(FIVE_O_CLOCK))
    }

    #[test]
    fn placeholders_are_filled_with_what_servers_take() {
        assert_eq!(index("logs-{class}-{date}", "cart"), "logs-pod-2026.11.21");
        assert_eq!(index("logs-{namespace}-{pod}.{node}", "a\\/*?\"<>| ,#:é"), "logs-shop-a_____________.none");
        assert_eq!(index("{pod}-x", "-_+.security"), "security-x");
        assert_eq!(index("{pod}", ".."), "none");
        assert_eq!(index("x{pod}", &"y".repeat(300)).len(), MAX_BYTES);
    }

    #[test]
    fn patterns_match_every_index() {
        let template: IndexTemplate = "logs-{class}-{namespace}{pod}-{date}".parse().expect("valid");
        assert_eq!(template.patterns(&[Class::Pod, Class::Server]), ["logs-pod-*-*", "logs-server-*-*"]);
        let plain: IndexTemplate = "logs".parse().expect("valid");
        assert_eq!(plain.patterns(&[Class::Pod, Class::Server]), ["logs"]);
        assert!(template.has_date() && !plain.has_date());
    }

    #[test]
    fn what_is_no_template_is_told() {
        for (text, problem) in [
            ("Logs", "may not have the character 'L'"),
            ("-logs", "may not begin with"),
            ("logs-{day}", "`{day}` is not known; there are `{class}`"),
            ("logs-{date", "without its `}`"),
            ("", "needs a name"),
        ] {
            let error = text.parse::<IndexTemplate>().expect_err(text);
            assert!(error.contains(problem), "{error}");
        }
    }
}
