//! What has to be mounted where the agent looks: in a Pod each of them is a volume that can be forgotten.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use super::Finding;

const AREA: &str = "mounts";

/// Where tracefs is looked for.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const BPFFS: &str = "/sys/fs/bpf";

/// A mount as `/proc/self/mountinfo` has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Mount<'a> {
    kind: &'a str,
    read_only: bool,
}

pub(super) fn examine(host_root: &Path) -> Vec<Finding> {
    let table = table();
    vec![judge_tracefs(&table), judge_bpffs(&table), host(host_root)]
}

/// Whether the BPF file system and tracefs are there, so that the agent has nothing to mount.
pub(super) fn are_complete() -> bool {
    let table = table();
    at(&table, BPFFS).is_some_and(|mount| mount.kind == "bpf") && tracefs(&table).is_some()
}

fn table() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// What is mounted at `path`: of several mounts the last, which hides the others. Fields by `proc_pid_mountinfo(5)`.
fn at<'a>(table: &'a str, path: &str) -> Option<Mount<'a>> {
    table.lines().rev().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut fields = front.split(' ').skip(4);
        (fields.next()? == path).then_some(())?;
        let mut options = fields.next()?.split(',');
        Some(Mount { kind: back.split(' ').next()?, read_only: options.any(|option| option == "ro") })
    })
}

fn tracefs(table: &str) -> Option<&'static str> {
    TRACEFS.into_iter().find(|path| at(table, path).is_some_and(|mount| mount.kind == "tracefs"))
}

pub(super) fn judge_tracefs(table: &str) -> Finding {
    if let Some(path) = tracefs(table) {
        return Finding::healthy(AREA, "tracefs", format!("mounted at {path}"));
    }
    let advice = "the agent mounts it at /sys/kernel/tracing when it may (CAP_SYS_ADMIN); else run `mount -t tracefs \
                  none /sys/kernel/tracing` on the node, and mount that directory into the Pod. Without it sendfile \
                  and splice into stdout are not counted, and writes cost more where fexit is missing";
    Finding::degraded(AREA, "tracefs", "not mounted at /sys/kernel/tracing", advice)
}

/// Whether something can be pinned is judged by `pins`; here only what hides it.
pub(super) fn judge_bpffs(table: &str) -> Finding {
    match at(table, BPFFS) {
        Some(Mount { kind: "bpf", read_only: false }) => Finding::healthy(AREA, "bpffs", format!("mounted at {BPFFS}")),
        Some(Mount { kind: "bpf", read_only: true }) => {
            let advice = "nothing can be pinned there, and `sidestep run` does not start with `capture.pin`: mount \
                          the node's /sys/fs/bpf into the Pod without `readOnly`";
            Finding::degraded(AREA, "bpffs", format!("mounted at {BPFFS}, read-only"), advice)
        }
        _ => {
            let advice = "the agent mounts it when it may (CAP_SYS_ADMIN); else run `mount -t bpf bpf /sys/fs/bpf` on \
                          the node, as systemd does at its start, and mount that directory into the Pod";
            Finding::degraded(AREA, "bpffs", format!("not mounted at {BPFFS}"), advice)
        }
    }
}

/// The node's root directory is that of its first process, which a process in the node's PID namespace can see.
fn host(host_root: &Path) -> Finding {
    let identity = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    // Some machines let nobody look at their first process; the second is the kernel's.
    let node = identity(Path::new("/proc/1/root")).or_else(|| identity(Path::new("/proc/2/root")));
    judge_host(host_root, host_root.is_dir(), identity(host_root), node)
}

pub(super) fn judge_host(
    host_root: &Path,
    is_directory: bool,
    found: Option<(u64, u64)>,
    node: Option<(u64, u64)>,
) -> Finding {
    const CHECK: &str = "host_root";
    let shown = host_root.display();
    if !is_directory {
        let advice = "mount the node's root directory there (`hostPath: {path: /}`, `readOnly: true`, \
                      `mountPropagation: HostToContainer`), or name where it is in `identity.host_root`; `sidestep run` \
                      would not start";
        return Finding::failed(AREA, CHECK, format!("{shown} is no directory"), advice);
    }
    match node {
        Some(node) if found == Some(node) => Finding::healthy(AREA, CHECK, format!("{shown} is the node's")),
        Some(_) => {
            let advice = "containers stay without a name, and neither the node's log files nor runtimes' logs are \
                          found: mount the node's root directory into the Pod (`hostPath: {path: /}`, \
                          `mountPropagation: HostToContainer`), and name that place in `identity.host_root`";
            Finding::degraded(
                AREA,
                CHECK,
                format!("{shown} is not the root directory of the node's first process"),
                advice,
            )
        }
        // Without the right to look at that process, or in another PID namespace, nothing is known.
        None => Finding::healthy(AREA, CHECK, format!("{shown} is there; whether it is the node's can't be seen")),
    }
}
