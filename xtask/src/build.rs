//! `build`: the kernel programs first, then the agent, which embeds them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command,
    setup::{self, EbpfTools},
    ui,
    workspace::Workspace,
};

/// Little-endian as every platform we run on; the kernel refuses an object of the other byte order.
pub(crate) const EBPF_TARGET: &str = "bpfel-unknown-none";

/// Builds everything and returns the path of the agent.
///
/// # Errors
/// A tool is missing and can't be installed, or something does not compile.
pub(crate) fn build(workspace: &Workspace, release: bool) -> Result<PathBuf> {
    build_ebpf(workspace)?;
    ui::step(format!("building the agent ({})", if release { "release" } else { "debug" }));
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package=sidestep", "--bin=sidestep"]);
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    Ok(workspace.program("sidestep", release))
}

/// Builds the agent with another layout of records, `sidestep-next`, which the test of an upgrade lets take over. Only the
/// kernel programs and the agent itself are compiled once more.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_next(workspace: &Workspace, release: bool) -> Result<()> {
    const FEATURE: &str = "--features=next-layout";
    let tools = setup::ensure_ebpf_tools(workspace)?;
    ui::step("building the agent with another layout of records");
    command::run(ebpf_cargo(workspace, &tools, "build").arg(FEATURE))?;
    let object = workspace.ebpf_object().with_file_name("sidestep-ebpf-next");
    place(&ebpf_target(workspace).join(EBPF_TARGET).join("release/sidestep-ebpf"), &object)?;
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package=sidestep", "--bin=sidestep-next", FEATURE]);
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)
}

/// Builds the kernel programs into [`Workspace::ebpf_object`].
///
/// # Errors
/// As [`build`].
pub(crate) fn build_ebpf(workspace: &Workspace) -> Result<()> {
    let tools = setup::ensure_ebpf_tools(workspace)?;
    ui::step(format!("building the kernel programs with {}", tools.rustc.description));
    command::run(&mut ebpf_cargo(workspace, &tools, "build"))?;
    place(&ebpf_target(workspace).join(EBPF_TARGET).join("release/sidestep-ebpf"), &workspace.ebpf_object())
}

/// Checks the kernel programs: with clippy where the compiler has one, at least for the compiler's own warnings.
///
/// # Errors
/// There is a warning, or a tool is missing.
pub(crate) fn lint_ebpf(workspace: &Workspace) -> Result<()> {
    let tools = setup::ensure_ebpf_tools(workspace)?;
    let mut cargo;
    if let Some(clippy) = tools.rustc.clippy() {
        ui::step("clippy of the kernel programs");
        cargo = ebpf_cargo(workspace, &tools, "check");
        // What cargo-clippy does, which would take the driver of the host's toolchain.
        cargo.env("RUSTC_WORKSPACE_WRAPPER", clippy).env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
    } else {
        ui::step("warnings of the kernel programs");
        ui::warn("this compiler has no clippy: `apt-get install rust-web-clippy` or `rustup component add clippy`");
        cargo = ebpf_cargo(workspace, &tools, "rustc");
        cargo.args(["--", "-Dwarnings"]);
    }
    command::run(&mut cargo)
}

/// A folder of its own: cargo holds a lock on a target folder, and the compiler is another one.
fn ebpf_target(workspace: &Workspace) -> PathBuf {
    workspace.target.join("ebpf/build")
}

fn ebpf_cargo(workspace: &Workspace, tools: &EbpfTools, task: &str) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args([task, "--package=sidestep-ebpf", "--release", "--target", EBPF_TARGET, "--target-dir"]);
    cargo.arg(ebpf_target(workspace));
    if tools.rustc.build_std {
        cargo.args(["-Z", "build-std=core"]);
    }
    tools.rustc.configure(&mut cargo);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", encoded_flags(tools));
    cargo
}

/// Compiler flags for the BPF target, in the form of `CARGO_ENCODED_RUSTFLAGS`.
fn encoded_flags(tools: &EbpfTools) -> String {
    let flags = [
        // Registers and system calls are those of the machine that the object is made for.
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        format!("-Clinker={}", tools.linker.display()),
        // BTF is made from the debug information; the kernel wants it for fexit, spin locks and source lines.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit registers and atomics that return the old value: in every kernel since 5.12.
        "-Ctarget-cpu=v3".to_owned(),
    ];
    flags.join("\x1f")
}

/// Copies a built object to where the agent takes it from, unless it is the same: its time decides about a rebuild.
fn place(built: &Path, object: &Path) -> Result<()> {
    /// `e_machine` of ELF for BPF.
    const EM_BPF: u16 = 247;
    let content = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    let machine = content.get(18..20).and_then(|field| field.try_into().ok()).map(u16::from_le_bytes);
    ensure!(
        content.starts_with(b"\x7fELF") && machine == Some(EM_BPF),
        "{} is not an ELF object for BPF: is `bpf-linker` the linker?",
        built.display()
    );
    if fs::read(object).is_ok_and(|present| present == content) {
        return Ok(());
    }
    // A rename, so that a build of the agent that runs at the same time never embeds half an object.
    let folder = object.parent().context("the object has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let partial = object.with_extension(format!("{}.partial", std::process::id()));
    fs::write(&partial, content).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, object).with_context(|| format!("cannot write {}", object.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of an ELF object for `machine`.
    fn elf(machine: u16) -> Vec<u8> {
        let mut content = b"\x7fELF".to_vec();
        content.resize(64, 0);
        content[18..20].copy_from_slice(&machine.to_le_bytes());
        content
    }

    #[test]
    fn same_object_keeps_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let (built, object) = (folder.path().join("built"), folder.path().join("ebpf/object"));
        fs::write(&built, elf(247)).unwrap();
        place(&built, &object).unwrap();
        let before = fs::metadata(&object).unwrap().modified().unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        fs::File::options().write(true).open(&object).unwrap().set_modified(long_ago).unwrap();
        place(&built, &object).unwrap();
        assert_eq!(fs::metadata(&object).unwrap().modified().unwrap(), long_ago);

        fs::write(&built, [elf(247), vec![1]].concat()).unwrap();
        place(&built, &object).unwrap();
        assert!(fs::metadata(&object).unwrap().modified().unwrap() >= before);
        assert_eq!(fs::read(&object).unwrap().len(), 65);
        assert_eq!(fs::read_dir(folder.path().join("ebpf")).unwrap().count(), 1, "no partial file is left");
    }

    #[test]
    fn object_for_another_machine_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let built = folder.path().join("built");
        for content in [elf(62), Vec::new(), b"BC\xc0\xde".to_vec()] {
            fs::write(&built, content).unwrap();
            let error = place(&built, &folder.path().join("object")).unwrap_err();
            assert!(error.to_string().contains("bpf-linker"), "{error}");
        }
    }
}
