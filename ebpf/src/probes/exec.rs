//! The first process of a container: its standard streams are the container's log.

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel_str_bytes},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use sidestep_abi::{
    container::{ContainerEvent, INIT_CERTAIN, INIT_NONE, INIT_PRESUMED, INIT_UNREGISTERED},
    event,
    stdio::{DROP_REASONS, InodeKey, STDERR, STDOUT, Stdio},
};

use crate::{
    emit,
    generation::Order,
    kernel::{self, File},
    maps::STDIO,
    policy,
};

/// `sched_process_exec(task, old_pid, binprm)`: the new program is in place and has not run yet.
#[raw_tracepoint]
pub(crate) fn sched_process_exec(ctx: RawTracePointContext) -> i32 {
    let Some(governed) = policy::governed(Order::OldestFirst) else { return 0 };
    let Some(container) = policy::container(governed.cgroup) else {
        emit::lose(event::CONTAINER_STARTED);
        return 0;
    };
    // SAFETY: a map value, checked by the verifier.
    let init = unsafe { &raw mut (*container).init };
    // SAFETY: as above.
    let known = unsafe { init.read_volatile() };
    // Once in the life of a container: what its first process executes later may have had its output redirected, into
    // a pipe to `tee` for example. And what the container has started itself is never its first process, though it be
    // the first of a PID namespace below the container's, or a hook that runs before the container does.
    if !matches!(known, INIT_NONE | INIT_PRESUMED) || !kernel::current_comes_from_outside(governed.cgroup) {
        return 0;
    }
    // A container with a PID namespace of its own is easy: its first process has number 1 there, and a process that
    // enters later has not. With the node's or a Pod's namespace it is the first that is executed in the cgroup,
    // apart from the runtime, which executes itself again from a sealed copy on its way in.
    let found = if kernel::current_is_namespace_init() {
        INIT_CERTAIN
    } else if known == INIT_NONE && !executes_itself(ctx.arg::<u64>(2)) {
        INIT_PRESUMED
    } else {
        return 0;
    };
    if policy::is_current_inside_container(governed.cgroup) {
        return 0;
    }
    let mut registered = true;
    let stdout = register(governed.cgroup, 1, STDOUT, &mut registered);
    let stderr = register(governed.cgroup, 2, STDERR, &mut registered);
    if !registered {
        // The agent looks at all cgroups then, and registers it as soon as there is room.
        emit::lose(event::CONTAINER_STARTED);
    }
    // SAFETY: as above.
    unsafe { init.write_volatile(if registered { found } else { INIT_UNREGISTERED }) };
    let header = emit::header(event::CONTAINER_STARTED, governed.cgroup, governed.tgid, governed.tid);
    emit::container(&ContainerEvent { header, stdio: [stdout, stderr] });
    0
}

/// Registers a descriptor of the current process as a standard stream, when it is a pipe or a terminal. A pipe that
/// is both stdout and stderr is registered once, as stdout.
#[inline(always)]
fn register(cgroup: u64, fd: u64, iostream: u32, registered: &mut bool) -> InodeKey {
    let none = InodeKey { ino: 0, dev: 0, _pad: 0 };
    let Some(file) = File::of_current(fd) else { return none };
    if !file.is_stdio() {
        return none;
    }
    let key = file.key();
    // The container's own stream keeps its count. Another one's has ended: numbers of terminals are used again.
    // SAFETY: a map value, checked by the verifier.
    if STDIO.get_ptr(&key).is_some_and(|known| unsafe { (*known).cgroup } == cgroup) {
        return key;
    }
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let stream = Stdio { cgroup, registered: now, written: 0, dropped: [0; DROP_REASONS], iostream, _pad: 0 };
    *registered &= STDIO.insert(&key, &stream, 0).is_ok();
    key
}

/// Whether the executed name is below `/proc` or `/dev/fd`, as with runc's and crun's protection of their own binaries:
/// `/proc/self/fd/7`, or what the kernel calls a program that is executed by its descriptor.
#[inline(always)]
fn executes_itself(binprm: u64) -> bool {
    let mut name = [0u8; 16];
    // SAFETY: the helper reads at most the size of the buffer and fails on a bad address.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(kernel::binprm_filename(binprm), &mut name) };
    begins_with(&name, b"/proc/") || begins_with(&name, b"/dev/fd/")
}

#[inline(always)]
fn begins_with<const N: usize>(name: &[u8; 16], prefix: &[u8; N]) -> bool {
    for index in 0..N {
        if name[index] != prefix[index] {
            return false;
        }
    }
    true
}
