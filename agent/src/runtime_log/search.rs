//! Finding the bytes of a gap in the runtime's log: by counting from the container's start, or between known bytes.
//!
//! Bytes are taken for those of a gap only when what was delivered before it, and what came after it, stand right before
//! and right behind them, and they are exactly as many as the kernel has counted. Counting alone would be wrong where the
//! content is not what was written: containerd leaves out the `\r` of a line that ends with `\r\n`, Docker may be told to
//! drop what it can't keep up with, and a counter that began in the middle of a container's life knows no start.

use std::{collections::VecDeque, io, ops::Range, path::Path, sync::Arc, time::Instant};

use bytes::Bytes;
use memchr::memmem;

use super::{
    content::{Content, ContentError, Place},
    entry::Entry,
    files::{Location, LogFile, open_all},
};
use crate::{attribute::HostFiles, record::IoStream};

/// Known bytes that one side of a gap has to have, for a place that is found by bytes, or whose count nothing else proves.
pub(super) const LEAST_KNOWN: usize = 64;
/// How far a clock may be set while a container runs.
const CLOCK_SLACK: u64 = 2_000_000_000;
/// Places that look alike; above it there is no telling.
const MAX_MATCHES: usize = 8;
/// Starts of one container that are looked at, the last ones; kubelet keeps two.
const MAX_STARTS: usize = 8;
/// Content that is searched at once.
const WINDOW: usize = 1024 * 1024;
/// Pieces between two looks at the clock.
const PIECES: u32 = 4096;

/// What lies behind a gap.
#[derive(Clone, Debug)]
pub enum After {
    /// These bytes.
    Bytes(Bytes),
    /// Nothing: the kernel has counted no more.
    End,
}

/// Bytes of a stream that are missing, and what is known of their neighbours.
#[derive(Clone, Debug)]
pub struct Gap {
    /// Whose they are.
    pub iostream: IoStream,
    /// When the kernel began to count the stream: nanoseconds since the Unix epoch.
    pub registered: u64,
    /// Which bytes, by the kernel's count.
    pub range: Range<u64>,
    /// The bytes right before, as far as they are known.
    pub before: Vec<u8>,
    /// When the last of these was written, 0 if nobody knows: nanoseconds since the Unix epoch.
    pub not_before: u64,
    /// What follows.
    pub after: After,
}

/// A line of which the count is known; the next gap is looked for from there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Known {
    /// Device and inode of the file.
    pub(super) file: (u64, u64),
    /// Where the line begins in it.
    pub(super) offset: u64,
    /// Bytes before it, by the kernel's count.
    pub(super) position: u64,
}

/// What came of looking for a gap.
pub(super) enum Look {
    /// Here it is.
    Found(Found),
    /// The runtime may not have written all of it yet.
    Later(Option<Known>),
    /// It is not there, or there is no telling where.
    Never(&'static str),
}

/// Where the bytes of a gap are.
pub(super) struct Found {
    pub(super) files: Arc<Vec<LogFile>>,
    /// Where to begin to read.
    pub(super) place: Place,
    /// The gap, in what is counted there.
    pub(super) range: Range<u64>,
}

impl Found {
    /// As [`Look::Later`] has it.
    pub(super) fn known(&self, gap: &Gap) -> Option<Known> {
        known(&self.files, self.place, self.range.start, gap)
    }
}

enum Verdict {
    Fits(Place),
    Later(Option<Place>),
    Differs,
}

/// Looks for a gap until `deadline`.
pub(super) fn look(
    node: &HostFiles,
    location: &Location,
    gap: &Gap,
    hint: Option<Known>,
    deadline: Instant,
) -> Result<Look, ContentError> {
    let mut starts = location.candidates(node)?;
    starts.drain(..starts.len().saturating_sub(MAX_STARTS));
    let starts = starts.iter().map(|path| Start::open(node, path)).collect::<io::Result<Vec<_>>>()?;
    let search = Search { gap, deadline };
    for start in &starts {
        if let Some(hint) = hint.filter(|_| gap.is_certain_by_count())
            && let Some(file) = start.files.iter().position(|file| file.id == hint.file)
        {
            let place = Place { file, offset: hint.offset, position: hint.position };
            match search.verify(&start.files, place, gap.range.start)? {
                Verdict::Fits(place) => return Ok(search.found(start, place, gap.range.start)),
                Verdict::Later(place) => return Ok(search.later(start, place, gap.range.start)),
                Verdict::Differs => {}
            }
        }
    }
    // A log whose first line is older belongs to an earlier start, or the counter began in the middle of its life.
    let since = gap.registered.saturating_sub(CLOCK_SLACK);
    let own = starts.iter().position(|start| start.first_time.is_none_or(|first| first >= since));
    if let Some(own) = own {
        let start = &starts[own];
        if gap.is_certain_by_count() {
            match search.verify(&start.files, Place::default(), gap.range.start)? {
                Verdict::Fits(place) => return Ok(search.found(start, place, gap.range.start)),
                Verdict::Later(place) => return Ok(search.later(start, place, gap.range.start)),
                Verdict::Differs => {}
            }
        }
    }
    if !gap.is_certain_by_neighbours() {
        return Ok(Look::Never("its bytes do not stand where the count says, and too little is known around them"));
    }
    let last = own.map_or(starts.len(), |own| own + 1);
    let mut outcome = Look::Never("the runtime has no log of the container");
    for start in starts[..last].iter().rev().take(2) {
        outcome = search.by_neighbours(start)?;
        if !matches!(outcome, Look::Never(_)) {
            break;
        }
    }
    Ok(outcome)
}

/// The files of one start of a container.
struct Start {
    files: Arc<Vec<LogFile>>,
    /// When the first line was written that is left; `None` before there is one.
    first_time: Option<u64>,
}

impl Start {
    fn open(node: &HostFiles, path: &Path) -> io::Result<Self> {
        let files = open_all(node, path)?;
        let mut first_time = None;
        for file in &files {
            let mut line = Vec::new();
            let mut reader = io::Read::take(file.reader(0)?, WINDOW as u64);
            io::BufRead::read_until(&mut reader, b'\n', &mut line)?;
            if line.pop().is_some() {
                let mut entry = Entry::default();
                first_time = entry.decode(&line).and_then(|_| entry.time());
                break;
            }
        }
        Ok(Self { files: Arc::new(files), first_time })
    }
}

impl Gap {
    /// Whether its place by the count is proven by its neighbours, as far as it has any.
    fn is_certain_by_count(&self) -> bool {
        let known = u64::try_from(LEAST_KNOWN).unwrap_or(u64::MAX).min(self.range.start);
        self.before.len() as u64 >= known || self.is_after_known()
    }

    /// Whether its neighbours alone can tell its place.
    fn is_certain_by_neighbours(&self) -> bool {
        self.before.len() >= LEAST_KNOWN && self.is_after_known()
    }

    fn is_after_known(&self) -> bool {
        match &self.after {
            After::Bytes(bytes) => bytes.len() >= LEAST_KNOWN,
            After::End => true,
        }
    }

    fn length(&self) -> u64 {
        self.range.end - self.range.start
    }
}

struct Search<'a> {
    gap: &'a Gap,
    deadline: Instant,
}

impl Search<'_> {
    fn found(&self, start: &Start, place: Place, at: u64) -> Look {
        Look::Found(Found { files: Arc::clone(&start.files), place, range: at..at + self.gap.length() })
    }

    fn later(&self, start: &Start, place: Option<Place>, at: u64) -> Look {
        Look::Later(place.and_then(|place| known(&start.files, place, at, self.gap)))
    }

    /// Whether the gap is where `at` bytes have been counted, from `start` on.
    fn verify(&self, files: &Arc<Vec<LogFile>>, start: Place, at: u64) -> Result<Verdict, ContentError> {
        let gap = self.gap;
        let Some(first) = at.checked_sub(gap.before.len() as u64).filter(|first| *first >= start.position) else {
            return Ok(Verdict::Differs);
        };
        let end = at + gap.length();
        let after: &[u8] = match &gap.after {
            After::Bytes(bytes) => bytes,
            After::End => &[],
        };
        let mut content = Content::new(files, gap.iostream, start).until(self.deadline);
        let (mut found, mut is_in_gap, mut pieces) = (None, false, 0u32);
        while let Some((place, entry)) = content.next()? {
            pieces = pieces.wrapping_add(1);
            if pieces.is_multiple_of(PIECES) && Instant::now() > self.deadline {
                return Ok(Verdict::Later(found));
            }
            let piece = place.position..place.position + entry.bytes.len() as u64;
            if piece.end <= first {
                continue;
            }
            found.get_or_insert(place);
            if !agree(&piece, &entry.bytes, first, &gap.before) || !agree(&piece, &entry.bytes, end, after) {
                return Ok(Verdict::Differs);
            }
            if piece.end > at && piece.start < end {
                let is_early = || entry.time().is_none_or(|time| time < gap.not_before.saturating_sub(CLOCK_SLACK));
                if !entry.exact || (!std::mem::replace(&mut is_in_gap, true) && is_early()) {
                    return Ok(Verdict::Differs);
                }
            }
            match &gap.after {
                After::Bytes(after) if piece.end >= end + after.len() as u64 => {
                    return Ok(found.map_or(Verdict::Differs, Verdict::Fits));
                }
                After::End if piece.end > end => return Ok(Verdict::Differs),
                _ => {}
            }
        }
        let is_end = matches!(gap.after, After::End) && content.place().position == end;
        Ok(match found {
            Some(place) if is_end => Verdict::Fits(place),
            found => Verdict::Later(found),
        })
    }

    /// Looks for the one place where the gap's neighbours are as far apart as they have to be.
    fn by_neighbours(&self, start: &Start) -> Result<Look, ContentError> {
        let Some(matches) = self.matches(&start.files)? else {
            return Ok(Look::Never("what is before it is there many times"));
        };
        let (mut fits, mut later) = (Vec::new(), matches.is_empty());
        for (place, at) in matches {
            match self.verify(&start.files, place, at)? {
                Verdict::Fits(place) => fits.push((place, at)),
                Verdict::Later(_) => later = true,
                Verdict::Differs => {}
            }
        }
        Ok(match fits[..] {
            // One more may follow.
            [] | [_] if later => Look::Later(None),
            [(place, at)] => self.found(start, place, at),
            [] => Look::Never("it is not complete in the runtime's log"),
            _ => Look::Never("it may be in several places of the runtime's log"),
        })
    }

    /// Where the bytes before the gap end, each with a line at or before their beginning; `None` when they are nearly
    /// everywhere.
    fn matches(&self, files: &Arc<Vec<LogFile>>) -> Result<Option<Vec<(Place, u64)>>, ContentError> {
        let before = &self.gap.before;
        let finder = memmem::Finder::new(before);
        let mut content = Content::new(files, self.gap.iostream, Place::default()).until(self.deadline);
        let mut matches = Vec::new();
        let (mut window, mut window_start) = (Vec::new(), 0u64);
        let mut lines = VecDeque::new();
        loop {
            let more = match content.next()? {
                Some((place, entry)) => {
                    lines.push_back(place);
                    window.extend_from_slice(&entry.bytes);
                    true
                }
                None => false,
            };
            if more && window.len() < WINDOW {
                continue;
            }
            let mut from = 0;
            while let Some(at) = finder.find(&window[from..]) {
                from += at + 1;
                let begin = window_start + from as u64 - 1;
                let line = lines.iter().rev().find(|line: &&Place| line.position <= begin).copied();
                matches.extend(line.map(|line| (line, begin + before.len() as u64)));
                if matches.len() > MAX_MATCHES {
                    return Ok(None);
                }
            }
            if !more || Instant::now() > self.deadline {
                return Ok(Some(matches));
            }
            let passed = window.len().saturating_sub(before.len() - 1);
            window.drain(..passed);
            window_start += passed as u64;
            while lines.get(1).is_some_and(|next| next.position <= window_start) {
                lines.pop_front();
            }
        }
    }
}

/// Whether a piece of content says the same as `bytes`, which begin at `start`, where both are.
fn agree(piece: &Range<u64>, content: &[u8], start: u64, bytes: &[u8]) -> bool {
    let (from, to) = (piece.start.max(start), piece.end.min(start + bytes.len() as u64));
    from >= to
        || content[(from - piece.start) as usize..(to - piece.start) as usize]
            == bytes[(from - start) as usize..(to - start) as usize]
}

fn known(files: &[LogFile], place: Place, at: u64, gap: &Gap) -> Option<Known> {
    let file = files.get(place.file).filter(|file| !file.is_compressed())?;
    // What is counted there begins elsewhere than the kernel's count.
    let position = (place.position + gap.range.start).checked_sub(at)?;
    Some(Known { file: file.id, offset: place.offset, position })
}
