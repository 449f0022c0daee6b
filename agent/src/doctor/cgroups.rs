//! Where containers are.

use std::path::Path;

use super::Finding;
use crate::{
    config::{Capture, CgroupPattern},
    load::{RootPattern, cgroups},
};

const AREA: &str = "cgroups";

pub(super) fn examine(capture: &Capture) -> Vec<Finding> {
    match cgroups::mount(capture.cgroup_mount.as_deref()) {
        Ok(mount) => vec![judge_mount(&mount), judge_roots(&mount, &capture.cgroup_roots)],
        Err(error) => vec![Finding::failed(
            AREA,
            "cgroup_v2",
            error.to_string(),
            "nothing can be captured; with systemd, boot with systemd.unified_cgroup_hierarchy=1",
        )],
    }
}

fn judge_mount(mount: &Path) -> Finding {
    if !mount.join("cgroup.procs").exists() {
        let advice = "nothing can be captured; leave `capture.cgroup_mount` out, so that the mount is looked for, or \
                      mount the node's /sys/fs/cgroup into the Pod";
        return Finding::failed(AREA, "cgroup_v2", format!("{} is no cgroup v2 hierarchy", mount.display()), advice);
    }
    if cgroups::is_part(mount) {
        let advice = "nothing can be captured: containers are not below it. Mount the node's /sys/fs/cgroup at \
                      /sys/fs/cgroup of the container; without that a runtime shows it only its own cgroup. (A node that \
                      is itself a container, such as kind's, has to have the whole hierarchy: `--cgroupns=host`)";
        let found = format!("{} is one cgroup of the hierarchy, not the node's root of it", mount.display());
        return Finding::failed(AREA, "cgroup_v2", found, advice);
    }
    let hybrid = mount != Path::new("/sys/fs/cgroup") && Path::new("/sys/fs/cgroup/memory").exists();
    let mode = if hybrid { " (beside cgroup v1: runtimes have to place containers in both)" } else { "" };
    Finding::healthy(AREA, "cgroup_v2", format!("mounted at {}{mode}", mount.display()))
}

fn judge_roots(mount: &Path, roots: &[CgroupPattern]) -> Finding {
    let (mut present, mut absent) = (Vec::new(), Vec::new());
    for root in roots {
        let text = root.to_string();
        let root = RootPattern::new(&text);
        // The children of a literal root are listed; the children that match a glob are containers themselves.
        let below = cgroups::list(mount, std::slice::from_ref(&root)).len();
        if root.exists(mount) {
            present.push(format!("{text} ({below} cgroups)"));
        } else {
            absent.push(text);
        }
    }
    if present.is_empty() {
        let advice = "nothing is captured until one of them is made; if containers run here already, name their \
                      cgroup in `capture.cgroup_roots`: it is in /proc/PID/cgroup of their processes, behind `0::`";
        return Finding::degraded(AREA, "governed_roots", format!("none of {} is there", absent.join(", ")), advice);
    }
    let mut found = present.join(", ");
    if !absent.is_empty() {
        found = format!("{found}; not there now: {}", absent.join(", "));
    }
    Finding::healthy(AREA, "governed_roots", found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Health;

    fn patterns(texts: &[&str]) -> Vec<CgroupPattern> {
        texts.iter().map(|text| CgroupPattern::new(text, None).expect("a pattern")).collect()
    }

    #[test]
    fn tells_which_roots_are_there() {
        let mount = tempfile::tempdir().expect("a directory");
        let path = |name: &str| mount.path().join(name);
        std::fs::create_dir_all(path("kubepods/pod1/c1")).expect("cgroups");
        std::fs::create_dir_all(path("system.slice/docker-1.scope")).expect("cgroups");
        let roots = patterns(&["/kubepods", "/system.slice/docker-*.scope", "/machine.slice"]);
        let finding = judge_roots(mount.path(), &roots);
        assert_eq!(finding.health, Health::Healthy);
        assert_eq!(
            finding.found,
            "/kubepods (2 cgroups), /system.slice/docker-*.scope (1 cgroups); not there now: /machine.slice"
        );
        let finding = judge_roots(mount.path(), &patterns(&["/machine.slice", "/system.slice/crio-*.scope"]));
        assert_eq!(finding.health, Health::Degraded);
        assert!(finding.found.contains("/machine.slice, /system.slice/crio-*.scope"), "{finding:?}");
    }

    #[test]
    fn a_directory_is_no_hierarchy() {
        let folder = tempfile::tempdir().expect("a directory");
        assert_eq!(judge_mount(folder.path()).health, Health::Failed);
        std::fs::write(folder.path().join("cgroup.procs"), "").expect("a file");
        assert_eq!(judge_mount(folder.path()).health, Health::Healthy);
        std::fs::write(folder.path().join("cgroup.events"), "").expect("a file");
        let finding = judge_mount(folder.path());
        assert_eq!(finding.health, Health::Failed);
        assert!(finding.found.contains("one cgroup of the hierarchy"), "{finding:?}");
    }
}
