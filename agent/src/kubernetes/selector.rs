//! Label selectors as Kubernetes writes them: `app in (web, api), tier=front, !canary`.

use std::collections::BTreeSet;

use kube::core::{Expression, Selector};

/// Reads a selector.
///
/// # Errors
/// What is wrong with it, and where.
pub fn parse(text: &str) -> Result<Selector, String> {
    let mut expressions = Vec::new();
    for part in split(text)? {
        expressions.push(requirement(part.trim())?);
    }
    if expressions.is_empty() {
        return Err("a selector needs a requirement, such as `app=web`".to_owned());
    }
    Ok(expressions.into_iter().collect())
}

/// The requirements: what commas separate that are not between parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut start, mut is_inside) = (0, false);
    for (index, character) in text.char_indices() {
        match character {
            '(' | ')' if is_inside == (character == '(') => {
                return Err(format!("`{text}`: a `{character}` where none can be"));
            }
            '(' => is_inside = true,
            ')' => is_inside = false,
            ',' if !is_inside => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    if is_inside {
        return Err(format!("`{text}`: a `(` without its `)`"));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn requirement(text: &str) -> Result<Expression, String> {
    if let Some(key) = text.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(checked_key(key)?));
    }
    if let Some((head, values)) = text.strip_suffix(')').and_then(|rest| rest.split_once('(')) {
        let values: BTreeSet<_> =
            values.split(',').map(|value| checked_value(value.trim())).collect::<Result<_, _>>()?;
        return match head.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => Ok(Expression::In(checked_key(key)?, values)),
            [key, "notin"] => Ok(Expression::NotIn(checked_key(key)?, values)),
            _ => Err(format!("`{text}` must be `KEY in (VALUES)` or `KEY notin (VALUES)`")),
        };
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Ok(Expression::NotEqual(checked_key(key)?, checked_value(value.trim())?));
    }
    if let Some((key, value)) = text.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        return Ok(Expression::Equal(checked_key(key)?, checked_value(value.trim())?));
    }
    Ok(Expression::Exists(checked_key(text)?))
}

/// A key: a name of at most 63 characters, with a DNS name and `/` before it or without.
///
/// # Errors
/// It is no key.
pub fn checked_key(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let is_prefix = |prefix: &str| {
        !prefix.is_empty()
            && prefix.len() <= 253
            && prefix.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
    };
    if name.is_empty() || !is_value(name) || !prefix.is_none_or(is_prefix) {
        return Err(format!("`{text}` is not the key of a label"));
    }
    Ok(text.to_owned())
}

fn checked_value(text: &str) -> Result<String, String> {
    if is_value(text) { Ok(text.to_owned()) } else { Err(format!("`{text}` is not the value of a label")) }
}

/// At most 63 letters, digits and `-_.`, with letters or digits at both ends; nothing is a value too.
fn is_value(text: &str) -> bool {
    let is_end = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && is_end(text.chars().next())
        && is_end(text.chars().last())
}

#[cfg(test)]
mod tests {
    use kube::core::SelectorExt as _;
    use proptest::prelude::*;

    use super::*;
    use crate::kubernetes::Labels;

    #[test]
    fn selects_as_kubectl_does() {
        let labels = Labels::from([
            ("app".to_owned(), "web".to_owned()),
            ("app.kubernetes.io/name".to_owned(), "shop".to_owned()),
            ("empty".to_owned(), String::new()),
        ]);
        for (text, expected) in [
            ("app=web", true),
            ("app==web", true),
            (" app = web ", true),
            ("app!=web", false),
            ("tier!=front", true),
            ("app", true),
            ("!app", false),
            ("!tier", true),
            ("empty=", true),
            ("app in (api, web),app.kubernetes.io/name=shop", true),
            ("app in (api)", false),
            ("app notin (api,web)", false),
            ("tier notin (front)", true),
            ("app=web,tier", false),
        ] {
            assert_eq!(parse(text).expect(text).matches(&labels), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for text in [
            "",
            ",",
            "app=web,",
            "app in web",
            "app on (web)",
            "app in (web",
            "app=a b",
            "a/b/c",
            "/x",
            "-a",
            "(",
            "a)",
            "app=(x)",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("app=w*").expect_err("a glob"), "`w*` is not the value of a label");
    }

    proptest! {
        /// Whatever is typed, it is read or refused; and what is read is written as something that means the same.
        #[test]
        fn what_is_read_is_read_again(text in "[a-z/.!=(), in]{0,24}") {
            if let Ok(selector) = parse(&text) {
                prop_assert_eq!(parse(&selector.to_string()).expect("its own text"), selector);
            }
        }
    }
}
