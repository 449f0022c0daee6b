//! Pinned maps and links: while no agent runs, the kernel programs go on collecting into the ring, and the next agent takes
//! over where the last one stopped. See `agent/docs/decisions/0007-pins-and-takeover.md`.
//!
//! A directory of pins holds a set for each generation of programs: one, or two while one agent takes over from another
//! build. `<directory>/<generation>/` has `maps/`, `links/` and `about`; a set that is being made is named
//! `making-<generation>` and counts for nothing.

mod about;
mod bpffs;
mod set;
mod takeover;
mod uninstall;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use about::{About, Layout, ProbeAbout, Shape};
pub use bpffs::{Directory, is_bpffs};
pub use set::Set;
pub(super) use takeover::{Making, Reused, Wanted, disown, look, make, reuse};
pub use takeover::{OlderRing, Origin, Pinned};
pub use uninstall::{Removed, uninstall};

/// Where and for how long programs and maps are pinned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// The directory, on a BPF file system.
    pub directory: PathBuf,
    /// Whether the programs go on when the agent stops.
    pub keep: bool,
}

/// What is pinned in a directory, in a line for each set; `None` when it is not there. Nothing is locked or changed.
///
/// # Errors
/// It is on no BPF file system, or can't be read.
pub fn describe(path: &Path) -> Result<Option<Vec<String>>, PinError> {
    if !path.exists() {
        return Ok(None);
    }
    if !is_bpffs(path) {
        return Err(PinError::NotBpffs(path.to_owned()));
    }
    let (sets, unfinished) = Set::all(path)?;
    let set = |set: &Set| match set.about() {
        Ok(about) => {
            let made = std::time::UNIX_EPOCH + std::time::Duration::from_secs(about.made_unix_seconds);
            let (generation, links) = (set.generation, set.link_count());
            let made = humantime::format_rfc3339_seconds(made);
            format!("generation {generation}: {links} programs, attached by version {} at {made}", about.version)
        }
        Err(error) => format!("generation {} is damaged: {error}", set.generation),
    };
    let half = unfinished.iter().map(|path| format!("{} was never finished", path.display()));
    Ok(Some(sets.iter().map(set).chain(half).collect()))
}

/// Why pins can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is elsewhere.
    #[error(
        "capture.pin: {} is not on a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf` and name a directory below it, or set `capture.pin: null` to end the capture with the agent", .0.display()
    )]
    NotBpffs(PathBuf),
    /// The file system can't be mounted.
    #[error(
        "capture.pin: no BPF file system is mounted at {path}, and mounting it failed: {source}; run `mount -t bpf bpf {path}` on the node, or set `capture.pin: null` to end the capture with the agent"
    )]
    Mount {
        /// Where.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Another process has locked the directory.
    #[error(
        "capture.pin: {} is in use by another agent; stop it, or name another directory in `capture.pin`", .0.display()
    )]
    InUse(PathBuf),
    /// A directory can't be used.
    #[error("capture.pin: {what} {}: {source}", .path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refuses a pin.
    #[error("capture.pin: pinning {}: {reason}", .path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// What a set tells of itself can't be read or written.
    #[error("capture.pin: {}: {reason}", .path.display())]
    About {
        /// The pin.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
}

impl PinError {
    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}
