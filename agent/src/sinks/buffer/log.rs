//! An append-only log in segment files, read once from the front and let go of from there.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::fs::{FlockOperation, flock};

use super::{
    frame::{HEADER, MAX_PAYLOAD, Meta},
    mark::{Mark, MarkFile},
    segment::{EXTENSION, Found, HEAD, OpenError, Segment, first_of},
};
use crate::sinks::SinkError;

/// Smallest and largest size of a segment; between them a sixteenth of the log.
const SEGMENT_BYTES: (u64, u64) = (64 * 1024, 32 * 1024 * 1024);

/// How long what can't be read is tried again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a frame was not appended.
#[derive(Debug, thiserror::Error)]
pub(super) enum AppendError {
    /// The log has reached its limit.
    #[error("the buffer is full")]
    Full,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is read from a log.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Read {
    Frame(Meta, Vec<u8>),
    /// A frame, or several, that can't be read; what its header says, where that can be.
    Damaged(Option<Meta>),
}

/// Where reading stands.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// The segment, by its first sequence.
    segment: u64,
    offset: u64,
    /// Every frame before it is read, or needs not to be.
    sequence: u64,
}

/// The log of one sink.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    /// Locked as long as it is open.
    directory: Arc<File>,
    mark: MarkFile,
    /// Oldest first.
    segments: VecDeque<Segment>,
    /// The last segment is this process' own and takes further frames.
    open: bool,
    /// The next sequence that was never used.
    next: u64,
    cursor: Cursor,
    /// Since when the frame at the cursor can't be read.
    unreadable_since: Option<Instant>,
    max_bytes: u64,
    segment_bytes: u64,
    /// Bytes of all segments.
    size: u64,
    /// Records that are not acknowledged.
    records: u64,
    /// Frames, and places of several frames, that could not be read.
    damaged: u64,
}

impl Log {
    /// Opens the log in `path`, which is made if it is missing. At most `max_bytes` are written to it.
    ///
    /// # Errors
    /// `ResourceBusy` when another one has it; what keeps the directory from being used otherwise.
    pub(super) fn open(path: &Path, max_bytes: u64) -> Result<Self, SinkError> {
        let failed = |action: &str, source: io::Error| SinkError {
            action: format!("{action} buffer {}", path.display()),
            source,
        };
        let advice = "making the directory of (state_dir must be writable)";
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| failed(advice, error))?;
        let directory = File::open(path).map_err(|error| failed("opening", error))?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let source = match error {
                rustix::io::Errno::WOULDBLOCK => io::ErrorKind::ResourceBusy.into(),
                error => error.into(),
            };
            failed("locking (another agent with this state_dir runs, or this one has not let go of it yet)", source)
        })?;
        let (mark, found) = MarkFile::open(path).map_err(|error| failed("opening the mark of", error))?;
        let mut log = Self {
            path: path.to_owned(),
            directory: Arc::new(directory),
            mark,
            segments: VecDeque::new(),
            open: false,
            next: 1,
            cursor: Cursor { segment: 0, offset: HEAD, sequence: 0 },
            unreadable_since: None,
            max_bytes,
            segment_bytes: (max_bytes / 16).clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1),
            size: 0,
            records: 0,
            damaged: 0,
        };
        log.load().map_err(|error| failed("reading", error))?;
        log.apply(found);
        Ok(log)
    }

    /// Finds the segments that there are.
    fn load(&mut self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            found.extend(first_of(&path).map(|first| (first, path)));
        }
        found.sort_unstable();
        for (first, path) in found {
            match Segment::open(&path, first) {
                Ok(segment) => {
                    self.size += segment.size;
                    self.segments.push_back(segment);
                }
                Err(OpenError::Io(error)) => return Err(error),
                Err(error) => self.set_aside(&path, &error),
            }
            self.next = self.next.max(first + 1);
        }
        if let Some(last) = self.segments.back() {
            self.next = self.next.max(last.last_sequence()?.map_or(0, |last| last + 1));
        }
        Ok(())
    }

    /// Keeps a file that can't be read out of the way, for who can.
    fn set_aside(&mut self, path: &Path, error: &OpenError) {
        self.damaged += 1;
        let aside = path.with_extension(format!("{EXTENSION}.unreadable"));
        let renamed = fs::rename(path, &aside);
        tracing::error!(
            file = %path.display(),
            kept_as = %aside.display(),
            ?renamed,
            "{error}: the records in this file of the buffer are not delivered; an agent of the version that wrote it \
             delivers them when the file has its name again, else delete it"
        );
    }

    fn apply(&mut self, mark: Result<Option<Mark>, ()>) {
        let mark = match mark {
            Ok(Some(mark)) if self.segments.is_empty() => {
                self.next = self.next.max(mark.sequence);
                Mark::default()
            }
            Ok(Some(mark)) if mark.sequence <= self.next => mark,
            Ok(None) => Mark::default(),
            Ok(Some(mark)) => {
                self.mark.forget();
                tracing::warn!(
                    buffer = %self.path.display(),
                    mark = mark.sequence,
                    newest = self.next - 1,
                    "the mark of what is acknowledged is beyond the newest record: all that is in the buffer is \
                     delivered, some of it perhaps again"
                );
                Mark::default()
            }
            Err(()) => {
                tracing::warn!(
                    buffer = %self.path.display(),
                    "the mark of what is acknowledged is damaged: all that is in the buffer is delivered, some of it \
                     perhaps again"
                );
                Mark::default()
            }
        };
        self.cursor.sequence = mark.sequence;
        self.records = mark.records;
        // Segments that end before the mark are done with.
        while self.segments.get(1).is_some_and(|second| second.first <= mark.sequence) {
            self.remove(0);
        }
    }

    /// Takes the next unused sequence.
    pub(super) fn take_sequence(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// The sequences that an earlier agent may have left; to be asked before the first is used.
    pub(super) fn inherited(&self) -> std::ops::Range<u64> {
        if self.segments.is_empty() { self.next..self.next } else { self.cursor.sequence..self.next }
    }

    /// Every frame before it is read, or needs not to be.
    pub(super) fn read_up_to(&self) -> u64 {
        self.cursor.sequence
    }

    /// Appends a frame; `frame` begins with [`HEADER`] bytes of room. Beyond the limit only if `force`.
    ///
    /// # Errors
    /// The log is full, or the disk is, or it fails; then nothing is appended.
    pub(super) fn append(&mut self, frame: &mut [u8], meta: Meta, force: bool) -> Result<(), AppendError> {
        let length = frame.len() as u64;
        if frame.len() - HEADER > MAX_PAYLOAD {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        if !force && self.size + HEAD + length > self.max_bytes {
            return Err(AppendError::Full);
        }
        let has_room = self.segments.back().is_some_and(|last| last.size + length <= self.segment_bytes);
        let is_new = !self.open || !has_room;
        if is_new {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let segment = Segment::create(&self.path, meta.sequence, now)?;
            self.size += segment.size;
            self.segments.push_back(segment);
            self.open = true;
        }
        let Some(last) = self.segments.back_mut() else { return Err(AppendError::Full) };
        if let Err(error) = last.append(frame, meta) {
            // An empty segment would look as if something in it was to be read.
            if is_new {
                self.remove(self.segments.len() - 1);
            }
            return Err(error.into());
        }
        self.size += length;
        self.records += u64::from(meta.records);
        Ok(())
    }

    /// The file that was appended to last.
    pub(super) fn newest(&self) -> Option<&Arc<File>> {
        self.segments.back().map(|last| &last.file)
    }

    /// The directory, for who syncs it.
    pub(super) fn directory(&self) -> &Arc<File> {
        &self.directory
    }

    /// Whether there may be something that was not read.
    pub(super) fn has_unread(&self) -> bool {
        // The segment that was read may be gone while older ones stay: then all is read.
        let is_behind = |last: &Segment| {
            self.cursor.segment < last.first || self.cursor.segment == last.first && self.cursor.offset < last.size
        };
        self.segments.back().is_some_and(is_behind)
    }

    /// Bytes on disk that were not read.
    pub(super) fn unread_bytes(&self) -> u64 {
        let index = self.cursor_index();
        let unread: u64 = self.segments.range(index.min(self.segments.len())..).map(|segment| segment.size).sum();
        let is_begun = self.segments.get(index).is_some_and(|segment| segment.first == self.cursor.segment);
        unread.saturating_sub(if is_begun { self.cursor.offset } else { 0 })
    }

    /// Goes behind all that there is, as somebody has it in memory.
    pub(super) fn skip_to_end(&mut self) {
        if let Some(last) = self.segments.back() {
            self.cursor = Cursor { segment: last.first, offset: last.size, sequence: self.next };
        }
    }

    /// The segment that is read, so that one can see when its end has come.
    pub(super) fn reading(&self) -> Option<u64> {
        let index = self.cursor_index();
        self.segments.get(index).map(|segment| segment.first)
    }

    fn cursor_index(&self) -> usize {
        self.segments.partition_point(|segment| segment.first < self.cursor.segment)
    }

    /// Reads the next frame; `None` when there is none.
    ///
    /// # Errors
    /// What keeps it from being read. It is tried again by the next call, and given up after [`PATIENCE`].
    pub(super) fn read(&mut self) -> io::Result<Option<Read>> {
        loop {
            let index = self.cursor_index();
            let Some(segment) = self.segments.get(index) else { return Ok(None) };
            if segment.first != self.cursor.segment {
                (self.cursor.segment, self.cursor.offset) = (segment.first, HEAD);
            }
            let place = self.cursor.offset;
            let (found, next) = match segment.read(place) {
                Ok(read) => {
                    self.unreadable_since = None;
                    read
                }
                Err(error) => {
                    if self.unreadable_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
                        return Err(error);
                    }
                    self.unreadable_since = None;
                    let (found, next) = segment.pass_over(place);
                    tracing::error!(
                        file = %segment.path.display(), offset = place, bytes = next - place, %error,
                        "the buffer can't be read here: this part of the file is lost"
                    );
                    (found, next)
                }
            };
            (self.cursor.offset, self.cursor.segment) = (next, segment.first);
            let (size, path) = (segment.size, segment.path.clone());
            if let Some(after) = self.segments.get(index + 1).filter(|_| next >= size) {
                (self.cursor.offset, self.cursor.segment) = (HEAD, after.first);
            }
            match found {
                Found::Frame(header, _) if header.meta.sequence < self.cursor.sequence => {}
                Found::Frame(header, payload) => {
                    self.cursor.sequence = header.meta.sequence + 1;
                    return Ok(Some(Read::Frame(header.meta, payload)));
                }
                Found::Damage(header) => {
                    let meta = header.map(|header| header.meta);
                    if meta.is_some_and(|meta| meta.sequence < self.cursor.sequence) {
                        continue;
                    }
                    self.damaged += 1;
                    tracing::warn!(
                        file = %path.display(), offset = place, bytes = next - place, ?meta,
                        "a record in the buffer is damaged and skipped; check the disk"
                    );
                    if let Some(meta) = meta {
                        self.cursor.sequence = meta.sequence + 1;
                    }
                    return Ok(Some(Read::Damaged(meta)));
                }
                Found::End if index + 1 == self.segments.len() => return Ok(None),
                Found::End => {}
            }
        }
    }

    /// Lets no more frames into the newest segment.
    pub(super) fn close_segment(&mut self) {
        self.open = false;
    }

    /// Notes that so many records are delivered, or given up.
    pub(super) fn forget(&mut self, records: u64) {
        self.records = self.records.saturating_sub(records);
    }

    /// Deletes segments that were read and of which nothing is on its way; `on_its_way` says of a range of sequences
    /// whether something is, `oldest` is the lowest of all. Notes how far all is done.
    ///
    /// # Errors
    /// A file can't be deleted, or the mark not be written; it is tried again.
    pub(super) fn retire(
        &mut self,
        oldest: Option<u64>,
        on_its_way: impl Fn(std::ops::Range<u64>) -> bool,
    ) -> io::Result<()> {
        if self.segments.is_empty() {
            return Ok(());
        }
        let reading = self.cursor_index();
        let read_all = !self.has_unread();
        let mut index = 0;
        let mut before_reading = reading;
        while index < self.segments.len() {
            let is_last = index + 1 == self.segments.len();
            let end = if is_last { self.next } else { self.segments[index + 1].first };
            let was_read = index < before_reading || (is_last && read_all);
            if was_read && !on_its_way(self.segments[index].first..end) {
                self.remove(index);
                before_reading = before_reading.saturating_sub(1);
            } else {
                index += 1;
            }
        }
        if self.segments.is_empty() {
            self.records = 0;
        }
        let sequence = oldest.unwrap_or(u64::MAX).min(if self.has_unread() { self.cursor.sequence } else { self.next });
        self.mark.write(Mark { sequence, records: self.records })
    }

    fn remove(&mut self, index: usize) {
        let Some(segment) = self.segments.remove(index) else { return };
        self.size -= segment.size;
        if index == self.segments.len() {
            self.open = false;
        }
        if let Err(error) = fs::remove_file(&segment.path) {
            tracing::warn!(file = %segment.path.display(), %error, "a part of the buffer can't be deleted: delete it");
        }
    }

    /// Bytes on disk.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Records that are not acknowledged, as far as they were counted.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Places that could not be read.
    pub(super) fn damaged(&self) -> u64 {
        self.damaged
    }

    /// One more frame could be read, and not understood.
    pub(super) fn note_damaged(&mut self) {
        self.damaged += 1;
    }

    /// When the oldest segment was made, in seconds since the Unix epoch.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.segments.front().map(|segment| segment.created).filter(|created| *created > 0)
    }
}

#[cfg(test)]
mod tests;
