//! Who writes what: one table over all stages and projects of the root.
//!
//! An instance claims the data that it can write before it starts, and gives it back when it is
//! known to have ended. Nothing starts whose data somebody else writes, in whichever stage and
//! under whichever path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use kiln_core::Digest;
use kiln_core::data::Data;

use super::lock;
use super::stage::{Instance, StageId};
use crate::report::Report;

/// What one instance can write.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// Where it runs.
    pub stage: StageId,
    /// Its service.
    pub service: String,
    /// Release of the slot that it starts in.
    pub born: Digest,
    /// What it can write.
    pub data: Data,
}

impl Claim {
    /// What `instance` of `stage` can write.
    pub(crate) fn of(stage: &StageId, instance: &Instance) -> Self {
        let (service, data) = (instance.service.clone(), instance.data.clone());
        Self { stage: stage.clone(), service, born: instance.born, data }
    }
}

/// All claims of the root, by instance.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<BTreeMap<String, Claim>>);

impl Claims {
    /// Instance `id` is about to start. Those that it runs beside may write the same: services of
    /// one release share data as the Compose file says, and `beside` names the instances that it
    /// shares a slot with.
    pub(crate) fn take(
        &self,
        id: &str,
        claim: Claim,
        beside: &BTreeSet<String>,
    ) -> Result<(), Report> {
        if claim.data.is_empty() {
            return Ok(());
        }
        let mut claims = lock(&self.0);
        let companion = |other: &str, theirs: &Claim| {
            let sibling = theirs.born == claim.born && theirs.service != claim.service;
            other == id || theirs.stage == claim.stage && (sibling || beside.contains(other))
        };
        let others = claims.iter().filter(|(other, theirs)| !companion(other, theirs));
        meeting(&claim, others.map(|(_, theirs)| theirs))?;
        claims.insert(id.to_owned(), claim);
        Ok(())
    }

    /// What was running when the agent came back.
    pub(crate) fn found(&self, id: &str, claim: Claim) {
        if !claim.data.is_empty() {
            lock(&self.0).insert(id.to_owned(), claim);
        }
    }

    /// Instance `id` is known to have ended.
    pub(crate) fn give_back(&self, id: &str) {
        lock(&self.0).remove(id);
    }

    /// Whether another stage or project writes what `claim` would.
    pub(crate) fn elsewhere(&self, claim: &Claim) -> Result<(), Report> {
        let claims = lock(&self.0);
        meeting(claim, claims.values().filter(|theirs| theirs.stage != claim.stage))
    }

    /// Somebody who writes `data`, whoever it is.
    pub(crate) fn writer(&self, data: &Data) -> Option<Claim> {
        let claims = lock(&self.0);
        claims.values().find(|theirs| data.overlap(&theirs.data).is_some()).cloned()
    }
}

fn meeting<'a>(claim: &Claim, others: impl Iterator<Item = &'a Claim>) -> Result<(), Report> {
    for theirs in others {
        let Some((mine, held)) = claim.data.overlap(&theirs.data) else { continue };
        if (&theirs.stage, &theirs.service) == (&claim.stage, &claim.service) {
            return Err(Report::refused(format!(
                "`{}` of {} runs already and writes {}: a second instance would write it too, and \
                 data is never written by two",
                claim.service, claim.stage, held.name
            ))
            .hint(format!("a command in the one that runs: kiln exec {} COMMAND", claim.service)));
        }
        let down = format!("kiln down -p {} {}", theirs.stage.project, theirs.stage.stage);
        return Err(Report::refused(format!(
            "`{}` of {} would write {}, and `{}` of {} writes {}: they are the same data, or one \
             lies in the other, and data is never written by two",
            claim.service, claim.stage, mine.name, theirs.service, theirs.stage, held.name
        ))
        .hint(format!(
            "give each its own data, mount it read-only (`:ro`) where it is only read, or stop the \
             other one first: {down}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::data::{Held, Node, Spot};

    fn claim(project: &str, service: &str, born: &str, ino: u64) -> Claim {
        let spot = Spot { node: Node::new(1, ino), above: BTreeSet::new() };
        let name = format!("`/data/{ino}`");
        Claim {
            stage: StageId { project: project.into(), stage: "dev".into() },
            service: service.into(),
            born: Digest::of(born),
            data: Data(vec![Held { name, spots: vec![spot] }]),
        }
    }

    #[test]
    fn nobody_writes_what_somebody_else_does() {
        let nobody = BTreeSet::new();
        for (second, allowed) in [
            (claim("other", "db", "r", 5), false),
            (claim("other", "db", "r", 6), true),
            // The slot after it, and the same service once more.
            (claim("shop", "db", "r2", 5), false),
            (claim("shop", "db", "r", 5), false),
            (claim("shop", "backup", "r2", 5), false),
            // Services of one release share.
            (claim("shop", "backup", "r", 5), true),
        ] {
            let claims = Claims::default();
            claims.take("one", claim("shop", "db", "r", 5), &nobody).unwrap();
            let taken = claims.take("two", second.clone(), &nobody);
            assert_eq!(taken.is_ok(), allowed, "{second:?}");
            claims.give_back("one");
            claims.take("three", claim("third", "x", "r", 7), &nobody).unwrap();
            assert!(claims.take("two", second, &nobody).is_ok(), "it has ended");
        }
    }

    #[test]
    fn a_fresh_one_takes_over_from_the_one_in_its_place() {
        let claims = Claims::default();
        claims.take("old", claim("shop", "db", "r", 5), &BTreeSet::new()).unwrap();
        let beside = BTreeSet::from(["old".to_owned()]);
        claims.take("new", claim("shop", "db", "r", 5), &beside).unwrap();
        claims.give_back("old");
        let refused = claims.elsewhere(&claim("other", "web", "x", 5)).unwrap_err();
        for part in ["`web` of other/dev", "`db` of shop/dev", "`/data/5`"] {
            assert!(refused.message.contains(part), "{part} in {}", refused.message);
        }
        assert!(claims.elsewhere(&claim("shop", "web", "x", 5)).is_ok());
    }
}
