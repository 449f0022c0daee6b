//! How fast a sink delivers now.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Over how long it is measured, once it has run for as long.
const WINDOW: Duration = Duration::from_secs(10);
/// A shorter time says nothing.
const LEAST: Duration = Duration::from_secs(1);

/// Totals at moments of the last ten seconds.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// One at the beginning of the window or before it, then those in it.
    samples: VecDeque<(Instant, Totals)>,
}

/// What was delivered since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Totals {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// What is delivered in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Records.
    pub records: f64,
    /// Bytes of the streams.
    pub bytes: f64,
}

impl Meter {
    /// Takes a sample; called about once a second.
    pub(super) fn sample(&mut self, now: Instant, totals: Totals) {
        self.samples.push_back((now, totals));
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// The rate of the last ten seconds, also when nobody has taken a sample for longer.
    pub(super) fn rate(&self, now: Instant, totals: Totals) -> Rate {
        let is_before = |(at, _): &&(Instant, Totals)| now.duration_since(*at) >= WINDOW;
        let base = self.samples.iter().rev().find(is_before).or_else(|| self.samples.front());
        let Some((at, before)) = base else { return Rate::default() };
        let seconds = now.duration_since(*at).max(LEAST).as_secs_f64();
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        Rate { records: per_second(totals.records, before.records), bytes: per_second(totals.bytes, before.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(records: u64) -> Totals {
        Totals { records, bytes: records * 100 }
    }

    #[test]
    fn the_rate_is_that_of_the_last_ten_seconds() {
        let start = Instant::now();
        let mut meter = Meter::default();
        assert_eq!(meter.rate(start, totals(5)), Rate::default());
        // A thousand a second for a minute, then nothing.
        for second in 0..=60 {
            meter.sample(start + Duration::from_secs(second), totals(second * 1000));
        }
        assert!(meter.samples.len() <= 11);
        let rate = |after: u64| meter.rate(start + Duration::from_secs(after), totals(60_000));
        assert_eq!(rate(60), Rate { records: 1000.0, bytes: 100_000.0 });
        assert_eq!(rate(65).records, 500.0);
        // Nobody has taken a sample since.
        assert_eq!(rate(75).records, 0.0);
    }

    #[test]
    fn the_first_moments_are_not_overrated() {
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.sample(start, totals(0));
        assert_eq!(meter.rate(start + Duration::from_millis(1), totals(50)).records, 50.0);
        assert_eq!(meter.rate(start + Duration::from_secs(2), totals(50)).records, 25.0);
    }
}
