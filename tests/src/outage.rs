//! A Kafka broker that goes away for long under a constant load of numbered lines, and comes back.
//!
//! Several agents go through the same outage, each with containers of its own. One has a buffer that is large enough, and
//! loses nothing. The others have one that is too small, and drop the newest or the oldest lines: then what is missing in
//! Kafka is exactly what they have counted, in lines and in bytes. None of them needs more memory the longer it lasts.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{
    Agent, DEADLINE, Ledger, Testbed,
    kafka::Broker,
    numbered::{Load, Tally, Written, in_kafka},
    wait_until,
};

/// The sink's name.
const SINK: &str = "kafka";
/// A buffer that is never full here.
const LARGE: u64 = 8 << 30;
/// The smallest that there may be.
const SMALLEST: u64 = 1 << 20;
/// A little less than the bytes of a line, on average, in the stream and in a buffer.
const LINE: u64 = 100;
/// By how much the resident memory may grow from the first quarter of an outage to the last.
const GROWTH: u64 = 16 << 20;
/// What the places of lines take besides that are left in their files, at most, and only where a buffer is full.
const PLACES: u64 = 16 << 20;
/// Samples of the memory in one outage, unless it is short.
const SAMPLES: u32 = 240;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// How the broker goes away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Away {
    /// It is stopped in the middle of what it does (SIGSTOP): connections stay and nothing is answered.
    Frozen,
    /// It is killed.
    Killed,
}

impl Away {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Killed => "killed",
        }
    }
}

/// What buffer the sink has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Buffer {
    /// Large enough.
    Large,
    /// Too small: the newest lines are dropped.
    DropNewest,
    /// Too small: the oldest lines are dropped.
    DropOldest,
}

impl Buffer {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Large, Self::DropNewest, Self::DropOldest];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Large => "large",
            Self::DropNewest => "drop_newest",
            Self::DropOldest => "drop_oldest",
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How the broker goes away.
    pub away: Away,
    /// For how long.
    pub time: Duration,
    /// Lines a second of each of both writers of each agent.
    pub rate: u32,
}

/// What came of it for one agent.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its buffer.
    pub buffer: Buffer,
    /// How the broker went away.
    pub away: Away,
    /// What is in Kafka.
    pub kafka: Tally,
    /// Lines that the sink has dropped with reason `buffer_full`.
    pub dropped_lines: u64,
    /// Bytes that the ledgers have so.
    pub dropped_bytes: u64,
    /// Bytes that the ledgers have as dropped for whatever reason.
    pub dropped_in_all: u64,
    /// How far the sink was behind when the broker came back.
    pub lag: Duration,
    /// What the agent took.
    pub memory: Memory,
}

/// The resident memory of an agent during an outage, in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Memory {
    /// The most in the first quarter: by then all is full that is kept in memory.
    pub first: u64,
    /// The most in the last quarter.
    pub last: u64,
    /// The most, and while it was caught up afterwards.
    pub most: u64,
}

impl Memory {
    fn of(samples: &[u64]) -> Self {
        let quarter = samples.len().div_ceil(4);
        let most = |samples: &[u64]| samples.iter().copied().max().unwrap_or_default();
        Self { first: most(&samples[..quarter]), last: most(&samples[samples.len() - quarter..]), most: most(samples) }
    }
}

impl Report {
    /// Checks what is promised.
    ///
    /// # Errors
    /// The first promise that was not kept.
    pub fn check(&self) -> Result<()> {
        self.check_lines().with_context(|| format!("{} broker, {} buffer", self.away.as_str(), self.buffer.as_str()))
    }

    fn check_lines(&self) -> Result<()> {
        let Self { kafka, dropped_lines, dropped_bytes, dropped_in_all, memory, .. } = self;
        if self.buffer == Buffer::Large {
            kafka.check_at_least_once()?;
            ensure!(*dropped_in_all == 0, "{dropped_in_all} bytes were dropped");
        } else {
            kafka.check_whole()?;
            ensure!(kafka.missing > 0, "nothing was dropped: {kafka}");
            ensure!(kafka.missing == *dropped_lines, "{dropped_lines} lines were counted as dropped: {kafka}");
            ensure!(
                kafka.missing_bytes == *dropped_bytes && dropped_bytes == dropped_in_all,
                "{} bytes are missing, {dropped_bytes} were counted as dropped by the buffer, {dropped_in_all} in all",
                kafka.missing_bytes
            );
        }
        let grown = memory.last.saturating_sub(memory.first);
        let allowed = if self.buffer == Buffer::Large { GROWTH } else { GROWTH + PLACES };
        ensure!(grown <= allowed, "the memory grew by {grown} bytes, {allowed} are allowed: {memory:?}");
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { buffer, away, kafka, dropped_lines, dropped_bytes, lag, memory, .. } = self;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "broker {}, buffer {}", away.as_str(), buffer.as_str())?;
        writeln!(f, "  lines written                    {}", kafka.lines)?;
        writeln!(f, "  missing in Kafka                 {} ({} bytes)", kafka.missing, kafka.missing_bytes)?;
        writeln!(f, "  counted as dropped, buffer_full  {dropped_lines} ({dropped_bytes} bytes)")?;
        writeln!(f, "  more than once, torn             {}, {}", kafka.repeated, kafka.torn + kafka.strange)?;
        writeln!(f, "  behind when it came back         {} s", lag.as_secs())?;
        let Memory { first, last, most } = memory;
        let [first, last, most] = [*first, *last, *most].map(mib);
        writeln!(f, "  memory: first, last, most        {first:.1}, {last:.1}, {most:.1} MiB")
    }
}

/// One agent with its containers.
#[derive(Debug)]
struct Side {
    // In the order in which they have to end.
    agent: Agent,
    load: Load,
    bed: Testbed,
    buffer: Buffer,
    topics: String,
    memory: Vec<u64>,
    /// How far the sink was behind at the end of the outage.
    lag: Duration,
}

/// Lets a broker go away and come back, with an agent for each of `buffers`. `progress` is told how long it has been away.
///
/// # Errors
/// Something can't be started, or not everything is settled in time.
pub fn run(
    broker: &mut Broker<'_>,
    plan: Plan,
    buffers: &[Buffer],
    progress: impl FnMut(Duration),
) -> Result<Vec<Report>> {
    let mut sides = Vec::new();
    for buffer in buffers {
        sides.push(Side::start(broker, plan, *buffer)?);
    }
    let result = go_through(broker, plan, &mut sides, progress);
    if result.is_err() {
        sides.iter().for_each(|side| side.bed.show_agent_logs());
    }
    let written = result?;
    let report = |(side, written): (Side, Vec<Written>)| side.report(broker, plan.away, &written);
    sides.into_iter().zip(written).map(report).collect()
}

/// The outage; returns what was written for each agent.
fn go_through(
    broker: &mut Broker<'_>,
    plan: Plan,
    sides: &mut [Side],
    mut progress: impl FnMut(Duration),
) -> Result<Vec<Vec<Written>>> {
    for side in &mut *sides {
        side.load.check_ledger(&side.agent)?;
        wait_until("the first line in Kafka", DEADLINE, || {
            Ok((side.metric("delivered_records_total")? > 0).then_some(()))
        })?;
    }
    let begin = Instant::now();
    match plan.away {
        Away::Frozen => broker.freeze(true)?,
        Away::Killed => broker.kill()?,
    }
    let pause = (plan.time / SAMPLES).max(SHORTEST_PAUSE);
    while begin.elapsed() < plan.time {
        thread::sleep(pause);
        for side in &mut *sides {
            side.memory.push(side.agent.resident_bytes()?);
        }
        progress(begin.elapsed());
    }
    for side in &mut *sides {
        side.check_outage(plan)?;
    }
    match plan.away {
        Away::Frozen => broker.freeze(false)?,
        Away::Killed => broker.run()?,
    }
    sides.iter().map(|side| side.load.stop()).collect()
}

impl Side {
    fn start(broker: &Broker<'_>, plan: Plan, buffer: Buffer) -> Result<Self> {
        let bed = Testbed::new()?;
        let topics = format!("{}-{}", plan.away.as_str(), buffer.as_str());
        for class in ["pod", "business"] {
            broker.create_topic_with(&format!("{topics}.{class}"), "retention.ms", "-1")?;
        }
        let expected = 2 * u64::from(plan.rate) * plan.time.as_secs() * LINE;
        let (when_full, max_bytes) = match buffer {
            Buffer::Large => ("block", LARGE),
            Buffer::DropNewest | Buffer::DropOldest => (buffer.as_str(), (expected / 4).max(SMALLEST)),
        };
        // Little is kept in memory, so that it is full soon.
        let sink = json!({
            "type": "kafka",
            "name": SINK,
            "brokers": [broker.address()],
            "topic": format!("{topics}.{{class}}"),
            "producer_buffer": "8MiB",
            "buffer": { "max_bytes": max_bytes, "max_unacknowledged": "512KiB", "when_full": when_full },
        });
        let agent = Agent::start(&bed, &bed.config().with("/sinks", json!([sink])))?;
        let load = Load::start(&bed, plan.rate)?;
        Ok(Self { agent, load, bed, buffer, topics, memory: Vec::new(), lag: Duration::ZERO })
    }

    fn metric(&self, name: &str) -> Result<u64> {
        let value = self.agent.metrics()?.of_sink(&format!("sidestep_sink_{name}"), SINK);
        Ok(value.unwrap_or_default() as u64)
    }

    /// Whether the agent tells of the outage, and a buffer that is too small is full.
    fn check_outage(&mut self, plan: Plan) -> Result<()> {
        self.lag = Duration::from_secs(self.metric("lag_seconds")?);
        // What the sink has had since the beginning is dropped by no rule.
        ensure!(
            self.lag >= plan.time / 2 && self.metric("behind_records")? > 0,
            "the sink is only {:?} behind",
            self.lag
        );
        if self.buffer != Buffer::Large {
            wait_until("a full buffer", DEADLINE, || Ok((self.metric("dropped_records_total")? > 0).then_some(())))?;
        }
        Ok(())
    }

    /// Lets the agent deliver what is left, and reads it.
    fn report(mut self, broker: &Broker<'_>, away: Away, written: &[Written]) -> Result<Report> {
        let settled = self.load.wait_settled(&self.agent);
        let ledgers = settled.inspect_err(|_| self.bed.show_agent_logs())?;
        wait_until("a sink that is not behind any more", DEADLINE, || {
            Ok((self.metric("lag_seconds")? == 0 && self.metric("behind_records")? == 0).then_some(()))
        })?;
        let memory = Memory::of(&self.memory);
        self.memory.push(self.agent.resident_bytes()?);
        let memory = Memory { most: memory.most.max(Memory::of(&self.memory).most), ..memory };
        let dropped_lines = self.metric("dropped_records_total")?;
        self.agent.stop()?;
        let mut kafka = Tally::default();
        for Written { class, lines, .. } in written {
            kafka += in_kafka(broker, &format!("{}.{class}", self.topics), *lines)?;
        }
        let sum = |bytes: fn(&Ledger) -> u64| ledgers.iter().map(|(_, ledger)| bytes(ledger)).sum();
        Ok(Report {
            buffer: self.buffer,
            away,
            kafka,
            dropped_lines,
            dropped_bytes: sum(|ledger| ledger.dropped_for("sink", "buffer_full")),
            dropped_in_all: sum(Ledger::dropped_total),
            lag: self.lag,
            memory,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_compared_by_quarters() {
        let samples = [5, 9, 7, 7, 7, 20, 8, 6];
        assert_eq!(Memory::of(&samples), Memory { first: 9, last: 8, most: 20 });
        assert_eq!(Memory::of(&[]), Memory::default());
        assert_eq!(Memory::of(&[4]), Memory { first: 4, last: 4, most: 4 });
    }
}
