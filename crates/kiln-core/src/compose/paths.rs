//! Paths of a tree that are relative to one folder written relative to another, so that trees of
//! several folders can be put together. They stay relative: a release names them so.

use std::path::{Path, PathBuf};

use super::assemble::{child, children};
use super::reader::{Context, clean};
use super::yaml::{Node, Value};

/// `text` as an absolute path, from `dir`, `~` expanded.
pub(super) fn absolute(cx: &Context<'_>, dir: &Path, text: &str) -> PathBuf {
    let home = || cx.env.get("HOME").map_or("/root", String::as_str);
    let path = match text.strip_prefix('~') {
        Some("") => PathBuf::from(home()),
        Some(rest) if rest.starts_with('/') => PathBuf::from(format!("{}{rest}", home())),
        _ => dir.join(text),
    };
    clean(&path)
}

/// Writes all paths of `root` that are relative to `from` relative to `to`.
pub(super) fn relocate(cx: &Context<'_>, root: &mut Node, from: &Path, to: &Path) {
    if from != to {
        all(&Move { cx, from, to: Some(to) }, root);
    }
}

/// Makes all paths of `root`, which are relative to the project's directory, absolute.
pub(super) fn make_absolute(cx: &Context<'_>, root: &mut Node) {
    all(&Move { cx, from: &cx.dir, to: None }, root);
}

fn all(at: &Move<'_, '_>, root: &mut Node) {
    for (_, service) in children(root, "services") {
        if let Some(build) = child(service, "build") {
            at.path(child(build, "context"), is_elsewhere);
            for (_, context) in children(build, "additional_contexts") {
                at.path(Some(context), is_elsewhere);
            }
            for (_, socket) in children(build, "ssh") {
                at.path(Some(socket), |_| false);
            }
        }
        for key in ["env_file", "label_file"] {
            for item in items(child(service, key)) {
                match child(item, "path").is_some() {
                    true => at.path(child(item, "path"), |_| false),
                    false => at.path(Some(item), |_| false),
                }
            }
        }
        if let Some(extends) = child(service, "extends") {
            at.path(child(extends, "file"), |_| false);
        }
        if let Some(develop) = child(service, "develop") {
            for item in items(child(develop, "watch")) {
                at.path(child(item, "path"), |_| false);
            }
        }
        for item in items(child(service, "volumes")) {
            at.mount(item);
        }
    }
    for section in ["configs", "secrets"] {
        for (_, entry) in children(root, section) {
            at.path(child(entry, "file"), |_| false);
        }
    }
    for (_, volume) in children(root, "volumes") {
        at.bound_volume(volume);
    }
}

/// The absolute `path` as seen from the folder `from`; it begins with a dot.
pub(super) fn relative(path: &Path, from: &Path) -> String {
    let shared = path.components().zip(from.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().count() - shared;
    let mut out = PathBuf::from(if up == 0 { "." } else { ".." });
    out.extend((1..up).map(|_| ".."));
    out.extend(path.components().skip(shared));
    out.display().to_string()
}

/// Whether a build's context is no folder of this machine.
pub(super) fn is_elsewhere(text: &str) -> bool {
    text.contains("://")
        || ["service:", "git@", "github.com/"].iter().any(|prefix| text.starts_with(prefix))
}

/// Whether the source of a mount is a path and no name.
pub(super) fn is_path(source: &str) -> bool {
    source.starts_with(['.', '/', '~'])
}

fn items(node: Option<&mut Node>) -> impl Iterator<Item = &mut Node> {
    let list = node.and_then(|node| match &mut node.value {
        Value::List(list) => Some(list),
        Value::Map(_) | Value::Scalar(_) => None,
    });
    list.into_iter().flatten()
}

struct Move<'a, 'r> {
    cx: &'a Context<'r>,
    from: &'a Path,
    /// `None`: paths become absolute.
    to: Option<&'a Path>,
}

impl Move<'_, '_> {
    fn path(&self, node: Option<&mut Node>, elsewhere: impl Fn(&str) -> bool) {
        let Some(node) = node.filter(|node| !node.is_null()) else { return };
        let Value::Scalar(scalar) = &mut node.value else { return };
        if !scalar.text.is_empty() && !elsewhere(&scalar.text) {
            scalar.text = self.text(&scalar.text);
            scalar.plain = false;
        }
    }

    /// An empty one is the folder itself.
    fn folder(&self, node: &mut Node) {
        match &mut node.value {
            Value::Scalar(scalar) if scalar.text.is_empty() && !scalar.plain => {
                scalar.text = self.text(".");
            }
            _ => self.path(Some(node), |_| false),
        }
    }

    fn text(&self, text: &str) -> String {
        match self.to {
            Some(_) if text.starts_with(['/', '~']) => text.to_owned(),
            Some(to) => relative(&absolute(self.cx, self.from, text), to),
            None if text.starts_with('/') => text.to_owned(),
            None => absolute(self.cx, self.from, text).display().to_string(),
        }
    }

    /// A bind mount, in its short or long form.
    fn mount(&self, node: &mut Node) {
        match &mut node.value {
            Value::Scalar(scalar) if is_path(&scalar.text) => {
                if let Some((source, rest)) = scalar.text.split_once(':') {
                    scalar.text = format!("{}:{rest}", self.text(source));
                }
            }
            Value::Map(map) => {
                let is_bind = map.get("type").is_some_and(
                    |entry| matches!(&entry.node.value, Value::Scalar(kind) if kind.text == "bind"),
                );
                if is_bind && let Some(source) = child(node, "source") {
                    self.folder(source);
                }
            }
            _ => {}
        }
    }

    /// A volume of the driver `local` that is a bind mount of a folder.
    fn bound_volume(&self, volume: &mut Node) {
        let is = |node: Option<&mut Node>, wanted: &str| {
            node.is_some_and(
                |node| matches!(&node.value, Value::Scalar(scalar) if scalar.text == wanted),
            )
        };
        if !is(child(volume, "driver"), "local") {
            return;
        }
        if let Some(options) = child(volume, "driver_opts")
            && is(child(options, "o"), "bind")
        {
            child(options, "device").into_iter().for_each(|device| self.folder(device));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_seen_from_elsewhere() {
        for (path, from, expected) in [
            ("/w/shop/sub/x", "/w/shop", "./sub/x"),
            ("/w/x", "/w/shop", "../x"),
            ("/w/shop", "/w/shop", "."),
            ("/x", "/w/shop", "../../x"),
            ("/w/shop", "/w/shop/sub/er", "../.."),
            ("/", "/w", ".."),
        ] {
            assert_eq!(relative(Path::new(path), Path::new(from)), expected, "{path} {from}");
            assert_eq!(clean(&Path::new(from).join(expected)), Path::new(path));
        }
    }
}
