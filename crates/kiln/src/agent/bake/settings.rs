//! Images and Compose file → the settings that a release pins.

use std::collections::BTreeMap;

use kiln_core::compose::{FileMount, FileSource, Project};
use kiln_core::release::{PinnedFile, ReleasedService, Settings, Source};
use kiln_core::settings;
use kiln_core::stage::Policy;
use kiln_core::{ImageId, Release};

use super::content;
use crate::agent::Agent;
use crate::report::{Because, Report};

/// A release of `project` as its files and `images` say, without where the source was. A deploy
/// needs nothing beside it: what the project proposes to each stage is in it.
pub(crate) fn release(
    agent: &Agent,
    project: &Project,
    images: &BTreeMap<String, ImageId>,
) -> Result<Release, Report> {
    let services = settings(agent, project, images)?;
    let proposes = project
        .kiln
        .stages
        .iter()
        .map(|(name, stage)| (name.clone(), Policy { keep: stage.keep, drain: stage.drain }))
        .filter(|(_, policy)| !policy.is_empty())
        .collect();
    let mut stages = BTreeMap::new();
    for (stage, there) in &project.in_stages {
        let own = own_settings(stage, &services, settings(agent, there, images)?);
        if !own.is_empty() {
            stages.insert(stage.clone(), own);
        }
    }
    let source = Source::default();
    Ok(Release { project: project.name.clone(), source, services, proposes, stages })
}

/// Of `there`, the services as `stage` has them, the settings that differ from those of all stages.
fn own_settings(
    stage: &str,
    services: &BTreeMap<String, ReleasedService>,
    there: BTreeMap<String, ReleasedService>,
) -> BTreeMap<String, Settings> {
    let reached = |settings: &Settings| {
        let mut settings = settings.clone();
        settings.ports.retain(|name, _| name == stage);
        settings
    };
    let own = there.into_iter().map(|(name, there)| (name, reached(&there.settings)));
    let differs = |name: &String, own: &Settings| {
        services.get(name).is_none_or(|all| reached(&all.settings) != *own)
    };
    own.filter(|(name, own)| differs(name, own)).collect()
}

/// Joins images and Compose file, and pins the content of configs and secrets.
fn settings(
    agent: &Agent,
    project: &Project,
    images: &BTreeMap<String, ImageId>,
) -> Result<BTreeMap<String, ReleasedService>, Report> {
    let mut services = BTreeMap::new();
    for (name, service) in &project.services {
        let Some(image) = images.get(name) else { continue };
        let config = agent
            .store
            .get_config(&image.config)
            .because(|| format!("reading the configuration of `{name}`"))?;
        let files = service
            .files
            .iter()
            .map(|file| pin(agent, name, file))
            .collect::<Result<Vec<_>, Report>>()?;
        let mut settings = settings::settings(project, name, service, &config, files)
            .map_err(|error| Report::usage(error.to_string()).hint(error.hint()))?;
        content::pin(agent, project, &mut settings)?;
        services.insert(name.clone(), ReleasedService { image: *image, settings });
    }
    Ok(services)
}

fn pin(agent: &Agent, service: &str, file: &FileMount) -> Result<PinnedFile, Report> {
    let content = match &file.source {
        FileSource::Content(text) => text.clone().into_bytes(),
        FileSource::File(path) => crate::compose::read(path, None).map_err(|error| {
            let what = if file.secret { "secret" } else { "config" };
            Report::usage(format!(
                "service `{service}`: the {what} for {} cannot be read: {}: {error}",
                file.target,
                path.display()
            ))
        })?,
    };
    let digest = agent.store.put(&content).because(|| format!("keeping {}", file.target))?;
    let FileMount { target, uid, gid, mode, secret, .. } = file.clone();
    Ok(PinnedFile { target, digest, uid, gid, mode, secret })
}
