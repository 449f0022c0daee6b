//! What helm says of the chart.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{command, helm, ui, workspace::Workspace};

/// The chart, from the root of the workspace.
const CHART: &str = "deploy/helm/sidestep";

/// What `helm template` makes of the chart, for a release `sidestep` in a namespace of the same name.
///
/// # Errors
/// The chart refuses the values.
pub(crate) fn template(workspace: &Workspace, arguments: &[&str]) -> Result<String> {
    let mut helm = helm_command(workspace)?;
    helm.args(["template", "sidestep", CHART, "--namespace", "sidestep"]).args(arguments);
    Ok(command::output(&mut helm)? + "\n")
}

/// The chart runs the agent of this workspace. `helm lint --strict` and `helm template` with each file of values in `deploy/helm/values`: what they enable has to come
/// out, and what is no value has to be refused.
///
/// # Errors
/// A finding.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let rendered = template(workspace, &[])?;
    let image = concat!("sidestep:", env!("CARGO_PKG_VERSION"));
    ensure!(
        rendered.contains(image),
        "{CHART}/Chart.yaml: its appVersion is not that of the workspace, no image is {image}"
    );
    for file in values(workspace)? {
        let path = file.to_str().context("a path that is no text")?;
        if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("refused-")) {
            let Ok(_) = template(workspace, &["--values", path]) else { continue };
            bail!("{path}: the chart takes these values, and should not");
        }
        let said = command::output(helm_command(workspace)?.args(["lint", "--strict", CHART, "--values", path]))?;
        ensure!(said.contains("0 chart(s) failed"), "{said}");
        let rendered = template(workspace, &["--values", path, "--include-crds"])?;
        let objects = rendered.lines().filter(|line| line.starts_with("kind: ")).count();
        ensure!(objects > 6, "{path}: only {objects} objects come out");
        ui::done(format!("{}: {objects} objects", file.file_stem().unwrap_or_default().display()));
    }
    Ok(())
}

fn values(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let folder = workspace.root.join("deploy/helm/values");
    let entries = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|file| file.extension() == Some(Path::new("yaml").as_os_str()));
    files.sort();
    ensure!(!files.is_empty(), "{} has no values", folder.display());
    Ok(files)
}

/// Helm at the root of the workspace, without what the user's own helm has.
fn helm_command(workspace: &Workspace) -> Result<Command> {
    let mut helm = Command::new(helm::build()?);
    let own = workspace.target.join("helm");
    helm.current_dir(&workspace.root).env("HELM_CONFIG_HOME", &own).env("HELM_CACHE_HOME", &own);
    helm.env("HELM_DATA_HOME", &own).env("KUBECONFIG", "/dev/null");
    Ok(helm)
}
