//! Lines of indices that take nothing now: held, and tried again, while all other indices go on.

use std::time::Instant;

use super::{config::Settings, encode::Entry};
use crate::sinks::flights::Pause;

/// All such lines.
#[derive(Debug, Default)]
pub(super) struct Held {
    lines: Vec<Line>,
    bytes: usize,
    pause: Pause,
    /// Why the last one is held.
    why: Option<String>,
}

#[derive(Debug)]
struct Line {
    entry: Entry,
    is_blocked: bool,
}

impl Held {
    /// How many lines.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Memory of the lines, roughly.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Why the lines are held.
    pub(super) fn why(&self) -> Option<String> {
        let why = self.why.as_ref().filter(|_| !self.lines.is_empty())?;
        Some(format!("{} lines are held and tried again: {why}", self.lines.len()))
    }

    /// Keeps a line.
    pub(super) fn keep(&mut self, mut entry: Entry, why: String, is_blocked: bool, now: Instant) {
        self.pause.begin(now, None);
        entry.held_since.get_or_insert(now);
        self.bytes += size(&entry);
        self.why = Some(why);
        self.lines.push(Line { entry, is_blocked });
    }

    /// Lines that are given up: held for too long, and not because of a block.
    pub(super) fn overdue(&mut self, settings: &Settings, now: Instant) -> Vec<Entry> {
        let is_overdue = |line: &mut Line| {
            let since = line.entry.held_since.unwrap_or(now);
            !line.is_blocked && now.duration_since(since) >= settings.give_up_after
        };
        let overdue: Vec<_> = self.lines.extract_if(.., is_overdue).map(|line| line.entry).collect();
        self.bytes -= overdue.iter().map(size).sum::<usize>();
        overdue
    }

    /// Takes out all lines when it is time to try them again.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Entry> {
        if self.pause.until(now).is_some() { Vec::new() } else { self.take_all() }
    }

    /// A line that was held got through: the others are tried at once.
    pub(super) fn mend(&mut self) {
        self.pause.end();
    }

    /// Takes out all lines.
    pub(super) fn take_all(&mut self) -> Vec<Entry> {
        self.bytes = 0;
        std::mem::take(&mut self.lines).into_iter().map(|line| line.entry).collect()
    }
}

fn size(entry: &Entry) -> usize {
    entry.receipt.line().body.len() + size_of::<Line>()
}
