//! The whole project: its name, its top-level sections, and the services that are switched on.

use std::collections::{BTreeMap, BTreeSet};

use super::check;
use super::error::ComposeError;
use super::files::{self, Shared};
use super::interpolate::Variables;
use super::keys;
use super::kiln;
use super::load::LoadRequest;
use super::model::{KilnSection, Network, Project};
use super::network;
use super::reader::{At, Context};
use super::service;
use super::volumes::{self, TopVolume};
use super::yaml::{Node, Value};

/// What services refer to.
pub(super) struct Sections {
    pub(super) volumes: BTreeMap<String, TopVolume>,
    pub(super) networks: BTreeMap<String, Network>,
    pub(super) configs: Shared,
    pub(super) secrets: Shared,
    pub(super) kiln: KilnSection,
    /// Services by the `container_name` that they state.
    pub(super) containers: BTreeMap<String, String>,
}

/// The project's name: asked for, `COMPOSE_PROJECT_NAME`, the last file's `name`, the directory's.
pub(super) fn name<'n>(
    cx: &Context<'_>,
    request: &LoadRequest<'_>,
    nodes: impl DoubleEndedIterator<Item = &'n Node>,
) -> Result<String, ComposeError> {
    let hint = "use lower-case letters, digits, `-` and `_`, and begin with a letter or digit";
    let asked = request.project_name.as_ref().or_else(|| cx.env.get("COMPOSE_PROJECT_NAME"));
    if let Some(name) = asked.filter(|name| !name.is_empty()) {
        if normalised(name) != *name {
            let what = format!("`{name}` is no valid project name");
            return Err(ComposeError::of_file("", what).with_hint(hint));
        }
        return Ok(name.clone());
    }
    for node in nodes.rev() {
        let root = At::root(cx, node);
        let Some(at) = root.get("name").filter(|at| !at.is_unset()) else { continue };
        let lookup = |name: &str| cx.env.get(name).cloned();
        let text = at.text()?;
        let name = Variables::new(&lookup)
            .interpolate(&text)
            .map_err(|refusal| at.error(refusal.what).with_hint(refusal.hint))?
            .unwrap_or(text);
        match normalised(&name) {
            valid if !valid.is_empty() => return Ok(valid),
            // A variable left it empty.
            _ if name.is_empty() => {}
            _ => {
                let what = format!("`{name}` is no valid project name");
                return Err(at.error(what).with_hint(hint));
            }
        }
    }
    let base = cx.dir.file_name().map(|name| name.to_string_lossy().into_owned());
    match normalised(&base.unwrap_or_default()) {
        name if name.is_empty() => {
            let what = format!("the directory {} gives no project name", cx.dir.display());
            Err(ComposeError::of_file("", what).with_hint("write `name:` at the top of the file"))
        }
        name => Ok(name),
    }
}

fn normalised(name: &str) -> String {
    let lower = name.to_lowercase();
    let kept = |letter: &char| {
        letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, '-' | '_')
    };
    let kept: String = lower.chars().filter(kept).collect();
    kept.trim_start_matches(['-', '_']).to_owned()
}

/// Reads the merged tree. `ignored` and `warnings` are left to the caller.
pub(super) fn read(
    root: &At<'_>,
    name: String,
    mut profiles: Vec<String>,
    named: &[String],
) -> Result<Project, ComposeError> {
    let mut networks = BTreeMap::new();
    for at in root.entries()? {
        if keys::TOP.admit(&at)? && at.key() == "networks" {
            networks = at.cx.keep(network::top(&at, &name)).unwrap_or_default();
        }
    }
    let cx = root.cx;
    let Some(services) = root.get("services") else {
        return Err(root.error("there are no services").with_hint("it begins with `services:`"));
    };
    let places = places(&services)?;
    if places.is_empty() {
        return Err(services.error("there are no services"));
    }
    let on = |wanted: &[String], profiles: &[String]| {
        let all = profiles.iter().any(|profile| profile == "*");
        wanted.is_empty() || all || wanted.iter().any(|name| profiles.contains(name))
    };
    let mut asked = Vec::new();
    for at in named.iter().filter_map(|name| services.get(name)).filter(At::is_map) {
        // What is wrong with them is said below.
        let wanted = service::profiles(&at).unwrap_or_default();
        if !on(&wanted, &profiles) {
            asked.extend(wanted);
        }
    }
    profiles.extend(asked);
    let is_on = |wanted: &[String]| on(wanted, &profiles);
    let mut inactive = BTreeMap::new();
    let mut active = Vec::new();
    for at in services.entries()?.filter(At::is_map) {
        let wanted = cx.keep(service::profiles(&at)).unwrap_or_default();
        if is_on(&wanted) {
            active.push(at);
        } else {
            inactive.insert(at.key().to_owned(), wanted);
        }
    }
    let shared = |key, secret| {
        let all = files::shared(root.get(key).as_ref(), secret, &files::used(&active, key));
        cx.keep(all).unwrap_or_default()
    };
    let mut sections = Sections {
        volumes: BTreeMap::new(),
        networks,
        configs: shared("configs", false),
        secrets: shared("secrets", true),
        kiln: KilnSection::default(),
        containers: BTreeMap::new(),
    };
    for at in &active {
        let name = at.get("container_name").filter(|name| !name.is_unset());
        let name = name.and_then(|name| name.text().ok());
        sections.containers.extend(name.map(|name| (name, at.key().to_owned())));
    }
    if let Some(at) = root.get("volumes") {
        sections.volumes = cx.keep(volumes::read(&at)).unwrap_or_default();
    }
    let kiln = kiln::section(root.get("x-kiln").as_ref(), &places);
    sections.kiln = cx.keep(kiln).unwrap_or_default();
    let mut read = BTreeMap::new();
    for at in &active {
        read.insert(at.key().to_owned(), service::read(at, &sections)?);
    }
    cx.keep(check::services(&services, &mut read, &inactive));
    for clash in check::ports(root, &read, &sections.kiln) {
        cx.refuse_to_run(clash);
    }
    Ok(Project {
        name,
        dir: root.cx.dir.clone(),
        services: read,
        volumes: own(sections.volumes),
        networks: sections.networks,
        kiln: sections.kiln,
        in_stages: BTreeMap::new(),
        ignored: Vec::new(),
        warnings: Vec::new(),
    })
}

/// The names of all services, switched on or not.
fn places(services: &At<'_>) -> Result<BTreeSet<String>, ComposeError> {
    let mut names = BTreeSet::new();
    for at in services.entries()? {
        let name = at.key();
        let valid = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let plain = name.chars().all(valid) && !name.starts_with('.');
        if name.is_empty() || name.len() > 63 || !plain {
            let error = at.refuse(format!("`{name}` is no valid name of a service"));
            at.cx.refuse(error.with_hint(
                "use at most 63 letters, digits, `.`, `_` and `-`, none of them `.` first",
            ));
        }
        if !at.is_map() {
            let error = at.expected("a map of keys");
            at.cx.refuse(error.with_hint("a service needs `image` or `build`"));
        }
        names.insert(name.to_owned());
    }
    Ok(names)
}

/// So that a folder can be called so, and one that stands for it until it is whole.
pub(super) const LONGEST_VOLUME: usize = 200;

/// Whether a volume may be called so. The name is that of a folder: it leads nowhere else, and is
/// none of those that Kiln has beside it, which begin with a dot.
pub fn valid_volume(name: &str) -> bool {
    let valid = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    !name.is_empty()
        && name.len() <= LONGEST_VOLUME
        && !name.starts_with('.')
        && name.chars().all(valid)
}

/// Volumes that are the project's own to keep and to remove.
fn own(all: BTreeMap<String, TopVolume>) -> BTreeSet<String> {
    let own = all.into_iter().filter(|(_, volume)| matches!(volume, TopVolume::Own { .. }));
    own.map(|(name, _)| name).collect()
}

/// Whether the value is a plain `false`: a key that switches nothing on.
pub(super) fn is_false(at: &At<'_>) -> bool {
    matches!(&at.node.value, Value::Scalar(scalar) if scalar.text.eq_ignore_ascii_case("false"))
}
