//! Containers of which the kernel programs have not seen the first process, because it ran before they were attached or
//! because a map was full: their standard streams are found in `/proc`.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use sidestep_abi::{
    container::{INIT_CERTAIN, INIT_PRESUMED},
    stdio::{DROP_REASONS, InodeKey, STDERR, STDOUT, Stdio},
};

use super::{KernelMaps, LoadError, RootPattern, cgroups};
use crate::clock;

/// Registers every container below the governed roots that is not registered, and voids what the kernel programs have
/// decided so far on who is governed. The first refusal is returned when all have been tried: a map is full.
pub(super) fn register(mount: &Path, roots: &[RootPattern], maps: &mut KernelMaps) -> Result<(), LoadError> {
    let cgroups = cgroups::list(mount, roots);
    let mut result = Ok(());
    for cgroup in cgroups.iter().filter(|cgroup| cgroup.member) {
        result = result.and(maps.add_member(cgroup.id));
    }
    // A process that is executed from here on is seen by the kernel programs, as a member.
    maps.begin_generation()?;
    let mut containers = Vec::new();
    // Parents come before children.
    for cgroup in cgroups {
        if containers.iter().any(|above: &String| cgroup.path.starts_with(above)) {
            // A container has made it, and it is part of that.
            continue;
        }
        if maps.is_registered(cgroup.id) {
            // What its first process has as stdout now may be a pipe to another process.
            containers.push(cgroup.path + "/");
            continue;
        }
        let Some((pid, init)) = first_process(&cgroups::processes(mount, &cgroup.path)) else { continue };
        result = result.and(register_container(cgroup.id, pid, init, maps));
        containers.push(cgroup.path + "/");
    }
    result
}

fn register_container(cgroup: u64, pid: u32, init: u32, maps: &mut KernelMaps) -> Result<(), LoadError> {
    for (descriptor, iostream) in [(1, STDOUT), (2, STDERR)] {
        if let Some(key) = stdio_of(pid, descriptor) {
            let registered = clock::monotonic_nano();
            let dropped = [0; DROP_REASONS];
            maps.add_stdio(key, Stdio { cgroup, registered, written: 0, dropped, iostream, _pad: 0 })?;
        }
    }
    maps.add_container(cgroup, init)
}

/// The process that the container was started with: number 1 of a PID namespace of its own, or the oldest of those that
/// were started from outside. `None` when the first one is still the runtime, which the kernel programs will see
/// executing the container's program.
fn first_process(pids: &[u32]) -> Option<(u32, u32)> {
    let all: HashSet<_> = pids.iter().copied().collect();
    let from_outside =
        pids.iter().filter_map(|pid| Process::read(*pid)).filter(|process| !all.contains(&process.parent));
    let (of_namespace, others): (Vec<_>, Vec<_>) = from_outside.partition(|process| process.is_namespace_init);
    if let Some(process) = of_namespace.into_iter().min_by_key(|process| process.started) {
        return process.has_executed.then_some((process.pid, INIT_CERTAIN));
    }
    others.into_iter().min_by_key(|process| process.started).map(|process| (process.pid, INIT_PRESUMED))
}

/// What `/proc` tells of a process.
struct Process {
    pid: u32,
    parent: u32,
    /// Whether it has number 1 in a PID namespace other than the node's.
    is_namespace_init: bool,
    /// Whether it has executed a program since it was forked.
    has_executed: bool,
    /// Since the start of the machine, in ticks of the clock.
    started: u64,
}

impl Process {
    /// `None` when it has ended.
    fn read(pid: u32) -> Option<Self> {
        /// `include/linux/sched.h`
        const PF_FORKNOEXEC: u64 = 0x40;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Fields by `proc_pid_stat(5)`; the name in the second may hold anything, so they are counted from its end.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            pid,
            parent: u32::try_from(field(4)?).ok()?,
            is_namespace_init: namespace_pid(pid) == Some(1),
            has_executed: field(9)? & PF_FORKNOEXEC == 0,
            started: field(22)?,
        })
    }
}

/// When a process began, since the start of the machine, in ticks of the clock; `None` when it has ended.
pub(super) fn started(pid: u32) -> Option<u64> {
    Process::read(pid).map(|process| process.started)
}

/// The last number of `NSpid` in `/proc/<pid>/status`, when there is more than one.
fn namespace_pid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let mut numbers = numbers.split_whitespace();
    numbers.next()?;
    numbers.next_back()?.parse().ok()
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
