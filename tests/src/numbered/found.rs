//! What a store holds of the numbered lines.

use std::{
    fmt,
    ops::{AddAssign, RangeInclusive},
};

use anyhow::{Context, Result, ensure};
use rdkafka::Offset;
use serde_json::Value;

use super::{body, length};
use crate::{kafka::Broker, opensearch::OpenSearch};

/// How many examples of what is wrong are kept.
const EXAMPLES: usize = 10;

/// No container writes as many.
const LIMIT: u64 = 1_000_000_000;

/// The fields of a record that are looked at.
const FIELDS: [&str; 3] = ["body", "stream", "position"];

/// What a store has of the lines that were written.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Lines that were written.
    pub lines: u64,
    /// Records in the store.
    pub records: u64,
    /// Lines that are not there.
    pub missing: u64,
    /// Bytes of these, their ends included.
    pub missing_bytes: u64,
    /// Lines that are there more than once.
    pub repeated: u64,
    /// Records that are no line as it was written.
    pub torn: u64,
    /// Repeats whose stream or position is another: no store could tell that they are the same line.
    pub strange: u64,
    /// Some of what is wrong.
    pub examples: Vec<String>,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.lines += other.lines;
        self.records += other.records;
        self.missing += other.missing;
        self.missing_bytes += other.missing_bytes;
        self.repeated += other.repeated;
        self.torn += other.torn;
        self.strange += other.strange;
        self.examples.extend(other.examples);
    }
}

impl Tally {
    /// Checks that what is there is as it was written, whatever is missing.
    ///
    /// # Errors
    /// It is not.
    pub fn check_whole(&self) -> Result<()> {
        ensure!(self.torn == 0 && self.strange == 0, "{self}");
        Ok(())
    }

    /// Checks that every line is there, whole, and perhaps again as the same record.
    ///
    /// # Errors
    /// It is not.
    pub fn check_at_least_once(&self) -> Result<()> {
        self.check_whole()?;
        ensure!(self.missing == 0, "{self}");
        Ok(())
    }

    /// Checks that every line is there, whole and once, and nothing else.
    ///
    /// # Errors
    /// It is not.
    pub fn check_exactly_once(&self) -> Result<()> {
        self.check_at_least_once()?;
        ensure!(self.repeated == 0 && self.records == self.lines, "{self}");
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lines, records, missing, repeated, torn, strange, .. } = self;
        write!(
            f,
            "{records} records of {lines} lines: {missing} missing, {repeated} more than once, {torn} torn, {strange} \
             with another stream or position"
        )?;
        self.examples.iter().try_for_each(|example| write!(f, "\n  {example}"))
    }
}

/// The records of one class, as they are taken from a store.
#[derive(Debug, Default)]
pub struct Found {
    numbers: Vec<Number>,
    /// The streams that there are.
    streams: Vec<String>,
    tally: Tally,
}

/// How often a number is there, and where its first record stood.
#[derive(Clone, Copy, Debug, Default)]
struct Number {
    times: u32,
    /// Index of its stream.
    stream: u32,
    position: u64,
}

impl Found {
    /// Takes a record.
    ///
    /// # Errors
    /// It has not the fields of a record.
    pub fn take(&mut self, record: &Value) -> Result<()> {
        let text = record["body"].as_str().with_context(|| format!("no body in {record}"))?;
        let position = record["position"].as_u64().with_context(|| format!("no position in {record}"))?;
        let stream = self.stream(record["stream"].as_str().with_context(|| format!("no stream in {record}"))?)?;
        self.tally.records += 1;
        let number = text.split(' ').next().and_then(|number| number.parse::<u64>().ok());
        let Some(number) = number.filter(|number| *number < LIMIT && text == body(*number)) else {
            self.tally.torn += 1;
            self.note(|| format!("torn: {record}"));
            return Ok(());
        };
        let index = usize::try_from(number)?;
        if self.numbers.len() <= index {
            self.numbers.resize(index + 1, Number::default());
        }
        let first = &mut self.numbers[index];
        first.times += 1;
        if first.times == 1 {
            (first.stream, first.position) = (stream, position);
        } else if (first.stream, first.position) != (stream, position) {
            let place = format!("{} {}", self.streams[first.stream as usize], first.position);
            self.tally.strange += 1;
            self.note(|| format!("a repeat of what is at {place}: {record}"));
        }
        Ok(())
    }

    /// There are two or three in all.
    fn stream(&mut self, name: &str) -> Result<u32> {
        let known = self.streams.iter().position(|known| known == name);
        let index = known.unwrap_or_else(|| {
            self.streams.push(name.to_owned());
            self.streams.len() - 1
        });
        Ok(u32::try_from(index)?)
    }

    fn note(&mut self, example: impl FnOnce() -> String) {
        if self.tally.examples.len() < EXAMPLES {
            self.tally.examples.push(example());
        }
    }

    /// Compares with the numbers below `lines`.
    #[must_use]
    pub fn tally(mut self, lines: u64) -> Tally {
        let times = |number: u64| usize::try_from(number).ok().and_then(|index| self.numbers.get(index));
        let missing: Vec<_> = (0..lines).filter(|number| times(*number).is_none_or(|found| found.times == 0)).collect();
        let beyond = self.numbers.iter().skip(usize::try_from(lines).unwrap_or(usize::MAX));
        let beyond: u64 = beyond.map(|found| u64::from(found.times)).sum();
        if beyond > 0 {
            self.note(|| format!("{beyond} lines that were never written"));
        }
        if !missing.is_empty() {
            let examples = ranges(&missing);
            self.note(|| format!("missing: {examples:?}"));
        }
        Tally {
            lines,
            missing: missing.len() as u64,
            missing_bytes: missing.into_iter().map(length).sum(),
            repeated: self.numbers.iter().filter(|found| found.times > 1).count() as u64,
            torn: self.tally.torn + beyond,
            ..self.tally
        }
    }
}

/// The first ranges of numbers.
fn ranges(numbers: &[u64]) -> Vec<RangeInclusive<u64>> {
    let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
    for number in numbers {
        let full = ranges.len() == EXAMPLES;
        match ranges.last_mut() {
            Some(last) if *last.end() + 1 == *number => *last = *last.start()..=*number,
            _ if full => break,
            _ => ranges.push(*number..=*number),
        }
    }
    ranges
}

/// What a topic of Kafka has of the numbers below `lines`.
///
/// # Errors
/// The broker does not answer, or a message is no record.
pub fn in_kafka(broker: &Broker<'_>, topic: &str, lines: u64) -> Result<Tally> {
    let mut found = Found::default();
    broker.follow(topic, Offset::Beginning)?.drain(|message| {
        let record = message.record()?;
        ensure!(record["stream"] == *message.key, "the key of {record} is {}", message.key);
        found.take(&record)
    })?;
    Ok(found.tally(lines))
}

/// What the indices of a pattern have of the numbers below `lines`.
///
/// # Errors
/// The server does not answer, or a document is no record.
pub fn in_opensearch(server: &OpenSearch<'_>, indices: &str, lines: u64) -> Result<Tally> {
    let mut found = Found::default();
    server.scan(indices, &FIELDS, |document| found.take(document))?;
    Ok(found.tally(lines))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(number: u64, stream: &str, position: u64) -> Value {
        json!({ "body": body(number), "stream": stream, "position": position })
    }

    fn found(records: &[(u64, &str, u64)]) -> Found {
        let mut found = Found::default();
        for (number, stream, position) in records {
            found.take(&record(*number, stream, *position)).expect("a record");
        }
        found
    }

    #[test]
    fn repeats_are_those_of_the_same_record() {
        let tally = found(&[(0, "a", 0), (2, "a", 90), (1, "a", 40), (2, "a", 90)]).tally(3);
        assert_eq!((tally.records, tally.repeated), (4, 1));
        tally.check_at_least_once().expect("all there");
        assert!(tally.check_exactly_once().is_err());
        for other in [(1, "a", 41), (1, "b", 40)] {
            let tally = found(&[(0, "a", 0), (1, "a", 40), other]).tally(2);
            assert_eq!(tally.strange, 1);
            assert!(tally.check_whole().is_err());
        }
        found(&[(1, "a", 40), (0, "a", 0)]).tally(2).check_exactly_once().expect("once");
    }

    #[test]
    fn what_is_missing_torn_or_never_written_is_found() {
        let tally = found(&[(0, "a", 0), (1, "a", 40)]).tally(4);
        assert_eq!((tally.missing, tally.missing_bytes), (2, length(2) + length(3)));
        assert!(tally.to_string().contains("missing: [2..=3]"), "{tally}");
        tally.check_whole().expect("whole");
        assert!(tally.check_at_least_once().is_err());
        let tally = found(&[(0, "a", 0), (1, "a", 40)]).tally(1);
        assert_eq!(tally.torn, 1, "{tally}");
        let mut torn = found(&[(0, "a", 0)]);
        torn.take(&json!({ "body": "000000001 ab", "stream": "a", "position": 1 })).expect("a record");
        assert_eq!(torn.tally(1).torn, 1);
        assert!(Found::default().take(&json!({ "body": body(1) })).is_err());
    }
}
