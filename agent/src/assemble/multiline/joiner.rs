//! Holds the lines of the record under way and joins them when it ends.

use std::{mem, sync::Arc};

use super::{
    super::lines::Ready,
    rules::{Rules, State, Step},
    text::without_carriage_return,
};
use crate::record::{Line, LineFlags};

/// Joins the lines of one stream. The lines that it holds are contiguous in the stream and in the arena.
#[derive(Debug)]
pub(in super::super) struct Joiner {
    rules: Arc<Rules>,
    /// The record under way; `None` exactly when `held` is empty.
    state: Option<State>,
    /// Its lines. Those behind `confirmed` belong to it only if a line to come says so.
    held: Vec<Line>,
    /// How many of `held` belong to the record for certain; at least 1 while there is one.
    confirmed: usize,
    /// Sum of the spans of `held`.
    held_bytes: u64,
    /// Marks for the record that comes out next: a record over the limits goes on in a further one.
    flags: LineFlags,
    /// When the last held line came.
    since: u64,
}

/// A record under way, without its lines.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(in super::super) struct UnderWay {
    state: Option<State>,
    confirmed: usize,
    flags: u8,
    since: u64,
}

impl Joiner {
    /// What another joiner needs, besides the lines, to go on.
    pub(in super::super) fn under_way(&self) -> UnderWay {
        let Self { state, confirmed, flags, since, .. } = *self;
        UnderWay { state, confirmed, flags: flags.0, since }
    }

    /// The lines of the record under way.
    pub(in super::super) fn held(&self) -> &[Line] {
        &self.held
    }

    /// Goes on where another joiner of the same rules was; `false` when that makes no sense.
    pub(in super::super) fn go_on(&mut self, under_way: UnderWay, held: Vec<Line>) -> bool {
        let UnderWay { state, confirmed, flags, since } = under_way;
        if state.is_some() == held.is_empty() || confirmed > held.len() {
            return false;
        }
        self.state = state;
        self.held_bytes = held.iter().map(|line| line.span).sum();
        self.held = held;
        self.confirmed = confirmed;
        self.flags = LineFlags(flags);
        self.since = since;
        true
    }

    pub(in super::super) fn new(rules: &Arc<Rules>) -> Self {
        Self {
            rules: Arc::clone(rules),
            state: None,
            held: Vec::new(),
            confirmed: 0,
            held_bytes: 0,
            flags: LineFlags::default(),
            since: 0,
        }
    }

    /// Where in the arena the first held line begins.
    pub(in super::super) fn start(&self) -> Option<usize> {
        self.held.first().map(|line| line.body.start)
    }

    /// When the record under way is let out although it might go on.
    pub(in super::super) fn deadline(&self) -> Option<u64> {
        self.state.map(|_| self.since.saturating_add(self.rules.limits.flush_nanos))
    }

    /// The first `by` bytes of the arena are gone.
    pub(in super::super) fn shift(&mut self, by: usize) {
        for line in &mut self.held {
            line.body = line.body.start - by..line.body.end - by;
        }
    }

    /// Takes the next line: it comes out at once, or is held, and may end the record before it.
    #[inline]
    pub(in super::super) fn feed(&mut self, data: &[u8], line: Line, ready: &mut Ready) {
        if self.state.is_none() && !self.rules.may_start(data[line.body.clone()].first()) {
            ready.emit(data, line);
        } else {
            self.decide(data, line, ready);
        }
    }

    /// Lets out the record under way when nothing more has come for too long. A clock set back starts the wait anew.
    pub(in super::super) fn idle(&mut self, now: u64, data: &[u8], ready: &mut Ready) {
        self.since = self.since.min(now);
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.flush(data, ready);
        }
    }

    /// Lets out everything.
    pub(in super::super) fn flush(&mut self, data: &[u8], ready: &mut Ready) {
        while self.state.is_some() {
            self.release(data, ready);
        }
    }

    fn decide(&mut self, data: &[u8], line: Line, ready: &mut Ready) {
        // A piece of an over-long line is not looked at: it would be joined by accident of where it was cut.
        let whole = !line.flags.contains(LineFlags::CUT) && !line.flags.contains(LineFlags::CONTINUATION);
        let text = without_carriage_return(&data[line.body.clone()]);
        // Each round lets out at least one line or ends.
        while let Some(state) = self.state {
            let step = if whole { self.rules.next(state, text) } else { Step::End };
            match step {
                Step::Join(next) => {
                    if !self.fits(&line) {
                        self.split(data, ready);
                    }
                    self.hold(next, line);
                    self.confirmed = self.held.len();
                    return;
                }
                Step::Hold(next) if self.fits(&line) => {
                    self.hold(next, line);
                    return;
                }
                Step::Hold(_) | Step::End => self.release(data, ready),
            }
        }
        match self.rules.start(text) {
            Some(state) if whole && line.span <= self.rules.limits.bytes => {
                self.hold(state, line);
                self.confirmed = 1;
            }
            _ => ready.emit(data, line),
        }
    }

    fn fits(&self, line: &Line) -> bool {
        let limits = &self.rules.limits;
        self.held.len() < limits.lines && self.held_bytes + line.span <= limits.bytes
    }

    fn hold(&mut self, state: State, line: Line) {
        self.state = Some(state);
        self.held_bytes += line.span;
        self.since = line.observed_time_unix_nano;
        self.held.push(line);
    }

    /// Lets out what is held as one part of a record that goes on.
    fn split(&mut self, data: &[u8], ready: &mut Ready) {
        let held = mem::take(&mut self.held);
        self.held_bytes = 0;
        ready.emit(data, join(held, self.flags.with(LineFlags::CUT)));
        self.flags = LineFlags::CONTINUATION;
    }

    /// Ends the record: its confirmed lines come out as one. The lines behind them are looked at anew, since one of
    /// them may begin a record itself.
    fn release(&mut self, data: &[u8], ready: &mut Ready) {
        let mut held = mem::take(&mut self.held);
        let rest = held.split_off(self.confirmed.clamp(1, held.len()));
        ready.emit(data, join(held, self.flags));
        self.state = None;
        self.confirmed = 0;
        self.held_bytes = 0;
        self.flags = LineFlags::default();
        for line in rest {
            self.decide(data, line, ready);
        }
    }
}

/// One line out of at least one, with what all of them went through.
fn join(lines: Vec<Line>, flags: LineFlags) -> Line {
    let multiline = if lines.len() > 1 { LineFlags::MULTILINE } else { LineFlags::default() };
    let joined = lines.into_iter().reduce(|mut first, next| {
        first.body.end = next.body.end;
        first.span += next.span;
        first.flags = first.flags.with(next.flags);
        first.observed_time_unix_nano = next.observed_time_unix_nano;
        first
    });
    let mut line = joined.unwrap_or_default();
    line.flags = line.flags.with(flags).with(multiline);
    line
}
