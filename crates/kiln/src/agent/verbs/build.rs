//! `lock` and `bake`.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_core::compose::Project;

use super::{Answer, load_and_tell, no_service, pull};
use crate::agent::Agent;
use crate::agent::bake;
use crate::agent::session::Session;
use crate::answers::Baked;
use crate::answers::stored::{Locked, LockedBase};
use crate::protocol::ProjectArgs;
use crate::report::Report;

/// How.
#[derive(Debug)]
pub(super) struct Asked {
    pub update: bool,
    pub names: Vec<String>,
    pub fetch: bool,
}

/// `kiln lock`.
pub(super) fn lock(
    agent: &Arc<Agent>,
    session: &Session,
    args: &ProjectArgs,
    asked: &Asked,
) -> Result<Answer, Report> {
    let project = load_and_tell(session, args)?;
    let _lease = agent.lease()?;
    let locking = bake::Locking { update: asked.update, names: &asked.names };
    let (lock, moved, changed) = bake::lock_file(agent, session, &project, &locking)?;
    agent.flush_objects()?;
    let fetched = match asked.fetch {
        true => pull::fetch_all(agent, session, &project, &lock)?,
        false => BTreeMap::new(),
    };
    let bases = lock
        .bases
        .iter()
        .map(|(name, base)| (name.clone(), LockedBase { packages: base.unpack.len() }));
    Ok(Answer::of(&Locked {
        lock: project.dir.join(bake::LOCK_FILE),
        changed,
        bases: bases.collect(),
        images: lock.images,
        moved,
        fetched,
    }))
}

/// `kiln bake`.
pub(super) fn bake(
    agent: &Arc<Agent>,
    session: &Session,
    args: &ProjectArgs,
    services: &[String],
) -> Result<Answer, Report> {
    let project = load_and_tell(session, args)?;
    known_services(&project, services)?;
    let _lease = agent.lease()?;
    let lock = bake::lock(agent, session, &project)?;
    let images = bake::bakes(agent, session, &project, &lock, services)?;
    agent.flush_objects()?;
    Ok(Answer::of(&Baked { images }))
}

/// Refuses services that the project does not have.
pub(super) fn known_services(project: &Project, services: &[String]) -> Result<(), Report> {
    match services.iter().find(|service| !project.services.contains_key(*service)) {
        Some(service) => Err(no_service(&project.name, service, project.services.keys())),
        None => Ok(()),
    }
}
