//! How far a log is acknowledged and what it should have, in a small file of its own.
//!
//! It is written in turn to one of two places, each with a checksum: what a kill or a loss of power leaves half written
//! is the older of two marks at worst, and repeats some records. Marks never fall: what is in memory only is before them too.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::frame::Totals;

/// The file's name.
pub(super) const NAME: &str = "acknowledged";
/// The two places are in different sectors of any disk.
const PLACES: [u64; 2] = [0, 4096];
/// Magic (8), sequence (8), tail and front (records and span, 8 each), records (8), checksum (4).
const SIZE: usize = 60;
const MAGIC: &[u8; 8] = b"SSMARK\0\x02";

/// What is noted.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Mark {
    /// Every frame before it is acknowledged.
    pub(super) sequence: u64,
    /// What was ever appended. A log that ends before that was cut off.
    pub(super) tail: Totals,
    /// What was appended before the oldest segment. A log that begins behind that has lost its first segments.
    pub(super) front: Totals,
    /// Records in the frames from `sequence` on, as far as they were counted.
    pub(super) records: u64,
}

/// The open file.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
    /// Where the next mark goes.
    next: usize,
    written: Option<Mark>,
}

impl MarkFile {
    /// Opens it, and reads the newest mark. `Err` inside: there is something, and none of it can be read.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Result<Option<Mark>, ()>)> {
        let path = directory.join(NAME);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let is_empty = file.metadata()?.len() == 0;
        let found = PLACES.map(|place| read(&file, place));
        let newest = found.iter().flatten().max().copied();
        let next = usize::from(newest.is_some() && found[0] == newest);
        let mark = if newest.is_none() && !is_empty { Err(()) } else { Ok(newest) };
        Ok((Self { file, next, written: newest }, mark))
    }

    /// Forgets both marks, as they can't be right: one that stayed would be believed once the log has grown so far.
    pub(super) fn forget(&mut self) {
        if let Err(error) = self.file.set_len(0) {
            tracing::warn!(%error, "the mark of a buffer can't be forgotten");
        }
        self.written = None;
    }

    /// What was noted last.
    pub(super) const fn last(&self) -> Option<Mark> {
        self.written
    }

    /// Notes how far it is.
    pub(super) fn write(&mut self, mark: Mark) -> io::Result<()> {
        if self.written == Some(mark) {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(SIZE);
        bytes.extend_from_slice(MAGIC);
        let Mark { sequence, tail, front, records } = mark;
        for number in [sequence, tail.records, tail.span, front.records, front.span, records] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        self.file.write_all_at(&bytes, PLACES[self.next])?;
        self.next = 1 - self.next;
        self.written = Some(mark);
        Ok(())
    }
}

fn read(file: &File, place: u64) -> Option<Mark> {
    let mut bytes = [0; SIZE];
    file.read_exact_at(&mut bytes, place).ok()?;
    let (fields, checksum) = bytes.split_last_chunk::<4>()?;
    let number = |at: usize| fields[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let is_whole = fields.starts_with(MAGIC) && crc32fast::hash(fields) == u32::from_le_bytes(*checksum);
    let totals = |at| Totals { records: number(at), span: number(at + 8) };
    is_whole.then(|| Mark { sequence: number(8), tail: totals(16), front: totals(32), records: number(48) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(sequence: u64) -> Mark {
        let totals = |records| Totals { records, span: records * 9 };
        Mark { sequence, tail: totals(sequence * 3), front: totals(sequence), records: sequence * 2 }
    }

    #[test]
    fn the_newest_mark_counts_and_a_damaged_one_gives_way_to_the_one_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut file, found) = MarkFile::open(directory.path()).expect("opens");
        assert_eq!(found, Ok(None));
        for sequence in 1..=5 {
            file.write(mark(sequence)).expect("written");
            let (_, found) = MarkFile::open(directory.path()).expect("opens");
            assert_eq!(found, Ok(Some(mark(sequence))));
        }
        // The fifth is in the first place.
        let path = directory.path().join(NAME);
        let whole = std::fs::read(&path).expect("readable");
        for at in 0..SIZE {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).expect("written");
            let (mut file, found) = MarkFile::open(directory.path()).expect("opens");
            assert_eq!(found, Ok(Some(mark(4))), "byte {at}");
            file.write(mark(6)).expect("written");
            assert_eq!(MarkFile::open(directory.path()).expect("opens").1, Ok(Some(mark(6))));
        }
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("written");
            let found = MarkFile::open(directory.path()).expect("opens").1;
            let expected = match length {
                0 => Ok(None),
                1..SIZE => Err(()),
                _ => Ok(Some(mark(5))),
            };
            assert_eq!(found, expected, "cut at {length}");
        }
    }
}
