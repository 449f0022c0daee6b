//! `image`: the agent as an OCI archive, made without a container engine.

use std::{fs, io::Write as _, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{build, command, pack, ui, workspace::Workspace};

/// gzip's own default.
const LEVEL: u32 = 6;

/// Builds the agent for release and writes its image to `output`, as `name`.
///
/// The same commit built by the same tools gives the same bytes: no time of day goes in.
///
/// # Errors
/// The build fails, or `output` can't be written.
pub(crate) fn image(workspace: &Workspace, output: Option<&Path>, name: Option<&str>) -> Result<()> {
    let agent = build::build(workspace, true)?;
    let version = env!("CARGO_PKG_VERSION");
    let name = name.map_or_else(|| format!("docker.io/library/sidestep:{version}"), str::to_owned);
    let output = output.map_or_else(|| workspace.target.join("sidestep-image.tar"), Path::to_owned);
    ui::step(format!("packing {name}"));
    let archive = pack::agent(&agent, &workspace.root, &name, &revision(workspace), LEVEL)?;
    write(&output, &archive).with_context(|| format!("cannot write {}", output.display()))?;
    ui::done(format!("{} ({:.1} MB)", output.display(), archive.len() as f64 / 1e6));
    ui::done(format!("docker load -i {0}; ctr -n k8s.io image import {0}", output.display()));
    Ok(())
}

/// A whole archive or none, also when the disk gets full.
fn write(output: &Path, archive: &[u8]) -> std::io::Result<()> {
    let partial = output.with_added_extension("partial");
    let written = fs::File::create(&partial).and_then(|mut file| {
        file.write_all(archive)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&partial, output)).inspect_err(|_| {
        // The error to report is the one that led here.
        let _: Result<(), _> = fs::remove_file(&partial);
    })
}

/// The commit, marked when the checkout differs from it; empty outside of a repository.
fn revision(workspace: &Workspace) -> String {
    let git = |arguments: &[&str]| command::output(Command::new("git").current_dir(&workspace.root).args(arguments));
    let Ok(commit) = git(&["rev-parse", "HEAD"]) else { return String::new() };
    let clean = git(&["status", "--porcelain"]).is_ok_and(|changes| changes.is_empty());
    if clean { commit } else { format!("{commit}-dirty") }
}
