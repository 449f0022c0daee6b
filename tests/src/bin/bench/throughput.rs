//! How many lines a second one writer can have without losing one.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use sidestep_tests::{Agent, Testbed};

use crate::{
    report::{Figure, Target},
    session::{self, Session},
    worker::Job,
    writer::Writer,
};

const LINE: usize = 200;

const TARGET: f64 = 500_000.0;

/// Below this the search does not look.
const LOWEST: f64 = 20_000.0;

/// How long after the writer the last line may be out at most: the pauses of those who wait, and of who looks.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// What happened to the lines of one run.
#[derive(Debug)]
pub(crate) struct Run {
    /// Lines a second that the writer wrote.
    written: f64,
    /// Lines a second that came out, until the last was out.
    pub(crate) delivered: f64,
    /// Share of the bytes that were dropped.
    dropped: f64,
    /// How long was written.
    time: Duration,
    /// How long it took after that until the last line was out.
    rest: Duration,
}

impl Run {
    /// Whether nothing was lost, and not more was left to do at the writer's end than what is on its way at any time.
    fn is_sustained(&self) -> bool {
        self.dropped == 0.0 && self.rest <= self.time.mul_f64(0.1) + ON_ITS_WAY
    }
}

pub(crate) fn run(session: &mut Session) -> Result<()> {
    session.step("throughput: lines of 200 B by one writer");
    let bed = Testbed::new()?;
    let mut writer = Writer::drained(&bed, "writer", None)?;
    let time = flood_time(session);
    let flood = flood(time);
    let unobserved = writer.perform_one(flood)?;
    let unobserved = unobserved.calls as f64 / unobserved.wall.as_secs_f64();
    // Old files go, so that their memory is used again, as on a node that has run for a while: the host of a virtual
    // machine may take 10 us to give a page that was never touched.
    let config = bed.config().with("/sinks/0/max_file_bytes", json!("32MiB")).with("/sinks/0/quota", json!("256MiB"));
    let agent = session.agent(&bed, &config)?;
    session.step(&format!("  the agent is pid {}", agent.pid().as_raw_nonzero()));
    let (floods, sustained) = sustained(session, &agent, &mut writer)?;
    agent.stop()?;

    let of = |value: fn(&Run) -> f64| floods.iter().map(value).collect::<Vec<_>>();
    let figure = Figure::of(
        "sustained_lines_per_second",
        "highest rate of 200 B lines found without a drop, one writer",
        "lines/s",
        vec![sustained],
    )?;
    session.report.add(figure.target(Target::AtLeast(TARGET)));
    let name = "flood_written_lines_per_second";
    session.report.add(Figure::of(name, "  at full speed: written", "lines/s", of(|run| run.written))?);
    let name = "flood_delivered_lines_per_second";
    session.report.add(Figure::of(name, "  at full speed: delivered", "lines/s", of(|run| run.delivered))?);
    let dropped = of(|run| run.dropped * 100.0);
    session.report.add(Figure::of("flood_dropped_percent", "  at full speed: dropped", "%", dropped)?);
    let name = "flood_unobserved_lines_per_second";
    session.report.add(Figure::of(name, "  at full speed: written without agent", "lines/s", vec![unobserved])?);
    Ok(())
}

fn measure(agent: &Agent, writer: &mut Writer, job: Job) -> Result<Run> {
    let id = writer.container.id().to_owned();
    let before = agent.ledger(&id)?;
    let start = Instant::now();
    let took = writer.perform_one(job)?;
    let ledger = session::settle(agent, &id, &before, took.bytes)?;
    let run = Run {
        written: took.calls as f64 / took.wall.as_secs_f64(),
        delivered: ledger.delivered as f64 / LINE as f64 / start.elapsed().as_secs_f64(),
        dropped: ledger.dropped_total() as f64 / ledger.produced as f64,
        time: took.wall,
        rest: start.elapsed().saturating_sub(took.wall),
    };
    eprintln!("  {run:.0?}, {:?}", ledger.dropped);
    Ok(run)
}

/// Floods, and the highest rate of lines without a drop.
pub(crate) fn sustained(session: &Session, agent: &Agent, writer: &mut Writer) -> Result<(Vec<Run>, f64)> {
    let mut floods = Vec::new();
    for _ in 0..session.choose(3, 1) {
        session.check()?;
        floods.push(measure(agent, writer, flood(flood_time(session)))?);
    }
    let sustained = search(session, agent, writer, &floods)?;
    Ok((floods, sustained))
}

fn flood(time: Duration) -> Job {
    Job::Lines { size: LINE, per_second: None, time }
}

fn flood_time(session: &Session) -> Duration {
    session.choose(Duration::from_secs(5), Duration::from_secs(1))
}

/// The highest rate that is sustained: that of the writer at full speed, or one found by halving.
fn search(session: &Session, agent: &Agent, writer: &mut Writer, floods: &[Run]) -> Result<f64> {
    let slowest = floods.iter().map(|run| run.written).fold(f64::INFINITY, f64::min);
    if floods.iter().all(Run::is_sustained) {
        return Ok(slowest);
    }
    let time = session.choose(Duration::from_secs(4), Duration::from_secs(1));
    let (mut good, mut bad) = (0.0_f64, slowest);
    for _ in 0..session.choose(6, 3) {
        session.check()?;
        let rate = f64::midpoint(good.max(LOWEST), bad);
        let job = Job::Lines { size: LINE, per_second: Some(rate as u64), time };
        let run = measure(agent, writer, job)?;
        if run.is_sustained() {
            // What was written counts, not what was asked for.
            good = run.written;
        } else {
            bad = rate;
        }
    }
    Ok(good)
}
