//! From a request to a project: find the files, read, interpolate, merge, then read the tree.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::dotenv;
use super::error::{ComposeError, ComposeErrors};
use super::interpolate::Variables;
use super::merge;
use super::model::Project;
use super::project;
use super::reader::{At, Context, clean};
use super::yaml::{self, Entry, Node, Value};

/// The closure that stands for the file system: the whole content of the file at a path.
pub type ReadFile<'r> = &'r dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// What to load, and from where.
pub struct LoadRequest<'r> {
    /// The files named with `-f`, absolute, in order. Empty: `COMPOSE_FILE`, else `compose.yaml`
    /// or one of its other names in `dir` or the nearest directory above, with its override file.
    pub files: Vec<PathBuf>,
    /// The working directory, absolute: where the search begins, and what names of files in
    /// messages are relative to.
    pub dir: PathBuf,
    /// The environment of the process, for interpolation; it wins over `.env`.
    pub env: BTreeMap<String, String>,
    /// Profiles that are switched on; empty: those of `COMPOSE_PROFILES`. `*` is all of them.
    pub profiles: Vec<String>,
    /// A name that wins over `COMPOSE_PROJECT_NAME` and `name`.
    pub project_name: Option<String>,
    /// Reads a file; a missing one is [`io::ErrorKind::NotFound`].
    pub read: ReadFile<'r>,
}

impl std::fmt::Debug for LoadRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadRequest")
            .field("files", &self.files)
            .field("dir", &self.dir)
            .field("profiles", &self.profiles)
            .field("project_name", &self.project_name)
            .finish_non_exhaustive()
    }
}

/// Names of the file, in the order in which they are tried.
const NAMES: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];
/// Names of the file that is merged over a found one.
const OVERRIDES: [&str; 4] = [
    "compose.override.yaml",
    "compose.override.yml",
    "docker-compose.override.yaml",
    "docker-compose.override.yml",
];

/// Reads a project.
///
/// # Errors
/// All that is wrong, each with its place and what to do about it.
pub fn load(request: &LoadRequest<'_>) -> Result<Project, ComposeErrors> {
    let sources = find(request)?;
    let dir = sources.dir.clone();
    let mut cx = Context::new(dir, request.dir.clone(), sources.env, request.read);
    sources.warnings.into_iter().for_each(|warning| cx.warn(warning));
    let project = read(&mut cx, request, sources.files);
    match (project, cx.refusals()) {
        (Some(mut project), None) => {
            (project.ignored, project.warnings) = cx.into_notes();
            Ok(project)
        }
        (_, Some(errors)) => Err(errors),
        (None, None) => Err(ComposeError::of_file("", "the project cannot be read").into()),
    }
}

/// `None` where what follows would make no sense; why has been kept.
fn read(
    cx: &mut Context<'_>,
    request: &LoadRequest<'_>,
    files: Vec<(PathBuf, Vec<u8>)>,
) -> Option<Project> {
    let mut nodes = Vec::new();
    for (path, content) in files {
        let many = |_| ComposeError::of_file("", "too many Compose files");
        let index = cx.keep(u16::try_from(cx.files.len()).map_err(many))?;
        let shown = cx.shown(&path);
        cx.files.push(shown.clone());
        nodes.extend(cx.keep(document(&shown, &content, index)));
    }
    cx.nothing_refused()?;
    let name = cx.keep(project::name(cx, request, &nodes))?;
    cx.env.insert("COMPOSE_PROJECT_NAME".into(), name.clone());
    for node in &mut nodes {
        interpolate(cx, node);
    }
    cx.nothing_refused()?;
    let mut merged: Option<Node> = None;
    for mut node in nodes {
        cx.keep(merge::canonicalise(cx, &mut node));
        match &mut merged {
            None => merged = Some(node),
            Some(base) => {
                cx.keep(merge::merge(cx, base, node));
            }
        }
    }
    cx.nothing_refused()?;
    let mut root = merged?;
    merge::prune(&mut root);
    cx.keep(project::read(&At::root(cx, &root), name, profiles(request, cx)))
}

fn profiles(request: &LoadRequest<'_>, cx: &Context<'_>) -> Vec<String> {
    if !request.profiles.is_empty() {
        return request.profiles.clone();
    }
    let named = cx.env.get("COMPOSE_PROFILES").map_or("", String::as_str);
    named.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

struct Sources {
    dir: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
    env: BTreeMap<String, String>,
    warnings: Vec<String>,
}

fn find(request: &LoadRequest<'_>) -> Result<Sources, ComposeError> {
    let mut files = Vec::new();
    if request.files.is_empty() {
        let (env, _) = environment(request, &request.dir)?;
        match env.get("COMPOSE_FILE").filter(|list| !list.is_empty()) {
            Some(list) => {
                let separator = env.get("COMPOSE_PATH_SEPARATOR").map_or(":", String::as_str);
                for name in list.split(separator).filter(|name| !name.is_empty()) {
                    files.push(named(request, &request.dir.join(name))?);
                }
            }
            None => files = discover(request)?,
        }
    } else {
        for path in &request.files {
            files.push(named(request, path)?);
        }
    }
    let first = files.first().and_then(|(path, _)| path.parent());
    let dir = clean(first.unwrap_or(&request.dir));
    let (env, warnings) = environment(request, &dir)?;
    Ok(Sources { dir, files, env, warnings })
}

fn shown(request: &LoadRequest<'_>, path: &Path) -> String {
    path.strip_prefix(&request.dir).unwrap_or(path).display().to_string()
}

fn named(request: &LoadRequest<'_>, path: &Path) -> Result<(PathBuf, Vec<u8>), ComposeError> {
    let path = clean(&request.dir.join(path));
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
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let what = format!("cannot be read: {error}");
            Err(ComposeError::of_file(shown(request, path), what))
        }
    }
}

fn discover(request: &LoadRequest<'_>) -> Result<Vec<(PathBuf, Vec<u8>)>, ComposeError> {
    for dir in request.dir.ancestors() {
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
    let what = format!("no compose.yaml in {} or above it", request.dir.display());
    Err(ComposeError::of_file("", what).with_hint("name it with -f; `kiln init` writes a new one"))
}

/// The process environment over `.env` of `dir`, and what is not set there.
fn environment(request: &LoadRequest<'_>, dir: &Path) -> Result<Environment, ComposeError> {
    let path = dir.join(".env");
    let mut env = BTreeMap::new();
    let mut warnings = Vec::new();
    if let Some(content) = optional(request, &path)? {
        let shown = shown(request, &path);
        let lookup = |name: &str| request.env.get(name).cloned();
        let file = dotenv::parse(&utf8(&shown, &content)?, &lookup)
            .map_err(|bad| bad_line(shown.clone(), bad))?;
        let unset = file.unset.iter();
        warnings.extend(unset.map(|(line, name)| unset_warning(&format!("{shown}:{line}"), name)));
        env = file.values;
    }
    env.extend(request.env.clone());
    Ok((env, warnings))
}

type Environment = (BTreeMap<String, String>, Vec<String>);

/// The warning for a variable that nobody sets.
pub(super) fn unset_warning(place: &str, name: &str) -> String {
    format!("{place}: the variable `{name}` is not set; it stands for nothing")
}

/// A bad line of a file of variables as an error.
pub(super) fn bad_line(file: String, bad: dotenv::BadLine) -> ComposeError {
    ComposeError { line: bad.line, column: 1, ..ComposeError::of_file(file, bad.what) }
        .with_hint(bad.hint)
}

/// `content` as text, or an error that names the line of the first broken byte.
pub(super) fn utf8(file: &str, content: &[u8]) -> Result<String, ComposeError> {
    String::from_utf8(content.to_vec()).map_err(|error| {
        let good = &content[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        ComposeError { line, column: 1, ..ComposeError::of_file(file, "is no UTF-8 text here") }
    })
}

fn document(shown: &str, content: &[u8], index: u16) -> Result<Node, ComposeError> {
    let text = utf8(shown, content)?;
    let node = yaml::parse(&text, index)
        .map_err(|error| ComposeError { file: shown.to_owned(), ..error })?;
    match node {
        Some(node) if matches!(node.value, Value::Map(_)) => Ok(node),
        Some(node) if !node.is_null() => {
            let (line, column) = (node.place.line, node.place.column);
            let error = ComposeError::of_file(shown, "is no map of Compose keys");
            Err(ComposeError { line, column, ..error }.with_hint("it begins with `services:`"))
        }
        _ => Err(ComposeError::of_file(shown, "is empty").with_hint("it begins with `services:`")),
    }
}

/// Interpolates all values; keys stay as they are, as do `x-` sections that nobody reads.
fn interpolate(cx: &Context<'_>, root: &mut Node) {
    let lookup = |name: &str| cx.env.get(name).cloned();
    let mut variables = Variables::new(&lookup);
    let Value::Map(map) = &mut root.value else { return };
    for (key, Entry { node, .. }) in map {
        if !key.starts_with("x-") || key == "x-kiln" {
            interpolate_node(cx, &mut variables, node, &mut vec![key.clone()]);
        }
    }
}

fn interpolate_node(
    cx: &Context<'_>,
    variables: &mut Variables<'_>,
    node: &mut Node,
    path: &mut Vec<String>,
) {
    match &mut node.value {
        Value::Scalar(scalar) => {
            let expanded = variables.interpolate(&scalar.text).map_err(|refusal| {
                let key = path.join(".").replace(".[", "[");
                cx.error(node.place, key, refusal.what).with_hint(refusal.hint)
            });
            if let Some(Some(text)) = cx.keep(expanded) {
                scalar.text = text;
                // What comes out of a variable is text, as in Compose, and never nothing; readers
                // of numbers and truth values look at the text anyway.
                scalar.plain = false;
                for name in std::mem::take(&mut variables.unset) {
                    let file = cx.files.get(usize::from(node.place.file));
                    let place = format!("{}:{}", file.map_or("", String::as_str), node.place.line);
                    cx.warn(unset_warning(&place, &name));
                }
            }
        }
        Value::List(list) => {
            for (at, item) in list.iter_mut().enumerate() {
                path.push(format!("[{at}]"));
                interpolate_node(cx, variables, item, path);
                path.pop();
            }
        }
        Value::Map(map) => {
            for (key, entry) in map {
                path.push(key.clone());
                interpolate_node(cx, variables, &mut entry.node, path);
                path.pop();
            }
        }
    }
}
