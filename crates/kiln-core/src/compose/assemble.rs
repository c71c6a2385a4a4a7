//! Files → one tree: documents read, variables replaced, `extends` and `include` followed, all of
//! it merged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::error::ComposeError;
use super::find::Variables as Values;
use super::interpolate::Variables;
use super::load::{unset_warning, utf8};
use super::reader::Context;
use super::yaml::{self, Entry, Mark, Node, Value};
use super::{extends, include, merge, paths, unique};

/// How many files a project may have, all that are extended and included counted.
const MAX_FILES: u16 = 1000;

/// One set of files that are merged over one another: the project's own, or those of one entry of
/// `include`.
pub(super) struct Assembly<'c, 'r> {
    pub(super) cx: &'c Context<'r>,
    /// Variables of these files.
    pub(super) env: Values,
    /// What their relative paths are relative to.
    pub(super) dir: PathBuf,
    /// What those of the tree are relative to: the folder of what includes them.
    pub(super) to: PathBuf,
    /// The files whose `include` led here.
    pub(super) within: Vec<PathBuf>,
}

impl<'c, 'r> Assembly<'c, 'r> {
    /// The project's own files.
    pub(super) fn of_project(cx: &'c Context<'r>) -> Self {
        let (dir, to) = (cx.dir.clone(), cx.dir.clone());
        Self { cx, env: cx.env.clone(), dir, to, within: Vec::new() }
    }

    /// One tree, its paths relative to `to`. `None`: nothing is left, or why has been kept.
    pub(super) fn put_together(&self, files: Vec<(PathBuf, Vec<Node>)>) -> Option<Node> {
        let mut merged: Option<Node> = None;
        for (path, documents) in files {
            for node in documents {
                let node = self.document(&path, node)?;
                merged = Some(match merged {
                    None => node,
                    Some(base) => self.cx.keep(merge::merge(self.cx, base, node))?,
                });
                unique::make(merged.as_mut()?);
            }
        }
        let mut root = merged?;
        merge::prune(&mut root);
        paths::relocate(self.cx, &mut root, &self.dir, &self.to);
        Some(root)
    }

    fn document(&self, path: &Path, mut node: Node) -> Option<Node> {
        self.interpolate(&mut node);
        self.cx.nothing_refused()?;
        self.cx.keep(merge::canonicalise(self.cx, &mut node));
        extends::follow(self, path, &mut node);
        include::follow(self, path, &mut node);
        self.cx.nothing_refused()?;
        Some(node)
    }

    /// Replaces variables in all values; keys stay as they are.
    pub(super) fn interpolate(&self, root: &mut Node) {
        let lookup = |name: &str| self.env.get(name).cloned();
        let mut variables = Variables::new(&lookup);
        interpolate(self.cx, &mut variables, root, &mut Vec::new());
    }
}

/// The documents of a file, whose name is known from here on. There is one at least.
pub(super) fn documents(
    cx: &Context<'_>,
    path: &Path,
    content: &[u8],
) -> Result<Vec<Node>, ComposeError> {
    let documents = documents_if_any(cx, path, content)?;
    if documents.is_empty() {
        let error = ComposeError::of_file(cx.shown(path), "is empty");
        return Err(error.with_hint("it begins with `services:`"));
    }
    Ok(documents)
}

/// The documents of a file, in which nothing may stand.
pub(super) fn documents_if_any(
    cx: &Context<'_>,
    path: &Path,
    content: &[u8],
) -> Result<Vec<Node>, ComposeError> {
    let shown = cx.shown(path);
    let index = cx.add_file(&shown);
    if index >= MAX_FILES {
        let what = format!("the project has more than {MAX_FILES} files");
        return Err(ComposeError::of_file(shown, what));
    }
    let text = utf8(&shown, content)?;
    let documents =
        yaml::parse(&text, index).map_err(|error| ComposeError { file: shown.clone(), ..error })?;
    if let Some(odd) = documents.iter().find(|node| !matches!(node.value, Value::Map(_))) {
        let error = cx.error(odd.place, String::new(), "is no map of Compose keys");
        return Err(error.with_hint("it begins with `services:`"));
    }
    cx.count(documents.iter().map(Node::weight).sum())?;
    Ok(documents)
}

fn interpolate(
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
            let Some(Some(text)) = cx.keep(expanded) else { return };
            scalar.text = text;
            // What comes out of a variable is text, as in Compose, and never nothing; readers of
            // numbers and truth values look at the text anyway.
            scalar.plain = false;
            let unset: BTreeSet<String> = std::mem::take(&mut variables.unset);
            for name in unset {
                cx.warn(unset_warning(&cx.line_of(node.place), &name));
            }
        }
        Value::List(list) => {
            for (at, item) in list.iter_mut().enumerate() {
                path.push(format!("[{at}]"));
                interpolate(cx, variables, item, path);
                path.pop();
            }
        }
        Value::Map(map) => {
            for (key, entry) in map {
                path.push(key.clone());
                interpolate(cx, variables, &mut entry.node, path);
                path.pop();
            }
        }
    }
}

/// The value of `key`, if `node` is a map that has it.
pub(super) fn child<'n>(node: &'n mut Node, key: &str) -> Option<&'n mut Node> {
    let Value::Map(map) = &mut node.value else { return None };
    map.get_mut(key).map(|entry| &mut entry.node)
}

/// The entries of the map under `key`.
pub(super) fn children<'n>(
    node: &'n mut Node,
    key: &str,
) -> impl Iterator<Item = (&'n String, &'n mut Node)> {
    let map = child(node, key).and_then(|node| match &mut node.value {
        Value::Map(map) => Some(map),
        Value::List(_) | Value::Scalar(_) => None,
    });
    map.into_iter().flatten().map(|(key, entry)| (key, &mut entry.node))
}

/// Takes the value of `key` out of a map.
pub(super) fn take(node: &mut Node, key: &str) -> Option<Entry> {
    let Value::Map(map) = &mut node.value else { return None };
    let entry = map.remove(key)?;
    (entry.node.mark != Mark::Reset).then_some(entry)
}

/// The text of a scalar that says something.
pub(super) fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(scalar) if !node.is_null() && !scalar.text.is_empty() => Some(&scalar.text),
        _ => None,
    }
}
