//! `configs` and `secrets`: at the top where their content comes from, in a service where it goes.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{ComposeError, Place};
use super::keys;
use super::model::{FileMount, FileSource};
use super::reader::At;

/// Configs or secrets by name. The content of a secret is in no message.
pub(super) type Shared = BTreeMap<String, FileSource>;

/// The names of the configs or secrets (`key` says which) that `services` use.
pub(super) fn used(services: &[At<'_>], key: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut add = |at: Option<At<'_>>| {
        for item in at.iter().filter_map(|at| at.items().ok()).flatten() {
            let source = item.get("source");
            names.extend(source.as_ref().unwrap_or(&item).text().ok());
        }
    };
    for service in services {
        add(service.get(key));
        if let Some(build) = service.get("build") {
            add(build.get(key));
        }
    }
    names
}

/// Reads the top-level section. A variable that nobody uses does not have to be there.
pub(super) fn shared(
    section: Option<&At<'_>>,
    secret: bool,
    used: &BTreeSet<String>,
) -> Result<Shared, ComposeError> {
    let mut all = Shared::new();
    let Some(section) = section else { return Ok(all) };
    for at in section.entries()? {
        let source = at.cx.keep(source(&at, secret, used.contains(at.key())));
        // One that is refused is said once, and not again where it is used.
        all.insert(at.key().to_owned(), source.unwrap_or(FileSource::Content(String::new())));
    }
    Ok(all)
}

fn source(at: &At<'_>, secret: bool, used: bool) -> Result<FileSource, ComposeError> {
    let keys = if secret { &keys::SECRET } else { &keys::CONFIG };
    let (mut source, mut whole) = (None, true);
    for key in at.entries()? {
        if !keys.admit(&key)? {
            whole &= !keys.refuses(&key);
            continue;
        }
        if key.is_null() {
            continue;
        }
        let found = match key.key() {
            "file" => FileSource::File(key.cx.absolute(&key.text()?)),
            "content" => FileSource::Content(key.text()?),
            "environment" if !used => FileSource::Content(String::new()),
            "environment" => FileSource::Content(variable(&key)?),
            _ if !key.truth()? => {
                key.list();
                continue;
            }
            _ => {
                return Err(key
                    .refuse("`external` is not supported")
                    .with_hint("write `file` or `environment`"));
            }
        };
        if source.replace(found).is_some() {
            return Err(at
                .refuse("has more than one source")
                .with_hint("keep one of `file`, `environment`, `content`"));
        }
    }
    match source {
        Some(source) => Ok(source),
        // The refusal has been kept.
        None if !whole => Ok(FileSource::Content(String::new())),
        None => Err(at
            .refuse("has no source")
            .with_hint("write `file: PATH` or `environment: VARIABLE`")),
    }
}

fn variable(at: &At<'_>) -> Result<String, ComposeError> {
    let name = at.text()?;
    if let Some(value) = at.cx.env.get(&name) {
        return Ok(value.clone());
    }
    let error = at.error(format!("the variable `{name}` is not set"));
    at.cx.refuse_to_run(error.with_hint(format!("set {name} in the environment or in `.env`")));
    Ok(String::new())
}

/// Reads `configs` or `secrets` of a service. Of two with one target the later file's wins.
pub(super) fn mounts(
    at: &At<'_>,
    shared: &Shared,
    secret: bool,
) -> Result<Vec<FileMount>, ComposeError> {
    let mut mounts: Vec<(Place, FileMount)> = Vec::new();
    for item in at.items()? {
        let Some(mount) = at.cx.keep(mount(&item, shared, secret)) else { continue };
        let place = item.node.place;
        match mounts.iter_mut().find(|(_, old)| old.target == mount.target) {
            Some((old, _)) if old.file == place.file => {
                at.cx.refuse(item.error(format!("`{}` is there already", mount.target)));
            }
            Some(old) => *old = (place, mount),
            None => mounts.push((place, mount)),
        }
    }
    Ok(mounts.into_iter().map(|(_, mount)| mount).collect())
}

/// The config or secret `name`.
pub(super) fn named<'a>(
    at: &At<'_>,
    shared: &'a Shared,
    name: &str,
    secret: bool,
) -> Result<&'a FileSource, ComposeError> {
    shared.get(name).ok_or_else(|| {
        let kind = if secret { "secret" } else { "config" };
        let error = at.error(format!("the {kind} `{name}` is not defined"));
        match super::closest(name, shared.keys().map(String::as_str)) {
            Some(near) => error.with_hint(format!("did you mean `{near}`?")),
            None => error.with_hint(format!("add it under `{kind}s:` at the top")),
        }
    })
}

fn mount(at: &At<'_>, shared: &Shared, secret: bool) -> Result<FileMount, ComposeError> {
    let (mut source, mut target) = (None, None);
    let (mut uid, mut gid, mut mode) = (0, 0, 0o444);
    if at.is_map() {
        for key in at.entries()? {
            if !keys::FILE.admit(&key)? || key.is_unset() {
                continue;
            }
            match key.key() {
                "source" => source = Some(key.text()?),
                "target" => target = Some(key.text()?),
                "uid" => uid = key.number("a numeric user")?,
                "gid" => gid = key.number("a numeric group")?,
                _ => mode = key.mode()?,
            }
        }
    } else {
        source = Some(at.text()?);
    }
    let Some(name) = source else { return Err(at.error("`source` is missing")) };
    let source = named(at, shared, &name, secret)?;
    let target = target.unwrap_or_else(|| name.clone());
    // Relative ones lie where Compose puts them.
    let folder = if secret { "/run/secrets/" } else { "/" };
    let target = if target.starts_with('/') { target } else { format!("{folder}{target}") };
    let target = at.target(&target)?;
    Ok(FileMount { target, source: source.clone(), uid, gid, mode, secret })
}
