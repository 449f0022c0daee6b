//! What a Pod declares of itself: annotations `sidestep.dev/KEY`, and `CONTAINER.sidestep.dev/KEY` for one container.
//!
//! The container stands in the prefix, because a container's name and that with `.sidestep.dev` are always valid there,
//! while the part behind the `/` has no room for a key beside a name of 63 characters.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, IntoDeserializer, value::Error as ValueError};

use super::{
    precedence::Key,
    settings::{DeclaredPattern, Field, MultilineSettings, Settings},
};
use crate::assemble::Budget;

/// The domain of all keys.
pub const DOMAIN: &str = "sidestep.dev";
/// A longer value is refused. What is declared needs a few hundred bytes.
pub const MAX_VALUE: usize = 8 << 10;
/// So many problems of a Pod are told.
const MAX_PROBLEMS: usize = 32;
/// A value is shown up to here, in characters.
const MAX_SHOWN: usize = 64;

/// The keys behind the `/`, and what each declares.
const KEYS: [(&str, Field); 11] = [
    ("logs", Field::Enabled),
    ("files", Field::Include),
    ("files-exclude", Field::Exclude),
    ("files-start-at", Field::StartAt),
    ("class", Field::Class),
    ("multiline", Field::Multiline),
    ("parse", Field::Parse),
    ("topic", Field::Topic),
    ("index", Field::Index),
    ("tenant", Field::Tenant),
    ("sinks", Field::Sinks),
];

/// All that the annotations of a Pod declare.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Declared {
    /// For all of its containers.
    pub pod: Settings,
    /// For some, by name.
    pub containers: BTreeMap<String, Settings>,
    /// What does not hold; all else does.
    pub problems: Vec<Problem>,
}

/// What is wrong with an annotation.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Serialize, thiserror::Error)]
#[error("`{key}: {value}`: {message}")]
pub struct Problem {
    /// The annotation's key, without control characters.
    pub key: String,
    /// Its value, shortened, without control characters.
    pub value: String,
    /// What kind of problem, for metrics.
    pub reason: Reason,
    /// The cause and the remedy, without control characters.
    pub message: String,
    /// The policy that declares it, where it is no annotation.
    #[serde(skip)]
    pub policy: Option<Key>,
}

/// What kind of problem an annotation has.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No such key.
    UnknownKey,
    /// The value is none of those that the key may have.
    InvalidValue,
    /// The value is too long.
    TooLong,
    /// The value may not be chosen by a Pod, or names what there is not.
    NotAllowed,
}

impl Reason {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::UnknownKey, Self::InvalidValue, Self::TooLong, Self::NotAllowed];

    /// The value of the metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown_key",
            Self::InvalidValue => "invalid_value",
            Self::TooLong => "too_long",
            Self::NotAllowed => "not_allowed",
        }
    }
}

impl Problem {
    /// A problem with what the annotation `key` declares.
    #[must_use]
    pub fn new(key: &str, value: &str, reason: Reason, message: &str) -> Self {
        Self { key: shown(key), value: shown(value), reason, message: clean(message), policy: None }
    }
}

/// The annotation that declares `field`, for a container or for all.
#[must_use]
pub fn key(field: Field, container: Option<&str>) -> String {
    let name = KEYS.iter().find(|(_, known)| *known == field).map_or("", |(name, _)| name);
    match container {
        Some(container) => format!("{container}.{DOMAIN}/{name}"),
        None => format!("{DOMAIN}/{name}"),
    }
}

impl Declared {
    /// Notes an annotation that was not kept: its value is too long, or there are too many of them.
    pub fn refuse_oversized(&mut self, key: &str, shown: &str, bytes: usize) {
        if of_ours(key).is_none() || self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        let message = if key.len() + bytes > MAX_VALUE {
            format!("the value has {bytes} bytes; {MAX_VALUE} are the most, with the key")
        } else {
            "the Pod has too much of annotations `sidestep.dev/`: 32 KiB of them are kept".to_owned()
        };
        self.problems.push(Problem::new(key, shown, Reason::TooLong, &message));
    }
}

/// Reads the annotations of a Pod; others than ours are none of our business.
#[must_use]
pub fn parse(annotations: &BTreeMap<String, String>) -> Declared {
    let mut declared = Declared::default();
    // For all containers together: whoever names a hundred of them has not a hundred times the room.
    let mut budget = Budget::default();
    for (key, value) in annotations {
        let Some((container, name)) = of_ours(key) else { continue };
        let settings = match container {
            None => &mut declared.pod,
            Some(container) => declared.containers.entry(container.to_owned()).or_default(),
        };
        if let Err((reason, message)) = declare(settings, name, value, &mut budget)
            && declared.problems.len() < MAX_PROBLEMS
        {
            declared.problems.push(Problem::new(key, value, reason, &message));
        }
    }
    declared.containers.retain(|_, settings| *settings != Settings::default());
    declared
}

/// Container and name of a key that is ours.
fn of_ours(key: &str) -> Option<(Option<&str>, &str)> {
    let (prefix, name) = key.split_once('/')?;
    let container = prefix.strip_suffix(DOMAIN)?;
    if container.is_empty() {
        return Some((None, name));
    }
    Some((Some(container.strip_suffix('.')?), name))
}

fn declare(settings: &mut Settings, name: &str, value: &str, budget: &mut Budget) -> Result<(), (Reason, String)> {
    let Some((_, field)) = KEYS.iter().find(|(known, _)| *known == name) else {
        return Err((Reason::UnknownKey, unknown(name)));
    };
    if value.len() > MAX_VALUE {
        let message = format!("the value has {} bytes; {MAX_VALUE} are the most", value.len());
        return Err((Reason::TooLong, message));
    }
    let invalid = |message| (Reason::InvalidValue, message);
    let read = read(*field, value.trim()).map_err(invalid)?;
    if let Some(problem) = read.problems(budget).into_iter().next() {
        return Err(invalid(problem.message));
    }
    settings.take(*field, &read);
    Ok(())
}

fn unknown(name: &str) -> String {
    let nearest = KEYS.iter().map(|(known, _)| (strsim::damerau_levenshtein(known, name), *known)).min();
    match nearest {
        // Bounded: a key has 63 characters at most behind the `/`.
        Some((distance, known)) if distance <= 3 => format!("there is no such annotation; did you mean `{known}`?"),
        _ => {
            let known: Vec<_> = KEYS.iter().map(|(known, _)| format!("`{known}`")).collect();
            format!("there is no such annotation; there are {}", known.join(", "))
        }
    }
}

fn read(field: Field, value: &str) -> Result<Settings, String> {
    let mut settings = Settings::default();
    match field {
        Field::Enabled => settings.enabled = Some(on_or_off(value)?),
        Field::Include => settings.files.include = Some(list(value)),
        Field::Exclude => settings.files.exclude = Some(list(value)),
        Field::StartAt => settings.files.start_at = Some(word(value)?),
        Field::Class => settings.class = Some(word(value)?),
        Field::Multiline => settings.multiline = Some(multiline(value)?),
        Field::Parse => settings.parse = Some(word(value)?),
        Field::Topic => settings.topic = Some(value.to_owned()),
        Field::Index => settings.index = Some(value.to_owned()),
        Field::Tenant => settings.tenant = Some(value.to_owned()),
        Field::Sinks => settings.sinks = Some(list(value)),
    }
    Ok(settings)
}

fn on_or_off(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("must be `on` or `off`".to_owned()),
    }
}

/// Rules by name; `off`; or a regular expression between two `/`, which matches the first line of each record.
fn multiline(value: &str) -> Result<MultilineSettings, String> {
    if let Some(start) = value.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
        let start = DeclaredPattern { start: Some(start.to_owned()), continuation: None };
        return Ok(MultilineSettings { rules: Vec::new(), patterns: vec![start] });
    }
    if matches!(value, "off" | "none") {
        return Ok(MultilineSettings::default());
    }
    let rules: Result<Vec<_>, _> = list(value).iter().map(|name| word(name)).collect();
    let rules =
        rules.map_err(|error| format!("{error}; or `off`, or `/EXPRESSION/` for the first line of each record"))?;
    if rules.is_empty() {
        return Err("name a rule, or say `off`".to_owned());
    }
    Ok(MultilineSettings { rules, patterns: Vec::new() })
}

/// One of the words that the type knows.
fn word<T: DeserializeOwned>(value: &str) -> Result<T, String> {
    let deserializer = IntoDeserializer::<ValueError>::into_deserializer(value.to_ascii_lowercase());
    T::deserialize(deserializer).map_err(|error| shown_error(&error.to_string()))
}

/// An error of serde quotes the value.
fn shown_error(text: &str) -> String {
    match text.split_once("expected ") {
        Some((_, expected)) => format!("must be {expected}"),
        None => shown(text),
    }
}

/// What commas separate; not those between braces, which belong to a glob.
fn list(value: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut depth = 0_usize;
    for char in value.chars() {
        match char {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        match (char, items.last_mut()) {
            (',', _) if depth == 0 => items.push(String::new()),
            (char, Some(item)) => item.push(char),
            (_, None) => {}
        }
    }
    items.iter().map(|item| item.trim()).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// A message that may quote what somebody has declared, without what a terminal or a log's reader obeys.
#[must_use]
pub fn clean(message: &str) -> String {
    message.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// Text of a Pod's, for people: shortened, and nothing in it that a terminal obeys.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut shown: String =
        text.chars().take(MAX_SHOWN).map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        assemble::{Format, Language},
        config::StartAt,
        policy::settings::DeclaredClass,
    };

    fn declared(annotations: &[(&str, &str)]) -> Declared {
        parse(&annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn everything_can_be_declared_for_a_pod_and_for_a_container() {
        let Declared { pod, containers, problems } = declared(&[
            ("sidestep.dev/logs", "On"),
            ("sidestep.dev/files", "/data/*.log, /x/{a,b}/**"),
            ("sidestep.dev/files-exclude", "/data/tmp*"),
            ("sidestep.dev/files-start-at", "beginning"),
            ("sidestep.dev/class", "business"),
            ("sidestep.dev/multiline", "java,python"),
            ("sidestep.dev/parse", "json"),
            ("sidestep.dev/topic", "shop.logs"),
            ("sidestep.dev/index", "shop-logs"),
            ("sidestep.dev/tenant", "shop"),
            ("sidestep.dev/sinks", "kafka"),
            ("proxy.sidestep.dev/logs", "off"),
            ("proxy.sidestep.dev/multiline", r"/^\d{4}-/"),
            ("example.com/logs", "what"),
            ("notsidestep.dev/logs", "what"),
        ]);
        assert_eq!(problems, []);
        assert_eq!(pod.enabled, Some(true));
        assert_eq!(pod.files.include, Some(vec!["/data/*.log".to_owned(), "/x/{a,b}/**".to_owned()]));
        assert_eq!(pod.files.start_at, Some(StartAt::Beginning));
        assert_eq!((pod.class, pod.parse), (Some(DeclaredClass::Business), Some(Format::Json)));
        assert_eq!(pod.multiline.as_ref().expect("rules").rules, [Language::Java, Language::Python]);
        assert!(Field::ALL.iter().all(|field| pod.declares(*field)));
        let proxy = &containers["proxy"];
        assert_eq!((proxy.enabled, containers.len()), (Some(false), 1));
        assert_eq!(proxy.multiline.as_ref().expect("a rule").patterns[0].start.as_deref(), Some(r"^\d{4}-"));
        for field in Field::ALL {
            assert!(of_ours(&key(field, Some("proxy"))).is_some_and(|(container, _)| container == Some("proxy")));
        }
    }

    #[test]
    fn what_is_wrong_is_told_and_the_rest_holds() {
        let long = "x".repeat(200 << 10);
        let Declared { pod, containers, problems } = declared(&[
            ("sidestep.dev/log", "off"),
            ("sidestep.dev/logs", "nope"),
            ("sidestep.dev/class", "server"),
            ("sidestep.dev/files", &long),
            ("sidestep.dev/multiline", "cobol"),
            ("sidestep.dev/parse", "xml\u{1b}[31m"),
            ("sidestep.dev/topic", "a b"),
            ("a.sidestep.dev/multiline", "/(\u{1b}[31m\n/"),
            ("a.sidestep.dev/files", "/{\u{7}"),
            ("sidestep.dev/zzzzzzzzz", "1"),
            ("app.sidestep.dev/tenant", "-"),
            ("sidestep.dev/index", "fine"),
        ]);
        assert_eq!(pod, Settings { index: Some("fine".to_owned()), ..Settings::default() });
        assert!(containers.is_empty(), "nothing holds of it");
        let of = |key: &str| problems.iter().find(|problem| problem.key == key).expect(key);
        for (key, reason, part) in [
            ("sidestep.dev/log", Reason::UnknownKey, "did you mean `logs`?"),
            ("sidestep.dev/logs", Reason::InvalidValue, "must be `on` or `off`"),
            ("sidestep.dev/class", Reason::InvalidValue, "must be `pod` or `business`"),
            ("sidestep.dev/files", Reason::TooLong, "the value has 204800 bytes; 8192 are the most"),
            ("sidestep.dev/multiline", Reason::InvalidValue, "`java`, `python`"),
            ("sidestep.dev/parse", Reason::InvalidValue, "`logfmt`"),
            ("sidestep.dev/topic", Reason::InvalidValue, "a topic has"),
            ("sidestep.dev/zzzzzzzzz", Reason::UnknownKey, "there are `logs`"),
            ("app.sidestep.dev/tenant", Reason::InvalidValue, "a tenant has"),
        ] {
            let problem = of(key);
            assert!(problem.reason == reason && problem.message.contains(part), "{problem}");
            assert!(problem.value.chars().count() <= MAX_SHOWN + 3);
        }
        assert!(problems.iter().all(|problem| !problem.to_string().contains(char::is_control)), "{problems:?}");
        assert_eq!(problems.len(), 11);
    }

    #[test]
    fn what_was_not_kept_is_told_by_its_size() {
        let mut declared = Declared::default();
        declared.refuse_oversized("sidestep.dev/files", "/data/...", 204_800);
        declared.refuse_oversized("a.sidestep.dev/files", "/data", 300);
        declared.refuse_oversized("notsidestep.dev/files", "/data/...", 204_800);
        let [one, two] = &declared.problems[..] else { panic!("{:?}", declared.problems) };
        assert!(one.reason == Reason::TooLong && one.message.contains("204800 bytes; 8192"), "{one}");
        assert!(two.reason == Reason::TooLong && two.message.contains("32 KiB"), "{two}");
    }

    #[test]
    fn thousands_of_wrong_keys_are_told_in_part() {
        let many = (0..5000).map(|number| (format!("sidestep.dev/k{number}"), String::new())).collect();
        assert_eq!(parse(&many).problems.len(), MAX_PROBLEMS);
    }
}
