//! The real `helm`, built once from its Go module and kept in the cache; and what it says of the chart.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{command, go, ui, workspace::Workspace};

const VERSION: &str = "3.18.6";

/// What `helm template` takes a cluster to be, which has none: the release of the module's Kubernetes libraries. Without it
/// helm says 1.20.
const KUBERNETES: (u32, u32) = (1, 33);

/// The chart, from the root of the workspace.
const CHART: &str = "deploy/helm/sidestep";

/// Builds helm if it is not there yet, and returns the program.
///
/// # Errors
/// There is no `go`, or the build fails.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.cache.join(format!("helm-{VERSION}"));
    go::build_once(&folder, &format!("helm {VERSION} (two or three minutes, once)"), |staging| {
        let (major, minor) = KUBERNETES;
        let flags = [
            "-s -w".to_owned(),
            format!("-X helm.sh/helm/v3/internal/version.version=v{VERSION}"),
            format!("-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor={major}"),
            format!("-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={minor}"),
            format!("-X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor={major}"),
            format!("-X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor={minor}"),
        ];
        let mut install = Command::new(go::find()?);
        install.args(["install", "-trimpath", "-ldflags", &flags.join(" ")]);
        install.arg(format!("helm.sh/helm/v3/cmd/helm@v{VERSION}"));
        command::run(install.env("GOBIN", staging).env("CGO_ENABLED", "0"))
    })?;
    Ok(folder.join("helm"))
}

/// What `helm template` makes of the chart, for a release `sidestep` in a namespace of the same name.
///
/// # Errors
/// The chart refuses the values.
pub(crate) fn template(workspace: &Workspace, arguments: &[&str]) -> Result<String> {
    let mut helm = helm(workspace)?;
    helm.args(["template", "sidestep", CHART, "--namespace", "sidestep"]).args(arguments);
    Ok(command::output(&mut helm)? + "\n")
}

/// `helm lint --strict` and `helm template` with each file of values in `deploy/helm/values`: what they enable has to come
/// out, and what is no value has to be refused.
///
/// # Errors
/// A finding.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    for file in values(workspace)? {
        let path = file.to_str().context("a path that is no text")?;
        if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("refused-")) {
            let Ok(_) = template(workspace, &["--values", path]) else { continue };
            bail!("{path}: the chart takes these values, and should not");
        }
        let said = command::output(helm(workspace)?.args(["lint", "--strict", CHART, "--values", path]))?;
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
fn helm(workspace: &Workspace) -> Result<Command> {
    let mut helm = Command::new(build(workspace)?);
    let own = workspace.target.join("helm");
    helm.current_dir(&workspace.root).env("HELM_CONFIG_HOME", &own).env("HELM_CACHE_HOME", &own);
    helm.env("HELM_DATA_HOME", &own).env("KUBECONFIG", "/dev/null");
    Ok(helm)
}
