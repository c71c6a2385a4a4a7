//! Instances that run and that no run file names: a deploy that was under way started them, or the
//! run file is lost, or could not be written. Their cards tell where they belong.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use kiln_core::release::KEY_FORMAT;
use kiln_core::{Digest, Release};
use kiln_run::Known;
use kiln_run::runtime::Found;
use serde_json::json;

use super::card::Card;
use super::claims::Claim;
use super::restore::revive;
use super::stage::Stage;
use super::{Agent, record};
use crate::report::Report;

/// What is to be done about them.
#[derive(Default)]
pub(super) struct Strays {
    /// To be ended: nobody wants them.
    pub(super) nobodys: Vec<Found>,
    /// What belongs to something that cannot be read: it stays as it is.
    pub(super) left_alone: BTreeSet<String>,
}

/// One with a card that makes sense.
struct Stray {
    stage: Arc<Stage>,
    card: Card,
    found: Found,
    /// The releases that the stage's pointer names, as far as there are any: they may lack it.
    serving: Vec<(Digest, Arc<Release>)>,
}

impl Strays {
    /// Gives those that the active or the standby release of a stage lacks their place, and has the
    /// others stopped. `cards` are those of all folders. `whole`: every run file could be read. `held`: nothing may be stopped.
    pub(super) fn find(
        agent: &Agent,
        found: BTreeMap<String, Found>,
        mut cards: BTreeMap<String, io::Result<Option<Card>>>,
        whole: bool,
        held: bool,
    ) -> Self {
        let mut strays = Self::default();
        let mut known = Vec::new();
        for (id, found) in found {
            if matches!(found.known, Known::Ended(_)) {
                continue;
            }
            match cards.remove(&id).unwrap_or(Ok(None)) {
                Ok(Some(card)) if held => {
                    agent.claims.found(&id, Claim::of(&card.stage, &card.instance));
                    strays.leave(agent, id, "the ledger is not whole");
                }
                Ok(None) if held => strays.leave(agent, id, "the ledger is not whole"),
                Ok(Some(card)) => known.extend(strays.recognise(agent, card, found)),
                Ok(None) if whole => strays.nobodys.push(found),
                Ok(None) => strays.leave(agent, id, "a run file cannot be read"),
                Err(error) => strays.leave(agent, id, &format!("nor can its card: {error}")),
            }
        }
        // First all slots with the names that their instances know, then who is in them.
        for stray in &known {
            stray.name(agent);
        }
        for stray in known {
            stray.place(agent);
        }
        strays
    }

    fn leave(&mut self, agent: &Agent, id: String, why: &str) {
        agent.log(&format!("{id} is in no run file, and {why}: it is left alone"));
        self.left_alone.insert(id);
    }

    /// One of which enough is known to decide about it.
    fn recognise(&mut self, agent: &Agent, card: Card, found: Found) -> Option<Stray> {
        let stage = agent.stage(&card.stage);
        let pointer = stage.state().pointer.clone();
        let serving: Result<Vec<_>, Report> = [pointer.active, pointer.standby]
            .into_iter()
            .flatten()
            .map(|digest| Ok((digest, agent.release_in(&card.stage, &digest)?)))
            .collect();
        match serving {
            // Nothing is known of what it may write, so nothing may start beside it.
            Ok(_) if agent.release(&card.instance.born).is_err() => {
                self.nobodys.push(found);
                None
            }
            Ok(serving) => Some(Stray { stage, card, found, serving }),
            Err(report) => {
                agent.claims.found(&card.instance.id, Claim::of(&card.stage, &card.instance));
                self.leave(agent, card.instance.id, &report.message);
                None
            }
        }
    }
}

impl Stray {
    /// Makes the slot in which it started, unless that is there.
    fn name(&self, agent: &Agent) {
        let born = self.card.instance.born;
        let Ok(release) = agent.release_in(&self.stage.id, &born) else { return };
        self.stage.update(|state| state.found_slot(born, release, self.card.names.clone()));
    }

    /// Gives it its place in the slots that lack it, or has it stopped.
    fn place(self, agent: &Agent) {
        let Self { stage, card, found, serving } = self;
        let mut instance = card.instance;
        let id = instance.id.clone();
        revive(&mut instance, found);
        agent.claims.found(&id, Claim::of(&stage.id, &instance));
        let lacking: Vec<(Digest, Arc<Release>)> = serving
            .into_iter()
            .filter(|(digest, _)| {
                let key = agent.instance_key(&stage.id, digest, &instance.service).ok().flatten();
                instance.keyed == KEY_FORMAT && key == Some(instance.key)
            })
            .collect();
        let adopted = stage.update(|state| {
            let mut slots = Vec::new();
            for (digest, release) in lacking {
                if state.slot(&digest).is_none() {
                    let names = own_names(agent, &release);
                    state.found_slot(digest, release, names);
                }
                slots.push(digest);
            }
            state.adopt(instance, &slots)
        });
        let what = if adopted { "found by its card" } else { "no delivery has finished with it" };
        record::note(agent, &stage, "instance.found", json!({ "instance": id, "what": what }));
    }
}

/// Addresses for a slot whose own are lost: none of its instances started in it.
fn own_names(agent: &Agent, release: &Release) -> BTreeMap<String, Ipv4Addr> {
    let services = release.services.keys().cloned();
    let addresses = agent.addresses.take_virtuals(&agent.host, services.len()).unwrap_or_default();
    services.zip(addresses).collect()
}
