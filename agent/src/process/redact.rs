//! Takes secrets out of bodies and of the attributes that were parsed from them.

use std::{borrow::Cow, ops::Range};

use regex::bytes::{Captures, Regex};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{card, pattern};
use crate::record::Attributes;

/// What is put in the place of a secret where nothing else is configured.
pub(super) const REDACTED: &str = "[REDACTED]";

/// A built-in rule.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// What follows the word `bearer` (RFC 6750), and JSON Web Tokens anywhere (RFC 7519). The word stays.
    BearerToken,
    /// Numbers of payment cards: 13 to 19 digits, in groups or not, with a card's first digits and a valid check digit.
    CardNumber,
    /// E-mail addresses.
    Email,
}

/// A rule of one's own.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// A regular expression; all of what it matches is replaced.
    pub pattern: String,
    /// What stands there instead: `$1` and `${name}` are groups of the match, `$$` is `$`. Default: that of the
    /// processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<String>,
}

/// Finds and replaces.
#[derive(Debug)]
pub(super) struct Redactor {
    matchers: Vec<Matcher>,
}

#[derive(Debug)]
enum Matcher {
    Regex {
        regex: Regex,
        /// A byte without which nothing matches: looking for it costs next to nothing.
        needs: Option<u8>,
        replacement: Vec<u8>,
        /// The replacement names groups.
        has_groups: bool,
    },
    Card {
        replacement: Vec<u8>,
    },
}

impl Redactor {
    /// A redactor of these rules.
    ///
    /// # Errors
    /// For each pattern that is wrong, its index and why.
    pub(super) fn new(rules: &[Rule], patterns: &[Pattern], replacement: &str) -> Result<Self, Vec<(usize, String)>> {
        let mut matchers = Vec::new();
        for rule in rules {
            built_in(*rule, replacement, &mut matchers);
        }
        let mut errors = Vec::new();
        for (index, own) in patterns.iter().enumerate() {
            match pattern::compile(&own.pattern) {
                Ok(regex) if regex.is_match(b"") => {
                    let problem = format!("`{}` matches where nothing is: it would change every line", own.pattern);
                    errors.push((index, problem));
                }
                Ok(regex) => {
                    let text = own.replacement.clone().unwrap_or_else(|| literal(replacement));
                    matchers.push(by_regex(regex, None, &text));
                }
                Err(error) => errors.push((index, error)),
            }
        }
        if errors.is_empty() { Ok(Self { matchers }) } else { Err(errors) }
    }

    /// The text without what the rules match, and how many matches there were; `None` when there were none.
    pub(super) fn redact(&self, text: &[u8]) -> Option<(Vec<u8>, u64)> {
        let mut changed: Option<(Vec<u8>, u64)> = None;
        for matcher in &self.matchers {
            let current = changed.as_ref().map_or(text, |(text, _)| text);
            if let Some((next, count)) = matcher.replace(current) {
                changed = Some((next, count + changed.map_or(0, |(_, count)| count)));
            }
        }
        changed
    }

    /// Redacts names and values, at any depth; returns how many matches there were. Nothing is copied without one.
    pub(super) fn redact_attributes(&self, attributes: &Attributes) -> Option<(Attributes, u64)> {
        let mut count = 0;
        let matches = attributes.iter().any(|(name, value)| self.has_match(name.as_bytes()) || self.is_in(value));
        matches.then(|| (self.map(attributes, &mut count), count))
    }

    fn has_match(&self, text: &[u8]) -> bool {
        self.matchers.iter().any(|matcher| matcher.is_match(text))
    }

    fn is_in(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.has_match(text.as_bytes()),
            Value::Number(number) => self.has_match(number.to_string().as_bytes()),
            Value::Array(items) => items.iter().any(|item| self.is_in(item)),
            Value::Object(entries) => {
                entries.iter().any(|(name, value)| self.has_match(name.as_bytes()) || self.is_in(value))
            }
            Value::Null | Value::Bool(_) => false,
        }
    }

    fn map(&self, attributes: &Attributes, count: &mut u64) -> Attributes {
        let entry = |(name, value): (&String, &Value)| {
            (self.text(name, count).unwrap_or_else(|| name.clone()), self.value(value, count))
        };
        attributes.iter().map(entry).collect()
    }

    fn value(&self, value: &Value, count: &mut u64) -> Value {
        match value {
            Value::String(text) => self.text(text, count).map_or_else(|| value.clone(), Value::String),
            // What is left of it need not be a number.
            Value::Number(number) => self.text(&number.to_string(), count).map_or_else(|| value.clone(), Value::String),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.value(item, count)).collect()),
            Value::Object(entries) => Value::Object(self.map(entries, count)),
            Value::Null | Value::Bool(_) => value.clone(),
        }
    }

    fn text(&self, text: &str, count: &mut u64) -> Option<String> {
        let (redacted, matches) = self.redact(text.as_bytes())?;
        *count += matches;
        Some(String::from_utf8_lossy(&redacted).into_owned())
    }
}

impl Matcher {
    fn is_match(&self, text: &[u8]) -> bool {
        match self {
            Self::Regex { regex, needs, .. } => is_possible(*needs, text) && regex.is_match(text),
            Self::Card { .. } => !card::find(text).is_empty(),
        }
    }

    fn replace(&self, text: &[u8]) -> Option<(Vec<u8>, u64)> {
        match self {
            Self::Card { replacement } => {
                splice(text, card::find(text).into_iter().map(|place| (place, Cow::Borrowed(&**replacement))))
            }
            Self::Regex { needs, .. } if !is_possible(*needs, text) => None,
            Self::Regex { regex, replacement, has_groups: false, .. } => {
                splice(text, regex.find_iter(text).map(|found| (found.range(), Cow::Borrowed(&**replacement))))
            }
            Self::Regex { regex, replacement, .. } => {
                let expanded = |captures: Captures<'_>| {
                    let mut instead = Vec::new();
                    captures.expand(replacement, &mut instead);
                    Some((captures.get(0)?.range(), Cow::Owned(instead)))
                };
                splice(text, regex.captures_iter(text).filter_map(expanded))
            }
        }
    }
}

fn is_possible(needs: Option<u8>, text: &[u8]) -> bool {
    needs.is_none_or(|byte| memchr::memchr(byte, text).is_some())
}

/// The text with something else in these places, and how many there were; `None` when there was none.
fn splice<'a>(text: &[u8], places: impl Iterator<Item = (Range<usize>, Cow<'a, [u8]>)>) -> Option<(Vec<u8>, u64)> {
    let mut out = Vec::new();
    let (mut end, mut count) = (0, 0);
    // Where nothing was matched there is nothing to take out.
    for (place, instead) in places.filter(|(place, _)| !place.is_empty()) {
        out.extend_from_slice(&text[end..place.start]);
        out.extend_from_slice(&instead);
        end = place.end;
        count += 1;
    }
    (count > 0).then(|| {
        out.extend_from_slice(&text[end..]);
        (out, count)
    })
}

fn by_regex(regex: Regex, needs: Option<u8>, replacement: &str) -> Matcher {
    // `$$` has to be made one.
    let has_groups = replacement.contains('$');
    Matcher::Regex { regex, needs, replacement: replacement.as_bytes().to_vec(), has_groups }
}

/// As a replacement in which nothing is a group.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// RFC 6750, section 2.1: `b64token`. Between word and token also what stands there in headers that were printed.
const BEARER: &str = r#"(?i)(\bbearer)((?:[\s:="']|%20|\+)+)[A-Za-z0-9._~+/=-]+"#;
/// Two parts of base64url that begin with `{"`, and a signature that may be empty.
const WEB_TOKEN: &str = r"eyJ[A-Za-z0-9_-]+\.eyJ[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)*";
const EMAIL: &str = r"[\p{L}\p{N}._%+'-]+@(?:[\p{L}\p{N}](?:[\p{L}\p{N}-]*[\p{L}\p{N}])?\.)+\p{L}{2,}";

fn built_in(rule: Rule, replacement: &str, matchers: &mut Vec<Matcher>) {
    let mut add = |pattern: &str, needs, replacement: &str| {
        let regex = pattern::compile(pattern);
        debug_assert!(regex.is_ok(), "{regex:?}");
        matchers.extend(regex.ok().map(|regex| by_regex(regex, needs, replacement)));
    };
    match rule {
        Rule::BearerToken => {
            add(BEARER, None, &format!("${{1}}${{2}}{}", literal(replacement)));
            add(WEB_TOKEN, None, &literal(replacement));
        }
        Rule::CardNumber => matchers.push(Matcher::Card { replacement: replacement.as_bytes().to_vec() }),
        Rule::Email => add(EMAIL, Some(b'@'), &literal(replacement)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn all() -> Redactor {
        Redactor::new(&[Rule::BearerToken, Rule::CardNumber, Rule::Email], &[], REDACTED).expect("valid")
    }

    fn redacted(redactor: &Redactor, text: &str) -> Option<String> {
        redactor.redact(text.as_bytes()).map(|(text, _)| String::from_utf8(text).expect("text"))
    }

    #[test]
    fn built_in_rules_find_what_they_are_for() {
        let all = all();
        for (text, expected) in [
            ("Authorization: Bearer abc.DEF-1~2+/==", "Authorization: Bearer [REDACTED]"),
            (r#"{"authorization":"bearer x"}"#, r#"{"authorization":"bearer [REDACTED]"}"#),
            ("t=eyJhbGciOi.eyJzdWIi.c2ln;", "t=[REDACTED];"),
            ("paid with 4111 1111 1111 1111 by anna@example.com", "paid with [REDACTED] by [REDACTED]"),
            ("<Jörg.Müller+x@bücher.example>", "<[REDACTED]>"),
        ] {
            assert_eq!(redacted(&all, text).as_deref(), Some(expected));
        }
        for text in ["", "a bear", "user@host", "4111111111111112", "eyJub", "all is well"] {
            assert_eq!(redacted(&all, text), None, "{text}");
        }
    }

    #[test]
    fn own_patterns_keep_what_their_replacement_names() {
        let own = |pattern: &str, replacement: Option<&str>| Pattern {
            pattern: pattern.to_owned(),
            replacement: replacement.map(str::to_owned),
        };
        let patterns = [own(r"(?P<key>password|pin)=\S+", Some("${key}=$$")), own(r"\d{6}", None)];
        let redactor = Redactor::new(&[], &patterns, "$1").expect("valid");
        assert_eq!(redacted(&redactor, "password=a pin=b 123456").as_deref(), Some("password=$ pin=$ $1"));
        let (bytes, count) = redactor.redact(b"\xff 123456 \xfe 654321").expect("two");
        assert_eq!((bytes.as_slice(), count), (b"\xff $1 \xfe $1".as_slice(), 2));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let patterns = ["(", "a*", "b"].map(|pattern| Pattern { pattern: pattern.to_owned(), replacement: None });
        let errors = Redactor::new(&[], &patterns, REDACTED).expect_err("wrong");
        assert_eq!(errors.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn attributes_are_redacted_at_any_depth() {
        let attributes = json!({
            "user": "anna@example.com", "pan": 4111111111111111_u64, "n": 7,
            "deep": [{"a@b.example": ["x", "Bearer s3cret"]}],
        });
        let attributes = attributes.as_object().expect("an object");
        let (redacted, count) = all().redact_attributes(attributes).expect("matches");
        let expected = json!({
            "user": "[REDACTED]", "pan": "[REDACTED]", "n": 7,
            "deep": [{"[REDACTED]": ["x", "Bearer [REDACTED]"]}],
        });
        assert_eq!((json!(redacted), count), (expected, 4));
        assert!(all().redact_attributes(json!({"n": [7, null]}).as_object().expect("an object")).is_none());
    }

    proptest! {
        /// What is left has no match, and what is outside of matches stays as it is.
        #[test]
        fn no_match_is_left(
            parts in proptest::collection::vec(
                prop_oneof![
                    "[ -~é\u{0}]{0,12}",
                    "[a-z.]{1,8}@[a-z]{1,6}\\.[a-z]{2,4}",
                    "(b|B)earer [a-zA-Z0-9._~+/-]{1,20}",
                    Just("4111111111111111".to_owned()),
                    Just("5555-5555-5555-4444".to_owned()),
                    "eyJ[a-z]{3}\\.eyJ[a-z]{3}\\.[a-z]{0,3}",
                ],
                0..8,
            ),
        ) {
            let redactor = all();
            let text = parts.join(" ");
            match redactor.redact(text.as_bytes()) {
                None => prop_assert!(!redactor.has_match(text.as_bytes())),
                Some((once, count)) => {
                    prop_assert!(count > 0);
                    let left = String::from_utf8(once).expect("text");
                    prop_assert!(!left.contains("4111111111111111") && !left.contains("5555-5555-5555-4444"), "{left}");
                    let matched = |pattern: &str| Regex::new(pattern).expect("valid").is_match(left.as_bytes());
                    prop_assert!(!matched(EMAIL) && !matched(WEB_TOKEN), "{left}");
                }
            }
        }
    }
}
