//! An append-only log in segment files, read once from the front and let go of from there.

mod load;
mod retire;

use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    frame::{HEADER, Header, MAX_PAYLOAD, Meta, Totals},
    mark::MarkFile,
    segment::{Found, HEAD, Segment},
};

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
    /// A frame with a damaged payload, or without it.
    Damaged(Meta, Vec<u8>),
    /// Frames that are not there any more.
    Missing(Totals),
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
    /// What was ever appended.
    totals: Totals,
    /// What was appended before the cursor: the next frame says the same, or some are missing between. `None` until the
    /// first frame says it.
    expected: Option<Totals>,
    /// A place without a header was passed over: what is missing behind it was reported.
    passed_over: bool,
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
            let segment = Segment::create(&self.path, meta.sequence, now, self.totals)?;
            self.size += segment.size;
            self.segments.push_back(segment);
            self.open = true;
        }
        let Some(last) = self.segments.back_mut() else { return Err(AppendError::Full) };
        if let Err(error) = last.append(frame, meta, self.totals) {
            // An empty segment would look as if something in it was to be read.
            if is_new {
                self.remove(self.segments.len() - 1);
            }
            return Err(error.into());
        }
        self.size += length;
        self.totals = self.totals.plus(meta.totals());
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

    /// Whether there may be something that was not read, or something is missing and was not told.
    pub(super) fn has_unread(&self) -> bool {
        // The segment that was read may be gone while older ones stay: then all is read.
        let is_behind = |last: &Segment| {
            self.cursor.segment < last.first || self.cursor.segment == last.first && self.cursor.offset < last.size
        };
        self.segments.back().is_some_and(is_behind) || self.expected.is_some_and(|expected| expected < self.totals)
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
            self.expected = Some(self.totals);
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
            let Some(segment) = self.segments.get(index) else { return Ok(self.missing_before(self.totals)) };
            if segment.first != self.cursor.segment {
                (self.cursor.segment, self.cursor.offset) = (segment.first, HEAD);
            }
            let place = self.cursor.offset;
            if let Some(start) = segment.start.filter(|_| place == HEAD) {
                if segment.is_done {
                    self.expected = self.expected.max(Some(start));
                } else if let Some(missing) = self.missing_before(start) {
                    return Ok(Some(missing));
                }
            }
            let Some(segment) = self.segments.get(index) else { return Ok(None) };
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
            let (size, path) = (segment.size, segment.path.clone());
            if let Found::Frame(header, _) | Found::Damage(Some((header, _))) = &found {
                if let Some(missing) = self.missing_before(header.before) {
                    return Ok(Some(missing));
                }
                self.expected = self.expected.max(Some(header.after()));
            }
            (self.cursor.offset, self.cursor.segment) = (next, self.segments[index].first);
            if let Some(after) = self.segments.get(index + 1).filter(|_| next >= size) {
                (self.cursor.offset, self.cursor.segment) = (HEAD, after.first);
            }
            match found {
                Found::Frame(header, _) | Found::Damage(Some((header, _)))
                    if header.meta.sequence < self.cursor.sequence => {}
                Found::Frame(header, payload) => {
                    self.cursor.sequence = header.meta.sequence + 1;
                    return Ok(Some(Read::Frame(header.meta, payload)));
                }
                Found::Damage(header) => {
                    self.damaged += 1;
                    self.passed_over = header.is_none();
                    let meta = header.as_ref().map(|(header, _)| header.meta);
                    tracing::warn!(
                        file = %path.display(), offset = place, bytes = next - place, ?meta,
                        "a part of the buffer is damaged; check the disk"
                    );
                    if let Some((Header { meta, .. }, payload)) = header {
                        self.cursor.sequence = meta.sequence + 1;
                        return Ok(Some(Read::Damaged(meta, payload)));
                    }
                }
                Found::End if index + 1 == self.segments.len() => return Ok(self.missing_before(self.totals)),
                Found::End => {}
            }
        }
    }

    /// What should stand before a place, where so much was appended before it, and was not found. It is told once.
    fn missing_before(&mut self, place: Totals) -> Option<Read> {
        let missing = place.beyond(self.expected.unwrap_or(place));
        self.expected = self.expected.max(Some(place));
        if missing == Totals::default() {
            return None;
        }
        if !std::mem::take(&mut self.passed_over) {
            self.damaged += 1;
        }
        tracing::error!(
            buffer = %self.path.display(), records = missing.records, bytes = missing.span,
            "records that were in the buffer are not there any more, and not all of them were delivered: a file of it was \
             deleted or cut off, or the disk has lost it"
        );
        Some(Read::Missing(missing))
    }

    /// Lets no more frames into the newest segment.
    pub(super) fn close_segment(&mut self) {
        self.open = false;
    }

    /// Notes that so many records are delivered, or given up.
    pub(super) fn forget(&mut self, records: u64) {
        self.records = self.records.saturating_sub(records);
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
