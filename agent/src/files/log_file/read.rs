//! What the file itself tells: its size, whether it began anew, and the bytes that no record brought.

use std::os::unix::fs::FileExt;

use super::LogFile;
use crate::{
    events::Event,
    files::sparse,
    ledger::{Reason, Stage},
    record::Class,
};

/// Bytes of one read.
const CHUNK: usize = 256 * 1024;
/// How long a record may be on its way from the kernel, the reader's naps and the queue included.
const ON_THEIR_WAY_NANOS: u64 = 400_000_000;
/// A head that changes more often than this, each time within [`HEAD_CHANGES_NANOS`], is one that is rewritten in
/// place: it tells nothing any more.
const MAX_HEAD_CHANGES: u32 = 4;
/// See [`MAX_HEAD_CHANGES`].
const HEAD_CHANGES_NANOS: u64 = 10_000_000_000;

impl LogFile {
    /// Compares the file's size with what is known of it. That it begins anew is believed at the second look only:
    /// records from before the truncation may be on their way still, and they are the only copy of what was cut off.
    pub(in crate::files) fn look(&mut self, now_unix_nano: u64) {
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
    pub(in crate::files) fn look_finally(&mut self, now_unix_nano: u64) {
        let Some(size) = self.size() else { return };
        if self.is_shorter_or_other(size, now_unix_nano) {
            self.restart(now_unix_nano);
        }
        self.place.want_size(size);
    }

    /// The head tells of a file that has grown again past where it was read to.
    pub(super) fn is_shorter_or_other(&mut self, size: u64, now_unix_nano: u64) -> bool {
        size < self.place.next() || size > self.place.wanted() && self.has_restarted(now_unix_nano)
    }

    /// Reads at most about `budget` bytes of what is known to be there. Gives the number of bytes taken.
    pub(in crate::files) fn read(&mut self, budget: usize, now_unix_nano: u64) -> usize {
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
            self.push_read(from, &buffer[..written], now_unix_nano);
            taken += written;
            if written < read && from + read as u64 >= self.place.wanted() {
                self.place.unwant();
            }
        }
        taken
    }

    /// Takes bytes that were read, each with the time of its record where there was one.
    fn push_read(&mut self, from: u64, mut bytes: &[u8], now_unix_nano: u64) {
        let mut position = from;
        while !bytes.is_empty() {
            let (end, time) = self.times.at(position).unwrap_or((u64::MAX, now_unix_nano));
            let len = usize::try_from(end - position).unwrap_or(usize::MAX).min(bytes.len());
            let (part, rest) = bytes.split_at(len);
            self.push(position, part, time);
            position += len as u64;
            bytes = rest;
        }
    }

    pub(super) fn has_restarted(&mut self, now_unix_nano: u64) -> bool {
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

    pub(super) fn size(&self) -> Option<u64> {
        Some(self.file.as_ref()?.metadata().ok()?.len())
    }

    /// How many of the bytes at `from` were written. NULs at the end may be what a file that is mapped into memory
    /// has not been written to yet, unless a record tells otherwise; before the first byte of a file that begins
    /// anew they are the hole that a writer leaves that goes on at its old position.
    pub(super) fn written(&self, from: u64, bytes: &[u8]) -> usize {
        let recorded = usize::try_from(self.place.recorded().saturating_sub(from)).unwrap_or(usize::MAX);
        if bytes[0] == 0 && self.leads_a_new_incarnation() {
            return 0;
        }
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let end = end.max(recorded.min(bytes.len()));
        // A chunk of nothing but NULs may be part of a large hole.
        if bytes.len() == CHUNK && bytes[..end].iter().all(|&byte| byte == 0) { 0 } else { end }
    }

    pub(super) fn leads_a_new_incarnation(&self) -> bool {
        self.incarnation > 0 && self.head.is_empty()
    }

    /// Goes on behind bytes that nobody wrote, where there is data behind them.
    pub(super) fn skip_unwritten(&mut self, from: u64) -> bool {
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
                    self.produce(nulls);
                    self.about.account.drop_bytes(Stage::Repair, Reason::Unavailable, nulls);
                    self.assembler.gap(from, nulls);
                    self.place.advance(self.place.recorded());
                }
                false
            }
        }
    }

    /// The file ends before the bytes that it had: cut off after what was given out.
    pub(super) fn shortened(&mut self) {
        let lost = self.place.recorded().saturating_sub(self.place.next());
        self.lose(lost, Reason::Truncated);
        // What is appended now follows on what is left.
        self.place.clamp();
    }

    pub(super) fn give_up(&mut self, error: &std::io::Error) {
        Event::FileUnreadable { path: &self.about.path, error }.report();
        self.lose(self.place.unread(), Reason::Unavailable);
        self.place.advance(self.place.wanted());
    }
}
