//! What the kernel programs need to know of this kernel and machine.

use std::path::Path;

use sidestep_abi::kernel::{FILE_SPAN, INODE_SPAN, KernelLayout, SyscallNumbers};

use super::btf::{Btf, BtfError};

/// Names of `pt_regs` members that hold the arguments of a system call and its number, and the prefix of the
/// functions that implement system calls.
struct Machine {
    arguments: [&'static str; 6],
    number: &'static str,
    wrapper: &'static str,
}

#[cfg(target_arch = "x86_64")]
const MACHINE: Machine =
    Machine { arguments: ["di", "si", "dx", "r10", "r8", "r9"], number: "orig_ax", wrapper: "__x64_sys_" };

/// On this machine the first argument is kept apart, since the result takes its register.
#[cfg(target_arch = "aarch64")]
const MACHINE: Machine =
    Machine { arguments: ["orig_x0", "1", "2", "3", "4", "5"], number: "syscallno", wrapper: "__arm64_sys_" };

/// The function that implements a system call.
#[must_use]
pub fn wrapper(call: &str) -> String {
    format!("{}{call}", MACHINE.wrapper)
}

/// Where the kernel's running BTF is.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

const STRUCTS: [&str; 23] = [
    "task_struct",
    "files_struct",
    "fdtable",
    "file",
    "path",
    "inode",
    "super_block",
    "dentry",
    "qstr",
    "vfsmount",
    "mount",
    "pid",
    "upid",
    "cgroup",
    "cgroup_root",
    "css_set",
    "cgroup_subsys_state",
    "kernfs_node",
    "linux_binprm",
    "pt_regs",
    "io_kiocb",
    "trace_event_raw_io_uring_complete",
    "user_pt_regs",
];

/// Reads the offsets for the running kernel.
///
/// # Errors
/// When BTF is absent, or a member that the programs need does not exist.
pub fn kernel_layout(path: &Path) -> Result<KernelLayout, BtfError> {
    let btf = Btf::read(path, &STRUCTS)?;
    let mut regs_args = [0; 6];
    for (offset, name) in regs_args.iter_mut().zip(MACHINE.arguments) {
        *offset = match name.parse::<u32>() {
            Ok(index) => btf.offset("pt_regs", "regs")? + 8 * index,
            Err(_) => btf.offset("pt_regs", name)?,
        };
    }
    Ok(KernelLayout {
        task_files: btf.offset("task_struct", "files")?,
        task_thread_pid: btf.offset("task_struct", "thread_pid")?,
        task_real_parent: btf.offset("task_struct", "real_parent")?,
        task_cgroups: btf.offset("task_struct", "cgroups")?,
        task_group_leader: btf.offset("task_struct", "group_leader")?,
        task_start_boottime: btf.offset("task_struct", "start_boottime")?,
        task_status: btf.offset("task_struct", "thread_info.status").unwrap_or_default(),
        css_set_cgroup: btf.offset("css_set", "dfl_cgrp")?,
        files_fdt: btf.offset("files_struct", "fdt")?,
        fdtable_fd: btf.offset("fdtable", "fd")?,
        fdtable_max_fds: btf.offset("fdtable", "max_fds")?,
        file_inode: btf.offset("file", "f_inode")?,
        file_pos: btf.offset("file", "f_pos")?,
        file_flags: btf.offset("file", "f_flags")?,
        file_dentry: btf.offset("file", "f_path.dentry")?,
        file_mnt: btf.offset("file", "f_path.mnt")?,
        inode_mode: btf.offset("inode", "i_mode")?,
        inode_ino: btf.offset("inode", "i_ino")?,
        inode_sb: btf.offset("inode", "i_sb")?,
        inode_rdev: btf.offset("inode", "i_rdev")?,
        inode_size: btf.offset("inode", "i_size")?,
        sb_dev: btf.offset("super_block", "s_dev")?,
        dentry_parent: btf.offset("dentry", "d_parent")?,
        dentry_name: btf.offset("dentry", "d_name.name")?,
        dentry_hash: btf.offset("dentry", "d_name.hash")?,
        vfsmount_root: btf.offset("vfsmount", "mnt_root")?,
        mount_mnt: btf.offset("mount", "mnt")?,
        mount_parent: btf.offset("mount", "mnt_parent")?,
        mount_mountpoint: btf.offset("mount", "mnt_mountpoint")?,
        pid_level: btf.offset("pid", "level")?,
        pid_numbers: btf.offset("pid", "numbers")?,
        upid_size: btf.size("upid")?,
        upid_nr: btf.offset("upid", "nr")?,
        cgroup_kn: btf.offset("cgroup", "kn")?,
        cgroup_root: btf.offset("cgroup", "root")?,
        cgroup_parent: btf.offset("cgroup", "self.parent")?,
        root_hierarchy: btf.offset("cgroup_root", "hierarchy_id")?,
        kn_id: btf.offset("kernfs_node", "id")?,
        kn_name: btf.offset("kernfs_node", "name")?,
        binprm_filename: btf.offset("linux_binprm", "filename")?,
        regs_args,
        regs_nr: btf.offset("pt_regs", MACHINE.number)?,
        file_span: span::<FILE_SPAN>(&btf, "file", ["f_flags", "f_path.dentry", "f_pos"])?,
        inode_span: span::<INODE_SPAN>(&btf, "inode", ["i_mode", "i_sb", "i_ino"])?,
        // Not on every kernel, and not needed by any other program.
        uring_req: btf.offset("trace_event_raw_io_uring_complete", "req").unwrap_or_default(),
        uring_res: btf.offset("trace_event_raw_io_uring_complete", "res").unwrap_or_default(),
        kiocb_file: btf.offset("io_kiocb", "file").unwrap_or_default(),
        kiocb_opcode: btf.offset("io_kiocb", "opcode").unwrap_or_default(),
        _pad: 0,
    })
}

/// Where `SIZE` bytes begin that hold three members of up to eight bytes each.
fn span<const SIZE: usize>(btf: &Btf, name: &'static str, members: [&'static str; 3]) -> Result<u32, BtfError> {
    let mut offsets = [0; 3];
    for (offset, member) in offsets.iter_mut().zip(members) {
        *offset = btf.offset(name, member)?;
    }
    offsets.sort_unstable();
    let begin = offsets[0] & !7;
    if (offsets[2] + 8 - begin) as usize > SIZE {
        return Err(BtfError::Apart { name, members, size: SIZE });
    }
    Ok(begin)
}

/// System call numbers of the machine that the agent was built for.
#[must_use]
pub fn syscall_numbers() -> SyscallNumbers {
    let number = |number: libc::c_long| u32::try_from(number).unwrap_or(u32::MAX);
    SyscallNumbers {
        write: number(libc::SYS_write),
        writev: number(libc::SYS_writev),
        pwrite64: number(libc::SYS_pwrite64),
        pwritev: number(libc::SYS_pwritev),
        pwritev2: number(libc::SYS_pwritev2),
        sendfile: number(libc::SYS_sendfile),
        splice: number(libc::SYS_splice),
        tee: number(libc::SYS_tee),
        vmsplice: number(libc::SYS_vmsplice),
        copy_file_range: number(libc::SYS_copy_file_range),
        #[cfg(target_arch = "x86_64")]
        open: number(libc::SYS_open),
        #[cfg(not(target_arch = "x86_64"))]
        open: u32::MAX,
        openat: number(libc::SYS_openat),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_this_kernel() {
        if !Path::new(BTF_PATH).exists() {
            eprintln!("this kernel has no BTF: nothing to test");
            return;
        }
        let layout = kernel_layout(Path::new(BTF_PATH)).expect("layout");
        assert!(layout.task_files > 0 && layout.file_inode > 0);
        assert_eq!(layout.cgroup_parent % 8, 0);
    }

    #[test]
    fn says_what_is_missing() {
        let error = kernel_layout(Path::new("/nonexistent")).expect_err("no BTF");
        assert!(error.to_string().contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
    }
}
