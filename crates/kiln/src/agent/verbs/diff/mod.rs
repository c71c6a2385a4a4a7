//! `kiln diff`: two images or two releases side by side. The document is in `docs/diff.md`.
//!
//! | module | what |
//! |---|---|
//! | [`name`] | what a word on the command line means |
//! | [`image`] | two images: packages, files, configuration |
//! | [`packages`] | what dpkg knows in each of two trees |
//! | [`values`] | two JSON values, key by key |

mod image;
mod name;
mod packages;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_core::exit::Exit;
use kiln_core::release::{ReleasedService, Settings};
use kiln_core::{Digest, ImageId, Release};
use serde_json::{Map, Value, json};

use self::image::{Image, Options};
use self::name::{Names, Side, What};
use super::Answer;
use crate::agent::Agent;
use crate::agent::session::Session;
use crate::answers::differing::{
    Diff, FileChange, Found, ImageDiff, KeyChange, Service, ServiceChange,
};
use crate::protocol::ProjectArgs;
use crate::report::{Because, Report};

/// Version of the document.
const FORMAT: u32 = 1;

/// `kiln diff`.
pub(super) fn diff(
    agent: &Arc<Agent>,
    session: &Session,
    project: &ProjectArgs,
    words: &[String],
    text: bool,
) -> Result<Answer, Report> {
    let _lease = agent.lease()?;
    let mut names = Names::new(agent, session, project);
    let (old, new) = match words {
        [] => (names.side("dev")?, names.side(".")?),
        [old] => names.with_working(old)?,
        [old, new, ..] => (names.side(old)?, names.side(new)?),
    };
    let options = Options { agent, text };
    let (found, same) = match (&old.what, &new.what) {
        (What::Release { release: old, .. }, What::Release { release: new, .. }) => {
            let services = services(&options, old, new)?;
            let same = services.is_empty() && old.project == new.project;
            (Found::Release { services }, same)
        }
        (What::Image(old), What::Image(new)) => {
            let image = image::diff(&options, Some(old), Some(new))?;
            let same = old == new || image.is_empty();
            (Found::Image(image), same)
        }
        _ => return Err(apples_and_pears(&old, &new)),
    };
    let exit = if same { Exit::Done } else { Exit::Difference };
    let diff = Diff { format: FORMAT, old: old.told(), new: new.told(), same, found };
    Ok(Answer { exit, ..Answer::of(&diff) })
}

/// Two images side by side, for who wants to know what an update brings: `packages`, `files` and
/// `config` as in the document of `kiln diff`, but for files of which only the time differs, which
/// is each one in an image that was built anew: `times` counts them.
pub(crate) fn images(agent: &Agent, old: ImageId, new: ImageId) -> Result<ImageDiff, Report> {
    let options = Options { agent, text: false };
    let mut found = image::diff(&options, Some(&old.into()), Some(&new.into()))?;
    let all = found.files.len();
    found.files.retain(|file| match &file.change {
        FileChange::Changed { aspects, .. } => aspects.len() != 1 || !aspects.contains_key("time"),
        _ => true,
    });
    found.times = Some(all - found.files.len());
    Ok(found)
}

fn apples_and_pears(old: &Side, new: &Side) -> Report {
    let word = |side: &Side| match side.what {
        What::Release { .. } => format!("`{}` is a release", side.name),
        What::Image(_) => format!("`{}` is an image", side.name),
    };
    let release = if matches!(old.what, What::Release { .. }) { old } else { new };
    Report::usage(format!("{}, {}", word(old), word(new)))
        .hint(format!("name an image of the release: {}:SERVICE", release.name))
}

/// All services of which something differs.
fn services(options: &Options<'_>, old: &Release, new: &Release) -> Result<Vec<Service>, Report> {
    let names: BTreeSet<&String> = old.services.keys().chain(new.services.keys()).collect();
    let mut all = Vec::new();
    for name in names {
        let (before, after) = (old.services.get(name), new.services.get(name));
        let stages = of_stages(options, name, old, new)?;
        if before == after && stages.is_empty() {
            continue;
        }
        let change = match (before, after) {
            (Some(before), Some(after)) => changed(options, before, after, stages)?,
            (None, Some(after)) => ServiceChange::Added(after.image),
            (Some(before), None) => ServiceChange::Removed(before.image),
            (None, None) => continue,
        };
        all.push(Service { name: name.clone(), change });
    }
    Ok(all)
}

fn changed(
    options: &Options<'_>,
    before: &ReleasedService,
    after: &ReleasedService,
    stages: BTreeMap<String, Vec<KeyChange>>,
) -> Result<ServiceChange, Report> {
    let (old, new) = (Image::from(before.image), Image::from(after.image));
    let image = match old == new {
        true => None,
        false => Some(image::diff(options, Some(&old), Some(&new))?),
    };
    let settings = settings(options, &before.settings, &after.settings)?;
    Ok(ServiceChange::Changed { image, settings, stages })
}

/// By stage what differs of the settings of `name` there, for the stages that have their own.
fn of_stages(
    options: &Options<'_>,
    name: &str,
    old: &Release,
    new: &Release,
) -> Result<BTreeMap<String, Vec<KeyChange>>, Report> {
    let there = |release: &Release, stage: &str| -> Option<Settings> {
        let own = release.stages.get(stage).and_then(|own| own.get(name)).cloned();
        own.or_else(|| {
            let mut all = release.services.get(name)?.settings.clone();
            all.ports.retain(|name, _| name == stage);
            Some(all)
        })
    };
    let mut stages = BTreeMap::new();
    for stage in old.stages.keys().chain(new.stages.keys()) {
        if let (Some(old), Some(new)) = (there(old, stage), there(new, stage)) {
            let changes = settings(options, &old, &new)?;
            if !changes.is_empty() {
                stages.insert(stage.clone(), changes);
            }
        }
    }
    Ok(stages)
}

/// Settings, key by key. Of secrets nothing is told but that they differ: a digest of something
/// short can be guessed back.
fn settings(
    options: &Options<'_>,
    old: &Settings,
    new: &Settings,
) -> Result<Vec<KeyChange>, Report> {
    let mut changes = values::diff(&plain(old)?, &plain(new)?);
    let targets = |settings: &Settings| -> Vec<(String, Digest, bool)> {
        let files = settings.files.iter();
        files.map(|file| (file.target.clone(), file.digest, file.secret)).collect()
    };
    for (target, before, was_secret) in targets(old) {
        let Some((_, after, secret)) = targets(new).into_iter().find(|file| file.0 == target)
        else {
            continue;
        };
        if before == after {
            continue;
        }
        let key = format!("files.{target}.content");
        changes.push(match was_secret || secret {
            true => KeyChange { key, secret: true, ..KeyChange::default() },
            false => KeyChange {
                key,
                old: Some(json!(before)),
                new: Some(json!(after)),
                text: options.text_diff(&before, &after),
                secret: false,
            },
        });
    }
    Ok(changes)
}

/// Settings as JSON in which lists of named things are maps, and no content of a file shows.
fn plain(settings: &Settings) -> Result<Value, Report> {
    let mut value = serde_json::to_value(settings).because(|| "comparing settings".into())?;
    values::name_pairs(&mut value["env"]);
    for key in ["mounts", "tmpfs", "files"] {
        values::name_by(&mut value[key], "target");
    }
    for file in value["files"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        if let Some(file) = file.as_object_mut() {
            file.remove("digest");
        }
    }
    for key in ["aliases", "capabilities"] {
        values::name_items(&mut value[key]);
    }
    Ok(value)
}
