//! `manifests`: the objects below `deploy/kustomize` are what the chart makes of its default values.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{chart, ui, workspace::Workspace};

/// Each file, and how the chart is rendered for it.
const FILES: [(&str, &[&str]); 2] = [
    ("deploy/kustomize/base/sidestep.yaml", &["--no-hooks", "--include-crds"]),
    ("deploy/kustomize/uninstall/uninstall.yaml", &["--show-only", "templates/uninstall.yaml"]),
];

const HEAD: &str = "# Made of deploy/helm/sidestep by `cargo xtask manifests`; change that.\n";

/// Writes the files, or with `check` only says which are not as the chart has it.
///
/// # Errors
/// Helm can't be built or refuses the chart; with `check`, a file differs.
pub(crate) fn manifests(workspace: &Workspace, check: bool) -> Result<()> {
    ui::step(if check { "comparing manifests with the chart" } else { "rendering the chart" });
    let mut differing = Vec::new();
    for (name, arguments) in FILES {
        let path = workspace.root.join(name);
        let rendered = format!("{HEAD}{}", chart::template(workspace, arguments)?);
        if fs::read_to_string(&path).is_ok_and(|present| present == rendered) {
            ui::done(name);
        } else if check {
            differing.push(name);
        } else {
            fs::write(&path, rendered).with_context(|| format!("cannot write {name}"))?;
            ui::done(format!("{name} is written"));
        }
    }
    if differing.is_empty() {
        return Ok(());
    }
    bail!("not what the chart renders: {}; run `cargo xtask manifests`", differing.join(", "))
}
