//! Finished writes: `write`, `writev`, `pwrite64`, `pwritev`, `pwritev2`.
//!
//! Three kinds of attach points run the same body; the agent picks one at load: `fexit` on the wrappers (a process
//! that does not write pays nothing), the tracepoints `syscalls:sys_exit_*`, or the raw tracepoint `sys_exit`.

mod pieces;

use aya_ebpf::{
    EbpfContext,
    macros::{fexit, raw_tracepoint, tracepoint},
    programs::{FExitContext, RawTracePointContext, TracePointContext},
};
use sidestep_abi::{
    event,
    file::{IGNORED, LOG, PENDING, PENDING_BUDGET, UNANNOUNCED},
    log::{FLAG_APPEND, FLAG_POSITIONED, FLAG_TERMINAL, LogEvent},
    stdio::{DROP_MAP_FULL, InodeKey},
};

use crate::{
    emit,
    files::{self, Extent, announce},
    generation::Order,
    kernel::{self, Description, File, Registers, number},
    maps::{FILES, STDIO, VERDICTS},
    policy::{self, Governed, Share},
};
use pieces::{Counter, hand_over};

const O_APPEND: u32 = 0o2000;
const RWF_APPEND: u64 = 0x10;

/// Where a call's bytes are and where they went.
#[derive(Clone, Copy)]
struct Write {
    fd: u64,
    source: Source,
    written: u64,
    /// The position argument of a positioned call.
    position: Option<u64>,
}

#[derive(Clone, Copy)]
enum Source {
    Buffer(u64),
    Vector { array: u64, count: u64 },
}

/// The body of every probe of this file.
#[inline(always)]
fn finished(governed: &Governed, write: Write) {
    let Some(file) = File::of_current(write.fd) else { return };
    if file.is_pipe_or_device() {
        stdio(governed, &file, &write);
    } else if file.is_regular() {
        regular(governed, &file, &write);
    }
}

#[inline(always)]
fn stdio(governed: &Governed, file: &File, write: &Write) {
    let key = file.key();
    let Some(stream) = STDIO.get_ptr_mut(&key) else { return };
    // SAFETY: a map value, checked by the verifier.
    let (cgroup, registered, iostream) = unsafe { ((*stream).cgroup, (*stream).registered, (*stream).iostream) };
    // SAFETY: as above.
    let (written, dropped) = unsafe { (&raw mut (*stream).written, &raw mut (*stream).dropped) };
    let position = emit::add(written, write.written);
    let mut header = emit::header(event::STDIO_DATA, cgroup, governed.tgid, governed.tid);
    if file.is_device() {
        header.flags |= FLAG_TERMINAL;
    }
    let mut event = LogEvent {
        header,
        ino: key.ino,
        dev: key.dev,
        iostream,
        position,
        description: registered,
        #[cfg(feature = "next-layout")]
        added: u64::MAX,
    };
    let counter = Counter::Stdio(dropped);
    match Share::of_stdio(governed.control, cgroup) {
        Some(share) => hand_over(share, &mut event, write, counter),
        None => counter.count(DROP_MAP_FULL, write.written),
    }
}

#[inline(always)]
fn regular(governed: &Governed, file: &File, write: &Write) {
    let key = file.key();
    let description = file.description();
    let end = match write.position {
        Some(position) => position.wrapping_add(write.written),
        None => description.position,
    };
    if !is_captured(file, &key, &description, write, end) {
        return;
    }
    let Some(share) = Share::of_files(governed.control, governed.cgroup) else { return };
    let mut header = emit::header(event::FILE_DATA, governed.cgroup, governed.tgid, governed.tid);
    if description.flags & O_APPEND != 0 {
        header.flags |= FLAG_APPEND;
    }
    if write.position.is_some() {
        header.flags |= FLAG_POSITIONED;
    }
    let position = end.wrapping_sub(write.written);
    let mut event = LogEvent {
        header,
        ino: key.ino,
        dev: key.dev,
        iostream: 0,
        position,
        description: file.address(),
        #[cfg(feature = "next-layout")]
        added: u64::MAX,
    };
    hand_over(share, &mut event, write, Counter::File);
}

/// Whether a write to a regular file is handed over: it is a log, or may turn out to be one.
#[inline(always)]
fn is_captured(file: &File, key: &InodeKey, opened: &Description, write: &Write, end: u64) -> bool {
    let appends = opened.flags & O_APPEND != 0;
    let state = FILES.get_ptr_mut(key);
    // Inode numbers are used again, at once on some file systems: another name may be another file, so it is announced
    // and judged anew. A log that was renamed keeps its verdict that way, a moment later.
    // SAFETY: a map value, checked by the verifier.
    let known = state.filter(|state| unsafe { (**state).name_hash } == opened.dentry.name_hash());
    let extent = if let Some(state) = known {
        // SAFETY: as above; nobody else writes to it but calls that do the same.
        let state = unsafe { &mut *state };
        if state.verdict == PENDING
            && let Some(verdict) = VERDICTS.get_ptr(key)
        {
            // SAFETY: as above.
            let verdict = unsafe { &*verdict };
            if verdict.announced == state.announced {
                state.verdict = verdict.verdict;
            }
        }
        if state.verdict == IGNORED {
            return false;
        }
        files::count(state, file, write.written, end, appends);
        match state.verdict {
            LOG => return true,
            UNANNOUNCED => Extent { end, written: 0, reach: end },
            _ => return emit::add(&raw mut state.captured, write.written) <= PENDING_BUDGET,
        }
    } else {
        Extent::of_first(file, write.written, end, appends)
    };
    // Not looked up again: the agent may take the entry out at any time, and this write is captured in any case.
    announce(file, key, write.fd, extent)
}

/// What a call of this family means, by its arguments.
#[derive(Clone, Copy)]
enum Call {
    Write,
    Writev,
    Pwrite64,
    Pwritev,
    Pwritev2,
}

#[inline(always)]
fn returned(governed: &Governed, call: Call, registers: Registers, result: i64) {
    let written = result as u64;
    let fd = registers.argument(0);
    let second = registers.argument(1);
    let vector = |registers: Registers| Source::Vector { array: second, count: registers.argument(2) };
    let write = match call {
        Call::Write => Write { fd, source: Source::Buffer(second), written, position: None },
        Call::Writev => Write { fd, source: vector(registers), written, position: None },
        Call::Pwrite64 => Write { fd, source: Source::Buffer(second), written, position: Some(registers.argument(3)) },
        Call::Pwritev => Write { fd, source: vector(registers), written, position: Some(registers.argument(3)) },
        Call::Pwritev2 => {
            let position = registers.argument(3);
            // -1 means the position of the description; with RWF_APPEND the argument is not where the bytes went.
            let appends = registers.argument(5) & RWF_APPEND != 0;
            let position = if position == u64::MAX || appends { None } else { Some(position) };
            Write { fd, source: vector(registers), written, position }
        }
    };
    finished(governed, write);
}

/// `ret` of `syscalls:sys_exit_*`; see `events/syscalls/sys_exit_write/format` in tracefs.
#[inline(always)]
pub(super) fn tracepoint_result(ctx: &TracePointContext) -> i64 {
    // SAFETY: the context of this kind of tracepoint is 24 bytes, and the verifier checks the load.
    unsafe { ctx.as_ptr().cast::<i64>().add(2).read_volatile() }
}

macro_rules! on_exit {
    ($($tracepoint:ident, $fexit:ident, $call:expr;)+) => {
        $(
            #[tracepoint]
            pub(crate) fn $tracepoint(ctx: TracePointContext) -> u32 {
                let result = tracepoint_result(&ctx);
                if result > 0
                    && let Some(governed) = policy::governed(Order::OldestFirst)
                {
                    returned(&governed, $call, Registers::of_current(), result);
                }
                0
            }

            #[fexit]
            pub(crate) fn $fexit(ctx: FExitContext) -> i32 {
                // SAFETY: the wrapper takes one pointer and returns a long: two words of context.
                let result = unsafe { ctx.as_ptr().cast::<i64>().add(1).read_volatile() };
                if result > 0
                    && let Some(governed) = policy::governed(Order::NewestFirst)
                {
                    returned(&governed, $call, Registers::of_current(), result);
                }
                0
            }
        )+
    };
}

on_exit! {
    exit_write, fexit_write, Call::Write;
    exit_writev, fexit_writev, Call::Writev;
    exit_pwrite64, fexit_pwrite64, Call::Pwrite64;
    exit_pwritev, fexit_pwritev, Call::Pwritev;
    exit_pwritev2, fexit_pwritev2, Call::Pwritev2;
}

/// Every system call of the node passes here, so the cheap refusals come first.
#[raw_tracepoint]
pub(crate) fn raw_exit_write(ctx: RawTracePointContext) -> i32 {
    let result: i64 = ctx.arg::<u64>(1) as i64;
    if result <= 0 {
        return 0;
    }
    let Some(governed) = policy::governed(Order::OldestFirst) else { return 0 };
    if kernel::current_call_is_32_bit() {
        return 0;
    }
    let registers = Registers::of_current();
    let number = registers.number();
    let call = if number == number!(write) {
        Call::Write
    } else if number == number!(writev) {
        Call::Writev
    } else if number == number!(pwrite64) {
        Call::Pwrite64
    } else if number == number!(pwritev) {
        Call::Pwritev
    } else if number == number!(pwritev2) {
        Call::Pwritev2
    } else {
        return 0;
    };
    // Once, and not once a call: five copies of the body need more stack than Linux 6.1 gives.
    returned(&governed, call, registers, result);
    0
}
