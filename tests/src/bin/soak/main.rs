//! Long runs that a test has no time for: what the agent promises, over and over.

mod crowd;
mod kills;
mod kubernetes;
mod outage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Puts Sidestep under load for long. Needs root; touches nothing but what it starts.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Arguments {
    #[command(subcommand)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Kill the agent at random moments under a constant load of numbered lines from a pipe and a file; in the end
    /// every line has to be in Kafka at least once and in OpenSearch exactly once
    Kills(kills::Kills),
    /// Take the broker away and let it come back, once frozen and once killed: with a large buffer nothing may be lost,
    /// with a small one exactly what is counted, and the memory has to stay as it is
    Outage(outage::Outage),
    /// On a real cluster, roll and kill the agents, restart the container runtime and take the API server away, while
    /// every kind of workload writes; in the end every line has to be in Kafka, in order, with workload and labels
    Kubernetes(kubernetes::Kubernetes),
    /// On a real node, a thousand Pods come and go, or with --stay as many as it takes are there at once; every line has to
    /// come once, with its Pod's labels, and the agent has to let go of what it held for Pods that are gone
    KubernetesPods(crowd::Crowd),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().run {
        Run::Kills(kills) => kills.execute(),
        Run::Outage(outage) => outage.execute(),
        Run::Kubernetes(kubernetes) => kubernetes.execute(),
        Run::KubernetesPods(crowd) => crowd.execute(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
