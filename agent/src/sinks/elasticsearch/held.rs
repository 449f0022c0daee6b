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
    /// Since when nothing that was held for the agent's configuration or rights got through.
    since: Option<Instant>,
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
    pub(super) fn keep(&mut self, entry: Entry, why: String, is_blocked: bool, now: Instant) {
        self.pause.begin(now, None);
        if !is_blocked {
            self.since.get_or_insert(now);
        }
        self.bytes += size(&entry);
        self.why = Some(why);
        self.lines.push(Line { entry, is_blocked });
    }

    /// Lines that are given up: held for too long, and not because of a block.
    pub(super) fn overdue(&mut self, settings: &Settings, now: Instant) -> Vec<Entry> {
        if self.since.is_none_or(|since| now.duration_since(since) < settings.give_up_after) {
            return Vec::new();
        }
        self.since = None;
        let (blocked, overdue): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.lines).into_iter().partition(|line| line.is_blocked);
        self.bytes = blocked.iter().map(|line| size(&line.entry)).sum();
        self.lines = blocked;
        overdue.into_iter().map(|line| line.entry).collect()
    }

    /// Takes out all lines when it is time to try them again.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Entry> {
        if self.pause.until(now).is_some() { Vec::new() } else { self.take_all() }
    }

    /// Tries are over, as lines that were held got through.
    pub(super) fn mend(&mut self) {
        if self.lines.is_empty() {
            *self = Self::default();
        }
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
