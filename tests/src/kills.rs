//! An agent that is killed again and again under a constant load of numbered lines.
//!
//! One container writes to its stdout, one to a log file that it rotates. Some lines come in two writes, so that a kill
//! finds half of one. Each agent is killed at a random moment of its life: before it is ready, while it takes over, in
//! the middle of its work. In the end every line has to be in the stores, with the bytes that were written, and what is
//! there twice has to be the same record: the same stream, the same position.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rdkafka::Offset;
use serde_json::Value;

use crate::{Agent, Config, Container, DEADLINE, Testbed, kafka::Broker, random::Xorshift, wait_until};

/// The longest life of an agent before it is killed.
const LIFE: Duration = Duration::from_millis(1500);

/// How long the last agent may take to deliver what there is.
const DELIVERY: Duration = Duration::from_secs(120);

/// The path in the container that writes a file.
const LOG: &str = "/var/log/app.log";

/// Writes numbered lines to its stdout, or to a file that it rotates, until there is a file `stop`; then it says how
/// many there were. `MODE` and `RATE` are replaced.
const WRITER: &str = r#"
import os, time
rate, log = RATE, "MODE"
def line(n):
    return ("%09d %s\n" % (n, "abcdefghij" * (n % 23))).encode()
target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND) if log else 1
n, start = 0, time.monotonic()
while not os.path.exists("/control/stop"):
    for _ in range(20):
        text = line(n)
        if n % 97 == 0:
            os.write(target, text[:5])
            time.sleep(0.002)
            os.write(target, text[5:])
        else:
            os.write(target, text)
        n += 1
        if log and n % 4000 == 0:
            os.close(target)
            os.rename(log, log + ".1")
            target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    late = start + n / rate - time.monotonic()
    if late > 0:
        time.sleep(late)
with open("/control/count.new", "w") as count:
    count.write(str(n))
os.rename("/control/count.new", "/control/count")
"#;

/// The body of a line of [`WRITER`].
#[must_use]
pub fn body(number: u64) -> String {
    format!("{number:09} {}", "abcdefghij".repeat((number % 23) as usize))
}

/// The containers that write.
#[derive(Debug)]
pub struct Load {
    writers: Vec<Writer>,
}

/// One of them.
#[derive(Debug)]
struct Writer {
    container: Container,
    /// `pod` for stdout, `business` for the file.
    class: &'static str,
    control: std::path::PathBuf,
}

impl Load {
    /// Starts the writers, each with `rate` lines a second, under a first agent, which is killed then: what was written
    /// to a pipe before there was any agent, nobody has.
    ///
    /// # Errors
    /// The agent or a container can't be started.
    pub fn start(bed: &Testbed, config: &Config, rate: u32) -> Result<Self> {
        let agent = Agent::start(bed, config)?;
        let writers = [("pipe", "pod", ""), ("file", "business", LOG)].map(|(name, class, log)| -> Result<Writer> {
            let control = bed.path(format!("control-{name}/stop"))?.with_file_name("");
            let program = WRITER.replace("RATE", &rate.to_string()).replace("MODE", log);
            let container = bed.container(name).python(&program).bind(&control, "/control").start()?;
            Ok(Writer { container, class, control })
        });
        let load = Self { writers: writers.into_iter().collect::<Result<_>>()? };
        agent.kill()?;
        Ok(load)
    }

    /// Ends the writers in order; returns how many lines there are of each class.
    ///
    /// # Errors
    /// A writer does not end in time.
    pub fn stop(&self) -> Result<Vec<(&'static str, u64)>> {
        for writer in &self.writers {
            fs::write(writer.control.join("stop"), "")?;
        }
        let count = |writer: &Writer| {
            let path = writer.control.join("count");
            let text = wait_until("the end of a writer", DEADLINE, || Ok(fs::read_to_string(&path).ok()))
                .with_context(|| String::from_utf8_lossy(&writer.container.stderr()).into_owned())?;
            Ok((writer.class, text.parse().context("a count of lines")?))
        };
        self.writers.iter().map(count).collect()
    }

    /// Waits until the ledger of each writer balances.
    ///
    /// # Errors
    /// One does not.
    pub fn check_ledger(&self, agent: &Agent) -> Result<()> {
        for writer in &self.writers {
            let mut last = crate::Ledger::default();
            // A reading under load may be off by what moved meanwhile.
            wait_until("a ledger that balances", DEADLINE, || {
                last = agent.ledger(writer.container.id())?;
                Ok((last.difference() == 0).then_some(()))
            })
            .with_context(|| format!("the ledger of {} stands at {last:?}", writer.class))?;
        }
        Ok(())
    }

    /// Waits until nothing of the writers is on its way any more.
    ///
    /// # Errors
    /// Not in time, or something was dropped.
    pub fn wait_delivered(&self, agent: &Agent) -> Result<()> {
        for writer in &self.writers {
            let mut last = crate::Ledger::default();
            wait_until("the delivery of all lines", DELIVERY, || {
                last = agent.ledger(writer.container.id())?;
                Ok((last.pending == 0 && last.difference() == 0).then_some(()))
            })
            .with_context(|| format!("the ledger of {} stands at {last:?}", writer.class))?;
            ensure!(last.dropped.is_empty(), "lines of {} were dropped: {last:?}", writer.class);
        }
        Ok(())
    }
}

/// Moments of kills: any seed gives the same ones again.
#[derive(Clone, Copy, Debug)]
pub struct Moments(Xorshift);

impl Moments {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Xorshift::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    fn next(&mut self) -> Duration {
        Duration::from_micros(self.0.next() % LIFE.as_micros() as u64)
    }
}

/// Starts and kills one agent after the other; `progress` is told of each kill and whether the agent was ready by then.
///
/// # Errors
/// An agent does not start, or the ledger of one that was ready does not balance.
pub fn kill_again_and_again(
    bed: &Testbed,
    config: &Config,
    load: &Load,
    kills: u32,
    mut moments: Moments,
    mut progress: impl FnMut(u32, bool),
) -> Result<()> {
    for kill in 1..=kills {
        let moment = Instant::now() + moments.next();
        let agent = Agent::spawn(bed, config)?;
        let mut ready = false;
        while Instant::now() < moment && !ready {
            thread::sleep(Duration::from_millis(5));
            ready = agent.get("/readyz").is_ok_and(|answer| answer.status == 200);
        }
        if ready {
            load.check_ledger(&agent).with_context(|| format!("before kill {kill}"))?;
            thread::sleep(moment.saturating_duration_since(Instant::now()));
        }
        agent.kill().with_context(|| format!("kill {kill}"))?;
        progress(kill, ready);
    }
    Ok(())
}

/// What a store holds of the numbered lines of one class.
#[derive(Debug, Default)]
pub struct Found {
    /// How often each number is there.
    times: Vec<u32>,
    /// Stream and position of the first of each number.
    places: HashMap<u64, (String, u64)>,
}

impl Found {
    /// Takes a record.
    ///
    /// # Errors
    /// It is no whole line of the writer, or another one than the record of that number before it.
    pub fn take(&mut self, stream: &str, record: &Value) -> Result<()> {
        let text = record["body"].as_str().with_context(|| format!("no body in {record}"))?;
        let number: u64 = text
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("a line that was never written: {record}"))?;
        ensure!(text == body(number), "a torn line: {record}");
        let position = record["position"].as_u64().with_context(|| format!("no position in {record}"))?;
        let index = usize::try_from(number)?;
        if self.times.len() <= index {
            self.times.resize(index + 1, 0);
        }
        self.times[index] += 1;
        match self.places.entry(number) {
            Entry::Vacant(place) => {
                place.insert((stream.to_owned(), position));
            }
            Entry::Occupied(place) => {
                let place = place.get();
                ensure!(*place == (stream.to_owned(), position), "a repeat with another identity: {place:?}, {record}");
            }
        }
        Ok(())
    }

    /// Checks that every number below `lines` is there; returns how many are there more than once.
    ///
    /// # Errors
    /// Numbers that are missing.
    pub fn check_complete(&self, lines: u64) -> Result<u64> {
        let times = |number: u64| usize::try_from(number).ok().and_then(|index| self.times.get(index)).copied();
        let missing: Vec<_> = (0..lines).filter(|number| times(*number).unwrap_or(0) == 0).collect();
        ensure!(missing.is_empty(), "{} of {lines} lines are missing: {:?}", missing.len(), ranges(&missing));
        Ok(self.times.iter().filter(|times| **times > 1).count() as u64)
    }
}

/// The first ranges of numbers.
fn ranges(numbers: &[u64]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        let full = ranges.len() == 10;
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *number => *end = *number,
            _ if full => break,
            _ => ranges.push((*number, *number)),
        }
    }
    ranges
}

/// Checks that every line is in Kafka, in `logs.<class>`; returns how many are there more than once.
///
/// # Errors
/// A line is missing or torn.
pub fn check_kafka(broker: &Broker<'_>, written: &[(&'static str, u64)]) -> Result<u64> {
    let mut repeated = 0;
    for (class, lines) in written {
        let topic = format!("logs.{class}");
        let mut left = broker.count(&topic)?;
        let follower = broker.follow(&topic, Offset::Beginning)?;
        let mut found = Found::default();
        while left > 0 {
            let message = follower.next(DEADLINE)?.with_context(|| format!("{left} messages do not come"))?;
            left -= 1;
            found.take(&message.key, &serde_json::from_slice(&message.payload).context("a record")?)?;
        }
        repeated += found.check_complete(*lines).with_context(|| format!("Kafka, {topic}"))?;
    }
    Ok(repeated)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(number: u64, position: u64) -> Value {
        json!({ "body": body(number), "position": position })
    }

    #[test]
    fn what_is_missing_torn_or_different_is_found() {
        let mut found = Found::default();
        for (number, position) in [(0, 0), (2, 90), (1, 40), (2, 90)] {
            found.take("a", &record(number, position)).expect("a line");
        }
        assert_eq!(found.check_complete(3).expect("complete"), 1);
        let error = found.check_complete(5).expect_err("two are missing").to_string();
        assert!(error.contains("2 of 5 lines are missing: [(3, 4)]"), "{error}");
        assert!(found.take("a", &record(1, 41)).is_err(), "another position");
        assert!(found.take("b", &record(1, 40)).is_err(), "another stream");
        assert!(found.take("a", &json!({ "body": "000000005 ab", "position": 1 })).is_err(), "torn");
    }

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
