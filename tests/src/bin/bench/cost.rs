//! CPU per GB: lines of 500 B into a JSON file, by the agent and by rsyslog behind the runtime's file.

use std::{fs, io, time::Duration};

use anyhow::Result;
use rustix::process::Pid;
use serde_json::json;
use sidestep_tests::{Agent, Ledger, Testbed};

use crate::{
    process::{cpu_seconds, wait_idle},
    report::{Figure, Target},
    rsyslog::{Chain, Output},
    session::{self, Session},
    worker::{Job, Took},
    writer::Writer,
};

const LINE: usize = 500;

/// 50 MB/s: far more than a container's usual, far less than the agent can take.
const LINES_PER_SECOND: u64 = 100_000;

/// What is aimed at, in seconds for a GB (10^9 bytes, as the container wrote them).
const TARGET: f64 = 2.7;

/// Small, so that files are cut and compressed several times in a round.
const MAX_FILE: &str = "64MiB";

/// How long the compression of the last closed file may take.
const IDLE: Duration = Duration::from_secs(60);

/// Seconds of CPU for a GB, one sample a round.
#[derive(Default)]
struct Cost {
    agent: Vec<f64>,
    writer: Vec<f64>,
    total: Vec<f64>,
}

pub(crate) fn run(session: &mut Session) -> Result<()> {
    session.step("cpu: CPU per GB of 500 B lines, in turns without the agent, with it, and with rsyslog");
    let bed = Testbed::new()?;
    let mut writer = Writer::drained(&bed, "writer", None)?;
    let time = session.choose(Duration::from_secs(6), Duration::from_millis(1500));
    let job = Job::Lines { size: LINE, per_second: Some(LINES_PER_SECOND), time };
    // The first lines fault pages in.
    writer.perform_one(Job::Lines { size: LINE, per_second: Some(LINES_PER_SECOND), time: time / 10 })?;
    let (mut plain, mut compressed) = (Cost::default(), Cost::default());
    let mut alone = Vec::new();
    let (mut rsyslogd, mut copier) = (Vec::new(), Vec::new());
    for _ in 0..session.choose(3, 1) {
        let without = per_gigabyte(writer.perform_one(job)?);
        alone.push(without);
        for (compression, cost) in [("none", &mut plain), ("zstd", &mut compressed)] {
            with_agent(session, &bed, &mut writer, job, without, compression, cost)?;
        }
        session.check()?;
        let (reader, ours, copiers) = beside_rsyslog(&bed, job)?;
        session.step(&format!("  a round: writer alone {without:.2}, beside rsyslog {ours:.2} s/GB"));
        rsyslogd.push(reader);
        copier.push(copiers);
    }
    report(session, plain, compressed, alone, rsyslogd, copier)
}

pub(crate) fn gigabytes(took: Took) -> f64 {
    took.bytes as f64 / 1e9
}

pub(crate) fn per_gigabyte(took: Took) -> f64 {
    took.cpu.as_secs_f64() / gigabytes(took)
}

fn with_agent(
    session: &mut Session,
    bed: &Testbed,
    writer: &mut Writer,
    job: Job,
    without: f64,
    compression: &str,
    cost: &mut Cost,
) -> Result<()> {
    let config = bed.config().with_records(&bed.directory().join(format!("logs-{compression}")));
    let config =
        config.with("/sinks/0/compression", json!(compression)).with("/sinks/0/max_file_bytes", json!(MAX_FILE));
    let agent = session.agent(bed, &config)?;
    let (cpu, took, ledger) = measure(&agent, writer, job)?;
    if ledger.delivered != took.bytes {
        session.report.note(format!("cpu: with {compression} not everything was delivered: {ledger:?}"));
    }
    let added = per_gigabyte(took) - without;
    cost.agent.push(cpu);
    cost.writer.push(added);
    cost.total.push(cpu + added);
    let records = agent.records_directory().to_owned();
    agent.stop()?;
    // The next round shall find as much room as this one.
    Ok(fs::remove_dir_all(records)?)
}

/// Seconds for a GB of an agent that delivers what the writer writes, what that cost the writer, and what became of it.
pub(crate) fn measure(agent: &Agent, writer: &mut Writer, job: Job) -> Result<(f64, Took, Ledger)> {
    let id = writer.container.id().to_owned();
    let before = agent.ledger(&id)?;
    let cpu = cpu_seconds(agent.pid())?;
    let took = writer.perform_one(job)?;
    let ledger = session::settle(agent, &id, &before, took.bytes)?;
    wait_idle(agent.pid(), IDLE)?;
    let cpu = (cpu_seconds(agent.pid())? - cpu) / gigabytes(took);
    Ok((cpu, took, ledger))
}

/// Seconds for a GB of rsyslogd, of the writer, and of the copier.
fn beside_rsyslog(bed: &Testbed, job: Job) -> Result<(f64, f64, f64)> {
    let (reader, stdout) = io::pipe()?;
    let chain = Chain::start(bed, reader, Output::File)?;
    let mut writer = Writer::start(bed, "rsyslog", stdout.into())?;
    wait_idle(chain.rsyslogd(), IDLE)?;
    let used = |pid: Pid| cpu_seconds(pid);
    let (rsyslogd, copier) = (used(chain.rsyslogd())?, used(chain.copier())?);
    let took = writer.perform_one(job)?;
    chain.wait_lines(took.calls)?;
    let rsyslogd = (used(chain.rsyslogd())? - rsyslogd) / gigabytes(took);
    let copier = (used(chain.copier())? - copier) / gigabytes(took);
    drop(writer);
    drop(chain);
    fs::remove_dir_all(bed.directory().join("rsyslog"))?;
    fs::remove_dir_all(bed.directory().join("control-rsyslog"))?;
    Ok((rsyslogd, per_gigabyte(took), copier))
}

fn report(
    session: &mut Session,
    plain: Cost,
    compressed: Cost,
    alone: Vec<f64>,
    rsyslogd: Vec<f64>,
    copier: Vec<f64>,
) -> Result<()> {
    const UNIT: &str = "s/GB";
    for (name, what, cost) in
        [("plain", "plain JSON file", plain), ("zstd", "JSON file, compressed with zstd (default)", compressed)]
    {
        let total = Figure::of(
            &format!("cpu_per_gb_{name}"),
            &format!("CPU, {what}: agent and what the writer pays"),
            UNIT,
            cost.total,
        )?;
        session.report.add(total.target(Target::AtMost(TARGET)));
        let agent = Figure::of(&format!("cpu_per_gb_{name}_agent"), "  of this the agent", UNIT, cost.agent)?;
        session.report.add(agent);
        let writer =
            Figure::of(&format!("cpu_per_gb_{name}_writer"), "  of this added to the writer", UNIT, cost.writer)?;
        session.report.add(writer);
    }
    session.report.add(Figure::of(
        "cpu_per_gb_rsyslog",
        "CPU, rsyslogd (imfile to omfile, JSON, no rotation)",
        UNIT,
        rsyslogd,
    )?);
    session.report.add(Figure::of("cpu_per_gb_copier", "  beside it the runtime's copier", UNIT, copier)?);
    session.report.add(Figure::of("cpu_per_gb_writer_alone", "  for scale: the writer alone", UNIT, alone)?);
    Ok(())
}
