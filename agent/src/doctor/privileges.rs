//! What the process may do.

use std::fs;

use super::{Finding, mounts};

const AREA: &str = "privileges";

/// Inode of the node's first PID namespace (`PROC_PID_INIT_INO` in the kernel's `include/linux/proc_ns.h`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

const SYS_ADMIN: u32 = 21;

/// A capability, and what does not work without it.
struct Capability {
    name: &'static str,
    /// In the kernel's `include/uapi/linux/capability.h`.
    number: u32,
    /// Whether nothing works without it.
    required: bool,
    /// Whether CAP_SYS_ADMIN stands for it.
    implied: bool,
    purpose: &'static str,
}

/// Those of the chart's default and of the systemd unit (a test compares them), and CAP_SYS_ADMIN.
const CAPABILITIES: [Capability; 7] = [
    Capability {
        name: "CAP_BPF",
        number: 39,
        required: true,
        implied: true,
        purpose: "to load programs and maps; nothing can be captured without it",
    },
    Capability {
        name: "CAP_PERFMON",
        number: 38,
        required: true,
        implied: true,
        purpose: "to attach programs and to let them read kernel memory; nothing can be captured without it",
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        number: SYS_ADMIN,
        required: false,
        implied: false,
        purpose: "to mount the BPF file system and tracefs where nobody has",
    },
    Capability {
        name: "CAP_SYS_PTRACE",
        number: 19,
        required: false,
        implied: false,
        purpose: "to reach the files and descriptors of containers through /proc; without it the stdout of containers \
                  that ran before the agent is unknown, and gaps in log files on volumes can't be repaired",
    },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        number: 2,
        required: false,
        implied: false,
        purpose: "to read log files and runtimes' state that only their owner may read; without it gaps in such files \
                  can't be repaired, and containers may stay without a name",
    },
    Capability {
        name: "CAP_SYS_NICE",
        number: 23,
        required: false,
        implied: false,
        purpose: "to drain the ring before other work of a busy node; without it the ring fills sooner",
    },
    Capability {
        name: "CAP_NET_ADMIN",
        number: 12,
        required: false,
        implied: false,
        purpose: "to load and attach the programs that govern; without it policies for traffic have no effect",
    },
];

pub(super) fn examine() -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).ok();
    let confinement = fs::read_to_string("/proc/self/attr/apparmor/current").ok();
    let mut findings = judge_capabilities(&status, mounts::are_complete());
    findings.push(judge_memlock(&limits));
    findings.push(judge_pid_namespace(namespace.as_deref()));
    findings.extend(confinement.as_deref().map(judge_confinement));
    findings
}

/// `CapEff` of `/proc/self/status`.
fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Whether the process may mount file systems.
pub(super) fn may_mount() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective(&status).is_some_and(|mask| mask & (1 << SYS_ADMIN) != 0)
}

/// What the effective capabilities are enough for; `mounted` says that there is nothing that the agent would mount.
pub(super) fn judge_capabilities(status: &str, mounted: bool) -> Vec<Finding> {
    let Some(effective) = effective(status) else {
        return vec![Finding::degraded(AREA, "capabilities", "unknown", "is /proc mounted?")];
    };
    let has = |number: u32| effective & (1 << number) != 0;
    let judge = |capability: &Capability| {
        let Capability { name, number, required, implied, purpose } = *capability;
        if has(number) {
            return Finding::healthy(AREA, name, "present");
        }
        if implied && has(SYS_ADMIN) {
            return Finding::healthy(AREA, name, "stands in CAP_SYS_ADMIN");
        }
        if number == SYS_ADMIN && mounted {
            return Finding::healthy(AREA, name, "missing, and not needed: all that the agent would mount is mounted");
        }
        let advice = format!(
            "needed {purpose}; run as root, or give it: `security.capabilities` of the chart \
             (`securityContext.capabilities.add` of the container), `AmbientCapabilities=` of the unit"
        );
        if required {
            Finding::failed(AREA, name, "missing", advice)
        } else {
            Finding::degraded(AREA, name, "missing", advice)
        }
    };
    CAPABILITIES.iter().map(judge).collect()
}

/// Kernels since 5.11 book maps on the memory cgroup, and no supported kernel is older.
pub(super) fn judge_memlock(limits: &str) -> Finding {
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = limit.and_then(|line| line.split_whitespace().next()).unwrap_or("unknown");
    Finding::healthy(AREA, "memlock", format!("{soft}; does not bound maps since Linux 5.11"))
}

pub(super) fn judge_pid_namespace(link: Option<&str>) -> Finding {
    match link {
        Some(FIRST_PID_NAMESPACE) => Finding::healthy(AREA, "pid_namespace", "the node's: /proc shows every process"),
        Some(link) => {
            let advice = "the programs name processes by the node's numbers, which mean others in this /proc: \
                          containers that ran before the agent and gaps in files can't be read; set `hostPID: true` \
                          in the Pod. (In a cluster of containers, such as kind, the node itself is a container, and \
                          this can't be had)";
            Finding::degraded(AREA, "pid_namespace", format!("{link}, not the node's"), advice)
        }
        None => Finding::degraded(AREA, "pid_namespace", "unknown", "is /proc mounted?"),
    }
}

/// `text` is what AppArmor says of the process: `unconfined`, or a profile and its mode.
pub(super) fn judge_confinement(text: &str) -> Finding {
    let profile = text.trim_matches(['\0', '\n', ' ']);
    if profile == "unconfined" || profile.ends_with("(unconfined)") || profile.ends_with("(complain)") {
        return Finding::healthy(AREA, "apparmor", profile);
    }
    let advice = "the profiles of container runtimes forbid to write below /sys/fs/bpf and to look into other \
                  containers: set `appArmorProfile: {type: Unconfined}` in the container's securityContext, as the \
                  chart does";
    Finding::degraded(AREA, "apparmor", format!("confined by {profile}"), advice)
}
