//! `lint`: formatting, clippy on both sides, the rules for dependencies, and the chart.

use anyhow::Result;

use crate::{build, chart, command, helm, manifests, setup, ui, workspace::Workspace};

/// Checks everything that can be checked without running it; the first finding ends it.
///
/// # Errors
/// Something is found, or a build fails.
pub(crate) fn lint(workspace: &Workspace) -> Result<()> {
    ui::step("formatting");
    command::run(workspace.cargo().args(["fmt", "--all", "--check"]))?;

    // The agent embeds the object, so it can't even be checked without.
    build::build_ebpf(workspace)?;
    setup::install_missing(&[setup::Purpose::Lint]);
    build::lint_ebpf(workspace)?;

    ui::step("clippy");
    let clippy = ["clippy", "--workspace", "--exclude=sidestep-ebpf", "--all-targets", "--", "-Dwarnings"];
    command::run(workspace.cargo().args(clippy))?;

    ui::step("dependencies");
    dependencies(workspace)?;

    ui::step("chart");
    if let Err(error) = helm::build() {
        ui::warn(format!("the chart is not checked, there is no helm: {error:#}"));
        return Ok(());
    }
    chart::check(workspace)?;
    manifests::manifests(workspace, true)
}

/// `cargo deny` by `.cargo/deny.toml`: licences, banned crates and sources, and known vulnerabilities where there is
/// access to their list.
fn dependencies(workspace: &Workspace) -> Result<()> {
    if command::find_program("cargo-deny").is_none() {
        ui::warn("cargo-deny is not installed, dependencies are not checked: `cargo install cargo-deny --locked`");
        return Ok(());
    }
    command::run(workspace.cargo().args(["deny", "--all-features", "check", "bans", "licenses", "sources"]))?;
    // The list comes from GitHub, which not every machine may reach; a missing list is no finding.
    if let Err(error) = command::output(workspace.cargo().args(["deny", "fetch", "db"])) {
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default();
        ui::warn(format!("known vulnerabilities are not checked, their list is not reachable: {reason}"));
        return Ok(());
    }
    command::run(workspace.cargo().args(["deny", "--all-features", "check", "--disable-fetch", "advisories"]))
}
