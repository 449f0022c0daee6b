//! A stream's gaps, and their bytes from the runtime's log.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, TryRecvError},
    },
};

use bytes::Bytes;
use sidestep_abi::stdio::Stdio;

use super::StdioStream;
use crate::{
    attribute::Identity,
    clock::Clock,
    pipeline::journal::{Piece, StreamId},
    record::IoStream,
    runtime_log::{After, Answer, Chunk, Gap, KNOWN_BYTES, Repairs},
};

/// Bytes that are taken over at once, so that lines go out in between.
const BYTES_AT_ONCE: usize = 4 * 1024 * 1024;
/// How often the bytes at a stream's end are looked for, while more is written that nobody has.
const ATTEMPTS: u32 = 8;

/// What a stream knows for the repair of its gaps.
#[derive(Debug)]
pub(super) struct Repair {
    repairs: Repairs,
    /// The last bytes that were taken.
    before: Vec<u8>,
    /// When the last of these were written.
    last_time: u64,
    asked: Option<Asked>,
    /// Where the last gap began that was looked for in vain, where it ended, and how often it was looked for.
    refused: Option<(Range<u64>, bool, u32)>,
}

#[derive(Debug)]
struct Asked {
    range: Range<u64>,
    found: bool,
    answers: Receiver<Answer>,
}

/// What has come of a gap.
pub(super) enum Repaired {
    /// The next bytes of it.
    Chunk(Chunk),
    /// Nothing yet.
    Later,
    /// Nothing is looked for (any more).
    Nothing,
}

impl Repair {
    pub(super) fn new(repairs: Repairs) -> Self {
        Self { repairs, before: Vec::new(), last_time: 0, asked: None, refused: None }
    }

    /// Takes note of bytes that were taken.
    pub(super) fn note(&mut self, time_unix_nano: u64, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(KNOWN_BYTES)..];
        if self.before.len() + bytes.len() > 2 * KNOWN_BYTES {
            let keep = KNOWN_BYTES.saturating_sub(bytes.len()).min(self.before.len());
            self.before.drain(..self.before.len() - keep);
        }
        self.before.extend_from_slice(bytes);
        self.last_time = time_unix_nano;
    }

    /// What comes next does not follow on what was taken.
    pub(super) fn interrupt(&mut self) {
        self.before.clear();
        self.asked = None;
    }

    /// Whether bytes are looked for.
    pub(super) const fn is_under_way(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether bytes were found, and come as fast as they are read.
    pub(super) fn is_found(&self) -> bool {
        self.asked.as_ref().is_some_and(|asked| asked.found)
    }

    /// When the last bytes were written.
    pub(super) const fn last_time(&self) -> u64 {
        self.last_time
    }

    /// Looks for the bytes of `range` in the log of the container, in front of what waits; or of the stream's end, when nothing
    /// waits. Returns whether it does: not when the container has no log, or these were looked for in vain.
    pub(super) fn ask(
        &mut self,
        id: StreamId,
        iostream: IoStream,
        identity: &Identity,
        range: Range<u64>,
        waiting: &BTreeMap<u64, Piece>,
    ) -> bool {
        let at_end = !waiting.contains_key(&range.end);
        let attempts = match &self.refused {
            Some((refused, ..)) if refused.start != range.start => 0,
            Some((refused, was_at_end, _)) if *refused == range && *was_at_end == at_end => return false,
            Some((_, _, attempts)) => *attempts,
            None => 0,
        };
        if attempts >= ATTEMPTS {
            return false;
        }
        let gap = || Gap {
            iostream,
            registered: Clock::now().unix_nano(id.registered),
            range: range.clone(),
            before: self.before[self.before.len().saturating_sub(KNOWN_BYTES)..].to_vec(),
            not_before: self.last_time,
            after: if at_end { After::End } else { After::Bytes(known_after(range.end, waiting)) },
        };
        let Some(answers) = self.repairs.ask(id, identity, gap) else { return false };
        self.refused = Some((range.clone(), at_end, attempts + 1));
        self.asked = Some(Asked { range, found: false, answers });
        true
    }

    /// What has come since, up to `limit` bytes.
    pub(super) fn take(&mut self, next: u64, taken: usize) -> Repaired {
        let Some(asked) = &mut self.asked else { return Repaired::Nothing };
        loop {
            if taken >= BYTES_AT_ONCE {
                return Repaired::Later;
            }
            match asked.answers.try_recv() {
                Ok(Answer::Found) => asked.found = true,
                Ok(Answer::Chunk(chunk)) => return Repaired::Chunk(chunk),
                Err(TryRecvError::Empty) => return Repaired::Later,
                Err(TryRecvError::Disconnected) => {
                    let statistics = self.repairs.statistics();
                    let complete = next >= asked.range.end;
                    if complete { &statistics.gaps } else { &statistics.refused }.fetch_add(1, Relaxed);
                    self.asked = None;
                    return Repaired::Nothing;
                }
            }
        }
    }

    /// Does without: what waits behind the gap has become too much.
    pub(super) fn give_up(&mut self) {
        if self.asked.take().is_some() {
            self.repairs.statistics().refused.fetch_add(1, Relaxed);
        }
    }

    /// Counts bytes that were taken from the log.
    pub(super) fn count(&self, bytes: u64) {
        self.repairs.statistics().bytes.fetch_add(bytes, Relaxed);
    }
}

impl StdioStream {
    /// Looks for what the ring could not hold in the runtime's log.
    pub fn repair_with(&mut self, repairs: Repairs) {
        self.repair = Some(Repair::new(repairs));
    }

    /// Looks for the bytes up to `end` in the runtime's log; returns whether it does.
    pub(super) fn ask(&mut self, end: u64) -> bool {
        let (iostream, range) = (self.iostream(), self.next..end);
        let (Some(repair), Some(settled)) = (&mut self.repair, self.container.settled()) else { return false };
        repair.ask(self.id, iostream, &settled.identity, range, &self.waiting)
    }

    /// Takes what has come, and what waited for it; returns whether nothing is looked for any more.
    pub(super) fn take_repaired(&mut self, kernel: Option<&Stdio>) -> bool {
        let mut taken = 0;
        loop {
            self.take_waiting();
            let (next, is_overdue) = (self.next, self.is_overdue());
            let Some(repair) = &mut self.repair else { return true };
            match repair.take(next, taken) {
                Repaired::Nothing => return true,
                Repaired::Later if is_overdue => {
                    repair.give_up();
                    return true;
                }
                Repaired::Later => return false,
                Repaired::Chunk(chunk) => {
                    taken += chunk.bytes.len();
                    self.accept_repaired(&chunk, kernel);
                }
            }
        }
    }

    pub(super) fn accept_repaired(&mut self, chunk: &Chunk, kernel: Option<&Stdio>) {
        let mut start = 0;
        for (end, time) in &chunk.pieces {
            // A piece of the ring may have come after all.
            let known = self.waiting.first_key_value().map_or(u64::MAX, |(position, _)| *position);
            let from = (chunk.position + start as u64).max(self.next);
            let to = (chunk.position + *end as u64).min(known);
            start = *end;
            if from != self.next || from >= to {
                continue;
            }
            // The runtime was told of it later than what waits was written, if it is slow.
            let latest = self.waiting.first_key_value().map_or(u64::MAX, |(_, piece)| piece.time_unix_nano);
            let last = self.repair.as_ref().map_or(0, Repair::last_time);
            let bytes = &chunk.bytes[(from - chunk.position) as usize..(to - chunk.position) as usize];
            self.accept((*time).min(latest).max(last), bytes);
            if let Some(kernel) = kernel {
                self.book(to - from, kernel, |_, _| ());
            }
            if let Some(repair) = &self.repair {
                repair.count(to - from);
            }
        }
    }
}

/// What is known from `position` on. It ends with a line where it can: a runtime may keep back what follows.
fn known_after(position: u64, waiting: &BTreeMap<u64, Piece>) -> Bytes {
    let mut known: Vec<u8> = Vec::new();
    for (at, piece) in waiting.range(position..) {
        if *at != position + known.len() as u64 || known.len() >= KNOWN_BYTES {
            break;
        }
        known.extend_from_slice(&piece.bytes[..piece.bytes.len().min(KNOWN_BYTES)]);
    }
    known.truncate(KNOWN_BYTES);
    if let Some(newline) = memchr::memrchr(b'\n', &known) {
        known.truncate(newline + 1);
    }
    known.into()
}
