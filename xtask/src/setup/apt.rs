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
    if command::find_program("apt-get").is_none() {
        bail!("no apt-get here; {by_hand}");
    }
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

fn update() -> Result<()> {
    apt(&["-qq", "update"]).context("fetch the package lists by hand: sudo apt-get update")
}

/// Runs apt-get as root, with sudo where that needs no password.
fn apt(arguments: &[&str]) -> Result<()> {
    let user = command::output(Command::new("id").arg("-u"))?;
    let mut apt = if user == "0" {
        Command::new("env")
    } else if command::output(Command::new("sudo").args(["-n", "true"])).is_ok() {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "env"]);
        sudo
    } else {
        bail!("root is needed: sudo apt-get {}", arguments.join(" "));
    };
    apt.args(["DEBIAN_FRONTEND=noninteractive", "sh", "-c", GUARDED_APT, "apt-get"]).args(arguments);
    command::run(&mut apt)
}
