//! Where a record of the ring belongs in its file: pure state, no I/O.
//!
//! The position of a record is the file position when the call returned, less its length. It is never too low, but
//! it is too high when another thread wrote through the same open file description in between. So the ring's bytes
//! are taken only when a lie is impossible: everything up to the end of this thread's own last record through this
//! description has been given out, nothing more, and the record begins exactly there. All else is read from the
//! file. (A thread that only seeks or reads through the description of another one is not seen; logs have none.)

/// Writers that are told apart; a file with more is always read.
const MAX_WRITERS: usize = 8;

/// What the kernel says of a finished write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// Offset of the first byte, as far as the kernel knows.
    pub(super) position: u64,
    /// Number of bytes.
    pub(super) len: u64,
    /// The file was open with `O_APPEND`.
    pub(super) append: bool,
    /// The position was an argument of the call.
    pub(super) positioned: bool,
    /// The writing thread.
    pub(super) tid: u32,
    /// Names the open file description.
    pub(super) description: u64,
}

impl Record {
    /// Offset after the last byte.
    #[must_use]
    pub(super) const fn end(&self) -> u64 {
        self.position.saturating_add(self.len)
    }
}

/// What to do with a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Action {
    /// Its bytes are the next ones of the file; the state has moved on.
    Take,
    /// The file is to be read from [`Place::next`] to [`Place::wanted`], which now includes the record.
    Read,
    /// Its bytes were given out already.
    Skip,
    /// The file was truncated and begins anew: call [`Place::restart`], then [`Place::judge`] again.
    Restarted,
    /// It lies before what was given out: late, or the file was truncated. Look at the file; then either do as for
    /// [`Action::Restarted`], or call [`Place::accept_late`].
    Suspect,
    /// Its place is unknown (`pwrite` to a file open with `O_APPEND`): look at the file's size.
    Look,
}

/// A thread that writes through an open file description.
#[derive(Clone, Copy, Debug)]
struct Writer {
    description: u64,
    tid: u32,
    /// Another thread has written through it too: for ever, since that one may do so again.
    shared: bool,
    /// End of its last record.
    end: u64,
}

/// How far a file has been given out, and how far its records reach.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    next: u64,
    wanted: u64,
    recorded: u64,
    /// Whose record ended at `wanted`; `None` when nobody's did.
    last: Option<(u64, u32)>,
    writers: Vec<Writer>,
    crowded: bool,
    /// There is no file to read from: what is contiguous is taken.
    blind: bool,
}

impl Place {
    /// A file of which everything before `next` is done with.
    #[must_use]
    pub(super) fn new(next: u64) -> Self {
        Self { next, wanted: next, recorded: next, ..Self::default() }
    }

    /// Says whether the file can be read at all. What can't be checked is taken when it is contiguous.
    pub(super) fn set_blind(&mut self, blind: bool) {
        self.blind = blind;
    }

    /// Whether the file can't be read.
    #[must_use]
    pub(super) const fn is_blind(&self) -> bool {
        self.blind
    }

    /// Offset of the next byte to give out.
    #[must_use]
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Up to where the file is known to have bytes; at least [`Place::next`].
    #[must_use]
    pub(super) const fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Up to where records of the ring say that bytes were written.
    #[must_use]
    pub(super) const fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Bytes that are known to be there and are not given out.
    #[must_use]
    pub(super) const fn unread(&self) -> u64 {
        self.wanted - self.next
    }

    /// Decides on a record.
    pub(super) fn judge(&mut self, record: &Record) -> Action {
        self.decide(record, true)
    }

    /// Decides on a record whose bytes are not here: it is [`Action::Take`] only when there is no file to read either.
    pub(super) fn judge_bare(&mut self, record: &Record) -> Action {
        self.decide(record, self.blind)
    }

    fn decide(&mut self, record: &Record, may_take: bool) -> Action {
        if record.len == 0 {
            return Action::Skip;
        }
        if record.positioned {
            return self.judge_positioned(record, may_take);
        }
        let (before, sole) = self.note(record);
        let went_back = sole && before.is_some_and(|end| record.position < end);
        let anew = record.append || record.position == 0;
        if went_back && anew {
            return Action::Restarted;
        }
        self.note_end(record);
        if record.position < self.next {
            // Overwriting in the middle changes what was given out; that is no log, and nothing new.
            return if anew && !went_back { Action::Suspect } else { self.accept_late(record) };
        }
        let own = self.last == Some((record.description, record.tid));
        // The position is never too low, so that of the file's first byte is exact.
        let certain = self.blind || (sole && (own || record.position == 0));
        if may_take && certain && self.wanted == self.next && record.position == self.next {
            self.last = Some((record.description, record.tid));
            self.advance(record.end());
            self.recorded = self.recorded.max(record.end());
            return Action::Take;
        }
        self.want(record);
        Action::Read
    }

    /// The record is late, the file was not truncated.
    pub(super) fn accept_late(&mut self, record: &Record) -> Action {
        if record.end() <= self.next {
            return Action::Skip;
        }
        self.want(record);
        Action::Read
    }

    fn judge_positioned(&mut self, record: &Record, may_take: bool) -> Action {
        if record.append {
            // Linux appends, whatever the argument says.
            return Action::Look;
        }
        if record.position == 0 && self.next > 0 {
            return Action::Suspect;
        }
        if may_take && record.position == self.next && self.wanted == self.next {
            self.last = None;
            self.advance(record.end());
            self.recorded = self.recorded.max(record.end());
            return Action::Take;
        }
        let action = self.accept_late(record);
        if action == Action::Read && self.wanted == record.end() {
            self.last = None;
        }
        action
    }

    /// Notes that the file has bytes up to `size`, whoever wrote them.
    pub(super) fn want_size(&mut self, size: u64) {
        if size > self.wanted {
            self.wanted = size;
            self.last = None;
        }
    }

    /// Notes that everything up to `next` has been given out, or given up.
    pub(super) fn advance(&mut self, next: u64) {
        self.next = self.next.max(next);
        if self.wanted < self.next {
            self.wanted = self.next;
        }
    }

    /// Takes back [`Place::want_size`]: the bytes are there, but not written yet.
    pub(super) fn unwant(&mut self) {
        if self.wanted > self.recorded.max(self.next) {
            self.wanted = self.recorded.max(self.next);
            self.last = None;
        }
    }

    /// The file ends at [`Place::next`], whatever was known of bytes behind it.
    pub(super) fn clamp(&mut self) {
        self.wanted = self.next;
        self.recorded = self.next;
        self.last = None;
        for writer in &mut self.writers {
            writer.end = writer.end.min(self.next);
        }
    }

    /// The file begins anew at offset 0. Who shares a description still does.
    pub(super) fn restart(&mut self) {
        self.next = 0;
        self.wanted = 0;
        self.recorded = 0;
        self.last = None;
        for writer in &mut self.writers {
            writer.end = 0;
        }
    }

    fn want(&mut self, record: &Record) {
        self.recorded = self.recorded.max(record.end());
        if record.end() > self.wanted {
            self.wanted = record.end();
            self.last = Some((record.description, record.tid));
        }
    }

    /// Enters the writer. Gives the end of its last record, and whether it is the only one of its description.
    fn note(&mut self, record: &Record) -> (Option<u64>, bool) {
        let mut shared = false;
        for writer in self.writers.iter_mut().filter(|writer| writer.description == record.description) {
            if writer.tid != record.tid {
                writer.shared = true;
                shared = true;
            }
        }
        if let Some(writer) = self.find(record) {
            return (Some(writer.end), !writer.shared);
        }
        if self.writers.len() == MAX_WRITERS {
            self.writers.clear();
            self.crowded = true;
        }
        shared |= self.crowded;
        self.writers.push(Writer { description: record.description, tid: record.tid, shared, end: 0 });
        (None, !shared)
    }

    fn note_end(&mut self, record: &Record) {
        if let Some(writer) = self.find(record) {
            writer.end = record.end();
        }
    }

    fn find(&mut self, record: &Record) -> Option<&mut Writer> {
        self.writers.iter_mut().find(|writer| writer.description == record.description && writer.tid == record.tid)
    }
}

#[cfg(test)]
#[path = "position_tests.rs"]
mod tests;
