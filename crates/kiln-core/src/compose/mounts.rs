//! `volumes` and `tmpfs` of a service.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::error::{ComposeError, Place};
use super::keys;
use super::model::{Mount, MountSource, Service, Tmpfs};
use super::reader::At;
use super::units;
use super::volumes::TopVolume;

/// Reads `volumes` into the service's mounts and tmpfs. Of two with one target the one of the
/// later file wins; in one file they are an error.
pub(super) fn volumes(
    at: &At<'_>,
    service: &mut Service,
    declared: &BTreeMap<String, TopVolume>,
) -> Result<(), ComposeError> {
    let mut by_target: BTreeMap<String, (Place, Found)> = BTreeMap::new();
    let mut order = Vec::new();
    for item in at.items()? {
        let found = if item.is_map() { long(&item, declared) } else { short(&item, declared) };
        let Some(found) = at.cx.keep(found) else { continue };
        let target = match &found {
            Found::Mount(mount, _) => mount.target.clone(),
            Found::Tmpfs(tmpfs) => tmpfs.target.clone(),
        };
        let place = item.node.place;
        match by_target.insert(target.clone(), (place, found)) {
            Some((old, _)) if old.file == place.file => {
                at.cx.refuse(twice(&item, &target, old));
            }
            Some(_) => {}
            None => order.push(target),
        }
    }
    for target in order {
        match by_target.remove(&target) {
            Some((_, Found::Mount(mount, relative))) => {
                if relative {
                    service.relative.insert(mount.target.clone());
                }
                service.volumes.push(mount);
            }
            Some((_, Found::Tmpfs(tmpfs))) => service.tmpfs.push(tmpfs),
            None => {}
        }
    }
    Ok(())
}

enum Found {
    /// And whether it binds what was stated relative to the project.
    Mount(Mount, bool),
    Tmpfs(Tmpfs),
}

/// What is mounted, and whether its path was stated relative to the project.
struct Source {
    source: MountSource,
    relative: bool,
    known_as: Option<String>,
}

impl Source {
    fn anonymous() -> Self {
        Self { source: MountSource::Anonymous, relative: false, known_as: None }
    }

    fn bind(at: &At<'_>, text: &str) -> Self {
        let path = at.cx.absolute(text);
        if is_docker(&path) {
            at.cx.warn(format!(
                "{}: whoever has Docker's socket is root on this machine; there it finds Docker's \
                 containers, not Kiln's instances",
                at.shown_place()
            ));
        }
        let relative = !text.starts_with(['/', '~']);
        Self { source: MountSource::Bind(path), relative, known_as: None }
    }
}

/// Whether a path is the socket at which Docker's daemon takes orders.
pub fn is_docker(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "docker.sock")
}

fn twice(at: &At<'_>, target: &str, old: Place) -> ComposeError {
    at.error(format!("something is mounted at `{target}` already, on line {}", old.line))
        .with_hint("keep one of the two")
}

/// `[SOURCE:]TARGET[:MODE]`.
fn short(at: &At<'_>, declared: &BTreeMap<String, TopVolume>) -> Result<Found, ComposeError> {
    let text = at.text()?;
    // As in Compose, one or two letters are a target whatever they are.
    let parts: Vec<&str> = match text.chars().count() {
        0..=2 => vec![&text],
        _ => text.split(':').collect(),
    };
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
        None => Source::anonymous(),
        Some(path) if path.starts_with(['.', '/', '~']) => Source::bind(at, path),
        Some(name) => declared_volume(at, name, declared)?,
    };
    let mut nocopy = false;
    let mut read_only = false;
    for mode in modes.split(',').filter(|mode| !mode.is_empty()) {
        match mode {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "nocopy" => nocopy = true,
            "z" | "Z" | "cached" | "delegated" | "consistent" | "rprivate" | "private" => {
                at.list_as(&format!("the option `{mode}`"));
            }
            _ => {
                return Err(at
                    .error(format!("the option `{mode}` is not supported"))
                    .with_hint("`ro`, `rw` and `nocopy` are"));
            }
        }
    }
    let target = mount_point(at, target)?;
    let Source { source, relative, known_as } = source;
    let mount = Mount { source, target, read_only, nocopy, known_as, ..Mount::default() };
    Ok(Found::Mount(mount, relative))
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
    declared: &BTreeMap<String, TopVolume>,
) -> Result<Source, ComposeError> {
    let source = |source| Source { source, relative: false, known_as: None };
    match declared.get(name) {
        None => {}
        Some(TopVolume::External(name)) => return Ok(source(MountSource::External(name.clone()))),
        Some(TopVolume::Own { known_as }) => {
            let known_as = known_as.clone();
            return Ok(Source { known_as, ..source(MountSource::Volume(name.to_owned())) });
        }
        Some(TopVolume::Folder { path, relative }) => {
            return Ok(Source { relative: *relative, ..source(MountSource::Bind(path.clone())) });
        }
    }
    let error = at.error(format!("the volume `{name}` is not defined"));
    Err(match super::closest(name, declared.keys().map(String::as_str)) {
        Some(near) => error.with_hint(format!("did you mean `{near}`?")),
        None => error.with_hint(format!(
            "add `{name}:` under `volumes:` at the top; for a directory write `./{name}`"
        )),
    })
}

fn long(at: &At<'_>, declared: &BTreeMap<String, TopVolume>) -> Result<Found, ComposeError> {
    let (mut kind, mut source, mut target) = (None, None, None);
    let (mut tmpfs, mut mount) = (Tmpfs::default(), Mount::default());
    for key in at.entries()? {
        if !keys::MOUNT.admit(&key)? || key.is_unset() {
            continue;
        }
        match key.key() {
            "type" => kind = Some(key.text()?),
            "source" => source = Some(key.text()?),
            "target" => target = Some(mount_point(&key, &key.text()?)?),
            "read_only" => mount.read_only = key.truth()?,
            "bind" => bind_options(&key, &mut mount)?,
            "volume" => volume_options(&key, &mut mount)?,
            _ => tmpfs_options(&key, &mut tmpfs)?,
        }
    }
    let Some(target) = target else { return Err(at.error("`target` is missing")) };
    let kind =
        kind.ok_or_else(|| at.error("`type` is missing").with_hint("bind, volume or tmpfs"))?;
    let source = match (kind.as_str(), source) {
        ("bind", Some(path)) => Source::bind(at, &path),
        ("bind", None) => return Err(at.error("`source` is missing")),
        ("volume", Some(name)) => declared_volume(at, &name, declared)?,
        ("volume", None) => Source::anonymous(),
        ("tmpfs", None) => return Ok(Found::Tmpfs(Tmpfs { target, ..tmpfs })),
        ("tmpfs", Some(_)) => return Err(at.error("a tmpfs has no `source`")),
        (other, _) => {
            return Err(at
                .error(format!("the type `{other}` is not supported"))
                .with_hint("bind, volume or tmpfs"));
        }
    };
    let Source { source, relative, known_as } = source;
    if mount.subpath.is_some()
        && !matches!(source, MountSource::Volume(_) | MountSource::External(_))
    {
        return Err(at
            .error("`subpath` is of a named volume")
            .with_hint("write the whole path into `source`, or leave `subpath` out"));
    }
    Ok(Found::Mount(Mount { source, target, known_as, ..mount }, relative))
}

fn bind_options(at: &At<'_>, mount: &mut Mount) -> Result<(), ComposeError> {
    for key in at.entries()? {
        if !keys::MOUNT_BIND.admit(&key)? || key.is_null() {
            continue;
        }
        let text = key.text()?;
        match (key.key(), text.as_str()) {
            ("create_host_path", _) => mount.must_exist = !key.truth()?,
            ("propagation", "rprivate" | "private" | "") => key.list(),
            ("propagation", other) => {
                return Err(key
                    .error(format!("the propagation `{other}` is not supported"))
                    .with_hint("leave it out: mounts of an instance are its own"));
            }
            (_, "enabled" | "") => key.list(),
            (_, other) => {
                return Err(key
                    .error(format!("`recursive: {other}` is not supported"))
                    .with_hint("leave it out: what is mounted in the folder comes along"));
            }
        }
    }
    Ok(())
}

fn volume_options(at: &At<'_>, mount: &mut Mount) -> Result<(), ComposeError> {
    for key in at.entries()? {
        if !keys::MOUNT_VOLUME.admit(&key)? || key.is_null() {
            continue;
        }
        match key.key() {
            "nocopy" => mount.nocopy = key.truth()?,
            _ => mount.subpath = subpath(&key)?,
        }
    }
    Ok(())
}

/// A way down in the volume, and nowhere else.
fn subpath(at: &At<'_>) -> Result<Option<String>, ComposeError> {
    let text = at.text()?;
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if text.starts_with('/') || parts.contains(&"..") {
        return Err(at
            .error(format!("`{text}` is no path in the volume"))
            .with_hint("write it relative to the volume, without `..`"));
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
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
    for item in at.items()?.filter(|item| !item.is_unset()) {
        let Some(tmpfs) = at.cx.keep(one_tmpfs(&item)) else { continue };
        service.tmpfs.retain(|old| old.target != tmpfs.target);
        service.tmpfs.push(tmpfs);
    }
    Ok(())
}

fn one_tmpfs(item: &At<'_>) -> Result<Tmpfs, ComposeError> {
    let text = item.text()?;
    let (target, options) = text.split_once(':').unwrap_or((&text, ""));
    let mut tmpfs = Tmpfs { target: mount_point(item, target)?, ..Tmpfs::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        item.cx.keep(tmpfs_option(item, option, &mut tmpfs));
    }
    Ok(tmpfs)
}

/// One option as mount(8) writes it.
fn tmpfs_option(at: &At<'_>, option: &str, tmpfs: &mut Tmpfs) -> Result<(), ComposeError> {
    let bad = |example: &str| {
        at.error(format!("the option `{option}` of a tmpfs cannot be read"))
            .with_hint(format!("for example {example}"))
    };
    let number = |text: &str, example: &str| text.parse::<u32>().map_err(|_| bad(example));
    match option.split_once('=') {
        Some(("size", size)) => match size.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent));
                let percent: u8 = percent.ok_or_else(|| bad("size=50%"))?;
                (tmpfs.percent, tmpfs.size) = (Some(percent), None);
            }
            None => {
                tmpfs.size = Some(units::bytes(size).ok_or_else(|| bad("size=64m"))?);
                tmpfs.percent = None;
            }
        },
        Some(("mode", mode)) => {
            tmpfs.mode = Some(units::octal(mode).ok_or_else(|| bad("mode=1777"))?);
        }
        Some(("uid", id)) => tmpfs.uid = Some(number(id, "uid=1000")?),
        Some(("gid", id)) => tmpfs.gid = Some(number(id, "gid=1000")?),
        None if option == "noexec" => tmpfs.noexec = true,
        None if option == "exec" => tmpfs.noexec = false,
        None if matches!(option, "rw" | "nosuid" | "nodev") => {
            at.list_as(&format!("the option `{option}`"));
        }
        _ => {
            return Err(at
                .error(format!("the option `{option}` of a tmpfs is not supported"))
                .with_hint("`size=`, `mode=`, `uid=`, `gid=`, `exec` and `noexec` are"));
        }
    }
    Ok(())
}

/// Reads `volatile`: absolute paths of the instance.
pub(super) fn targets(at: &At<'_>) -> Result<BTreeSet<String>, ComposeError> {
    let mut targets = BTreeSet::new();
    for item in at.items()? {
        let target = item.text().and_then(|text| mount_point(&item, &text));
        targets.extend(at.cx.keep(target));
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
