//! The only writer to the ring. Every failed reserve is counted by the caller, who knows what was lost.

use core::{ffi::c_void, intrinsics, mem::MaybeUninit, ptr::addr_of_mut};

use aya_ebpf::{
    bindings::{BPF_RB_CONS_POS, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_PROD_POS},
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns,
        generated::{bpf_loop, bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user},
    },
    maps::ring_buf::RingBufEntry,
};
use sidestep_abi::{
    Header,
    container::{CGROUP_PATH_SPACE, ContainerEvent},
    event,
    file::{FLAG_PATH_CUT, FileSeen, MAX_DEPTH, NAME_SPACE, PATH_SPACE},
    govern::{REQUEST_SPACE, Refusal},
    kernel::{READER_BUSY, READER_NAPPING},
    log::LogEvent,
    stdio::{DROP_FAULT, DROP_QUOTA, DROP_RING_FULL},
};

use crate::{
    kernel::{Dentry, File, Mount},
    maps::{LOST, READER, RING},
    policy::{self, Share},
};

/// Hides a value from the optimiser, which else takes out the checks that it can prove to be true: the verifier of
/// Linux 6.1 loses bounds where values are copied or compared with each other, and needs such a check where the value
/// is used.
#[inline(always)]
pub(crate) fn opaque(value: u64) -> u64 {
    // SAFETY: a load from a local variable.
    unsafe { (&raw const value).read_volatile() }
}

/// Makes the verifier forget what it knows of a value on the stack.
///
/// Before Linux 6.7 it walks through the function of a `bpf_loop` once, with the values of the first call, and removes
/// the branches that those do not take; a value that changes from call to call has to be unknown to it.
#[inline(always)]
pub(crate) fn forget<T: Copy>(value: &mut T) {
    let value = &raw mut *value;
    // Onto itself, since a copy would take stack, of which all calls together have 512 bytes.
    // SAFETY: source and target are the same valid value, and the type is made of integers.
    unsafe {
        bpf_probe_read_kernel(value.cast(), size_of::<T>() as u32, value.cast_const().cast());
    }
}

/// Adds to a counter in a map value and returns what it was before.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, amount: u64) -> u64 {
    // SAFETY: a pointer into a map value, checked by the verifier.
    unsafe { intrinsics::atomic_xadd::<u64, u64, { intrinsics::AtomicOrdering::SeqCst }>(counter, amount) }
}

/// Changes a word in a map value, if it still is what was `known`; what it was, and whether it was changed.
#[inline(always)]
pub(crate) fn exchange(word: *mut u64, known: u64, new: u64) -> (u64, bool) {
    // SAFETY: as in `add`.
    unsafe {
        intrinsics::atomic_cxchg::<u64, { intrinsics::AtomicOrdering::SeqCst }, { intrinsics::AtomicOrdering::SeqCst }>(
            word, known, new,
        )
    }
}

/// Counts an event that could not be handed over.
#[inline(always)]
pub(crate) fn lose(kind: u16) {
    if let Some(counter) = LOST.get_ptr_mut(u32::from(kind)) {
        add(counter, 1);
    }
}

/// A header for the current moment.
#[inline(always)]
pub(crate) fn header(kind: u16, cgroup: u64, tgid: u32, tid: u32) -> Header {
    // SAFETY: the helper has no arguments.
    let time = unsafe { bpf_ktime_get_ns() };
    Header { kind, flags: 0, len: 0, time, cgroup, tgid, tid }
}

/// Flags for a submit: waking the reader for every record costs more than the record, so it is woken when it sleeps
/// until woken, or naps while the ring fills.
#[inline(always)]
pub(crate) fn wakeup(urgent: bool) -> u64 {
    let Some(reader) = READER.get_ptr_mut(0) else { return 0 };
    // SAFETY: a map value, of which only words are read and written; two CPUs that both wake do no harm.
    unsafe {
        let state = &raw mut (*reader).state;
        match state.read_volatile() {
            READER_BUSY => u64::from(BPF_RB_NO_WAKEUP),
            READER_NAPPING if !urgent && !filling((&raw const (*reader).read).read_volatile()) => {
                u64::from(BPF_RB_NO_WAKEUP)
            }
            _ => {
                state.write_volatile(READER_BUSY);
                u64::from(BPF_RB_FORCE_WAKEUP)
            }
        }
    }
}

/// Whether the ring holds more than a napping reader should leave in it, behind the position up to which it has `read`:
/// it keeps what it has read in the ring until that is safe elsewhere.
#[inline(always)]
fn filling(read: u64) -> bool {
    RING.query(u64::from(BPF_RB_PROD_POS)).wrapping_sub(read) > 1024 * 1024
}

/// What the ring puts before each record (`BPF_RINGBUF_HDR_SZ`); all its sizes are multiples of 8.
const RECORD_HEADER: usize = 8;

/// Space for a record of a container, from its share. What is booked is what the ring takes, whatever the record will
/// hold of it. An error is the index of the reason.
#[inline(always)]
fn reserve<T: 'static>(share: &Share<'_>) -> Result<RingBufEntry<T>, usize> {
    if !share.take((size_of::<T>().next_multiple_of(8) + RECORD_HEADER) as u64) {
        return Err(DROP_QUOTA);
    }
    RING.reserve::<T>(0).ok_or(DROP_RING_FULL)
}

/// A record with space for `N` bytes.
#[repr(C)]
struct Sized<const N: usize> {
    event: LogEvent,
    data: [u8; N],
}

/// One piece of a write: `len` bytes at `source`, at most `N`. An error is the index of the reason.
#[inline(always)]
pub(crate) fn log<const N: usize>(
    event: &LogEvent,
    source: *const u8,
    len: u64,
    share: &Share<'_>,
) -> Result<(), usize> {
    let mut entry = reserve::<Sized<N>>(share)?;
    let record: *mut Sized<N> = entry.as_mut_ptr();
    let len = if len > N as u64 { N as u64 } else { len };
    // SAFETY: the record is reserved with this type; the helper copies at most `N` bytes and fails on a bad address.
    let failed = unsafe {
        addr_of_mut!((*record).event).write(*event);
        (*record).event.header.len = len as u32;
        bpf_probe_read_user(addr_of_mut!((*record).data).cast(), len as u32, source.cast()) != 0
    };
    if failed {
        entry.discard(u64::from(BPF_RB_NO_WAKEUP));
        return Err(DROP_FAULT);
    }
    entry.submit(wakeup(false));
    Ok(())
}

/// Space for a gather of up to `N` bytes: twice that, so that the verifier sees each copy end inside.
#[repr(C)]
struct Gathered<const N: usize> {
    event: LogEvent,
    data: [u8; N],
    slack: [u8; N],
}

/// `struct iovec`
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Iovec {
    pub(crate) base: u64,
    pub(crate) len: u64,
}

/// The `index`th element of an `iovec` array in the writer's memory.
#[inline(always)]
pub(crate) fn iovec(array: u64, index: u64) -> Result<Iovec, usize> {
    let mut iovec = MaybeUninit::<Iovec>::uninit();
    let source = array.wrapping_add(index * size_of::<Iovec>() as u64) as *const _;
    // SAFETY: the helper fills the whole value or fails.
    unsafe {
        if bpf_probe_read_user(iovec.as_mut_ptr().cast(), size_of::<Iovec>() as u32, source) != 0 {
            return Err(DROP_FAULT);
        }
        Ok(iovec.assume_init())
    }
}

/// Most elements that are gathered into one record; more become a record each.
pub(crate) const MAX_GATHERED: u64 = 8;

/// A vectored write of `total` bytes, at most `N`, as one record.
#[inline(always)]
pub(crate) fn gather<const N: usize>(
    event: &LogEvent,
    array: u64,
    count: u64,
    total: u64,
    share: &Share<'_>,
) -> Result<(), usize> {
    let mut entry = reserve::<Gathered<N>>(share)?;
    let record: *mut Gathered<N> = entry.as_mut_ptr();
    let mut filled = 0u64;
    let mut failed = false;
    for index in 0..MAX_GATHERED {
        if index >= count || filled >= total {
            break;
        }
        let Ok(part) = iovec(array, index) else {
            failed = true;
            break;
        };
        // The call may have written less than it was asked for, and the array may have changed since.
        let mut len = total - filled;
        if part.len < len {
            len = part.len;
        }
        // Both paths that meet here leave the same bounds, so that the verifier walks on with one state.
        filled = opaque(filled) & (2 * N as u64 - 1);
        len = opaque(len) & (2 * N as u64 - 1);
        if len > N as u64 || filled >= N as u64 {
            failed = true;
            break;
        }
        // SAFETY: `filled` is below `N` and `len` at most `N`, and `2 * N` bytes are reserved.
        unsafe {
            let target = addr_of_mut!((*record).data).cast::<u8>().add(filled as usize);
            if bpf_probe_read_user(target.cast(), len as u32, part.base as *const _) != 0 {
                failed = true;
                break;
            }
        }
        filled += len;
    }
    if failed || filled != total {
        entry.discard(u64::from(BPF_RB_NO_WAKEUP));
        return Err(DROP_FAULT);
    }
    // SAFETY: the record is reserved with this type.
    unsafe {
        addr_of_mut!((*record).event).write(*event);
        (*record).event.header.len = total as u32;
    }
    entry.submit(wakeup(false));
    Ok(())
}

/// Space for a path of which the last component still fits.
#[repr(C)]
struct SeenRecord {
    seen: FileSeen,
    path: [u8; PATH_SPACE],
}

/// A walk from a file up to the top of its mount namespace.
struct Climb {
    /// Where the names go.
    path: *mut u8,
    at: At,
}

/// How far a [`Climb`] has come.
#[derive(Clone, Copy)]
struct At {
    filled: u64,
    /// Not 0 when the top is reached.
    complete: u64,
    mount: Mount,
    dentry: Dentry,
}

/// One step of a [`Climb`]: out of a mount, or past one name. 1 ends the walk.
#[inline(never)]
extern "C" fn climb_step(_index: u64, climb: *mut Climb) -> i64 {
    // SAFETY: the helper passes on the address that it was given.
    let climb = unsafe { &mut *climb };
    let at = &mut climb.at;
    if at.dentry == at.mount.root() {
        let Some((above, mountpoint)) = at.mount.above() else {
            at.complete = 1;
            return 1;
        };
        at.mount = above;
        at.dentry = mountpoint;
        return 0;
    }
    let filled = at.filled;
    if filled > (PATH_SPACE - NAME_SPACE) as u64 {
        return 1;
    }
    // SAFETY: `filled` leaves room for a whole component.
    let copied = unsafe {
        let target = climb.path.add(filled as usize);
        bpf_probe_read_kernel_str(target.cast(), NAME_SPACE as u32, at.dentry.name().cast())
    };
    if copied <= 0 || copied > NAME_SPACE as i64 {
        return 1;
    }
    at.filled = filled + copied as u64;
    at.dentry = at.dentry.parent();
    0
}

/// Announces a file that is not judged yet, with its path inside the writer's mount namespace; whether it could. Each
/// member goes straight into the record: the stack has no room for a copy.
#[inline(always)]
pub(crate) fn file_seen(address: u64, fd: u64, end: u64, now: u64, share: &Share<'_>) -> bool {
    let Ok(mut entry) = reserve::<SeenRecord>(share) else { return false };
    let record: *mut SeenRecord = entry.as_mut_ptr();
    let file = File::at_in_steps(address as *const u8);
    let dentry = file.dentry();
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: the record is reserved with this type; the helpers have no arguments.
    let path = unsafe {
        addr_of_mut!((*record).seen.header.kind).write(event::FILE_SEEN);
        addr_of_mut!((*record).seen.header.flags).write(0);
        addr_of_mut!((*record).seen.header.time).write(now);
        addr_of_mut!((*record).seen.header.cgroup).write(bpf_get_current_cgroup_id());
        addr_of_mut!((*record).seen.header.tgid).write((pid_tgid >> 32) as u32);
        addr_of_mut!((*record).seen.header.tid).write(pid_tgid as u32);
        let key = file.key();
        addr_of_mut!((*record).seen.ino).write(key.ino);
        addr_of_mut!((*record).seen.dev).write(key.dev);
        addr_of_mut!((*record).seen.fd).write(fd as i32);
        addr_of_mut!((*record).seen.position).write(end);
        addr_of_mut!((*record).seen.name_hash).write(dentry.name_hash());
        addr_of_mut!((*record).seen._pad).write(0);
        addr_of_mut!((*record).path).cast::<u8>()
    };
    let mount = Mount::of_vfsmount(file.vfsmount());
    let mut climb = Climb { path, at: At { filled: 0, complete: 0, mount, dentry } };
    forget(&mut climb.at);
    // SAFETY: the helper calls `climb_step` with the address of `climb`, which outlives the call.
    unsafe {
        bpf_loop(MAX_DEPTH as u32, climb_step as *const () as *mut c_void, (&raw mut climb).cast(), 0);
    }
    let (filled, complete) = (climb.at.filled, climb.at.complete != 0);
    // SAFETY: the record is reserved with this type.
    unsafe {
        (*record).seen.header.len = filled as u32;
        if !complete {
            (*record).seen.header.flags |= FLAG_PATH_CUT;
        }
    }
    entry.submit(wakeup(true));
    true
}

/// Announces a container without a path.
#[inline(always)]
pub(crate) fn container(container: &ContainerEvent) {
    let Some(mut entry) = RING.reserve::<ContainerEvent>(0) else {
        lose(container.header.kind);
        return;
    };
    entry.write(*container);
    entry.submit(wakeup(true));
}

#[repr(C)]
struct CgroupRecord {
    container: ContainerEvent,
    path: [u8; CGROUP_PATH_SPACE],
}

/// Announces a cgroup with its path, a string in kernel memory.
#[inline(always)]
pub(crate) fn cgroup(container: &ContainerEvent, path: *const u8) {
    let Some(mut entry) = RING.reserve::<CgroupRecord>(0) else {
        lose(container.header.kind);
        return;
    };
    let record: *mut CgroupRecord = entry.as_mut_ptr();
    // SAFETY: the record is reserved with this type; the helper copies at most the space and fails on a bad address.
    unsafe {
        addr_of_mut!((*record).container).write(*container);
        let target = addr_of_mut!((*record).path).cast();
        let copied = bpf_probe_read_kernel_str(target, CGROUP_PATH_SPACE as u32, path.cast());
        (*record).container.header.len = if copied > 0 { copied as u32 } else { 0 };
    }
    entry.submit(wakeup(true));
}

#[repr(C)]
struct RefusalRecord {
    refusal: Refusal,
    request: [u8; REQUEST_SPACE],
}

/// Whether a refusal may be told of: not while half of the ring waits to be read, since lines of logs have nowhere else to go.
#[inline(always)]
pub(crate) fn has_room() -> bool {
    let waits = RING.query(u64::from(BPF_RB_PROD_POS)).wrapping_sub(RING.query(u64::from(BPF_RB_CONS_POS)));
    let has_room = policy::control().is_some_and(|control| waits <= control.stdio.ring_size / 2);
    if !has_room {
        lose(event::REFUSED);
    }
    has_room
}

/// Tells of a refusal, with the beginning of its request: `header.len` bytes, of which all `REQUEST_SPACE` may be read.
#[inline(always)]
pub(crate) fn refusal(refusal: &Refusal, request: Option<&[u8; REQUEST_SPACE]>) {
    let Some(mut entry) = RING.reserve::<RefusalRecord>(0) else {
        lose(event::REFUSED);
        return;
    };
    let record: *mut RefusalRecord = entry.as_mut_ptr();
    // SAFETY: the record is reserved with this type.
    unsafe {
        addr_of_mut!((*record).refusal).write(*refusal);
        if let Some(request) = request {
            addr_of_mut!((*record).request).write(*request);
        }
    }
    entry.submit(wakeup(false));
}
