//! `cargo xtask`: everything that is done to this project, in one place and without hand work.

mod build;
mod chart;
mod cluster;
mod delegate;
mod image;
mod lint;
mod manifests;
mod setup;
mod test;
mod vm;
mod workspace;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
// The modules of the library, by the names that those of the tasks have.
use xtask::{cache, command, helm, kubernetes, libraries, pack, ui};

use setup::Purpose;
use test::Selection;
use workspace::Workspace;

/// Sets up, builds, shows, tests and packs Sidestep.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

const EXAMPLES: &str = "\
Where to begin:
  cargo xtask demo              set up what is missing, build, and show the agent at work
  cargo xtask demo --kafka      the same with a Kafka broker that the lines are delivered to (needs Java)
  cargo xtask cluster up        start a Kubernetes node in a network of its own, with the agent's image on it
  cargo xtask test              set up what is missing, build, and run every test
  cargo xtask test drain        only tests whose name has `drain` in it

Results:
  target/ebpf/sidestep-ebpf     the kernel programs, which the agent embeds
  target/debug/sidestep         the agent (target/release/ with --release)

Environment:
  CARGO_TARGET_DIR              another place for target/
  XDG_CACHE_HOME                where bpf-linker, kernels, helm and Kubernetes are kept, below sidestep/ (default ~/.cache)
  NO_COLOR                      no colours, also on a terminal

Exit status: 0 done, 1 failed, 2 wrong use; `run`, `demo`, `bench`, `cluster`, `soak`, `test` and `vm`\npass on that of what they ran.";

#[derive(Subcommand)]
enum Task {
    /// Find or install what the other tasks need; does nothing that is done already
    Setup(SetupArguments),
    /// Build the kernel programs, then the agent with them embedded
    Build(BuildArguments),
    /// Build the agent and run it: `cargo xtask run -- run --config FILE`
    Run(RunArguments),
    /// Show the agent at work on sample containers, then clean up
    #[command(after_help = "`cargo xtask demo -- --help` shows the demo's own options.")]
    Demo(DelegateArguments),
    /// Measure cost and throughput: `cargo xtask bench logs`
    #[command(after_help = "`cargo xtask bench -- --help` shows the benchmarks' own options.")]
    Bench(DelegateArguments),
    /// Put the agent under load for long: `cargo xtask soak kills` kills it a thousand times, `soak outage` takes away
    /// the broker for ten minutes, `soak kubernetes-pods` has a thousand Pods come and go
    #[command(after_help = "`cargo xtask soak -- --help` shows the runs and their options.")]
    Soak(DelegateArguments),
    /// Start, show and remove a Kubernetes cluster on this machine: `cargo xtask cluster up`
    #[command(disable_help_flag = true)]
    Cluster(DelegateArguments),
    /// Run every test: on kernels 6.1 and 6.12 in emulation, then on this machine and on a Kubernetes node
    Test(TestArguments),
    /// Check formatting, clippy's lints, the dependencies and the chart
    Lint,
    /// Boot other kernels in emulation, and run a program with the agent in them
    Vm(vm::Guest),
    /// Render the chart into `deploy/kustomize`
    Manifests(ManifestsArguments),
    /// Pack the agent as an OCI archive for `docker load` and `ctr image import`
    Image(ImageArguments),
}

#[derive(Args)]
struct SetupArguments {
    /// What to set up for; may be repeated, and without it everything is
    #[arg(long = "for", value_name = "PURPOSE")]
    purposes: Vec<Purpose>,
    /// Only report what is there and what is missing
    #[arg(long)]
    check: bool,
}

#[derive(Args)]
struct ProfileArguments {
    /// Optimise the agent; the kernel programs always are
    #[arg(long)]
    release: bool,
}

#[derive(Args)]
struct BuildArguments {
    #[command(flatten)]
    profile: ProfileArguments,
    /// Build the agent with another layout of records as well, for the tests of an upgrade
    #[arg(long)]
    next: bool,
}

#[derive(Args)]
struct RunArguments {
    #[command(flatten)]
    profile: ProfileArguments,
    /// Arguments of the agent
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Args)]
struct DelegateArguments {
    /// Arguments of the program in `tests/src/bin/`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Args)]
struct TestArguments {
    /// Leave out the emulated kernels
    #[arg(long)]
    no_vm: bool,
    /// Leave out the tests on a Kubernetes cluster
    #[arg(long)]
    no_cluster: bool,
    #[command(flatten)]
    profile: ProfileArguments,
    /// Only tests with one of these in their name, not in emulation; also options of test programs, after `--`
    #[arg(trailing_var_arg = true)]
    filters: Vec<String>,
}

#[derive(Args)]
struct ManifestsArguments {
    /// Write nothing, and fail where a file is not what the chart renders
    #[arg(long)]
    check: bool,
}

#[derive(Args)]
struct ImageArguments {
    /// Where to write it [default: target/sidestep-image.tar]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Registry, repository and tag [default: docker.io/library/sidestep:VERSION]
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match perform(arguments.task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !command::is_interrupt(&error) {
                ui::error(&error);
            }
            ExitCode::from(command::exit_code(&error))
        }
    }
}

fn perform(task: Task) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup(arguments) => setup::setup(&workspace, &arguments.purposes, arguments.check),
        Task::Build(arguments) => {
            let release = arguments.profile.release;
            build::build(&workspace, release)?;
            if arguments.next { build::build_next(&workspace, release) } else { Ok(()) }
        }
        Task::Run(arguments) => delegate::run(&workspace, arguments.profile.release, &arguments.arguments),
        Task::Demo(arguments) => delegate::demo(&workspace, &arguments.arguments),
        Task::Bench(arguments) => delegate::bench(&workspace, &arguments.arguments),
        Task::Soak(arguments) => delegate::soak(&workspace, &arguments.arguments),
        Task::Cluster(arguments) => cluster::cluster(&workspace, &arguments.arguments),
        Task::Test(arguments) => {
            let TestArguments { no_vm, no_cluster, profile: ProfileArguments { release }, filters } = &arguments;
            let selection = Selection { no_vm: *no_vm, no_cluster: *no_cluster, release: *release, filters };
            test::test(&workspace, &selection)
        }
        Task::Lint => lint::lint(&workspace),
        Task::Vm(guest) => vm::vm(&workspace, &guest, false),
        Task::Manifests(arguments) => manifests::manifests(&workspace, arguments.check),
        Task::Image(arguments) => image::image(&workspace, arguments.output.as_deref(), arguments.name.as_deref()),
    }
}
