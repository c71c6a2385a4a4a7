//! Which files a project has, its directory, and its variables.
//!
//! The order is that of Compose: `.env` of the working directory, then the files it may name in
//! `COMPOSE_FILE`, then `.env` of their directory; what is set first stays.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::dotenv;
use super::error::ComposeError;
use super::load::{LoadRequest, bad_line, unset_warning, utf8};
use super::reader::clean;

/// Names of the file, in the order in which they are tried.
const NAMES: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// Names of the file that is merged over a found one.
const OVERRIDES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// Variables by name.
pub(super) type Variables = BTreeMap<String, String>;

/// A file and its content.
pub(super) type Content = (PathBuf, Vec<u8>);

/// What [`find`] found.
pub(super) struct Found {
    /// The project's directory, without links.
    pub(super) dir: PathBuf,
    pub(super) files: Vec<Content>,
    /// The process environment over all files of variables.
    pub(super) env: Variables,
    pub(super) warnings: Vec<String>,
}

pub(super) fn find(request: &LoadRequest<'_>) -> Result<Found, ComposeError> {
    let mut env = request.env.clone();
    env.entry("PWD".into()).or_insert_with(|| request.dir.display().to_string());
    let mut warnings = Vec::new();
    let asked = request.project_dir.as_ref().map(|dir| clean(&request.dir.join(dir)));
    let folder = |files: &[PathBuf]| {
        let first = files.iter().find(|path| !is_stdin(path));
        let of_first = first.and_then(|path| Some(request.dir.join(path.parent()?)));
        clean(&asked.clone().or(of_first).unwrap_or_else(|| request.dir.clone()))
    };
    let begin = folder(&request.files);
    read_variables(request, &begin, &mut env, &mut warnings)?;
    let named = match env.get("COMPOSE_FILE").filter(|list| !list.is_empty()) {
        _ if !request.files.is_empty() => request.files.clone(),
        Some(list) => {
            let separator = env.get("COMPOSE_PATH_SEPARATOR").map_or(":", String::as_str);
            let separator = if separator.is_empty() { ":" } else { separator };
            list.split(separator).filter(|name| !name.is_empty()).map(PathBuf::from).collect()
        }
        None => Vec::new(),
    };
    let files = match named.is_empty() {
        true => discover(request, &begin)?,
        false => named.iter().map(|path| content(request, path)).collect::<Result<_, _>>()?,
    };
    let paths: Vec<PathBuf> = files.iter().map(|(path, _)| path.clone()).collect();
    let dir = folder(&paths);
    if dir != begin {
        read_variables(request, &dir, &mut env, &mut warnings)?;
    }
    Ok(Found { dir: (request.real_dir)(&dir), files, env, warnings })
}

/// Whether a path stands for standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

pub(super) fn shown(request: &LoadRequest<'_>, path: &Path) -> String {
    path.strip_prefix(&request.dir).unwrap_or(path).display().to_string()
}

/// The content of a file that somebody named.
pub(super) fn content(request: &LoadRequest<'_>, path: &Path) -> Result<Content, ComposeError> {
    let path = if is_stdin(path) { path.to_owned() } else { clean(&request.dir.join(path)) };
    let content = (request.read)(&path).map_err(|error| {
        ComposeError::of_file(shown(request, &path), format!("cannot be read: {error}"))
            .with_hint("check the path that was given with -f or in COMPOSE_FILE")
    })?;
    Ok((path, content))
}

/// The content of a file that need not be there.
fn optional(request: &LoadRequest<'_>, path: &Path) -> Result<Option<Vec<u8>>, ComposeError> {
    match (request.read)(path) {
        Ok(content) => Ok(Some(content)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => {
            let what = format!("cannot be read: {error}");
            Err(ComposeError::of_file(shown(request, path), what))
        }
    }
}

fn discover(request: &LoadRequest<'_>, begin: &Path) -> Result<Vec<Content>, ComposeError> {
    for dir in begin.ancestors() {
        let mut files = Vec::new();
        for names in [NAMES, OVERRIDES] {
            for name in names {
                let path = dir.join(name);
                if let Some(content) = optional(request, &path)? {
                    files.push((path, content));
                    break;
                }
            }
            if files.is_empty() {
                break;
            }
        }
        if !files.is_empty() {
            return Ok(files);
        }
    }
    let what = format!("no compose.yaml in {} or above it", begin.display());
    Err(ComposeError::of_file("", what).with_hint("name it with -f; `kiln init` writes a new one"))
}

/// Adds what the asked files of variables say, else `.env` of `dir`; what is set stays.
fn read_variables(
    request: &LoadRequest<'_>,
    dir: &Path,
    env: &mut Variables,
    warnings: &mut Vec<String>,
) -> Result<(), ComposeError> {
    let mut asked: Vec<PathBuf> = request.env_files.clone();
    if let Some(list) = request.env.get("COMPOSE_ENV_FILES").filter(|_| asked.is_empty()) {
        asked.extend(list.split(',').filter(|name| !name.is_empty()).map(PathBuf::from));
    }
    let mut files = Vec::new();
    for path in &asked {
        files.push(content(request, path).map_err(|error| {
            error.with_hint("check the path that was given with --env-file or in COMPOSE_ENV_FILES")
        })?);
    }
    let off = request.env.get("COMPOSE_DISABLE_ENV_FILE").map(String::as_str);
    if asked.is_empty() && !matches!(off, Some("1" | "t" | "T" | "true" | "TRUE" | "True")) {
        let path = dir.join(".env");
        files.extend(optional(request, &path)?.map(|content| (path, content)));
    }
    let (values, unset) = variables_of(request, &files, env)?;
    warnings.extend(unset);
    for (name, value) in values {
        env.entry(name).or_insert(value);
    }
    Ok(())
}

/// What `files` say, a later one over an earlier; variables in them come from `env` first. Beside
/// it the warnings about those that nobody sets.
pub(super) fn variables_of(
    request: &LoadRequest<'_>,
    files: &[Content],
    env: &Variables,
) -> Result<(Variables, Vec<String>), ComposeError> {
    let mut values = Variables::new();
    let mut warnings = Vec::new();
    for (path, content) in files {
        let shown = shown(request, path);
        let text = utf8(&shown, content)?;
        let lookup = |name: &str| env.get(name).cloned();
        let file =
            dotenv::parse(&text, &lookup, &values).map_err(|bad| bad_line(shown.clone(), bad))?;
        let unset = file.unset.iter();
        warnings.extend(unset.map(|(line, name)| unset_warning(&format!("{shown}:{line}"), name)));
        values.extend(file.values);
    }
    Ok((values, warnings))
}
