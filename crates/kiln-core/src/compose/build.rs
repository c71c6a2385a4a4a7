//! `build`: where an image is baked from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::ComposeError;
use super::keys;
use super::model::Build;
use super::reader::{At, clean};

/// Reads `build`; its short form was made long before.
pub(super) fn read(at: &At<'_>) -> Result<Build, ComposeError> {
    let mut build = Build { context: at.cx.dir.clone(), ..Build::default() };
    let mut dockerfile = None;
    for key in at.entries()? {
        if super::project::is_false(&key) && matches!(key.key(), "privileged" | "no_cache" | "pull")
        {
            key.list();
            continue;
        }
        if !keys::BUILD.admit(&key)? || key.is_null() {
            continue;
        }
        match key.key() {
            "context" => build.context = context(&key, &key.text()?)?,
            "dockerfile" => dockerfile = Some(key.text()?),
            "dockerfile_inline" => build.inline = Some(key.text()?),
            "args" => build.args = args(&key)?,
            "target" => build.target = Some(key.text()?),
            _ => build.additional_contexts = additional(&key)?,
        }
    }
    if let (Some(_), Some(at)) = (&dockerfile, at.get("dockerfile_inline"))
        && build.inline.is_some()
    {
        return Err(at
            .refuse("`dockerfile_inline` stands beside `dockerfile`")
            .with_hint("keep one"));
    }
    build.dockerfile = clean(&build.context.join(dockerfile.as_deref().unwrap_or("Dockerfile")));
    Ok(build)
}

/// An absolute directory; whatever would have to be fetched is refused.
fn context(at: &At<'_>, text: &str) -> Result<PathBuf, ComposeError> {
    let remote = text.contains("://")
        || text.starts_with("git@")
        || text.starts_with("github.com/")
        || text.ends_with(".git");
    if remote {
        return Err(at
            .error(format!("`{text}` is no directory: a context from elsewhere is not supported"))
            .with_hint("check it out and name its directory"));
    }
    if text.is_empty() {
        return Err(at.expected("a directory"));
    }
    Ok(at.cx.absolute(text))
}

/// An argument without a value takes that of the process environment or `.env`, if there is one.
fn args(at: &At<'_>) -> Result<BTreeMap<String, Option<String>>, ComposeError> {
    let mut args = BTreeMap::new();
    for entry in at.entries()? {
        let value = match entry.optional_text()? {
            Some(value) => Some(value),
            None => at.cx.env.get(entry.key()).cloned(),
        };
        args.insert(entry.key().to_owned(), value);
    }
    Ok(args)
}

fn additional(at: &At<'_>) -> Result<BTreeMap<String, String>, ComposeError> {
    let mut contexts = BTreeMap::new();
    for entry in at.entries()? {
        let text = entry.text()?;
        let value = if text.starts_with("service:") {
            text
        } else {
            context(&entry, &text)?.display().to_string()
        };
        contexts.insert(entry.key().to_owned(), value);
    }
    Ok(contexts)
}
