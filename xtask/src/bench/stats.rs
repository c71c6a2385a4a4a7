//! Medians and spreads.

use serde::Serialize;

/// What the rounds of one measurement gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Stats {
    /// All values, in the order of the rounds.
    pub(super) values: Vec<f64>,
}

impl Stats {
    pub(super) fn of(values: Vec<f64>) -> Self {
        Self { values }
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The middle value, or the mean of the two in the middle; NaN without values.
    pub(super) fn median(&self) -> f64 {
        let sorted = self.sorted();
        let half = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[half],
            _ => (sorted[half - 1] + sorted[half]) / 2.0,
        }
    }

    /// The smallest value.
    pub(super) fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(f64::NAN)
    }

    /// The largest value.
    pub(super) fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_odd_and_even_counts() {
        let stats = Stats::of(vec![9.0, 1.0, 5.0]);
        assert_eq!((stats.median(), stats.min(), stats.max()), (5.0, 1.0, 9.0));
        assert_eq!(Stats::of(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert!(Stats::of(Vec::new()).median().is_nan());
    }
}
