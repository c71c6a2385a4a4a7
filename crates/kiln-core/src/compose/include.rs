//! `include`: projects of their own, with their own folder and variables, whose services and other
//! sections become part of this one.

use std::path::{Path, PathBuf};

use super::assemble::{Assembly, child, children, documents_if_any, take, text};
use super::error::ComposeError;
use super::find::{Variables, is_stdin};
use super::paths::{absolute, relative};
use super::reader::clean;
use super::yaml::{Entry, Map, Node, Value};
use super::{dotenv, load};

/// What is taken over from an included project.
const SECTIONS: [&str; 6] = ["services", "volumes", "networks", "secrets", "configs", "models"];

/// How deep projects may be within one another.
const MAX_WITHIN: usize = 32;

/// Follows `include` of `root`, a document of the file at `path`.
pub(super) fn follow(assembly: &Assembly<'_, '_>, path: &Path, root: &mut Node) {
    let cx = assembly.cx;
    let Some(Entry { key_place, node }) = take(root, "include") else { return };
    let items = match node.value {
        Value::List(items) => items,
        _ if node.is_null() => return,
        _ => {
            let error = cx.error(key_place, "include".into(), "expected a list");
            cx.refuse(error.with_hint("write `include: [FILE]`"));
            return;
        }
    };
    for (at, item) in items.iter().enumerate() {
        let key = format!("include[{at}]");
        let read = one(assembly, path, item, &key);
        // What is wrong in the files has been kept already.
        if let Some(Some(included)) = cx.keep(read) {
            let error = |what: String| cx.error(item.place, key.clone(), what);
            cx.keep(take_over(root, included, &error));
        }
    }
}

/// One entry.
#[derive(Default)]
struct Wish {
    paths: Vec<String>,
    project_directory: Option<String>,
    env_file: Vec<String>,
}

fn one(
    assembly: &Assembly<'_, '_>,
    from: &Path,
    item: &Node,
    key: &str,
) -> Result<Option<Node>, ComposeError> {
    let cx = assembly.cx;
    let error = |what: String| cx.error(item.place, key.to_owned(), what);
    let wish = wish(item).map_err(|odd| match odd {
        Some(odd) => error(format!("the key `{odd}` is unknown"))
            .with_hint("`path`, `project_directory` and `env_file` are known"),
        None => error("`path` is missing".into()).with_hint("write the name of a file"),
    })?;
    let paths: Vec<PathBuf> =
        wish.paths.iter().map(|path| absolute(cx, &assembly.dir, path)).collect();
    let mut within = assembly.within.clone();
    within.push(from.to_owned());
    if within.len() > MAX_WITHIN {
        return Err(error(format!("more than {MAX_WITHIN} files include one another")));
    }
    if let Some(again) = paths.iter().find(|path| within.contains(path)) {
        let what = format!("{} is included within itself", cx.shown(again));
        return Err(error(what).with_hint("take one of these `include`s away"));
    }
    let dir = match &wish.project_directory {
        Some(dir) => absolute(cx, &assembly.dir, dir),
        None => paths[0].parent().map_or_else(|| assembly.dir.clone(), clean),
    };
    let mut files = Vec::new();
    for path in paths {
        let content = read(assembly, &path, &error)?;
        files.push((path.clone(), documents_if_any(cx, &path, &content)?));
    }
    let env = variables(assembly, &wish, &dir, &error)?;
    let inner = Assembly { cx, env, dir, to: assembly.dir.clone(), within };
    let mut included = inner.put_together(files);
    for (_, service) in included.iter_mut().flat_map(|root| children(root, "services")) {
        fill_in(service, &inner.env);
        // A build that does not say from where is from the included project's own folder.
        if let Some(Node { place, value: Value::Map(map), .. }) = child(service, "build") {
            let node = || Node::scalar(relative(&inner.dir, &inner.to), *place);
            map.entry("context".into())
                .or_insert_with(|| Entry { key_place: *place, node: node() });
        }
    }
    Ok(included)
}

/// `Err` has a key that is unknown; none: there is no path.
fn wish(item: &Node) -> Result<Wish, Option<String>> {
    let mut wish = Wish::default();
    match &item.value {
        Value::Map(map) => {
            for (key, Entry { node, .. }) in map {
                match key.as_str() {
                    "path" => wish.paths = texts(node),
                    "project_directory" => {
                        wish.project_directory = text(node).map(str::to_owned);
                    }
                    "env_file" => wish.env_file = texts(node),
                    odd if odd.starts_with("x-") => {}
                    odd => return Err(Some(odd.to_owned())),
                }
            }
        }
        _ => wish.paths = texts(item),
    }
    if wish.paths.is_empty() { Err(None) } else { Ok(wish) }
}

fn texts(node: &Node) -> Vec<String> {
    match &node.value {
        Value::List(list) => list.iter().filter_map(text).map(str::to_owned).collect(),
        _ => text(node).map(str::to_owned).into_iter().collect(),
    }
}

fn read(
    assembly: &Assembly<'_, '_>,
    path: &Path,
    error: &dyn Fn(String) -> ComposeError,
) -> Result<Vec<u8>, ComposeError> {
    let cx = assembly.cx;
    if is_stdin(path) {
        return Err(error("standard input cannot be included".into()));
    }
    (cx.read)(path).map_err(|cause| {
        error(format!("the file {} cannot be read: {cause}", cx.shown(path))).with_hint(
            "a path is relative to the folder of the project; what lies elsewhere is checked out first",
        )
    })
}

/// The variables of what includes, and where it has none those of `env_file`, else of `.env`
/// beside the included file.
fn variables(
    assembly: &Assembly<'_, '_>,
    wish: &Wish,
    dir: &Path,
    error: &dyn Fn(String) -> ComposeError,
) -> Result<Variables, ComposeError> {
    let cx = assembly.cx;
    let mut env = assembly.env.clone();
    let mut contents = Vec::new();
    for file in &wish.env_file {
        let path = absolute(cx, &assembly.dir, file);
        contents.push((cx.shown(&path), read(assembly, &path, error)?));
    }
    if wish.env_file.is_empty() {
        let path = dir.join(".env");
        contents.extend((cx.read)(&path).ok().map(|content| (cx.shown(&path), content)));
    }
    let mut values = Variables::new();
    for (shown, content) in contents {
        let text = load::utf8(&shown, &content)?;
        let lookup = |name: &str| env.get(name).cloned();
        let file = dotenv::parse(&text, &lookup, &values)
            .map_err(|bad| load::bad_line(shown.clone(), bad))?;
        values.extend(file.values);
    }
    for (name, value) in values {
        env.entry(name).or_insert(value);
    }
    Ok(env)
}

/// Variables of a service without a value take that of the included project.
fn fill_in(service: &mut Node, env: &Variables) {
    let Some(Value::Map(map)) = child(service, "environment").map(|node| &mut node.value) else {
        return;
    };
    for (name, Entry { node, .. }) in map {
        if node.is_null()
            && let Some(value) = env.get(name)
        {
            *node = Node::scalar(value.as_str(), node.place);
        }
    }
}

/// What stands in both has to be the same.
fn take_over(
    root: &mut Node,
    mut included: Node,
    error: &dyn Fn(String) -> ComposeError,
) -> Result<(), ComposeError> {
    let bases = child(&mut included, "x-kiln").and_then(|kiln| take(kiln, "bases"));
    for section in SECTIONS {
        if let Some(Entry { key_place, node }) = take(&mut included, section)
            && let Value::Map(from) = node.value
        {
            let empty = || Entry { key_place, node: Node::map(Map::new(), key_place) };
            add(section_of(root, section, empty), from, section, error)?;
        }
    }
    if let Some(Entry { key_place, node }) = bases
        && let Value::Map(from) = node.value
    {
        let empty = || Entry { key_place, node: Node::map(Map::new(), key_place) };
        if section_of(root, "x-kiln", empty).is_some()
            && let Some(kiln) = child(root, "x-kiln")
        {
            add(section_of(kiln, "bases", empty), from, "x-kiln.bases", error)?;
        }
    }
    Ok(())
}

/// The map under `key`, made if there is none.
fn section_of<'n>(node: &'n mut Node, key: &str, empty: impl Fn() -> Entry) -> Option<&'n mut Map> {
    let Value::Map(map) = &mut node.value else { return None };
    let entry = map.entry(key.to_owned()).or_insert_with(&empty);
    if entry.node.is_null() {
        *entry = empty();
    }
    match &mut entry.node.value {
        Value::Map(map) => Some(map),
        Value::List(_) | Value::Scalar(_) => None,
    }
}

fn add(
    into: Option<&mut Map>,
    from: Map,
    section: &str,
    error: &dyn Fn(String) -> ComposeError,
) -> Result<(), ComposeError> {
    let Some(into) = into else { return Ok(()) };
    for (name, entry) in from {
        match into.get(&name) {
            Some(there) if !there.node.says_the_same(&entry.node) => {
                return Err(error(format!("`{section}.{name}` is there already, and differs"))
                    .with_hint("rename one of the two, or merge the file with -f"));
            }
            Some(_) => {}
            None => {
                into.insert(name, entry);
            }
        }
    }
    Ok(())
}
