//! One open log file: what the ring brings of it, what is read from it, and the stream that both become.

mod read;
mod times;

use std::{fs::File, os::unix::fs::MetadataExt, sync::Arc};

use sidestep_abi::stdio::InodeKey;

use self::times::Times;
use super::{
    head::Head,
    open::{Whereabouts, birth},
    position::{Action, Place, Record},
    readings::{Readings, StreamReading},
    source::Source,
    tally::Tally,
};
use crate::{
    assemble::{Assembler, Compiled},
    ledger::{Account, Reason, Stage},
    pipeline::container::Profile,
    record::{Batch, Class, Origin, Resource, Stream},
};

/// Finished lines are handed on at the latest when they are this many bytes.
const BATCH_BYTES: usize = 256 * 1024;

/// What a file is, apart from its bytes.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// Device and inode number.
    pub(super) key: InodeKey,
    /// `business` or `server`.
    pub(super) class: Class,
    /// What its records have in the place of that.
    pub(super) declared_class: Option<Class>,
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
    /// The size of `file` when it begins as the one that stood here and is shorter: a file that was truncated begins with
    /// other bytes, or with none.
    #[must_use]
    pub(super) fn is_beyond(&self, file: &File) -> Option<u64> {
        let size = file.metadata().ok()?.len();
        let begins_so = Self { position: 0, ..self.clone() }.holds_for(file);
        (size < self.position && self.head_len > 0 && begins_so).then_some(size)
    }

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
    file: Option<Arc<File>>,
    birth: u64,
    incarnation: u64,
    place: Place,
    times: Times,
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
    /// What was written, and what of it is booked.
    pub(super) tally: Tally,
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
        let file = file.map(Arc::new);
        Self {
            head: file.as_ref().map_or_else(Head::default, |file| Head::read(file, position)),
            assembler: Assembler::new(&about.lines),
            stream: stream(&about, file.clone(), birth, incarnation),
            about,
            whereabouts: Whereabouts::default(),
            file,
            birth,
            incarnation,
            place,
            times: Times::default(),
            head_changed: 0,
            head_changes: 0,
            sighted: None,
            suspected: None,
            ready: Vec::new(),
            ended: Vec::new(),
            readings: Arc::clone(readings),
            tally: Tally::default(),
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
        self.file.as_deref()
    }

    /// Closes the descriptor; [`LogFile::reopened`] gives it back.
    pub(super) fn close(&mut self) {
        self.hold(None);
    }

    fn hold(&mut self, file: Option<Arc<File>>) {
        if let Some(source) = &self.stream.source {
            source.set_file(file.clone());
        }
        self.file = file;
    }

    /// Gives back a descriptor of the same file, or none when it is found no more: then what the ring brings is all
    /// there is. Another file that has got the same inode number is not taken.
    pub(super) fn reopened(&mut self, file: Option<File>) {
        self.hold(file.filter(|file| self.birth == birth(file) || self.place.is_blind()).map(Arc::new));
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

    /// Takes a record of the ring, with its bytes or without any. What it does not settle is left to
    /// [`LogFile::read`]; where there is no file to read, bytes that are not here are booked as lost.
    pub(super) fn record(&mut self, record: &Record, bytes: &[u8], time_unix_nano: u64) {
        self.suspected = None;
        let mut action = self.judge(record, bytes);
        if action == Action::Suspect {
            let anew = match &self.file {
                Some(_) => self.has_restarted(time_unix_nano),
                None => record.position == 0,
            };
            action = if anew { Action::Restarted } else { self.place.accept_late(record) };
        }
        if action == Action::Restarted {
            self.restart(time_unix_nano);
            action = self.judge(record, bytes);
        }
        match action {
            Action::Take => self.take(record, bytes, 0, time_unix_nano),
            Action::Read if self.file.is_none() => self.take_blindly(record, bytes, time_unix_nano),
            Action::Read => {
                self.times.note(record.end(), time_unix_nano);
                self.readings.count_gap();
            }
            Action::Look if self.file.is_none() => self.lose(record.len, Reason::Unavailable),
            Action::Look => self.look(time_unix_nano),
            Action::Skip | Action::Suspect | Action::Restarted => {}
        }
    }

    /// Books bytes that were written somewhere in the file, and that nobody can read any more.
    pub(super) fn lose_elsewhere(&mut self, bytes: u64) {
        self.lose(bytes, Reason::Unavailable);
    }

    /// The file's life is over: what was written to it and never came is booked as lost. `last` is the final count of
    /// the announcement that its tally has.
    pub(super) fn settle(&mut self, last: u64) {
        let missing = self.tally.settle(last);
        if missing > 0 {
            self.about.account.produce(missing);
            self.about.account.drop_bytes(Stage::Repair, Reason::Unavailable, missing);
        }
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

    /// Takes over what is known of the writer by now, from the line under way on.
    pub(super) fn renew(&mut self, settled: &Profile) {
        let lines = settled.lines.compiled();
        let is_cut_anew = !Arc::ptr_eq(&self.about.lines, lines);
        let is_new =
            !Arc::ptr_eq(&self.about.resource, &settled.resource) || self.about.declared_class != settled.class;
        if !is_new && !is_cut_anew {
            return;
        }
        self.assembler.change(lines);
        self.collect();
        self.about.resource = Arc::clone(&settled.resource);
        self.about.declared_class = settled.class;
        self.about.lines = Arc::clone(lines);
        let source = self.stream.source.clone().filter(|_| !is_cut_anew);
        self.stream = Arc::new(Stream {
            key: Arc::clone(&self.stream.key),
            class: self.about.declared_class.unwrap_or(self.about.class),
            origin: self.stream.origin.clone(),
            resource: Arc::clone(&self.about.resource),
            account: Arc::clone(&self.stream.account),
            source: source.or_else(|| Some(Arc::new(Source::new(self.file.clone(), lines)))),
        });
    }

    /// Bytes of lines that are finished and not handed out.
    #[must_use]
    pub(super) fn ready_bytes(&self) -> usize {
        self.ready.iter().map(|batch| batch.data.len()).sum::<usize>() + self.assembler.ready_bytes()
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

    fn judge(&mut self, record: &Record, bytes: &[u8]) -> Action {
        if bytes.len() as u64 == record.len { self.place.judge(record) } else { self.place.judge_bare(record) }
    }

    fn push(&mut self, position: u64, bytes: &[u8], time_unix_nano: u64) {
        self.head.extend(position, bytes);
        self.produce(bytes.len() as u64);
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
        self.take(record, bytes, known, time_unix_nano);
    }

    /// Gives out a record's bytes but for the first `known`, and books those that are not here.
    fn take(&mut self, record: &Record, bytes: &[u8], known: usize, time_unix_nano: u64) {
        if let Some(rest) = bytes.get(known..) {
            self.push(record.position + known as u64, rest, time_unix_nano);
        }
        let here = known.max(bytes.len()) as u64;
        self.lose_at(record.position.saturating_add(here), record.len.saturating_sub(here), Reason::Unavailable);
    }

    /// Books bytes at the current place that will never come.
    fn lose(&mut self, bytes: u64, reason: Reason) {
        self.lose_at(self.place.next(), bytes, reason);
    }

    fn lose_at(&mut self, position: u64, bytes: u64, reason: Reason) {
        if bytes > 0 {
            self.produce(bytes);
            self.about.account.drop_bytes(Stage::Repair, reason, bytes);
            self.assembler.gap(position, bytes);
        }
    }

    fn produce(&mut self, bytes: u64) {
        self.about.account.produce(bytes);
        self.tally.book(bytes);
    }

    /// The file begins anew, as a new stream.
    fn restart(&mut self, now_unix_nano: u64) {
        self.lose(self.place.unread(), Reason::Truncated);
        self.assembler.finish();
        self.collect();
        self.readings.count_restart();
        self.incarnation = now_unix_nano.max(self.incarnation + 1);
        self.ended.push(Arc::clone(&self.stream.key));
        self.stream = stream(&self.about, self.file.clone(), self.birth, self.incarnation);
        self.assembler = Assembler::new(&self.about.lines);
        self.head = Head::default();
        self.place.restart();
        self.times.clear();
    }
}

fn stream(about: &About, file: Option<Arc<File>>, birth: u64, incarnation: u64) -> Arc<Stream> {
    let InodeKey { ino, dev, .. } = about.key;
    Arc::new(Stream {
        key: format!("file/{dev:x}:{ino}:{birth:x}:{incarnation:x}").into(),
        class: about.declared_class.unwrap_or(about.class),
        origin: Origin::File { path: Arc::clone(&about.path) },
        resource: Arc::clone(&about.resource),
        account: Arc::clone(&about.account),
        source: Some(Arc::new(Source::new(file, &about.lines))),
    })
}

#[cfg(test)]
mod tests;
