//! Where things are, and how the host's cargo is called.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{cache, command};

/// Folders of this checkout, all absolute.
pub(crate) struct Workspace {
    /// The folder with the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Where cargo builds, `CARGO_TARGET_DIR` and cargo's configuration considered.
    pub(crate) target: PathBuf,
    /// What is kept between checkouts: bpf-linker, kernels, Kubernetes.
    pub(crate) cache: PathBuf,
    /// The cargo that runs this task.
    cargo: PathBuf,
}

impl Workspace {
    /// Asks the environment and `cargo metadata`.
    ///
    /// # Errors
    /// No home folder is known, or cargo can't read the workspace.
    pub(crate) fn find() -> Result<Self> {
        // At run time first: checkouts that share a target folder share this program too.
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).parent().context("xtask/ has no parent folder")?.to_owned();
        let cargo = env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from);
        let metadata = command::output(Command::new(&cargo).current_dir(&root).args([
            "metadata",
            "--no-deps",
            "--format-version=1",
        ]));
        let metadata = metadata.with_context(|| {
            format!(
                "`{}` is needed: install Rust {} or later with cargo (https://rustup.rs, or Debian's cargo-web)",
                cargo.display(),
                env!("CARGO_PKG_RUST_VERSION")
            )
        })?;
        let metadata: serde_json::Value = serde_json::from_str(&metadata).context("output of cargo metadata")?;
        let target = metadata["target_directory"].as_str().context("cargo metadata names no target folder")?.into();
        Ok(Self { root, target, cache: cache::folder()?, cargo })
    }

    /// A cargo command for the host, at the root of the workspace.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        // `cargo run` describes this crate to us; it must not describe it to what we build.
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&*name);
            }
        }
        // An eBPF-capable /usr/bin/rustc must not become the host's compiler because it comes first in PATH.
        if let Some(rustc) = self.cargo.parent().map(|folder| folder.join("rustc"))
            && env::var_os("RUSTC").is_none()
            && command::find_program("rustc").is_some_and(|found| found.starts_with("/usr/bin"))
            && !rustc.starts_with("/usr/bin")
            && command::is_executable(&rustc)
        {
            command.env("RUSTC", rustc);
        }
        command
    }

    /// Where a program of the given profile is.
    pub(crate) fn program(&self, name: &str, release: bool) -> PathBuf {
        self.target.join(if release { "release" } else { "debug" }).join(name)
    }

    /// The kernel programs, where the agent's build script looks for them.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.target.join("ebpf/sidestep-ebpf")
    }
}
