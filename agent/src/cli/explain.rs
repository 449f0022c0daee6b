//! `sidestep explain`

use std::{io, process::ExitCode};

use clap::{Args, Subcommand};

use super::{Format, ask_agent, socket::SocketArgs};
use crate::control::{client::explain::explain, explain::ExplainRequest};

/// Show which rule, policy or annotation has decided what
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Of what.
    #[command(subcommand)]
    pub what: What,
}

/// Of what.
#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// Of the containers of a Pod on this node
    Pod(PodArgs),
}

/// Which Pod.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep explain pod shop/cart-5d9c7
  sidestep explain pod shop/cart-5d9c7 --container app --output json
  kubectl -n sidestep exec ds/sidestep -- sidestep explain pod shop/cart-5d9c7")]
pub struct PodArgs {
    /// The Pod
    #[arg(value_name = "NAMESPACE/NAME", value_parser = namespaced)]
    pub pod: (String, String),
    /// Only this container of it
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Where the agent answers.
    #[command(flatten)]
    pub socket: SocketArgs,
}

pub(super) fn namespaced(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("must be NAMESPACE/NAME".to_owned()),
    }
}

impl ExplainArgs {
    /// Asks the agent; returns the exit code: 0, 1 when the Pod is not here, 2 for a bad configuration, 3 when no agent runs,
    /// 4 without permission.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        let What::Pod(PodArgs { pod: (namespace, pod), container, output, socket }) = self.what;
        let request = ExplainRequest { namespace, pod, container };
        ask_agent(&socket, |path| explain(path, request, output == Format::Json, &mut io::stdout()))
    }
}
