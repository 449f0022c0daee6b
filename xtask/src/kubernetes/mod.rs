//! The Kubernetes programs, built once from the Go module and kept in the cache.

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::{cache, command, go};

/// What `go.mod` requires.
pub const VERSION: &str = "1.33.1";

/// The programs, each a link to the one that is all of them.
pub const COMPONENTS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];

/// The one program.
const PROGRAM: &str = "kubernetes";

const SOURCES: [(&str, &str); 3] =
    [("main.go", include_str!("main.go")), ("go.mod", include_str!("go.mod")), ("go.sum", include_str!("go.sum"))];

/// The folder with [`COMPONENTS`], if they are built.
///
/// # Errors
/// No cache folder is known.
pub fn built() -> Result<Option<PathBuf>> {
    let folder = folder()?;
    Ok(command::is_executable(&folder.join(PROGRAM)).then_some(folder))
}

/// Builds the programs if they are not there yet, and returns their folder.
///
/// # Errors
/// There is no `go`, or it is too old; the build fails.
pub fn build() -> Result<PathBuf> {
    let folder = folder()?;
    go::build_once(&folder, &format!("Kubernetes {VERSION} (8 to 10 minutes on two cores, once)"), |staging| {
        let sources = staging.join("sources");
        fs::create_dir_all(&sources)?;
        for (name, text) in SOURCES {
            fs::write(sources.join(name), text)?;
        }
        // Without the version, which upstream's own scripts set, a server calls itself v0.0.0 and clients refuse it.
        let minor = VERSION.split('.').nth(1).context("a version without minor number")?;
        let set = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
        let version = set("gitVersion", &format!("v{VERSION}"));
        let flags = format!("-s -w {version} {} {}", set("gitMajor", "1"), set("gitMinor", minor));
        let mut build = Command::new(go::find()?);
        build.current_dir(&sources).args(["build", "-trimpath", "-ldflags", &flags, "-o"]);
        build.arg(staging.join(PROGRAM)).arg(".");
        // Static: the programs run in every container as well.
        command::run(build.env("CGO_ENABLED", "0"))?;
        for component in COMPONENTS {
            symlink(PROGRAM, staging.join(component))?;
        }
        Ok(fs::remove_dir_all(sources)?)
    })?;
    Ok(folder)
}

/// Named after the version and what it is built of.
fn folder() -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for (name, text) in SOURCES {
        hash.update(name);
        hash.update(text);
    }
    let hash: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Ok(cache::folder()?.join(format!("kubernetes-{VERSION}-{hash}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_of_the_version_that_is_named() {
        let (_, module) = SOURCES[1];
        assert!(module.contains(&format!("k8s.io/kubernetes v{VERSION}\n")), "{module:.200}");
    }
}
