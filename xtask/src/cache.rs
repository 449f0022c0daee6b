//! What is kept between checkouts: bpf-linker, emulated kernels, the Kubernetes programs.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};

/// `sidestep/` in `XDG_CACHE_HOME`, by default in `~/.cache`; it may not be there yet.
///
/// # Errors
/// No home folder is known.
pub fn folder() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    Ok(caches.context("neither XDG_CACHE_HOME nor HOME is set to an absolute path")?.join("sidestep"))
}
