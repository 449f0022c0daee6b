//! `vm`: runs a program with the agent on other kernels, each in an emulated machine of its own.

mod cpio;
mod initramfs;
mod kernel;
mod qemu;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Parser};

use crate::{
    build, command,
    setup::{self, Purpose},
    ui,
    workspace::Workspace,
};
use initramfs::Contents;

/// What runs in the machine, and in which.
#[derive(Args)]
pub(crate) struct Guest {
    /// A series of Debian's kernels, such as 6.1; may be repeated, and without it all of them
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<String>,
    /// A program of this machine to run, instead of tests/src/bin/vm-guest.rs; its libraries come along
    #[arg(long, value_name = "FILE", conflicts_with = "smoke")]
    program: Option<PathBuf>,
    /// Only boot, look at what the agent needs, and run `sidestep doctor`
    #[arg(long)]
    smoke: bool,
    /// Set a variable for the program; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE")]
    environment: Vec<String>,
    /// Bring a file along, to the same place or another; a program's libraries come with it; may be repeated
    #[arg(long = "file", value_name = "HERE[:THERE]")]
    files: Vec<String>,
    /// End a machine after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Memory of the machine, which also holds its files
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory: u32,
    /// Use /dev/kvm: much faster where it works
    #[arg(long)]
    kvm: bool,
    /// Take the optimised agent and program
    #[arg(long)]
    release: bool,
    /// Arguments of the program
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Guest {
    /// The project's own program on every kernel, with the defaults of the options.
    pub(crate) fn project(release: bool) -> Self {
        /// The options alone, so that their defaults stand in one place.
        #[derive(Parser)]
        struct Options {
            #[command(flatten)]
            guest: Guest,
        }
        Self { release, ..Options::parse_from(["vm"]).guest }
    }
}

/// Why no machine can be emulated here, if so.
pub(crate) fn unavailable() -> Option<String> {
    if cfg!(not(target_arch = "x86_64")) {
        return Some("only kernels for x86-64 are known".to_owned());
    }
    let missing = |name: &&str| command::find_program(name).is_none();
    let name = ["qemu-system-x86_64", "busybox", "apt-get", "dpkg-deb"].into_iter().find(missing)?;
    Some(format!("{name} is not installed: `cargo xtask setup --for vm`"))
}

/// Runs `guest` on each kernel, also when it fails on one; `built` says that the agent is built already.
///
/// # Errors
/// It fails on a kernel, or a machine can't be had. A kernel that is not in the package lists counts as failed only
/// when it is asked for by name.
pub(crate) fn vm(workspace: &Workspace, guest: &Guest, built: bool) -> Result<()> {
    if !built {
        setup::ensure(workspace, Purpose::Vm)?;
        build::build(workspace, guest.release)?;
    }
    if let Some(reason) = unavailable() {
        bail!(reason);
    }
    let mut contents = contents(workspace, guest)?;
    let default = guest.kernels.is_empty();
    let series = if default { kernel::SERIES.map(str::to_owned).to_vec() } else { guest.kernels.clone() };
    let mut results = Vec::new();
    for series in series {
        let kernel = match kernel::find(workspace, &series) {
            Ok(kernel) => kernel,
            Err(error) if default => {
                ui::warn(format!("kernel {series} is left out: {error:#}"));
                continue;
            }
            Err(error) => return Err(error),
        };
        contents.label.clone_from(&series);
        results.push((series, run(workspace, guest, &kernel, &contents)));
    }
    ensure!(!results.is_empty(), "no kernel can be had, see above");
    let mut first_failure = Ok(());
    for (series, result) in results {
        match result {
            Ok(()) => ui::done(format!("kernel {series}")),
            Err(error) => {
                ui::warn(format!("kernel {series} failed: {error:#}"));
                first_failure = first_failure.and(Err(error.context(format!("kernel {series}"))));
            }
        }
    }
    first_failure
}

fn run(workspace: &Workspace, guest: &Guest, kernel: &Path, contents: &Contents) -> Result<()> {
    let folder = workspace.target.join("vm").join(&contents.label);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let initramfs = folder.join("initramfs.cpio");
    initramfs::write(contents, &initramfs)?;
    ui::step(format!("booting {}", kernel.file_name().unwrap_or_default().display()));
    let machine = qemu::Machine {
        kernel,
        initramfs: &initramfs,
        label: &contents.label,
        exit_file: &folder.join("exit"),
        memory: guest.memory,
        kvm: guest.kvm,
        timeout: Duration::from_secs(guest.timeout),
    };
    machine.run()
}

/// Everything for the machine but its kernel.
fn contents(workspace: &Workspace, guest: &Guest) -> Result<Contents> {
    let agent = workspace.program("sidestep", guest.release);
    let mut programs = vec![(PathBuf::from("/usr/bin/sidestep"), agent)];
    if let Some(runc) = command::find_program("runc") {
        programs.push(("/usr/sbin/runc".into(), runc));
    }
    let program = if guest.smoke { None } else { program(workspace, guest)? };
    if let Some(program) = &program {
        programs.push((initramfs::PROGRAM.into(), program.clone()));
    }
    for file in &guest.files {
        let (here, there) = file.split_once(':').unwrap_or((file, file));
        ensure!(there.starts_with('/'), "`--file {file}`: the place in the machine is not absolute");
        programs.push((there.into(), here.into()));
    }
    let mut environment = vec![("SIDESTEP_AGENT".to_owned(), "/usr/bin/sidestep".to_owned())];
    for variable in &guest.environment {
        let (name, value) = variable.split_once('=').with_context(|| format!("`--env {variable}` has no `=`"))?;
        let valid = name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
        ensure!(valid && !name.is_empty(), "`--env {variable}`: {name:?} is no name of a variable");
        environment.push((name.to_owned(), value.to_owned()));
    }
    let busybox = command::find_program("busybox").context("busybox is not installed")?;
    let arguments = guest.arguments.clone();
    Ok(Contents { label: String::new(), busybox, programs, environment, smoke: program.is_none(), arguments })
}

/// The program to run: a given one, or the project's own.
fn program(workspace: &Workspace, guest: &Guest) -> Result<Option<PathBuf>> {
    if let Some(program) = &guest.program {
        ensure!(command::is_executable(program), "{} can't be executed", program.display());
        return Ok(Some(program.clone()));
    }
    if !workspace.root.join("tests/src/bin/vm-guest.rs").exists() {
        return Ok(None);
    }
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package=sidestep-tests", "--bin=vm-guest"]);
    if guest.release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    Ok(Some(workspace.program("vm-guest", guest.release)))
}
