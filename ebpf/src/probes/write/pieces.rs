//! A finished write as records: one where it fits, several where it does not.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use sidestep_abi::{
    log::{CLASSES, LogEvent, MAX_CHUNK, MAX_CHUNKS, MAX_IOVECS},
    stdio::{DROP_FAULT, DROP_OVERSIZE, DROP_REASONS},
};

use super::{Source, Write};
use crate::{emit, policy::Share};

/// The longest vectored write that becomes one record.
const MAX_GATHERED_BYTES: u64 = 4096;

/// Where pieces that are not handed over are counted.
#[derive(Clone, Copy)]
pub(super) enum Counter {
    Stdio(*mut [u64; DROP_REASONS]),
    /// Nowhere: the agent reads them from the file.
    File,
}

impl Counter {
    #[inline(always)]
    pub(super) fn count(self, reason: usize, bytes: u64) {
        if let Self::Stdio(dropped) = self
            && reason < DROP_REASONS
        {
            // SAFETY: inside the map value, by the check above.
            emit::add(unsafe { dropped.cast::<u64>().add(reason) }, bytes);
        }
    }
}

/// Hands a write over in one record where it fits, in several where it does not.
#[inline(always)]
pub(super) fn hand_over(share: Share<'_>, event: &mut LogEvent, write: &Write, counter: Counter) {
    let total = write.written;
    match write.source {
        Source::Buffer(buffer) if total <= MAX_CHUNK as u64 => {
            piece(&share, event, buffer, total, counter);
        }
        Source::Vector { array, count } if total <= MAX_GATHERED_BYTES && count <= emit::MAX_GATHERED => {
            let result = gathered(event, array, count, total, &share);
            if result != HANDED_OVER {
                counter.count(result as usize, total);
            }
        }
        source => pieces(share, event, source, total, counter),
    }
}

/// A write that needs more than one record: a walk over buffers and the chunks of each.
struct Walk<'a> {
    share: Share<'a>,
    counter: Counter,
    event: &'a mut LogEvent,
    at: At,
}

/// How far a [`Walk`] has come.
#[derive(Clone, Copy)]
struct At {
    array: u64,
    count: u64,
    index: u64,
    base: u64,
    rest: u64,
    done: u64,
    total: u64,
}

#[inline(always)]
fn pieces(share: Share<'_>, event: &mut LogEvent, source: Source, total: u64, counter: Counter) {
    let (array, count, base, rest) = match source {
        Source::Buffer(buffer) => (0, 0, buffer, total),
        Source::Vector { array, count } => (array, count, 0, 0),
    };
    let at = At { array, count, index: 0, base, rest, done: 0, total };
    let mut walk = Walk { share, counter, event, at };
    emit::forget(&mut walk.at);
    // A loop that the verifier walks once; Linux 5.17.
    // SAFETY: the helper calls `step` with the address of `walk`, which outlives the call.
    unsafe {
        bpf_loop((MAX_IOVECS + MAX_CHUNKS) as u32, step as *const () as *mut c_void, (&raw mut walk).cast(), 0);
    }
    if walk.at.done < total {
        counter.count(DROP_OVERSIZE, total - walk.at.done);
    }
}

/// One step of a [`Walk`]: takes up the next buffer when it is through with one, and hands over the next chunk, so that
/// there are no more steps than buffers and whole chunks. 1 ends the walk.
#[inline(never)]
extern "C" fn step(_index: u64, walk: *mut Walk<'_>) -> i64 {
    // SAFETY: the helper passes on the address that it was given.
    let walk = unsafe { &mut *walk };
    let at = &mut walk.at;
    if at.done >= at.total {
        return 1;
    }
    if at.rest == 0 {
        if at.index >= at.count {
            return 1;
        }
        let Ok(part) = emit::iovec(at.array, at.index) else {
            walk.counter.count(DROP_FAULT, at.total - at.done);
            at.done = at.total;
            return 1;
        };
        at.index += 1;
        at.base = part.base;
        let left = at.total - at.done;
        at.rest = if part.len > left { left } else { part.len };
        if at.rest == 0 {
            return 0;
        }
    }
    let len = if at.rest > MAX_CHUNK as u64 { MAX_CHUNK as u64 } else { at.rest };
    piece(&walk.share, walk.event, at.base, len, walk.counter);
    walk.event.position = walk.event.position.wrapping_add(len);
    at.base = at.base.wrapping_add(len);
    at.rest -= len;
    at.done += len;
    0
}

/// What [`gathered`] and [`piece_sized`] return when the record is in the ring; else the index of the reason.
const HANDED_OVER: u64 = u64::MAX;

/// A vectored write as one record, in the smaller size that holds it.
#[inline(never)]
fn gathered(event: &LogEvent, array: u64, count: u64, total: u64, share: &Share<'_>) -> u64 {
    let total = emit::opaque(total);
    let total = if total > MAX_GATHERED_BYTES { MAX_GATHERED_BYTES } else { total };
    let result = if total <= 1024 {
        emit::gather::<1024>(event, array, count, total, share)
    } else {
        emit::gather::<4096>(event, array, count, total, share)
    };
    match result {
        Ok(()) => HANDED_OVER,
        Err(reason) => reason as u64,
    }
}

/// One record, in the smallest size that holds it.
#[inline(never)]
fn piece_sized(event: &LogEvent, source: u64, len: u64, share: &Share<'_>) -> u64 {
    let source = source as *const u8;
    let len = emit::opaque(len);
    let len = if len > MAX_CHUNK as u64 { MAX_CHUNK as u64 } else { len };
    let result = if len <= CLASSES[0] as u64 {
        emit::log::<{ CLASSES[0] }>(event, source, len, share)
    } else if len <= CLASSES[1] as u64 {
        emit::log::<{ CLASSES[1] }>(event, source, len, share)
    } else if len <= CLASSES[2] as u64 {
        emit::log::<{ CLASSES[2] }>(event, source, len, share)
    } else if len <= CLASSES[3] as u64 {
        emit::log::<{ CLASSES[3] }>(event, source, len, share)
    } else if len <= CLASSES[4] as u64 {
        emit::log::<{ CLASSES[4] }>(event, source, len, share)
    } else {
        emit::log::<{ CLASSES[5] }>(event, source, len, share)
    };
    match result {
        Ok(()) => HANDED_OVER,
        Err(reason) => reason as u64,
    }
}

#[inline(always)]
fn piece(share: &Share<'_>, event: &LogEvent, source: u64, len: u64, counter: Counter) {
    let result = piece_sized(event, source, len, share);
    if result != HANDED_OVER {
        counter.count(result as usize, len);
    }
}
