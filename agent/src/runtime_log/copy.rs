//! The bytes of a gap that was found, in chunks.

use std::ops::Range;

use super::{
    content::{Content, ContentError},
    search::{Found, Gap},
};

/// Bytes of a chunk, about.
const CHUNK_BYTES: usize = 256 * 1024;

/// A part of a gap.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chunk {
    /// Place of its first byte in the stream.
    pub position: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where in `bytes` each piece ends that the runtime wrote at once, and when that was: nanoseconds since the Unix epoch.
    pub pieces: Vec<(usize, u64)>,
}

pub(super) struct Copy {
    content: Content,
    /// What is left, in what is counted in the files.
    rest: Range<u64>,
    /// The same, in the stream.
    position: u64,
}

impl Copy {
    pub(super) fn new(found: Found, gap: &Gap) -> Self {
        let content = Content::new(&found.files, gap.iostream, found.place);
        Self { content, rest: found.range, position: gap.range.start }
    }

    /// The next chunk; `None` when all of the gap has been read.
    pub(super) fn next(&mut self) -> Result<Option<Chunk>, ContentError> {
        let mut chunk = Chunk { position: self.position, bytes: Vec::new(), pieces: Vec::new() };
        while chunk.bytes.len() < CHUNK_BYTES && !self.rest.is_empty() {
            // It was there a moment ago.
            let (place, entry) = self.content.next()?.ok_or(ContentError::Format)?;
            let piece = place.position..place.position + entry.bytes.len() as u64;
            let (from, to) = (piece.start.max(self.rest.start), piece.end.min(self.rest.end));
            if from >= to {
                continue;
            }
            let bytes = &entry.bytes[(from - piece.start) as usize..(to - piece.start) as usize];
            chunk.bytes.extend_from_slice(bytes);
            chunk.pieces.push((chunk.bytes.len(), entry.time().ok_or(ContentError::Format)?));
            self.rest.start = to;
            self.position += to - from;
        }
        Ok(Some(chunk).filter(|chunk| !chunk.bytes.is_empty()))
    }
}
