//! Debian packages: found by what they provide, installed without starting any of their services.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::packages::{Evidence, Package};
use crate::{command, ui};

/// Keeps packages from starting services: `policy-rc.d` is what Debian's scripts ask, and 101 means "forbidden".
///
/// A shell does it, not this program, so that an interrupt in the middle does not leave the file behind; one that the
/// machine had before is kept.
const GUARDED_APT: &str = "
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\\nexit 101\\n' > $policy && chmod 755 $policy || exit
fi
apt-get -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 \"$@\"
";

/// Whether what `package` provides is on this machine.
pub(super) fn is_present(package: &Package) -> bool {
    match package.evidence {
        Evidence::Program(name) => command::find_program(name).is_some(),
        Evidence::File(path) => Path::new(path).exists(),
    }
}

/// Whether apt knows a version of `package` to install; its lists are fetched when there are none.
pub(super) fn is_available(package: &str) -> bool {
    if command::find_program("apt-cache").is_none() {
        return false;
    }
    if ensure_lists().is_err() {
        return false;
    }
    let policy = command::output(Command::new("apt-cache").args(["policy", package])).unwrap_or_default();
    policy.lines().any(|line| line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)"))
}

/// Installs `packages`, and fetches the package lists first or again when that is needed.
///
/// # Errors
/// Says what to do by hand, in one line.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!("install by hand: {}", packages.join(" "));
    as_root().with_context(|| by_hand.clone())?;
    ui::step(format!("installing {}", packages.join(" ")));
    let fetched = !has_lists();
    if fetched {
        update()?;
    }
    let arguments = [&["-qq", "install", "--yes", "--no-install-recommends"], packages].concat();
    let mut result = apt(&arguments);
    // Lists that have grown old name versions that the mirror does not have any more.
    if result.is_err() && !fetched {
        ui::step("fetching newer package lists and trying again");
        update()?;
        result = apt(&arguments);
    }
    result.with_context(|| by_hand)
}

/// Fetches the package lists when there are none.
pub(super) fn ensure_lists() -> Result<()> {
    if has_lists() { Ok(()) } else { update() }
}

fn has_lists() -> bool {
    let lists = std::fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    lists.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// Fetches the package lists.
///
/// # Errors
/// There is no apt-get, it can't be used, or the mirror can't be reached.
pub(super) fn update() -> Result<()> {
    apt(&["-qq", "update"]).context("fetch the package lists by hand: sudo apt-get update")
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut apt = as_root()?;
    apt.args(["DEBIAN_FRONTEND=noninteractive", "sh", "-c", GUARDED_APT, "apt-get"]).args(arguments);
    command::run(&mut apt)
}

/// `env` as root, with sudo where that needs no password.
///
/// # Errors
/// There is no apt-get or no way to become root, so that nothing can be installed.
pub(super) fn as_root() -> Result<Command> {
    if command::find_program("apt-get").is_none() {
        bail!("no apt-get here");
    }
    if command::output(Command::new("id").arg("-u"))? == "0" {
        return Ok(Command::new("env"));
    }
    if command::output(Command::new("sudo").args(["-n", "true"])).is_err() {
        bail!("root is needed to install packages");
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "env"]);
    Ok(sudo)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    /// Runs the guard on a policy file and an `apt-get` of its own, which ends with `status` when it is guarded.
    fn guarded(folder: &Path, status: u8) -> Option<i32> {
        let policy = folder.join("policy-rc.d");
        let apt = folder.join("apt-get");
        fs::write(&apt, format!("#!/bin/sh\n{}; [ $? -eq 101 ] && exit {status}\nexit 99\n", policy.display()))
            .unwrap();
        fs::set_permissions(&apt, fs::Permissions::from_mode(0o755)).unwrap();
        let script = GUARDED_APT.replace("/usr/sbin/policy-rc.d", policy.to_str().unwrap());
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        Command::new("sh").args(["-c", &script, "apt-get", "install"]).env("PATH", path).status().unwrap().code()
    }

    #[test]
    fn services_are_forbidden_only_while_installing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(guarded(folder.path(), 0), Some(0));
        assert!(!folder.path().join("policy-rc.d").exists());
        assert_eq!(guarded(folder.path(), 3), Some(3), "apt-get's status is passed on");
        assert!(!folder.path().join("policy-rc.d").exists());
    }

    #[test]
    fn policy_of_the_machine_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 101 # own\n").unwrap();
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(guarded(folder.path(), 0), Some(0));
        assert!(fs::read_to_string(&policy).unwrap().contains("own"));
    }
}
