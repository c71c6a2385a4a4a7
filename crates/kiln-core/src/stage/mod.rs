//! A stage as a value: what is there, who gets traffic, what is recorded; and the moves between.
//!
//! ```text
//!               begin            open             hold
//!   at rest ───────────▶ begun ─────────▶ trying ──────▶ trying, requests wait
//!      ▲  ▲                │               │  ▲              │
//!      │  └──── end ───────┘◀── close ─────┘  │ take_back    │ weigh
//!      │                                      │              ▼
//!      └───────────────── record ─────────── switched ◀──────┘
//! ```
//! Everything else follows: which release is active from the traffic, which is standby from the
//! pointer, which is the candidate from the delivery under way. So no two can be active, and at
//! rest the traffic is where the pointer says. A move that is illegal changes nothing and is an
//! error; `check` says what must hold after every move, and a property test plays it.
//!
//! | module | noun |
//! |---|---|
//! | here | the value |
//! | `moves` | deliveries: from begin to record, and back |
//! | `members` | instances: joining, taking another's place, leaving |
//! | `slot` | the instances of one release |
//! | `life` | how an instance stands |
//! | `pointer` | what is recorded |
//! | `policy` | what the stage holds to |

mod fixed;
mod life;
mod members;
mod moves;
mod pointer;
mod policy;
mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::fixed::Fixed;
pub use self::life::Life;
pub use self::members::{Member, Members};
pub use self::pointer::{Cause, Pointer};
pub use self::policy::{MOST_KEPT, Policy};
pub use self::slot::{Role, Slot};

use crate::digest::Digest;
use crate::release::Release;

/// A move that cannot be made. Whoever sees one has found a bug of Kiln's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// The move needs another phase.
    #[error("a stage that is {is} cannot {wish}")]
    Phase {
        /// The move.
        wish: &'static str,
        /// The phase it is in.
        is: &'static str,
    },
    /// There is no slot of that release.
    #[error("there is no slot of {}", .0.short())]
    NoSlot(Digest),
    /// The traffic does not add up, or goes where it must not.
    #[error("traffic cannot be shared so: {0}")]
    Traffic(&'static str),
    /// What is to be recorded is not what is so.
    #[error("the pointer says otherwise than the traffic")]
    Pointer,
    /// An instance that cannot be a member.
    #[error("{id} cannot join: {why}")]
    Join {
        /// The instance.
        id: String,
        /// Why not.
        why: &'static str,
    },
    /// An instance cannot come to stand so.
    #[error("an instance that is {from} cannot get {to}")]
    Life {
        /// How it stands.
        from: &'static str,
        /// How it should.
        to: &'static str,
    },
}

/// One release's part of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The release.
    pub release: Digest,
    /// Of 100.
    pub percent: u8,
}

/// A stage. `M` is what is known of an instance beside its place.
#[derive(Debug)]
pub struct Stage<M> {
    /// What is recorded: where a restart begins.
    pub pointer: Fixed<Pointer>,
    /// All slots, oldest first.
    pub slots: Fixed<Vec<Slot>>,
    /// Who answers clients. Empty: nobody does.
    pub traffic: Fixed<Vec<Share>>,
    /// All instances, by id.
    pub instances: Members<M>,
    /// The releases that slots name.
    pub releases: Fixed<BTreeMap<Digest, Arc<Release>>>,
    /// The pointer was not believed when this was found.
    doubted: bool,
    /// Slots that are kept warm although no believed pointer says so.
    warm: BTreeSet<Digest>,
    /// New requests wait: what holds data is being replaced.
    held: bool,
    delivery: Option<Delivery>,
}

/// What is under way.
#[derive(Debug, Default)]
struct Delivery {
    /// Who took whose place since it was planned.
    heirs: BTreeMap<String, String>,
    candidate: Option<Candidate>,
    /// Where traffic was before nobody was to serve any more, as long as that is not recorded.
    left: Option<Vec<Share>>,
}

/// How it was before the candidate under way, and what is in the way of that.
#[derive(Debug)]
pub struct Before {
    /// Where traffic was.
    pub traffic: Vec<Share>,
    /// Instances that the candidate has started, and nobody else needs.
    pub leftovers: Vec<String>,
    /// Services of what served that have no instance any more.
    pub missing: Option<(Digest, Vec<String>)>,
}

/// A slot that is being filled, and how it was before.
#[derive(Debug)]
struct Candidate {
    release: Digest,
    /// Where traffic was.
    traffic: Vec<Share>,
    /// The slot's members, if this release had one already.
    reused: Option<BTreeMap<String, Vec<String>>>,
    /// Instances that were there.
    there: BTreeSet<String>,
    /// Traffic was moved.
    switched: bool,
}

impl<M: Member> Stage<M> {
    /// With nothing in it yet.
    pub fn new(pointer: Pointer) -> Self {
        Self {
            pointer: Fixed::new(pointer),
            slots: Fixed::new(Vec::new()),
            traffic: Fixed::new(Vec::new()),
            instances: Members::default(),
            releases: Fixed::new(BTreeMap::new()),
            doubted: false,
            warm: BTreeSet::new(),
            held: false,
            delivery: None,
        }
    }

    /// Takes in what was found again after a restart: slots, with their releases where those can be
    /// read, and instances. What serves is what the pointer says; a delivery that was under way has
    /// never happened. If the pointer cannot be believed it is what `roles` says, which is empty
    /// otherwise.
    pub fn found(
        &mut self,
        slots: Vec<(Slot, Option<Arc<Release>>)>,
        instances: Vec<M>,
        roles: &BTreeMap<Digest, Role>,
    ) {
        self.instances.take_in(instances);
        for (mut slot, release) in slots {
            // One that was being stopped belongs to no slot any more.
            let lives = |found: &M| *found.life() != Life::Stopping;
            slot.keep(|id| self.instances.get(id).is_some_and(lives));
            let known = self.slots.iter().any(|other| other.release == slot.release);
            if !known {
                self.releases.0.extend(release.map(|release| (slot.release, release)));
                self.slots.0.push(slot);
            }
        }
        let with = |role| roles.iter().filter(move |(_, is)| **is == role).map(|(it, _)| *it);
        let serving = with(Role::Active).next().or(self.pointer.active);
        let serving = serving.filter(|active| self.slot(active).is_some());
        self.traffic.0 = serving.into_iter().map(Share::all).collect();
        self.warm = with(Role::Standby).collect();
        self.doubted = !roles.is_empty();
    }

    /// Takes in one more slot that was found, unless there is one of that release.
    pub fn found_slot(
        &mut self,
        digest: Digest,
        release: Arc<Release>,
        addresses: BTreeMap<String, Ipv4Addr>,
    ) {
        if self.slot(&digest).is_none() {
            let members = BTreeMap::new();
            self.slots.0.push(Slot { release: digest, addresses, members });
            let serves = self.delivery.is_none() && self.pointer.active == Some(digest);
            if serves && self.traffic.is_empty() {
                self.traffic.0.push(Share::all(digest));
            }
        }
        self.releases.0.insert(digest, release);
    }

    /// What the slot of `release` is for.
    pub fn role(&self, release: &Digest) -> Role {
        if self.traffic.iter().any(|share| share.release == *release) {
            return Role::Active;
        }
        let candidate = self.candidate();
        if candidate.is_some_and(|candidate| candidate.release == *release) {
            return Role::Candidate;
        }
        // What served is kept warm from the switch on, before that is recorded.
        let left = candidate.filter(|candidate| candidate.switched);
        let left = left.is_some_and(|left| left.traffic.iter().any(|s| s.release == *release));
        let warm = left || self.pointer.standby == Some(*release) || self.warm.contains(release);
        if warm { Role::Standby } else { Role::Names }
    }

    /// The slot of `release`.
    pub fn slot(&self, release: &Digest) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.release == *release)
    }

    /// The first slot with `role`.
    pub fn with_role(&self, role: Role) -> Option<&Slot> {
        self.slots.iter().find(|slot| self.role(&slot.release) == role)
    }

    /// The newest instance of `service` in the slot of `release`.
    pub fn member(&self, release: &Digest, service: &str) -> Option<&M> {
        self.instances.get(self.slot(release)?.of(service).last()?)
    }

    /// Whether `release` is what serves, and was meant to.
    pub fn serves(&self, release: &Digest) -> bool {
        self.pointer.active == Some(*release) && *self.traffic == [Share::all(*release)]
    }

    /// The release that serves, or served last.
    pub fn last_served(&self) -> Option<Digest> {
        self.pointer.active.or(self.pointer.previous.first().copied())
    }

    /// Whether new requests wait.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Services that what serves has no instance of, in the order to start them.
    pub fn missing(&self) -> Option<(Digest, Vec<String>)> {
        let slot = self.with_role(Role::Active)?;
        self.missing_of(&slot.release, |service| !slot.of(service).is_empty())
    }

    fn missing_of(
        &self,
        release: &Digest,
        there: impl Fn(&str) -> bool,
    ) -> Option<(Digest, Vec<String>)> {
        let order = self.releases.get(release)?.start_order();
        Some((*release, order.into_iter().filter(|service| !there(service)).collect()))
    }

    /// Instances that no slot with a role of its own names.
    pub fn unneeded(&self) -> Vec<String> {
        let slots = self.slots.iter().filter(|slot| self.is_wanted(&slot.release));
        let needed: BTreeSet<&String> = slots.flat_map(Slot::all).collect();
        self.instances.keys().filter(|id| !needed.contains(id)).cloned().collect()
    }

    /// Whether a slot is more than its names: it has a role, or may have it again.
    fn is_wanted(&self, release: &Digest) -> bool {
        let left = self.delivery.as_ref().and_then(|delivery| delivery.left.as_ref());
        let left = left.into_iter().flatten().any(|share| share.release == *release);
        left || self.role(release) != Role::Names
    }

    /// Drops slots that neither serve nor lend their names to a living instance; gives back their
    /// virtual addresses.
    pub fn forget_slots(&mut self) -> Vec<Ipv4Addr> {
        let born: BTreeSet<Digest> = self.instances.values().map(Member::born).collect();
        let gone: BTreeSet<Digest> = self
            .slots
            .iter()
            .map(|slot| slot.release)
            .filter(|release| !self.is_wanted(release) && !born.contains(release))
            .collect();
        let mut freed = Vec::new();
        self.slots.0.retain(|slot| {
            if gone.contains(&slot.release) {
                freed.extend(slot.addresses.values());
            }
            !gone.contains(&slot.release)
        });
        let named: BTreeSet<Digest> = self.slots.iter().map(|slot| slot.release).collect();
        self.releases.0.retain(|digest, _| named.contains(digest));
        freed
    }

    fn candidate(&self) -> Option<&Candidate> {
        self.delivery.as_ref()?.candidate.as_ref()
    }

    /// In which of the phases above it is.
    fn phase(&self) -> &'static str {
        match &self.delivery {
            None => "at rest",
            Some(Delivery { candidate: None, .. }) => "begun",
            Some(Delivery { candidate: Some(candidate), .. }) if candidate.switched => "switched",
            Some(_) => "trying",
        }
    }

    fn refuse(&self, wish: &'static str) -> Illegal {
        Illegal::Phase { wish, is: self.phase() }
    }

    /// What must hold between any two moves.
    ///
    /// # Errors
    /// In words, what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        let rules = [
            (self.traffic_adds_up(), "traffic does not add up"),
            (self.held <= self.delivery.is_some(), "requests wait for nothing"),
            (
                self.delivery.is_some() || self.doubted || self.agrees(),
                "pointer and traffic differ",
            ),
            (self.slots.iter().all(|slot| self.is_whole(slot)), "a slot names what is not there"),
            (self.has_distinct_slots(), "two slots have a release or address in common"),
            (self.pointer.is_sound(), "the pointer contradicts itself"),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(rule))
    }

    fn traffic_adds_up(&self) -> bool {
        let sum: u32 = self.traffic.iter().map(|share| u32::from(share.percent)).sum();
        let releases: BTreeSet<Digest> = self.traffic.iter().map(|share| share.release).collect();
        (self.traffic.is_empty() || sum == 100)
            && releases.len() == self.traffic.len()
            && self.traffic.iter().all(|s| s.percent > 0 && self.slot(&s.release).is_some())
    }

    /// Whether all traffic is where the pointer says, or nowhere: what is recorded may not have been
    /// built up again yet, or may have failed to.
    fn agrees(&self) -> bool {
        match self.traffic.as_slice() {
            [] => true,
            [share] => Some(share) == self.pointer.active.map(Share::all).as_ref(),
            _ => false,
        }
    }

    fn is_whole(&self, slot: &Slot) -> bool {
        let member = |service: &String, id: &String| {
            self.instances.get(id).is_some_and(|found| found.service() == service)
        };
        slot.members.iter().all(|(service, ids)| {
            let distinct: BTreeSet<&String> = ids.iter().collect();
            distinct.len() == ids.len() && ids.iter().all(|id| member(service, id))
        })
    }

    fn has_distinct_slots(&self) -> bool {
        let releases: BTreeSet<Digest> = self.slots.iter().map(|slot| slot.release).collect();
        let all = || self.slots.iter().flat_map(|slot| slot.addresses.values());
        let addresses: BTreeSet<&Ipv4Addr> = all().collect();
        releases.len() == self.slots.len() && addresses.len() == all().count()
    }
}

impl Share {
    /// All of the traffic.
    pub fn all(release: Digest) -> Self {
        Self { release, percent: 100 }
    }
}

#[cfg(test)]
mod tests;
