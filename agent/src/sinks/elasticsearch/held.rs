//! Lines of indices that take nothing now: held, and tried again, while all other indices go on.

use std::time::{Duration, Instant};

use super::encode::Entry;
use crate::sinks::{attempts::Pause, uptime::Uptime};

/// All such lines.
#[derive(Debug, Default)]
pub(super) struct Held {
    lines: Vec<Entry>,
    bytes: usize,
    pause: Pause,
    uptime: Uptime,
    /// Why the last one is held.
    why: Option<String>,
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

    /// Notes whether the server has answered to the point: no line is given up because of an outage.
    pub(super) fn note_server(&mut self, answers: bool, now: Instant) {
        if answers { self.uptime.answered(now) } else { self.uptime.failed() }
    }

    /// Keeps a line; gives it back when it is to be given up, as the server has turned it away for as long as `limit`.
    /// Lines of a blocked index are kept for ever.
    pub(super) fn keep(
        &mut self,
        mut entry: Entry,
        why: String,
        is_blocked: bool,
        limit: Duration,
        now: Instant,
    ) -> Option<Entry> {
        let uptime = self.uptime.reading();
        let since = *entry.held_since.get_or_insert(uptime);
        if is_blocked {
            entry.held_since = Some(uptime);
        } else if uptime - since >= limit {
            return Some(entry);
        }
        self.pause.begin(now, None);
        self.bytes += size(&entry);
        self.why = Some(why);
        self.lines.push(entry);
        None
    }

    /// When held lines are tried again.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        (!self.lines.is_empty()).then(|| self.pause.until(now).unwrap_or(now))
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
        std::mem::take(&mut self.lines)
    }
}

fn size(entry: &Entry) -> usize {
    entry.receipt.line().body.len() + size_of::<Entry>()
}
