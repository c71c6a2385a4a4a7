//! `extends`: a service that begins as another one, of the same file or of another.

use std::path::{Path, PathBuf};

use super::assemble::{Assembly, documents, take, text};
use super::error::ComposeError;
use super::yaml::{Entry, Map, Node, Value};
use super::{merge, paths, unique};

/// A service on the way to the one that begins it all: its file and its name.
type Step = (PathBuf, String);

/// How long a way may be.
const MAX_WAY: usize = 64;

/// Follows every `extends` of `root`, a document of the file at `path`.
pub(super) fn follow(assembly: &Assembly<'_, '_>, path: &Path, root: &mut Node) {
    let Value::Map(map) = &mut root.value else { return };
    let Some(Value::Map(services)) = map.get_mut("services").map(|entry| &mut entry.node.value)
    else {
        return;
    };
    let here = Here { assembly, path, dir: &assembly.dir };
    for name in services.keys().cloned().collect::<Vec<_>>() {
        let done = here.whole(services, &name, &mut Vec::new());
        assembly.cx.keep(done);
    }
}

/// A file whose services are looked at.
struct Here<'h, 'c, 'r> {
    assembly: &'h Assembly<'c, 'r>,
    path: &'h Path,
    /// What names of files in it are relative to by now.
    dir: &'h Path,
}

impl Here<'_, '_, '_> {
    /// Makes the service `name` whole: what it extends, with its own keys merged over.
    fn whole(
        &self,
        services: &mut Map,
        name: &str,
        way: &mut Vec<Step>,
    ) -> Result<(), ComposeError> {
        let cx = self.assembly.cx;
        let Some(entry) = services.get_mut(name) else { return Ok(()) };
        let Some(Entry { key_place, node }) = take(&mut entry.node, "extends") else {
            return Ok(());
        };
        let key = format!("services.{name}.extends");
        let error = |what: String| cx.error(key_place, key.clone(), what);
        if way.len() == MAX_WAY {
            return Err(error(format!("more than {MAX_WAY} services extend one another")));
        }
        way.push((self.path.to_owned(), name.to_owned()));
        let (file, of) = wanted(&node);
        let Some(of) = of else {
            return Err(error("`service` is missing".into()).with_hint("write `service: NAME`"));
        };
        let base = match file {
            Some(file) => self.of_file(file, of, way, &error)?,
            None => {
                not_again(way, self.path, of).map_err(&error)?;
                self.whole(services, of, way)?;
                services.get(of).map(|entry| entry.node.clone())
            }
        };
        way.pop();
        let Some(base) = base else {
            let known = services.keys().map(String::as_str);
            return Err(error(format!("there is no service `{of}`")).with_closest(of, known));
        };
        cx.count(base.weight())?;
        let Some(entry) = services.get_mut(name) else { return Ok(()) };
        let own = entry.node.clone();
        entry.node = merge::service(cx, name, base, own)?;
        Ok(())
    }

    /// The service `of` of another file, made whole there, its paths as from here.
    fn of_file(
        &self,
        file: &str,
        of: &str,
        way: &mut Vec<Step>,
        error: &dyn Fn(String) -> ComposeError,
    ) -> Result<Option<Node>, ComposeError> {
        let cx = self.assembly.cx;
        let path = paths::absolute(cx, self.dir, file);
        let content = (cx.read)(&path).map_err(|cause| {
            error(format!("the file {} cannot be read: {cause}", cx.shown(&path))).with_hint(
                "`file` is relative to the folder of the project, or of the file it stands in",
            )
        })?;
        let mut merged: Option<Node> = None;
        for mut node in documents(cx, &path, &content)? {
            self.assembly.interpolate(&mut node);
            merge::canonicalise(cx, &mut node)?;
            merged = Some(match merged {
                None => node,
                Some(base) => merge::merge(cx, base, node)?,
            });
        }
        let Some(mut root) = merged else { return Ok(None) };
        unique::make(&mut root);
        let dir = path.parent().unwrap_or(&path);
        paths::relocate(cx, &mut root, dir, self.dir);
        let Value::Map(map) = &mut root.value else { return Ok(None) };
        let Some(Value::Map(services)) = map.get_mut("services").map(|entry| &mut entry.node.value)
        else {
            return Ok(None);
        };
        if !services.contains_key(of) {
            let known = services.keys().map(String::as_str);
            let what = format!("there is no service `{of}` in {}", cx.shown(&path));
            return Err(error(what).with_closest(of, known));
        }
        not_again(way, &path, of).map_err(error)?;
        let there = Here { assembly: self.assembly, path: &path, dir: self.dir };
        there.whole(services, of, way)?;
        Ok(services.remove(of).map(|entry| entry.node))
    }
}

/// Whether `of` is on the way already.
fn not_again(way: &[Step], path: &Path, of: &str) -> Result<(), String> {
    if !way.iter().any(|(file, name)| file == path && name == of) {
        return Ok(());
    }
    let names: Vec<&str> = way.iter().map(|(_, name)| name.as_str()).collect();
    Err(format!("the services extend each other in a loop: {} → {of}", names.join(" → ")))
}

/// The file and the service that are named.
fn wanted(node: &Node) -> (Option<&str>, Option<&str>) {
    match &node.value {
        Value::Map(map) => {
            let named = |key: &str| map.get(key).and_then(|entry| text(&entry.node));
            (named("file"), named("service"))
        }
        _ => (None, text(node)),
    }
}
