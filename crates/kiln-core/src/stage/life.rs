//! How an instance stands.

use serde::{Deserialize, Serialize};

use super::Illegal;

/// How an instance stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Life {
    /// Started, not ready yet.
    Starting,
    /// Healthy, or its ports accept.
    Ready,
    /// Was ready; its probes fail.
    Unhealthy,
    /// Ended with status 0 and was meant to.
    Completed,
    /// Ended; a fresh one follows after a pause.
    BackOff {
        /// How it ended.
        how: String,
    },
    /// Ended or never got healthy; no further try.
    Failed {
        /// How it ended.
        how: String,
    },
    /// Being stopped.
    Stopping,
}

impl Life {
    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Completed => "completed",
            Self::BackOff { .. } => "backing off",
            Self::Failed { .. } => "failed",
            Self::Stopping => "stopping",
        }
    }

    /// Whether a process may be there.
    pub fn may_run(&self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Unhealthy | Self::Stopping)
    }

    /// `next`, if that can follow: who is being stopped stays so, who has ended does not run again,
    /// and nobody starts twice.
    ///
    /// # Errors
    /// It cannot follow.
    pub fn to(&self, next: Self) -> Result<Self, Illegal> {
        let can = match (self, &next) {
            (Self::Stopping, next) => *next == Self::Stopping,
            (_, Self::Stopping) => true,
            (_, Self::Starting) => false,
            (from, Self::Ready | Self::Unhealthy) => from.may_run(),
            (from, Self::BackOff { .. }) => from.may_run() || matches!(from, Self::BackOff { .. }),
            (from, Self::Failed { .. }) => !matches!(from, Self::Completed),
            (from, Self::Completed) => from.may_run() || *from == Self::Completed,
        };
        if can { Ok(next) } else { Err(Illegal::Life { from: self.word(), to: next.word() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_follow_what() {
        let how = || "so".to_owned();
        let all = [
            Life::Starting,
            Life::Ready,
            Life::Unhealthy,
            Life::Completed,
            Life::BackOff { how: how() },
            Life::Failed { how: how() },
            Life::Stopping,
        ];
        // A row for each life, a column for what follows, in the same order.
        let table = [
            ".RUCBFS", // starting
            ".RUCBFS", // ready
            ".RUCBFS", // unhealthy
            "...C..S", // completed
            "....BFS", // backing off
            ".....FS", // failed
            "......S", // stopping
        ];
        for (from, row) in all.iter().zip(table) {
            for (to, mark) in all.iter().zip(row.chars()) {
                assert_eq!(from.to(to.clone()).is_ok(), mark != '.', "{from:?} -> {to:?}");
            }
        }
    }
}
