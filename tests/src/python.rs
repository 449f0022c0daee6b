//! Writers in Python: it has every system call that a test needs, without a compiler.

use anyhow::{Result, ensure};

use crate::{Container, DEADLINE, Testbed, wait_until};

/// Runs `program` (with `os` and `sys` imported) in a container and waits until it has written its last line, `done`
/// on stderr. The container then holds until its stdin ends, so that its ledger can be read.
///
/// # Errors
/// The program fails, or doesn't come to its end in time.
pub fn run(bed: &Testbed, program: &str) -> Result<Container> {
    let container = start(bed, program)?;
    wait_done(&container)?;
    Ok(container)
}

/// As [`run`], but doesn't wait.
///
/// # Errors
/// The container can't be started.
pub fn start(bed: &Testbed, program: &str) -> Result<Container> {
    let program = format!("import os, sys\n{program}\nos.write(2, b'done\\n')\nsys.stdin.read()\n");
    bed.container("app").python(&program).start()
}

/// Waits for the line `done` on stderr, and until all is read that was written to stdout before that.
///
/// # Errors
/// The program failed, or doesn't come to its end in time.
pub fn wait_done(container: &Container) -> Result<()> {
    wait_until("the writer's end", DEADLINE, || {
        let stderr = container.stderr();
        ensure!(!stderr.starts_with(b"Traceback"), "{}", String::from_utf8_lossy(&stderr));
        Ok(stderr.ends_with(b"done\n").then_some(()))
    })?;
    container.wait_drained()
}
