//! Writes by io_uring. Their buffers may be anywhere by the time they are done, so into a standard stream they are counted
//! with their size, and a file is announced: the agent reads it.

use aya_ebpf::{EbpfContext, macros::tracepoint, programs::TracePointContext};

use crate::{generation::Order, kernel::Completion, policy, probes::transfer::arrived};

/// `IORING_OP_*` of `linux/io_uring.h` that put bytes into a file or pipe.
const WRITEV: u8 = 2;
const WRITE_FIXED: u8 = 5;
const WRITE: u8 = 23;
const SPLICE: u8 = 30;
const TEE: u8 = 33;

/// `io_uring:io_uring_complete`, in a thread of the process that asked for it.
#[tracepoint]
pub(crate) fn io_uring_complete(ctx: TracePointContext) -> u32 {
    if policy::governed(Order::OldestFirst).is_none() {
        return 0;
    }
    let Some(completion) = Completion::of(ctx.as_ptr().cast()) else { return 0 };
    if completion.result > 0
        && matches!(completion.opcode(), WRITEV | WRITE_FIXED | WRITE | SPLICE | TEE)
        && let Some(file) = completion.file()
    {
        // There may be no descriptor: a file can be registered with the ring, and be closed.
        arrived(&file, u64::MAX, completion.result as u64);
    }
    0
}
