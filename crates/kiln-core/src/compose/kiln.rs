//! `x-kiln`: Kiln's own section.

use std::collections::{BTreeMap, BTreeSet};

use super::error::ComposeError;
use super::keys;
use super::model::{Base, KilnSection, Service, Stage};
use super::reader::At;
use super::{mounts, ports, service};
use crate::stage::MOST_KEPT;

/// What is read and checked, but nothing acts on yet.
const NOT_YET: &str = "accepted, without effect for now";

/// Reads the top-level section. The stage `dev` is always there.
pub(super) fn section(
    at: Option<&At<'_>>,
    services: &BTreeSet<String>,
) -> Result<KilnSection, ComposeError> {
    let mut section = KilnSection::default();
    if let Some(at) = at {
        for key in at.entries()? {
            if !keys::KILN.admit(&key)? {
                continue;
            }
            match key.key() {
                "volatile" => section.volatile = mounts::targets(&key)?,
                "read_only" => section.read_only = key.truth()?,
                "scratch" => section.scratch = Some(scratch(&key)?),
                _ => {}
            }
            if !matches!(key.key(), "bases" | "stages") {
                continue;
            }
            for entry in key.entries()? {
                let name = name(&entry)?;
                if key.key() == "bases" {
                    section.bases.insert(name, base(&entry)?);
                } else {
                    section.stages.insert(name, stage(&entry, services)?);
                }
            }
        }
        if let Some(stages) = at.get("stages") {
            order(&stages, &section.stages)?;
        }
    }
    section.stages.entry("dev".into()).or_default();
    Ok(section)
}

/// Reads `x-kiln` of a service.
pub(super) fn of_service(at: &At<'_>, service: &mut Service) -> Result<(), ComposeError> {
    for key in at.entries()? {
        if !keys::KILN_SERVICE.admit(&key)? {
            continue;
        }
        match key.key() {
            "worker" => service.worker = Some(key.truth()?),
            "scratch" => service.scratch = Some(scratch(&key)?),
            _ => service.volatile = mounts::targets(&key)?,
        }
    }
    Ok(())
}

/// Less room than this is a mistake in the unit.
const LEAST_SCRATCH: u64 = 1 << 20;

fn scratch(at: &At<'_>) -> Result<u64, ComposeError> {
    let bytes = at.bytes()?;
    if bytes < LEAST_SCRATCH {
        return Err(at
            .error("a layer of less than 1 MiB is of no use")
            .with_hint("for example `2g`; `read_only: true` on the service is without a layer"));
    }
    Ok(bytes)
}

fn name(at: &At<'_>) -> Result<String, ComposeError> {
    let name = at.key();
    let valid = |letter: char| {
        letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-_.".contains(letter)
    };
    let begins =
        name.starts_with(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    if !begins || name.len() > 63 || !name.chars().all(valid) || name == "scratch" {
        return Err(at
            .refuse(format!("`{name}` is no valid name"))
            .with_hint("use lower-case letters, digits, `-`, `_`, `.`; `scratch` is taken"));
    }
    Ok(name.to_owned())
}

fn base(at: &At<'_>) -> Result<Base, ComposeError> {
    let mut base = Base::default();
    for key in at.entries()? {
        if !keys::KILN_BASE.admit(&key)? || key.is_null() {
            continue;
        }
        match key.key() {
            "debian" => base.debian = suite(&key)?,
            "minimal" => base.minimal = key.truth()?,
            _ => {
                for item in key.items()? {
                    let package = package(&item)?;
                    if !base.packages.contains(&package) {
                        base.packages.push(package);
                    }
                }
            }
        }
    }
    if base.debian.is_empty() {
        return Err(at
            .refuse("`debian`, the suite that packages come from, is missing")
            .with_hint("for example `debian: bookworm`"));
    }
    if base.minimal && base.packages.is_empty() {
        return Err(at.refuse("a minimal base without packages is empty").with_hint("name some"));
    }
    Ok(base)
}

fn suite(at: &At<'_>) -> Result<String, ComposeError> {
    let text = at.text()?;
    let valid = |letter: char| letter.is_ascii_alphanumeric() || "-.".contains(letter);
    if text.starts_with(|letter: char| letter.is_ascii_alphabetic()) && text.chars().all(valid) {
        return Ok(text);
    }
    Err(at.error(format!("`{text}` is no suite of Debian")).with_hint("for example `bookworm`"))
}

/// Debian policy 5.6.7: lower-case letters, digits, `+`, `-`, `.`, two or more.
fn package(at: &At<'_>) -> Result<String, ComposeError> {
    let text = at.text()?;
    let valid = |letter: char| {
        letter.is_ascii_lowercase() || letter.is_ascii_digit() || "+-.".contains(letter)
    };
    let begins =
        text.starts_with(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    if begins && text.len() >= 2 && text.chars().all(valid) {
        return Ok(text);
    }
    Err(at
        .error(format!("`{text}` is no name of a package"))
        .with_hint("only the name: kiln.lock pins the version"))
}

fn stage(at: &At<'_>, services: &BTreeSet<String>) -> Result<Stage, ComposeError> {
    let mut stage = Stage::default();
    for key in at.entries()? {
        if !keys::KILN_STAGE.admit(&key)? || key.is_null() {
            continue;
        }
        match key.key() {
            "after" => stage.after = Some(key.text()?),
            "drain" => stage.drain = Some(key.duration()?),
            "files" => {
                for item in key.items()? {
                    stage.files.push(key.cx.absolute(&item.text()?));
                }
            }
            "keep" => stage.keep = Some(kept(&key)?),
            "ports" => {
                for entry in key.entries()? {
                    let name = known_service(&entry, entry.key(), services)?;
                    stage.ports.insert(name, ports::published(&entry)?);
                }
            }
            "test" => {
                test(&key, services)?;
                key.list_as(NOT_YET);
            }
            "rebuild" => {
                time_of_day(&key)?;
                key.list_as(NOT_YET);
            }
            _ => {
                strategy(&key)?;
                key.list_as(NOT_YET);
            }
        }
    }
    Ok(stage)
}

/// Every move of a pointer records all releases that are kept.
fn kept(at: &At<'_>) -> Result<u32, ComposeError> {
    let count = at.number("a number of releases")?;
    if count > MOST_KEPT {
        return Err(at.error(format!("`{count}` is more than {MOST_KEPT}, the most that are kept")));
    }
    Ok(count)
}

fn known_service(
    at: &At<'_>,
    name: &str,
    services: &BTreeSet<String>,
) -> Result<String, ComposeError> {
    if services.contains(name) {
        return Ok(name.to_owned());
    }
    Err(at
        .refuse(format!("there is no service `{name}`"))
        .with_closest(name, services.iter().map(String::as_str)))
}

fn test(at: &At<'_>, services: &BTreeSet<String>) -> Result<(), ComposeError> {
    let mut has_command = false;
    for key in at.entries()? {
        if !keys::KILN_TEST.admit(&key)? {
            continue;
        }
        match key.key() {
            "service" => {
                known_service(&key, &key.text()?, services)?;
            }
            "command" => has_command = !service::command(&key)?.is_empty(),
            _ => {
                key.duration()?;
            }
        }
    }
    if at.get("service").is_none() && !has_command {
        return Err(at.refuse("a test needs `service`, `command` or both"));
    }
    Ok(())
}

fn time_of_day(at: &At<'_>) -> Result<(), ComposeError> {
    let text = at.text()?;
    let valid = text.split_once(':').is_some_and(|(hour, minute)| {
        let below = |text: &str, limit: u8| {
            text.len() == 2 && text.parse::<u8>().is_ok_and(|number| number < limit)
        };
        below(hour, 24) && below(minute, 60)
    });
    if valid {
        Ok(())
    } else {
        Err(at.expected("a time of day").with_hint("for example \"17:00\""))
    }
}

fn strategy(at: &At<'_>) -> Result<(), ComposeError> {
    for key in at.entries()? {
        if !keys::KILN_STRATEGY.admit(&key)? {
            continue;
        }
        if key.key() == "hold" {
            key.duration()?;
            continue;
        }
        let mut before = 0;
        for item in key.items()? {
            let percent: u8 = item.number("a percentage from 1 to 100")?;
            if percent <= before || percent > 100 {
                return Err(item.error(format!("`{percent}` does not rise from {before} to 100")));
            }
            before = percent;
        }
    }
    Ok(())
}

/// Every `after` names another stage, and no chain of them comes back.
fn order(at: &At<'_>, stages: &BTreeMap<String, Stage>) -> Result<(), ComposeError> {
    for entry in at.entries()? {
        let mut seen = vec![entry.key()];
        let mut next = stages.get(entry.key()).and_then(|stage| stage.after.as_deref());
        while let Some(after) = next {
            let place = entry.get("after");
            let at = place.as_ref().unwrap_or(&entry);
            if after != "dev" && !stages.contains_key(after) {
                return Err(at
                    .error(format!("there is no stage `{after}`"))
                    .with_closest(after, stages.keys().map(String::as_str)));
            }
            if seen.contains(&after) {
                seen.push(after);
                return Err(at
                    .error(format!("the stages follow each other in a loop: {}", seen.join(" → ")))
                    .with_hint("take one `after` away"));
            }
            seen.push(after);
            next = stages.get(after).and_then(|stage| stage.after.as_deref());
        }
    }
    Ok(())
}
