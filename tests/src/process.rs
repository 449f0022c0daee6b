//! What the kernel tells of a process.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::Pid;

/// A size in `/proc/PID/status`, in bytes: `VmRSS`, `RssAnon` ...
///
/// # Errors
/// The process is gone, or has no such size.
pub fn memory(pid: Pid, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).context("reading a status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibibytes = line.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kibibytes.with_context(|| format!("{name} of a process"))? * 1024)
}
