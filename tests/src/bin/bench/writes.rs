//! What a system call costs more because of the agent: a captured write, and calls outside of the governed cgroups.

use std::{collections::HashMap, time::Duration};

use anyhow::Result;
use sidestep_tests::Testbed;

use crate::{
    report::{Figure, Target},
    session::{self, Session},
    statistics::median,
    worker::{Call, Job},
    writer::{ROOMY, Writer},
};

const LINE: usize = 200;

/// Fewer than fit into the pipe, so that the writer never waits for its reader: that would be the reader's time.
const BURST: u32 = 4000;

/// In which the reader and the agent catch up.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Place {
    Governed,
    Outside,
}

/// Nanoseconds of CPU a call, one sample a round.
type Samples = HashMap<(Call, Place, bool), Vec<f64>>;

const CALLS: [(Call, Place); 6] = [
    (Call::Stdout, Place::Governed),
    (Call::Stdout, Place::Outside),
    (Call::LogFile, Place::Governed),
    (Call::LogFile, Place::Outside),
    (Call::Null, Place::Outside),
    (Call::Getpid, Place::Outside),
];

pub(crate) fn run(session: &mut Session) -> Result<()> {
    session.step("writes: CPU time of a call, in turns without and with the agent");
    let governed = Testbed::new()?;
    let outside = Testbed::new()?;
    let mut writers = HashMap::from([
        (Place::Governed, Writer::drained(&governed, "governed", Some(ROOMY))?),
        (Place::Outside, Writer::drained(&outside, "outside", Some(ROOMY))?),
    ]);
    let blocks = session.choose(4, 1);
    let rounds = session.choose(4, 2);
    let mut samples = Samples::new();
    // The first calls fault pages in and create the file.
    let mut warm_up = Samples::new();
    block(session, 1, false, &mut writers, &mut warm_up)?;
    for _ in 0..blocks {
        block(session, rounds, false, &mut writers, &mut samples)?;
        let agent = session.agent(&governed, &governed.config())?;
        let id = writers[&Place::Governed].container.id().to_owned();
        let before = agent.ledger(&id)?;
        let calls = block(session, rounds, true, &mut writers, &mut samples)?;
        match session::settle(&agent, &id, &before, calls * LINE as u64) {
            Ok(ledger) if ledger.dropped.is_empty() => {}
            // What was refused or not seen costs less than what was captured.
            Ok(ledger) => session.report.note(format!("writes: not all was captured, figures too low: {ledger:?}")),
            Err(error) => session.report.note(format!("writes: not all was seen, figures too low: {error:#}")),
        }
        agent.stop()?;
    }
    report(session, &samples)
}

/// Some rounds; returns the number of governed writes.
fn block(
    session: &Session,
    rounds: u32,
    agent: bool,
    writers: &mut HashMap<Place, Writer>,
    samples: &mut Samples,
) -> Result<u64> {
    let bursts = session.choose(30, 15);
    let mut governed_writes = 0;
    for round in 0..rounds {
        session.check()?;
        let mut calls = CALLS;
        // Whatever comes second must not always be the same.
        if round % 2 == 1 {
            calls.reverse();
        }
        for (call, place) in calls {
            let Some(writer) = writers.get_mut(&place) else { continue };
            let took = writer.perform(Job::Bursts { call, size: LINE, calls: BURST, bursts, pause: PAUSE })?;
            let each: Vec<f64> = took.iter().map(crate::worker::Took::cpu_per_call).collect();
            samples.entry((call, place, agent)).or_default().push(median(&each));
            if place == Place::Governed {
                governed_writes += u64::from(BURST) * u64::from(bursts);
            }
        }
    }
    Ok(governed_writes)
}

fn report(session: &mut Session, samples: &Samples) -> Result<()> {
    let empty = Vec::new();
    let get = |call, place, agent| samples.get(&(call, place, agent)).unwrap_or(&empty);
    for (call, name, to) in [(Call::Stdout, "pipe", "stdout"), (Call::LogFile, "file", "a log file")] {
        let captured = get(call, Place::Governed, true);
        let figure = Figure::difference(
            &format!("captured_write_{name}"),
            &format!("captured write of 200 B to {to}: with agent / no agent"),
            "ns",
            captured,
            get(call, Place::Governed, false),
        )?;
        session.report.add(figure.target(Target::AtMost(250.0)));
        session.report.add(Figure::difference(
            &format!("captured_write_{name}_beside_outside"),
            &format!("captured write of 200 B to {to}: governed / outside, same agent"),
            "ns",
            captured,
            get(call, Place::Outside, true),
        )?);
    }
    for (call, name, what) in [
        (Call::Getpid, "getpid", "getpid"),
        (Call::Null, "write_null", "write of 200 B to /dev/null"),
        (Call::Stdout, "write_pipe", "write of 200 B to a pipe"),
        (Call::LogFile, "write_file", "write of 200 B to a log file"),
    ] {
        let figure = Figure::difference(
            &format!("outside_{name}"),
            &format!("{what}, outside: with agent / no agent"),
            "ns",
            get(call, Place::Outside, true),
            get(call, Place::Outside, false),
        )?;
        session.report.add(figure.target(Target::AtMost(60.0)));
    }
    Ok(())
}
