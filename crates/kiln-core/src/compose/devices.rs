//! `devices`: devices of the host that an instance has beside the usual ones.

use super::error::ComposeError;
use super::keys;
use super::model::Device;
use super::reader::At;

/// What is in `/dev` of every instance already.
const USUAL: [&str; 15] = [
    "/dev",
    "/dev/core",
    "/dev/fd",
    "/dev/full",
    "/dev/mqueue",
    "/dev/null",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/random",
    "/dev/shm",
    "/dev/stderr",
    "/dev/stdin",
    "/dev/stdout",
    "/dev/tty",
    "/dev/urandom",
];

/// Reads `devices`.
pub(super) fn read(at: &At<'_>) -> Result<Vec<Device>, ComposeError> {
    let mut all: Vec<Device> = Vec::new();
    for item in at.items()?.filter(|item| !item.is_unset()) {
        all.extend(at.cx.keep(device(&item)).flatten());
    }
    Ok(all)
}

/// `None`: what cannot be run has been kept.
fn device(at: &At<'_>) -> Result<Option<Device>, ComposeError> {
    let (mut source, mut target, mut access) = (None, None, None);
    if at.is_map() {
        for key in at.entries()? {
            if !keys::DEVICE.admit(&key)? || key.is_unset() {
                continue;
            }
            match key.key() {
                "source" => source = Some(key.text()?),
                "target" => target = Some(key.text()?),
                _ => access = Some(key.text()?),
            }
        }
    } else {
        let text = at.text()?;
        let mut parts = text.split(':').map(str::to_owned);
        (source, target, access) = (parts.next(), parts.next(), parts.next());
        if parts.next().is_some() {
            return Err(at
                .error(format!("`{text}` is no device"))
                .with_hint("write HOST:CONTAINER:rwm, for example /dev/fuse"));
        }
    }
    let Some(source) = source.filter(|source| !source.is_empty()) else {
        at.cx.refuse_to_run(at.error("`source` is missing").with_hint("for example /dev/fuse"));
        return Ok(None);
    };
    // Docker's own command line has `HOST:rwm`; for Compose that is a path of the instance.
    if let Some(mode) = target.as_deref().filter(|text| valid(text)) {
        return Err(at
            .error(format!("`{mode}` is no path of the instance"))
            .with_hint(format!("write {source}:{source}:{mode}")));
    }
    if !source.starts_with('/') {
        let cdi = source.contains('=');
        let what =
            if cdi { "is a CDI name, and those are not supported" } else { "is no absolute path" };
        return Err(at
            .error(format!("`{source}` {what}"))
            .with_hint("name the device's node on the host, for example /dev/fuse"));
    }
    let clean = |text: &str| at.target(text);
    let source = clean(&source)?;
    let target = match target.filter(|target| !target.is_empty()) {
        Some(target) => clean(&target)?,
        None => source.clone(),
    };
    let below = |folder: &str| target.starts_with(&format!("{folder}/"));
    let own = USUAL.contains(&target.as_str()) || target == "/dev/zero";
    if own || ["/dev/pts", "/dev/shm", "/dev/mqueue", "/proc", "/sys"].iter().any(|it| below(it)) {
        return Err(at
            .error(format!("`{target}` is the instance's own"))
            .with_hint("leave the device out, or write another path behind the colon"));
    }
    let access = access.filter(|access| !access.is_empty()).unwrap_or_else(|| "rwm".to_owned());
    if !valid(&access) {
        return Err(at
            .error(format!("`{access}` says not what may be done with the device"))
            .with_hint("`r` to read, `w` to write, `m` to make its node, or several of them"));
    }
    let access = "rwm".chars().filter(|letter| access.contains(*letter)).collect();
    Ok(Some(Device { source, target, access }))
}

fn valid(access: &str) -> bool {
    let once = |letter: char| access.matches(letter).count() <= 1;
    !access.is_empty() && access.chars().all(|letter| "rwm".contains(letter) && once(letter))
}
