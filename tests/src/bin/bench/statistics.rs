//! Order statistics: this kind of machine is noisy in one direction, so means say little.

/// Median and quartiles of some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) upper_quartile: f64,
}

impl Summary {
    /// `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        Some(Self {
            median: quantile(&sorted, 0.5)?,
            lower_quartile: quantile(&sorted, 0.25)?,
            upper_quartile: quantile(&sorted, 0.75)?,
        })
    }
}

/// The median, or NaN without samples.
pub(crate) fn median(samples: &[f64]) -> f64 {
    Summary::of(samples).map_or(f64::NAN, |summary| summary.median)
}

/// The quantile of sorted samples, between two of them in proportion; `None` without samples.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

/// `with[i] - without[i]`: neighbours in time, so that slow drifts of the machine cancel out.
pub(crate) fn paired_differences(with: &[f64], without: &[f64]) -> Vec<f64> {
    with.iter().zip(without).map(|(with, without)| with - without).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_samples() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).expect("samples");
        assert_eq!((summary.lower_quartile, summary.median, summary.upper_quartile), (1.75, 2.5, 3.25));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn pairs_by_place() {
        assert_eq!(paired_differences(&[3.0, 5.0], &[1.0, 2.0, 9.0]), [2.0, 3.0]);
    }
}
