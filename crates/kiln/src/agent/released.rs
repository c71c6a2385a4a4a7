//! Releases that were cut from commits, and how they stay.
//!
//! Each is held by a reference of its own, `refs/releases/<project>.<ms>.<16 hex>`: collection
//! leaves alone what references name, and the name alone says whose it is and when it was cut. The
//! newest of a project stay; those that a stage names stay by that.

use std::collections::BTreeSet;

use kiln_core::Digest;
use kiln_store::ledger::{Durability, Record};
use kiln_store::{RefName, Reference};

use super::{Agent, now_ms, record};
use crate::deliver::Published;
use crate::report::{Because, Report};

const KIND: &str = "releases";

/// Releases of a project that stay, whatever stages name.
const KEPT: usize = 10;

/// A release that was cut from a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Name of the project.
    pub project: String,
    /// When, in Unix milliseconds.
    pub time: u64,
    /// The release.
    pub release: Digest,
    /// Name of its reference.
    name: String,
}

/// All that are kept, the newest first. A reference that cannot be believed is made again from its
/// name and the release; one that cannot be is left out, and `fsck` names it.
pub(crate) fn all(agent: &Agent) -> Result<Vec<Cut>, Report> {
    let doing = || "listing releases".to_owned();
    let mut cuts = Vec::new();
    for ((kind, name), reference) in agent.store.look_at_references().because(doing)? {
        let mut parts = name.split('.');
        let (Some(project), Some(time)) = (parts.next(), parts.next()) else { continue };
        let (project, Ok(time)) = (project.to_owned(), time.parse()) else { continue };
        if kind != KIND {
            continue;
        }
        let release = match reference {
            Ok(reference) => reference.digests.first().copied(),
            Err(_) => agent.store.heal_release_ref(&name).because(doing)?,
        };
        cuts.extend(release.map(|release| Cut { project, time, release, name }));
    }
    cuts.sort_by_key(|cut| std::cmp::Reverse(cut.time));
    Ok(cuts)
}

/// Those of one project, the newest first.
pub(crate) fn of(agent: &Agent, project: &str) -> Result<Vec<Cut>, Report> {
    let mut cuts = all(agent)?;
    cuts.retain(|cut| cut.project == project);
    Ok(cuts)
}

/// Records a release: contents, then its reference, then the ledger's line, each durable before
/// the next. One that is kept already stays as it is. Says whether it is a new one.
///
/// `needs` is what it was baked from: it stays as long as the release does.
pub(crate) fn keep(
    agent: &Agent,
    published: &Published,
    needs: BTreeSet<RefName>,
) -> Result<bool, Report> {
    let Published { digest, release, .. } = published;
    let project = &release.project;
    let cuts = of(agent, project)?;
    if cuts.iter().any(|cut| cut.release == *digest) {
        return Ok(false);
    }
    let doing = || format!("keeping release {}", digest.short());
    agent.put_release(release)?;
    agent.flush_objects()?;
    let name = format!("{project}.{:013}.{}", now_ms(), &digest.hex()[..16]);
    let reference = Reference { needs, ..Reference::to([*digest].into()) };
    agent.store.set_reference(KIND, &name, reference).because(doing)?;
    let data = record::cut_data(digest, release);
    let (time, kind) = (now_ms(), "release.cut".to_owned());
    let record = Record { time, kind, project: Some(project.clone()), stage: None, data };
    agent.store.ledger().append(&[record], Durability::Now).because(doing)?;
    for old in cuts.iter().skip(KEPT - 1) {
        agent.store.remove_ref(KIND, &old.name).because(doing)?;
    }
    Ok(true)
}

/// Gives up releases that cannot be restored; says which.
pub(crate) fn forget_lost(
    agent: &Agent,
    restorable: &dyn Fn(&Digest) -> bool,
) -> Result<Vec<Digest>, Report> {
    let mut lost = Vec::new();
    for cut in all(agent)?.into_iter().filter(|cut| !restorable(&cut.release)) {
        agent.store.remove_ref(KIND, &cut.name).because(|| "forgetting a release".into())?;
        lost.push(cut.release);
    }
    Ok(lost)
}
