//! `test`: every test, on this machine's kernel and, in emulation, on others.

use anyhow::Result;

use crate::{
    build, command,
    delegate::AGENT_VARIABLE,
    setup::{self, Purpose},
    ui,
    vm::{self, Guest},
    workspace::Workspace,
};

/// What to test.
pub(crate) struct Selection<'a> {
    /// Leave out the emulated kernels.
    pub(crate) no_vm: bool,
    /// Test the optimised agent.
    pub(crate) release: bool,
    /// Filters and options for the test programs; a filter leaves out the emulated kernels too.
    pub(crate) filters: &'a [String],
}

/// Sets up, builds and tests. Emulated kernels go first, so that cargo's summary is the last thing to read.
///
/// # Errors
/// A build or a test fails. A kernel that can't be had is left out, visibly.
pub(crate) fn test(workspace: &Workspace, selection: &Selection<'_>) -> Result<()> {
    setup::ensure(workspace, Purpose::Test)?;
    let agent = build::build(workspace, selection.release)?;
    build::build_next(workspace, selection.release)?;
    let emulated = if selection.no_vm || !selection.filters.is_empty() {
        Ok(())
    } else {
        setup::install_missing(&[Purpose::Vm]);
        match vm::unavailable() {
            Some(reason) => {
                ui::warn(format!("tests on other kernels are left out: {reason}"));
                Ok(())
            }
            None => vm::vm(workspace, &Guest::project(selection.release), true),
        }
    };
    ui::step("tests");
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace", "--exclude=sidestep-ebpf", "--no-fail-fast"]);
    if selection.release {
        cargo.arg("--release");
    }
    if !selection.filters.is_empty() {
        cargo.arg("--").args(selection.filters);
    }
    let here = command::run(cargo.env(AGENT_VARIABLE, agent));
    here.and(emulated)
}
