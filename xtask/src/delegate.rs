//! `run`, `demo`, `bench` and `soak`: set up, build, and hand over to a program.

use std::process::Command;

use anyhow::Result;

use crate::{
    build, command, kubernetes,
    setup::{self, Purpose},
    ui,
    workspace::Workspace,
};

/// Names the agent's binary to the demo, the benchmarks and the tests.
pub(crate) const AGENT_VARIABLE: &str = "SIDESTEP_AGENT";

/// Builds the agent and runs it with `arguments`.
pub(crate) fn run(workspace: &Workspace, release: bool, arguments: &[String]) -> Result<()> {
    let agent = build::build(workspace, release)?;
    command::run_to_its_end(Command::new(agent).args(arguments))
}

/// Shows the agent at work (`tests/src/bin/demo`).
pub(crate) fn demo(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--kafka") {
        setup::ensure(workspace, Purpose::Kafka)?;
    }
    hand_over(workspace, Purpose::Demo, "demo", arguments)
}

/// Measures the agent (`tests/src/bin/bench`).
pub(crate) fn bench(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    prepare_cluster(arguments)?;
    hand_over(workspace, Purpose::Bench, "bench", arguments)
}

/// Puts the agent under load for long (`tests/src/bin/soak`).
pub(crate) fn soak(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    prepare_cluster(arguments)?;
    hand_over(workspace, Purpose::Soak, "soak", arguments)
}

/// What `kubernetes`, or a run of that name with more to it, as the first argument needs beside the rest.
fn prepare_cluster(arguments: &[String]) -> Result<()> {
    if arguments.first().is_some_and(|first| first.starts_with("kubernetes")) {
        setup::install_missing(&[Purpose::Cluster]);
        kubernetes::build()?;
    }
    Ok(())
}

/// Runs a program of the crate of tests, in release: what people watch and what is measured is what gets deployed.
fn hand_over(workspace: &Workspace, purpose: Purpose, program: &str, arguments: &[String]) -> Result<()> {
    setup::ensure(workspace, purpose)?;
    let agent = build::build(workspace, true)?;
    ui::step(format!("building {program}"));
    command::run(workspace.cargo().args(["build", "--release", "--package=sidestep-tests", "--bin", program]))?;
    command::run_to_its_end(
        Command::new(workspace.program(program, true))
            .args(arguments)
            .current_dir(&workspace.root)
            .env(AGENT_VARIABLE, agent),
    )
}
