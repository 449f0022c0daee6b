//! The reading side of a BPF ring buffer, which lets go of records later than it reads them.
//!
//! The layout is that of `kernel/bpf/ringbuf.c`: a page with the consumer's position, a page with the producer's, then
//! the data, mapped twice in a row so that no record is torn at the end. A record is a header of 8 bytes (its length
//! with two bits) and its bytes, rounded up to 8. Positions only rise; a place in the ring is the position modulo its
//! size. What lies between the two positions is never overwritten.

mod mapped;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use aya::maps::MapData;

pub use self::mapped::Mapped;

/// `BPF_RINGBUF_BUSY_BIT`: the record is reserved, and not complete yet.
const BUSY: u32 = 1 << 31;
/// `BPF_RINGBUF_DISCARD_BIT`: the record was given up.
const DISCARDED: u32 = 1 << 30;
/// `BPF_RINGBUF_HDR_SZ`
const HEADER: u64 = 8;

/// The ring holds what no kernel program can have put there. What lies before the producer's position is given up, as
/// nothing tells where the next record begins: its bytes show as missing in their streams.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the ring holds a record of {length} bytes at {position}, and only {there} bytes are there; {there} bytes are given up"
)]
pub struct Corrupt {
    /// Position of the record.
    pub position: u64,
    /// What its header says.
    pub length: u32,
    /// From the record up to the producer's position.
    pub there: u64,
}

/// What a header says of its record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// Not complete: it and what follows come later.
    Busy,
    /// Given up; the next record begins at this position.
    Discarded { end: u64 },
    /// Complete; the next record begins at `end`.
    Record { length: usize, end: u64 },
}

/// Reads a header at `position`. Nothing is trusted: the record has to end before `produced`.
fn step(header: u32, position: u64, produced: u64) -> Result<Step, Corrupt> {
    if header & BUSY != 0 {
        return Ok(Step::Busy);
    }
    let length = header & !DISCARDED;
    let there = produced.saturating_sub(position);
    let whole = (HEADER + u64::from(length)).next_multiple_of(8);
    if whole > there {
        return Err(Corrupt { position, length, there });
    }
    let end = position + whole;
    Ok(if header & DISCARDED == 0 { Step::Record { length: length as usize, end } } else { Step::Discarded { end } })
}

/// Where a ring lies.
pub trait Memory {
    /// Size of the ring in bytes: a power of two.
    fn size(&self) -> u64;
    /// The producer's position: everything before it is reserved.
    fn produced(&self) -> u64;
    /// The consumer's position.
    fn consumed(&self) -> u64;
    /// Moves the consumer's position: the kernel overwrites what lies before.
    fn consume(&mut self, position: u64);
    /// The header at an offset into the data, below the size and a multiple of 8; 0 for any other.
    fn header(&self, offset: usize) -> u32;
    /// Bytes of a complete record at an offset into the data, which is there twice; none beyond that.
    fn bytes(&self, offset: usize, length: usize) -> &[u8];
}

/// A ring and how far it was read.
#[derive(Debug)]
pub struct Ring<M = Mapped> {
    memory: M,
    read: u64,
}

impl Ring {
    /// Maps a ring of the kernel and begins where its last reader has let go of it.
    ///
    /// # Errors
    /// When it can't be mapped.
    pub fn open(map: MapData) -> io::Result<Self> {
        Ok(Self::new(Mapped::new(map)?))
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl<M: Memory> Ring<M> {
    /// Begins at the consumer's position.
    pub fn new(memory: M) -> Self {
        let read = memory.consumed();
        Self { memory, read }
    }

    /// The next record that is complete, if there is one. Its bytes stay until [`Ring::release`] is called with a
    /// position behind it.
    ///
    /// # Errors
    /// When what is there is no record: everything up to the producer's position is passed over then.
    pub fn read(&mut self) -> Result<Option<&[u8]>, Corrupt> {
        loop {
            // What was reserved before is seen after this: a header is written before the position is.
            let produced = self.memory.produced();
            if self.read >= produced {
                return Ok(None);
            }
            let offset = self.offset(self.read);
            match step(self.memory.header(offset), self.read, produced) {
                Ok(Step::Busy) => return Ok(None),
                Ok(Step::Discarded { end }) => self.read = end,
                Ok(Step::Record { length, end }) => {
                    self.read = end;
                    return Ok(Some(self.memory.bytes(offset + HEADER as usize, length)));
                }
                Err(corrupt) => {
                    self.read = produced;
                    return Err(corrupt);
                }
            }
        }
    }

    /// The next complete record, which is read again by [`Ring::read`].
    ///
    /// # Errors
    /// As [`Ring::read`].
    pub fn peek(&mut self) -> Result<Option<&[u8]>, Corrupt> {
        let position = self.read;
        let length = self.read()?.map(<[u8]>::len);
        let end = std::mem::replace(&mut self.read, position);
        let Some(length) = length else { return Ok(None) };
        // Given up records may lie before it.
        let offset = self.offset(end - (length as u64).next_multiple_of(8));
        Ok(Some(self.memory.bytes(offset, length)))
    }

    /// The position behind the last record that was read.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.read
    }

    /// The position up to which space is reserved now.
    #[must_use]
    pub fn produced(&self) -> u64 {
        self.memory.produced()
    }

    /// Bytes that wait to be read.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.memory.produced().saturating_sub(self.read)
    }

    /// Bytes that were read and not released.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.read.saturating_sub(self.memory.consumed())
    }

    /// Size of the ring in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.memory.size()
    }

    /// Lets the kernel overwrite what lies before `position`. Nothing that is not read is ever released, and nothing
    /// is taken back.
    pub fn release(&mut self, position: u64) {
        let position = position.min(self.read);
        if position > self.memory.consumed() {
            self.memory.consume(position);
        }
    }

    fn offset(&self, position: u64) -> usize {
        // Below the size, which is mapped twice.
        (position & (self.memory.size() - 1)) as usize
    }
}

#[cfg(test)]
pub(crate) mod tests;
