//! The metrics endpoint as tests read it, and each container's ledger in it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// One sample of the Prometheus text format.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Metric name.
    pub name: String,
    /// Labels, unescaped.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// All samples of one scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// In the order of the text.
    pub samples: Vec<Sample>,
}

/// One container's account, in bytes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ledger {
    /// Written by the container.
    pub produced: u64,
    /// Acknowledged by the sinks.
    pub delivered: u64,
    /// On their way.
    pub pending: i64,
    /// Lost, by stage and reason; only what is not zero.
    pub dropped: BTreeMap<(String, String), u64>,
}

impl Ledger {
    /// Lost in all.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Lost at this stage for this reason.
    #[must_use]
    pub fn dropped_for(&self, stage: &str, reason: &str) -> u64 {
        self.dropped.get(&(stage.to_owned(), reason.to_owned())).copied().unwrap_or_default()
    }

    /// Zero when the ledger balances.
    #[must_use]
    pub fn difference(&self) -> i128 {
        i128::from(self.produced)
            - i128::from(self.delivered)
            - i128::from(self.pending)
            - i128::from(self.dropped_total())
    }
}

impl Metrics {
    /// Reads the text format.
    ///
    /// # Errors
    /// A line that isn't of that format.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| parse_sample(line).with_context(|| format!("not a sample: {line:?}")));
        Ok(Self { samples: samples.collect::<Result<_>>()? })
    }

    /// The samples of `name` of one container; the label has the first 12 characters of the id.
    fn of<'a>(&'a self, name: &'a str, container_id: &'a str) -> impl Iterator<Item = &'a Sample> {
        let named = self.samples.iter().filter(move |sample| sample.name == name);
        named.filter(move |sample| sample.labels.get("container_id").is_some_and(|id| *id == short(container_id)))
    }

    /// The sum of all samples of `name`.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        self.samples.iter().filter(|sample| sample.name == name).map(|sample| sample.value).sum()
    }

    /// The value of `name` for the sink of this name.
    #[must_use]
    pub fn of_sink(&self, name: &str, sink: &str) -> Option<f64> {
        let mut named = self.samples.iter().filter(|sample| sample.name == name);
        named.find(|sample| sample.labels.get("sink").is_some_and(|label| label == sink)).map(|sample| sample.value)
    }

    /// The ledger of the container with this id.
    #[must_use]
    pub fn ledger(&self, container_id: &str) -> Ledger {
        let sum = |name| self.of(name, container_id).map(|sample| sample.value).sum::<f64>();
        let mut dropped = BTreeMap::new();
        for sample in self.of("sidestep_log_dropped_bytes_total", container_id).filter(|sample| sample.value > 0.0) {
            let label = |name: &str| sample.labels.get(name).cloned().unwrap_or_default();
            *dropped.entry((label("stage"), label("reason"))).or_insert(0) += sample.value as u64;
        }
        Ledger {
            produced: sum("sidestep_log_produced_bytes_total") as u64,
            delivered: sum("sidestep_log_delivered_bytes_total") as u64,
            pending: sum("sidestep_log_pending_bytes") as i64,
            dropped,
        }
    }
}

/// How metrics name a container, as `docker ps` does.
fn short(container_id: &str) -> &str {
    container_id.get(..12).unwrap_or(container_id)
}

/// `name{label="value",...} 1.5`, with or without labels.
fn parse_sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let name = line[..end].to_owned();
    let mut labels = BTreeMap::new();
    let mut rest = &line[end..];
    if let Some(mut inside) = rest.strip_prefix('{') {
        while !inside.starts_with('}') {
            let (label, after) = inside.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            inside = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &inside[1..];
    }
    Some(Sample { name, labels, value: rest.split_whitespace().next()?.parse().ok()? })
}

/// A label value up to its closing quote, unescaped, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_ledger_with_awkward_labels() {
        let text = "# TYPE x counter\n\
            sidestep_log_produced_bytes_total{container_id=\"0123456789ab\",pod=\"a\\\"},{\\\\b\"} 100\n\
            sidestep_log_delivered_bytes_total{container_id=\"0123456789ab\"} 70\n\
            sidestep_log_pending_bytes{container_id=\"0123456789ab\"} 10\n\
            sidestep_log_dropped_bytes_total{container_id=\"0123456789ab\",reason=\"quota\",stage=\"capture\"} 2e1\n\
            sidestep_log_produced_bytes_total{container_id=\"c2\"} 5\n\
            up 1\n";
        let metrics = Metrics::parse(text).expect("metrics");
        assert_eq!(metrics.samples[0].labels["pod"], "a\"},{\\b");
        assert_eq!(metrics.sum("up"), 1.0);
        let ledger = metrics.ledger("0123456789abcdef");
        assert_eq!((ledger.produced, ledger.delivered, ledger.pending), (100, 70, 10));
        assert_eq!(ledger.dropped_for("capture", "quota"), 20);
        assert_eq!(ledger.difference(), 0);
        assert_eq!(metrics.ledger("c2").difference(), 5);
    }

    #[test]
    fn refuses_what_is_no_sample() {
        assert!(Metrics::parse("a{b=\"c} 1\n").is_err());
    }
}
