//! A ring of the kernel in this process' memory.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
    ptr, slice,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use aya::maps::MapData;
use rustix::mm;

use super::Memory;

/// A ring of the kernel, mapped as libbpf does.
pub struct Mapped {
    map: MapData,
    size: usize,
    page: usize,
    /// The consumer's page, which alone may be written.
    consumer: *mut u8,
    /// The producer's page and the data, twice.
    producer: *const u8,
}

// SAFETY: the mappings belong to this value alone, whatever thread it is on.
unsafe impl Send for Mapped {}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Mapped {
    pub(super) fn new(map: MapData) -> io::Result<Self> {
        let size = map.info().map_err(io::Error::other)?.max_entries() as usize;
        let page = rustix::param::page_size();
        if !size.is_power_of_two() || size < page {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a ring of {size} bytes is none")));
        }
        let fd = map.fd().as_fd();
        let (write, read) = (mm::ProtFlags::READ | mm::ProtFlags::WRITE, mm::ProtFlags::READ);
        // SAFETY: a new mapping at an address of the kernel's choice; the page is part of every ring.
        let consumer = unsafe { mm::mmap(ptr::null_mut(), page, write, mm::MapFlags::SHARED, fd, 0)? };
        // SAFETY: as above; the kernel maps the data twice behind the producer's page.
        let producer =
            unsafe { mm::mmap(ptr::null_mut(), page + 2 * size, read, mm::MapFlags::SHARED, fd, page as u64) };
        let producer = match producer {
            Ok(producer) => producer,
            Err(error) => {
                // SAFETY: the mapping made above, which nothing else refers to.
                let _ = unsafe { mm::munmap(consumer, page) };
                return Err(error.into());
            }
        };
        Ok(Self { map, size, page, consumer: consumer.cast(), producer: producer.cast_const().cast() })
    }

    /// The word at the start of a page of positions.
    ///
    /// # Safety
    /// `page` is the start of one of the two pages of positions of a live mapping.
    const unsafe fn position<'a>(page: *const u8) -> &'a AtomicU64 {
        // SAFETY: a page is aligned and mapped, and the kernel writes whole words.
        unsafe { AtomicU64::from_ptr(page.cast_mut().cast()) }
    }
}

impl AsFd for Mapped {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

impl Memory for Mapped {
    fn size(&self) -> u64 {
        self.size as u64
    }

    fn produced(&self) -> u64 {
        // SAFETY: the producer's page, mapped as long as this value lives.
        unsafe { Self::position(self.producer) }.load(Acquire)
    }

    fn consumed(&self) -> u64 {
        // SAFETY: the consumer's page, as above; only this value writes it.
        unsafe { Self::position(self.consumer) }.load(Relaxed)
    }

    fn consume(&mut self, position: u64) {
        // All reads of what lies before have happened when the kernel sees this.
        // SAFETY: the consumer's page, which is mapped for writing.
        unsafe { Self::position(self.consumer) }.store(position, Release);
    }

    fn header(&self, offset: usize) -> u32 {
        if offset >= self.size || !offset.is_multiple_of(8) {
            return 0;
        }
        // The bytes of a record were written before its busy bit was taken away.
        // SAFETY: inside the data by the check above, and aligned; the kernel writes the whole word.
        unsafe { AtomicU32::from_ptr(self.producer.add(self.page + offset).cast_mut().cast()) }.load(Acquire)
    }

    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        if offset.saturating_add(length) > 2 * self.size {
            return &[];
        }
        // SAFETY: inside the data, which is mapped twice; a complete record is not written again before the consumer's
        // position has passed it, for which this value has to be borrowed mutably.
        unsafe { slice::from_raw_parts(self.producer.add(self.page + offset), length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let mappings = [(self.consumer, self.page), (self.producer.cast_mut(), self.page + 2 * self.size)];
        for (start, length) in mappings {
            // SAFETY: the mappings made in `new`, which nothing else refers to.
            if let Err(error) = unsafe { mm::munmap(start.cast(), length) } {
                tracing::debug!(%error, "unmapping the ring failed");
            }
        }
    }
}
