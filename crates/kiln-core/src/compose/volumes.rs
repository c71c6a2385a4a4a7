//! `volumes` at the top: what a name stands for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::ComposeError;
use super::keys;
use super::project::{LONGEST_VOLUME, is_false, valid_volume};
use super::reader::At;

/// One volume as services mean it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TopVolume {
    /// The project's own; with `name:`, others have it under that.
    Own { known_as: Option<String> },
    /// Another project's, by its `name:`.
    External(String),
    /// A folder of the host (`driver_opts` with `o: bind`), and whether that was stated relatively.
    Folder { path: PathBuf, relative: bool },
}

/// Reads all of them.
pub(super) fn read(volumes: &At<'_>) -> Result<BTreeMap<String, TopVolume>, ComposeError> {
    let mut all = BTreeMap::new();
    for volume in volumes.entries()? {
        let read = valid(&volume, volume.key()).and_then(|_| one(&volume));
        // Services that name one which is refused are not refused for that as well.
        let read = volume.cx.keep(read).unwrap_or(TopVolume::Own { known_as: None });
        all.insert(volume.key().to_owned(), read);
    }
    Ok(all)
}

fn valid(at: &At<'_>, name: &str) -> Result<String, ComposeError> {
    if valid_volume(name) {
        return Ok(name.to_owned());
    }
    Err(at.refuse(format!("`{name}` is no valid name of a volume")).with_hint(format!(
        "use at most {LONGEST_VOLUME} letters, digits, `.`, `_` and `-`, and no `.` at the beginning"
    )))
}

fn one(volume: &At<'_>) -> Result<TopVolume, ComposeError> {
    let (mut external, mut name, mut folder) = (false, None, None);
    for at in volume.entries()? {
        if is_false(&at) {
            // `external: false` asks for nothing.
            at.list();
            continue;
        }
        if !keys::TOP_VOLUME.admit(&at)? || at.is_unset() {
            continue;
        }
        match at.key() {
            "driver" if at.text()? == "local" => at.list(),
            "driver" => {
                let what = format!("the driver `{}` is not supported", at.text()?);
                return Err(at.error(what).with_hint("leave `driver` out"));
            }
            "driver_opts" => folder = options(&at)?,
            // The old form names it here.
            "external" if at.is_map() => {
                external = true;
                if let Some(at) = at.get("name") {
                    name = Some(valid(&at, &at.text()?)?);
                }
            }
            "external" => external = at.truth()?,
            _ => name = Some(valid(&at, &at.text()?)?),
        }
    }
    match (external, folder) {
        (true, Some(_)) => Err(volume
            .refuse("a volume that is `external` has no `driver_opts` here")
            .with_hint("they stand where the volume is defined; keep one of the two")),
        (true, None) => Ok(TopVolume::External(name.unwrap_or_else(|| volume.key().to_owned()))),
        (false, Some((path, relative))) => Ok(TopVolume::Folder { path, relative }),
        (false, None) => Ok(TopVolume::Own { known_as: name }),
    }
}

/// The folder that `driver_opts` of the driver `local` mean: only a bind mount is honoured.
fn options(at: &At<'_>) -> Result<Option<(PathBuf, bool)>, ComposeError> {
    let (mut kind, mut binds, mut device) = (String::new(), false, None);
    let mut any = false;
    // What a variable left empty is not set.
    for option in at.entries()?.filter(|option| !option.is_unset()) {
        any = true;
        let text = option.text()?;
        match option.key() {
            "type" => kind = text,
            "o" => {
                for word in text.split(',').filter(|word| !word.is_empty()) {
                    match word {
                        "bind" | "rbind" => binds = true,
                        "rw" | "defaults" => {}
                        _ => {
                            let what = format!("the mount option `{word}` is not supported");
                            return Err(option.error(what).with_hint("`bind` and `rw` are"));
                        }
                    }
                }
            }
            "device" => device = Some((option.cx.absolute(&text), text.starts_with('.'))),
            other => {
                let what = format!("the option `{other}` is not supported");
                return Err(option.refuse(what).with_hint("`type`, `o` and `device` are"));
            }
        }
    }
    match (kind.as_str(), binds, device) {
        _ if !any => Ok(None),
        ("none" | "bind" | "", true, Some(device)) => Ok(Some(device)),
        ("tmpfs", ..) => Err(at
            .error("a volume of type `tmpfs` is not supported")
            .with_hint("write the path under `tmpfs:` in the service")),
        (kind, ..) => {
            Err(at.error(format!("a volume of type `{kind}` is not supported")).with_hint(
                "`type: none` with `o: bind` and a `device` is; mount anything else on the host, \
                 and name its folder so",
            ))
        }
    }
}
