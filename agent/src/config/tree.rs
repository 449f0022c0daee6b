//! A YAML file as a tree in which each key and value knows where it stands.
//!
//! Errors are found long after parsing (a glob that does not compile, two sinks of one name); the tree gives them
//! line and column by their path, so that no later type needs to carry a position.

use std::{fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

use super::report::Problem;

/// Bytes of the file.
pub(super) type Span = Range<usize>;

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// Empty for a collection in block style: its key says where it is.
    pub(super) span: Span,
    pub(super) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key of a mapping with its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Span,
    pub(super) node: Node,
}

impl Node {
    /// Reads one YAML document; an empty text is [`Value::Null`].
    ///
    /// # Errors
    /// The first place where the text is not YAML, or a key stands twice in a mapping.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        Self::parse_of(text, 100_000)
    }

    /// The same, of at most so many nodes.
    pub(super) fn parse_of(text: &str, max_nodes: usize) -> Result<Self, Problem> {
        // The file is the operator's own and its size is bounded; the budget is there for aliases of aliases.
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_depth: 64, max_events: 2 * max_nodes, max_nodes: max_nodes },
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| syntax_problem(text, &error))
    }

    /// The narrowest place that is known for a path such as `sinks[1].rotate.size`: of the value when it stands in
    /// the file, else of the section that it would stand in.
    pub(super) fn locate(&self, path: &str) -> Span {
        let mut node = self;
        let mut place = self.span.clone();
        for segment in segments(path) {
            match (&node.value, segment) {
                (Value::Mapping(entries), Segment::Key(key)) => {
                    let Some(entry) = entries.iter().find(|entry| entry.key == key) else { break };
                    node = &entry.node;
                    place = if node.is_block() { entry.key_span.clone() } else { node.span.clone() };
                }
                (Value::Sequence(items), Segment::Index(index)) => {
                    let Some(item) = items.get(index) else { break };
                    node = item;
                    place = item.place(&place);
                }
                _ => break,
            }
        }
        place
    }

    /// The node's own span, or the next best: of its first key, or of what it stands in.
    pub(super) fn place(&self, parent: &Span) -> Span {
        match &self.value {
            Value::Mapping(entries) if self.is_block() => {
                entries.first().map_or_else(|| parent.clone(), |entry| entry.key_span.clone())
            }
            _ if self.span.is_empty() => parent.clone(),
            _ => self.span.clone(),
        }
    }

    /// Whether it is a collection whose span says nothing.
    fn is_block(&self) -> bool {
        self.span.is_empty()
    }
}

enum Segment<'a> {
    Key(&'a str),
    Index(usize),
}

fn segments(path: &str) -> impl Iterator<Item = Segment<'_>> {
    path.split(['.', '[']).filter(|segment| !segment.is_empty()).map(|segment| {
        match segment.strip_suffix(']').map(str::parse) {
            Some(Ok(index)) => Segment::Index(index),
            _ => Segment::Key(segment),
        }
    })
}

/// In the operator's words where the crate's are meant for a programmer.
fn syntax_problem(text: &str, error: &serde_saphyr::Error) -> Problem {
    use serde_saphyr::Error;
    let inner = error.without_snippet();
    let span = error.location().and_then(|location| span_of(text, &location));
    let (message, help) = match inner {
        Error::DuplicateMappingKey { key, .. } => (
            format!("the option `{}` stands twice in the same section", key.as_deref().unwrap_or("?")),
            Some("remove one of them".to_owned()),
        ),
        Error::MultipleDocuments { .. } => {
            ("a second YAML document begins here".to_owned(), Some("keep one document in the file".to_owned()))
        }
        Error::Budget { .. } => {
            (format!("this is too large or too deeply nested for a configuration: {}", one_line(inner)), None)
        }
        _ => (format!("this is not valid YAML: {}", one_line(inner)), None),
    };
    Problem { path: String::new(), span, message, help }
}

/// The crate's message without the place that it adds at the end: the report has its own.
fn one_line(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    text[..end].to_owned()
}

/// Scanner errors know characters only, all others bytes too.
fn span_of(text: &str, location: &Location) -> Option<Span> {
    let span = location.span();
    let (start, length) = match (span.byte_offset(), span.byte_len()) {
        (Some(start), Some(length)) => (usize::try_from(start).ok()?, usize::try_from(length).ok()?),
        _ => {
            let characters = usize::try_from(span.offset()).ok()?;
            let start = text.char_indices().nth(characters).map_or(text.len(), |(index, _)| index);
            (start, text[start..].chars().next().map_or(0, char::len_utf8))
        }
    };
    let start = start.min(text.len());
    let end = start.saturating_add(length).min(text.len());
    (text.is_char_boundary(start) && text.is_char_boundary(end)).then_some(start..end)
}

/// Spans are bytes here because the whole text is parsed from a `&str`.
fn bytes_of(location: &Location) -> Span {
    let span = location.span();
    let start = span.byte_offset().and_then(|start| usize::try_from(start).ok()).unwrap_or(0);
    let length = span.byte_len().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    start..start.saturating_add(length)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        let mut span = bytes_of(&referenced);
        if matches!(value, Value::Sequence(_) | Value::Mapping(_)) && span.len() <= 1 {
            // In flow style only the opening bracket is known, in block style an empty place before the first item.
            span.end = span.start;
        }
        Ok(Self { span, value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = access.next_entry::<Spanned<String>, Node>()? {
            entries.push(Entry { key: key.value, key_span: bytes_of(&key.referenced), node });
        }
        Ok(Value::Mapping(entries))
    }
}
