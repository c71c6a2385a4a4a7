//! `env_file` and `environment` → the variables of a service.

use std::collections::BTreeMap;

use super::dotenv;
use super::error::ComposeError;
use super::keys;
use super::load::{bad_line, unset_warning, utf8};
use super::reader::At;

/// Reads both keys of `service`. `environment` wins over the files, a later file over an earlier.
/// A name without a value takes the value of the process environment or `.env`; without one there
/// the variable is not set at all.
pub(super) fn read(service: &At<'_>) -> Result<BTreeMap<String, String>, ComposeError> {
    let mut own = BTreeMap::new();
    if let Some(at) = service.get("environment") {
        for entry in at.entries()? {
            let name = entry.key();
            if name.is_empty() || name.contains(['=', '\0']) {
                at.cx.refuse(entry.refuse(format!("`{name}` is no name of a variable")));
                continue;
            }
            let value = match at.cx.keep(entry.optional_text()) {
                Some(Some(value)) => Some(value),
                Some(None) => service.cx.env.get(name).cloned(),
                None => continue,
            };
            own.insert(name.to_owned(), value);
        }
    }
    let mut all = BTreeMap::new();
    if let Some(at) = service.get("env_file") {
        for item in at.items()?.filter(|item| !item.is_unset()) {
            let values = at.cx.keep(env_file(&item, &own, &all));
            all.extend(values.unwrap_or_default());
        }
    }
    for (name, value) in own {
        match value {
            Some(value) => all.insert(name, value),
            None => all.remove(&name),
        };
    }
    Ok(all)
}

fn env_file(
    at: &At<'_>,
    own: &BTreeMap<String, Option<String>>,
    before: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, ComposeError> {
    let (mut path, mut required, mut raw) = (None, true, false);
    if at.is_map() {
        for key in at.entries()? {
            if !keys::ENV_FILE.admit(&key)? {
                continue;
            }
            match key.key() {
                "path" => path = Some(key.text()?),
                "required" => required = key.truth()?,
                _ => match key.optional_text()?.unwrap_or_default().as_str() {
                    "" | ".env" => raw = false,
                    "raw" => raw = true,
                    _ => return Err(key.expected("`raw`").with_hint("leave `format` out")),
                },
            }
        }
    } else {
        path = Some(at.text()?);
    }
    let Some(path) = path else { return Err(at.error("`path` is missing")) };
    let path = at.cx.absolute(&path);
    let shown = at.cx.shown(&path);
    let content = match (at.cx.read)(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {
            return Ok(BTreeMap::new());
        }
        Err(error) => {
            return Err(at.error(format!("the file {shown} cannot be read: {error}")).with_hint(
                "check the path; `{path: FILE, required: false}` does without a missing file",
            ));
        }
    };
    // The project's variables first, then the service's own.
    let lookup = |name: &str| {
        at.cx.env.get(name).or_else(|| own.get(name).and_then(Option::as_ref)).cloned()
    };
    let text = utf8(&shown, &content)?;
    let file = match raw {
        true => dotenv::parse_raw(&text, &lookup),
        false => dotenv::parse(&text, &lookup, before),
    };
    let file = file.map_err(|bad| bad_line(shown.clone(), bad))?;
    for (line, name) in file.unset {
        at.cx.warn(unset_warning(&format!("{shown}:{line}"), &name));
    }
    Ok(file.values)
}
