//! `pull`: what the lock names, into the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_bake::base::Lock;
use kiln_bake::remote::{Mode, Pins, Remotes};
use kiln_core::compose::Project;

use super::build::known_services;
use super::{Answer, load_and_tell};
use crate::agent::images::named::named;
use crate::agent::images::{Images, Pulled};
use crate::agent::session::Session;
use crate::agent::{Agent, bake, needs};
use crate::answers::stored::Pull;
use crate::protocol::ProjectArgs;
use crate::report::{Because, Report};

/// Images that are fetched at once: the layers of each come side by side as well.
const AT_ONCE: usize = 2;

/// `kiln pull`: the images of registries that the services need. What is not pinned yet is now.
pub(super) fn pull(
    agent: &Arc<Agent>,
    session: &Session,
    args: &ProjectArgs,
    services: &[String],
) -> Result<Answer, Report> {
    let project = load_and_tell(session, args)?;
    known_services(&project, services)?;
    let _lease = agent.lease()?;
    let lock = Lock::load(&project.dir.join(bake::LOCK_FILE))
        .because(|| format!("reading {}", bake::LOCK_FILE))?
        .unwrap_or_else(|| Lock::new(""));
    let names = named(&project, services)?;
    let images = Images::new(agent, session, &project, &lock, false);
    let pulled = each(&images, &names.keys().cloned().collect());
    // Also when another one failed: what is pinned is pinned, and what came is needed.
    let mut pinned = lock.clone();
    if pinned.pin_images(images.pins()) {
        bake::save_lock(&project, &pinned)?;
    }
    needs::note(agent, &project, &pinned, BTreeSet::new(), false)?;
    Ok(Answer::of(&Pull { images: pulled?, services: names }))
}

/// All that a lock names: images, and bases with their packages.
pub(super) fn fetch_all(
    agent: &Arc<Agent>,
    session: &Session,
    project: &Project,
    lock: &Lock,
) -> Result<BTreeMap<String, Pulled>, Report> {
    let images = Images::new(agent, session, project, lock, true);
    let pulled = each(&images, &lock.images.keys().cloned().collect())?;
    let pins = Pins::new(&lock.urls, &lock.git);
    let remotes = Remotes::new(&agent.store, pins, Mode::Frozen, session.cancelled());
    bake::fetch_pinned(session, &remotes)?;
    bake::bake_bases(agent, session, project, lock, &remotes, &images)?;
    agent.flush_objects()?;
    needs::note(agent, project, lock, BTreeSet::new(), false)?;
    Ok(pulled)
}

fn each(images: &Images<'_>, names: &BTreeSet<String>) -> Result<BTreeMap<String, Pulled>, Report> {
    let names: Vec<&String> = names.iter().collect();
    let mut all = BTreeMap::new();
    for some in names.chunks(AT_ONCE) {
        let results: Vec<Result<Pulled, Report>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                some.iter().map(|name| scope.spawn(|| images.get(name))).collect();
            let bug = || Err(Report::new(kiln_core::exit::Exit::Bug, "a pull panicked"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bug())).collect()
        });
        for (name, result) in some.iter().zip(results) {
            all.insert((*name).clone(), result?);
        }
    }
    Ok(all)
}
