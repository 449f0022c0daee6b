//! One file of a log: a head, and frames one after the other.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::frame::{HEADER, Header, Marker, Meta, Totals, seal};
use crate::files::open_for_reading;

/// How files end.
pub(super) const EXTENSION: &str = "segment";
/// At the start of each copy of the head.
const MAGIC: &[u8; 8] = b"SIDESTEP";
/// At the start of each copy of the head of one that is done with while an older one is not.
const MAGIC_DONE: &[u8; 8] = b"SIDEDONE";
/// The form of head and frames.
const FORMAT: u32 = 2;
/// One copy of the head: magic (8), format (4), marker (8), seconds since the Unix epoch (8), records and span of all
/// frames of the log before it (8 each), checksum (4).
const COPY: usize = 48;
/// The head is there twice, so that no single damage makes a whole segment unreadable.
pub(super) const HEAD: u64 = 2 * COPY as u64;
/// How much is read at once when a frame is looked for after damage.
const SEARCH: usize = 64 * 1024;

/// Why a file can't be read as a segment.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("it is of form {0}, which this version of the agent does not know")]
    Format(u32),
    #[error("its head is damaged")]
    Damaged,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    marker: Marker,
    /// Seconds since the Unix epoch.
    pub(super) created: u64,
    /// The lowest sequence that a frame in it may have.
    pub(super) first: u64,
    /// What was appended to the log before it, or also in it once it is done; `None` where its head does not say.
    pub(super) start: Option<Totals>,
    /// It has nothing any more.
    pub(super) is_done: bool,
    /// Bytes of the file.
    pub(super) size: u64,
}

/// What stands at a place of a segment.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Found {
    Frame(Header, Vec<u8>),
    /// Damage from here to the next place; with the header of the one frame that it is, where that can be read, and what
    /// there is of its payload.
    Damage(Option<(Header, Vec<u8>)>),
    /// A frame that was not written to its end, or nothing.
    End,
}

/// The name of the segment whose first frame has this sequence.
pub(super) fn file_name(first: u64) -> String {
    format!("{first:020}.{EXTENSION}")
}

/// The sequence in a segment's name.
pub(super) fn first_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    (name.len() == 20).then(|| name.parse().ok())?
}

impl Segment {
    /// Makes a new one, after `start`.
    pub(super) fn create(directory: &Path, first: u64, created: u64, start: Totals) -> io::Result<Self> {
        let path = directory.join(file_name(first));
        let mut marker = Marker::default();
        // A marker is short: the kernel gives it whole.
        rustix::rand::getrandom(&mut marker, rustix::rand::GetRandomFlags::empty())?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let file = Arc::new(file);
        let segment = Self { path, file, marker, created, first, start: Some(start), is_done: false, size: HEAD };
        if let Err(error) = segment.write_head(MAGIC) {
            // Best effort: an empty segment costs nothing but its name.
            let _ = std::fs::remove_file(&segment.path);
            return Err(error);
        }
        Ok(segment)
    }

    fn write_head(&self, magic: &[u8; 8]) -> io::Result<()> {
        let start = self.start.unwrap_or_default();
        let mut copy = Vec::with_capacity(COPY);
        copy.extend_from_slice(magic);
        copy.extend_from_slice(&FORMAT.to_le_bytes());
        copy.extend_from_slice(&self.marker);
        for number in [self.created, start.records, start.span] {
            copy.extend_from_slice(&number.to_le_bytes());
        }
        copy.extend_from_slice(&crc32fast::hash(&copy).to_le_bytes());
        self.file.write_all_at(&copy.repeat(2), 0)
    }

    /// Gives the disk back what it holds; the head stays, and says that everything up to `end` was let go of.
    pub(super) fn hollow(&mut self, end: Totals) -> io::Result<()> {
        // An earlier agent's is open for reading only.
        self.file = Arc::new(OpenOptions::new().read(true).write(true).open(&self.path)?);
        self.start = Some(end);
        self.write_head(MAGIC_DONE)?;
        self.is_done = true;
        self.size = HEAD;
        self.file.set_len(HEAD)
    }

    /// Opens one that an earlier agent wrote.
    pub(super) fn open(path: &Path, first: u64) -> Result<Self, OpenError> {
        // A FIFO of that name would be waited for.
        let file = open_for_reading(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(OpenError::Damaged);
        }
        let size = metadata.len();
        let mut head = [0; HEAD as usize];
        let read = read_up_to(&file, &mut head, 0)?;
        let mut copies = head[..read].chunks(COPY).map(Head::parse);
        let head = match copies.next().unwrap_or(Err(OpenError::Damaged)) {
            Ok(head) => head,
            Err(error) => match copies.find_map(Result::ok) {
                Some(head) => head,
                // Killed before the head was written, or cut off: there is nothing in it.
                None if size <= HEAD => Head::default(),
                // The first frame has the marker too, and a checksum to prove it.
                None if matches!(error, OpenError::Damaged) => first_frame(&file)?.ok_or(error)?,
                None => return Err(error),
            },
        };
        let Head { marker, created, start, is_done } = head;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), marker, created, first, start, is_done, size })
    }

    /// Appends a frame behind `before`; `frame` begins with room for its header. What was written of it is cut off after an error.
    pub(super) fn append(&mut self, frame: &mut [u8], meta: Meta, before: Totals) -> io::Result<()> {
        seal(frame, self.marker, meta, before);
        if let Err(error) = self.file.write_all_at(frame, self.size) {
            // Readers take the rest for a frame that was not written to its end.
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += frame.len() as u64;
        Ok(())
    }

    /// What stands at `offset`, and the next place.
    pub(super) fn read(&self, offset: u64) -> io::Result<(Found, u64)> {
        let left = self.size.saturating_sub(offset);
        if left < HEADER as u64 {
            return Ok((Found::End, self.size));
        }
        let mut bytes = [0; HEADER];
        self.file.read_exact_at(&mut bytes, offset)?;
        let Some(header) = Header::parse(&bytes, self.marker) else {
            let next = self.find(offset + 1)?;
            // A file that grew and never got its data, as after a loss of power.
            let is_empty = next == self.size && bytes.iter().all(|byte| *byte == 0);
            return Ok((if is_empty { Found::End } else { Found::Damage(None) }, next));
        };
        let end = offset + (HEADER + header.length) as u64;
        if end > self.size {
            return Ok((Found::End, self.size));
        }
        let mut payload = vec![0; header.length];
        self.file.read_exact_at(&mut payload, offset + HEADER as u64)?;
        let is_whole = header.accepts(&payload);
        Ok((if is_whole { Found::Frame(header, payload) } else { Found::Damage(Some((header, payload))) }, end))
    }

    /// What is lost at `offset` when it can't be read, and the next place: one frame where its header says how long it is.
    pub(super) fn pass_over(&self, offset: u64) -> (Found, u64) {
        let mut bytes = [0; HEADER];
        let read = self.file.read_exact_at(&mut bytes, offset);
        let header = read.ok().and_then(|()| Header::parse(&bytes, self.marker));
        let end = header.as_ref().map_or(self.size, |header| offset + (HEADER + header.length) as u64);
        (Found::Damage(header.map(|header| (header, Vec::new()))), end)
    }

    /// The newest of its frames that was written to its end; payloads are not looked at.
    pub(super) fn last(&self) -> io::Result<Option<Header>> {
        let (mut offset, mut last) = (HEAD, None);
        let mut bytes = [0; HEADER];
        while self.size.saturating_sub(offset) >= HEADER as u64 {
            self.file.read_exact_at(&mut bytes, offset)?;
            offset = match Header::parse(&bytes, self.marker) {
                Some(header) => {
                    let end = offset + (HEADER + header.length) as u64;
                    last = if end <= self.size { Some(header) } else { last };
                    end
                }
                None => self.find(offset + 1)?,
            };
        }
        Ok(last)
    }

    /// The place of the next header from `offset` on; the end if there is none.
    fn find(&self, mut offset: u64) -> io::Result<u64> {
        let finder = memchr::memmem::Finder::new(&self.marker);
        let mut chunk = vec![0; SEARCH];
        while self.size.saturating_sub(offset) >= HEADER as u64 {
            let read = read_up_to(&self.file, &mut chunk, offset)?;
            if read < HEADER {
                // It was cut off meanwhile.
                break;
            }
            let mut from = 0;
            while let Some(at) = finder.find(&chunk[from..read]) {
                let place = offset + (from + at) as u64;
                let mut bytes = [0; HEADER];
                let length = read_up_to(&self.file, &mut bytes, place)?;
                if let Some(back) = Header::offset_of_copy(&bytes[..length], self.marker) {
                    return Ok(place - back as u64);
                }
                from += at + 1;
            }
            // A marker may lie across two chunks.
            offset += (read - (self.marker.len() - 1)) as u64;
        }
        Ok(self.size)
    }
}

/// What the head of a segment says.
#[derive(Default)]
struct Head {
    marker: Marker,
    created: u64,
    start: Option<Totals>,
    is_done: bool,
}

impl Head {
    fn parse(copy: &[u8]) -> Result<Self, OpenError> {
        let (magic, rest) = copy.split_first_chunk::<8>().ok_or(OpenError::Damaged)?;
        let (form, rest) = rest.split_first_chunk::<4>().ok_or(OpenError::Damaged)?;
        let is_done = magic == MAGIC_DONE;
        if !is_done && magic != MAGIC {
            return Err(OpenError::Damaged);
        }
        // Heads of other forms have other lengths: this much stays where it is.
        match u32::from_le_bytes(*form) {
            FORMAT => {}
            form => return Err(OpenError::Format(form)),
        }
        let (fields, checksum) = copy.split_last_chunk::<4>().ok_or(OpenError::Damaged)?;
        if copy.len() != COPY || crc32fast::hash(fields) != u32::from_le_bytes(*checksum) {
            return Err(OpenError::Damaged);
        }
        let (marker, rest) = rest.split_first_chunk::<8>().ok_or(OpenError::Damaged)?;
        let number = |at: usize| rest[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let start = Some(Totals { records: number(8), span: number(16) });
        Ok(Self { marker: *marker, created: number(0), start, is_done })
    }
}

/// What the first frame says where the head does not.
fn first_frame(file: &File) -> io::Result<Option<Head>> {
    let mut bytes = [0; HEADER];
    let read = read_up_to(file, &mut bytes, HEAD)?;
    let marker = bytes.first_chunk::<8>().copied().unwrap_or_default();
    let header = (read == HEADER).then(|| Header::parse(&bytes, marker)).flatten();
    Ok(header.map(|header| Head { marker, start: Some(header.before), ..Head::default() }))
}

fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
