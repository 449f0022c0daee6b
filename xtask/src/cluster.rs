//! `cluster`: prepares what a Kubernetes cluster needs, and hands over to the program that starts and removes it
//! (`tests/src/bin/cluster.rs`).

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build, command,
    delegate::AGENT_VARIABLE,
    kubernetes,
    setup::{self, Purpose},
    ui,
    workspace::Workspace,
};

/// What needs neither Kubernetes built nor an agent.
const LIGHT: [&str; 4] = ["down", "status", "help", "--help"];

/// Runs the program with `arguments`; before it, for what starts or fills a cluster, makes sure that there is
/// everything it takes.
///
/// # Errors
/// Something can't be built, or the program fails.
pub(crate) fn cluster(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let subject = arguments.first().map_or("help", String::as_str);
    let mut cluster = Command::new(workspace.program("cluster", false));
    if !LIGHT.contains(&subject) && !arguments.iter().any(|argument| argument == "--help") {
        setup::install_missing(&[Purpose::Cluster]);
        kubernetes::build()?;
    }
    if subject == "up" || subject == "load-image" {
        cluster.env(AGENT_VARIABLE, agent(workspace)?);
    }
    ui::step("building cluster");
    command::run(workspace.cargo().args(["build", "--quiet", "--package=sidestep-tests", "--bin=cluster"]))?;
    let arguments = if arguments.is_empty() { &["help".to_owned()] } else { arguments };
    command::run_to_its_end(cluster.args(arguments).current_dir(&workspace.root))
}

/// The agent of the image: the one that the environment names, or what gets deployed.
fn agent(workspace: &Workspace) -> Result<PathBuf> {
    match env::var_os(AGENT_VARIABLE) {
        Some(agent) => {
            let agent = PathBuf::from(agent);
            agent.canonicalize().with_context(|| format!("{AGENT_VARIABLE}={}", agent.display()))
        }
        None => {
            setup::ensure(workspace, Purpose::Cluster)?;
            build::build(workspace, true)
        }
    }
}
