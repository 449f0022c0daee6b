//! From a tree to a type, with every error instead of the first one.
//!
//! A deserializer stops at its first error. Here the value that caused it is then left out and the rest is read
//! again, until the rest is good: since every option has a default, leaving one out is harmless. Unknown options
//! are noted on the way.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use super::{
    failure::{Failure, Kind, Place},
    reader::{Context, Reader, address, join},
    report::{MAX_PROBLEMS, Problem},
    tree::{Node, Span, Value},
};

/// How many values of the file are read in all in search of the wrong ones, when only their section is known: a
/// small file is searched to the end, a huge one that is wrong all over does not hold up the agent.
const MAX_TRIAL_READS: usize = 2_000_000;

/// What was read of a file.
pub(super) struct Reading<T> {
    /// `None` when nothing could be read; without what is wrong.
    pub(super) value: Option<T>,
    /// What is wrong, up to [`MAX_PROBLEMS`].
    pub(super) problems: Vec<Problem>,
    /// Paths of the values that were left out.
    left_out: Vec<String>,
}

/// Reads a `T`, and all that is wrong with it.
pub(super) fn interpret<T: DeserializeOwned>(root: &Node) -> Reading<T> {
    let context = Context::default();
    context.trials_left.set(MAX_TRIAL_READS / size(root));
    let mut left_out = Vec::new();
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
        if !is_consequence(root, &context, &failure, &place) {
            context.note(failure.problem(place.path.clone(), place.span));
        }
        left_out.push(place.path);
        let is_new = context.skipped.borrow_mut().insert(place.node);
        if !is_new || place.node == address(root) || context.problems.borrow().len() >= MAX_PROBLEMS {
            break None;
        }
    };
    Reading { value, problems: context.problems.into_inner(), left_out }
}

impl<T> Reading<T> {
    /// The path in the file of what has `path` in the value: items of lists that were left out count there too.
    pub(super) fn path_in_file(&self, path: &str) -> String {
        let mut result = String::with_capacity(path.len());
        for part in path.split_inclusive(']') {
            let index = part.strip_suffix(']').and_then(|part| part.rsplit_once('['));
            let Some((before, Ok(index))) = index.map(|(before, index)| (before, index.parse::<usize>())) else {
                result.push_str(part);
                continue;
            };
            result.push_str(before);
            let mut original = index;
            for left_out in self.left_out_of(&result) {
                if left_out <= original {
                    original += 1;
                }
            }
            result.push_str(&format!("[{original}]"));
        }
        result
    }

    /// Which items of the list at `path` were left out, in order.
    fn left_out_of(&self, path: &str) -> BTreeSet<usize> {
        let index = |item: &String| item.strip_prefix(path)?.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
        self.left_out.iter().filter_map(index).collect()
    }

    /// Whether something is already known to be wrong at `path` or below.
    pub(super) fn is_reported(&self, path: &str) -> bool {
        let is_below = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        self.problems.iter().any(|problem| problem.path.strip_prefix(path).is_some_and(is_below))
    }
}

/// Whether the failure only comes from what was left out before: the missing option was wrong, or all options were.
fn is_consequence(root: &Node, context: &Context, failure: &Failure, place: &Place) -> bool {
    if let Kind::MissingField(field) = &failure.kind {
        let path = join(&place.path, field);
        return context.problems.borrow().iter().any(|problem| problem.path == path);
    }
    let node = find(root, context, place.node).map(|reader| &reader.node.value);
    matches!(node, Some(Value::Mapping(entries))
        if !entries.is_empty() && entries.iter().all(|entry| context.skips(address(&entry.node))))
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
        candidates.retain(|(_, key)| *key == Some(field));
    }
    context.is_trial.set(true);
    let culprit = candidates.into_iter().map(|(candidate, _)| candidate).find(|candidate| {
        let Some(trials_left) = context.trials_left.get().checked_sub(1) else { return false };
        context.trials_left.set(trials_left);
        let before = context.skipped.borrow().clone();
        if !context.skipped.borrow_mut().insert(candidate.node) {
            return false;
        }
        let outcome = T::deserialize(Reader::root(root, context));
        context.skipped.replace(before);
        let Err(other) = outcome else { return true };
        let is_elsewhere = other.place.as_ref().is_none_or(|other| other.node != place.node);
        // An option that has to be there is no culprit: without it the section fails in another way.
        is_elsewhere || (other.kind != failure.kind && !matches!(other.kind, Kind::MissingField(_)))
    });
    context.is_trial.set(false);
    let Some(culprit) = culprit else { return place };
    // Of an unknown option the name is wrong, of all others the value.
    match (&failure.kind, culprit.value_span.clone()) {
        (Kind::UnknownField { .. }, _) | (_, None) => culprit,
        (_, Some(span)) => Place { span, ..culprit },
    }
}

/// How many values the tree has.
fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Mapping(entries) => entries.iter().map(|entry| size(&entry.node)).sum(),
        Value::Sequence(items) => items.iter().map(size).sum(),
        _ => 0,
    }
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
