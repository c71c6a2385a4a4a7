//! Source → images → settings: what comes before a release.

mod bases;
mod settings;
mod source;
mod steps;

use std::collections::BTreeMap;

use kiln_bake::base::Lock;
use kiln_bake::{BakeError, Baked, Baker, BuildRequest};
use kiln_core::ImageId;
use kiln_core::compose::{Project, Service};
use kiln_core::exit::Exit;

pub(crate) use self::bases::{LOCK_FILE, lock, lock_file};
pub(crate) use self::settings::settings;
pub(crate) use self::source::source;

use self::bases::Bases;
use self::steps::Steps;
use super::session::{Node, Session};
use super::{Agent, lock as locked};
use crate::report::Report;

fn bake_report(error: &BakeError) -> Report {
    let exit = if error.is_usage() { Exit::Usage } else { Exit::Failed };
    Report::from_error(exit, error)
}

/// One moment of a bake, in words.
fn step_words(node: &Node<'_>, progress: &kiln_bake::Progress) {
    use kiln_bake::Progress;
    match progress {
        Progress::Step { number, total, text, .. } => {
            node.update(&format!("{number}/{total} {text}"));
        }
        Progress::Output { bytes, .. } => {
            let text = String::from_utf8_lossy(bytes);
            if let Some(line) = text.lines().rev().find(|line| !line.trim().is_empty()) {
                node.update(line.trim());
            }
        }
        Progress::Cached { .. } | Progress::Done { .. } => {}
    }
}

/// Bakes `only` these services (all, if it is empty) and gives the image of each.
pub(crate) fn images(
    agent: &Agent,
    session: &Session,
    project: &Project,
    lock: &Lock,
    only: &[String],
) -> Result<BTreeMap<String, ImageId>, Report> {
    let bases = Bases::new(agent, session, project, lock);
    let wanted: Vec<(&String, &Service)> = project
        .services
        .iter()
        .filter(|(name, _)| only.is_empty() || only.contains(name))
        .collect();
    let bake = |name: &String, service: &Service| -> Result<ImageId, Report> {
        session.check()?;
        match (&service.build, &service.image) {
            (Some(_), _) => build(agent, session, project, name, service, &bases),
            (None, Some(image)) => bases.get(image).unwrap_or_else(|| {
                Err(Report::usage(format!("{}: no base is called `{image}`", service.place)))
            }),
            (None, None) => Err(Report::usage(format!(
                "{}: service `{name}` has neither `build` nor `image`",
                service.place
            ))),
        }
    };
    let results: Vec<(String, Result<ImageId, Report>)> = std::thread::scope(|scope| {
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
    results.into_iter().map(|(name, result)| Ok((name, result?))).collect()
}

fn build(
    agent: &Agent,
    session: &Session,
    project: &Project,
    name: &str,
    service: &Service,
    bases: &Bases<'_>,
) -> Result<ImageId, Report> {
    let Some(build) = &service.build else {
        return Err(Report::new(Exit::Bug, format!("`{name}` is built without `build`")));
    };
    let mut contexts = BTreeMap::new();
    let mut images = BTreeMap::new();
    for (alias, source) in &build.additional_contexts {
        match source.strip_prefix("service:") {
            None => {
                contexts.insert(alias.clone(), source.into());
            }
            Some(other) => {
                let service = project.services.get(other).ok_or_else(|| {
                    Report::usage(format!("{}: no service `{other}`", service.place))
                })?;
                let image = build_of(agent, session, project, other, service, bases)?;
                images.insert(alias.clone(), image);
            }
        }
    }
    let base =
        |wanted: &str| -> Option<Result<ImageId, BakeError>> {
            if let Some(image) = images.get(wanted) {
                return Some(Ok(*image));
            }
            let image = bases.get(wanted)?;
            Some(image.map_err(|report| {
                BakeError::Failed(format!("base `{wanted}`: {}", report.message))
            }))
        };
    let request = BuildRequest {
        name: name.to_owned(),
        context: build.context.clone(),
        dockerfile: build.dockerfile.clone(),
        inline: build.inline.clone(),
        args: build.args.clone(),
        target: build.target.clone(),
        contexts,
        bases: &base,
    };
    let node = session.begin("bake", name, "");
    let progress = |progress: kiln_bake::Progress| step_words(&node, &progress);
    let baker = Baker {
        store: &agent.store,
        runner: &Steps(agent, session.cancelled()),
        progress: &progress,
        cancel: session.cancelled(),
    };
    let result = baker.bake(&request).map_err(|error| {
        // A base that failed has the better words.
        locked(&bases.failure).clone().unwrap_or_else(|| bake_report(&error))
    });
    let words = result.as_ref().map(baked_words).unwrap_or_default();
    node.end(&result, &words);
    Ok(result?.image)
}

fn build_of(
    agent: &Agent,
    session: &Session,
    project: &Project,
    name: &str,
    service: &Service,
    bases: &Bases<'_>,
) -> Result<ImageId, Report> {
    match &service.image {
        Some(image) if service.build.is_none() => bases
            .get(image)
            .unwrap_or_else(|| Err(Report::usage(format!("no base is called `{image}`")))),
        _ => build(agent, session, project, name, service, bases),
    }
}

fn baked_words(baked: &Baked) -> String {
    let digest = baked.image.tree.short();
    match baked.steps - baked.cached {
        0 => format!("{digest} unchanged"),
        fresh => format!("{digest} {fresh} of {} steps", baked.steps),
    }
}
