//! A batch while it goes through the processors: what is changed is put aside, and a new batch is made at the end only if
//! there is something to make it of.

use std::{borrow::Cow, sync::Arc, time::Duration};

use serde_json::Value;

use super::{Processed, limit::Suppressed, redact::Redactor};
use crate::{
    ledger::Reason,
    record::{Attributes, Batch, Line, LineFlags, Severity, Stream},
};

/// Attributes of a summary.
const PROCESSOR: &str = "sidestep.processor.name";
const SUPPRESSED_LINES: &str = "sidestep.suppressed.lines";
const SUPPRESSED_BYTES: &str = "sidestep.suppressed.bytes";

/// A batch on its way.
pub(super) struct Work<'a> {
    batch: &'a Arc<Batch>,
    items: Vec<Item<'a>>,
    dropped: Vec<(Reason, u64)>,
    is_changed: bool,
}

/// One line on its way.
pub(super) struct Item<'a> {
    line: Cow<'a, Line>,
    /// In the place of the line's bytes in the batch.
    body: Option<Vec<u8>>,
}

impl<'a> Work<'a> {
    pub(super) fn new(batch: &'a Arc<Batch>) -> Self {
        let items = batch.lines.iter().map(|line| Item { line: Cow::Borrowed(line), body: None }).collect();
        Self { batch, items, dropped: Vec::new(), is_changed: false }
    }

    pub(super) fn stream(&self) -> Arc<Stream> {
        Arc::clone(&self.batch.stream)
    }

    /// Drops the lines that `keep` is false for, and returns how many they were.
    pub(super) fn drop_unless(&mut self, reason: Reason, mut keep: impl FnMut(&Item<'_>, &[u8]) -> bool) -> u64 {
        let (mut lines, mut span) = (0, 0);
        let data = &self.batch.data;
        self.items.retain(|item| {
            let is_kept = keep(item, data);
            if !is_kept {
                lines += 1;
                span += item.line.span;
            }
            is_kept
        });
        if lines > 0 {
            self.is_changed = true;
            self.dropped.push((reason, span));
        }
        lines
    }

    /// Lets each line be changed.
    pub(super) fn change(&mut self, mut change: impl FnMut(&mut Item<'_>, &[u8])) {
        for item in &mut self.items {
            change(item, &self.batch.data);
            self.is_changed |= item.body.is_some() || matches!(item.line, Cow::Owned(_));
        }
    }

    /// Puts summaries in where their positions belong.
    pub(super) fn insert(&mut self, summaries: Vec<(Line, String)>) {
        for (line, body) in summaries {
            let index = self.items.partition_point(|item| item.line.position <= line.position);
            self.items.insert(index, Item { line: Cow::Owned(line), body: Some(body.into_bytes()) });
            self.is_changed = true;
        }
    }

    /// What came of it; `None` when nothing was changed.
    pub(super) fn finish(self) -> Option<Processed> {
        if !self.is_changed {
            return None;
        }
        let Self { batch, items, dropped, .. } = self;
        let kept: usize = items.iter().map(|item| item.body(&batch.data).len()).sum();
        let is_rewritten = items.iter().any(|item| item.body.is_some());
        // A few lines must not hold all that was around them.
        let (data, lines) = if is_rewritten || kept < batch.data.len() / 2 {
            rewrite(&batch.data, items, kept)
        } else {
            (batch.data.clone(), items.into_iter().map(|item| item.line.into_owned()).collect())
        };
        let batch = Arc::new(Batch { stream: Arc::clone(&batch.stream), data, lines });
        Some(Processed { batch, dropped })
    }
}

fn rewrite(data: &bytes::Bytes, items: Vec<Item<'_>>, length: usize) -> (bytes::Bytes, Vec<Line>) {
    let mut arena = Vec::with_capacity(length + items.len());
    let mut lines = Vec::with_capacity(items.len());
    for item in items {
        let start = arena.len();
        arena.extend_from_slice(item.body(data));
        let mut line = item.line.into_owned();
        line.body = start..arena.len();
        lines.push(line);
        arena.push(b'\n');
    }
    (arena.into(), lines)
}

impl Item<'_> {
    pub(super) fn line(&self) -> &Line {
        &self.line
    }

    pub(super) fn is_synthetic(&self) -> bool {
        super::is_synthetic(self.line.flags)
    }

    pub(super) fn body<'b>(&'b self, data: &'b [u8]) -> &'b [u8] {
        self.body.as_deref().unwrap_or_else(|| &data[self.line.body.clone()])
    }

    /// Redacts body and attributes; returns how many matches there were.
    pub(super) fn redact(&mut self, redactor: &Redactor, data: &[u8]) -> u64 {
        let mut count = 0;
        if let Some((body, matches)) = redactor.redact(self.body(data)) {
            self.body = Some(body);
            count += matches;
        }
        let attributes = self.line.attributes.as_deref();
        if let Some((attributes, matches)) = attributes.and_then(|attributes| redactor.redact_attributes(attributes)) {
            self.line.to_mut().attributes = Some(Box::new(attributes));
            count += matches;
        }
        count
    }

    pub(super) fn add_fields(&mut self, fields: &Attributes) {
        add_fields(&mut self.line.to_mut().attributes, fields);
    }
}

/// Adds attributes; one of the same name gives way.
pub(super) fn add_fields(attributes: &mut Option<Box<Attributes>>, fields: &Attributes) {
    let attributes = attributes.get_or_insert_default();
    attributes.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
}

/// The record that tells of suppressed lines. It stands at the position of the last of them, which no other record has,
/// and accounts for no byte.
pub(super) fn summary(processor: &str, suppressed: &Suppressed) -> (Line, String) {
    let Suppressed { lines, span, since, until, position, .. } = *suppressed;
    let time = Duration::from_nanos(until.saturating_sub(since)).as_secs() + 1;
    let plural = if lines == 1 { "" } else { "s" };
    let body = format!("sidestep: {lines} line{plural} suppressed in {time}s by rate limit {processor}");
    let mut attributes = Attributes::new();
    attributes.insert(PROCESSOR.to_owned(), Value::from(processor));
    attributes.insert(SUPPRESSED_LINES.to_owned(), Value::from(lines));
    attributes.insert(SUPPRESSED_BYTES.to_owned(), Value::from(span));
    let line = Line {
        time_unix_nano: until,
        observed_time_unix_nano: until,
        position,
        flags: LineFlags::SYNTHETIC,
        severity: Some(Severity::Warn),
        attributes: Some(Box::new(attributes)),
        ..Line::default()
    };
    (line, body)
}
