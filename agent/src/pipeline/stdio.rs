//! A container's stdout or stderr: from numbered pieces to lines.
//!
//! The kernel numbers the bytes of a stream before it hands them over, so a piece that is missing leaves a hole whose
//! size is known. Two writers on two CPUs may get their space in the ring in the other order than their numbers: a
//! hole is a loss only when the kernel has counted it as one, or when nothing has filled it for a while.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sidestep_abi::stdio::{
    DROP_FAULT, DROP_MAP_FULL, DROP_OVERSIZE, DROP_QUOTA, DROP_REASONS, DROP_RING_FULL, DROP_UNREADABLE, STDERR, Stdio,
};

use super::{
    container::{Container, Settled},
    journal::{Change, Piece, Saved, Standing, StreamId},
};
use crate::{
    assemble::{Assembler, Mark, Unfinished, Update},
    ledger::{Reason, Stage},
    record::{Batch, Class, IoStream, Origin, Stream},
};

/// A writer that has its number and not yet its space in the ring needs microseconds.
const SETTLE_ORDER: Duration = Duration::from_millis(5);
/// After this a hole that the kernel has not counted is given up.
const GIVE_UP: Duration = Duration::from_millis(500);
/// Bytes that wait for a hole to close, or for the container's identity.
const MAX_WAITING: usize = 4 * 1024 * 1024;

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
}

struct Open {
    stream: Arc<Stream>,
    assembler: Assembler,
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
        }
    }

    /// Only a part of it is to come, and nobody knows from where on: what lies before, and what was lost of it until now,
    /// is in no account.
    pub fn begin_anywhere(&mut self, kernel: Option<&Stdio>) {
        self.begins_anywhere = true;
        self.booked = kernel.map_or(self.booked, |kernel| kernel.dropped);
    }

    /// A stream that goes on where an agent before has left it.
    #[must_use]
    pub fn restore(id: StreamId, container: Arc<Container>, saved: Saved) -> Self {
        let Saved { standing, unfinished, pieces } = saved;
        Self {
            key: standing.key,
            restored: Some(unfinished),
            next: standing.next,
            booked: standing.booked,
            unwanted: standing.unwanted,
            waiting_bytes: pieces.values().map(|piece| piece.bytes.len()).sum(),
            waiting: pieces,
            ..Self::new(id, container, standing.cgroup, standing.iostream)
        }
    }

    /// What the journal has to know of it that it does not know yet; nothing before it has begun. To be asked when no
    /// line is ready.
    pub fn save(&mut self) -> Option<Change> {
        self.unsaved = false;
        if self.begins_anywhere {
            return None;
        }
        let standing = Standing {
            cgroup: self.cgroup,
            container: self.container.cgroup,
            iostream: self.iostream,
            key: self.key.clone(),
            next: self.next,
            booked: self.booked,
            unwanted: self.unwanted,
        };
        let unfinished = match (&self.open, &self.restored) {
            (Some(open), _) => open.assembler.unfinished(&mut self.mark),
            (None, Some(restored)) => restored.clone().into_update(),
            (None, None) => Update::default(),
        };
        let piece = |position| self.waiting.get(&position).map(|piece| (position, piece.clone()));
        let pieces = std::mem::take(&mut self.new_pieces).into_iter().filter_map(piece).collect();
        Some(Change::Stream { id: self.id, standing, unfinished, pieces })
    }

    /// Takes one piece.
    pub fn take(&mut self, position: u64, time_unix_nano: u64, bytes: &[u8]) {
        if std::mem::take(&mut self.unwanted) {
            self.next = self.next.max(position);
        }
        if std::mem::take(&mut self.begins_anywhere) {
            self.next = position;
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
            self.finish(None);
            self.unwanted = true;
        }
        self.begins_anywhere = false;
        self.next = self.next.max(position.saturating_add(len));
    }

    /// Whether pieces wait, so that [`StdioStream::settle`] has something to do.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether so much waits that the container's identity can't be waited for any longer.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        self.waiting_bytes > MAX_WAITING
    }

    /// Closes holes that are known to be losses, and takes what waited behind them.
    pub fn settle(&mut self, now: Instant, kernel: Option<&Stdio>) {
        if !self.ensure_open() {
            return;
        }
        self.take_waiting();
        while let Some((&position, _)) = self.waiting.first_key_value() {
            let since = *self.hole_since.get_or_insert(now);
            let waited = now.saturating_duration_since(since);
            let missing = position - self.next;
            let counted = kernel.map_or(0, |kernel| self.unbooked(kernel).iter().sum());
            let lost = counted >= missing && waited >= SETTLE_ORDER;
            if !(lost || waited >= GIVE_UP || self.is_overdue()) {
                return;
            }
            self.lose(missing, kernel);
            self.hole_since = None;
            self.take_waiting();
        }
        self.hole_since = None;
    }

    /// Books what the kernel counted as lost behind the last piece, while nothing comes that would show the hole; returns
    /// whether there was something.
    pub fn reconcile(&mut self, now: Instant, kernel: &Stdio) -> bool {
        let settled = !self.unwanted && !self.begins_anywhere && self.waiting.is_empty();
        if !settled || kernel.written <= self.next || !self.ensure_open() {
            self.behind = None;
            return false;
        }
        let missing = kernel.written - self.next;
        match self.behind {
            Some((next, since)) if next == self.next => {
                let lost = self.unbooked(kernel).iter().sum::<u64>() >= missing;
                if lost && now.saturating_duration_since(since) >= GIVE_UP {
                    self.lose(missing, Some(kernel));
                    self.behind = None;
                    return true;
                }
            }
            _ => self.behind = Some((self.next, now)),
        }
        false
    }

    /// The end of the container: everything that waits comes out, and what the kernel counted and never handed over
    /// is booked.
    pub fn finish(&mut self, kernel: Option<&Stdio>) {
        if self.unwanted || !self.ensure_open() {
            return;
        }
        self.take_waiting();
        while let Some((&position, _)) = self.waiting.first_key_value() {
            self.lose(position - self.next, kernel);
            self.take_waiting();
        }
        if let Some(kernel) = kernel
            && kernel.written > self.next
            && !self.begins_anywhere
        {
            self.lose(kernel.written - self.next, Some(kernel));
        }
        if let Some(open) = &mut self.open {
            open.assembler.finish();
        }
    }

    /// Gives up waiting for the rest of lines; returns whether there was something to give up. Everything that was
    /// written up to `taken` has been taken: see [`StdioStream::accept`]. It is `now`, by a clock that may be set back.
    pub fn idle(&mut self, taken: u64, now: u64) -> bool {
        let Some(open) = &mut self.open else { return false };
        if open.assembler.pending() == 0 || !self.waiting.is_empty() {
            return false;
        }
        let due = open.assembler.next_deadline().is_some_and(|deadline| deadline <= taken);
        if due {
            open.assembler.idle(taken);
        } else if open.assembler.is_ahead_of(now) {
            open.assembler.idle(now);
        }
        due
    }

    /// Takes out the lines that are ready.
    pub fn take_batch(&mut self) -> Option<Batch> {
        let open = self.open.as_mut()?;
        open.assembler.take_batch(&open.stream)
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
            && let Some(settled) = self.container.settled()
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
            self.open = Some(Open { stream, assembler });
        }
        self.open.is_some()
    }

    fn stream(&self, settled: &Settled) -> Stream {
        let resource = &settled.identity.resource;
        let owner = match &resource.container_id {
            Some(id) if id.bytes().all(|byte| byte.is_ascii_alphanumeric()) => id.to_string(),
            _ => format!("cgroup-{}", self.container.cgroup),
        };
        let iostream = if self.iostream == STDERR { IoStream::Stderr } else { IoStream::Stdout };
        let made = || format!("{owner}/{}/{:x}.{}", iostream.as_str(), self.id.registered, self.id.ino).into();
        Stream {
            key: self.key.clone().unwrap_or_else(made),
            class: Class::Pod,
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
        if open.assembler.next_deadline().is_some_and(|deadline| deadline <= time_unix_nano) {
            open.assembler.idle(time_unix_nano);
        }
        open.stream.account.produce(bytes.len() as u64);
        open.assembler.push(time_unix_nano, time_unix_nano, self.next, bytes);
        self.next += bytes.len() as u64;
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

    /// Books bytes that will never come, by the kernel's reasons as far as they go.
    fn lose(&mut self, missing: u64, kernel: Option<&Stdio>) {
        let unbooked = kernel.map_or([0; DROP_REASONS], |kernel| self.unbooked(kernel));
        let Some(open) = &mut self.open else { return };
        let account = &open.stream.account;
        account.produce(missing);
        let mut left = missing;
        for (reason, counted) in unbooked.into_iter().enumerate() {
            let part = counted.min(left);
            if part > 0 {
                account.drop_bytes(Stage::Capture, reason_of(reason), part);
                self.booked[reason] += part;
                left -= part;
            }
        }
        if left > 0 {
            account.drop_bytes(Stage::Capture, Reason::Unknown, left);
        }
        open.assembler.gap(self.next, missing);
        self.next += missing;
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
