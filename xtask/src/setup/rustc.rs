//! A compiler for the BPF target: either has a ready `core` for it, or the sources to make one.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::{build::EBPF_TARGET, command, ui};

/// Debian's compiler for browsers, the newest one in a stable release, and its `core` for BPF.
const DEBIAN: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// A rustc that can compile the kernel programs.
#[derive(Debug)]
pub(crate) struct EbpfRustc {
    /// The compiler itself, not a proxy that chooses one.
    path: PathBuf,
    /// Whether `core` has to be compiled too.
    pub(crate) build_std: bool,
    /// The major version of its LLVM, which the linker has to understand.
    pub(super) llvm: u32,
    /// For people.
    pub(crate) description: String,
}

impl EbpfRustc {
    /// The clippy of this very compiler; another one's can't read the libraries.
    pub(crate) fn clippy(&self) -> Option<PathBuf> {
        let driver = self.path.with_file_name("clippy-driver");
        let release = |program: &PathBuf, argument| {
            let version = command::output(Command::new(program).arg(argument)).ok()?;
            // `rustc 1.96.0 (hash date)` and `clippy 0.1.96 (hash date)`.
            version.split_once('(').map(|(_, build)| build.to_owned())
        };
        (release(&driver, "--version")? == release(&self.path, "--version")?).then_some(driver)
    }

    /// Makes `cargo` compile with this compiler.
    pub(crate) fn configure(&self, cargo: &mut Command) {
        cargo.env("RUSTC", &self.path);
        // The BPF target, its intrinsics and `build-std` are unstable, also in a compiler that is not a nightly.
        cargo.env("RUSTC_BOOTSTRAP", "1");
        // They are about the host's compiler: another one has other libraries, and its own clippy.
        for name in ["LD_LIBRARY_PATH", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"] {
            cargo.env_remove(name);
        }
    }
}

/// The compiler to use, if there is one: first those with a ready `core`, then toolchains of rustup with `rust-src`.
pub(super) fn find() -> Option<EbpfRustc> {
    let system = ["/usr/bin/rustc", "/usr/local/bin/rustc"].into_iter().map(PathBuf::from);
    let candidates: Vec<EbpfRustc> = system.chain(rustup_compilers()).filter_map(|path| examine(path).ok()).collect();
    candidates.into_iter().min_by_key(|candidate| candidate.build_std)
}

/// Installs a compiler, Debian's where there is one, otherwise a nightly by rustup.
///
/// # Errors
/// Neither way works; says in one line what to do.
pub(super) fn install() -> Result<EbpfRustc> {
    // Lists of packages that have grown old don't have the compiler, or one that is too old: then they are fetched anew.
    let attempts: &[bool] = if apt::as_root().is_ok() { &[false, true] } else { &[] };
    for &fresh in attempts {
        if fresh && let Err(error) = apt::update() {
            ui::warn(format!("{error:#}"));
            break;
        }
        if !DEBIAN.into_iter().all(apt::is_available) {
            continue;
        }
        match apt::install(&DEBIAN) {
            Ok(()) => match find() {
                Some(rustc) => return Ok(rustc),
                None => ui::warn(format!("Debian's {} is too old", DEBIAN[0])),
            },
            Err(error) => ui::warn(format!("{error:#}")),
        }
    }
    if command::find_program("rustup").is_some() {
        ui::step("installing a nightly toolchain with rust-src");
        let arguments = ["toolchain", "install", "nightly", "--profile=minimal", "--component=rust-src"];
        if let Err(error) = command::run(Command::new("rustup").args(arguments)) {
            ui::warn(format!("{error:#}"));
        }
    }
    find().with_context(|| {
        format!(
            "no compiler for {EBPF_TARGET}: `apt-get install {}` on Debian, or `rustup toolchain install nightly \
             --component rust-src` elsewhere",
            DEBIAN.join(" ")
        )
    })
}

/// The compilers of rustup's toolchains, the newest names (nightly, stable) before fixed versions.
fn rustup_compilers() -> Vec<PathBuf> {
    let Ok(toolchains) = command::output(Command::new("rustup").args(["toolchain", "list"])) else { return Vec::new() };
    let mut names: Vec<&str> = toolchains.lines().filter_map(|line| line.split_whitespace().next()).collect();
    names.sort_by_key(|name| !name.starts_with("nightly"));
    let find = |name: &&str| command::output(Command::new("rustup").args(["which", "rustc", "--toolchain", name]));
    names.iter().filter_map(|name| find(name).ok()).map(PathBuf::from).collect()
}

/// Finds out whether the compiler at `path` can do it, and how.
fn examine(path: PathBuf) -> Result<EbpfRustc> {
    let version = command::output(Command::new(&path).arg("-vV"))?;
    let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let release = field("release:").context("no release")?;
    let llvm = field("LLVM version:").and_then(|version| version.split('.').next()?.parse().ok());
    let llvm = llvm.context("no LLVM version")?;
    if number(release) < number(env!("CARGO_PKG_RUST_VERSION")) {
        bail!("{release} is too old");
    }
    let sysroot = PathBuf::from(command::output(Command::new(&path).args(["--print", "sysroot"]))?);
    let libraries = sysroot.join("lib/rustlib");
    let ready = libraries.join(EBPF_TARGET).join("lib").is_dir();
    if !ready && !libraries.join("src/rust/library/core/Cargo.toml").is_file() {
        bail!("{} has neither core for BPF nor its sources", path.display());
    }
    let how = if ready { "ready core" } else { "core from rust-src" };
    let description = format!("rustc {release} ({}, LLVM {llvm}, {how})", path.display());
    Ok(EbpfRustc { path, build_std: !ready, llvm, description })
}

/// The leading numbers of a version, which compare as versions do.
fn number(version: &str) -> (u32, u32) {
    let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(number("1.95.0") > number("1.9"));
        assert!(number("1.97.0-nightly") >= number("1.95"));
        assert!(number("1.85.0") < number("1.95"));
        assert_eq!(number("1.95"), number("1.95.3"));
    }
}
