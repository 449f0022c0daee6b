//! Copies stdin to a runtime's log, in a process of its own: what that costs is measured.

use std::{fs::File, io::Write, path::Path};

use anyhow::{Context, Result};
use sidestep_tests::runtime_log;

/// Copies stdin to its end.
pub(crate) fn run(file: &Path) -> Result<()> {
    let mut output =
        File::options().create(true).append(true).open(file).with_context(|| format!("opening {}", file.display()))?;
    Ok(runtime_log::copy(std::io::stdin().lock(), |line, _| output.write_all(line))?)
}
