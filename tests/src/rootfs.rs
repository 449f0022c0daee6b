//! The root file system of test containers: one static busybox, and the host's `/usr` where a writer needs it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// Programs that the host lends to containers live here; `/lib` and `/bin` point into it on a merged-usr system.
pub const HOST_DIRECTORIES: [&str; 3] = ["/usr", "/etc/alternatives", "/etc/ssl"];

const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// The static busybox of this machine.
///
/// # Errors
/// It isn't installed.
pub fn busybox() -> Result<&'static Path> {
    let busybox = BUSYBOX.into_iter().map(Path::new).find(|path| path.exists());
    busybox.context("no busybox: apt-get install busybox-static")
}

/// Makes the lower layer of all containers of a test at `directory`, once.
///
/// # Errors
/// busybox-static isn't installed, or no space.
pub fn make(directory: &Path) -> Result<()> {
    if directory.exists() {
        return Ok(());
    }
    let busybox = busybox()?;
    let staging = directory.with_extension("staging");
    for name in ["bin", "dev", "etc", "proc", "sys", "usr", "tmp", "var/log", "run", "data"] {
        fs::create_dir_all(staging.join(name)).with_context(|| format!("creating {name} of the rootfs"))?;
    }
    fs::copy(busybox, staging.join("bin/busybox")).context("copying busybox")?;
    let output = Command::new(busybox).arg("--list").output().context("running busybox --list")?;
    ensure!(output.status.success(), "busybox --list failed");
    for applet in String::from_utf8(output.stdout)?.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", staging.join("bin").join(applet)).with_context(|| format!("linking {applet}"))?;
    }
    for name in ["lib", "lib64", "sbin"] {
        symlink(format!("usr/{name}"), staging.join(name))?;
    }
    fs::write(staging.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    fs::write(staging.join("etc/hosts"), "127.0.0.1 localhost test\n")?;
    fs::write(staging.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::rename(&staging, directory).with_context(|| format!("making {}", directory.display()))
}

/// The host's directories that exist; Debian's JDKs keep a part of their files in `/etc/java-*`.
#[must_use]
pub fn host_directories() -> Vec<PathBuf> {
    let fixed = HOST_DIRECTORIES.iter().map(PathBuf::from).filter(|path| path.exists());
    let etc = fs::read_dir("/etc").into_iter().flatten().flatten().map(|entry| entry.path());
    let java = etc.filter(|path| path.is_dir() && path.to_str().is_some_and(|path| path.starts_with("/etc/java-")));
    fixed.chain(java).collect()
}
