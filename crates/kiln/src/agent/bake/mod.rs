//! Source → images → settings: what comes before a release.

mod bases;
mod content;
mod layout;
mod options;
mod outside;
mod oven;
mod permits;
mod settings;
mod source;
mod steps;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_bake::base::Lock;
use kiln_bake::plan::familiar;
use kiln_bake::remote::{Mode, Pins, Remotes};
use kiln_bake::{BakeError, Baked, Baker, BuildRequest};
use kiln_core::ImageId;
use kiln_core::compose::{Build, Project, Service};
use kiln_core::exit::Exit;

pub(crate) use self::bases::{LOCK_FILE, Locking, fetch_pinned, lock, lock_file, save_lock};
pub(crate) use self::oven::{Oven, VariedSteps};
pub(crate) use self::permits::Permits;
pub(crate) use self::settings::release;
pub(crate) use self::source::{Checkout, cage, contexts, head, seen_by_git, source};

use self::bases::Bases;
use self::options::options;
use self::steps::Steps;
use self::words::Words;
use super::images::Images;
use super::session::Session;
use super::{Agent, lock as locked, needs};
use crate::answers::Bake;
use crate::report::Report;
use crate::words::count;

pub(crate) fn bake_report(error: &BakeError) -> Report {
    let exit = if error.is_usage() { Exit::Usage } else { Exit::Failed };
    Report::from_error(exit, error)
}

/// [`bakes`], for those who want the images alone.
pub(crate) fn images(
    agent: &Agent,
    session: &Session,
    project: &Project,
    lock: &Lock,
    only: &[String],
) -> Result<BTreeMap<String, ImageId>, Report> {
    let bakes = bakes(agent, session, project, lock, only)?;
    Ok(bakes.into_iter().map(|(name, bake)| (name, bake.image)).collect())
}

/// [`images`] of a commit, whose lock is part of it: what it does not pin is refused.
pub(crate) fn images_of_commit(
    agent: &Agent,
    session: &Session,
    project: &Project,
    lock: &Lock,
) -> Result<BTreeMap<String, ImageId>, Report> {
    let runner = Steps(agent, session.cancelled());
    let oven = Oven { frozen: true, ..Oven::new(&agent.store, &runner) };
    let bakes = bakes_in(oven, agent, session, project, lock, &[])?;
    Ok(bakes.into_iter().map(|(name, bake)| (name, bake.image)).collect())
}

/// Bakes every base that a lock pins, one after the other.
pub(crate) fn bake_bases(
    agent: &Agent,
    session: &Session,
    project: &Project,
    lock: &Lock,
    remotes: &Remotes<'_>,
    outside: &Images<'_>,
) -> Result<(), Report> {
    let runner = Steps(agent, session.cancelled());
    let oven = Oven::new(&agent.store, &runner);
    let bases = Bases::new(oven, agent, session, project, lock, remotes, outside);
    for name in project.kiln.bases.keys() {
        session.check()?;
        bases.get(name).transpose()?;
    }
    Ok(())
}

/// Bakes `only` these services (all, if it is empty) side by side and gives the image of each.
pub(crate) fn bakes(
    agent: &Agent,
    session: &Session,
    project: &Project,
    lock: &Lock,
    only: &[String],
) -> Result<BTreeMap<String, Bake>, Report> {
    let runner = Steps(agent, session.cancelled());
    bakes_in(Oven::new(&agent.store, &runner), agent, session, project, lock, only)
}

/// [`bakes`] in an oven of the caller's.
pub(crate) fn bakes_in(
    oven: Oven<'_>,
    agent: &Agent,
    session: &Session,
    project: &Project,
    lock: &Lock,
    only: &[String],
) -> Result<BTreeMap<String, Bake>, Report> {
    let mode = if oven.frozen { Mode::Frozen } else { Mode::Pin };
    let pins = Pins::new(&lock.urls, &lock.git);
    let remotes = Remotes::new(oven.store, pins, mode, session.cancelled());
    let outside = Images::new(agent, session, project, lock, oven.frozen);
    let bases = Bases::new(oven, agent, session, project, lock, &remotes, &outside);
    let wanted: Vec<(&String, &Service)> = project
        .services
        .iter()
        .filter(|(name, _)| only.is_empty() || only.contains(name))
        .collect();
    let bake = |name: &String, service: &Service| -> Result<Bake, Report> {
        session.check()?;
        match (&service.build, &service.image) {
            (Some(_), _) => build(agent, session, project, name, service, &bases),
            (None, Some(image)) => bases.image(image).map(Bake::from),
            (None, None) => Err(Report::usage(format!(
                "{}: service `{name}` has neither `build` nor `image`",
                service.place
            ))),
        }
    };
    let results: Vec<(String, Result<Bake, Report>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = wanted
            .iter()
            .map(|(name, service)| ((*name).clone(), scope.spawn(|| bake(name, service))))
            .collect();
        let bug = || Report::new(Exit::Bug, "a baking thread panicked");
        threads
            .into_iter()
            .map(|(name, thread)| (name, thread.join().unwrap_or_else(|_| Err(bug()))))
            .collect()
    });
    // Also when another service failed: what came is pinned.
    let mut pinned = lock.clone();
    let mut moved = pinned.pin(&remotes.pins());
    moved |= pinned.pin_images(outside.pins());
    if !bases.oven.frozen && moved {
        agent.flush_objects()?;
        save_lock(project, &pinned)?;
    }
    if bases.oven.keeps && !bases.oven.frozen {
        let all = only.is_empty() && results.iter().all(|(_, result)| result.is_ok());
        needs::note(agent, project, &pinned, remotes.taken(), all)?;
    }
    results.into_iter().map(|(name, result)| Ok((name, result?))).collect()
}

fn build(
    agent: &Agent,
    session: &Session,
    project: &Project,
    name: &str,
    service: &Service,
    bases: &Bases<'_, '_>,
) -> Result<Bake, Report> {
    let Some(build) = &service.build else {
        return Err(Report::new(Exit::Bug, format!("`{name}` is built without `build`")));
    };
    let Named { contexts, images } =
        named_contexts(agent, session, project, service, build, bases)?;
    let base = |wanted: &str| -> Option<Result<ImageId, BakeError>> {
        if let Some(image) = images.get(wanted) {
            return Some(Ok(*image));
        }
        let known = bases.get(wanted).or_else(|| bases.get(familiar(wanted)));
        Some(match known {
            Some(image) => image.map_err(|report| {
                BakeError::Failed(format!("base `{wanted}`: {}", report.message))
            }),
            None => bases.image(wanted).map_err(|report| of_image(&report)),
        })
    };
    let (context, dockerfile) = outside::context(session, bases, build)?;
    let request = BuildRequest {
        name: name.to_owned(),
        context,
        dockerfile,
        inline: build.inline.clone(),
        args: build.args.clone(),
        target: build.target.clone(),
        contexts,
        images: images.keys().cloned().collect(),
        bases: &base,
        options: options(project, build),
    };
    let node = session.begin("bake", name, "");
    let words = Words::new(&node);
    let oven = &bases.oven;
    let progress = |progress: kiln_bake::Progress| {
        if let kiln_bake::Progress::Notice { text, .. } = &progress {
            session.notice(text.clone());
        }
        if let Some(told) = oven.told {
            told(&progress);
        }
        words.tell(progress);
    };
    let baker = Baker {
        store: oven.store,
        runner: oven.runner,
        progress: &progress,
        cancel: session.cancelled(),
        record: oven.record,
        remotes: Some(bases.remotes),
    };
    let result = baker.bake(&request).map_err(|error| {
        // A base that failed has the better words.
        locked(&bases.failure).clone().unwrap_or_else(|| bake_report(&error))
    });
    let words = result.as_ref().map(baked_words).unwrap_or_default();
    node.end(&result, &words);
    let Baked { image, steps, cached, .. } = result?;
    Ok(Bake { image, steps, cached })
}

/// What `additional_contexts` names.
#[derive(Default)]
struct Named {
    contexts: BTreeMap<String, PathBuf>,
    images: BTreeMap<String, ImageId>,
}

fn named_contexts(
    agent: &Agent,
    session: &Session,
    project: &Project,
    service: &Service,
    build: &Build,
    bases: &Bases<'_, '_>,
) -> Result<Named, Report> {
    let mut named = Named::default();
    for (alias, source) in &build.additional_contexts {
        let image = if let Some(layout) = source.strip_prefix("oci-layout://") {
            let limits = super::verbs::carrier::limits(agent, session);
            layout::image(bases.oven.store, layout, &limits)?
        } else if let Some(name) = source.strip_prefix("docker-image://") {
            bases.image(name)?
        } else if let Some(other) = source.strip_prefix("service:") {
            let service = project
                .services
                .get(other)
                .ok_or_else(|| Report::usage(format!("{}: no service `{other}`", service.place)))?;
            build_of(agent, session, project, other, service, bases)?.image
        } else {
            let folder = outside::named(session, bases, build, source)?;
            named.contexts.insert(alias.clone(), folder);
            continue;
        };
        named.images.insert(alias.clone(), image);
    }
    Ok(named)
}

fn build_of(
    agent: &Agent,
    session: &Session,
    project: &Project,
    name: &str,
    service: &Service,
    bases: &Bases<'_, '_>,
) -> Result<Bake, Report> {
    match &service.image {
        Some(image) if service.build.is_none() => bases.image(image).map(Bake::from),
        _ => build(agent, session, project, name, service, bases),
    }
}

/// Why a FROM's image could not be had, for the baker, who knows where it stands.
fn of_image(report: &Report) -> BakeError {
    let mut what = report.message.clone();
    for cause in &report.causes {
        what.push_str(&format!("\n  cause: {cause}"));
    }
    match report.exit {
        Exit::Usage => BakeError::Usage { what, hint: report.hint.clone() },
        _ => {
            let hint = report.hint.iter().map(|hint| format!("\n  hint: {hint}"));
            BakeError::Failed(what + &hint.collect::<String>())
        }
    }
}

fn baked_words(baked: &Baked) -> String {
    let digest = baked.image.tree.short();
    match baked.steps - baked.cached {
        0 => format!("{digest} unchanged"),
        fresh => format!("{digest} {fresh} of {}", count(baked.steps, "step")),
    }
}
