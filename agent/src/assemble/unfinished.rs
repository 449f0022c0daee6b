//! What an assembler has not finished, so that one in another process goes on exactly there.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    lines::Assembler,
    multiline::{Joiner, UnderWay},
    settings::Compiled,
};
use crate::record::{Line, LineFlags};

/// Bytes that are in no line that was given out, and how far they are understood.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Unfinished {
    /// Contiguous in the stream: the lines of a record under way, then the line that has no end yet.
    bytes: Vec<u8>,
    /// The lines of the record under way.
    held: Vec<Held>,
    rest: Rest,
}

/// What is small, and changes with each write.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
struct Rest {
    /// Position of the next byte; `None` before the first.
    position: Option<u64>,
    /// Where in the bytes the line begins that has no end yet.
    partial_start: usize,
    /// When the write came that began it.
    partial_time: u64,
    last_observed: u64,
    next_flags: u8,
    /// By which rules the record is under way.
    rules_digest: u32,
    under_way: UnderWay,
}

/// A line of a record under way.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Held {
    time: u64,
    observed: u64,
    start: usize,
    end: usize,
    span: u64,
    flags: u8,
}

/// How much of it was told already.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mark {
    start: Option<u64>,
    bytes: usize,
    held: usize,
}

/// How it has changed since a [`Mark`]: bytes that were told already are not told again, or a long line that comes in
/// small writes would be told over and over.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Update {
    keep_bytes: usize,
    keep_held: usize,
    bytes: Vec<u8>,
    held: Vec<Held>,
    rest: Rest,
}

impl Unfinished {
    /// How many bytes there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Brings it up to date.
    pub fn update(&mut self, update: Update) {
        self.bytes.truncate(update.keep_bytes);
        self.bytes.extend(update.bytes);
        self.held.truncate(update.keep_held);
        self.held.extend(update.held);
        self.rest = update.rest;
    }

    /// All of it, as an update of nothing.
    #[must_use]
    pub fn into_update(self) -> Update {
        Update { keep_bytes: 0, keep_held: 0, bytes: self.bytes, held: self.held, rest: self.rest }
    }

    /// Position of the first of the bytes.
    fn start(&self) -> Option<u64> {
        self.rest.position.map(|end| end.saturating_sub(self.bytes.len() as u64))
    }

    /// The held lines, where they lie in the bytes; `None` when they make no sense.
    fn lines(&self, start: u64) -> Option<Vec<Line>> {
        let mut next = 0;
        let line = |held: &Held| {
            let span = usize::try_from(held.span).ok()?;
            let fits = held.start == next && held.start <= held.end && held.end - held.start <= span;
            next = held.start.checked_add(span)?;
            fits.then(|| Line {
                time_unix_nano: held.time,
                observed_time_unix_nano: held.observed,
                body: held.start..held.end,
                position: start + held.start as u64,
                span: held.span,
                flags: LineFlags(held.flags),
                severity: None,
                attributes: None,
            })
        };
        let lines: Option<Vec<_>> = self.held.iter().map(line).collect();
        lines.filter(|_| next == self.rest.partial_start && next <= self.bytes.len())
    }
}

impl Assembler {
    /// What is unfinished, as a change of what was told up to `mark`, which is moved. To be asked when no line is ready.
    pub fn unfinished(&self, mark: &mut Mark) -> Update {
        let from = self.ready_bytes();
        let start = self.position.map(|_| self.position_of(from));
        let bytes = &self.data[from..];
        let held = self.joiner.as_ref().map_or(&[][..], Joiner::held);
        let known = start.is_some() && mark.start == start && mark.bytes <= bytes.len() && mark.held <= held.len();
        let (keep_bytes, keep_held) = if known { (mark.bytes, mark.held) } else { (0, 0) };
        *mark = Mark { start, bytes: bytes.len(), held: held.len() };
        Update {
            keep_bytes,
            keep_held,
            bytes: bytes[keep_bytes..].to_vec(),
            held: held[keep_held..].iter().map(|line| self.held_line(line, from)).collect(),
            rest: Rest {
                position: self.position,
                partial_start: self.partial_start - from,
                partial_time: self.partial_time,
                last_observed: self.last_observed,
                next_flags: self.next_flags.0,
                rules_digest: self.settings.rules_digest,
                under_way: self.joiner.as_ref().map(Joiner::under_way).unwrap_or_default(),
            },
        }
    }

    const fn held_line(&self, line: &Line, from: usize) -> Held {
        Held {
            time: line.time_unix_nano,
            observed: line.observed_time_unix_nano,
            start: line.body.start - from,
            end: line.body.end - from,
            span: line.span,
            flags: line.flags.0,
        }
    }

    /// An assembler that goes on where another one was. By other rules what is unfinished is cut anew.
    #[must_use]
    pub fn restore(settings: &Arc<Compiled>, unfinished: &Unfinished) -> Self {
        let mut assembler = Self::new(settings);
        let Some(start) = unfinished.start() else { return assembler };
        let rest = &unfinished.rest;
        if let Some(lines) = unfinished.lines(start)
            && rest.rules_digest == settings.rules_digest
            && assembler.joiner.as_mut().map_or(lines.is_empty(), |joiner| joiner.go_on(rest.under_way, lines))
        {
            assembler.data.clone_from(&unfinished.bytes);
            assembler.partial_start = rest.partial_start;
            assembler.partial_time = rest.partial_time;
            assembler.next_flags = LineFlags(rest.next_flags);
            assembler.position = rest.position;
            assembler.last_observed = rest.last_observed;
            return assembler;
        }
        // What the first line went through has gone on.
        let (flags, time) =
            unfinished.held.first().map_or((rest.next_flags, rest.partial_time), |held| (held.flags, held.time));
        assembler = Self::new(settings);
        assembler.next_flags = LineFlags(flags);
        assembler.position = Some(start);
        assembler.push(time, rest.last_observed, start, &unfinished.bytes);
        assembler
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        assemble::{Language, Multiline, Settings},
        record::{Class, IoStream, Origin, Stream},
    };

    fn settings(multiline: bool) -> Arc<Compiled> {
        let rules = if multiline { vec![Language::Java, Language::Go] } else { Vec::new() };
        let multiline = Multiline { rules, max_lines: 4, ..Multiline::default() };
        let settings = Settings { max_line_bytes: bytesize::ByteSize::b(64), multiline, ..Settings::default() };
        settings.compile().expect("valid")
    }

    fn stream() -> Arc<Stream> {
        Arc::new(Stream {
            key: "s".into(),
            class: Class::Pod,
            origin: Origin::Stdio(IoStream::Stdout),
            resource: Arc::default(),
            account: Arc::default(),
            source: None,
        })
    }

    fn take(assembler: &mut Assembler) -> Vec<(Line, Vec<u8>)> {
        let Some(batch) = assembler.take_batch(&stream()) else { return Vec::new() };
        let line = |line: &Line| (Line { body: 0..0, ..line.clone() }, batch.body(line).to_vec());
        batch.lines.iter().map(line).collect()
    }

    #[derive(Clone, Debug)]
    enum Act {
        Push(&'static str),
        Gap,
        Idle,
        /// Told, and gone on with in another assembler.
        Restart,
        /// Told only.
        Tell,
    }

    fn act() -> impl Strategy<Value = Act> {
        let text = prop::sample::select(vec![
            "java.lang.Error: bad\n",
            "\tat a.b.C.d(C.java:1)\n",
            "\tat a",
            ".b.C.e(C.java:2)\n",
            "Caused by: x.Y: z\n",
            "plain\n",
            "no end",
            "\n",
            "panic: oh\n",
            "\ngoroutine 1 [running]:\n",
            "main.main()\n",
            "a line that is longer than what one line may have, so it is cut into several lines",
        ]);
        prop_oneof![
            8 => text.prop_map(Act::Push),
            1 => Just(Act::Gap),
            1 => Just(Act::Idle),
            3 => Just(Act::Restart),
            2 => Just(Act::Tell),
        ]
    }

    proptest! {
        #[test]
        fn a_restored_assembler_gives_the_same_lines(
            acts in prop::collection::vec(act(), 1..80), multiline: bool, take_often: bool,
        ) {
            let settings = settings(multiline);
            let (mut whole, mut restarted) = (Assembler::new(&settings), Assembler::new(&settings));
            let (mut expected, mut seen) = (Vec::new(), Vec::new());
            let (mut position, mut time) = (0, 1);
            let (mut mark, mut told) = (Mark::default(), Unfinished::default());
            for act in acts {
                time += 1_000_000;
                match act {
                    Act::Push(text) => {
                        whole.push(time, time + 1, position, text.as_bytes());
                        restarted.push(time, time + 1, position, text.as_bytes());
                        position += text.len() as u64;
                    }
                    Act::Gap => {
                        whole.gap(position, 10);
                        restarted.gap(position, 10);
                        position += 10;
                    }
                    Act::Idle => {
                        time += 10_000_000_000;
                        whole.idle(time);
                        restarted.idle(time);
                    }
                    Act::Restart | Act::Tell => {
                        seen.extend(take(&mut restarted));
                        let update = restarted.unfinished(&mut mark);
                        let update = postcard::from_bytes(&postcard::to_allocvec(&update).expect("written")).expect("read");
                        told.update(update);
                        prop_assert_eq!(told.len(), restarted.pending());
                        if matches!(act, Act::Restart) {
                            restarted = Assembler::restore(&settings, &told);
                            prop_assert_eq!(restarted.unfinished(&mut Mark::default()), told.clone().into_update());
                            mark = Mark::default();
                        }
                    }
                }
                if take_often {
                    expected.extend(take(&mut whole));
                }
            }
            whole.finish();
            restarted.finish();
            expected.extend(take(&mut whole));
            seen.extend(take(&mut restarted));
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn other_rules_cut_anew() {
        let mut before = Assembler::new(&settings(true));
        before.push(1, 2, 100, b"java.lang.Error: bad\n\tat a.b.C.d(C.java:1)\n\tat");
        let mut told = Unfinished::default();
        told.update(before.unfinished(&mut Mark::default()));
        let mut after = Assembler::restore(&settings(false), &told);
        let lines: Vec<_> = take(&mut after).into_iter().map(|(line, body)| (line.position, body)).collect();
        assert_eq!(lines, [(100, b"java.lang.Error: bad".to_vec()), (121, b"\tat a.b.C.d(C.java:1)".to_vec())]);
        assert_eq!(after.pending(), 3);
    }

    #[test]
    fn what_makes_no_sense_is_cut_anew() {
        let mut told = Unfinished { bytes: b"one\ntwo".to_vec(), held: Vec::new(), rest: Rest::default() };
        told.rest = Rest { position: Some(7), partial_start: 99, ..Rest::default() };
        let mut assembler = Assembler::restore(&settings(false), &told);
        assert_eq!(take(&mut assembler).len(), 1);
        told.rest.position = Some(3);
        assert_eq!(Assembler::restore(&settings(true), &told).pending(), 7);
    }
}
