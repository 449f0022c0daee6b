//! Reads of kernel structures, by offsets that the agent takes from BTF at load.
//!
//! The task is a typed pointer, so its members are plain loads that the verifier checks against BTF; what lies behind
//! a pointer to pointers is read with the helper, which fails instead of faulting.

use core::{
    mem::MaybeUninit,
    ptr::{addr_of, read_volatile},
};

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{self, bpf_get_current_task_btf},
};
use sidestep_abi::{
    kernel::{FILE_SPAN, INODE_SPAN, KernelLayout, SyscallNumbers},
    stdio::InodeKey,
};

/// Set by the agent before load. Read with volatile loads, or the compiler would take the zeros for the truth.
#[unsafe(no_mangle)]
static KERNEL_LAYOUT: KernelLayout = KernelLayout {
    task_files: 0,
    task_thread_pid: 0,
    task_real_parent: 0,
    task_cgroups: 0,
    task_group_leader: 0,
    task_start_boottime: 0,
    task_status: 0,
    css_set_cgroup: 0,
    files_fdt: 0,
    fdtable_fd: 0,
    fdtable_max_fds: 0,
    file_inode: 0,
    file_pos: 0,
    file_flags: 0,
    file_dentry: 0,
    file_mnt: 0,
    inode_mode: 0,
    inode_ino: 0,
    inode_sb: 0,
    inode_rdev: 0,
    inode_size: 0,
    sb_dev: 0,
    dentry_parent: 0,
    dentry_name: 0,
    dentry_hash: 0,
    vfsmount_root: 0,
    mount_mnt: 0,
    mount_parent: 0,
    mount_mountpoint: 0,
    pid_level: 0,
    pid_numbers: 0,
    upid_size: 0,
    upid_nr: 0,
    cgroup_kn: 0,
    cgroup_root: 0,
    cgroup_parent: 0,
    root_hierarchy: 0,
    kn_id: 0,
    kn_name: 0,
    binprm_filename: 0,
    regs_args: [0; 6],
    regs_nr: 0,
    file_span: 0,
    inode_span: 0,
    uring_req: 0,
    uring_res: 0,
    kiocb_file: 0,
    kiocb_opcode: 0,
    _pad: 0,
};

/// Set by the agent before load.
#[unsafe(no_mangle)]
pub(crate) static SYSCALL_NUMBERS: SyscallNumbers = SyscallNumbers {
    write: 0,
    writev: 0,
    pwrite64: 0,
    pwritev: 0,
    pwritev2: 0,
    sendfile: 0,
    splice: 0,
    tee: 0,
    vmsplice: 0,
    copy_file_range: 0,
    open: 0,
    openat: 0,
};

/// The offset of a kernel member.
macro_rules! offset {
    ($member:ident) => {{
        // SAFETY: a load from a static of this object.
        let offset = unsafe { read_volatile(addr_of!(KERNEL_LAYOUT.$member)) };
        offset as usize
    }};
}

/// A system call's number on this machine.
macro_rules! number {
    ($call:ident) => {{
        // SAFETY: a load from a static of this object.
        unsafe { ::core::ptr::read_volatile(::core::ptr::addr_of!($crate::kernel::SYSCALL_NUMBERS.$call)) }
    }};
}
pub(crate) use number;

mod task;
mod uring;

pub(crate) use task::{
    Registers, binprm_filename, current_call_is_32_bit, current_comes_from_outside, current_is_namespace_init,
    current_started,
};
pub(crate) use uring::Completion;

/// Reads a `T` at `base + offset`; all zero bytes where the kernel says that nothing is there.
#[inline(always)]
fn read<T: Default>(base: *const u8, offset: usize) -> T {
    // SAFETY: the helper checks the address and returns an error instead of faulting.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset).cast::<T>()) }.unwrap_or_default()
}

#[inline(always)]
fn read_pointer(base: *const u8, offset: usize) -> *const u8 {
    read::<u64>(base, offset) as *const u8
}

/// A plain load through a pointer that the verifier knows by its BTF type.
#[inline(always)]
fn load<T: Copy>(base: *const u8, offset: usize) -> T {
    // SAFETY: the verifier accepts this only for a pointer with a BTF type, at the offset of a member; the kernel
    // turns a fault of such a load into zeros.
    unsafe { read_volatile(base.wrapping_add(offset).cast::<T>()) }
}

/// Members of a structure that lie near each other: a call of the helper costs more than the bytes that it copies.
#[repr(C, align(8))]
struct Span<const N: usize>(MaybeUninit<[u8; N]>);

impl<const N: usize> Span<N> {
    #[inline(always)]
    const fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Reads the bytes at `base + offset`; zeros where the kernel says that nothing is there.
    #[inline(always)]
    fn fill(&mut self, base: *const u8, offset: usize) {
        // SAFETY: the helper checks the address, and fills the buffer with zeros when it fails.
        unsafe {
            generated::bpf_probe_read_kernel(self.0.as_mut_ptr().cast(), N as u32, base.wrapping_add(offset).cast())
        };
    }

    /// The member at `offset` of the span.
    #[inline(always)]
    fn get<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: the offset is a constant at load, and the verifier refuses one outside the filled buffer.
        unsafe { read_volatile(self.0.as_ptr().cast::<u8>().wrapping_add(offset).cast::<T>()) }
    }
}

/// A file as the current task sees it.
#[derive(Clone, Copy)]
pub(crate) struct File {
    pointer: *const u8,
    inode: *const u8,
    superblock: *const u8,
    ino: u64,
    mode: u16,
}

/// What an open file description says of itself.
pub(crate) struct Description {
    /// `O_*` flags.
    pub(crate) flags: u32,
    /// Position, after the call.
    pub(crate) position: u64,
    pub(crate) dentry: Dentry,
}

const S_IFMT: u16 = 0o170_000;
const S_IFIFO: u16 = 0o010_000;
const S_IFCHR: u16 = 0o020_000;
const S_IFREG: u16 = 0o100_000;
/// `UNIX98_PTY_SLAVE_MAJOR` and the seven majors behind it.
const PTY_SLAVE_MAJORS: core::ops::Range<u32> = 136..144;

impl File {
    /// The file behind a descriptor of the current task; `None` when it is closed.
    #[inline(always)]
    pub(crate) fn of_current(fd: u64) -> Option<Self> {
        // SAFETY: the helper has no arguments and always returns the current task.
        let task = unsafe { bpf_get_current_task_btf() } as *const u8;
        let files: *const u8 = load(task, offset!(task_files));
        if files.is_null() {
            return None;
        }
        let fdt: *const u8 = load(files, offset!(files_fdt));
        if fdt.is_null() {
            return None;
        }
        let max_fds: u32 = load(fdt, offset!(fdtable_max_fds));
        // Only the low 32 bits of the argument are the descriptor.
        let fd = fd & 0xffff_ffff;
        if fd >= u64::from(max_fds) {
            return None;
        }
        let table: *const u8 = load(fdt, offset!(fdtable_fd));
        Self::at(read_pointer(table, (fd * 8) as usize))
    }

    /// The file at a kernel address.
    #[inline(always)]
    pub(crate) fn at(pointer: *const u8) -> Option<Self> {
        if pointer.is_null() {
            return None;
        }
        let inode = read_pointer(pointer, offset!(file_inode));
        if inode.is_null() {
            return None;
        }
        let base = offset!(inode_span);
        let mut span = Span::<INODE_SPAN>::new();
        span.fill(inode, base);
        let superblock = span.get::<u64>(offset!(inode_sb) - base) as *const u8;
        let ino = span.get(offset!(inode_ino) - base);
        Some(Self { pointer, inode, superblock, ino, mode: span.get(offset!(inode_mode) - base) })
    }

    /// As [`File::at`] where the stack is short: a call for each member, and without the kind of file.
    #[inline(always)]
    pub(crate) fn at_in_steps(pointer: *const u8) -> Self {
        let inode = read_pointer(pointer, offset!(file_inode));
        let superblock = read_pointer(inode, offset!(inode_sb));
        Self { pointer, inode, superblock, ino: read(inode, offset!(inode_ino)), mode: 0 }
    }

    /// Its name, as it was opened.
    #[inline(always)]
    pub(crate) fn dentry(&self) -> Dentry {
        Dentry { pointer: read_pointer(self.pointer, offset!(file_dentry)) }
    }

    #[inline(always)]
    pub(crate) fn is_regular(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }

    /// A pipe, or a character device: what may be a standard stream.
    #[inline(always)]
    pub(crate) fn is_pipe_or_device(&self) -> bool {
        matches!(self.mode & S_IFMT, S_IFIFO | S_IFCHR)
    }

    #[inline(always)]
    pub(crate) fn is_device(&self) -> bool {
        self.mode & S_IFMT == S_IFCHR
    }

    /// A pipe, or the slave side of a pseudo terminal: what a runtime gives a container as stdout.
    #[inline(always)]
    pub(crate) fn is_stdio(&self) -> bool {
        match self.mode & S_IFMT {
            S_IFIFO => true,
            S_IFCHR => PTY_SLAVE_MAJORS.contains(&(read::<u32>(self.inode, offset!(inode_rdev)) >> 20)),
            _ => false,
        }
    }

    #[inline(always)]
    pub(crate) fn key(&self) -> InodeKey {
        InodeKey { ino: self.ino, dev: read(self.superblock, offset!(sb_dev)), _pad: 0 }
    }

    /// The open file description.
    #[inline(always)]
    pub(crate) fn description(&self) -> Description {
        let base = offset!(file_span);
        let mut span = Span::<FILE_SPAN>::new();
        span.fill(self.pointer, base);
        Description {
            flags: span.get(offset!(file_flags) - base),
            position: span.get(offset!(file_pos) - base),
            dentry: Dentry { pointer: span.get::<u64>(offset!(file_dentry) - base) as *const u8 },
        }
    }

    /// Size of the file.
    #[inline(always)]
    pub(crate) fn size(&self) -> u64 {
        read(self.inode, offset!(inode_size))
    }

    /// Names the open file description.
    #[inline(always)]
    pub(crate) fn address(&self) -> u64 {
        self.pointer as u64
    }

    /// The `vfsmount` that the file was opened through.
    #[inline(always)]
    pub(crate) fn vfsmount(&self) -> *const u8 {
        read_pointer(self.pointer, offset!(file_mnt))
    }
}

/// A directory entry.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Dentry {
    pointer: *const u8,
}

impl Dentry {
    #[inline(always)]
    pub(crate) fn name(self) -> *const u8 {
        read_pointer(self.pointer, offset!(dentry_name))
    }

    #[inline(always)]
    pub(crate) fn name_hash(self) -> u32 {
        read(self.pointer, offset!(dentry_hash))
    }

    #[inline(always)]
    pub(crate) fn parent(self) -> Self {
        Self { pointer: read_pointer(self.pointer, offset!(dentry_parent)) }
    }
}

/// A step of a path walk: where a mount's root hangs in the mount above it.
#[derive(Clone, Copy)]
pub(crate) struct Mount {
    vfsmount: *const u8,
}

impl Mount {
    #[inline(always)]
    pub(crate) fn of_vfsmount(vfsmount: *const u8) -> Self {
        Self { vfsmount }
    }

    #[inline(always)]
    pub(crate) fn root(self) -> Dentry {
        Dentry { pointer: read_pointer(self.vfsmount, offset!(vfsmount_root)) }
    }

    /// The mount above and the entry that this one is mounted on; `None` at the top of the namespace.
    #[inline(always)]
    pub(crate) fn above(self) -> Option<(Self, Dentry)> {
        let mount = self.vfsmount.wrapping_sub(offset!(mount_mnt));
        let parent = read_pointer(mount, offset!(mount_parent));
        if parent.is_null() || parent == mount {
            return None;
        }
        let mountpoint = Dentry { pointer: read_pointer(mount, offset!(mount_mountpoint)) };
        Some((Self { vfsmount: parent.wrapping_add(offset!(mount_mnt)) }, mountpoint))
    }
}

/// A cgroup of any hierarchy.
#[derive(Clone, Copy)]
pub(crate) struct Cgroup {
    pointer: *const u8,
}

impl Cgroup {
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Self {
        Self { pointer: address as *const u8 }
    }

    /// Whether it belongs to the v2 hierarchy, which has number 0; ids of others mean other cgroups.
    #[inline(always)]
    pub(crate) fn is_v2(self) -> bool {
        let root = read_pointer(self.pointer, offset!(cgroup_root));
        !root.is_null() && read::<u32>(root, offset!(root_hierarchy)) == 0
    }

    #[inline(always)]
    pub(crate) fn id(self) -> u64 {
        read(read_pointer(self.pointer, offset!(cgroup_kn)), offset!(kn_id))
    }

    #[inline(always)]
    pub(crate) fn name(self) -> *const u8 {
        read_pointer(read_pointer(self.pointer, offset!(cgroup_kn)), offset!(kn_name))
    }

    /// The cgroup above. A cgroup starts with its own `cgroup_subsys_state`, so the parent's state is the parent.
    #[inline(always)]
    pub(crate) fn parent(self) -> Option<Self> {
        let parent = read_pointer(self.pointer, offset!(cgroup_parent));
        (!parent.is_null()).then_some(Self { pointer: parent })
    }
}
