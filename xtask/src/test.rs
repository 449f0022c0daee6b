//! `test`: every test, on this machine's kernel and, in emulation, on others.

use anyhow::Result;

use crate::{
    build, command,
    delegate::AGENT_VARIABLE,
    kubernetes,
    setup::{self, Purpose},
    ui,
    vm::{self, Guest},
    workspace::Workspace,
};

/// What to test.
pub(crate) struct Selection<'a> {
    /// Leave out the emulated kernels.
    pub(crate) no_vm: bool,
    /// Leave out what runs on a Kubernetes cluster.
    pub(crate) no_cluster: bool,
    /// Test the optimised agent.
    pub(crate) release: bool,
    /// Filters and options for the test programs; a filter leaves out the emulated kernels too.
    pub(crate) filters: &'a [String],
}

/// The module that tests on a Kubernetes cluster stand in, whatever their file.
const ON_CLUSTER: &str = "on_cluster::";

/// Sets up, builds and tests. Emulated kernels go first, so that cargo's summary is the last thing to read.
///
/// # Errors
/// A build or a test fails. A kernel that can't be had is left out, visibly, and so is a cluster.
pub(crate) fn test(workspace: &Workspace, selection: &Selection<'_>) -> Result<()> {
    setup::ensure(workspace, Purpose::Test)?;
    let agent = build::build(workspace, selection.release)?;
    build::build_next(workspace, selection.release)?;
    let cluster = prepare_cluster(selection);
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
    if !selection.filters.is_empty() || !cluster {
        cargo.arg("--").args(selection.filters);
    }
    if !cluster {
        cargo.args(["--skip", ON_CLUSTER]);
    }
    let here = command::run(cargo.env(AGENT_VARIABLE, agent));
    here.and(emulated)
}

/// Whether tests on a cluster are to run. Kubernetes is built for them, if a filter does not ask for other ones.
fn prepare_cluster(selection: &Selection<'_>) -> bool {
    let asked = selection.filters.is_empty() || selection.filters.iter().any(|filter| filter.contains("cluster"));
    let prepared = match selection.no_cluster {
        true => return false,
        false if asked => kubernetes::build().map(Some),
        false => kubernetes::built(),
    };
    match prepared {
        Ok(programs) => programs.is_some(),
        Err(error) => {
            ui::warn(format!("tests on a Kubernetes cluster are left out: {error:#}"));
            false
        }
    }
}
