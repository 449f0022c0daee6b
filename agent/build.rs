//! Puts the kernel programs where the agent embeds them from: `OUT_DIR/sidestep-ebpf`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Names another object than that of `cargo xtask build`; `none` stands for an empty one, for editors.
const OBJECT_VARIABLE: &str = "SIDESTEP_EBPF_OBJECT";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("cargo::error={reason}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: this is a build script")?);
    let given = env::var_os(OBJECT_VARIABLE).filter(|value| !value.is_empty());
    let content = if given.as_ref().is_some_and(|value| value == "none") {
        Vec::new()
    } else {
        let object = given.map_or_else(|| default_object(&out), |path| Some(path.into()));
        let object = object.ok_or("the kernel programs are not built yet: run `cargo xtask build`")?;
        println!("cargo::rerun-if-changed={}", object.display());
        read(&object)?
    };
    let embedded = out.join("sidestep-ebpf");
    fs::write(&embedded, content).map_err(|error| format!("cannot write {}: {error}", embedded.display()))
}

/// Where `cargo xtask build` puts the object: `ebpf/sidestep-ebpf` in the target folder.
///
/// Cargo does not name the target folder to build scripts. `OUT_DIR` is below it, deeper with `--target`; it is not
/// with cargo's `build-dir` option, hence the usual places after it.
fn default_object(out: &Path) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let configured = env::var_os("CARGO_TARGET_DIR").map(|folder| workspace.join(folder));
    let usual = [configured, Some(workspace.join("target"))].into_iter().flatten();
    let above = out.ancestors().skip(1).map(Path::to_owned);
    above.chain(usual).map(|folder| folder.join(object_name())).find(|object| object.is_file())
}

/// The object with the same layout of records as the agent.
fn object_name() -> &'static str {
    if env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some() { "ebpf/sidestep-ebpf-next" } else { "ebpf/sidestep-ebpf" }
}

fn read(object: &Path) -> Result<Vec<u8>, String> {
    let content = fs::read(object).map_err(|error| format!("cannot read {}: {error}", object.display()))?;
    if content.starts_with(b"\x7fELF") {
        Ok(content)
    } else {
        Err(format!("{} is no ELF object: run `cargo xtask build`", object.display()))
    }
}
