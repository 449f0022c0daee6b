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
    tree::{Node, Value},
};

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
    let mut left_out = Vec::new();
    let value = loop {
        let failure = match T::deserialize(Reader::root(root, &context)) {
            Ok(value) => break Some(value),
            Err(failure) => failure,
        };
        let Some(Place { mut node, mut path, span }) = failure.place.clone() else {
            context.note(failure.problem(String::new(), root.span.clone()));
            break None;
        };
        if !context.skips(node) && !is_consequence(root, &context, &failure, node, &path) {
            context.note(failure.problem(path.clone(), span));
        }
        // What can't be left out, as the content of a choice, goes with the section that it is in.
        while context.skips(node)
            && let Some(outer) = find(root, &context, |reader| has_child(reader.node, node))
        {
            (node, path) = (address(outer.node), outer.path);
        }
        left_out.push(path);
        let is_new = context.skipped.borrow_mut().insert(node);
        if !is_new || node == address(root) || context.problems.borrow().len() >= MAX_PROBLEMS {
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
fn is_consequence(root: &Node, context: &Context, failure: &Failure, node: usize, path: &str) -> bool {
    if let Kind::MissingField(field) = &failure.kind {
        let path = join(path, field);
        return context.problems.borrow().iter().any(|problem| problem.path == path);
    }
    let node = find(root, context, |reader| address(reader.node) == node).map(|reader| &reader.node.value);
    matches!(node, Some(Value::Mapping(entries))
        if !entries.is_empty() && entries.iter().all(|entry| context.skips(address(&entry.node))))
}

fn has_child(node: &Node, wanted: usize) -> bool {
    match &node.value {
        Value::Mapping(entries) => entries.iter().any(|entry| address(&entry.node) == wanted),
        Value::Sequence(items) => items.iter().any(|item| address(item) == wanted),
        _ => false,
    }
}

/// The first node that is as wanted.
fn find<'t, 'c>(
    node: &'t Node,
    context: &'c Context,
    is_wanted: impl Fn(&Reader<'t, 'c>) -> bool,
) -> Option<Reader<'t, 'c>> {
    let mut open = vec![Reader::root(node, context)];
    while let Some(reader) = open.pop() {
        if is_wanted(&reader) {
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
