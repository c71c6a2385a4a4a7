//! The moves of a delivery. Each is legal in one phase only; see the picture in [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::{Before, Candidate, Delivery, Illegal, Member, Pointer, Share, Slot, Stage};
use crate::digest::Digest;
use crate::release::Release;

impl<M: Member> Stage<M> {
    /// Begins a delivery: from now on it is remembered who takes whose place, so that what is
    /// planned may go on naming instances that are replaced under it.
    ///
    /// # Errors
    /// One is under way.
    pub fn begin(&mut self) -> Result<(), Illegal> {
        if self.delivery.is_some() {
            return Err(self.refuse("begin a delivery"));
        }
        self.delivery = Some(Delivery::default());
        Ok(())
    }

    /// Ends a delivery that has no candidate (any more), if one is under way.
    ///
    /// # Errors
    /// Its candidate is still there.
    pub fn end(&mut self) -> Result<(), Illegal> {
        if self.candidate().is_some() {
            return Err(self.refuse("end its delivery"));
        }
        let left = self.delivery.take().and_then(|delivery| delivery.left);
        self.traffic.0 = left.unwrap_or_else(|| self.traffic.clone());
        self.held = false;
        Ok(())
    }

    /// Opens the slot of a candidate: the one that its release has, else one with `addresses`. The
    /// instances `shared`, by service, are members of it. Gives back addresses that were not needed.
    ///
    /// # Errors
    /// No delivery has begun, or it has a candidate; an instance that cannot be shared.
    pub fn open(
        &mut self,
        digest: Digest,
        release: &Arc<Release>,
        addresses: BTreeMap<String, Ipv4Addr>,
        shared: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Ipv4Addr>, Illegal> {
        if self.phase() != "begun" || self.delivery.as_ref().is_none_or(|it| it.left.is_some()) {
            return Err(self.refuse("open a candidate"));
        }
        let mut members = Vec::new();
        for (service, id) in shared {
            let id = self.current(id);
            let found = self.instances.get(&id).is_some_and(|one| one.service() == service);
            if !found || !release.services.contains_key(service) {
                return Err(Illegal::Join { id, why: "it cannot be shared" });
            }
            members.push((service, id));
        }
        let reused = self.slot(&digest).map(|slot| slot.members.clone());
        let left = match &reused {
            Some(_) => addresses,
            None => {
                let members = BTreeMap::new();
                self.slots.0.push(Slot { release: digest, addresses, members });
                BTreeMap::new()
            }
        };
        self.releases.0.insert(digest, Arc::clone(release));
        if let Some(slot) = self.slots.0.iter_mut().find(|slot| slot.release == digest) {
            for (service, id) in members {
                slot.members.insert(service.clone(), vec![id]);
            }
        }
        let (traffic, there) = (self.traffic.clone(), self.instances.keys().cloned().collect());
        let candidate = Candidate { release: digest, traffic, reused, there, switched: false };
        if let Some(delivery) = &mut self.delivery {
            delivery.candidate = Some(candidate);
        }
        Ok(left)
    }

    /// New requests wait from now on.
    ///
    /// # Errors
    /// There is no candidate for which they could, or it has the traffic already.
    pub fn hold(&mut self) -> Result<(), Illegal> {
        if self.phase() != "trying" {
            return Err(self.refuse("hold requests"));
        }
        self.held = true;
        Ok(())
    }

    /// Shares out the traffic between the candidate and who had it before. Nobody waits any more.
    ///
    /// # Errors
    /// There is no candidate; shares that do not add up or go to others.
    pub fn weigh(&mut self, traffic: Vec<Share>) -> Result<(), Illegal> {
        let Some(candidate) = self.delivery.as_ref().and_then(|it| it.candidate.as_ref()) else {
            return Err(self.refuse("move its traffic"));
        };
        let had = |share: &Share| candidate.traffic.iter().any(|s| s.release == share.release);
        let may = |share: &Share| share.release == candidate.release || had(share);
        if !traffic.iter().all(may) {
            return Err(Illegal::Traffic("to a release that is not part of this delivery"));
        }
        let mut releases = BTreeSet::new();
        let distinct = traffic.iter().all(|share| releases.insert(share.release));
        let sum: u32 = traffic.iter().map(|share| u32::from(share.percent)).sum();
        if !distinct || sum != 100 || traffic.iter().any(|share| share.percent == 0) {
            return Err(Illegal::Traffic("the shares are not 100 altogether"));
        }
        self.traffic.0 = traffic;
        self.held = false;
        if let Some(candidate) = self.candidate_mut() {
            candidate.switched = true;
        }
        Ok(())
    }

    /// Traffic goes back to where it was before the candidate. `held`: and waits there, since what
    /// holds data is not there any more.
    ///
    /// # Errors
    /// Nothing was switched.
    pub fn take_back(&mut self, held: bool) -> Result<(), Illegal> {
        if self.phase() != "switched" {
            return Err(self.refuse("take a switch back"));
        }
        if let Some(candidate) = self.delivery.as_mut().and_then(|it| it.candidate.as_mut()) {
            candidate.switched = false;
            self.traffic.0.clone_from(&candidate.traffic);
        }
        self.held = held;
        Ok(())
    }

    /// Whether traffic was moved, and that is not recorded yet.
    pub fn is_switched(&self) -> bool {
        self.candidate().is_some_and(|candidate| candidate.switched)
    }

    /// Whether a candidate is there.
    pub fn is_trying(&self) -> bool {
        self.candidate().is_some()
    }

    /// How it was before the candidate, if there is one.
    pub fn before(&self) -> Option<Before> {
        let candidate = self.candidate()?;
        let leftovers = self.leftovers();
        let serving = candidate.traffic.first().map(|share| share.release);
        let missing = serving.and_then(|serving| {
            let members = match &candidate.reused {
                Some(members) if serving == candidate.release => members,
                _ => &self.slot(&serving)?.members,
            };
            let lives = |id: &String| self.instances.contains_key(&self.current(id));
            self.missing_of(&serving, |service| {
                members.get(service).is_some_and(|ids| ids.iter().any(lives))
            })
        });
        Some(Before { traffic: candidate.traffic.clone(), leftovers, missing })
    }

    /// Instances that the candidate has started, and nobody else needs.
    pub fn leftovers(&self) -> Vec<String> {
        let Some(candidate) = self.candidate() else { return Vec::new() };
        // What ended meanwhile and was there before has a fresh one in its place, which stays.
        let kept: BTreeSet<String> = candidate.there.iter().map(|id| self.current(id)).collect();
        self.instances.keys().filter(|id| !kept.contains(*id)).cloned().collect()
    }

    /// Gives the candidate up: its slot is again what it was.
    ///
    /// # Errors
    /// There is none, or it has the traffic.
    pub fn close(&mut self) -> Result<(), Illegal> {
        if self.phase() != "trying" {
            return Err(self.refuse("close a candidate"));
        }
        let Some(candidate) = self.delivery.as_mut().and_then(|it| it.candidate.take()) else {
            return Err(self.refuse("close a candidate"));
        };
        let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (service, ids) in candidate.reused.into_iter().flatten() {
            let ids = ids.iter().map(|id| self.current(id));
            let there: Vec<String> = ids.filter(|id| self.instances.contains_key(id)).collect();
            if !there.is_empty() {
                members.insert(service, there);
            }
        }
        if let Some(slot) = self.slots.0.iter_mut().find(|it| it.release == candidate.release) {
            slot.members = members;
        }
        Ok(())
    }

    /// Nobody waits any more: the candidate for which requests were held is gone.
    ///
    /// # Errors
    /// No delivery has begun, or its candidate is still there.
    pub fn resume(&mut self) -> Result<(), Illegal> {
        if self.phase() != "begun" {
            return Err(self.refuse("let requests in"));
        }
        self.held = false;
        Ok(())
    }

    /// Nobody serves any more; gives all instances. As long as that is not recorded, it can
    /// [`stay`](Stage::stay) as it was.
    ///
    /// # Errors
    /// No delivery has begun, or it has a candidate.
    pub fn down(&mut self) -> Result<Vec<String>, Illegal> {
        let delivery = match &mut self.delivery {
            Some(delivery) if delivery.candidate.is_none() && delivery.left.is_none() => delivery,
            _ => return Err(self.refuse("go down")),
        };
        delivery.left = Some(std::mem::take(&mut self.traffic.0));
        Ok(self.instances.keys().cloned().collect())
    }

    /// It does not go down after all: who served goes on serving.
    ///
    /// # Errors
    /// It was not about to.
    pub fn stay(&mut self) -> Result<(), Illegal> {
        let left = self.delivery.as_mut().and_then(|delivery| delivery.left.take());
        self.traffic.0 = left.ok_or_else(|| self.refuse("stay up"))?;
        Ok(())
    }

    /// It is down although that cannot be recorded: what is recorded is not believed any more.
    ///
    /// # Errors
    /// It was not about to go down.
    pub fn stay_down(&mut self) -> Result<(), Illegal> {
        if self.delivery.as_mut().and_then(|delivery| delivery.left.take()).is_none() {
            return Err(self.refuse("stay down"));
        }
        self.doubted = true;
        Ok(())
    }

    /// What is recorded was mended. Traffic stays where it is, even if that is elsewhere now.
    pub fn mended(&mut self, pointer: Pointer) {
        self.pointer.0 = pointer;
        self.doubted = !self.agrees();
    }

    /// What was recorded is what is so: the end of a delivery. The slot that was left is standby if
    /// the pointer says so.
    ///
    /// # Errors
    /// Traffic is not where `pointer` says.
    pub fn record(&mut self, pointer: Pointer) -> Result<(), Illegal> {
        self.may_record(&pointer)?;
        self.pointer.0 = pointer;
        self.doubted = false;
        self.warm.clear();
        if let Some(delivery) = &mut self.delivery {
            (delivery.candidate, delivery.left) = (None, None);
        }
        Ok(())
    }

    /// Whether [`Stage::record`] is legal: asked before anything is written.
    ///
    /// # Errors
    /// As there.
    pub fn may_record(&self, pointer: &Pointer) -> Result<(), Illegal> {
        let serving: Vec<Share> = pointer.active.into_iter().map(Share::all).collect();
        if self.delivery.is_none() {
            return Err(self.refuse("record a move"));
        }
        if *self.traffic != serving || !pointer.is_sound() {
            return Err(Illegal::Pointer);
        }
        Ok(())
    }

    /// What nobody needs any more is being stopped from now on; gives their names.
    pub fn retire(&mut self) -> Vec<String> {
        let ids = self.unneeded();
        self.stopping(&ids);
        ids
    }

    fn candidate_mut(&mut self) -> Option<&mut Candidate> {
        self.delivery.as_mut()?.candidate.as_mut()
    }
}
