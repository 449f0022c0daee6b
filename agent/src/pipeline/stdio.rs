//! A container's stdout or stderr: from numbered pieces to lines.
//!
//! The kernel numbers the bytes of a stream before it hands them over, so a piece that is missing leaves a hole whose
//! size is known. Two writers on two CPUs may get their space in the ring in the other order than their numbers: a
//! hole is a loss only when the kernel has counted it as one, or when nothing has filled it for a while. Its bytes are then
//! looked for in the runtime's log ([`repair`]), while what follows waits; what is not found there is booked as lost.

mod repair;
mod saved;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sidestep_abi::stdio::{
    DROP_FAULT, DROP_MAP_FULL, DROP_OVERSIZE, DROP_QUOTA, DROP_REASONS, DROP_RING_FULL, DROP_UNREADABLE, STDERR, Stdio,
};

use self::repair::Repair;
use super::{
    container::{Container, Profile},
    journal::{Piece, StreamId},
};
use crate::{
    assemble::{Assembler, Mark, Unfinished},
    events::Event,
    ledger::{Reason, Stage},
    record::{Batch, Class, IoStream, Origin, Stream},
};

/// A writer that has its number and not yet its space in the ring needs microseconds.
const SETTLE_ORDER: Duration = Duration::from_millis(5);
/// After this a hole that the kernel has not counted is given up.
const GIVE_UP: Duration = Duration::from_millis(500);
/// Bytes that wait for a hole to close, or for the container's identity.
const MAX_WAITING: usize = 4 * 1024 * 1024;
/// The same, while the bytes before them are there and only have to be read.
const MAX_WAITING_FOUND: usize = 16 * 1024 * 1024;
/// How long the rest of a line that is lost may take to be found, in nanoseconds; then it is given up as any other.
const MAX_IDLE_BEHIND: u64 = 30_000_000_000;

/// One stream. Not `Sync`: it belongs to the thread that drains the ring.
pub struct StdioStream {
    /// Which one.
    pub id: StreamId,
    /// Whose stream it is.
    pub container: Arc<Container>,
    /// The cgroup that the kernel has registered it for: the container's own, or one below that.
    pub cgroup: u64,
    /// Whether it has something new in this round of draining.
    pub dirty: bool,
    /// Whether it has something that the journal does not know.
    pub unsaved: bool,
    iostream: u32,
    /// Not wanted (a terminal, where the configuration leaves these out): nothing of it is in any account.
    unwanted: bool,
    /// The key in its records, once its container is known; it stays, whatever is found out later.
    key: Option<Arc<str>>,
    /// Nobody knows what was taken of it before: it begins with the first piece that comes.
    begins_anywhere: bool,
    /// Where the first piece began that the ring had of it, when the bytes before are another agent's: `u64::MAX` until it has
    /// come, and 0 when there was no other agent.
    inherited_until: u64,
    /// What another agent has not finished, until its container is known.
    restored: Option<Unfinished>,
    /// What of the unfinished is in the journal.
    mark: Mark,
    /// Pieces that are not in the journal.
    new_pieces: Vec<u64>,
    /// Position of the next byte that goes to the assembler.
    next: u64,
    open: Option<Open>,
    waiting: BTreeMap<u64, Piece>,
    waiting_bytes: usize,
    hole_since: Option<Instant>,
    /// Where the stream's end was behind the kernel's count, and since when.
    behind: Option<(u64, Instant)>,
    /// Losses booked so far, by the kernel's reasons.
    booked: [u64; DROP_REASONS],
    /// `None` where nothing is looked for in the runtime's log.
    repair: Option<Repair>,
}

struct Open {
    stream: Arc<Stream>,
    assembler: Assembler,
    /// What was known of the container when it was looked at last.
    settled: Arc<Profile>,
    /// The logs of the container are turned off: what is written is counted as left out.
    is_off: bool,
}

impl StdioStream {
    /// A stream of which nothing was taken yet: all of it is to come.
    #[must_use]
    pub fn new(id: StreamId, container: Arc<Container>, cgroup: u64, iostream: u32) -> Self {
        Self {
            id,
            container,
            cgroup,
            unwanted: false,
            dirty: false,
            unsaved: false,
            iostream,
            key: None,
            begins_anywhere: false,
            inherited_until: 0,
            restored: None,
            mark: Mark::default(),
            new_pieces: Vec::new(),
            next: 0,
            open: None,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            hole_since: None,
            behind: None,
            booked: [0; DROP_REASONS],
            repair: None,
        }
    }

    /// Only a part of it is to come, and nobody knows from where on: what lies before, and what was lost of it until now,
    /// is in no account.
    pub fn begin_anywhere(&mut self, kernel: Option<&Stdio>) {
        self.begins_anywhere = true;
        self.booked = kernel.map_or(self.booked, |kernel| kernel.dropped);
    }

    /// Another agent has taken what came before the first piece that this one gets. By the stream's position that is known,
    /// unless the position is older than the ring.
    pub const fn inherit(&mut self) {
        self.inherited_until = u64::MAX;
    }

    /// Takes one piece.
    pub fn take(&mut self, position: u64, time_unix_nano: u64, bytes: &[u8]) {
        if std::mem::take(&mut self.unwanted) {
            self.next = self.next.max(position);
        }
        if std::mem::take(&mut self.begins_anywhere) {
            self.next = position;
        }
        if self.inherited_until == u64::MAX {
            self.inherited_until = position;
        }
        if position == self.next && self.waiting.is_empty() && self.ensure_open() {
            self.accept(time_unix_nano, bytes);
        } else if position >= self.next {
            self.waiting_bytes += bytes.len();
            let piece = Piece { time_unix_nano, bytes: Bytes::copy_from_slice(bytes) };
            match self.waiting.insert(position, piece) {
                // The ring has told it to the agent before.
                Some(known) => self.waiting_bytes -= known.bytes.len(),
                None => self.new_pieces.push(position),
            }
        }
    }

    /// Passes over a piece that is not wanted, and takes what comes before the next wanted one for unwanted too.
    pub fn pass_over(&mut self, position: u64, len: u64) {
        if !self.unwanted {
            // What came while it was wanted comes out.
            self.give_up(None);
            self.unwanted = true;
        }
        self.begins_anywhere = false;
        self.next = self.next.max(position.saturating_add(len));
    }

    /// Whether pieces wait, or missing ones are looked for, so that [`StdioStream::settle`] has something to do.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.repair.as_ref().is_some_and(Repair::is_under_way)
    }

    /// Position of the next byte that is taken.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.next
    }

    /// Whether so much waits that neither the container's identity nor missing bytes can be waited for any longer.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        let is_found = self.repair.as_ref().is_some_and(Repair::is_found);
        self.waiting_bytes > if is_found { MAX_WAITING_FOUND } else { MAX_WAITING }
    }

    /// Closes holes that are known to be losses, and takes what waited behind them.
    pub fn settle(&mut self, now: Instant, kernel: Option<&Stdio>) {
        if !self.ensure_open() {
            return;
        }
        loop {
            if !self.take_repaired(kernel) {
                return;
            }
            let Some((&position, _)) = self.waiting.first_key_value() else { break };
            let since = *self.hole_since.get_or_insert(now);
            let waited = now.saturating_duration_since(since);
            let missing = position - self.next;
            let counted = kernel.map_or(0, |kernel| self.unbooked(kernel).iter().sum());
            let lost = counted >= missing && waited >= SETTLE_ORDER;
            if !(lost || waited >= GIVE_UP || self.is_overdue()) {
                return;
            }
            self.hole_since = None;
            if self.is_overdue() || !self.ask(position) {
                self.lose(missing, kernel);
            }
        }
        self.hole_since = None;
    }

    /// Looks for, or books, what the kernel counted as lost behind the last piece, while nothing comes that would show the
    /// hole; returns whether there was something.
    pub fn reconcile(&mut self, now: Instant, kernel: &Stdio) -> bool {
        let settled = !self.unwanted && !self.begins_anywhere && !self.is_waiting();
        if !settled || kernel.written <= self.next || !self.ensure_open() {
            self.behind = None;
            return false;
        }
        let missing = kernel.written - self.next;
        match self.behind {
            Some((next, since)) if next == self.next => {
                let lost = self.unbooked(kernel).iter().sum::<u64>() >= missing;
                if lost && now.saturating_duration_since(since) >= GIVE_UP {
                    if !self.ask(kernel.written) {
                        self.lose(missing, Some(kernel));
                    }
                    self.behind = None;
                    return true;
                }
            }
            _ => self.behind = Some((self.next, now)),
        }
        false
    }

    /// The end of the container: everything that waits comes out, and what the kernel counted and never handed over
    /// is booked, if that is `certain`: else it may be in the ring still. Returns `false` while it is looked for: then it is to be
    /// called again.
    pub fn finish(&mut self, kernel: Option<&Stdio>, certain: bool) -> bool {
        if self.unwanted || !self.ensure_open() {
            return true;
        }
        // The rest of the last line may be found.
        let may_follow = !certain && self.repair.is_some() && kernel.is_some_and(|kernel| self.is_behind(kernel));
        let counts = kernel.filter(|_| certain && !self.begins_anywhere);
        loop {
            if !self.take_repaired(kernel) {
                return false;
            }
            let written = counts.map_or(0, |kernel| kernel.written);
            let end = self.waiting.first_key_value().map_or(written, |(&position, _)| position);
            if end <= self.next {
                break;
            }
            if self.ask(end) {
                return false;
            }
            self.lose(end - self.next, kernel);
        }
        if let Some(open) = self.open.as_mut().filter(|_| !may_follow) {
            open.assembler.finish();
        }
        true
    }

    /// As [`StdioStream::finish`], without looking for anything.
    pub fn give_up(&mut self, kernel: Option<&Stdio>) {
        self.repair = None;
        self.finish(kernel, true);
    }

    /// Gives up waiting for the rest of lines; returns whether there was something to give up. Everything that was
    /// written up to `taken` has been taken: see [`StdioStream::accept`]. It is `now`, by a clock that may be set back.
    pub fn idle(&mut self, taken: u64, now: u64, kernel: impl FnOnce() -> Option<Stdio>) -> bool {
        let is_waiting = self.is_waiting();
        let Some(open) = &self.open else { return false };
        if open.assembler.pending() == 0 || is_waiting {
            return false;
        }
        let deadline = open.assembler.next_deadline();
        let due = deadline.is_some_and(|deadline| deadline <= taken);
        // The rest of a line that the ring could not hold is looked for first.
        let is_late = deadline.is_some_and(|deadline| deadline.saturating_add(MAX_IDLE_BEHIND) <= taken);
        if due && self.repair.is_some() && !is_late && kernel().is_some_and(|kernel| self.is_behind(&kernel)) {
            return false;
        }
        let Some(open) = &mut self.open else { return false };
        if due {
            open.assembler.idle(taken);
        } else if open.assembler.is_ahead_of(now) {
            open.assembler.idle(now);
        }
        due
    }

    /// Whether the kernel has counted bytes as lost that are neither booked nor looked for.
    fn is_behind(&self, kernel: &Stdio) -> bool {
        kernel.written > self.next && self.unbooked(kernel).iter().any(|bytes| *bytes > 0)
    }

    /// Takes out the lines that are ready.
    pub fn take_batch(&mut self) -> Option<Batch> {
        let open = self.open.as_mut()?;
        open.assembler.take_batch(&open.stream)
    }

    /// Takes over what is known of the container by now; returns the lines that were ready before that. From the line
    /// under way on it is cut by the rules that are in force now; where its logs are off by now, that line comes out
    /// unfinished.
    pub fn renew(&mut self) -> Option<Batch> {
        let settled = self.container.settled()?;
        let open = self.open.as_mut().filter(|open| !Arc::ptr_eq(&open.settled, &settled))?;
        open.assembler.change(settled.lines.compiled());
        open.is_off = !settled.is_captured;
        if open.is_off {
            open.assembler.finish();
        }
        let batch = open.assembler.take_batch(&open.stream);
        open.stream = open.stream.renewed(Arc::clone(&settled.resource), settled.class.unwrap_or(Class::Pod));
        open.settled = settled;
        batch
    }

    /// Bytes of lines that are ready.
    #[must_use]
    pub fn ready_bytes(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.assembler.ready_bytes())
    }

    /// The stream, its position, and the bytes that wait here; `None` before its container is settled.
    #[must_use]
    pub fn reading(&self) -> Option<(&Arc<Stream>, u64, u64)> {
        let open = self.open.as_ref()?;
        Some((&open.stream, self.next, (open.assembler.pending() + self.waiting_bytes) as u64))
    }

    fn ensure_open(&mut self) -> bool {
        if self.open.is_none()
            && let Some(settled) = self.container.ready()
        {
            let stream = Arc::new(self.stream(&settled));
            self.key = Some(Arc::clone(&stream.key));
            let assembler = match self.restored.take() {
                Some(unfinished) => {
                    stream.account.produce(unfinished.len() as u64);
                    Assembler::restore(settled.lines.compiled(), &unfinished)
                }
                None => Assembler::new(settled.lines.compiled()),
            };
            let is_off = !settled.is_captured;
            self.open = Some(Open { stream, assembler, settled, is_off });
        }
        self.open.is_some()
    }

    fn stream(&self, settled: &Profile) -> Stream {
        let resource = &settled.resource;
        let owner = match &resource.container_id {
            Some(id) if id.bytes().all(|byte| byte.is_ascii_alphanumeric()) => id.to_string(),
            _ => format!("cgroup-{}", self.container.cgroup),
        };
        let iostream = self.iostream();
        let made = || format!("{owner}/{}/{:x}.{}", iostream.as_str(), self.id.registered, self.id.ino).into();
        Stream {
            key: self.key.clone().unwrap_or_else(made),
            class: settled.class.unwrap_or(Class::Pod),
            origin: Origin::Stdio(iostream),
            resource: Arc::clone(resource),
            account: Arc::clone(&settled.account),
            source: None,
        }
    }

    /// Whether a line was given up before its rest came is decided by the times of the writes: an agent that takes them
    /// out of the ring once more, after the one before was killed, cuts the same lines.
    fn accept(&mut self, time_unix_nano: u64, bytes: &[u8]) {
        let Some(open) = &mut self.open else { return };
        if open.is_off {
            let len = bytes.len() as u64;
            open.stream.account.produce(len);
            open.stream.account.drop_bytes(Stage::Capture, Reason::Filtered, len);
            self.next += len;
            return;
        }
        if open.assembler.next_deadline().is_some_and(|deadline| deadline <= time_unix_nano) {
            open.assembler.idle(time_unix_nano);
        }
        open.stream.account.produce(bytes.len() as u64);
        open.assembler.push(time_unix_nano, time_unix_nano, self.next, bytes);
        self.next += bytes.len() as u64;
        if let Some(repair) = &mut self.repair {
            repair.note(time_unix_nano, bytes);
        }
    }

    fn take_waiting(&mut self) {
        while let Some(entry) = self.waiting.first_entry()
            && *entry.key() <= self.next
        {
            let (position, piece) = entry.remove_entry();
            self.waiting_bytes -= piece.bytes.len();
            if position == self.next {
                self.accept(piece.time_unix_nano, &piece.bytes);
            }
        }
    }

    fn unbooked(&self, kernel: &Stdio) -> [u64; DROP_REASONS] {
        std::array::from_fn(|reason| kernel.dropped[reason].saturating_sub(self.booked[reason]))
    }

    /// Takes bytes for those that the kernel has counted as lost, by its reasons as far as they go; returns the rest.
    fn book(&mut self, bytes: u64, kernel: &Stdio, mut each: impl FnMut(Reason, u64)) -> u64 {
        let mut left = bytes;
        for (reason, counted) in self.unbooked(kernel).into_iter().enumerate() {
            let part = counted.min(left);
            if part > 0 {
                each(reason_of(reason), part);
                self.booked[reason] += part;
                left -= part;
            }
        }
        left
    }

    /// Books bytes that will never come.
    fn lose(&mut self, missing: u64, kernel: Option<&Stdio>) {
        let Some(stream) = self.open.as_ref().map(|open| Arc::clone(&open.stream)) else { return };
        let account = &stream.account;
        let drop = |reason, bytes| {
            account.produce(bytes);
            account.drop_bytes(Stage::Capture, reason, bytes);
        };
        let left = kernel.map_or(missing, |kernel| self.book(missing, kernel, drop));
        if left > 0 && kernel.is_some() && self.next.saturating_add(missing) <= self.inherited_until {
            // The kernel has not lost them, and the ring has them no more: the agent before has taken them.
            let what = format!("{left} bytes from {} on were taken by an agent since, and are not missed", self.next);
            Event::JournalImplausible { stream: &stream.key, what: &what }.report();
        } else if left > 0 {
            account.produce(left);
            account.drop_bytes(Stage::Capture, Reason::Unknown, left);
        }
        if let Some(open) = &mut self.open {
            open.assembler.gap(self.next, missing);
        }
        if let Some(repair) = &mut self.repair {
            repair.interrupt();
        }
        self.next += missing;
    }

    const fn iostream(&self) -> IoStream {
        if self.iostream == STDERR { IoStream::Stderr } else { IoStream::Stdout }
    }
}

fn reason_of(index: usize) -> Reason {
    match index {
        DROP_QUOTA => Reason::Quota,
        DROP_RING_FULL => Reason::RingFull,
        DROP_UNREADABLE => Reason::Unreadable,
        DROP_OVERSIZE => Reason::Oversize,
        DROP_MAP_FULL => Reason::MapFull,
        DROP_FAULT => Reason::Fault,
        _ => Reason::Fault,
    }
}
