//! Starts, shows and removes a Kubernetes cluster on this machine: `cargo xtask cluster`, which prepares what it needs.

use std::{os::unix::process::CommandExt, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use sidestep_tests::cluster::{self, AGENT, BUSYBOX, Cluster, Software, Started};
use xtask::helm;

/// A real Kubernetes cluster on this machine, from its own programs: each node has its own namespaces, containerd and
/// kubelet. Needs root; touches nothing of the machine's own network.
#[derive(Debug, Parser)]
#[command(name = "cluster", bin_name = "cargo xtask cluster", max_term_width = 110, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

const EXAMPLES: &str = "\
Where to begin:
  cargo xtask cluster up                    one node, with the agent's image on it
  cargo xtask cluster kubectl get pods -A
  cargo xtask cluster kubectl apply -k deploy/kustomize/base
  cargo xtask cluster exec helm list        any client, in the cluster's network, with KUBECONFIG
  cargo xtask cluster load-image            the agent's image again, after a new build
  cargo xtask cluster load-image nginx      a server, made of Debian's packages: nginx:debian
  cargo xtask cluster down

The API server is reached from inside the cluster's network only: `kubectl` and `exec` enter it.
The first `up` builds Kubernetes, 8 to 15 minutes on two cores.

Environment:
  SIDESTEP_AGENT      the agent for the image; without it one is built for release
  SIDESTEP_CLUSTER    the cluster's name, as --name

Exit status: 0 done, 1 failed (`status`: not all of it runs), 2 wrong use; `kubectl` and `exec`
pass on that of what they ran.";

#[derive(Debug, Subcommand)]
enum Task {
    /// Start a cluster and wait until its nodes are ready; says so when it runs already
    Up {
        #[command(flatten)]
        which: Which,
        /// How many nodes, each with namespaces, containerd and kubelet of its own
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        nodes: u8,
    },
    /// Remove a cluster with all that belongs to it, also what a crashed run left
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// Show whether its nodes are ready, its Pods, and where its files are
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// Import the agent's image again (a new build of it), images of servers, or archives made elsewhere
    LoadImage {
        #[command(flatten)]
        which: Which,
        /// `python`, `nginx`, `redis`, `postgresql` or `grpc`, made of Debian's packages; or archives, as `docker save` and
        /// `cargo xtask image` write them; nothing for the agent
        images: Vec<PathBuf>,
    },
    /// Run kubectl on the cluster
    #[command(disable_help_flag = true)]
    Kubectl(Client),
    /// Run a program in the cluster's network, with KUBECONFIG set
    #[command(disable_help_flag = true)]
    Exec(Client),
}

#[derive(Args, Debug)]
struct Which {
    /// The cluster's name; clusters with different names do not meet
    #[arg(long, default_value = DEFAULT, env = "SIDESTEP_CLUSTER")]
    name: String,
}

#[derive(Args, Debug)]
struct Client {
    #[command(flatten)]
    which: Which,
    /// The arguments, or the program with its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The usual name of a cluster.
const DEFAULT: &str = "sidestep";

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Up { which, nodes } => up(&which.name, nodes).map(|()| ExitCode::SUCCESS),
        Task::Down { which } => down(&which.name).map(|()| ExitCode::SUCCESS),
        Task::Status { which } => status(&which.name),
        Task::LoadImage { which, images } => load(&which.name, &images).map(|()| ExitCode::SUCCESS),
        Task::Kubectl(client) => run(&client.which.name, "kubectl", &client.arguments),
        Task::Exec(client) => match client.arguments.split_first() {
            // Who follows the quick start has no helm yet.
            Some((program, arguments)) if program == "helm" => {
                let helm = helm::build()?;
                run(&client.which.name, helm.to_str().context("a path that is no text")?, arguments)
            }
            Some((program, arguments)) => run(&client.which.name, program, arguments),
            None => bail!("no program is named: `cargo xtask cluster exec helm list`"),
        },
    }
}

fn up(name: &str, nodes: u8) -> Result<()> {
    let begin = Instant::now();
    let Started { cluster, before } =
        cluster::up(name, nodes, &|step| eprintln!("  {:5.1} s  {step}", begin.elapsed().as_secs_f64()))?;
    if before {
        eprintln!("cluster {name} runs already");
    } else {
        eprintln!("cluster {name} is ready after {:.1} s", begin.elapsed().as_secs_f64());
    }
    usage(&cluster);
    Ok(())
}

/// What to do with it; on stdout what a shell can take.
fn usage(cluster: &Cluster) {
    let place = cluster.place();
    let option = if place.name() == DEFAULT { String::new() } else { format!(" --name {}", place.name()) };
    eprintln!("  cargo xtask cluster kubectl{option} get pods -A");
    eprintln!("  cargo xtask cluster down{option}");
    eprintln!("  images               {BUSYBOX}, {AGENT}");
    for node in cluster.nodes() {
        eprintln!("  {:20} capture.cgroup_roots: [{}]", node.name(), node.pods_cgroup());
        eprintln!("  {:20} /var/lib is {}", "", node.path("/var/lib/").display());
    }
    eprintln!("  logs of components   {}", place.logs().display());
    eprintln!("  its API server answers in its own network alone: cargo xtask cluster exec{option} PROGRAM ...");
    println!("export KUBECONFIG={}", place.kubeconfig().display());
}

fn down(name: &str) -> Result<()> {
    if !cluster::exists(name)? {
        eprintln!("there is no cluster {name}");
        return Ok(());
    }
    cluster::remove(name)?;
    eprintln!("cluster {name} is removed");
    Ok(())
}

fn find(name: &str) -> Result<Cluster> {
    let found = Cluster::find(name)?;
    found.with_context(|| format!("there is no cluster {name}: `cargo xtask cluster up` starts one"))
}

fn status(name: &str) -> Result<ExitCode> {
    let Some(cluster) = Cluster::find(name)? else {
        eprintln!("there is no cluster {name}: `cargo xtask cluster up` starts one");
        return Ok(ExitCode::FAILURE);
    };
    let missing = cluster.missing();
    for process in &missing {
        eprintln!("{process} does not run");
    }
    match cluster.kubectl(&["get", "nodes,pods", "--all-namespaces", "--output=wide"]) {
        Ok(text) => eprint!("{text}"),
        Err(error) => eprintln!("{error:#}"),
    }
    usage(&cluster);
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn load(name: &str, images: &[PathBuf]) -> Result<()> {
    let cluster = find(name)?;
    if images.is_empty() {
        cluster.import_agent()?;
        eprintln!("{AGENT}");
    }
    for image in images {
        if let Some(software) = Software::ALL.into_iter().find(|software| image.as_os_str() == software.name()) {
            cluster.import_software(software)?;
            eprintln!("{}", software.image());
        } else {
            let archive = image.canonicalize().with_context(|| image.display().to_string())?;
            cluster.import(&archive)?;
            eprintln!("{}", archive.display());
        }
    }
    Ok(())
}

/// Becomes the program; it returns only when that can't be started.
fn run(name: &str, program: &str, arguments: &[String]) -> Result<ExitCode> {
    Err(find(name)?.client(program)?.args(arguments).exec()).with_context(|| format!("starting {program}"))
}
