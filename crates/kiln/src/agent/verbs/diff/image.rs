//! Two images: packages, files and configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_core::tree::{Node, Tree};
use kiln_core::tree_diff::{self, Aspect, Change, Difference};
use kiln_core::{Digest, ImageId};
use serde_json::Value;
use similar::TextDiff;

use super::packages::Packages;
use super::values;
use crate::agent::Agent;
use crate::answers::differing::{
    Both, Entry, File, FileChange, ImageDiff, NewSize, OldSize, Package,
};
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

/// Compares two images.
pub(super) fn diff(
    options: &Options<'_>,
    old: Option<&Image>,
    new: Option<&Image>,
) -> Result<ImageDiff, Report> {
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
    let changed = packages.changed.iter().map(|package| Package {
        name: package.name.clone(),
        architecture: package.architecture.clone(),
        change: package.change().to_owned(),
        old: package.old.clone(),
        new: package.new.clone(),
        files: counts.get(package.name.as_str()).copied().unwrap_or(0),
    });
    // Of a bare tree no configuration is known, so none is compared.
    let configs = old.and_then(|image| image.config).zip(new.and_then(|image| image.config));
    let config = match configs {
        Some((old, new)) => Some(values::diff(&config(store, &old)?, &config(store, &new)?)),
        None => None,
    };
    let tree = Both { old: old.map(|image| image.tree), new: new.map(|image| image.tree) };
    Ok(ImageDiff { tree, packages: changed.collect(), files, config, times: None })
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
) -> File {
    let alone = |tree: &Tree, node: &Node| {
        let value = |aspect: Aspect| Some(aspect.value(tree, node)).filter(|it| !it.is_empty());
        Entry {
            kind: tree_diff::type_name(node).to_owned(),
            mode: format!("{:04o}", node.mode),
            uid: node.uid,
            gid: node.gid,
            content: value(Aspect::Content),
            target: value(Aspect::Target),
        }
    };
    let size = |tree: &Tree, node: &Node| tree_diff::content(tree, node).map(|(size, _)| size);
    let (node, change) = match &difference.change {
        Change::Added(node) => {
            let size = NewSize { new: size(new, node) };
            (node, FileChange::Added { size, new: alone(new, node) })
        }
        Change::Removed(node) => {
            let size = OldSize { old: size(old, node) };
            (node, FileChange::Removed { size, old: alone(old, node) })
        }
        Change::Changed { old: before, new: after, aspects } => {
            let aspects: BTreeMap<String, Both<String>> = aspects
                .iter()
                .map(|aspect| {
                    let (old, new) = (aspect.value(old, before), aspect.value(new, after));
                    (aspect.word().to_owned(), Both { old, new })
                })
                .collect();
            let texts = tree_diff::content(old, before).zip(tree_diff::content(new, after));
            let texts = texts.filter(|_| aspects.contains_key("content"));
            let text = texts.and_then(|((_, a), (_, b))| options.text_diff(&a, &b));
            let size = Both { old: size(old, before), new: size(new, after) };
            (after, FileChange::Changed { size, aspects, text })
        }
    };
    let hex = || difference.path.iter().map(|byte| format!("{byte:02x}")).collect();
    File {
        path: String::from_utf8_lossy(difference.path).into_owned(),
        path_hex: std::str::from_utf8(difference.path).is_err().then(hex),
        package: owner.map(str::to_owned),
        kind: tree_diff::type_name(node).to_owned(),
        change,
    }
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
