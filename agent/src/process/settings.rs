//! Processors as typed in the configuration: a list, in the order in which lines go through it.

use std::{collections::BTreeMap, time::Duration};

use serde::{
    Deserialize, Serialize,
    de::{self, MapAccess, value::MapAccessDeserializer},
};

use super::{
    limit::Workload,
    redact::{Pattern, REDACTED, Redactor, Rule},
    select::Selector,
};
use crate::{
    config::{Tagged, units},
    record::Attributes,
    sinks::json,
};

/// The most processors of a configuration.
pub const MAX_PROCESSORS: usize = 64;
/// The most lines per second that a limit can say.
const MAX_RATE: u64 = 100_000_000;
/// How often suppressed lines are told of.
const SUMMARY_INTERVAL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);

/// One entry of the configuration's list of processors.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ProcessorSettings {
    /// Leaves lines out.
    Drop(Drop),
    /// Keeps one of so many lines.
    Sample(Sample),
    /// Replaces secrets.
    Redact(Redact),
    /// Adds attributes.
    AddFields(AddFields),
    /// Limits the lines of a workload.
    RateLimit(RateLimit),
}

impl Tagged for ProcessorSettings {
    const KINDS: &'static [&'static str] = &["drop", "sample", "redact", "add_fields", "rate_limit"];

    fn read<'de, A: MapAccess<'de>>(kind: &str, options: MapAccessDeserializer<A>) -> Result<Self, A::Error> {
        match kind {
            "drop" => Drop::deserialize(options).map(Self::Drop),
            "sample" => Sample::deserialize(options).map(Self::Sample),
            "redact" => Redact::deserialize(options).map(Self::Redact),
            "add_fields" => AddFields::deserialize(options).map(Self::AddFields),
            "rate_limit" => RateLimit::deserialize(options).map(Self::RateLimit),
            other => Err(de::Error::unknown_variant(other, Self::KINDS)),
        }
    }
}

/// Leaves lines out.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drop {
    /// The name in metrics; default `drop`.
    pub name: String,
    /// Which lines; at least one of its options.
    #[serde(rename = "match")]
    pub matches: Selector,
}

/// Keeps one of so many lines.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sample {
    /// The name in metrics; default `sample`.
    pub name: String,
    /// Which lines; default all.
    #[serde(rename = "match")]
    pub matches: Selector,
    /// One of how many is kept, at least 2; default 10.
    pub keep_one_of: u64,
}

/// Replaces secrets in bodies, and in attributes that were parsed from them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redact {
    /// The name in metrics; default `redact`.
    pub name: String,
    /// In which lines; default all.
    #[serde(rename = "match")]
    pub matches: Selector,
    /// Built-in rules; default none.
    pub rules: Vec<Rule>,
    /// Rules of one's own, after the built-in ones; default none.
    pub patterns: Vec<Pattern>,
    /// What stands in the place of what was found; default `[REDACTED]`.
    pub replacement: String,
}

/// Adds attributes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AddFields {
    /// The name in metrics; default `add_fields`.
    pub name: String,
    /// To which lines; default all.
    #[serde(rename = "match")]
    pub matches: Selector,
    /// The attributes. One that was parsed from the body under the same name is replaced.
    pub fields: BTreeMap<String, String>,
}

/// Limits the lines of a workload.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// The name in metrics and summaries; default `rate_limit`.
    pub name: String,
    /// Which lines count and are limited; default all.
    #[serde(rename = "match")]
    pub matches: Selector,
    /// What shares a limit; default each container.
    pub per: Workload,
    /// Lines per second; default 1000.
    pub lines_per_second: u64,
    /// Lines at once, after a pause; default as many as in 5 seconds.
    pub burst: Option<u64>,
    /// How often a stream tells of its suppressed lines, 1 second to 1 hour; default 10 seconds.
    #[serde(with = "units::duration")]
    pub summary_interval: Duration,
}

/// One thing that is wrong with a processor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProcessorProblem {
    /// The option, below the processor.
    pub option: String,
    /// What is wrong with it, and what is allowed.
    pub problem: String,
}

impl Default for Drop {
    fn default() -> Self {
        Self { name: "drop".to_owned(), matches: Selector::default() }
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self { name: "sample".to_owned(), matches: Selector::default(), keep_one_of: 10 }
    }
}

impl Default for Redact {
    fn default() -> Self {
        Self {
            name: "redact".to_owned(),
            matches: Selector::default(),
            rules: Vec::new(),
            patterns: Vec::new(),
            replacement: REDACTED.to_owned(),
        }
    }
}

impl Default for AddFields {
    fn default() -> Self {
        Self { name: "add_fields".to_owned(), matches: Selector::default(), fields: BTreeMap::new() }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            name: "rate_limit".to_owned(),
            matches: Selector::default(),
            per: Workload::default(),
            lines_per_second: 1000,
            burst: None,
            summary_interval: Duration::from_secs(10),
        }
    }
}

impl RateLimit {
    /// Lines at once.
    pub(super) fn burst(&self) -> u64 {
        self.burst.unwrap_or_else(|| self.lines_per_second.saturating_mul(5))
    }
}

impl AddFields {
    pub(super) fn attributes(&self) -> Attributes {
        self.fields.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect()
    }
}

impl ProcessorSettings {
    /// The name in metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Drop(settings) => &settings.name,
            Self::Sample(settings) => &settings.name,
            Self::Redact(settings) => &settings.name,
            Self::AddFields(settings) => &settings.name,
            Self::RateLimit(settings) => &settings.name,
        }
    }

    /// Which lines it is for.
    #[must_use]
    pub const fn matches(&self) -> &Selector {
        match self {
            Self::Drop(settings) => &settings.matches,
            Self::Sample(settings) => &settings.matches,
            Self::Redact(settings) => &settings.matches,
            Self::AddFields(settings) => &settings.matches,
            Self::RateLimit(settings) => &settings.matches,
        }
    }

    /// Checks what serde cannot: every option that makes no sense.
    #[must_use]
    pub fn problems(&self) -> Vec<ProcessorProblem> {
        let mut problems = Vec::new();
        let mut wrong = |option: &str, problem: String| {
            problems.push(ProcessorProblem { option: option.to_owned(), problem });
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if self.name().is_empty() || !self.name().bytes().all(is_plain) {
            wrong("name", "must be made of letters, digits, `-` and `_`".to_owned());
        }
        for error in self.matches().compile().err().unwrap_or_default() {
            wrong(&format!("match.{}", error.option), error.problem);
        }
        match self {
            Self::Drop(settings) if settings.matches.is_everything() => {
                wrong("match", "without it every line would be dropped; give at least one of its options".to_owned());
            }
            Self::Drop(_) => {}
            Self::Sample(settings) => {
                if settings.keep_one_of < 2 {
                    wrong("keep_one_of", "must be at least 2: one of one is every line".to_owned());
                }
            }
            Self::Redact(settings) => redact_problems(settings, wrong),
            Self::AddFields(settings) => field_problems(settings, wrong),
            Self::RateLimit(settings) => {
                if !(1..=MAX_RATE).contains(&settings.lines_per_second) {
                    wrong("lines_per_second", format!("must be from 1 to {MAX_RATE}"));
                }
                if !(1..=MAX_RATE * 10).contains(&settings.burst()) {
                    wrong("burst", format!("must be from 1 to {}", MAX_RATE * 10));
                }
                if !SUMMARY_INTERVAL.contains(&settings.summary_interval) {
                    wrong("summary_interval", "must be from 1s to 1h".to_owned());
                }
            }
        }
        problems
    }
}

fn redact_problems(settings: &Redact, mut wrong: impl FnMut(&str, String)) {
    if settings.rules.is_empty() && settings.patterns.is_empty() {
        wrong("rules", "needs `rules`, `patterns` or both: else nothing is redacted".to_owned());
    }
    if let Err(errors) = Redactor::new(&settings.rules, &settings.patterns, &settings.replacement) {
        for (index, error) in errors {
            wrong(&format!("patterns[{index}].pattern"), error);
        }
    }
}

fn field_problems(settings: &AddFields, mut wrong: impl FnMut(&str, String)) {
    if settings.fields.is_empty() {
        wrong("fields", "must name at least one attribute".to_owned());
    }
    for name in settings.fields.keys() {
        if name.is_empty() {
            wrong("fields", "the name of an attribute may not be empty".to_owned());
        } else if let Some(prefix) = json::RESERVED_PREFIXES.iter().find(|prefix| name.starts_with(**prefix)) {
            wrong("fields", format!("`{name}`: names that begin with `{prefix}` are the agent's own"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(value: serde_json::Value) -> Vec<String> {
        let settings: ProcessorSettings = serde_json::from_value(value).expect("parses");
        settings.problems().into_iter().map(|problem| problem.option).collect()
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (expected, value) in [
            ("name", json!({"type": "sample", "name": "a b"})),
            ("match", json!({"type": "drop"})),
            ("match.body", json!({"type": "drop", "match": {"body": "("}})),
            ("match.pod", json!({"type": "drop", "match": {"pod": ["["]}})),
            ("keep_one_of", json!({"type": "sample", "keep_one_of": 1})),
            ("rules", json!({"type": "redact"})),
            ("patterns[1].pattern", json!({"type": "redact", "patterns": [{"pattern": "a"}, {"pattern": "("}]})),
            ("fields", json!({"type": "add_fields"})),
            ("fields", json!({"type": "add_fields", "fields": {"sidestep.x": "y"}})),
            ("lines_per_second", json!({"type": "rate_limit", "lines_per_second": 0, "burst": 1})),
            ("burst", json!({"type": "rate_limit", "burst": 0})),
            ("summary_interval", json!({"type": "rate_limit", "summary_interval": "10ms"})),
        ] {
            assert_eq!(options(value.clone()), [expected], "{value}");
        }
        assert_eq!(options(json!({"type": "rate_limit", "per": "pod", "summary_interval": "1m"})), [""; 0]);
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for value in [
            json!({"type": "drop", "match": {"label": "x"}}),
            json!({"type": "redact", "rules": ["passport"]}),
            json!({"type": "explode"}),
        ] {
            serde_json::from_value::<ProcessorSettings>(value).expect_err("unknown");
        }
    }
}
