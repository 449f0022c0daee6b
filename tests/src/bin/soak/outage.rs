//! `soak outage`

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use sidestep_tests::{
    Testbed,
    kafka::Broker,
    outage::{Away, Buffer, Plan, run},
};

/// How often it is told how far it is.
const EVERY: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
pub(crate) struct Outage {
    /// For how many minutes the broker is away, each time
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Lines a second of each of both writers of each of the three agents
    #[arg(long, default_value_t = 1000)]
    rate: u32,
}

impl Outage {
    pub(crate) fn execute(&self) -> Result<()> {
        ensure!((0.05..=1440.0).contains(&self.minutes), "--minutes must be from 0.05 to 1440");
        let time = Duration::from_secs_f64(self.minutes * 60.0);
        let bed = Testbed::new()?;
        eprintln!("starting a Kafka broker");
        let mut broker = Broker::start(&bed)?;
        let mut result = Ok(());
        for (away, what) in [(Away::Frozen, "frozen"), (Away::Killed, "killed")] {
            eprintln!("three agents; the broker is {what} for {} s", time.as_secs());
            let mut told = Instant::now();
            let reports = run(&mut broker, Plan { away, time, rate: self.rate }, &Buffer::ALL, |elapsed| {
                if told.elapsed() >= EVERY {
                    told = Instant::now();
                    let end = if std::io::stderr().is_terminal() { '\r' } else { '\n' };
                    eprint!("{} of {} s  {end}", elapsed.as_secs(), time.as_secs());
                }
            })?;
            for report in reports {
                print!("{report}");
                // All are shown before the first that failed.
                result = result.and(report.check());
            }
        }
        result
    }
}
