//! What is known of the regular files that governed processes write: which of them may be logs, and how much was
//! written to those.

use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_ktime_get_ns};
use sidestep_abi::{
    event,
    file::{FileState, IGNORED, PENDING, RetiredKey, UNANNOUNCED},
    stdio::InodeKey,
};

use crate::{
    emit,
    kernel::File,
    maps::{FILES, RETIRED},
    policy::{self, Share},
};

/// What a call has done to a file.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    /// Offset behind it.
    pub(crate) end: u64,
    /// Bytes that it has added.
    pub(crate) written: u64,
    /// Up to where the file has bytes now.
    pub(crate) reach: u64,
}

impl Extent {
    /// Of the first write that is seen of a file, which ended at `end`. When the file reaches further, it has written
    /// over old bytes, or others have written behind it: then it is not known to have added any.
    #[inline(always)]
    pub(crate) fn of_first(file: &File, written: u64, end: u64, appends: bool) -> Self {
        let size = file.size();
        if size > end && !appends { Self { end, written: 0, reach: size } } else { Self { end, written, reach: end } }
    }
}

/// Counts a write that ended at `end`. Bytes that are written over old ones are not counted: nobody misses them. Where
/// it can't be told (threads that write through one description at the same moment) it is too little, never too much.
#[inline(always)]
pub(crate) fn count(state: &mut FileState, file: &File, written: u64, end: u64, appends: bool) {
    let reach = state.reach;
    let mut added = written;
    if appends || end.wrapping_sub(written) >= reach {
        state.reach = end;
    } else {
        added = over_old_bytes(state, file.size(), written, end);
    }
    emit::add(&raw mut state.written, added);
}

/// What a write has added that began before the end of what was written; a function of its own for its stack.
#[inline(never)]
fn over_old_bytes(state: &mut FileState, size: u64, written: u64, end: u64) -> u64 {
    let reach = state.reach;
    if size < reach {
        // It was truncated.
        state.reach = size;
        written
    } else if end > reach {
        state.reach = end;
        end - reach
    } else {
        0
    }
}

/// Counts bytes that have come to a file by a call that shows none of them.
#[inline(always)]
pub(crate) fn count_unseen(state: &mut FileState, size: u64, bytes: u64) {
    state.reach = size;
    emit::add(&raw mut state.written, bytes);
}

/// Enters a file as pending and tells the agent; whether it could. When it could not, what is written is counted all the
/// same, and the next call on the file tries again.
#[inline(always)]
pub(crate) fn announce(file: &File, key: &InodeKey, fd: u64, extent: Extent) -> bool {
    let now = enter(key, file.dentry().name_hash(), extent.written, extent.reach);
    let told = now != 0 && tell(file.address(), fd, extent.end, now) != 0;
    if !told {
        if let Some(state) = FILES.get_ptr_mut(key) {
            // SAFETY: a map value, checked by the verifier.
            unsafe { (&raw mut (*state).verdict).write(UNANNOUNCED) };
        }
        emit::lose(event::FILE_SEEN);
    }
    told
}

/// Tells the agent of a file; 0 when it could not. A function of its own that takes nothing from the stack of its caller:
/// what both need at once is more than Linux 6.1 gives. So it asks again who writes what, which is done once for a file.
#[inline(never)]
fn tell(address: u64, fd: u64, end: u64, now: u64) -> u64 {
    let Some(control) = policy::control() else { return 0 };
    // SAFETY: the helper has no arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    let Some(share) = Share::of_files(control, cgroup) else { return 0 };
    u64::from(emit::file_seen(address, fd, end, now, &share))
}

/// Enters a file as pending, and gives the time that names its announcement; 0 when it could not. What is known of another name under the same inode number is kept aside.
#[inline(never)]
fn enter(key: &InodeKey, name_hash: u32, written: u64, reach: u64) -> u64 {
    // SAFETY: the helper has no arguments.
    let announced = unsafe { bpf_ktime_get_ns() };
    if let Some(state) = FILES.get_ptr_mut(key) {
        // SAFETY: a map value, checked by the verifier; nobody else writes to it but calls that do the same.
        let state = unsafe { &mut *state };
        if state.name_hash == name_hash {
            emit::add(&raw mut state.written, written);
            state.announced = announced;
            state.verdict = PENDING;
            return announced;
        }
        if state.verdict != IGNORED && state.written > 0 {
            let retired = RetiredKey { ino: key.ino, dev: key.dev, _pad: 0, announced: state.announced };
            // The map drops its least recently used entries, so it takes new ones.
            let _ = RETIRED.insert(&retired, state, 0);
        }
    }
    let state = FileState { verdict: PENDING, name_hash, announced, captured: 0, written, reach };
    if FILES.insert(key, &state, 0).is_ok() { announced } else { 0 }
}
