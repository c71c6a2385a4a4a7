//! Images and Compose file → the settings that a release pins.

use std::collections::BTreeMap;

use kiln_core::compose::{FileMount, FileSource, Project};
use kiln_core::release::{PinnedFile, ReleasedService};
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
    Ok(Release { project: project.name.clone(), services, proposes, ..Release::default() })
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
