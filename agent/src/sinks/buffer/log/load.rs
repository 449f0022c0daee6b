//! What an earlier agent has left.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};

use super::{Cursor, Log};
use crate::sinks::{
    SinkError,
    buffer::{
        frame::Totals,
        mark::{Mark, MarkFile},
        segment::{EXTENSION, HEAD, OpenError, Segment, first_of},
    },
};

/// Smallest and largest size of a segment; between them a sixteenth of the log.
const SEGMENT_BYTES: (u64, u64) = (64 * 1024, 32 * 1024 * 1024);

impl Log {
    /// Opens the log in `path`, which is made if it is missing. At most `max_bytes` are written to it.
    ///
    /// # Errors
    /// `ResourceBusy` when another one has it; what keeps the directory from being used otherwise.
    pub(in crate::sinks::buffer) fn open(path: &Path, max_bytes: u64) -> Result<Self, SinkError> {
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
            totals: Totals::default(),
            expected: None,
            passed_over: false,
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
                Err(error) => self.set_aside(&path, &error),
            }
            self.next = self.next.max(first.saturating_add(1));
        }
        for segment in self.segments.iter().rev() {
            // One that can't be read is told of when its turn comes.
            let last = segment.last().unwrap_or_default();
            if let Some(last) = last {
                self.next = self.next.max(last.meta.sequence + 1);
            }
            if let Some(end) = last.map(|last| last.after()).or(segment.start) {
                self.totals = end;
                break;
            }
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
            "{error}: the records in this file of the buffer are not delivered; where an agent of another version wrote \
             it, that one delivers them when the file has its name again, else check the disk and delete it"
        );
    }

    fn apply(&mut self, mark: Result<Option<Mark>, ()>) {
        let buffer = self.path.display();
        let end = self.totals;
        let mark = match mark {
            Ok(Some(mark)) => {
                self.totals = end.max(mark.tail);
                self.expected = Some(mark.front);
                if self.segments.is_empty() {
                    self.next = self.next.max(mark.sequence);
                }
                mark
            }
            Ok(None) => {
                // A log that never was has lost nothing.
                self.expected = self.segments.is_empty().then_some(end);
                Mark::default()
            }
            Err(()) => {
                tracing::warn!(
                    %buffer,
                    "the mark of what is acknowledged is damaged: all that is in the buffer is delivered, some of it \
                     perhaps again"
                );
                Mark::default()
            }
        };
        let is_beyond = mark.sequence > self.next;
        if is_beyond {
            self.mark.forget();
            // One of another log says nothing of this one.
            self.expected = self.expected.filter(|_| mark.tail > end);
            tracing::warn!(
                %buffer, mark = mark.sequence, newest = self.next - 1,
                "the mark of what is acknowledged is beyond the newest record: all that is in the buffer is delivered, \
                 some of it perhaps again"
            );
            self.next = mark.sequence;
        } else {
            (self.cursor.sequence, self.records) = (mark.sequence, mark.records);
        }
        self.remove_acknowledged(mark);
    }

    /// Segments that end before the mark are done with.
    fn remove_acknowledged(&mut self, mark: Mark) {
        let followers = self.segments.iter().skip(1);
        let done = followers.take_while(|next| next.first <= self.cursor.sequence).count();
        let front = self.segments.get(done).and_then(|oldest| oldest.start);
        let (Some(front), 1..) = (front, done) else { return };
        // Before they go: a mark that says less would have them missing. Where it can't be written they are read over.
        if let Err(error) = self.mark.write(Mark { front, ..mark }) {
            tracing::warn!(buffer = %self.path.display(), %error, "noting what is acknowledged");
            return;
        }
        let first = self.segments.front().and_then(|oldest| oldest.start);
        // What was missing before them is missing still.
        let missing = first.zip(self.expected).map(|(first, expected)| first.beyond(expected));
        self.expected = missing.map(|missing| front.beyond(missing));
        (0..done).for_each(|_| self.remove(0));
    }
}
