//! From a request to a project: find the files, put them together, then read the tree.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::assemble::{Assembly, documents, documents_if_any};
use super::configuration::{self, Configuration};
use super::dotenv;
use super::error::{ComposeError, ComposeErrors};
use super::find::{Found, content, find};
use super::interpolate::{self, Variable};
use super::model::{Project, Stage};
use super::reader::{At, Context};
use super::yaml::{Node, Value};
use super::{paths, project, stage};

/// The closure that stands for the file system: the whole content of the file at a path. `-` is
/// standard input.
pub type ReadFile<'r> = &'r dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// What to load, and from where.
pub struct LoadRequest<'r> {
    /// The files named with `-f`, in order; `-` is standard input. Empty: `COMPOSE_FILE`, else
    /// `compose.yaml` or one of its other names in `dir` or the nearest directory above, with its
    /// override file.
    pub files: Vec<PathBuf>,
    /// The working directory, absolute: where the search begins, and what names of files in
    /// messages are relative to.
    pub dir: PathBuf,
    /// The project's directory; `None`: that of the first file.
    pub project_dir: Option<PathBuf>,
    /// Files of variables instead of `.env`.
    pub env_files: Vec<PathBuf>,
    /// The environment of the process, for interpolation; it wins over `.env`.
    pub env: BTreeMap<String, String>,
    /// Profiles that are switched on; empty: those of `COMPOSE_PROFILES`. `*` is all of them.
    pub profiles: Vec<String>,
    /// Services that a command names: their profiles are on, as in Compose.
    pub named: Vec<String>,
    /// A name that wins over `COMPOSE_PROJECT_NAME` and `name`.
    pub project_name: Option<String>,
    /// Reads a file; a missing one is [`io::ErrorKind::NotFound`].
    pub read: ReadFile<'r>,
    /// The path of a directory without symbolic links, so that a project is the same one however
    /// its directory is reached; the path as it is where that cannot be told.
    pub real_dir: &'r dyn Fn(&Path) -> PathBuf,
}

impl std::fmt::Debug for LoadRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadRequest")
            .field("files", &self.files)
            .field("dir", &self.dir)
            .field("project_dir", &self.project_dir)
            .field("env_files", &self.env_files)
            .field("profiles", &self.profiles)
            .field("named", &self.named)
            .field("project_name", &self.project_name)
            .finish_non_exhaustive()
    }
}

/// Reads a project.
///
/// # Errors
/// All that is wrong, each with its place and what to do about it.
pub fn load(request: &LoadRequest<'_>) -> Result<Project, ComposeErrors> {
    let mut project = whole(request, &[], false, |_, project| project)?;
    let in_stages = in_stages(request, &project, false)?;
    // What their files make doubtful is said once.
    for there in in_stages.values() {
        let fresh = |text: &&String| !project.warnings.contains(text);
        let warnings: Vec<String> = there.warnings.iter().filter(fresh).cloned().collect();
        project.warnings.extend(warnings);
    }
    project.in_stages = in_stages;
    Ok(project)
}

/// The project with the files of each stage over it that has any.
fn in_stages(
    request: &LoadRequest<'_>,
    project: &Project,
    shown_only: bool,
) -> Result<BTreeMap<String, Project>, ComposeErrors> {
    let files = |(stage, settings): (&String, &Stage)| (stage.clone(), settings.files.clone());
    let stages = project.kiln.stages.iter().map(files).filter(|(_, files)| !files.is_empty());
    let read = stages.map(|(stage, files)| {
        let there = whole(request, &files, shown_only, |at, there| {
            stage::same_images(at, &stage, project, &there).map(|()| there)
        })??;
        Ok((stage, there))
    });
    read.collect()
}

/// Reads a project as [`load`] does, and gives what `docker compose config` would print: of
/// `services` and what they depend on, or of all when there are none. What would only fail when it
/// is run is a warning, as there.
///
/// # Errors
/// All that is wrong, as [`load`] has it, and services that are not there.
pub fn configuration(
    request: &LoadRequest<'_>,
    services: &[String],
) -> Result<Configuration, ComposeErrors> {
    let known = whole(request, &[], true, |at, project| {
        match services.iter().find(|name| !project.services.contains_key(*name)) {
            Some(unknown) => Err(unknown.clone()),
            None => {
                let mut root = at.node.clone();
                paths::make_absolute(at.cx, &mut root);
                let known = configuration::of(&At::root(at.cx, &root), &project, services);
                Ok((known, project))
            }
        }
    })?;
    let (known, project) = known.map_err(|name| {
        let what = format!("there is no service `{name}`, or it is switched off");
        let hint =
            "`kiln config --services` lists those that there are, and --profile switches more on";
        ComposeErrors::from(ComposeError::of_file("", what).with_hint(hint))
    })?;
    in_stages(request, &project, true)?;
    Ok(known)
}

/// The variables that the values of the project's files name, whether they are set or not.
///
/// # Errors
/// Files that cannot be read.
pub fn variables(request: &LoadRequest<'_>) -> Result<BTreeMap<String, Variable>, ComposeErrors> {
    fn add(node: &Node, all: &mut BTreeMap<String, Variable>) {
        match &node.value {
            Value::Scalar(scalar) => interpolate::names(&scalar.text, all),
            Value::List(list) => list.iter().for_each(|item| add(item, all)),
            Value::Map(map) => map.values().for_each(|entry| add(&entry.node, all)),
        }
    }
    let Found { dir, files, env, .. } = find(request)?;
    let cx = Context::new(dir, request, env, true);
    let mut all = BTreeMap::new();
    for (path, content) in files {
        documents_if_any(&cx, &path, &content)?.iter().for_each(|node| add(node, &mut all));
    }
    Ok(all)
}

/// Puts the project together, with `over` merged over its files, and hands `then` the tree and what
/// was read from it.
fn whole<T>(
    request: &LoadRequest<'_>,
    over: &[PathBuf],
    shown_only: bool,
    then: impl FnOnce(&At<'_>, Project) -> T,
) -> Result<T, ComposeErrors> {
    let Found { dir, mut files, env, warnings } = find(request)?;
    for path in over {
        files.push(content(request, path)?);
    }
    let mut cx = Context::new(dir, request, env, shown_only);
    warnings.into_iter().for_each(|warning| cx.warn(warning));
    let mut parsed = Vec::new();
    // Of several files some may have nothing in them.
    let several = files.len() > 1;
    for (path, content) in files {
        let nodes = match several {
            true => documents_if_any(&cx, &path, &content),
            false => documents(&cx, &path, &content),
        };
        parsed.extend(cx.keep(nodes).map(|nodes| (path, nodes)));
    }
    let name = match cx.nothing_refused() {
        Some(()) => cx.keep(project::name(&cx, request, parsed.iter().flat_map(|(_, node)| node))),
        None => None,
    };
    let root = name.as_ref().and_then(|name| {
        cx.env.insert("COMPOSE_PROJECT_NAME".into(), name.clone());
        let root = Assembly::of_project(&cx).put_together(parsed)?;
        cx.nothing_refused().map(|()| root)
    });
    let read = root.as_ref().zip(name).and_then(|(root, name)| {
        let at = At::root(&cx, root);
        let project = cx.keep(project::read(&at, name, profiles(request, &cx), &request.named))?;
        cx.nothing_refused()?;
        let (ignored, warnings) = cx.notes();
        Some(then(&at, Project { ignored, warnings, ..project }))
    });
    match (read, cx.refusals()) {
        (_, Some(errors)) => Err(errors),
        (Some(read), None) => Ok(read),
        (None, None) => Err(ComposeError::of_file("", "the project is empty")
            .with_hint("it begins with `services:`")
            .into()),
    }
}

/// Where none is named, the empty one is on.
fn profiles(request: &LoadRequest<'_>, cx: &Context<'_>) -> Vec<String> {
    if !request.profiles.is_empty() {
        return request.profiles.clone();
    }
    let named = cx.env.get("COMPOSE_PROFILES").map_or("", String::as_str);
    named.split(',').map(str::trim).map(str::to_owned).collect()
}

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
