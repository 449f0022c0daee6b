//! `sidestep policy`

use std::{io, net::IpAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use jiff::Timestamp;

use super::{Format, ask_agent, colors, explain::namespaced, socket::SocketArgs, status::interval};
use crate::{
    config::{policy_files, render_warning},
    control::{
        client::{
            apply::{ApplyOptions, apply, delete},
            governance::{View, governance},
            judgement::judgement,
            terminal::{Color, Screen},
            top::{TopOptions, top},
        },
        judgement::JudgeRequest,
    },
    policy::{Policies, precedence::Key, traffic::judge},
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
    /// Bring policies of files into force on this node: into the directory that its agent reads
    Apply(ApplyArgs),
    /// Take policies out of that directory
    Delete(DeleteArgs),
    /// Show which policies hold for the traffic of the Pods of this node
    Show(ShowArgs),
    /// Show what was refused, or with `mode: observe` would have been
    Counters(ShowArgs),
    /// Say what policies do with a connection, datagram or request of a Pod of this node, and which of them
    Explain(ExplainArgs),
    /// Show live what is refused, how often in a second, and to whom
    Top(TopArgs),
}

/// Which files.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep policy check shop.yaml
  sidestep policy check /etc/sidestep/policies
  sidestep policy check --strict shop.yaml      in a pipeline
  kubectl get sidesteppolicies -A -o yaml | sidestep policy check -")]
pub struct CheckArgs {
    /// Exit with 1 also where there are only warnings
    #[arg(long)]
    pub strict: bool,
    /// Files, directories of them (*.yaml, *.yml, *.json), or - for standard input
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

/// Which files, and how.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Each policy gets a file of its own in the first directory of `policies.files` of the agent's configuration. The command ends when
the kernel goes by it, and says for which Pods what has changed. Policies of the API server are not touched: kubectl applies those.

Examples:
  sidestep policy apply shop.yaml
  sidestep policy apply --dry-run policies/")]
pub struct ApplyArgs {
    /// Files, directories of them (*.yaml, *.yml, *.json), or - for standard input
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How it is brought into force.
    #[command(flatten)]
    pub how: ApplyOptionArgs,
}

/// Which policies, and how.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep policy delete shop/web
  sidestep policy delete every-pod        a ClusterSidestepPolicy")]
pub struct DeleteArgs {
    /// The policies; without a namespace those of the cluster
    #[arg(required = true, value_name = "[NAMESPACE/]NAME", value_parser = policy_key)]
    pub policies: Vec<Key>,
    /// How it is brought into force.
    #[command(flatten)]
    pub how: ApplyOptionArgs,
}

/// How a change is brought into force.
#[derive(Args, Clone, Debug)]
pub struct ApplyOptionArgs {
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// How long it may take until it is in force
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = interval)]
    pub timeout: Duration,
    /// Where the agent answers.
    #[command(flatten)]
    pub socket: SocketArgs,
}

impl ApplyOptionArgs {
    const fn options(&self) -> ApplyOptions {
        ApplyOptions { timeout: self.timeout, is_dry_run: self.dry_run }
    }
}

fn policy_key(text: &str) -> Result<Key, String> {
    if !text.contains('/') && !text.is_empty() {
        return Ok(Key { namespace: None, name: text.into() });
    }
    let (namespace, name) = namespaced(text).map_err(|_| "must be NAMESPACE/NAME, or NAME".to_owned())?;
    Ok(Key { namespace: Some(namespace.into()), name: name.into() })
}

impl ApplyArgs {
    fn execute(&self) -> ExitCode {
        let Self { paths, how } = self;
        match policy_files::documents_of(paths) {
            Ok((policies, documents)) => {
                warn(&policies);
                ask_agent(&how.socket, |path| apply(path, &documents, how.options(), &mut io::stdout()))
            }
            Err(error) => {
                eprintln!("{}", error.render(colors(&io::stderr())));
                ExitCode::FAILURE
            }
        }
    }
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

/// What would be done.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Nothing is sent, and no token is taken: the agent goes by the rules that hold.

Examples:
  sidestep policy explain shop/web-5d9c7 --to 10.96.0.10 --port 53 --protocol udp
  sidestep policy explain shop/web-5d9c7 --from 10.0.0.9 --port 8080
  sidestep policy explain shop/web-5d9c7 --from 10.0.0.9 --port 8080 --method POST --path /search")]
#[command(group(ArgGroup::new("peer").required(true).args(["to", "from"])))]
pub struct ExplainArgs {
    /// The Pod
    #[arg(value_name = "NAMESPACE/NAME", value_parser = namespaced)]
    pub pod: (String, String),
    /// The address that the Pod connects or sends to
    #[arg(long, value_name = "ADDRESS")]
    pub to: Option<IpAddr>,
    /// The address that connects or sends to the Pod
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<IpAddr>,
    /// The port of who is connected or sent to
    #[arg(long, value_name = "PORT")]
    pub port: u16,
    /// By which protocol
    #[arg(long, value_enum, default_value_t, value_name = "PROTOCOL")]
    pub protocol: Protocol,
    /// The path of an HTTP request that comes to the Pod
    #[arg(long, value_name = "PATH", value_parser = path, conflicts_with = "to")]
    pub path: Option<String>,
    /// The method of the request
    #[arg(long, value_name = "METHOD", default_value = "GET", requires = "path")]
    pub method: String,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Where the agent answers.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Of which a policy knows ports.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Protocol {
    /// Connections
    #[default]
    Tcp,
    /// Datagrams
    Udp,
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("begins with a slash".to_owned()) }
}

impl ExplainArgs {
    fn execute(self) -> ExitCode {
        let Self { pod: (namespace, pod), to, from, port, protocol, path, method, output, socket } = self;
        // Clap has seen to it that there is one of them.
        let Some(peer) = to.or(from) else { return ExitCode::from(2) };
        let protocol = match protocol {
            Protocol::Tcp => judge::TCP,
            Protocol::Udp => judge::UDP,
        };
        if path.is_some() && protocol == judge::UDP {
            eprintln!("error: --path is of requests by TCP");
            return ExitCode::from(2);
        }
        let request = path.map(|path| (method, path));
        let request = JudgeRequest { namespace, pod, is_egress: to.is_some(), peer, port, protocol, request };
        let (screen, json) = (Screen::stdout(Color::Auto), output == Format::Json);
        ask_agent(&socket, |path| judgement(path, request, json, (screen, &mut io::stdout())))
    }
}

/// How often, and of which Pods.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
PEERS are those of the refusals of the last minute that were told of: each peer at most once a second, and ten a second
for each Pod. All refusals are counted.

Examples:
  sidestep policy top
  sidestep policy top --namespace shop --interval 5s
  sidestep policy top --count 2 --output json | tail -1 | jq .")]
pub struct TopArgs {
    /// Only Pods of this namespace
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How often; at least 100ms, and counts are a second old at most
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    pub interval: Duration,
    /// End after so many
    #[arg(long, value_name = "NUMBER")]
    pub count: Option<u64>,
    /// How to print it: as JSON one object a line
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Where the agent answers.
    #[command(flatten)]
    pub socket: SocketArgs,
}

impl TopArgs {
    fn execute(self) -> ExitCode {
        let Self { namespace, interval, count, output, socket } = self;
        let options = TopOptions { namespace, interval, count, json: output == Format::Json };
        ask_agent(&socket, |path| top(path, &options, Screen::stdout(Color::Auto), &mut io::stdout()))
    }
}

impl PolicyArgs {
    /// Does it; returns the exit code: 0, 1 when a file can't be read or is wrong, the agent refuses, or not all is in force, 2 for a bad
    /// configuration, 3 when no agent runs, 4 without permission.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        match self.what {
            What::Check(check) => check.execute(),
            What::Apply(apply) => apply.execute(),
            What::Delete(DeleteArgs { policies, how }) => {
                ask_agent(&how.socket, |path| delete(path, &policies, how.options(), &mut io::stdout()))
            }
            What::Show(show) => show.execute(View::Show),
            What::Counters(show) => show.execute(View::Counters),
            What::Explain(explain) => explain.execute(),
            What::Top(top) => top.execute(),
        }
    }
}

/// Says what is right and may not be meant; whether there was something.
fn warn(policies: &Policies) -> bool {
    let colors = colors(&io::stderr());
    let warnings: Vec<_> = policies.all().flat_map(|policy| policy.warnings()).collect();
    warnings.iter().for_each(|warning| eprintln!("{}", render_warning(warning, colors)));
    !warnings.is_empty()
}

impl CheckArgs {
    fn execute(&self) -> ExitCode {
        match policy_files::read(&self.paths) {
            Ok(policies) => {
                let now = Timestamp::now();
                for policy in policies.all() {
                    let dates = policy.window().and_then(|window| window.in_words(now));
                    let dates = dates.map(|dates| format!("; its traffic part {dates}")).unwrap_or_default();
                    println!("{}: ok{dates}", policy.key);
                }
                if policies.all().next().is_none() {
                    println!("no policies");
                }
                let has_warnings = warn(&policies);
                if self.strict && has_warnings { ExitCode::FAILURE } else { ExitCode::SUCCESS }
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
        let screen = Screen::stdout(Color::Auto);
        ask_agent(&self.socket, |path| {
            governance(path, view, self.namespace.as_deref(), json, (screen, &mut io::stdout()))
        })
    }
}
