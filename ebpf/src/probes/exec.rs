//! The first process of a container: its standard streams are the container's log.

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::bpf_probe_read_kernel_str_bytes, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use sidestep_abi::{
    container::ContainerEvent,
    event,
    stdio::{DROP_REASONS, InodeKey, STDERR, STDOUT, Stdio},
};

use crate::{
    emit,
    kernel::{self, File},
    maps::STDIO,
    policy,
};

/// `sched_process_exec(task, old_pid, binprm)`: the new program is in place and has not run yet.
#[raw_tracepoint]
pub(crate) fn sched_process_exec(ctx: RawTracePointContext) -> i32 {
    let Some(governed) = policy::governed() else { return 0 };
    let Some(container) = policy::container(governed.cgroup) else {
        emit::lose(event::CONTAINER_STARTED);
        return 0;
    };
    // SAFETY: a map value, checked by the verifier.
    let init = unsafe { &raw mut (*container).init_tgid };
    // SAFETY: as above.
    let known = unsafe { init.read_volatile() };
    // A container with a PID namespace of its own is easy: its first process has number 1 there, and a process that
    // enters later has not. With the node's or a Pod's namespace it is the first that is executed in the cgroup,
    // apart from the runtime, which executes itself again from a sealed copy on its way in.
    let first = if kernel::current_is_namespace_init() {
        true
    } else if known == 0 {
        !executes_itself(ctx.arg::<u64>(2))
    } else {
        known == governed.tgid
    };
    if !first {
        return 0;
    }
    // SAFETY: as above.
    unsafe { init.write_volatile(governed.tgid) };

    let stdout = register(governed.cgroup, 1, STDOUT);
    let stderr = register(governed.cgroup, 2, STDERR);
    let header = emit::header(event::CONTAINER_STARTED, governed.cgroup, governed.tgid, governed.tid);
    emit::container(&ContainerEvent { header, stdio: [stdout, stderr] });
    0
}

/// Registers a descriptor of the current process as a standard stream, when it is a pipe or a terminal. A pipe that
/// is both stdout and stderr is registered once, as stdout.
#[inline(always)]
fn register(cgroup: u64, fd: u64, iostream: u32) -> InodeKey {
    let none = InodeKey { ino: 0, dev: 0, _pad: 0 };
    let Some(file) = File::of_current(fd) else { return none };
    if !file.is_stdio() {
        return none;
    }
    let key = file.key();
    let stream = Stdio { cgroup, written: 0, dropped: [0; DROP_REASONS], iostream, _pad: 0 };
    // A program that executes another keeps its streams and their counts.
    if STDIO.insert(&key, &stream, u64::from(BPF_NOEXIST)).is_err() && STDIO.get_ptr(&key).is_none() {
        emit::lose(event::CONTAINER_STARTED);
    }
    key
}

/// Whether the executed name is `/proc/self/...`, as with runc's protection of its own binary.
#[inline(always)]
fn executes_itself(binprm: u64) -> bool {
    const PREFIX: &[u8; 11] = b"/proc/self/";
    let mut name = [0u8; 16];
    // SAFETY: the helper reads at most the size of the buffer and fails on a bad address.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(kernel::binprm_filename(binprm), &mut name) };
    for index in 0..PREFIX.len() {
        if name[index] != PREFIX[index] {
            return false;
        }
    }
    true
}
