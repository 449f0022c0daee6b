//! The Kubernetes programs, built once from the Go module and kept in the cache.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{cache, command, ui};

/// What `go.mod` requires.
pub const VERSION: &str = "1.33.1";

/// The programs, each a link to the one that is all of them.
pub const COMPONENTS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];

/// The one program.
const PROGRAM: &str = "kubernetes";

/// Since this one, `go` fetches the release that a `go.mod` asks for by itself.
const OLDEST_GO: (u32, u32) = (1, 21);

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
    if let Some(folder) = built()? {
        return Ok(folder);
    }
    let go = find_go()?;
    let folder = folder()?;
    let parent = folder.parent().context("the cache has no parent folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let lock = File::create(folder.with_added_extension("lock"))?;
    ui::step(format!("building Kubernetes {VERSION} (8 to 10 minutes on two cores, once)"));
    // Another build of the same is waited for, and taken.
    lock.lock().context("waiting for another build of Kubernetes")?;
    if let Some(folder) = built()? {
        return Ok(folder);
    }
    let staging = folder.with_added_extension("partial");
    remove(&staging)?;
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
    let mut build = Command::new(&go);
    build
        .current_dir(&sources)
        .args(["build", "-trimpath", "-ldflags", &flags, "-o"])
        .arg(staging.join(PROGRAM))
        .arg(".");
    // Static: the programs run in every container as well.
    command::run(build.env("CGO_ENABLED", "0")).context("Kubernetes can't be built")?;
    for component in COMPONENTS {
        symlink(PROGRAM, staging.join(component))?;
    }
    fs::remove_dir_all(sources)?;
    fs::rename(&staging, &folder).with_context(|| format!("cannot make {}", folder.display()))?;
    ui::done(folder.display());
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

/// What a build that was ended has left.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The first `go` that is new enough: in `PATH`, where its own archive is unpacked to, where Debian has those beside
/// the default one.
fn find_go() -> Result<PathBuf> {
    let mut candidates: Vec<PathBuf> = command::find_program("go").into_iter().collect();
    candidates.push("/usr/local/go/bin/go".into());
    for entry in fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("go-") {
            candidates.push(entry.path().join("bin/go"));
        }
    }
    let mut found = Vec::new();
    for go in candidates {
        // Of the program itself, not of the release that it would fetch.
        let Ok(text) = command::output(Command::new(&go).arg("version").env("GOTOOLCHAIN", "local")) else { continue };
        match version(&text) {
            Some(version) if version >= OLDEST_GO => return Ok(go),
            _ => found.push(format!("{}: {text}", go.display())),
        }
    }
    let (major, minor) = OLDEST_GO;
    let what =
        format!("Kubernetes is built with Go {major}.{minor} or later (https://go.dev/dl, unpacked to /usr/local/go)");
    if found.is_empty() {
        bail!("{what}, and there is no `go`")
    } else {
        bail!("{what}; too old: {}", found.join("; "))
    }
}

/// Of `go version go1.26.8 linux/amd64`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(2)?.strip_prefix("go")?.split(['.', '-', 'r', 'b']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_compare_by_number() {
        assert_eq!(version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(version("go version go1.25rc1 linux/amd64"), Some((1, 25)));
        assert!(version("go version go1.19 linux/amd64") < Some(OLDEST_GO));
        assert_eq!(version("no such thing"), None);
    }

    #[test]
    fn sources_are_of_the_version_that_is_named() {
        let (_, module) = SOURCES[1];
        assert!(module.contains(&format!("k8s.io/kubernetes v{VERSION}\n")), "{module:.200}");
    }
}
