//! `sidestep policy`

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};

use super::{Format, ask_agent, colors, socket::SocketArgs};
use crate::{
    config::policy_files,
    control::client::governance::{View, governance},
};

/// Check policies, and show what they do on this node
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    /// What to do.
    #[command(subcommand)]
    pub what: What,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// Say what is wrong with files of policies, without an agent
    Check(CheckArgs),
    /// Show which policies hold for the traffic of the Pods of this node
    Show(ShowArgs),
    /// Show what was refused, or with `mode: observe` would have been
    Counters(ShowArgs),
}

/// Which files.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep policy check shop.yaml
  sidestep policy check /etc/sidestep/policies
  kubectl get sidesteppolicies -A -o yaml | sidestep policy check -")]
pub struct CheckArgs {
    /// Files, directories of them (*.yaml, *.yml, *.json), or - for standard input
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

/// Of which Pods.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep policy show --namespace shop
  sidestep policy counters --output json
  kubectl -n sidestep exec ds/sidestep -- sidestep policy counters")]
pub struct ShowArgs {
    /// Only Pods of this namespace
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Where the agent answers.
    #[command(flatten)]
    pub socket: SocketArgs,
}

impl PolicyArgs {
    /// Does it; returns the exit code: 0, 1 when a file can't be read or is wrong, or the agent refuses, 2 for a bad
    /// configuration, 3 when no agent runs, 4 without permission.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        match self.what {
            What::Check(check) => check.execute(),
            What::Show(show) => show.execute(View::Show),
            What::Counters(show) => show.execute(View::Counters),
        }
    }
}

impl CheckArgs {
    fn execute(&self) -> ExitCode {
        match policy_files::read(&self.paths) {
            Ok(policies) => {
                for policy in policies.all() {
                    println!("{}: ok", policy.key);
                }
                if policies.all().next().is_none() {
                    println!("no policies");
                }
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{}", error.render(colors(&io::stderr())));
                ExitCode::FAILURE
            }
        }
    }
}

impl ShowArgs {
    fn execute(self, view: View) -> ExitCode {
        let json = self.output == Format::Json;
        ask_agent(&self.socket, |path| governance(path, view, self.namespace.as_deref(), json, &mut io::stdout()))
    }
}
