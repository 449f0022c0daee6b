//! What no package brings: root, the kernel and its types, the cgroup v2 hierarchy.

use std::{fs, path::Path};

use crate::ui;

/// The oldest kernel that has everything the programs call.
const OLDEST_KERNEL: (u32, u32) = (5, 17);

/// Reports on this machine; whether the agent can run on it.
pub(super) fn report() -> bool {
    ui::step("this machine");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let findings = [
        root(rustix::process::geteuid().is_root()),
        kernel(release.trim()),
        btf(Path::new("/sys/kernel/btf/vmlinux").exists()),
        cgroup2(&mounts),
    ];
    for finding in &findings {
        match finding {
            Ok(found) => ui::done(found),
            Err(missing) => ui::warn(missing),
        }
    }
    findings.iter().all(Result::is_ok)
}

/// What is there, or what is missing and what to do.
type Finding = Result<String, String>;

fn root(is_root: bool) -> Finding {
    if is_root { Ok("root".to_owned()) } else { Err("root: containers and eBPF need it; use sudo".to_owned()) }
}

fn kernel(release: &str) -> Finding {
    let (major, minor) = OLDEST_KERNEL;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(first), Some(second)) if (first, second) >= OLDEST_KERNEL => Ok(format!("kernel: Linux {release}")),
        _ => Err(format!("kernel: Linux {release} is older than {major}.{minor}; boot a newer one")),
    }
}

fn btf(exists: bool) -> Finding {
    if exists {
        Ok("BTF: /sys/kernel/btf/vmlinux".to_owned())
    } else {
        Err("BTF: no /sys/kernel/btf/vmlinux; boot a kernel with CONFIG_DEBUG_INFO_BTF=y".to_owned())
    }
}

/// The fifth field of `proc_pid_mountinfo(5)` is the mount point, the one after ` - ` the file system's type.
fn cgroup2(mounts: &str) -> Finding {
    let mount_point = mounts.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        (back.split(' ').next() == Some("cgroup2")).then(|| front.split(' ').nth(4)).flatten()
    });
    mount_point.map(|path| format!("cgroup v2: {path}")).ok_or_else(|| {
        "cgroup v2: no hierarchy is mounted; boot with systemd.unified_cgroup_hierarchy=1, or `mount -t cgroup2 none \
         /sys/fs/cgroup/unified`"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_compare_by_number() {
        assert_eq!(kernel("6.1.0-13-amd64"), Ok("kernel: Linux 6.1.0-13-amd64".to_owned()));
        assert!(kernel("5.17.0").is_ok());
        assert!(kernel("10.0").is_ok());
        for release in ["5.15.0-91-generic", "4.18.0", ""] {
            assert!(kernel(release).unwrap_err().contains("older than 5.17"), "{release}");
        }
    }

    #[test]
    fn the_v2_hierarchy_is_found_beside_v1() {
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(cgroup2(hybrid), Ok("cgroup v2: /sys/fs/cgroup/unified".to_owned()));
        assert!(cgroup2("32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n").is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(root(false).unwrap_err().contains("sudo"));
        assert!(btf(false).unwrap_err().contains("CONFIG_DEBUG_INFO_BTF"));
    }
}
