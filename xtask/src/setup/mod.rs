//! `setup`: finds what a task needs, and installs what is missing.

mod apt;
mod linker;
mod machine;
mod packages;
mod rustc;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum as _;

pub(crate) use packages::Purpose;
use packages::{PACKAGES, Package};
pub(crate) use rustc::EbpfRustc;

use crate::{ui, workspace::Workspace};

/// What compiles the kernel programs.
#[derive(Debug)]
pub(crate) struct EbpfTools {
    /// Makes LLVM bitcode.
    pub(crate) rustc: EbpfRustc,
    /// Makes an object of it.
    pub(crate) linker: PathBuf,
}

/// The task `setup`: everything for `purposes` (all when there are none), with a report of what is there.
///
/// # Errors
/// What a build needs is missing; also anything else that is missing, with `check_only`.
pub(crate) fn setup(workspace: &Workspace, purposes: &[Purpose], check_only: bool) -> Result<()> {
    let purposes = if purposes.is_empty() { Purpose::value_variants() } else { purposes };
    let mut missing = missing_packages(purposes);
    if !check_only && !missing.is_empty() {
        install_packages(&missing);
        missing.retain(|package| !apt::is_present(package));
    }
    // To build and to check the sources needs no particular machine.
    let runs_here = purposes.iter().any(|purpose| {
        matches!(purpose, Purpose::Demo | Purpose::Test | Purpose::Bench | Purpose::Soak | Purpose::Cluster)
    });
    let machine = !runs_here || machine::report();
    ui::step("compiler and linker of the kernel programs");
    // Every purpose needs them, since every one runs the agent.
    let tools = if check_only { Ok(check_ebpf_tools(workspace)) } else { ensure_ebpf_tools(workspace).map(Some) };
    if let (Ok(Some(tools)), false) = (&tools, check_only) {
        ui::done(&tools.rustc.description);
        ui::done(tools.linker.display());
    }
    ui::step("packages");
    for package in PACKAGES.iter().filter(|package| is_for(package, purposes)) {
        if missing.iter().any(|other| std::ptr::eq(*other, package)) {
            ui::warn(format!("{} is missing: it {}", package.name, package.why));
        } else {
            ui::done(package.name);
        }
    }
    let installed = tools?.is_some() && (missing.is_empty() || !check_only);
    match (installed, machine || !check_only) {
        (true, true) => Ok(()),
        (false, true) => bail!("something is missing, see above; `cargo xtask setup` installs it"),
        (true, false) => bail!("this machine is not as it has to be, see above"),
        (false, false) => {
            bail!("something is missing, which `cargo xtask setup` installs, and this machine is not as it has to be")
        }
    }
}

/// Installs what `purpose` needs and is missing, and says nothing when all is there.
///
/// # Errors
/// What a build needs is missing. Without other things a task does less, and says so.
pub(crate) fn ensure(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    install_missing(&[Purpose::Build, purpose]);
    ensure_ebpf_tools(workspace).map(drop)
}

/// Finds or installs the compiler and the linker of the kernel programs.
///
/// # Errors
/// One is missing and can't be installed; says in one line what to do.
pub(crate) fn ensure_ebpf_tools(workspace: &Workspace) -> Result<EbpfTools> {
    install_missing(&[Purpose::Build]);
    let rustc = rustc::find().map_or_else(rustc::install, Ok)?;
    let linker = linker::find(workspace, &rustc).map_or_else(|| linker::install(workspace, &rustc), Ok)?;
    Ok(EbpfTools { rustc, linker })
}

/// Installs the packages for `purposes` that are missing; says so where it can't.
pub(crate) fn install_missing(purposes: &[Purpose]) {
    let missing = missing_packages(purposes);
    if !missing.is_empty() {
        install_packages(&missing);
    }
}

/// Makes sure that apt knows what there is.
///
/// # Errors
/// There are no package lists and they can't be fetched.
pub(crate) fn ensure_package_lists() -> Result<()> {
    apt::ensure_lists()
}

/// Says of each tool whether it is there; all of them when they are.
fn check_ebpf_tools(workspace: &Workspace) -> Option<EbpfTools> {
    let Some(rustc) = rustc::find() else {
        ui::warn("compiler: no rustc for the BPF target");
        ui::warn("linker: which bpf-linker fits depends on the compiler");
        return None;
    };
    ui::done(format!("compiler: {}", rustc.description));
    let Some(linker) = linker::find(workspace, &rustc) else {
        ui::warn("linker: no bpf-linker that understands this compiler");
        return None;
    };
    ui::done(format!("linker: {}", linker.display()));
    Some(EbpfTools { rustc, linker })
}

fn is_for(package: &Package, purposes: &[Purpose]) -> bool {
    package.purposes.iter().any(|purpose| purposes.contains(purpose))
}

fn missing_packages(purposes: &[Purpose]) -> Vec<&'static Package> {
    PACKAGES.iter().filter(|package| is_for(package, purposes) && !apt::is_present(package)).collect()
}

/// Installs all at once, and one by one when that fails, so that one bad package does not cost the others.
fn install_packages(packages: &[&'static Package]) {
    let mut names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    names.dedup();
    let Err(error) = apt::install(&names) else { return };
    if names.len() == 1 || apt::as_root().is_err() {
        return ui::warn(format!("{error:#}"));
    }
    for name in names {
        if let Err(error) = apt::install(&[name]) {
            ui::warn(format!("{name}: {error:#}"));
        }
    }
}
