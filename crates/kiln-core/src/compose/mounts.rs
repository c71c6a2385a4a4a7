//! `volumes` and `tmpfs` of a service.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{ComposeError, Place};
use super::keys;
use super::model::{Mount, MountSource, Service, Tmpfs};
use super::reader::At;
use super::units;

/// Reads `volumes` into the service's mounts and tmpfs. Of two with one target the one of the
/// later file wins; in one file they are an error.
pub(super) fn volumes(
    at: &At<'_>,
    service: &mut Service,
    declared: &BTreeSet<String>,
) -> Result<(), ComposeError> {
    let mut by_target: BTreeMap<String, (Place, Found)> = BTreeMap::new();
    let mut order = Vec::new();
    for item in at.items()? {
        let found = if item.is_map() { long(&item, declared)? } else { short(&item, declared)? };
        let target = match &found {
            Found::Mount(mount) => mount.target.clone(),
            Found::Tmpfs(tmpfs) => tmpfs.target.clone(),
        };
        let place = item.node.place;
        match by_target.insert(target.clone(), (place, found)) {
            Some((old, _)) if old.file == place.file => return Err(twice(&item, &target, old)),
            Some(_) => {}
            None => order.push(target),
        }
    }
    for target in order {
        match by_target.remove(&target) {
            Some((_, Found::Mount(mount))) => service.volumes.push(mount),
            Some((_, Found::Tmpfs(tmpfs))) => service.tmpfs.push(tmpfs),
            None => {}
        }
    }
    Ok(())
}

enum Found {
    Mount(Mount),
    Tmpfs(Tmpfs),
}

fn twice(at: &At<'_>, target: &str, old: Place) -> ComposeError {
    at.error(format!("something is mounted at `{target}` already, on line {}", old.line))
        .with_hint("keep one of the two")
}

/// `[SOURCE:]TARGET[:MODE]`.
fn short(at: &At<'_>, declared: &BTreeSet<String>) -> Result<Found, ComposeError> {
    let text = at.text()?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, modes) = match parts[..] {
        [target] => (None, target, ""),
        [source, target] => (Some(source), target, ""),
        [source, target, modes] => (Some(source), target, modes),
        _ => {
            return Err(at
                .error(format!("`{text}` has too many colons"))
                .with_hint("write SOURCE:TARGET[:ro], or the long form"));
        }
    };
    let source = match source {
        None => MountSource::Anonymous,
        Some(path) if path.starts_with(['.', '/', '~']) => MountSource::Bind(at.cx.absolute(path)),
        Some(name) => MountSource::Volume(declared_volume(at, name, declared)?),
    };
    let mut read_only = false;
    for mode in modes.split(',').filter(|mode| !mode.is_empty()) {
        match mode {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "z" | "Z" | "cached" | "delegated" | "consistent" | "rprivate" | "private" => {
                at.list_as(&format!("the option `{mode}`"));
            }
            _ => {
                return Err(at
                    .error(format!("the option `{mode}` is not supported"))
                    .with_hint("`ro` and `rw` are"));
            }
        }
    }
    Ok(Found::Mount(Mount { source, target: mount_point(at, target)?, read_only }))
}

fn mount_point(at: &At<'_>, text: &str) -> Result<String, ComposeError> {
    let target = at.target(text)?;
    if target == "/" {
        return Err(at.error("nothing can be mounted over `/`"));
    }
    Ok(target)
}

fn declared_volume(
    at: &At<'_>,
    name: &str,
    declared: &BTreeSet<String>,
) -> Result<String, ComposeError> {
    if declared.contains(name) {
        return Ok(name.to_owned());
    }
    let error = at.error(format!("the volume `{name}` is not defined"));
    Err(match super::closest(name, declared.iter().map(String::as_str)) {
        Some(near) => error.with_hint(format!("did you mean `{near}`?")),
        None => error.with_hint(format!(
            "add `{name}:` under `volumes:` at the top; for a directory write `./{name}`"
        )),
    })
}

fn long(at: &At<'_>, declared: &BTreeSet<String>) -> Result<Found, ComposeError> {
    let (mut kind, mut source, mut target, mut read_only) = (None, None, None, false);
    let mut tmpfs = Tmpfs { target: String::new(), size: None, mode: None };
    for key in at.entries()? {
        if !keys::MOUNT.admit(&key)? || key.is_null() {
            continue;
        }
        match key.key() {
            "type" => kind = Some(key.text()?),
            "source" => source = Some(key.text()?),
            "target" => target = Some(mount_point(&key, &key.text()?)?),
            "read_only" => read_only = key.truth()?,
            "bind" => bind_options(&key)?,
            "volume" => volume_options(&key)?,
            _ => tmpfs_options(&key, &mut tmpfs)?,
        }
    }
    let Some(target) = target else { return Err(at.error("`target` is missing")) };
    let kind =
        kind.ok_or_else(|| at.error("`type` is missing").with_hint("bind, volume or tmpfs"))?;
    let source = match (kind.as_str(), source) {
        ("bind", Some(path)) => MountSource::Bind(at.cx.absolute(&path)),
        ("bind", None) => return Err(at.error("`source` is missing")),
        ("volume", Some(name)) => MountSource::Volume(declared_volume(at, &name, declared)?),
        ("volume", None) => MountSource::Anonymous,
        ("tmpfs", None) => return Ok(Found::Tmpfs(Tmpfs { target, ..tmpfs })),
        ("tmpfs", Some(_)) => return Err(at.error("a tmpfs has no `source`")),
        (other, _) => {
            return Err(at
                .error(format!("the type `{other}` is not supported"))
                .with_hint("bind, volume or tmpfs"));
        }
    };
    Ok(Found::Mount(Mount { source, target, read_only }))
}

fn bind_options(at: &At<'_>) -> Result<(), ComposeError> {
    for key in at.entries()? {
        if !keys::MOUNT_BIND.admit(&key)? {
            continue;
        }
        match key.text()?.as_str() {
            "rprivate" | "private" | "" => key.list(),
            other => {
                return Err(key
                    .error(format!("the propagation `{other}` is not supported"))
                    .with_hint("leave it out: mounts of an instance are its own"));
            }
        }
    }
    Ok(())
}

fn volume_options(at: &At<'_>) -> Result<(), ComposeError> {
    for key in at.entries()? {
        if !keys::MOUNT_VOLUME.admit(&key)? {
            continue;
        }
        if key.truth()? {
            return Err(key
                .error("`nocopy` is not supported")
                .with_hint("an empty volume takes what the image has there"));
        }
        key.list();
    }
    Ok(())
}

fn tmpfs_options(at: &At<'_>, tmpfs: &mut Tmpfs) -> Result<(), ComposeError> {
    for key in at.entries()? {
        if !keys::MOUNT_TMPFS.admit(&key)? {
            continue;
        }
        match key.key() {
            "size" => tmpfs.size = Some(key.bytes()?),
            _ => tmpfs.mode = Some(key.mode()?),
        }
    }
    Ok(())
}

/// Reads `tmpfs`: `TARGET[:OPTION,…]`; the last of one target wins.
pub(super) fn tmpfs(at: &At<'_>, service: &mut Service) -> Result<(), ComposeError> {
    for item in at.items()? {
        let text = item.text()?;
        let (target, options) = text.split_once(':').unwrap_or((&text, ""));
        let mut tmpfs = Tmpfs { target: mount_point(&item, target)?, size: None, mode: None };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let bad = || item.error(format!("the option `{option}` of a tmpfs cannot be read"));
            match option.split_once('=') {
                Some(("size", size)) => {
                    let hint = "for example size=64m";
                    let size = units::bytes(size).ok_or_else(|| bad().with_hint(hint))?;
                    tmpfs.size = Some(size);
                }
                Some(("mode", mode)) => {
                    let hint = "for example mode=1777";
                    let mode = units::octal(mode).ok_or_else(|| bad().with_hint(hint))?;
                    tmpfs.mode = Some(mode);
                }
                None if matches!(option, "rw" | "noexec" | "nosuid" | "nodev") => {
                    item.list_as(&format!("the option `{option}`"));
                }
                _ => {
                    return Err(item
                        .error(format!("the option `{option}` of a tmpfs is not supported"))
                        .with_hint("`size=` and `mode=` are"));
                }
            }
        }
        service.tmpfs.retain(|old| old.target != tmpfs.target);
        service.tmpfs.push(tmpfs);
    }
    Ok(())
}

/// Reads `volatile`: absolute paths of the instance.
pub(super) fn targets(at: &At<'_>) -> Result<BTreeSet<String>, ComposeError> {
    let mut targets = BTreeSet::new();
    for item in at.items()? {
        targets.insert(mount_point(&item, &item.text()?)?);
    }
    Ok(targets)
}

/// A volume and a tmpfs, or a config, cannot share a target; nor can data be volatile.
pub(super) fn no_target_twice(at: &At<'_>, service: &Service) -> Result<(), ComposeError> {
    let named = |mount: &&Mount| {
        mount.source != MountSource::Anonymous || !service.volatile.contains(&mount.target)
    };
    let volumes = service.volumes.iter().filter(named).map(|mount| ("volumes", &mount.target));
    let tmpfs = service.tmpfs.iter().map(|tmpfs| ("tmpfs", &tmpfs.target));
    let files = service.files.iter().map(|file| ("configs or secrets", &file.target));
    let mut seen: BTreeMap<&String, &str> = BTreeMap::new();
    let volatile = service.volatile.iter().map(|target| ("x-kiln.volatile", target));
    for (kind, target) in volumes.chain(tmpfs).chain(files).chain(volatile) {
        if let Some(first) = seen.insert(target, kind) {
            return Err(at
                .refuse(format!("`{target}` is named twice: in {first} and in {kind}"))
                .with_hint("keep one of the two"));
        }
    }
    Ok(())
}
