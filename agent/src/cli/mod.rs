//! The command line: one file a command, each with its arguments and, where it needs no running agent, its work.

pub mod completions;
pub mod config;
pub mod crds;
pub mod doctor;
pub mod explain;
pub mod logs;
pub mod man;
pub mod policy;
pub mod run;
pub mod socket;
pub mod status;
pub mod uninstall;
pub mod version;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::control::ClientError;

/// eBPF-based, sidecarless observability agent for Kubernetes nodes
///
/// One agent per node takes what containers write to stdout, stderr and their log files, right in the kernel, and
/// sends it on with the Pod that wrote it. No container is added to a Pod, and no application is restarted.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "sidestep",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
Examples:
  sidestep doctor                       see what works on this node
  sidestep config --example > sidestep.yaml
  sidestep config check sidestep.yaml   see what is wrong with it
  sidestep run --config sidestep.yaml   start the agent
  sidestep logs -f --namespace shop     follow the lines of some Pods
  sidestep status --watch               see every container, and that no byte is lost unaccounted"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `sidestep` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground
    Run(run::RunArgs),
    /// Print, check or show the configuration
    Config(config::ConfigArgs),
    /// Say what works on this node, what does not, and what to do about it
    Doctor(doctor::DoctorArgs),
    /// Print the lines that pass through the running agent
    Logs(logs::LogsArgs),
    #[expect(missing_docs, reason = "a text here would take the place of the longer one of the arguments")]
    Status(status::StatusArgs),
    #[expect(missing_docs, reason = "a text here would take the place of the longer one of the arguments")]
    Uninstall(uninstall::UninstallArgs),
    /// Show which rule, policy or annotation has decided what
    Explain(explain::ExplainArgs),
    #[expect(missing_docs, reason = "a text here would take the place of the longer one of the arguments")]
    Policy(policy::PolicyArgs),
    /// Print the definitions of the resources that Kubernetes has to know
    Crds(crds::CrdsArgs),
    /// Print a script that completes commands in a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual, or write its pages into a directory
    Man(man::ManArgs),
    /// Print the version
    Version(version::VersionArgs),
}

/// What a person or a script reads from a command.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Whether output to `stream` may have colours: it is a terminal, and neither `NO_COLOR` nor `TERM=dumb` says no.
#[must_use]
pub fn colors(stream: &impl io::IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A closed pipe (`sidestep man | head`) ends a command; it is no error.
///
/// # Errors
/// Every other error.
pub fn ignore_closed_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Asks the agent at its socket; says on standard error what went wrong. A configuration that is wrong is wrong use: 2.
fn ask_agent(socket: &socket::SocketArgs, ask: impl FnOnce(&std::path::Path) -> Result<(), ClientError>) -> ExitCode {
    match socket.path(&crate::config::Environment::current()) {
        Ok(path) => exit_code(ask(&path)),
        Err(error) => {
            eprintln!("{}", error.render(colors(&io::stderr())));
            ExitCode::from(2)
        }
    }
}

/// What a command that asked the agent exits with; says on standard error what went wrong.
fn exit_code(result: Result<(), ClientError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

#[cfg(test)]
mod tests;
