//! Calls that move bytes from one descriptor to another, so that nobody's memory shows them: `sendfile`, `splice`,
//! `tee`, `vmsplice`, `copy_file_range`. Into a standard stream they are counted with their size; a file is announced,
//! and the agent reads it.

use aya_ebpf::{
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};
use sidestep_abi::{file::UNANNOUNCED, stdio::DROP_UNREADABLE};

use crate::{
    emit,
    files::{self, Extent, announce},
    generation::Order,
    kernel::{self, File, Registers, number},
    maps::{FILES, STDIO},
    policy,
    probes::write::tracepoint_result,
};

#[inline(always)]
fn transferred(target: u64, result: i64) {
    if policy::governed(Order::OldestFirst).is_none() {
        return;
    }
    let Some(file) = File::of_current(target) else { return };
    arrived(&file, target, result as u64);
}

/// Bytes have come to a file that no memory of the writer shows.
#[inline(always)]
pub(super) fn arrived(file: &File, target: u64, bytes: u64) {
    if file.is_pipe_or_device() {
        let Some(stream) = STDIO.get_ptr_mut(&file.key()) else { return };
        // SAFETY: a map value, checked by the verifier.
        unsafe {
            emit::add(&raw mut (*stream).dropped[DROP_UNREADABLE], bytes);
            emit::add(&raw mut (*stream).written, bytes);
        }
    } else if file.is_regular() {
        let key = file.key();
        let size = file.size();
        let mut written = bytes;
        if let Some(state) = FILES.get_ptr_mut(&key) {
            // SAFETY: a map value, checked by the verifier; nobody else writes to it but calls that do the same.
            let state = unsafe { &mut *state };
            files::count_unseen(state, size, bytes);
            if state.verdict != UNANNOUNCED {
                return;
            }
            written = 0;
        }
        // The call may have named a place of its own, so the position of the description says nothing. A log grows at
        // its end: what was there before these bytes is old.
        let extent = Extent { end: size.saturating_sub(bytes), written, reach: size };
        announce(file, &key, target, extent);
    }
}

macro_rules! on_exit {
    ($($program:ident, $argument:literal;)+) => {
        $(
            #[tracepoint]
            pub(crate) fn $program(ctx: TracePointContext) -> u32 {
                let result = tracepoint_result(&ctx);
                if result > 0 {
                    transferred(Registers::of_current().argument($argument), result);
                }
                0
            }
        )+
    };
}

// The argument that names the target.
on_exit! {
    exit_sendfile, 0;
    exit_splice, 2;
    exit_tee, 1;
    exit_vmsplice, 0;
    exit_copy_file_range, 2;
}

/// The same for kernels where the tracepoints of single calls can't be used.
#[raw_tracepoint]
pub(crate) fn raw_exit_transfer(ctx: RawTracePointContext) -> i32 {
    let result = ctx.arg::<u64>(1) as i64;
    if result <= 0 || kernel::current_call_is_32_bit() {
        return 0;
    }
    let registers = Registers::of_current();
    let number = registers.number();
    if number == number!(sendfile) || number == number!(vmsplice) {
        transferred(registers.argument(0), result);
    } else if number == number!(splice) || number == number!(copy_file_range) {
        transferred(registers.argument(2), result);
    } else if number == number!(tee) {
        transferred(registers.argument(1), result);
    }
    0
}
