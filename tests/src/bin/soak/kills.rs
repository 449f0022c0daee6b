//! `soak kills`

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use sidestep_tests::{
    Testbed,
    kills::{Plan, run},
};

/// How often it is told how far it is, where there is no terminal.
const EVERY: u32 = 50;

#[derive(Args, Debug)]
pub(crate) struct Kills {
    /// How often
    #[arg(long, default_value_t = 1000)]
    kills: u32,
    /// Lines a second of each of both writers
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// The moments of the kills: a seed gives the same ones again
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Kills {
    pub(crate) fn execute(&self) -> Result<()> {
        let Self { kills, rate, seed } = *self;
        let bed = Testbed::new()?;
        eprintln!("starting a Kafka broker and an OpenSearch server");
        let live = std::io::stderr().is_terminal();
        let mut start = None;
        let result = run(&bed, Plan { kills, rate, seed }, |kill, ready| {
            let start: &mut Instant = start.get_or_insert_with(Instant::now);
            if live || kill % EVERY == 0 || kill == kills {
                let took = start.elapsed();
                let left = took.mul_f64(f64::from(kills - kill) / f64::from(kill));
                let [took, left] = [took, left].map(|time| Duration::from_secs(time.as_secs()));
                let end = if live && kill < kills { '\r' } else { '\n' };
                eprint!("{kill} of {kills} kills, {ready} of agents that were ready, {took:?}, {left:?} left  {end}");
            }
            if kill == kills {
                eprintln!("the last agent delivers what is left, and all of it is read");
            }
        });
        let report = result.inspect_err(|_| bed.show_agent_logs())?;
        print!("{report}");
        report.check().inspect_err(|_| bed.show_agent_logs())
    }
}
