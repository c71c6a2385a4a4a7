//! What is recorded of a stage: which release serves, which stay, what it holds to. It is the one
//! thing that a restart believes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Policy;
use crate::digest::Digest;

/// Where a stage points.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// The release that serves.
    pub active: Option<Digest>,
    /// The release that is kept warm for rollback.
    pub standby: Option<Digest>,
    /// Releases that were active before, the latest first.
    #[serde(default)]
    pub previous: Vec<Digest>,
    /// Releases that must not be deployed until a person says otherwise.
    #[serde(default)]
    pub quarantined: BTreeSet<Digest>,
    /// The policy that the stage holds.
    #[serde(default, skip_serializing_if = "Policy::is_empty")]
    pub policy: Policy,
    /// The project's folder that was deployed here last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// How often the volumes without a name were renewed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub renewed: u64,
    /// Counts the moves; the first makes it 1.
    pub generation: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks for it
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why a pointer moves to a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody brings it in; the stage takes over the policy that it proposes.
    Entered(Policy),
    /// Somebody goes back to it. The policy stays, and what was left is quarantined.
    RolledBack,
    /// It is brought back to where it was.
    Restored,
}

impl Pointer {
    /// The pointer after a move to `target`. The generation is whoever's that records it.
    ///
    /// Only who enters forgets old releases, by the policy held from then on: going back and coming
    /// back never lose any.
    #[must_use]
    pub fn moved(&self, target: Digest, cause: Cause) -> Self {
        let mut next = self.clone();
        let mut seen = BTreeSet::new();
        next.previous.retain(|digest| seen.insert(*digest));
        if self.active != Some(target) {
            // After `down` the release that served is in the list, and may serve again.
            next.previous.retain(|digest| Some(*digest) != self.active && *digest != target);
            next.previous.splice(..0, self.active);
            next.standby = self.active;
            next.active = Some(target);
        }
        match cause {
            Cause::Entered(policy) => {
                next.policy = policy;
                next.previous.truncate(policy.keep());
            }
            Cause::RolledBack => {
                next.quarantined.extend(self.active.filter(|left| *left != target));
            }
            Cause::Restored => {}
        }
        next.quarantined.remove(&target);
        next
    }

    /// The pointer after `down`: what served can serve again.
    #[must_use]
    pub fn down(&self) -> Self {
        let mut next = self.clone();
        if let Some(active) = next.active.take() {
            next.previous.retain(|digest| *digest != active);
            next.previous.insert(0, active);
        }
        next.standby = None;
        next
    }

    /// Without the quarantine of what can be deployed no more: neither kept here nor in `others`.
    /// The ledger still has it.
    #[must_use]
    pub fn forgetting(mut self, others: &BTreeSet<Digest>) -> Self {
        let kept: BTreeSet<Digest> = self.restorable().collect();
        self.quarantined.retain(|digest| kept.contains(digest) || others.contains(digest));
        self
    }

    /// Whether a quarantine is of something that this pointer does not name otherwise.
    pub fn has_stray_quarantines(&self) -> bool {
        let kept: BTreeSet<Digest> = self.restorable().collect();
        !self.quarantined.is_subset(&kept)
    }

    /// Whether it does not contradict itself.
    pub fn is_sound(&self) -> bool {
        let distinct: BTreeSet<&Digest> = self.previous.iter().collect();
        let active = self.active.as_ref();
        distinct.len() == self.previous.len()
            && active.is_none_or(|active| {
                !distinct.contains(active)
                    && !self.quarantined.contains(active)
                    && self.standby.as_ref() != Some(active)
            })
    }

    /// Every release that it names to keep, the newest first.
    pub fn restorable(&self) -> impl Iterator<Item = Digest> {
        self.active.into_iter().chain(self.standby).chain(self.previous.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(nth: u32) -> Digest {
        Digest::of(nth.to_string())
    }

    fn entered(keep: u32) -> Cause {
        Cause::Entered(Policy { keep: Some(keep), drain: None })
    }

    #[test]
    fn entering_keeps_as_many_as_the_policy_says_down_or_not() {
        let mut up = Pointer::default();
        for nth in 0..12 {
            up = up.moved(digest(nth), entered(3));
        }
        assert_eq!(up.previous, [digest(10), digest(9), digest(8)]);
        assert_eq!((up.active, up.standby), (Some(digest(11)), Some(digest(10))));
        let mut up = Pointer::default();
        for nth in 0..12 {
            up = up.down().moved(digest(nth), entered(3));
        }
        assert_eq!(up.previous, [digest(10), digest(9), digest(8)]);
        assert_eq!(up.down().previous.len(), 4, "what served is restorable too");
    }

    #[test]
    fn going_back_loses_nothing_and_quarantines() {
        let mut up = Pointer::default();
        for nth in 0..17 {
            up = up.moved(digest(nth), entered(20));
        }
        // Whoever reads it again holds the policy again.
        let read: Pointer = serde_json::from_str(&serde_json::to_string(&up).unwrap()).unwrap();
        assert_eq!(read, up);
        let back = read.moved(digest(3), Cause::RolledBack);
        assert_eq!(back.previous.len(), 16);
        assert_eq!(back.policy, up.policy);
        assert_eq!(back.quarantined, BTreeSet::from([digest(16)]));
        let again = back.moved(digest(16), entered(20));
        assert!(again.quarantined.is_empty());
        assert_eq!(back.moved(digest(3), Cause::Restored), back);
    }

    #[test]
    fn a_thousand_rollbacks_leave_a_line_of_bounded_length() {
        let mut pointer = Pointer::default();
        for nth in 0..1000 {
            pointer = pointer.moved(digest(nth), entered(5));
            pointer = pointer
                .moved(pointer.previous.last().copied().unwrap_or(digest(nth)), Cause::RolledBack);
            if pointer.has_stray_quarantines() {
                pointer = pointer.forgetting(&BTreeSet::from([digest(7)]));
            }
        }
        assert!(serde_json::to_string(&pointer).unwrap().len() < 2000);
        assert!(pointer.quarantined.contains(&digest(7)), "somebody else keeps it");
    }
}
