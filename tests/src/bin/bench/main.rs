//! What the agent costs and what it carries: measured on this machine, with and without it in turns.
//!
//! `agent/docs/benchmarks.md` says what each figure means and how it is taken.

mod bandwidth;
mod copier;
mod cost;
mod delivery;
mod governance;
mod kubernetes;
mod latency;
mod machine;
mod memory;
mod process;
mod report;
mod requests;
mod rsyslog;
mod session;
mod statistics;
mod throughput;
mod worker;
mod writer;
mod writes;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use session::Session;

/// What a shell reports for a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Measures Sidestep. Needs root; touches nothing but what it starts.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// Capture of logs, from the write to the sink.
    Logs {
        /// What to measure; everything when none is named.
        names: Vec<Benchmark>,
        /// A short run, under a minute: shows that all works; its figures are rough.
        #[arg(long)]
        quick: bool,
        /// Writes the figures with all samples to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Delivery to a log center, from the write to the store's acknowledgement.
    Delivery {
        /// What to measure; everything when none is named.
        names: Vec<Delivered>,
        /// A short run, under two minutes: shows that all works; its figures are rough.
        #[arg(long)]
        quick: bool,
        /// Writes the figures with all samples to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// The agent on a real node of Kubernetes.
    Kubernetes {
        /// What to measure; everything when none is named.
        names: Vec<kubernetes::Measured>,
        /// A short run, under five minutes: shows that all works; its figures are rough.
        #[arg(long)]
        quick: bool,
        /// Writes the figures with all samples to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// What a policy costs the Pods that it governs, and what a refusal costs.
    Governance {
        /// What to measure; everything when none is named.
        names: Vec<governance::Governed>,
        /// A short run, under a minute: shows that all works; its figures are rough.
        #[arg(long)]
        quick: bool,
        /// Writes the figures with all samples to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// The writer that is measured: runs in a container and takes its orders from a socket.
    #[command(hide = true)]
    Worker {
        /// The socket of the benchmark.
        socket: PathBuf,
    },
    /// Stands for the container runtime: lines of stdin in CRI's format to a file.
    #[command(hide = true)]
    Copier {
        /// The container's log file.
        file: PathBuf,
    },
}

/// One group of figures.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Benchmark {
    /// What a system call costs more: a captured write, and calls outside of the governed cgroups.
    Writes,
    /// CPU per GB into a rotating JSON file, beside rsyslog.
    Cpu,
    /// Lines per second without a drop.
    Throughput,
    /// From the write to the sink.
    Latency,
    /// Resident memory with many containers.
    Memory,
}

/// One group of figures of delivery.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Delivered {
    /// CPU per GB to Kafka, beside rsyslog with omkafka.
    Kafka,
    /// CPU per GB to OpenSearch, and what compression and JSON have of it.
    Opensearch,
    /// Lines per second to Kafka without a drop, the broker on the same cores.
    Throughput,
    /// From the write to a consumer of Kafka.
    Latency,
    /// From the start of an agent to the first record delivered.
    Restart,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().suite {
        Suite::Worker { socket } => worker::run(&socket).map(|()| ExitCode::SUCCESS),
        Suite::Copier { file } => copier::run(&file).map(|()| ExitCode::SUCCESS),
        Suite::Logs { names, quick, json } => measure(&names, quick, json, logs),
        Suite::Delivery { names, quick, json } => measure(&names, quick, json, delivery::run),
        Suite::Governance { names, quick, json } => measure(&names, quick, json, governance::run),
        Suite::Kubernetes { names, quick, json } => measure(&names, quick, json, kubernetes::run),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn logs(benchmark: Benchmark, session: &mut Session) -> Result<()> {
    match benchmark {
        Benchmark::Writes => writes::run(session),
        Benchmark::Cpu => cost::run(session),
        Benchmark::Throughput => throughput::run(session),
        Benchmark::Latency => latency::run(session),
        Benchmark::Memory => memory::run(session),
    }
}

/// Runs the benchmarks one after the other; one that fails leaves the others their turn.
fn measure<B>(
    names: &[B],
    quick: bool,
    json: Option<PathBuf>,
    run: fn(B, &mut Session) -> Result<()>,
) -> Result<ExitCode>
where
    B: ValueEnum + Copy + PartialEq + std::fmt::Debug,
{
    let mut session = Session::new(quick)?;
    let mut failed = false;
    for benchmark in B::value_variants() {
        if session.interrupted() || !(names.is_empty() || names.contains(benchmark)) {
            continue;
        }
        if let Err(error) = run(*benchmark, &mut session) {
            eprintln!("bench: {benchmark:?}: {error:#}");
            failed = true;
        }
    }
    if session.interrupted() {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    print!("{}", session.report.table());
    if let Some(path) = json {
        session.report.write_json(&path)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
