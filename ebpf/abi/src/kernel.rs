//! What the agent tells the kernel programs at load and while they run.

use crate::{assert_layout, pod};

/// Byte offsets of members of kernel structures, taken from the running kernel's BTF; written once before load, so
/// that the verifier sees constants.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
pub struct KernelLayout {
    /// `task_struct.files`
    pub task_files: u32,
    /// `task_struct.thread_pid`
    pub task_thread_pid: u32,
    /// `task_struct.real_parent`
    pub task_real_parent: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.start_boottime`
    pub task_start_boottime: u32,
    /// `task_struct.thread_info.status`; 0 where the machine has none.
    pub task_status: u32,
    /// `css_set.dfl_cgrp`
    pub css_set_cgroup: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.fd`
    pub fdtable_fd: u32,
    /// `fdtable.max_fds`
    pub fdtable_max_fds: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `file.f_pos`
    pub file_pos: u32,
    /// `file.f_flags`
    pub file_flags: u32,
    /// `file.f_path.dentry`
    pub file_dentry: u32,
    /// `file.f_path.mnt`
    pub file_mnt: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `inode.i_rdev`
    pub inode_rdev: u32,
    /// `inode.i_size`
    pub inode_size: u32,
    /// `super_block.s_dev`
    pub sb_dev: u32,
    /// `dentry.d_parent`
    pub dentry_parent: u32,
    /// `dentry.d_name.name`
    pub dentry_name: u32,
    /// `dentry.d_name.hash`
    pub dentry_hash: u32,
    /// `vfsmount.mnt_root`
    pub vfsmount_root: u32,
    /// `mount.mnt`
    pub mount_mnt: u32,
    /// `mount.mnt_parent`
    pub mount_parent: u32,
    /// `mount.mnt_mountpoint`
    pub mount_mountpoint: u32,
    /// `pid.level`
    pub pid_level: u32,
    /// `pid.numbers`
    pub pid_numbers: u32,
    /// Size of `upid`
    pub upid_size: u32,
    /// `upid.nr`
    pub upid_nr: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `cgroup.root`
    pub cgroup_root: u32,
    /// `cgroup.self.parent`
    pub cgroup_parent: u32,
    /// `cgroup_root.hierarchy_id`
    pub root_hierarchy: u32,
    /// `kernfs_node.id`
    pub kn_id: u32,
    /// `kernfs_node.name`
    pub kn_name: u32,
    /// `linux_binprm.filename`
    pub binprm_filename: u32,
    /// `pt_regs` members of the six arguments of a system call
    pub regs_args: [u32; 6],
    /// `pt_regs` member of the system call's number
    pub regs_nr: u32,
    /// Where the [`FILE_SPAN`] bytes of `file` begin that hold its flags, path and position; a multiple of 8.
    pub file_span: u32,
    /// Where the [`INODE_SPAN`] bytes of `inode` begin that hold its mode, superblock and number; a multiple of 8.
    pub inode_span: u32,
    /// `req` in the record of the tracepoint `io_uring:io_uring_complete`; 0 where it has none (before Linux 5.17).
    pub uring_req: u32,
    /// `res` in the same
    pub uring_res: u32,
    /// `io_kiocb.file`
    pub kiocb_file: u32,
    /// `io_kiocb.opcode`
    pub kiocb_opcode: u32,
    /// Zero.
    pub _pad: u32,
}
const _: () = assert!(size_of::<KernelLayout>() == 216);

/// Bytes of `struct file` that are read at once.
pub const FILE_SPAN: usize = 128;
/// Bytes of `struct inode` that are read at once.
pub const INODE_SPAN: usize = 80;

/// System call numbers of the machine, for the attach point that sees every call.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
pub struct SyscallNumbers {
    /// `write`
    pub write: u32,
    /// `writev`
    pub writev: u32,
    /// `pwrite64`
    pub pwrite64: u32,
    /// `pwritev`
    pub pwritev: u32,
    /// `pwritev2`
    pub pwritev2: u32,
    /// `sendfile`
    pub sendfile: u32,
    /// `splice`
    pub splice: u32,
    /// `tee`
    pub tee: u32,
    /// `vmsplice`
    pub vmsplice: u32,
    /// `copy_file_range`
    pub copy_file_range: u32,
    /// `open`; a number that no call has where the machine has none.
    pub open: u32,
    /// `openat`
    pub openat: u32,
}
const _: () = assert!(size_of::<SyscallNumbers>() == 48);

/// Governed roots that one agent may have.
pub const MAX_ROOTS: usize = 16;
/// Bytes of a name that are compared with a root's prefix.
pub const PREFIX_SPACE: usize = 24;

/// A cgroup below which processes are captured.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Root {
    /// Id of the cgroup.
    pub id: u64,
    /// Its depth in the v2 hierarchy; the root has 0.
    pub level: u32,
    /// When not 0, only children whose name starts with that many bytes of `prefix` are governed.
    pub prefix_len: u32,
    /// First bytes of the children's names.
    pub prefix: [u8; PREFIX_SPACE],
}
assert_layout!(Root, size 40);

/// What may change while the programs run.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Control {
    /// Number of valid entries in `roots`.
    pub roots_len: u32,
    /// The agent's process: never captured. While no agent runs it is the last one's, and another process may have the
    /// number by then: `agent_started` tells.
    pub agent_tgid: u32,
    /// When the agent's process began, since the start of the machine, in units of [`START_UNIT`].
    pub agent_started: u64,
    /// The agent's own cgroup when it runs in a container; 0 for none.
    pub agent_cgroup: u64,
    /// What one container may hold of the ring.
    pub stdio: Limits,
    /// What it may hold of it with records of files.
    pub files: Limits,
    /// Raised when who is governed has changed and everything is in its place: decisions from before are void. Only
    /// the low 16 bits count.
    pub generation: u64,
    /// Whether what the node itself sends to a Pod is let through, whatever policies say: 0 or 1.
    pub exempts_node: u64,
    /// Whether others may have changed what a socket has asked for, so that its packets are not asked for once more: 0 or 1.
    pub trusts_sockets: u64,
    /// Governed roots.
    pub roots: [Root; MAX_ROOTS],
}
assert_layout!(Control, size 96 + 40 * MAX_ROOTS);

/// Nanoseconds of one tick of the clock in which `/proc/<pid>/stat` tells when a process began (`USER_HZ` is 100 on
/// every machine that Linux runs on today).
pub const START_UNIT: u64 = 10_000_000;

/// Which programs act, when those of two agents are attached for the moment in which one takes over from the other.
///
/// Every agent that pins its programs shares this map with all that came before, whatever they are: it must never
/// change.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Generations {
    /// The generation of programs that acts; the agent changes it in one write.
    pub active: u64,
    /// The lowest generation that is attached.
    pub lowest: u64,
    /// The highest one; the same as the lowest while no takeover is under way.
    pub highest: u64,
}
assert_layout!(Generations, size 24);

/// What one container may hold of the ring with records of one kind.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Limits {
    /// Bytes, while all others are quiet.
    pub share: u64,
    /// Of what is free, the part in 1024ths.
    pub free_share: u64,
    /// Bytes of the ring.
    pub ring_size: u64,
}
assert_layout!(Limits, size 24);

impl Limits {
    /// A container alone gets to `share` and no further: there, `share` = `free_share` * (`ring_size` - `share`).
    #[must_use]
    pub const fn new(ring_size: u64, share: u64) -> Self {
        let free_share = match (share * 1024).checked_div(ring_size.saturating_sub(share)) {
            Some(free_share) => free_share,
            None => u32::MAX as u64,
        };
        Self { share, free_share, ring_size }
    }
}

/// What the reader of the ring does, and how far it has come. Written by the agent; a kernel program that wakes it sets
/// `state`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Reader {
    /// One of the `READER_*`.
    pub state: u32,
    /// Zero.
    pub _pad: u32,
    /// Position in the ring up to which it has read. It lets go of what it has read later, so the consumer's position
    /// does not tell.
    pub read: u64,
}
assert_layout!(Reader, size 16);

/// The reader is draining: do not wake it.
pub const READER_BUSY: u32 = 0;
/// The reader sleeps for a few milliseconds: wake it only when the ring fills.
pub const READER_NAPPING: u32 = 1;
/// The reader sleeps until it is woken.
pub const READER_IDLE: u32 = 2;

pod!(Control, Generations, Reader);

#[cfg(feature = "aya")]
mod globals {
    use super::{KernelLayout, SyscallNumbers};

    // SAFETY: `repr(C)`, integers only, no padding (their sizes are asserted above).
    unsafe impl aya::Pod for KernelLayout {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SyscallNumbers {}
}
