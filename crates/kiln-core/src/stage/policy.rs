//! What a stage holds to. A release proposes a policy; the stage that takes it in holds it from
//! then on, and it is recorded with the stage's pointer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Restorable releases beside the active one, where nothing is stated.
const KEEP: u32 = 10;

/// More than this nobody may keep: every move of a pointer records them all.
pub const MOST_KEPT: u32 = 1000;

/// How long what is under way may take in `dev`, where nothing is stated, and elsewhere.
const DRAIN_DEV: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(600);

/// A stage's policy, as far as it is stated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Releases beside the active one that stay restorable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// Nanoseconds that what is under way at a release may go on after the switch away from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<u64>,
}

impl Policy {
    /// Whether nothing is stated.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many releases beside the active one stay restorable: at least one.
    pub fn keep(&self) -> usize {
        self.keep.unwrap_or(KEEP).clamp(1, MOST_KEPT) as usize
    }

    /// How long what is under way may go on.
    pub fn drain(&self, stage: &str) -> Duration {
        let usual = if stage == "dev" { DRAIN_DEV } else { DRAIN };
        self.drain.map_or(usual, Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_stated_has_a_default_and_nothing_is_endless() {
        let open = Policy::default();
        assert!(open.is_empty());
        assert_eq!(open.keep(), 10);
        assert_eq!((open.drain("dev").as_secs(), open.drain("prod").as_secs()), (10, 600));
        let said = Policy { keep: Some(0), drain: Some(1_000_000) };
        assert_eq!((said.keep(), said.drain("prod").as_millis()), (1, 1));
        assert_eq!(Policy { keep: Some(u32::MAX), ..open }.keep(), 1000);
    }
}
