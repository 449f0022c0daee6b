//! Containers that ran before the programs were attached: their standard streams are found in `/proc`.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use sidestep_abi::stdio::{DROP_REASONS, InodeKey, STDERR, STDOUT, Stdio};

use super::{KernelMaps, LoadError, RootPattern, cgroups};

/// Registers every container below the governed roots.
pub(super) fn register(mount: &Path, roots: &[RootPattern], maps: &mut KernelMaps) -> Result<(), LoadError> {
    for cgroup in cgroups::list(mount, roots) {
        if cgroup.member {
            maps.add_member(cgroup.id)?;
        }
        let Some(init) = first_process(&cgroups::processes(mount, &cgroup.path)) else { continue };
        maps.add_container(cgroup.id, init);
        for (descriptor, iostream) in [(1, STDOUT), (2, STDERR)] {
            if let Some(key) = stdio_of(init, descriptor) {
                let stream = Stdio { cgroup: cgroup.id, written: 0, dropped: [0; DROP_REASONS], iostream, _pad: 0 };
                maps.add_stdio(key, stream);
            }
        }
    }
    Ok(())
}

/// The process that the container was started with: number 1 of a PID namespace of its own, or the oldest.
fn first_process(pids: &[u32]) -> Option<u32> {
    pids.iter()
        .copied()
        .find(|pid| namespace_pid(*pid) == Some(1))
        .or_else(|| pids.iter().copied().filter_map(|pid| Some((start_time(pid)?, pid))).min().map(|(_, pid)| pid))
}

/// The last number of `NSpid` in `/proc/<pid>/status`, when there is more than one.
fn namespace_pid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let mut numbers = numbers.split_whitespace();
    numbers.next()?;
    numbers.next_back()?.parse().ok()
}

/// Field 22 of `/proc/<pid>/stat`; the name in field 2 may hold anything, so the fields are counted from its end.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The pipe or terminal behind a descriptor.
fn stdio_of(pid: u32, descriptor: u32) -> Option<InodeKey> {
    let metadata = fs::metadata(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
    let kind = metadata.file_type();
    let is_terminal = kind.is_char_device() && (136..144).contains(&libc::major(metadata.rdev()));
    (kind.is_fifo() || is_terminal).then(|| inode_key(&metadata))
}

/// The key under which the kernel programs know an inode: `st_dev` has another layout in user space.
#[must_use]
pub fn inode_key(metadata: &fs::Metadata) -> InodeKey {
    let device = metadata.dev();
    InodeKey { ino: metadata.ino(), dev: libc::major(device) << 20 | libc::minor(device), _pad: 0 }
}
