//! The real `helm`, built once from its Go module and kept in the cache.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{cache, command, go};

const VERSION: &str = "3.18.6";

/// What `helm template` takes a cluster to be, which has none: the release of the module's Kubernetes libraries. Without it
/// helm says 1.20.
const KUBERNETES: (u32, u32) = (1, 33);

/// Builds helm if it is not there yet, and returns the program.
///
/// # Errors
/// There is no `go`, or the build fails.
pub fn build() -> Result<PathBuf> {
    let folder = cache::folder()?.join(format!("helm-{VERSION}"));
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
