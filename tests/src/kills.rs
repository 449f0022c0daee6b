//! An agent that is killed again and again under a constant load of numbered lines.
//!
//! One container writes to its stdout, one to a log file that it rotates. Each agent is killed at a random moment of its
//! life: before it is ready, while it takes over, in the middle of its work. In the end every line has to be in Kafka at
//! least once, with the bytes that were written, and what is there twice has to be the same record; in OpenSearch it has
//! to be there exactly once.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;

use crate::{
    Agent, Config, Testbed,
    kafka::Broker,
    numbered::{Load, Tally, Written, in_kafka, in_opensearch},
    opensearch::OpenSearch,
    random::Xorshift,
    wait_until,
};

/// The longest life of an agent before it is killed.
const LIFE: Duration = Duration::from_millis(1500);

/// So many agents in a row may die before they are ready; then one is spared until it is.
const STILLBORN: u32 = 3;

/// An agent that finds so much of the ring in use is spared until it is less. On a machine that is so busy that no agent
/// gets anywhere within its life the ring would overflow, as it has to.
const RING_SHARE: f64 = 0.2;

/// How long one that is spared may take.
const SPARED: Duration = Duration::from_secs(120);

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How often an agent is killed.
    pub kills: u32,
    /// Lines a second of each of both writers.
    pub rate: u32,
    /// The moments of the kills: a seed gives the same ones again.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Agents that were killed.
    pub kills: u32,
    /// Those of them that were ready before: the ledgers of each were seen in balance.
    pub ready: u32,
    /// Those that lived longer than their moment, as the machine was so slow that the ring filled.
    pub spared: u32,
    /// What is in Kafka.
    pub kafka: Tally,
    /// What is in OpenSearch.
    pub opensearch: Tally,
}

impl Report {
    /// Checks that every line is where it has to be, and that agents became ready at all.
    ///
    /// # Errors
    /// The first promise that was not kept.
    pub fn check(&self) -> Result<()> {
        ensure!(self.ready > self.kills / 10, "only {} of {} agents became ready", self.ready, self.kills);
        let kafka = self.kafka.check_at_least_once().context("Kafka");
        let opensearch = self.opensearch.check_exactly_once().context("OpenSearch");
        match (kafka, opensearch) {
            (Err(kafka), Err(opensearch)) => bail!("{kafka:#}\n{opensearch:#}"),
            (kafka, opensearch) => kafka.and(opensearch),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, ready, spared, kafka, opensearch } = self;
        writeln!(f, "kills                                {kills}")?;
        writeln!(f, "agents that were ready, in balance   {ready}")?;
        writeln!(f, "agents that were spared for a while  {spared}")?;
        writeln!(f, "lines written                        {}", kafka.lines)?;
        for (store, tally, repeated) in [("Kafka", kafka, "more than once"), ("OpenSearch", opensearch, "duplicates")] {
            writeln!(f, "{:<37}{}", format!("{store}: records"), tally.records)?;
            writeln!(f, "  missing                            {}", tally.missing)?;
            writeln!(f, "  {repeated:<35}{}", tally.repeated)?;
            writeln!(f, "  torn                               {}", tally.torn + tally.strange)?;
        }
        Ok(())
    }
}

/// Kafka and OpenSearch, both fed by the same agent.
#[derive(Debug)]
struct Stores<'bed> {
    broker: Broker<'bed>,
    server: OpenSearch<'bed>,
}

impl<'bed> Stores<'bed> {
    /// Starts both at once: they take long.
    fn start(bed: &'bed Testbed) -> Result<Self> {
        let (broker, server) = thread::scope(|scope| {
            let broker = scope.spawn(|| Broker::start(bed));
            let server = OpenSearch::start(bed);
            (broker.join().unwrap_or_else(|_| Err(anyhow!("the broker's thread panicked"))), server)
        });
        let stores = Self { broker: broker?, server: server? };
        for topic in ["logs.pod", "logs.business"] {
            // However long it takes, nothing is forgotten.
            stores.broker.create_topic_with(topic, "retention.ms", "-1")?;
        }
        Ok(stores)
    }

    fn config(&self, bed: &Testbed) -> Config {
        let kafka = json!({ "type": "kafka", "brokers": [self.broker.address()] });
        // Answered within a short life, also when there is much to catch up with and little time for the server.
        let opensearch = json!({ "type": "opensearch", "urls": [self.server.url()], "max_request_bytes": "512KiB" });
        bed.config().with("/capture/pin", json!(bed.pins())).with("/sinks", json!([kafka, opensearch]))
    }

    fn tally(&self, written: &[Written]) -> Result<(Tally, Tally)> {
        let (mut kafka, mut opensearch) = (Tally::default(), Tally::default());
        for Written { class, lines, .. } in written {
            kafka += in_kafka(&self.broker, &format!("logs.{class}"), *lines)?;
            opensearch += in_opensearch(&self.server, &format!("logs-{class}-*"), *lines)?;
        }
        Ok((kafka, opensearch))
    }
}

/// Starts the stores and the load, kills one agent after the other, lets the last one deliver what is left, and counts.
/// `progress` is told of each kill and of how many agents were ready by then.
///
/// # Errors
/// Something can't be started, a ledger does not balance, or lines were dropped.
pub fn run(bed: &Testbed, plan: Plan, mut progress: impl FnMut(u32, u32)) -> Result<Report> {
    let stores = Stores::start(bed)?;
    let config = stores.config(bed);
    let first = Agent::start(bed, &config)?;
    let load = Load::start(bed, plan.rate)?;
    first.kill()?;
    let mut moments = Moments::new(plan.seed);
    let (mut ready, mut spared, mut stillborn) = (0, 0, 0);
    for kill in 1..=plan.kills {
        let end = live_and_die(bed, &config, &load, moments.next(), stillborn >= STILLBORN);
        let end = end.with_context(|| format!("kill {kill}"))?;
        ready += u32::from(end != End::Stillborn);
        spared += u32::from(end == End::Spared);
        stillborn = if end == End::Stillborn { stillborn + 1 } else { 0 };
        progress(kill, ready);
    }
    let agent = Agent::start(bed, &config)?;
    load.check_ledger(&agent)?;
    let written = load.stop()?;
    let ledgers = load.wait_settled(&agent)?;
    let (kafka, opensearch) = stores.tally(&written)?;
    for (class, ledger) in ledgers {
        ensure!(
            ledger.dropped.is_empty(),
            "lines of {class} were dropped: {ledger:?}, Kafka: {kafka}, OpenSearch: {opensearch}"
        );
    }
    agent.stop()?;
    Ok(Report { kills: plan.kills, ready, spared, kafka, opensearch })
}

/// How an agent came to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// It was not ready yet, and has told nothing.
    Stillborn,
    /// It was ready.
    Ready,
    /// It was ready, and lived longer than its moment.
    Spared,
}

/// Starts an agent and kills it after `life`, or, if it was ready by then, when its ledgers were seen in balance with
/// nothing lost. One that `has_to_live`, or finds much in the ring, is killed when it is ready and has got on with that.
fn live_and_die(bed: &Testbed, config: &Config, load: &Load, life: Duration, has_to_live: bool) -> Result<End> {
    let moment = Instant::now() + life;
    let mut agent = Agent::spawn(bed, config)?;
    let mut ready = has_to_live;
    if has_to_live {
        agent = agent.wait_ready()?;
    }
    while Instant::now() < moment && !ready {
        thread::sleep(Duration::from_millis(5));
        ready = agent.get("/readyz").is_ok_and(|answer| answer.status == 200);
    }
    if !ready {
        agent.kill()?;
        return Ok(End::Stillborn);
    }
    load.check_ledger(&agent).with_context(|| agent.log())?;
    let spared = has_to_live || !has_room(&agent)?;
    if spared {
        wait_until("room in the ring", SPARED, || Ok(has_room(&agent)?.then_some(())))?;
    }
    thread::sleep(moment.saturating_duration_since(Instant::now()));
    agent.kill()?;
    Ok(if spared { End::Spared } else { End::Ready })
}

/// Whether the ring has little in it that is not safe elsewhere.
fn has_room(agent: &Agent) -> Result<bool> {
    let metrics = agent.metrics()?;
    let used = metrics.sum("sidestep_ring_fill_bytes") + metrics.sum("sidestep_ring_held_bytes");
    Ok(used <= metrics.sum("sidestep_ring_capacity_bytes") * RING_SHARE)
}

/// Moments of kills: any seed gives the same ones again.
#[derive(Clone, Copy, Debug)]
struct Moments(Xorshift);

impl Moments {
    const fn new(seed: u64) -> Self {
        Self(Xorshift::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    fn next(&mut self) -> Duration {
        Duration::from_micros(self.0.next() % LIFE.as_micros() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_seed() {
        let moments = |seed| {
            let mut moments = Moments::new(seed);
            [moments.next(), moments.next(), moments.next()]
        };
        assert_eq!(moments(1), moments(1));
        assert_ne!(moments(1), moments(2));
        assert!(moments(3).iter().all(|moment| *moment < LIFE));
    }
}
