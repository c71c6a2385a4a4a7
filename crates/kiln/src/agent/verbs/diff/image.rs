//! Two images: packages, files and configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_core::tree::{Node, Tree};
use kiln_core::tree_diff::{self, Aspect, Change, Difference};
use kiln_core::{Digest, ImageId};
use serde_json::{Map, Value, json};
use similar::TextDiff;

use super::packages::Packages;
use super::values;
use crate::agent::Agent;
use crate::report::{Because, Report};

/// Larger files are not compared as text.
const LARGEST_TEXT: u64 = 256 << 10;
/// So many lines of a text's difference are told.
const MOST_LINES: usize = 200;

/// One image; the configuration of a bare tree is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Image {
    /// The tree digest.
    pub tree: Digest,
    /// The config digest.
    pub config: Option<Digest>,
}

impl From<ImageId> for Image {
    fn from(id: ImageId) -> Self {
        Self { tree: id.tree, config: Some(id.config) }
    }
}

/// How to compare.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options<'a> {
    /// Whose store it is.
    pub agent: &'a Agent,
    /// Compare small texts line by line.
    pub text: bool,
}

/// Compares two images; the document's keys `packages`, `files` and `config`.
pub(super) fn diff(
    options: &Options<'_>,
    old: Option<&Image>,
    new: Option<&Image>,
) -> Result<Value, Report> {
    let store = &options.agent.store;
    let tree = |image: Option<&Image>| match image {
        Some(image) => store
            .get_tree(&image.tree)
            .because(|| format!("reading the tree {}", image.tree.short())),
        None => Ok(Arc::new(Tree::default())),
    };
    let (before, after) = (tree(old)?, tree(new)?);
    let packages = Packages::of(store, &before, &after);
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut files = Vec::new();
    for difference in tree_diff::diff(&before, &after) {
        let owner = packages.owner(difference.path);
        if let Some(owner) = owner {
            *counts.entry(owner).or_default() += 1;
        }
        files.push(file(options, &before, &after, &difference, owner));
    }
    let packages: Vec<Value> = packages
        .changed
        .iter()
        .map(|package| {
            json!({
                "name": package.name,
                "architecture": package.architecture,
                "change": package.change(),
                "old": package.old,
                "new": package.new,
                "files": counts.get(package.name.as_str()).copied().unwrap_or(0),
            })
        })
        .collect();
    let mut document = json!({
        "tree": { "old": old.map(|image| image.tree), "new": new.map(|image| image.tree) },
        "packages": packages,
        "files": files,
    });
    // Of a bare tree no configuration is known, so none is compared.
    if let (Some(old), Some(new)) =
        (old.and_then(|image| image.config), new.and_then(|image| image.config))
    {
        document["config"] = json!(values::diff(&config(store, &old)?, &config(store, &new)?));
    }
    Ok(document)
}

/// Whether [`diff`] found nothing.
pub(super) fn is_empty(document: &Value) -> bool {
    let empty = |key: &str| document[key].as_array().is_none_or(Vec::is_empty);
    empty("packages") && empty("files") && empty("config")
}

/// The configuration as JSON in which lists of named things are maps.
fn config(store: &kiln_store::Store, digest: &Digest) -> Result<Value, Report> {
    let doing = || format!("reading the configuration {}", digest.short());
    let config = store.get_config(digest).because(doing)?;
    let mut value = serde_json::to_value(&config).because(doing)?;
    values::name_pairs(&mut value["Env"]);
    for key in ["ExposedPorts", "Volumes"] {
        values::name_items(&mut value[key]);
    }
    Ok(value)
}

fn file(
    options: &Options<'_>,
    old: &Tree,
    new: &Tree,
    difference: &Difference<'_>,
    owner: Option<&str>,
) -> Value {
    let mut entry = Map::new();
    entry.insert("path".into(), json!(String::from_utf8_lossy(difference.path)));
    if std::str::from_utf8(difference.path).is_err() {
        let hex: String = difference.path.iter().map(|byte| format!("{byte:02x}")).collect();
        entry.insert("path_hex".into(), json!(hex));
    }
    let mut say = |key: &str, value: Value| entry.insert(key.into(), value);
    let alone = |tree: &Tree, node: &Node| {
        let mut all = json!({ "type": tree_diff::type_name(node), "mode": format!("{:04o}", node.mode),
            "uid": node.uid, "gid": node.gid });
        for (key, aspect) in [("content", Aspect::Content), ("target", Aspect::Target)] {
            let value = aspect.value(tree, node);
            if !value.is_empty() {
                all[key] = json!(value);
            }
        }
        all
    };
    let size = |tree: &Tree, node: &Node| tree_diff::content(tree, node).map(|(size, _)| size);
    match &difference.change {
        Change::Added(node) => {
            say("change", json!("added"));
            say("type", json!(tree_diff::type_name(node)));
            say("size", json!({ "new": size(new, node) }));
            say("new", alone(new, node));
        }
        Change::Removed(node) => {
            say("change", json!("removed"));
            say("type", json!(tree_diff::type_name(node)));
            say("size", json!({ "old": size(old, node) }));
            say("old", alone(old, node));
        }
        Change::Changed { old: before, new: after, aspects } => {
            say("change", json!("changed"));
            say("type", json!(tree_diff::type_name(after)));
            say("size", json!({ "old": size(old, before), "new": size(new, after) }));
            let aspects: Map<_, _> = aspects
                .iter()
                .map(|aspect| {
                    let (a, b) = (aspect.value(old, before), aspect.value(new, after));
                    (aspect.word().to_owned(), json!({ "old": a, "new": b }))
                })
                .collect();
            let texts = tree_diff::content(old, before).zip(tree_diff::content(new, after));
            if let Some(((_, a), (_, b))) = texts.filter(|_| aspects.contains_key("content"))
                && let Some(text) = options.text_diff(&a, &b)
            {
                say("text", json!(text));
            }
            say("aspects", aspects.into());
        }
    }
    if let Some(owner) = owner {
        say("package", json!(owner));
    }
    entry.into()
}

impl Options<'_> {
    /// The lines of a unified difference of two contents, if that was asked for and both are small
    /// texts.
    pub(super) fn text_diff(&self, old: &Digest, new: &Digest) -> Option<Vec<String>> {
        let read = |digest: &Digest| {
            let store = &self.agent.store;
            let size = store.object_size(digest).ok()??;
            let bytes = (size <= LARGEST_TEXT).then(|| store.get(digest).ok())??;
            String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
        };
        if !self.text {
            return None;
        }
        let (old, new) = (read(old)?, read(new)?);
        let diff = TextDiff::from_lines(&old, &new);
        let unified = diff.unified_diff().context_radius(2).to_string();
        let mut lines: Vec<String> = unified.lines().take(MOST_LINES).map(str::to_owned).collect();
        if unified.lines().nth(MOST_LINES).is_some() {
            lines.push("…".into());
        }
        Some(lines)
    }
}
