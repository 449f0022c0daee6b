//! One open log file: what the ring brings of it, what is read from it, and the stream that both become.

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    sync::Arc,
};

use sidestep_abi::stdio::InodeKey;

use super::{
    head::Head,
    open::{Whereabouts, birth},
    position::{Action, Place, Record},
    readings::{Readings, StreamReading},
    sparse,
};
use crate::{
    assemble::{Assembler, Compiled},
    ledger::{Account, Reason, Stage},
    record::{Batch, Class, Origin, Resource, Stream},
};

/// Bytes of one read.
const CHUNK: usize = 256 * 1024;
/// Finished lines are handed on at the latest when they are this many bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// How long a record may be on its way from the kernel, the reader's naps and the queue included.
const ON_THEIR_WAY_NANOS: u64 = 400_000_000;
/// A head that changes more often than this, each time within [`HEAD_CHANGES_NANOS`], is one that is rewritten in
/// place: it tells nothing any more.
const MAX_HEAD_CHANGES: u32 = 4;
/// See [`MAX_HEAD_CHANGES`].
const HEAD_CHANGES_NANOS: u64 = 10_000_000_000;

/// What a file is, apart from its bytes.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// Device and inode number.
    pub(super) key: InodeKey,
    /// `business` or `server`.
    pub(super) class: Class,
    /// The path as first seen.
    pub(super) path: Arc<str>,
    /// Who writes it.
    pub(super) resource: Arc<Resource>,
    /// Who pays for it.
    pub(super) account: Arc<Account>,
    /// How its lines are cut.
    pub(super) lines: Arc<Compiled>,
}

/// Where a file stood when it was last given up, or when the agent ended.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Standing {
    /// When the file was made; nanoseconds since the Unix epoch, 0 when unknown.
    pub(super) birth: u64,
    /// 0, or when a truncation was noticed; nanoseconds since the Unix epoch.
    pub(super) incarnation: u64,
    /// Everything before is done with.
    pub(super) position: u64,
    /// How many bytes of the head are known.
    pub(super) head_len: usize,
    /// Their digest.
    pub(super) head_digest: String,
}

impl Standing {
    /// Whether `file` is still the one that stood here: made at the same time, not shorter, with the same head.
    #[must_use]
    pub(super) fn holds_for(&self, file: &File) -> bool {
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let head = Head::read(file, self.head_len as u64);
        self.birth == birth(file)
            && size >= self.position
            && (self.head_len == 0 || head.len() == self.head_len && head.digest() == self.head_digest)
    }
}

/// One open log.
#[derive(Debug)]
pub(super) struct LogFile {
    /// What it is.
    pub(super) about: About,
    /// What led to it.
    pub(super) whereabouts: Whereabouts,
    file: Option<File>,
    birth: u64,
    incarnation: u64,
    place: Place,
    head: Head,
    head_changed: u64,
    head_changes: u32,
    /// A size beyond what records have shown, and when it was seen.
    sighted: Option<(u64, u64)>,
    /// Since when the file looks as if it began anew.
    suspected: Option<u64>,
    assembler: Assembler,
    stream: Arc<Stream>,
    ready: Vec<Arc<Batch>>,
    /// Keys of streams that truncation has ended.
    ended: Vec<Arc<str>>,
    readings: Arc<Readings>,
}

impl LogFile {
    /// A log of which everything before `position` is done with. Without `file`, only the ring's bytes are there.
    #[must_use]
    pub(super) fn new(
        about: About,
        file: Option<File>,
        position: u64,
        incarnation: u64,
        readings: &Arc<Readings>,
    ) -> Self {
        let birth = file.as_ref().map_or(0, birth);
        let mut place = Place::new(position);
        place.set_blind(file.is_none());
        Self {
            head: file.as_ref().map_or_else(Head::default, |file| Head::read(file, position)),
            assembler: Assembler::new(&about.lines),
            stream: stream(&about, birth, incarnation),
            about,
            whereabouts: Whereabouts::default(),
            file,
            birth,
            incarnation,
            place,
            head_changed: 0,
            head_changes: 0,
            sighted: None,
            suspected: None,
            ready: Vec::new(),
            ended: Vec::new(),
            readings: Arc::clone(readings),
        }
    }

    /// The stream that the file is now.
    #[must_use]
    pub(super) fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// The held descriptor.
    #[must_use]
    pub(super) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Closes the descriptor; [`LogFile::reopened`] gives it back.
    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// Gives back a descriptor of the same file, or none when it is found no more: then what the ring brings is all
    /// there is. Another file that has got the same inode number is not taken.
    pub(super) fn reopened(&mut self, file: Option<File>) {
        self.file = file.filter(|file| self.birth == birth(file) || self.place.is_blind());
        self.place.set_blind(self.file.is_none());
    }

    /// Whether bytes are known to be there that were not read.
    #[must_use]
    pub(super) fn is_behind(&self) -> bool {
        self.place.unread() > 0
    }

    /// Whether no name leads to the file any more.
    #[must_use]
    pub(super) fn is_deleted(&self) -> bool {
        self.file.as_ref().and_then(|file| file.metadata().ok()).is_some_and(|metadata| metadata.nlink() == 0)
    }

    /// Takes a record of the ring. What it does not settle is left to [`LogFile::read`].
    pub(super) fn record(&mut self, record: &Record, bytes: &[u8], time_unix_nano: u64) {
        self.suspected = None;
        let mut action = self.place.judge(record);
        if action == Action::Suspect {
            let anew = match &self.file {
                Some(_) => self.has_restarted(time_unix_nano),
                None => record.position == 0,
            };
            action = if anew { Action::Restarted } else { self.place.accept_late(record) };
        }
        if action == Action::Restarted {
            self.restart(time_unix_nano);
            action = self.place.judge(record);
        }
        match action {
            Action::Take => self.push(record.position, bytes, time_unix_nano),
            Action::Read if self.file.is_none() => self.take_blindly(record, bytes, time_unix_nano),
            Action::Read => self.readings.count_gap(),
            Action::Look => self.look(time_unix_nano),
            Action::Skip | Action::Suspect | Action::Restarted => {}
        }
    }

    /// Compares the file's size with what is known of it. That it begins anew is believed at the second look only:
    /// records from before the truncation may be on their way still, and they are the only copy of what was cut off.
    pub(super) fn look(&mut self, now_unix_nano: u64) {
        let Some(size) = self.size() else { return };
        if self.is_shorter_or_other(size, now_unix_nano) {
            let since = *self.suspected.get_or_insert(now_unix_nano);
            if now_unix_nano.saturating_sub(since) < ON_THEIR_WAY_NANOS {
                return;
            }
            self.restart(now_unix_nano);
        }
        self.suspected = None;
        if self.about.class == Class::Server {
            return self.place.want_size(size);
        }
        // Bytes that the file has and no record has shown: records may be on their way still, and they are worth more
        // than what the file holds by the time it is read.
        match self.sighted {
            Some((sighted, since)) if now_unix_nano.saturating_sub(since) >= ON_THEIR_WAY_NANOS => {
                self.place.want_size(sighted.min(size));
                self.sighted = None;
            }
            Some(_) => {}
            None if size > self.place.wanted() => self.sighted = Some((size, now_unix_nano)),
            None => {}
        }
    }

    /// As [`LogFile::look`], when no record can be on its way any more.
    pub(super) fn look_finally(&mut self, now_unix_nano: u64) {
        let Some(size) = self.size() else { return };
        if self.is_shorter_or_other(size, now_unix_nano) {
            self.restart(now_unix_nano);
        }
        self.place.want_size(size);
    }

    /// The head tells of a file that has grown again past where it was read to.
    fn is_shorter_or_other(&mut self, size: u64, now_unix_nano: u64) -> bool {
        size < self.place.next() || size > self.place.wanted() && self.has_restarted(now_unix_nano)
    }

    /// Reads at most about `budget` bytes of what is known to be there. Gives the number of bytes taken.
    pub(super) fn read(&mut self, budget: usize, now_unix_nano: u64) -> usize {
        let mut taken = 0;
        let mut buffer = Vec::new();
        while self.place.unread() > 0 && taken < budget {
            let Some(file) = &self.file else { break };
            let from = self.place.next();
            let len = usize::try_from(self.place.unread()).unwrap_or(CHUNK).min(CHUNK);
            buffer.resize(len, 0);
            let read = match file.read_at(&mut buffer, from) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.give_up(&error);
                    break;
                }
            };
            if self.has_restarted(now_unix_nano) {
                self.restart(now_unix_nano);
                if let Some(size) = self.size() {
                    self.place.want_size(size);
                }
                continue;
            }
            if read == 0 {
                self.shortened();
                break;
            }
            let bytes = &buffer[..read];
            let written = self.written(from, bytes);
            if written == 0 {
                if !self.skip_unwritten(from) {
                    break;
                }
                continue;
            }
            self.readings.count_read(self.about.class, written as u64);
            self.place.advance(from + written as u64);
            self.push(from, &buffer[..written], now_unix_nano);
            taken += written;
            if written < read && from + read as u64 >= self.place.wanted() {
                self.place.unwant();
            }
        }
        taken
    }

    /// Gives up waiting for what is overdue.
    pub(super) fn idle(&mut self, now_unix_nano: u64) {
        if self.assembler.next_deadline().is_some() {
            self.assembler.idle(now_unix_nano);
            self.collect();
        }
    }

    /// Forgets when things were seen: the clock was set back, and waits that it measures would last until then.
    pub(super) fn forget_times(&mut self) {
        self.suspected = None;
        self.sighted = None;
        self.head_changed = 0;
    }

    /// The file will not grow any more: the last line comes out, and what could not be read is booked as lost.
    pub(super) fn finish(&mut self) {
        let unread = self.place.recorded().saturating_sub(self.place.next());
        self.lose(unread, Reason::Unavailable);
        self.place.advance(self.place.recorded());
        self.assembler.finish();
        self.collect();
    }

    /// Hands out what is ready.
    pub(super) fn take_batches(&mut self, mut deliver: impl FnMut(Arc<Batch>)) {
        self.collect();
        self.ready.drain(..).for_each(&mut deliver);
    }

    /// Hands out the keys of streams that truncation has ended, after their last batches.
    pub(super) fn take_ended_streams(&mut self) -> impl Iterator<Item = Arc<str>> + '_ {
        self.ended.drain(..)
    }

    /// Bytes that are in no batch yet.
    #[must_use]
    pub(super) fn pending(&self) -> u64 {
        self.assembler.pending() as u64
    }

    /// Where it stands, when everything before `position` is done with.
    #[must_use]
    pub(super) fn standing(&self, position: u64) -> Standing {
        Standing {
            birth: self.birth,
            incarnation: self.incarnation,
            position,
            head_len: self.head.len(),
            head_digest: self.head.digest(),
        }
    }

    /// Where the first byte lies that is in no batch yet.
    #[must_use]
    pub(super) fn unfinished_position(&self) -> u64 {
        self.assembler.unfinished_position().unwrap_or(self.place.next())
    }

    /// For telemetry.
    #[must_use]
    pub(super) fn reading(&self) -> StreamReading {
        StreamReading {
            stream: Arc::clone(&self.stream),
            position: self.place.next(),
            pending: self.pending() + self.place.unread(),
        }
    }

    fn size(&self) -> Option<u64> {
        Some(self.file.as_ref()?.metadata().ok()?.len())
    }

    fn push(&mut self, position: u64, bytes: &[u8], time_unix_nano: u64) {
        self.head.extend(position, bytes);
        self.about.account.produce(bytes.len() as u64);
        // Large reads become several batches, so that no batch is much larger than its share of a queue.
        let mut position = position;
        for part in bytes.chunks(BATCH_BYTES) {
            self.assembler.push(time_unix_nano, time_unix_nano, position, part);
            position += part.len() as u64;
            if self.assembler.ready_bytes() >= BATCH_BYTES {
                self.collect();
            }
        }
    }

    fn collect(&mut self) {
        self.ready.extend(self.assembler.take_batch(&self.stream).map(Arc::new));
    }

    /// There is nothing to compare with: the record goes where it says.
    fn take_blindly(&mut self, record: &Record, bytes: &[u8], time_unix_nano: u64) {
        let known = usize::try_from(self.place.next().saturating_sub(record.position)).unwrap_or(usize::MAX);
        let missing = record.position.saturating_sub(self.place.next());
        self.lose(missing, Reason::Unavailable);
        self.place.advance(record.end());
        if let Some(rest) = bytes.get(known..) {
            self.push(record.position + known as u64, rest, time_unix_nano);
        }
    }

    /// Books bytes at the current place that will never come.
    fn lose(&mut self, bytes: u64, reason: Reason) {
        if bytes > 0 {
            self.about.account.produce(bytes);
            self.about.account.drop_bytes(Stage::Repair, reason, bytes);
            self.assembler.gap(self.place.next(), bytes);
        }
    }

    fn has_restarted(&mut self, now_unix_nano: u64) -> bool {
        let Some(file) = &self.file else { return false };
        if file.metadata().is_ok_and(|metadata| metadata.len() < self.place.next()) {
            return true;
        }
        if self.head_changes > MAX_HEAD_CHANGES || !self.head.differs(file) {
            return false;
        }
        let soon = now_unix_nano.saturating_sub(self.head_changed) < HEAD_CHANGES_NANOS;
        self.head_changes = if soon { self.head_changes + 1 } else { 1 };
        self.head_changed = now_unix_nano;
        self.head_changes <= MAX_HEAD_CHANGES
    }

    /// The file begins anew, as a new stream.
    fn restart(&mut self, now_unix_nano: u64) {
        self.lose(self.place.unread(), Reason::Truncated);
        self.assembler.finish();
        self.collect();
        self.readings.count_restart();
        self.incarnation = now_unix_nano.max(self.incarnation + 1);
        self.ended.push(Arc::clone(&self.stream.key));
        self.stream = stream(&self.about, self.birth, self.incarnation);
        self.assembler = Assembler::new(&self.about.lines);
        self.head = Head::default();
        self.place.restart();
    }

    /// The file ends before the bytes that it had: cut off after what was given out.
    fn shortened(&mut self) {
        let lost = self.place.recorded().saturating_sub(self.place.next());
        self.lose(lost, Reason::Truncated);
        // What is appended now follows on what is left.
        self.place.clamp();
    }

    fn give_up(&mut self, error: &std::io::Error) {
        tracing::warn!(path = %self.about.path, %error, "a log file can't be read");
        self.lose(self.place.unread(), Reason::Unavailable);
        self.place.advance(self.place.wanted());
    }

    /// How many of the bytes at `from` were written. NULs at the end may be what a file that is mapped into memory
    /// has not been written to yet, unless a record tells otherwise; before the first byte of a file that begins
    /// anew they are the hole that a writer leaves that goes on at its old position.
    fn written(&self, from: u64, bytes: &[u8]) -> usize {
        let recorded = usize::try_from(self.place.recorded().saturating_sub(from)).unwrap_or(usize::MAX);
        if bytes[0] == 0 && self.leads_a_new_incarnation() {
            return 0;
        }
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let end = end.max(recorded.min(bytes.len()));
        // A chunk of nothing but NULs may be part of a large hole.
        if bytes.len() == CHUNK && bytes[..end].iter().all(|&byte| byte == 0) { 0 } else { end }
    }

    fn leads_a_new_incarnation(&self) -> bool {
        self.incarnation > 0 && self.head.is_empty()
    }

    /// Goes on behind bytes that nobody wrote, where there is data behind them.
    fn skip_unwritten(&mut self, from: u64) -> bool {
        let Some(file) = &self.file else { return false };
        match sparse::next_written(file, from, self.place.wanted()) {
            Some(data) => {
                // Nobody wrote them, so they are in no account.
                self.assembler.gap(from, data - from);
                self.place.advance(data);
                true
            }
            None => {
                // What is not written yet will show when it is.
                self.place.unwant();
                if self.place.unread() > 0 {
                    // Records say that NULs were written: they count, but are no lines.
                    let nulls = self.place.unread();
                    self.about.account.produce(nulls);
                    self.about.account.drop_bytes(Stage::Repair, Reason::Unavailable, nulls);
                    self.assembler.gap(from, nulls);
                    self.place.advance(self.place.recorded());
                }
                false
            }
        }
    }
}

fn stream(about: &About, birth: u64, incarnation: u64) -> Arc<Stream> {
    let InodeKey { ino, dev, .. } = about.key;
    Arc::new(Stream {
        key: format!("file/{dev:x}:{ino}:{birth:x}:{incarnation:x}").into(),
        class: about.class,
        origin: Origin::File { path: Arc::clone(&about.path) },
        resource: Arc::clone(&about.resource),
        account: Arc::clone(&about.account),
    })
}

#[cfg(test)]
#[path = "log_file_tests.rs"]
mod tests;
