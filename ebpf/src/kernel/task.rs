//! The current task: where it stands among the others, what it executes, and its system call.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};

use super::{Cgroup, KERNEL_LAYOUT, load, read, read_pointer};

/// Whether the current process is the first of a PID namespace other than the node's.
#[inline(always)]
pub(crate) fn current_is_namespace_init() -> bool {
    // SAFETY: the helper has no arguments and always returns the current task.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    // Not a plain load: the verifier of Linux 6.1 refuses the sum below on a pointer with a BTF type.
    let pid = read_pointer(task, offset!(task_thread_pid));
    let level: u32 = read(pid, offset!(pid_level));
    if level == 0 || level > 32 {
        return false;
    }
    let upid = offset!(pid_numbers) + level as usize * offset!(upid_size);
    read::<u32>(pid, upid + offset!(upid_nr)) == 1
}

/// When the current process began, in nanoseconds since the start of the machine.
#[inline(always)]
pub(crate) fn current_started() -> u64 {
    // SAFETY: the helper has no arguments and always returns the current task.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    read(read_pointer(task, offset!(task_group_leader)), offset!(task_start_boottime))
}

/// Whether the current process was started from outside of `cgroup`, which is its own: so was the first process of a
/// container, by its runtime, and nothing that this has started itself.
#[inline(always)]
pub(crate) fn current_comes_from_outside(cgroup: u64) -> bool {
    // SAFETY: the helper has no arguments and always returns the current task.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    let parent = read_pointer(task, offset!(task_real_parent));
    let groups = read_pointer(parent, offset!(task_cgroups));
    Cgroup { pointer: read_pointer(groups, offset!(css_set_cgroup)) }.id() != cgroup
}

/// `TS_COMPAT` of x86-64
const COMPATIBLE: u32 = 2;

/// Whether the current system call is one of 32 bits, whose numbers mean other calls.
#[inline(always)]
pub(crate) fn current_call_is_32_bit() -> bool {
    let status = offset!(task_status);
    if status == 0 {
        return false;
    }
    // SAFETY: the helper has no arguments and always returns the current task.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    load::<u32>(task, status) & COMPATIBLE != 0
}

/// The file name that was executed.
#[inline(always)]
pub(crate) fn binprm_filename(binprm: u64) -> *const u8 {
    read_pointer(binprm as *const u8, offset!(binprm_filename))
}

/// The arguments of the current system call, as saved at its entry.
#[derive(Clone, Copy)]
pub(crate) struct Registers {
    pointer: *const u8,
}

impl Registers {
    /// Of the current task; Linux 5.15.
    #[inline(always)]
    pub(crate) fn of_current() -> Self {
        // SAFETY: the argument is what the helper before it returned.
        let pointer = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) };
        Self { pointer: pointer as *const u8 }
    }

    #[inline(always)]
    pub(crate) fn argument(self, index: usize) -> u64 {
        // SAFETY: a load from a static of this object; callers pass constants below 6.
        let offset = unsafe { read_volatile(addr_of!(KERNEL_LAYOUT.regs_args).cast::<u32>().add(index)) };
        load(self.pointer, offset as usize)
    }

    /// The number of the system call.
    #[inline(always)]
    pub(crate) fn number(self) -> u32 {
        load(self.pointer, offset!(regs_nr))
    }
}
