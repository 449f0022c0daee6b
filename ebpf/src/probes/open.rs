//! Files opened for writing: `open`, `openat`. A file that is only mapped into memory is never written by a call, so its
//! opening announces it; and the agent knows a log before its first line.

use aya_ebpf::{
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};

use sidestep_abi::file::UNANNOUNCED;

use crate::{
    files::{Extent, announce},
    generation::Order,
    kernel::{self, File, Registers, number},
    maps::FILES,
    policy,
    probes::write::tracepoint_result,
};

/// `O_WRONLY | O_RDWR`
const O_WRITES: u64 = 0o3;
const O_TRUNC: u64 = 0o1000;

#[inline(always)]
fn opened(descriptor: i64, flags: u64) {
    if flags & O_WRITES == 0 {
        return;
    }
    if policy::governed(Order::OldestFirst).is_none() {
        return;
    }
    let Some(file) = File::of_current(descriptor as u64) else { return };
    if !file.is_regular() {
        return;
    }
    let key = file.key();
    if let Some(state) = FILES.get_ptr_mut(&key) {
        // SAFETY: a map value, checked by the verifier; nobody else writes to it but calls that do the same.
        let state = unsafe { &mut *state };
        if flags & O_TRUNC != 0 {
            state.reach = 0;
        }
        if state.verdict != UNANNOUNCED {
            return;
        }
    }
    // What the file holds now was there before: it begins, for the agent, at its end.
    let size = file.size();
    let extent = Extent { end: size, written: 0, reach: size };
    announce(&file, &key, descriptor as u64, extent);
}

macro_rules! on_exit {
    ($($program:ident, $argument:literal;)+) => {
        $(
            #[tracepoint]
            pub(crate) fn $program(ctx: TracePointContext) -> u32 {
                let descriptor = tracepoint_result(&ctx);
                if descriptor >= 0 {
                    opened(descriptor, Registers::of_current().argument($argument));
                }
                0
            }
        )+
    };
}

// The argument that holds the flags.
on_exit! {
    exit_open, 1;
    exit_openat, 2;
}

/// The same for kernels where the tracepoints of single calls can't be used.
#[raw_tracepoint]
pub(crate) fn raw_exit_open(ctx: RawTracePointContext) -> i32 {
    let descriptor = ctx.arg::<u64>(1) as i64;
    if descriptor < 0 || policy::governed(Order::OldestFirst).is_none() || kernel::current_call_is_32_bit() {
        return 0;
    }
    let registers = Registers::of_current();
    let number = registers.number();
    if number == number!(openat) {
        opened(descriptor, registers.argument(2));
    } else if number == number!(open) {
        opened(descriptor, registers.argument(1));
    }
    0
}
