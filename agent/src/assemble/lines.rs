//! Cuts the bytes of one stream into lines.

use std::{mem, sync::Arc};

use super::{multiline::Joiner, parse::Parser, settings::Compiled};
use crate::record::{Batch, Line, LineFlags, Stream};

/// An arena is never set up larger than this in advance, whatever the last batch was.
const MAX_HINT_BYTES: usize = 256 * 1024;

/// Cuts one stream into lines. See the module's invariants.
///
/// The bytes of all writes are appended to one arena that the lines point into, so a batch costs one copy of its
/// bytes and no allocation per line. The owner takes batches out often enough to bound the finished lines; what is
/// unfinished is bounded here.
#[derive(Debug)]
pub struct Assembler {
    pub(super) settings: Arc<Compiled>,
    /// Lines that are ready, then the lines that `joiner` holds, then the partial line. Between the last ready line
    /// and the end, the bytes are contiguous in the stream.
    pub(super) data: Vec<u8>,
    /// Where in `data` the line begins that has no end yet.
    pub(super) partial_start: usize,
    /// When the write came that began it.
    pub(super) partial_time: u64,
    /// What the next line has gone through already.
    pub(super) next_flags: LineFlags,
    /// Position in the stream of the next byte; `None` before the first.
    pub(super) position: Option<u64>,
    /// When the last bytes came.
    pub(super) last_observed: u64,
    pub(super) joiner: Option<Joiner>,
    ready: Ready,
    /// How large the last batch was: how much the next arena is set up for.
    hint: usize,
}

/// The lines that the next batch takes.
#[derive(Debug, Default)]
pub(super) struct Ready {
    lines: Vec<Line>,
    settings: Option<Arc<Compiled>>,
}

impl Ready {
    fn parser(&self) -> Option<&Parser> {
        self.settings.as_ref()?.parser.as_ref()
    }

    /// Takes a line whose body lies in `data`.
    pub(super) fn emit(&mut self, data: &[u8], mut line: Line) {
        if let Some(parser) = self.parser() {
            parser.parse(&data[line.body.clone()], &mut line);
        }
        self.lines.push(line);
    }
}

impl Assembler {
    /// An assembler at the start of a stream.
    #[must_use]
    pub fn new(settings: &Arc<Compiled>) -> Self {
        Self {
            settings: Arc::clone(settings),
            data: Vec::new(),
            partial_start: 0,
            partial_time: 0,
            next_flags: LineFlags::default(),
            position: None,
            last_observed: 0,
            joiner: settings.multiline.as_ref().map(Joiner::new),
            // Without a parser the hot path has one check less.
            ready: Ready { lines: Vec::new(), settings: settings.parser.is_some().then(|| Arc::clone(settings)) },
            hint: 0,
        }
    }

    /// Takes the next bytes of the stream: `time_unix_nano` is when the write began, `observed_unix_nano` when the
    /// kernel saw its end, `position` the place of its first byte in the stream.
    ///
    /// Bytes that do not follow on the last ones count as bytes after a gap.
    pub fn push(&mut self, time_unix_nano: u64, observed_unix_nano: u64, position: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.position.is_some_and(|expected| expected != position) {
            self.interrupt();
        }
        self.position = Some(position.saturating_add(bytes.len() as u64));
        self.last_observed = observed_unix_nano;
        if let Some(joiner) = &mut self.joiner {
            joiner.idle(observed_unix_nano, &self.data, &mut self.ready);
        }
        let base = self.data.len();
        if self.partial_start == base {
            self.partial_time = time_unix_nano;
        }
        if self.data.capacity() - base < bytes.len() {
            self.data.reserve(bytes.len().max(self.hint.saturating_sub(base)));
        }
        self.data.extend_from_slice(bytes);
        for newline in memchr::memchr_iter(b'\n', bytes) {
            self.cut(base + newline);
            self.end_line(base + newline, base + newline + 1, LineFlags::default());
            self.partial_time = time_unix_nano;
        }
        self.cut(self.data.len());
    }

    /// Applies other settings from the line under way on; a record that waits for further lines comes out as it is.
    pub fn change(&mut self, settings: &Arc<Compiled>) {
        if Arc::ptr_eq(&self.settings, settings) {
            return;
        }
        self.flush_joiner();
        self.settings = Arc::clone(settings);
        self.joiner = settings.multiline.as_ref().map(Joiner::new);
        self.ready.settings = settings.parser.is_some().then(|| Arc::clone(settings));
    }

    /// Says that `missing` bytes from `position` on will never come. The partial line before them comes out as
    /// unterminated, the next line is marked. The missing bytes are in no span: who lost them books them.
    pub fn gap(&mut self, position: u64, missing: u64) {
        let end = position.saturating_add(missing);
        if missing > 0 || self.position.is_some_and(|expected| expected != position) {
            self.interrupt();
        }
        self.position = Some(end);
    }

    /// Gives up waiting for what is overdue at `now`: a partial line, a trace that might go on. What comes after a
    /// partial line that was given up is marked as its continuation.
    ///
    /// A trace waits for the partial line behind it, which may belong to it: whether it does must not depend on when this is
    /// called, or a repeat after a kill would be cut otherwise. A later write ends that wait, by its own time.
    ///
    /// `now` is on the clock of `observed_unix_nano`. A clock that was set back delays by one more interval at most,
    /// given that this is called once in a while, whatever [`Assembler::next_deadline`] says.
    pub fn idle(&mut self, now_unix_nano: u64) {
        self.last_observed = self.last_observed.min(now_unix_nano);
        if self.partial_deadline().is_some_and(|deadline| deadline <= now_unix_nano) {
            self.end_partial();
            self.next_flags = LineFlags::CONTINUATION;
        }
        if !self.has_partial()
            && let Some(joiner) = &mut self.joiner
        {
            joiner.idle(now_unix_nano, &self.data, &mut self.ready);
        }
    }

    /// Whether the last bytes came after `now`: the clock was set back, and [`Assembler::idle`] has to be told.
    #[must_use]
    pub const fn is_ahead_of(&self, now_unix_nano: u64) -> bool {
        self.last_observed > now_unix_nano
    }

    /// The end of the stream: everything comes out.
    pub fn finish(&mut self) {
        self.end_partial();
        self.flush_joiner();
        self.next_flags = LineFlags::default();
    }

    /// Takes out all lines that are ready, or nothing when there are none. Costs a copy of the unfinished bytes only.
    pub fn take_batch(&mut self, stream: &Arc<Stream>) -> Option<Batch> {
        if self.ready.lines.is_empty() {
            return None;
        }
        let end = self.ready_bytes();
        let tail = self.data[end..].to_vec();
        let mut data = mem::replace(&mut self.data, tail);
        data.truncate(end);
        // A batch may wait long for its acknowledgement: it must not keep much more than its bytes.
        if data.capacity() / 2 > data.len() + 512 {
            data.shrink_to_fit();
        }
        self.partial_start -= end;
        if let Some(joiner) = &mut self.joiner {
            joiner.shift(end);
        }
        self.hint = end.min(MAX_HINT_BYTES);
        let next = Vec::with_capacity(self.ready.lines.len().min(MAX_HINT_BYTES / size_of::<Line>()));
        let mut lines = mem::replace(&mut self.ready.lines, next);
        if lines.capacity() / 2 > lines.len() + 8 {
            lines.shrink_to_fit();
        }
        Some(Batch { stream: Arc::clone(stream), data: data.into(), lines })
    }

    /// Bytes pushed that no batch has taken out yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.data.len()
    }

    /// Bytes of the lines that the next batch takes out.
    #[must_use]
    pub fn ready_bytes(&self) -> usize {
        self.joiner.as_ref().and_then(Joiner::start).unwrap_or(self.partial_start)
    }

    /// Lines that the next batch takes out.
    #[must_use]
    pub fn ready_lines(&self) -> usize {
        self.ready.lines.len()
    }

    /// Position of the first byte that is not in a ready line: where a reader must start again after a restart.
    /// `None` before the first byte.
    #[must_use]
    pub fn unfinished_position(&self) -> Option<u64> {
        self.position.map(|_| self.position_of(self.ready_bytes()))
    }

    /// When [`Assembler::idle`] has something to do, in nanoseconds since the Unix epoch.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.partial_deadline().or_else(|| self.joiner.as_ref().and_then(Joiner::deadline))
    }

    const fn has_partial(&self) -> bool {
        self.partial_start < self.data.len()
    }

    fn partial_deadline(&self) -> Option<u64> {
        self.has_partial().then(|| self.last_observed.saturating_add(self.settings.idle_flush_nanos))
    }

    /// Position in the stream of a byte behind the ready lines.
    pub(super) fn position_of(&self, offset: usize) -> u64 {
        self.position.unwrap_or(0).saturating_sub((self.data.len() - offset) as u64)
    }

    /// Cuts off full lines while more than the limit lies between the start of the partial line and `end`.
    fn cut(&mut self, end: usize) {
        while end - self.partial_start > self.settings.max_line_bytes {
            let length = cut_length(&self.data[self.partial_start..end], self.settings.max_line_bytes);
            let cut = self.partial_start + length;
            self.end_line(cut, cut, LineFlags::CUT);
            self.next_flags = LineFlags::CONTINUATION;
        }
    }

    /// Ends the partial line: its body at `body_end`, what it accounts for at `end`.
    fn end_line(&mut self, body_end: usize, end: usize, flags: LineFlags) {
        let start = self.partial_start;
        let line = Line {
            time_unix_nano: self.partial_time,
            observed_time_unix_nano: self.last_observed,
            body: start..body_end,
            position: self.position_of(start),
            span: (end - start) as u64,
            flags: mem::take(&mut self.next_flags).with(flags),
            severity: None,
            attributes: None,
        };
        self.partial_start = end;
        match &mut self.joiner {
            None => self.ready.emit(&self.data, line),
            Some(joiner) => joiner.feed(&self.data, line, &mut self.ready),
        }
    }

    /// Lets out the partial line as unterminated. Nothing can be joined to it, so a trace that it ends comes out too.
    fn end_partial(&mut self) {
        let end = self.data.len();
        if self.has_partial() {
            self.end_line(end, end, LineFlags::UNTERMINATED);
            self.flush_joiner();
        }
    }

    fn interrupt(&mut self) {
        self.end_partial();
        self.flush_joiner();
        self.next_flags = LineFlags::AFTER_GAP;
    }

    fn flush_joiner(&mut self) {
        if let Some(joiner) = &mut self.joiner {
            joiner.flush(&self.data, &mut self.ready);
        }
    }
}

/// Where to cut a line that is longer than `max`: there, or up to three bytes before, so that no UTF-8 sequence is
/// torn. Looks at bytes before `max` only, so the cut does not depend on how much of the line is known.
fn cut_length(line: &[u8], max: usize) -> usize {
    for back in 1..=3 {
        let sequence = match line[max - back] {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => 1,
        };
        return if sequence > back { max - back } else { max };
    }
    max
}
