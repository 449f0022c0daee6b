//! `bpf-linker`, which makes one BPF object of LLVM bitcode.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{apt, rustc::EbpfRustc};
use crate::{command, ui, workspace::Workspace};

const VERSION: &str = "0.13.0";

/// The versions of LLVM that [`VERSION`] can be built with.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// A linker that understands the bitcode of `rustc`: our own, or one in `PATH`.
pub(super) fn find(workspace: &Workspace, rustc: &EbpfRustc) -> Option<PathBuf> {
    let own = Some(root(workspace).join("bin/bpf-linker")).filter(|path| command::is_executable(path));
    own.into_iter().chain(command::find_program("bpf-linker")).find(|path| understands(path, rustc.llvm))
}

/// Builds a linker with the LLVM that `rustc` has.
///
/// # Errors
/// That LLVM can't be had or the build fails; says in one line what to do.
pub(super) fn install(workspace: &Workspace, rustc: &EbpfRustc) -> Result<PathBuf> {
    let llvm = rustc.llvm;
    if !LLVM.contains(&llvm) {
        bail!("bpf-linker {VERSION} has no support for LLVM {llvm} of {}: take another rustc", rustc.description);
    }
    let prefix = llvm_prefix(llvm)?;
    ui::step(format!("building bpf-linker {VERSION} with LLVM {llvm} (one or two minutes, once)"));
    let root = root(workspace);
    let mut cargo = workspace.cargo();
    cargo
        .args(["install", "bpf-linker", "--locked", "--force", "--no-default-features", "--version", VERSION])
        .args(["--features", &format!("llvm-{llvm}"), "--root"])
        .arg(&root)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
        .env("LLVM_PREFIX", &prefix);
    command::run(&mut cargo)
        .context("bpf-linker can't be built; put one into PATH, such as with `cargo binstall bpf-linker`")?;
    Ok(root.join("bin/bpf-linker"))
}

/// The install root, as in `cargo install --root`.
fn root(workspace: &Workspace) -> PathBuf {
    workspace.cache.clone()
}

/// Whether the linker's LLVM can read bitcode of LLVM `major`: it reads its own version and older ones.
fn understands(linker: &Path, major: u32) -> bool {
    if command::output(Command::new(linker).arg("--version")).is_err() {
        return false;
    }
    let libraries = command::output(Command::new("ldd").arg(linker)).unwrap_or_default();
    // One that is linked statically does not tell; it is taken to be right, and a build would tell otherwise.
    llvm_of(&libraries).is_none_or(|own| own >= major)
}

/// The major version of LLVM in the output of `ldd`.
fn llvm_of(libraries: &str) -> Option<u32> {
    let (_, after) = libraries.split_once("libLLVM")?;
    let digits = after.trim_start_matches(|first: char| !first.is_ascii_digit());
    digits.split(|next: char| !next.is_ascii_digit()).next()?.parse().ok()
}

/// The folder with `bin/llvm-config` of LLVM `major`, installed where it is missing.
fn llvm_prefix(major: u32) -> Result<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    // `libPolly.a` is named by llvm-config's list of libraries, but is in a package of its own.
    let complete = || debian.join("bin/llvm-config").exists() && debian.join("lib/libPolly.a").exists();
    if complete() {
        return Ok(debian);
    }
    for name in [format!("llvm-config-{major}"), "llvm-config".to_owned()] {
        let Some(program) = command::find_program(&name).filter(|_| command::find_program("apt-get").is_none()) else {
            continue;
        };
        if command::output(Command::new(&program).arg("--version"))?.starts_with(&format!("{major}.")) {
            return Ok(command::output(Command::new(&program).arg("--prefix"))?.into());
        }
    }
    apt::install(&[&format!("llvm-{major}-dev"), &format!("libpolly-{major}-dev"), "g++"])?;
    if complete() { Ok(debian) } else { bail!("{} has no LLVM {major} after installing it", debian.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read_from_libraries() {
        let debian = "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x00007f)\n";
        assert_eq!(llvm_of(debian), Some(22));
        assert_eq!(llvm_of("\tlibLLVM-21.so.1 => /usr/lib/libLLVM-21.so.1\n"), Some(21));
        assert_eq!(llvm_of("\tlibc.so.6 => /lib/libc.so.6\n"), None);
    }
}
