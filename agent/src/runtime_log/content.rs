//! The bytes of one stream of a container, in the order of its log files, each with its place among them.

use std::{
    io::{self, BufRead, Read},
    sync::Arc,
    time::Instant,
};

use super::{entry::Entry, files::LogFile};
use crate::record::IoStream;

/// A longer line is written by no runtime: containerd and CRI-O cut at some KiB, Docker at 16 KiB.
const MAX_LINE: u64 = 16 * 1024 * 1024;

/// Why a log file can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContentError {
    /// The file system refuses, or a compressed file is damaged.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not what a runtime writes.
    #[error("it has a line that no runtime writes")]
    Format,
}

/// A place where a line begins.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Place {
    /// Which of the files.
    pub(super) file: usize,
    /// Where in its text.
    pub(super) offset: u64,
    /// Bytes of content before it, from wherever counting began.
    pub(super) position: u64,
}

/// Reads from a place to the end of what there is.
pub(super) struct Content {
    files: Arc<Vec<LogFile>>,
    iostream: IoStream,
    place: Place,
    reader: Option<Box<dyn BufRead + Send>>,
    line: Vec<u8>,
    entry: Entry,
    /// Until when it may be read, and lines since that was looked at.
    deadline: Option<Instant>,
    lines: u32,
}

/// How many lines are read between two looks at the clock.
const LINES: u32 = 1024;

impl Content {
    /// At a place of these files.
    pub(super) fn new(files: &Arc<Vec<LogFile>>, iostream: IoStream, place: Place) -> Self {
        Self {
            files: Arc::clone(files),
            iostream,
            place,
            reader: None,
            line: Vec::new(),
            entry: Entry::default(),
            deadline: None,
            lines: 0,
        }
    }

    /// Gives up at that time: a file may be full of lines of the other stream.
    #[must_use]
    pub(super) fn until(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Where the next line begins.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The next piece, and where its line begins; `None` at the end, or where the runtime is writing a line.
    pub(super) fn next(&mut self) -> Result<Option<(Place, &Entry)>, ContentError> {
        loop {
            let Some(file) = self.files.get(self.place.file) else { return Ok(None) };
            let reader = match &mut self.reader {
                Some(reader) => reader,
                none => none.insert(file.reader(self.place.offset)?),
            };
            self.lines = self.lines.wrapping_add(1);
            let is_late = || self.deadline.is_some_and(|deadline| Instant::now() > deadline);
            if self.lines.is_multiple_of(LINES) && is_late() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            self.line.clear();
            let read = reader.take(MAX_LINE).read_until(b'\n', &mut self.line)? as u64;
            if self.line.pop_if(|byte| *byte == b'\n').is_none() {
                // One that is half written is read again later; before the last file it was never ended: the runtime was
                // killed, or the disk was full.
                let is_last = self.place.file + 1 == self.files.len();
                if read == MAX_LINE || (read > 0 && !is_last) {
                    return Err(ContentError::Format);
                }
                self.reader = None;
                if is_last {
                    return Ok(None);
                }
                self.place = Place { file: self.place.file + 1, offset: 0, ..self.place };
                continue;
            }
            let place = self.place;
            self.place.offset += read;
            if self.entry.decode(&self.line).ok_or(ContentError::Format)? == self.iostream {
                self.place.position += self.entry.bytes.len() as u64;
                return Ok(Some((place, &self.entry)));
            }
        }
    }
}
