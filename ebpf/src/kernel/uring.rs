//! Requests of io_uring.

use core::ptr::{addr_of, read_volatile};

use super::{File, KERNEL_LAYOUT, read, read_pointer};

/// A request of io_uring that is done.
#[derive(Clone, Copy)]
pub(crate) struct Completion {
    request: *const u8,
    /// What the system call would have returned.
    pub(crate) result: i32,
}

impl Completion {
    /// From the record of the tracepoint; `None` for an event that belongs to no request.
    #[inline(always)]
    pub(crate) fn of(record: *const u8) -> Option<Self> {
        let request = read_pointer(record, offset!(uring_req));
        (!request.is_null()).then(|| Self { request, result: read(record, offset!(uring_res)) })
    }

    /// `IORING_OP_*`, `linux/io_uring.h`
    #[inline(always)]
    pub(crate) fn opcode(self) -> u8 {
        read(self.request, offset!(kiocb_opcode))
    }

    /// The file that it was made for: of a transfer, the target.
    #[inline(always)]
    pub(crate) fn file(self) -> Option<File> {
        File::at(read_pointer(self.request, offset!(kiocb_file)))
    }
}
