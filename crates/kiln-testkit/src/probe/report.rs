//! What a prober found.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A complete, correct answer. Times count from the prober's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// When the request was due.
    pub scheduled: Duration,
    /// When the answer was complete.
    pub complete: Duration,
    /// What the judge called it.
    pub label: String,
}

/// A request without a complete, correct answer in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// When the request was due.
    pub scheduled: Duration,
    /// What went wrong.
    pub why: String,
}

/// All outcomes of one run, in the order in which the requests were due.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What was answered.
    pub answers: Vec<Answer>,
    /// What was lost.
    pub losses: Vec<Loss>,
    /// Connections that were opened.
    pub connections: usize,
}

impl Report {
    /// All requests.
    pub fn requests(&self) -> usize {
        self.answers.len() + self.losses.len()
    }

    /// The latency, from the scheduled arrival, that a share of the answers did not exceed; zero
    /// if there was no answer.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut latencies: Vec<Duration> =
            self.answers.iter().map(|answer| answer.complete - answer.scheduled).collect();
        latencies.sort_unstable();
        let last = latencies.len().saturating_sub(1);
        let index = (share.clamp(0.0, 1.0) * last as f64).round() as usize;
        latencies.get(index).copied().unwrap_or_default()
    }

    /// When the first answer with this label was complete.
    pub fn first(&self, label: &str) -> Option<Duration> {
        self.with(label).map(|answer| answer.complete).min()
    }

    /// When the last request that got this label was due.
    pub fn last(&self, label: &str) -> Option<Duration> {
        self.with(label).map(|answer| answer.scheduled).max()
    }

    /// Whether traffic moved from `old` to `new` and never back: no request that was due after
    /// the first answer with `new` was complete got `old`.
    pub fn moved_once(&self, old: &str, new: &str) -> bool {
        match (self.first(new), self.last(old)) {
            (Some(new), Some(old)) => old <= new,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// Demands that no request was lost.
    ///
    /// # Panics
    /// With a summary, if some were.
    #[track_caller]
    pub fn expect_no_loss(self) -> Self {
        assert!(self.losses.is_empty(), "requests were lost\n{self}");
        self
    }

    fn with(&self, label: &str) -> impl Iterator<Item = &Answer> {
        self.answers.iter().filter(move |answer| answer.label == label)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, max) = (self.quantile(0.5), self.quantile(0.99), self.quantile(1.0));
        writeln!(
            f,
            "{} requests over {} connections, {} lost; latency p50 {p50:?}, p99 {p99:?}, max {max:?}",
            self.requests(),
            self.connections,
            self.losses.len()
        )?;
        let mut reasons: BTreeMap<&str, (usize, Duration, Duration)> = BTreeMap::new();
        for Loss { scheduled, why } in &self.losses {
            let entry = reasons.entry(why).or_insert((0, *scheduled, *scheduled));
            entry.0 += 1;
            entry.2 = *scheduled;
        }
        for (why, (count, from, to)) in reasons {
            writeln!(f, "  {count} lost, due from {from:?} to {to:?}: {why}")?;
        }
        Ok(())
    }
}
