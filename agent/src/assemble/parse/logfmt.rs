//! logfmt: `key=value key="quoted \"value\"" word`.

use serde_json::Value;

use super::MAX_VALUES;
use crate::record::Attributes;

/// What a word without `=` means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Words {
    /// A key whose value is `true`.
    True,
    /// That the line is prose; and so does a single pair.
    Refuse,
}

/// The pairs of a body; `None` when it does not begin with a pair, is not UTF-8, or is not well formed. Values are
/// strings, as they were written. Of a key that occurs twice the last value stands.
pub(super) fn parse(body: &[u8], words: Words) -> Option<Attributes> {
    // Prose ends here, at its first word, before anything is checked or allocated.
    let first = body.iter().position(|&byte| !is_key(byte))?;
    if first == 0 || body[first] != b'=' {
        return None;
    }
    let mut rest = std::str::from_utf8(body).ok()?.trim_ascii_end();
    let mut attributes = Attributes::new();
    while !rest.is_empty() {
        let (key, behind) = split(rest, |byte| !is_key(byte));
        if key.is_empty() || attributes.len() == MAX_VALUES {
            return None;
        }
        let (value, behind) = match behind.strip_prefix('=') {
            None if words == Words::Refuse => return None,
            None => (Value::Bool(true), behind),
            Some(quoted) if quoted.starts_with('"') => {
                let (text, behind) = unquote(quoted)?;
                (Value::String(text), behind)
            }
            Some(plain) => {
                let (text, behind) = split(plain, |byte| byte <= b' ' || byte == b'"');
                (Value::String(text.to_owned()), behind)
            }
        };
        attributes.insert(key.to_owned(), value);
        rest = behind.trim_ascii_start();
        if rest.len() == behind.len() && !rest.is_empty() {
            return None;
        }
    }
    (words == Words::True || attributes.len() > 1).then_some(attributes)
}

fn is_key(byte: u8) -> bool {
    byte > b' ' && byte != b'=' && byte != b'"' && byte != 0x7F
}

/// Splits before the first byte that `ends` tells. All such bytes are ASCII, so characters stay whole.
fn split(text: &str, ends: impl Fn(u8) -> bool) -> (&str, &str) {
    text.split_at(text.bytes().position(ends).unwrap_or(text.len()))
}

/// The text of a quoted value and what follows its closing quote. The escapes are those of JSON, and others are kept.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut end = 1;
    loop {
        end += memchr::memchr2(b'"', b'\\', quoted.as_bytes().get(end..)?)?;
        if quoted.as_bytes()[end] == b'"' {
            break;
        }
        end += 2;
    }
    let (literal, behind) = quoted.split_at(end + 1);
    let text = match memchr::memchr(b'\\', literal.as_bytes()) {
        None => literal[1..end].to_owned(),
        Some(_) => serde_json::from_str(literal).unwrap_or_else(|_| literal[1..end].to_owned()),
    };
    Some((text, behind))
}
