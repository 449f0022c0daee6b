//! What can be declared for the logs of a container: one type for rules, policies and annotations.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    assemble::{self, Budget, Format, Language, Multiline, Pattern},
    config::{Globs, Slash, StartAt},
    record::Class,
};

/// The most characters of a topic's name (`org.apache.kafka.common.internals.Topic`).
pub const MAX_TOPIC: usize = 249;
/// The most bytes of an index' name (Elasticsearch, `MetadataCreateIndexService`).
pub const MAX_INDEX: usize = 255;
/// The most characters of a tenant: those of a label's value.
pub const MAX_TENANT: usize = 63;
const MAX_GLOBS: usize = 32;
const MAX_GLOB: usize = 512;
const MAX_PATTERNS: usize = 8;
const MAX_EXPRESSION: usize = 1024;
const MAX_SINKS: usize = 16;
const MAX_SINK_NAME: usize = 63;

/// What is declared for logs. What is not given is decided elsewhere.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.enabled) || has(self.files) || has(self.class) || has(self.multiline) || has(self.parse) || \
             has(self.topic) || has(self.index) || has(self.tenant) || has(self.sinks)",
    "message": "declares nothing: give at least one of enabled, files, class, multiline, parse, topic, index, tenant, sinks",
}]))]
pub struct Settings {
    /// Whether anything is captured; `false` turns the logs off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Which log files are captured, in the place of those of the agent's configuration.
    #[serde(skip_serializing_if = "FileSettings::is_empty")]
    pub files: FileSettings,
    /// The class of all records. By default `pod` for stdout and stderr, `business` for log files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<DeclaredClass>,
    /// Which lines are joined into one record. With no rule and no pattern: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiline: Option<MultilineSettings>,
    /// What the bodies are, for severity, time and attributes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parse: Option<Format>,
    /// The topic of sinks of type `kafka`, where their `allow_declared` lets it be chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_TOPIC), pattern("^[A-Za-z0-9._-]+$"), extend("x-kubernetes-validations" = [{
        "rule": "self != '.' && self != '..'", "message": "`.` and `..` are no names of topics",
    }]))]
    pub topic: Option<String>,
    /// The index of sinks of type `elasticsearch`, where their `allow_declared` lets it be chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_INDEX), pattern("^[a-z0-9][a-z0-9._-]*$"))]
    pub index: Option<String>,
    /// Whose the records are: the attribute `sidestep.tenant`, and `{tenant}` in names of topics and indices.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_TENANT), pattern("^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"))]
    pub tenant: Option<String>,
    /// The names of the sinks that get the records, of those that would get them anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_SINKS), inner(length(min = 1, max = MAX_SINK_NAME)), extend("x-kubernetes-list-type" = "set"))]
    pub sinks: Option<Vec<String>>,
}

/// Which log files.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct FileSettings {
    /// Globs over the path as the container sees it; an empty list takes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_GLOBS), inner(length(min = 1, max = MAX_GLOB)))]
    pub include: Option<Vec<String>>,
    /// Globs over paths that are left out all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_GLOBS), inner(length(min = 1, max = MAX_GLOB)))]
    pub exclude: Option<Vec<String>>,
    /// Where to begin in a file that was there before the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_at: Option<StartAt>,
}

impl FileSettings {
    /// Whether nothing is given.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.include.is_none() && self.exclude.is_none() && self.start_at.is_none()
    }
}

/// The classes that can be declared: `server` is the node's own.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeclaredClass {
    /// As a container's stdout and stderr.
    Pod,
    /// As an application's log files.
    Business,
}

impl From<DeclaredClass> for Class {
    fn from(class: DeclaredClass) -> Self {
        match class {
            DeclaredClass::Pod => Self::Pod,
            DeclaredClass::Business => Self::Business,
        }
    }
}

/// Which lines are joined. How long a record may become is the agent's configuration.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.patterns) || self.patterns.all(p, has(p.start) && has(p.continuation)) || \
             (size(self.patterns) == 1 && (!has(self.rules) || size(self.rules) == 0))",
    "message": "a pattern with only one of start and continuation takes every line and must be the only rule; \
                give both, or remove the others",
}]))]
pub struct MultilineSettings {
    /// Built-in rules for stack traces, tried in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6))]
    pub rules: Vec<Language>,
    /// Own rules, tried after the built-in ones, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PATTERNS))]
    pub patterns: Vec<DeclaredPattern>,
}

/// A rule of one's own, by regular expressions (syntax of the crate `regex`) that are searched for in each line.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.start) || has(self.continuation)", "message": "needs start, continuation or both",
}]))]
pub struct DeclaredPattern {
    /// Matches the first line of a record.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_EXPRESSION))]
    pub start: Option<String>,
    /// Matches the further lines of a record.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_EXPRESSION))]
    pub continuation: Option<String>,
}

/// What is decided by itself.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Field {
    /// [`Settings::enabled`]
    Enabled,
    /// [`FileSettings::include`]
    Include,
    /// [`FileSettings::exclude`]
    Exclude,
    /// [`FileSettings::start_at`]
    StartAt,
    /// [`Settings::class`]
    Class,
    /// [`Settings::multiline`]
    Multiline,
    /// [`Settings::parse`]
    Parse,
    /// [`Settings::topic`]
    Topic,
    /// [`Settings::index`]
    Index,
    /// [`Settings::tenant`]
    Tenant,
    /// [`Settings::sinks`]
    Sinks,
}

impl Field {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 11] = [
        Self::Enabled,
        Self::Include,
        Self::Exclude,
        Self::StartAt,
        Self::Class,
        Self::Multiline,
        Self::Parse,
        Self::Topic,
        Self::Index,
        Self::Tenant,
        Self::Sinks,
    ];

    /// Its path below `spec.logs`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Include => "files.include",
            Self::Exclude => "files.exclude",
            Self::StartAt => "files.startAt",
            Self::Class => "class",
            Self::Multiline => "multiline",
            Self::Parse => "parse",
            Self::Topic => "topic",
            Self::Index => "index",
            Self::Tenant => "tenant",
            Self::Sinks => "sinks",
        }
    }
}

impl Serialize for Field {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What is wrong with a field.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}: {message}", .field.as_str())]
pub struct Problem {
    /// Which.
    pub field: Field,
    /// The cause and the remedy.
    pub message: String,
}

impl Settings {
    /// The field as people read it, when it is declared.
    #[must_use]
    pub fn value(&self, field: Field) -> Option<String> {
        /// As in YAML, on one line.
        fn text<T: Serialize>(value: Option<&T>) -> Option<String> {
            let text = serde_json::to_string(value?).ok()?;
            Some(text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).map_or(text.clone(), str::to_owned))
        }
        match field {
            Field::Enabled => text(self.enabled.as_ref()),
            Field::Include => text(self.files.include.as_ref()),
            Field::Exclude => text(self.files.exclude.as_ref()),
            Field::StartAt => text(self.files.start_at.as_ref()),
            Field::Class => text(self.class.as_ref()),
            Field::Multiline => text(self.multiline.as_ref()),
            Field::Parse => text(self.parse.as_ref()),
            Field::Topic => text(self.topic.as_ref()),
            Field::Index => text(self.index.as_ref()),
            Field::Tenant => text(self.tenant.as_ref()),
            Field::Sinks => text(self.sinks.as_ref()),
        }
    }

    /// Whether the field is declared.
    #[must_use]
    pub const fn declares(&self, field: Field) -> bool {
        match field {
            Field::Enabled => self.enabled.is_some(),
            Field::Include => self.files.include.is_some(),
            Field::Exclude => self.files.exclude.is_some(),
            Field::StartAt => self.files.start_at.is_some(),
            Field::Class => self.class.is_some(),
            Field::Multiline => self.multiline.is_some(),
            Field::Parse => self.parse.is_some(),
            Field::Topic => self.topic.is_some(),
            Field::Index => self.index.is_some(),
            Field::Tenant => self.tenant.is_some(),
            Field::Sinks => self.sinks.is_some(),
        }
    }

    /// Makes the field what it is in `other`, which may be nothing.
    pub fn take(&mut self, field: Field, other: &Self) {
        match field {
            Field::Enabled => self.enabled = other.enabled,
            Field::Include => self.files.include.clone_from(&other.files.include),
            Field::Exclude => self.files.exclude.clone_from(&other.files.exclude),
            Field::StartAt => self.files.start_at = other.files.start_at,
            Field::Class => self.class = other.class,
            Field::Multiline => self.multiline.clone_from(&other.multiline),
            Field::Parse => self.parse = other.parse,
            Field::Topic => self.topic.clone_from(&other.topic),
            Field::Index => self.index.clone_from(&other.index),
            Field::Tenant => self.tenant.clone_from(&other.tenant),
            Field::Sinks => self.sinks.clone_from(&other.sinks),
        }
    }

    /// What can't be as it is declared; `budget` is for all that the same one declares. The API server refuses most of it in a policy; annotations nobody checks before.
    #[must_use]
    pub fn problems(&self, budget: &mut Budget) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut wrong = |field, message: String| problems.push(Problem { field, message });
        for (field, globs) in [(Field::Include, &self.files.include), (Field::Exclude, &self.files.exclude)] {
            if let Some(message) = globs.as_deref().and_then(glob_problem) {
                wrong(field, message);
            }
        }
        if let Some(message) = self.multiline.as_ref().and_then(|multiline| multiline.problem(budget)) {
            wrong(Field::Multiline, message);
        }
        for (field, name, check) in [
            (Field::Topic, &self.topic, topic_problem as fn(&str) -> Option<String>),
            (Field::Index, &self.index, index_problem),
            (Field::Tenant, &self.tenant, tenant_problem),
        ] {
            if let Some(message) = name.as_deref().and_then(check) {
                wrong(field, message);
            }
        }
        if let Some(sinks) = &self.sinks {
            if sinks.is_empty() {
                wrong(Field::Sinks, "name at least one sink, or turn the logs off".to_owned());
            } else if sinks.len() > MAX_SINKS {
                wrong(Field::Sinks, format!("{} names are more than {MAX_SINKS}", sinks.len()));
            } else if sinks.iter().any(|name| name.is_empty() || name.len() > MAX_SINK_NAME) {
                wrong(Field::Sinks, format!("a name has 1 to {MAX_SINK_NAME} characters"));
            }
        }
        problems
    }
}

impl MultilineSettings {
    /// The rules of a configuration.
    #[must_use]
    pub fn of(multiline: &Multiline) -> Self {
        let pattern = |Pattern { start, continuation }: &Pattern| DeclaredPattern {
            start: start.clone(),
            continuation: continuation.clone(),
        };
        Self { rules: multiline.rules.clone(), patterns: multiline.patterns.iter().map(pattern).collect() }
    }

    /// As the configuration has it, with the limits of `base`.
    #[must_use]
    pub fn over(&self, base: &Multiline) -> Multiline {
        let pattern = |DeclaredPattern { start, continuation }: &DeclaredPattern| Pattern {
            start: start.clone(),
            continuation: continuation.clone(),
        };
        let (rules, patterns) = (self.rules.clone(), self.patterns.iter().map(pattern).collect());
        Multiline { rules, patterns, is_declared: true, ..base.clone() }
    }

    fn problem(&self, budget: &mut Budget) -> Option<String> {
        if self.patterns.len() > MAX_PATTERNS {
            return Some(format!("{} patterns are more than {MAX_PATTERNS}", self.patterns.len()));
        }
        let mut expressions =
            self.patterns.iter().flat_map(|pattern| [&pattern.start, &pattern.continuation]).flatten();
        if expressions.any(|expression| expression.len() > MAX_EXPRESSION) {
            return Some(format!("an expression has at most {MAX_EXPRESSION} bytes"));
        }
        assemble::declared_problem(&self.over(&Multiline::default()), budget)
    }
}

fn glob_problem(globs: &[String]) -> Option<String> {
    if globs.len() > MAX_GLOBS {
        return Some(format!("{} globs are more than {MAX_GLOBS}", globs.len()));
    }
    if globs.iter().any(|glob| glob.len() > MAX_GLOB) {
        return Some(format!("a glob has at most {MAX_GLOB} bytes"));
    }
    if globs.iter().any(|glob| glob.chars().any(char::is_control)) {
        return Some("a glob may not have control characters".to_owned());
    }
    Globs::new(globs, Slash::Separates).err()?.into_iter().next().map(|(_, message)| message)
}

fn topic_problem(name: &str) -> Option<String> {
    let is_allowed = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-');
    let fits = !matches!(name, "" | "." | "..") && name.len() <= MAX_TOPIC && name.chars().all(is_allowed);
    (!fits).then(|| format!("a topic has 1 to {MAX_TOPIC} letters, digits, `.`, `_` and `-`, and is not `.` or `..`"))
}

fn index_problem(name: &str) -> Option<String> {
    let is_plain = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit();
    let is_allowed = |char: char| is_plain(char) || matches!(char, '.' | '_' | '-');
    let fits = name.starts_with(is_plain) && name.len() <= MAX_INDEX && name.chars().all(is_allowed);
    (!fits).then(|| {
        format!(
            "an index has 1 to {MAX_INDEX} small letters, digits, `.`, `_` and `-`, and begins with a letter or digit"
        )
    })
}

fn tenant_problem(name: &str) -> Option<String> {
    let is_plain = |char: char| char.is_ascii_alphanumeric();
    let is_allowed = |char: char| is_plain(char) || matches!(char, '.' | '_' | '-');
    let fits = name.starts_with(is_plain)
        && name.ends_with(is_plain)
        && name.len() <= MAX_TENANT
        && name.chars().all(is_allowed);
    (!fits).then(|| {
        format!(
            "a tenant has 1 to {MAX_TENANT} letters, digits, `.`, `_` and `-`, a letter or digit first and last, as \
             the value of a label"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_taken_and_shown() {
        let all = Settings {
            enabled: Some(true),
            files: FileSettings {
                include: Some(vec!["/a/*.log".to_owned()]),
                exclude: Some(Vec::new()),
                start_at: Some(StartAt::Beginning),
            },
            class: Some(DeclaredClass::Business),
            multiline: Some(MultilineSettings { rules: vec![Language::Java], patterns: Vec::new() }),
            parse: Some(Format::Json),
            topic: Some("t".to_owned()),
            index: Some("i".to_owned()),
            tenant: Some("x".to_owned()),
            sinks: Some(vec!["kafka".to_owned()]),
        };
        assert_eq!(all.problems(&mut Budget::default()), []);
        let mut taken = Settings::default();
        for field in Field::ALL {
            assert!(!taken.declares(field) && taken.value(field).is_none(), "{field:?}");
            taken.take(field, &all);
            assert!(taken.declares(field) && taken.value(field).is_some(), "{field:?}");
        }
        assert_eq!(taken, all);
        assert_eq!(all.value(Field::Include).as_deref(), Some(r#"["/a/*.log"]"#));
        assert_eq!(all.value(Field::StartAt).as_deref(), Some("beginning"));
        let text = serde_json::to_string(&all).expect("JSON");
        assert_eq!(serde_json::from_str::<Settings>(&text).expect("the same"), all);
        assert_eq!(serde_json::to_string(&Settings::default()).expect("JSON"), "{}");
    }

    #[test]
    fn what_can_not_be_is_told_with_its_field() {
        let many = |count: usize| (0..count).map(|number| format!("/{number}")).collect::<Vec<_>>();
        let expression = |start: &str| MultilineSettings {
            rules: Vec::new(),
            patterns: vec![DeclaredPattern { start: Some(start.to_owned()), continuation: None }],
        };
        let settings = Settings {
            files: FileSettings { include: Some(vec!["/a/{b".to_owned()]), exclude: Some(many(33)), start_at: None },
            multiline: Some(expression("(")),
            topic: Some("..".to_owned()),
            index: Some("Upper".to_owned()),
            tenant: Some("a/b".to_owned()),
            sinks: Some(Vec::new()),
            ..Settings::default()
        };
        let texts: Vec<_> = settings.problems(&mut Budget::default()).iter().map(ToString::to_string).collect();
        let expected = [
            ("files.include: ", "`/a/{b` is not a glob"),
            ("files.exclude: ", "33 globs are more than 32"),
            ("multiline: ", "not a regular expression: unclosed group"),
            ("topic: ", "a topic has"),
            ("index: ", "an index has"),
            ("tenant: ", "a tenant has"),
            ("sinks: ", "name at least one sink"),
        ];
        assert_eq!(texts.len(), expected.len(), "{texts:#?}");
        for (text, (field, part)) in texts.iter().zip(expected) {
            assert!(text.starts_with(field) && text.contains(part) && !text.contains('\n'), "{text}");
        }
        let long = Settings { multiline: Some(expression(&"x".repeat(2000))), ..Settings::default() };
        assert!(long.problems(&mut Budget::default())[0].message.contains("at most 1024 bytes"));
    }
}
