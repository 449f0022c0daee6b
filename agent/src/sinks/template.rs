//! Names that are made of what is known of a stream: topics, indices.

use std::fmt::Write as _;

use crate::{kubernetes::selector, record::Stream};

/// A part of a template.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Part<Field> {
    Text(String),
    Field(Field),
    /// A label of the Pod, by its key.
    Label(String),
}

/// What a placeholder of a label begins with.
const LABEL: &str = "label:";

/// The labels of Pods that a template is made of.
pub(super) fn labels<Field>(parts: &[Part<Field>]) -> impl Iterator<Item = &str> {
    parts.iter().filter_map(|part| match part {
        Part::Label(key) => Some(&**key),
        Part::Text(_) | Part::Field(_) => None,
    })
}

/// The value of a label of the Pod, as the Pod may have chosen it.
pub(super) fn label<'stream>(stream: &'stream Stream, key: &str) -> &'stream str {
    let value = stream.resource.metadata.as_ref().and_then(|metadata| metadata.label(key));
    value.filter(|value| !value.is_empty()).unwrap_or(UNKNOWN)
}

/// What is known of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum StreamField {
    Class,
    Namespace,
    Pod,
    Container,
    Node,
    Workload,
}

/// Their names in templates.
pub(super) const STREAM_FIELDS: [(&str, StreamField); 6] = [
    ("class", StreamField::Class),
    ("namespace", StreamField::Namespace),
    ("pod", StreamField::Pod),
    ("container", StreamField::Container),
    ("node", StreamField::Node),
    ("workload", StreamField::Workload),
];

/// Stands for what is not known, such as the namespace of the node's own files.
pub(super) const UNKNOWN: &str = "none";

impl StreamField {
    /// Its value, as the Pod may have chosen it.
    pub(super) fn of(self, stream: &Stream) -> &str {
        let resource = &stream.resource;
        let value = match self {
            Self::Class => return stream.class.as_str(),
            Self::Namespace => &resource.namespace,
            Self::Pod => &resource.pod,
            Self::Container => &resource.container_name,
            Self::Node => &resource.host_name,
            Self::Workload => resource.metadata.as_ref().map_or(&None, |metadata| &metadata.workload),
        };
        value.as_deref().filter(|value| !value.is_empty()).unwrap_or(UNKNOWN)
    }
}

/// What a kind of names is like.
#[derive(Debug)]
pub(super) struct Rules<'fields, Field> {
    /// With its article.
    pub(super) what: &'static str,
    /// Its placeholders.
    pub(super) fields: &'fields [(&'static str, Field)],
    /// Whether a name may have the character.
    pub(super) is_allowed: fn(char) -> bool,
    /// Which those are, in words.
    pub(super) allowed: &'static str,
}

impl<Field: Copy> Rules<'_, Field> {
    /// Reads a template.
    pub(super) fn parse(&self, text: &str) -> Result<Vec<Part<Field>>, String> {
        let Self { what, fields, is_allowed, allowed } = self;
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (before, after) = rest.split_once('{').map_or((rest, None), |(before, after)| (before, Some(after)));
            if let Some(char) = before.chars().find(|char| !is_allowed(*char)) {
                return Err(format!("{what} may not have the character {char:?}, only {allowed}"));
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let Some(after) = after else { break };
            let (name, after) = after.split_once('}').ok_or("a `{` without its `}`")?;
            if let Some(key) = name.strip_prefix(LABEL) {
                parts.push(Part::Label(selector::checked_key(key)?));
                rest = after;
                continue;
            }
            let Some((_, field)) = fields.iter().find(|(known, _)| *known == name) else {
                let known = fields.iter().fold(String::new(), |mut known, (name, _)| {
                    let separator = if known.is_empty() { "" } else { ", " };
                    // Writing to a text can't fail.
                    let _ = write!(known, "{separator}`{{{name}}}`");
                    known
                });
                return Err(format!("`{{{name}}}` is not known; there are {known}, `{{{LABEL}KEY}}`"));
            };
            parts.push(Part::Field(*field));
            rest = after;
        }
        if parts.is_empty() {
            return Err(format!("{what} needs a name"));
        }
        Ok(parts)
    }
}
