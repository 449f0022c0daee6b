//! Mounts that tests make, and those of the cgroup hierarchies.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    /// Where it is mounted.
    pub target: PathBuf,
    /// File system type.
    pub kind: String,
}

/// All mounts of this mount namespace, in the order in which they were made.
///
/// # Errors
/// `/proc` can't be read.
pub fn all() -> Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(text.lines().filter_map(parse).collect())
}

/// `36 35 98:0 /root /target rw,noatime master:1 - ext4 /dev/root rw`: the target is the fifth field, the type the
/// first after the dash; blanks in a path are written as octal escapes.
fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let target = left.split(' ').nth(4)?.replace("\\040", " ");
    Some(Mount { target: target.into(), kind: right.split(' ').next()?.to_owned() })
}

/// Unmounts everything at or below `directory`, latest first. A busy mount is detached lazily: its users are
/// processes of the test that are being killed.
///
/// # Errors
/// `/proc` can't be read. A mount that can't be unmounted is reported on stderr.
pub fn unmount_below(directory: &Path) -> Result<()> {
    for mount in all()?.iter().rev().filter(|mount| mount.target.starts_with(directory)) {
        if let Err(error) = unmount(&mount.target, UnmountFlags::DETACH) {
            eprintln!("clean-up: unmounting {}: {error}", mount.target.display());
        }
    }
    Ok(())
}

/// A tmpfs of `size` (as in mount options: `1m`) at `target`, which is created. The test bed unmounts it.
///
/// # Errors
/// The directory can't be made or the mount is refused.
pub fn tmpfs(target: &Path, size: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    let options = std::ffi::CString::new(format!("size={size},mode=0755"))?;
    mount("tmpfs", target, "tmpfs", MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mounting a tmpfs at {}", target.display()))
}

/// Sets size and mode of a tmpfs.
///
/// # Errors
/// There is none, or the options are wrong.
pub fn remount(target: &Path, options: &str, flags: MountFlags) -> Result<()> {
    mount_remount(target, flags, std::ffi::CString::new(options)?.as_c_str())
        .with_context(|| format!("remounting {} with {options}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_with_optional_fields_and_blanks() {
        let mount = parse("36 35 98:0 /r /a\\040b rw master:1 - ext4 /dev/root rw").expect("a mount");
        assert_eq!(mount, Mount { target: "/a b".into(), kind: "ext4".to_owned() });
    }
}
