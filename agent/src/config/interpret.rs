//! From a tree to a type, with every error instead of the first one.
//!
//! A deserializer stops at its first error. Here the value that caused it is then left out and the rest is read
//! again, until the rest is good: since every option has a default, leaving one out is harmless. Unknown options
//! are noted on the way.

use serde::de::DeserializeOwned;

use super::{
    failure::{Failure, Kind, Place},
    reader::{Context, Reader, address, join},
    report::{MAX_PROBLEMS, Problem},
    tree::{Node, Span, Value},
};

/// How many values are tried, when only the section is known in which the wrong one stands.
const MAX_TRIALS: usize = 256;

/// Reads a `T`, and all that is wrong with it, up to [`MAX_PROBLEMS`]. What is wrong is left out of the `T`; it is
/// `None` when nothing could be read.
pub(super) fn interpret<T: DeserializeOwned>(root: &Node) -> (Option<T>, Vec<Problem>) {
    let context = Context::default();
    let value = loop {
        let failure = match T::deserialize(Reader::root(root, &context)) {
            Ok(value) => break Some(value),
            Err(failure) => failure,
        };
        let Some(place) = failure.place.clone() else {
            context.note(failure.problem(String::new(), root.span.clone()));
            break None;
        };
        let place = narrow::<T>(root, &context, &failure, place);
        context.note(failure.problem(place.path, place.span));
        let is_new = context.skipped.borrow_mut().insert(place.node);
        if !is_new || place.node == address(root) || context.problems.borrow().len() >= MAX_PROBLEMS {
            break None;
        }
    };
    (value, context.problems.into_inner())
}

/// Types that serde buffers first (tagged enums, flattened structs) fail as a whole; finds out which value did it.
fn narrow<T: DeserializeOwned>(root: &Node, context: &Context, failure: &Failure, place: Place) -> Place {
    let Some(Reader { node, path, .. }) = find(root, context, place.node) else { return place };
    if matches!(failure.kind, Kind::MissingField(_)) || !matches!(node.value, Value::Mapping(_) | Value::Sequence(_)) {
        return place;
    }
    let mut candidates = Vec::new();
    collect(node, &path, &place.span, &mut candidates);
    if let Kind::UnknownField { field, .. } = &failure.kind {
        return candidates
            .into_iter()
            .find(|(candidate, key)| *key == Some(field) && !context.skips(candidate.node))
            .map_or(place, |(candidate, _)| candidate);
    }
    context.is_trial.set(true);
    let culprit = candidates.into_iter().take(MAX_TRIALS).map(|(candidate, _)| candidate).find(|candidate| {
        let before = context.skipped.borrow().clone();
        if !context.skipped.borrow_mut().insert(candidate.node) {
            return false;
        }
        let outcome = T::deserialize(Reader::root(root, context));
        context.skipped.replace(before);
        match outcome {
            Ok(_) => true,
            Err(Failure { kind: Kind::MissingField(_), .. }) => false,
            Err(other) => other.kind != failure.kind,
        }
    });
    context.is_trial.set(false);
    culprit
        .map_or(place, |culprit| Place { span: culprit.value_span.clone().unwrap_or(culprit.span.clone()), ..culprit })
}

/// All values below `node`, leaves before what holds them, each with its key.
fn collect<'t>(node: &'t Node, path: &str, parent: &Span, into: &mut Vec<(Place, Option<&'t String>)>) {
    match &node.value {
        Value::Mapping(entries) => {
            for entry in entries {
                let path = join(path, &entry.key);
                collect(&entry.node, &path, &entry.key_span, into);
                let value_span = (!entry.node.span.is_empty()).then(|| entry.node.span.clone());
                let place = Place { node: address(&entry.node), span: entry.key_span.clone(), value_span, path };
                into.push((place, Some(&entry.key)));
            }
        }
        Value::Sequence(items) => {
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                let span = item.place(parent);
                collect(item, &path, &span, into);
                into.push((Place { node: address(item), span, value_span: None, path }, None));
            }
        }
        _ => {}
    }
}

fn find<'t, 'c>(node: &'t Node, context: &'c Context, wanted: usize) -> Option<Reader<'t, 'c>> {
    let mut open = vec![Reader::root(node, context)];
    while let Some(reader) = open.pop() {
        if address(reader.node) == wanted {
            return Some(reader);
        }
        match &reader.node.value {
            Value::Mapping(entries) => open.extend(entries.iter().map(|entry| reader.entry(entry))),
            Value::Sequence(items) => {
                open.extend(items.iter().enumerate().map(|(index, item)| reader.item(index, item)));
            }
            _ => {}
        }
    }
    None
}
