//! Long runs that a test has no time for: what the agent promises, over and over.

use std::{io::IsTerminal as _, process::ExitCode, time::Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::json;
use sidestep_tests::{
    Agent, Testbed,
    kafka::Broker,
    kills::{Load, Moments, check_kafka, kill_again_and_again},
};

/// Puts Sidestep under load for long. Needs root; touches nothing but what it starts.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Arguments {
    #[command(subcommand)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Kills the agent at random moments under a constant load of numbered lines from a pipe and a file; in the end
    /// every line has to be in Kafka.
    Kills {
        /// How often.
        #[arg(long, default_value_t = 1000)]
        kills: u32,
        /// Lines a second of each of both writers.
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        /// The moments of the kills: a seed gives the same ones again.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().run {
        Run::Kills { kills, rate, seed } => run_kills(kills, rate, seed),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_kills(kills: u32, rate: u32, seed: u64) -> Result<()> {
    let bed = Testbed::new()?;
    let result = kills_in(&bed, kills, rate, seed);
    if result.is_err() {
        bed.show_agent_logs();
    }
    result
}

fn kills_in(bed: &Testbed, kills: u32, rate: u32, seed: u64) -> Result<()> {
    eprintln!("starting a Kafka broker");
    let broker = Broker::start(bed)?;
    ["logs.pod", "logs.business"].iter().try_for_each(|topic| broker.create_topic(topic))?;
    let config = bed.config().with("/capture/pin", json!(bed.pins()));
    let config = config.with("/sinks", json!([{ "type": "kafka", "brokers": [broker.address()] }]));
    let load = Load::start(bed, &config, rate)?;
    let start = Instant::now();
    let mut ready = 0;
    let every = if std::io::stderr().is_terminal() { 1 } else { 50 };
    kill_again_and_again(bed, &config, &load, kills, Moments::new(seed), |kill, was_ready| {
        ready += u32::from(was_ready);
        if kill % every == 0 {
            let (end, took) = (if every == 1 { '\r' } else { '\n' }, start.elapsed().as_secs());
            eprint!("{kill} of {kills} kills, {ready} of agents that were ready, {took} s{end}");
        }
    })?;
    eprintln!("\nthe last agent delivers what is left");
    let agent = Agent::start(bed, &config)?;
    let written = load.stop()?;
    load.wait_delivered(&agent)?;
    agent.stop()?;
    let repeated = check_kafka(&broker, &written)?;
    let lines: u64 = written.iter().map(|(_, lines)| lines).sum();
    println!(
        "{kills} kills, {ready} of agents that were ready: all of {lines} lines are in Kafka, {repeated} more than once"
    );
    Ok(())
}
