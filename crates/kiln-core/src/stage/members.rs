//! Instances: joining a slot, taking another's place, leaving.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use super::{Illegal, Life, Slot, Stage};
use crate::digest::Digest;

/// What a stage has to know of an instance.
pub trait Member {
    /// Its name, which nothing else ever had or will have.
    fn id(&self) -> &str;
    /// Its service.
    fn service(&self) -> &str;
    /// Release of the slot in which it started and where it looks up names.
    fn born(&self) -> Digest;
    /// How it stands.
    fn life(&self) -> &Life;
    /// Has it stand so.
    fn set_life(&mut self, life: Life);
}

/// Instances by id. All may be read and changed in themselves; they come and go by moves of the
/// stage.
#[derive(Debug)]
pub struct Members<M>(BTreeMap<String, M>);

impl<M> Default for Members<M> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<M> Deref for Members<M> {
    type Target = BTreeMap<String, M>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<M: Member> Members<M> {
    /// One, to change.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut M> {
        self.0.get_mut(id)
    }

    /// All, to change.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut M> {
        self.0.values_mut()
    }

    pub(super) fn take_in(&mut self, all: Vec<M>) {
        self.0.extend(all.into_iter().map(|member| (member.id().to_owned(), member)));
    }
}

impl<M: Member> Stage<M> {
    /// `instance` becomes a member of the slot of the release that it was started for, in the place
    /// of those of its service that were there before this delivery.
    ///
    /// # Errors
    /// There is no such slot, its release has no such service, or the name was given before.
    pub fn join(&mut self, instance: M) -> Result<(), Illegal> {
        let (id, born) = (instance.id().to_owned(), instance.born());
        let join = |why| Illegal::Join { id: id.clone(), why };
        let release = self.releases.get(&born).ok_or(Illegal::NoSlot(born))?;
        if !release.services.contains_key(instance.service()) {
            return Err(join("its release has no such service"));
        }
        if self.instances.contains_key(&id) {
            return Err(join("it is there already"));
        }
        let there = self.candidate().map(|candidate| candidate.there.clone()).unwrap_or_default();
        let before: BTreeSet<String> = there.iter().map(|id| self.current(id)).collect();
        let slot = self.slots.0.iter_mut().find(|slot| slot.release == born);
        let slot = slot.ok_or(Illegal::NoSlot(born))?;
        if let Some(list) = slot.members.get_mut(instance.service()) {
            list.retain(|id| !before.contains(id));
        }
        slot.add(instance.service(), &id);
        self.instances.0.insert(id, instance);
        Ok(())
    }

    /// Takes in an instance that was found. It is a member of those of `slots` that have none of its
    /// service; if there is no such slot nobody wants it: it is to be stopped, and this says false.
    pub fn adopt(&mut self, mut instance: M, slots: &[Digest]) -> bool {
        let (id, service) = (instance.id().to_owned(), instance.service().to_owned());
        let mut adopted = false;
        for slot in self.slots.0.iter_mut().filter(|slot| slots.contains(&slot.release)) {
            if slot.of(&service).is_empty() {
                slot.add(&service, &id);
                adopted = true;
            }
        }
        if !adopted {
            instance.set_life(Life::Stopping);
        }
        self.instances.0.insert(id, instance);
        adopted
    }

    /// Puts `fresh` into the place of `old` in every slot. If that one is not wanted any more, nor
    /// is `fresh`: it is in no slot and to be stopped, and this says false.
    pub fn inherit(&mut self, old: &str, mut fresh: M) -> bool {
        let wanted = self.instances.get(old).is_some_and(|old| *old.life() != Life::Stopping);
        let id = fresh.id().to_owned();
        if wanted {
            for list in self.slots.0.iter_mut().flat_map(|slot| slot.members.values_mut()) {
                list.iter_mut().filter(|member| *member == old).for_each(|member| {
                    member.clone_from(&id);
                });
            }
            if let Some(delivery) = &mut self.delivery {
                let heirs = delivery.heirs.values_mut().filter(|heir| *heir == old);
                heirs.for_each(|heir| heir.clone_from(&id));
                delivery.heirs.insert(old.to_owned(), id.clone());
            }
        } else {
            fresh.set_life(Life::Stopping);
        }
        self.instances.0.insert(id, fresh);
        wanted
    }

    /// Whoever has the place of instance `id` by now; itself, as long as it has it.
    pub fn current(&self, id: &str) -> String {
        let heir = self.delivery.as_ref().and_then(|delivery| delivery.heirs.get(id));
        heir.map_or(id, String::as_str).to_owned()
    }

    /// Has an instance stand so.
    ///
    /// # Errors
    /// That cannot follow on how it stands. One that is not there is no error: it has left.
    pub fn turn(&mut self, id: &str, life: Life) -> Result<(), Illegal> {
        if let Some(instance) = self.instances.get_mut(id) {
            let next = instance.life().to(life)?;
            instance.set_life(next);
        }
        Ok(())
    }

    /// Takes an instance that has ended out of the stage.
    pub fn forget(&mut self, id: &str) -> Option<M> {
        self.slots.0.iter_mut().for_each(|slot: &mut Slot| slot.keep(|member| member != id));
        self.instances.0.remove(id)
    }

    /// Marks `ids` as being stopped: from here on nothing takes their place.
    pub fn stopping(&mut self, ids: &[String]) {
        for id in ids {
            if let Some(instance) = self.instances.get_mut(id) {
                instance.set_life(Life::Stopping);
            }
        }
    }
}
