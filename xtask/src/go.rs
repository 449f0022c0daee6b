//! Programs in Go: the compiler that builds them, and a place in the cache for what was built.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, ui};

/// Since this one, `go` fetches the release that a module asks for by itself.
const OLDEST: (u32, u32) = (1, 21);

/// Makes `folder` by `build`, once: `build` fills a folder that takes this name when all is in it. Another process that
/// builds the same is waited for, and its result is taken.
///
/// # Errors
/// The build fails, or the cache can't be written.
pub fn build_once(folder: &Path, what: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().context("the folder has no parent folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let lock = folder.with_added_extension("lock");
    let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
    ui::step(format!("building {what}"));
    lock.lock().with_context(|| format!("waiting for another build of {what}"))?;
    if folder.is_dir() {
        return Ok(());
    }
    let partial = folder.with_added_extension("partial");
    match fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", partial.display()));
        }
        _ => {}
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    build(&partial).with_context(|| format!("{what} can't be built"))?;
    fs::rename(&partial, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    ui::done(folder.display());
    Ok(())
}

/// The first `go` that is new enough: in `PATH`, where its own archive is unpacked to, where Debian has those beside the
/// default one.
///
/// # Errors
/// There is none; says which are too old.
pub fn find() -> Result<PathBuf> {
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
            Some(version) if version >= OLDEST => return Ok(go),
            _ => found.push(format!("{}: {text}", go.display())),
        }
    }
    let (major, minor) = OLDEST;
    let what = format!("Go {major}.{minor} or later is needed (https://go.dev/dl, unpacked to /usr/local/go)");
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
    fn versions_compare_by_number() {
        assert_eq!(version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(version("go version go1.25rc1 linux/amd64"), Some((1, 25)));
        assert!(version("go version go1.19 linux/amd64") < Some(OLDEST));
        assert_eq!(version("no such thing"), None);
    }

    #[test]
    fn a_build_that_fails_leaves_nothing_to_take() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("below/program-1");
        build_once(&folder, "it", |staging| {
            fs::write(staging.join("half"), "")?;
            bail!("no")
        })
        .unwrap_err();
        assert!(!folder.exists());
        build_once(&folder, "it", |staging| Ok(fs::write(staging.join("whole"), "")?)).unwrap();
        assert!(folder.join("whole").exists() && !folder.join("half").exists());
        build_once(&folder, "it", |_| panic!("it is there")).unwrap();
    }
}
