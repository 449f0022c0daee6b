//! The agent at work on sample containers, for people: lines with their Pods as they are written, then the ledger
//! and the metrics. Ends by itself, cleans up whatever happens, and fails when a ledger doesn't balance.

mod account;
mod broker;
mod limits;
mod samples;
mod screen;

use std::{
    collections::HashMap,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use sidestep_tests::{Agent, Testbed, agent, records::Tail};
use signal_hook::{consts, flag};

use account::Accounts;
use broker::Kafka;
use limits::Limits;
use samples::Samples;
use screen::Screen;

/// How often new records and the ledger are looked at.
const POLL: Duration = Duration::from_millis(100);

/// What of the time is kept for start, drain and clean-up.
const RESERVE: Duration = Duration::from_secs(8);

/// What a shell reports for a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Shows Sidestep capturing the logs of sample containers. Needs root; touches nothing but what it starts.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// How long the whole demo takes, about.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(12..=600))]
    seconds: u64,
    /// Delivers to a Kafka broker too, which is started for it (needs Java and Maven), and shows what a consumer reads.
    #[arg(long)]
    kafka: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [consts::SIGINT, consts::SIGTERM, consts::SIGHUP] {
        if let Err(error) = flag::register(signal, Arc::clone(&stop)) {
            eprintln!("demo: clean-up after a signal isn't possible: {error}");
            return ExitCode::FAILURE;
        }
    }
    match run(&arguments, &stop) {
        Ok(()) if stop.load(Ordering::Relaxed) => ExitCode::from(INTERRUPTED),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that is started lives in the test bed, which is removed at the end of this function.
fn run(arguments: &Arguments, stop: &AtomicBool) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(arguments.seconds).saturating_sub(RESERVE);
    let mut screen = Screen::new();
    let limits = Limits::prepare()?;
    let bed = Testbed::new().context("preparing a place for the sample containers")?;
    let mut kafka = None;
    if arguments.kafka {
        screen.heading("Starting a Kafka broker, and a consumer");
        let started = Kafka::start(&bed)?;
        screen.text(&format!("one broker at {}, topics logs.pod and logs.business", started.address()));
        kafka = Some(started);
    }
    screen.heading("Starting the agent");
    let mut config = bed
        .config()
        .with("/lines/multiline/rules", json!(["java"]))
        // A small ring, so that the flood has something to fill.
        .with("/capture/ring_size", json!("4MiB"));
    if let Some(kafka) = &kafka {
        config = config.with("/sinks/1", kafka.sink());
    }
    if limits.is_some() {
        config = config.with("/policies/files", json!([limits::write_policy(&bed)?]));
    }
    let agent = Agent::start(&bed, &config)?;
    screen.text(&format!(
        "pid {}, governs {}, socket {}",
        agent.pid().as_raw_nonzero(),
        bed.cgroup_root(),
        config.socket().display()
    ));
    screen.heading("A policy");
    match &limits {
        Some(_) => screen.text(limits::POLICY.trim_end()),
        None => screen.text("limits of requests are left out: they take Linux 6.6"),
    }

    screen.heading("Sample containers, and their lines as they come out of the agent");
    let mut samples = Samples::start(&bed, limits.as_ref().map(Limits::network))?;
    let mut accounts = Accounts::default();
    let mut tail = Tail::default();
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        samples.tick(&bed)?;
        follow(&agent, &samples, &mut tail, &mut accounts, &mut screen)?;
        if let Some(kafka) = &mut kafka {
            kafka.tick(&agent, &screen)?;
        }
        thread::sleep(POLL);
    }
    if stop.load(Ordering::Relaxed) {
        screen.text("interrupted: cleaning up");
        return Ok(());
    }

    samples.finish()?;
    let settle = Instant::now() + RESERVE;
    while !accounts.settled(&samples)? && Instant::now() < settle && !stop.load(Ordering::Relaxed) {
        follow(&agent, &samples, &mut tail, &mut accounts, &mut screen)?;
        thread::sleep(POLL);
    }
    screen.flush_flood();
    screen.heading("The ledger: produced = delivered + pending + dropped, in bytes");
    let table = accounts.table(&samples)?;
    screen.table(&table);
    if let Some(kafka) = &mut kafka {
        screen.heading("In Kafka");
        kafka.finish(&agent, &mut accounts, &samples, &screen)?;
    }
    if limits.is_some() {
        screen.heading("What the kernel has answered with 429, with no proxy (sidestep policy counters)");
        screen.text(limits::counters(&config)?.trim_end());
    }
    screen.heading("From /metrics");
    screen.metrics(&agent.get("/metrics")?.body, samples.shown_pod());
    agent.stop()?;
    accounts.check(&samples)?;
    screen.heading("Try next");
    screen.text(&try_next());
    Ok(())
}

/// The same agent, on this machine's own containers.
fn try_next() -> String {
    let agent = agent::binary().map_or_else(|_| "sidestep".to_owned(), |path| path.display().to_string());
    format!(
        "{agent} doctor                  what works on this machine\n\
         {agent} config --example        every option, to begin a configuration with\n\
         {agent} run                     the lines of this machine's containers on the terminal\n\
         {agent} status --watch          beside it: the ledger of each container"
    )
}

/// Shows new records and notes the ledgers.
fn follow(
    agent: &Agent,
    samples: &Samples,
    tail: &mut Tail,
    accounts: &mut Accounts,
    screen: &mut Screen,
) -> Result<()> {
    let mut counts: HashMap<String, u64> = HashMap::new();
    for record in tail.poll(agent.records_directory())? {
        let length = record.value["length"].as_u64().context("a record without length")?;
        *counts.entry(record.resource("container.id").to_owned()).or_default() += length;
        screen.record(&record, samples.floods(record.resource("container.id")));
    }
    accounts.note(counts, &agent.metrics()?);
    screen.tick();
    Ok(())
}
