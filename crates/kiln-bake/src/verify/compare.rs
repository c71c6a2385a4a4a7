//! Two trees → what differs, the first path with its bytes, and the probable causes.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use kiln_core::tree::{Kind, Node};
use kiln_core::tree_diff::{self, Aspect, Change};
use kiln_core::{Digest, Tree};
use kiln_store::Store;

use super::cause::{Cause, Finding};
use super::conditions::Run;
use super::recognise::{self, Known};
use super::report::{Difference, PathDifference, Value};
use crate::error::BakeError;
use crate::paths;

/// Of how many paths the causes are looked for.
const LOOKED_INTO: usize = 100;
/// Larger contents are looked at around the first difference only.
const WHOLE: usize = 32 << 20;
/// Bytes of a content that are shown, before the first difference and from it on.
const SHOWN: (usize, usize) = (16, 32);

/// One of two results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Side<'a> {
    /// What it is called.
    pub(crate) name: &'a str,
    pub(crate) tree: &'a Tree,
    /// Where its contents are.
    pub(crate) store: &'a Store,
    /// The run that made it, if that is known.
    pub(crate) run: Option<&'a Run>,
}

/// What differs; `None` if nothing does.
///
/// # Errors
/// A content cannot be read from its store.
pub(crate) fn compare(sides: [Side<'_>; 2]) -> Result<Option<Difference>, BakeError> {
    let work = Comparison { sides, names: OnceCell::new() };
    let found: Vec<_> = tree_diff::diff(sides[0].tree, sides[1].tree).collect();
    let added = renamed(&found);
    let mut kinds = BTreeMap::new();
    let mut first: Option<PathDifference> = None;
    let (mut listed, mut findings) = (Vec::new(), Vec::new());
    for (at, one) in found.iter().enumerate() {
        let kind = kind_of(&one.change);
        *kinds.entry(kind.into()).or_insert(0) += 1;
        if listed.len() < Difference::LISTED {
            listed.push((shown(one.path), kind.into()));
        }
        if at >= LOOKED_INTO {
            continue;
        }
        let partner = added.get(one.path).copied();
        let path = work.path(one.path, &one.change, kind, partner)?;
        findings.push(path.finding.clone());
        first.get_or_insert(path);
    }
    recognise::commits(&mut findings, found.iter().map(|one| one.path));
    let between = [sides[0].name.to_owned(), sides[1].name.to_owned()];
    Ok(first.map(|first| {
        let mut difference = Difference {
            between,
            count: found.len(),
            kinds,
            causes: BTreeMap::new(),
            first,
            condition: None,
            left_behind: 0,
            paths: listed,
            all: found.iter().map(|one| one.path.to_vec()).collect(),
            findings,
        };
        difference.settle();
        difference
    }))
}

/// For each path that one side has alone, one that the other side has alone in the same directory
/// and that is named most like it.
fn renamed<'a>(found: &'a [tree_diff::Difference<'a>]) -> BTreeMap<&'a [u8], &'a [u8]> {
    let alone = |removed: bool| {
        found.iter().filter(move |one| match one.change {
            Change::Removed(_) => removed,
            Change::Added(_) => !removed,
            Change::Changed { .. } => false,
        })
    };
    let mut pairs = BTreeMap::new();
    for gone in alone(true).take(LOOKED_INTO) {
        let parent = paths::parent(gone.path);
        let alike = |new: &[u8]| {
            let begin = gone.path.iter().zip(new).take_while(|(x, y)| x == y).count();
            let end =
                gone.path.iter().rev().zip(new.iter().rev()).take_while(|(x, y)| x == y).count();
            begin + end
        };
        let best = alone(false)
            .map(|new| new.path)
            .filter(|new| paths::parent(new) == parent && !pairs.contains_key(new))
            .max_by_key(|new| alike(new));
        if let Some(new) = best {
            pairs.insert(gone.path, new);
            pairs.insert(new, gone.path);
        }
    }
    pairs
}

fn kind_of(change: &Change<'_>) -> &'static str {
    match change {
        Change::Removed(_) => "only-first",
        Change::Added(_) => "only-second",
        Change::Changed { aspects, .. } => match aspects.first() {
            Some(Aspect::Type) => "type",
            Some(Aspect::Content) | None => "content",
            Some(Aspect::Hardlink) => "hardlink",
            Some(Aspect::Target) => "link",
            Some(Aspect::Device) => "device",
            Some(Aspect::Mode) => "mode",
            Some(Aspect::Uid | Aspect::Gid) => "owner",
            Some(Aspect::Xattrs) => "xattr",
            Some(Aspect::Time) => "time",
        },
    }
}

struct Comparison<'a> {
    sides: [Side<'a>; 2],
    names: OnceCell<BTreeSet<Vec<u8>>>,
}

impl Comparison<'_> {
    fn known(&self) -> Known<'_> {
        let names = self.names.get_or_init(|| {
            let paths = self.sides.iter().flat_map(|side| side.tree.entries.keys());
            paths.map(|path| paths::base_name(path).to_vec()).collect()
        });
        Known { runs: self.sides.map(|side| side.run), names }
    }

    fn path(
        &self,
        path: &[u8],
        change: &Change<'_>,
        kind: &'static str,
        partner: Option<&[u8]>,
    ) -> Result<PathDifference, BakeError> {
        let unknown = || Finding::new(Cause::Unknown, "nothing says where it comes from");
        let mut offset = None;
        let (values, finding) = match change {
            Change::Removed(node) | Change::Added(node) => {
                let removed = matches!(change, Change::Removed(_));
                let there = described(node);
                let other = match partner {
                    Some(partner) => format!("nothing, but {}", shown(partner)),
                    None => "nothing".to_owned(),
                };
                let finding = match partner {
                    Some(partner) if removed => self.of_names(path, partner),
                    Some(partner) => self.of_names(partner, path),
                    None => recognise::alone(path),
                };
                let values = if removed { [there, other] } else { [other, there] };
                (values.map(plain), finding)
            }
            Change::Changed { old, new, .. } => match kind {
                "content" => {
                    let nodes = [*old, *new];
                    let (at, values, finding) = self.content(path, nodes)?;
                    offset = at;
                    (values, finding)
                }
                "link" => {
                    let targets = [old, new].map(|node| match &node.kind {
                        Kind::Symlink { target } => target.clone(),
                        _ => Vec::new(),
                    });
                    let finding = self.of_names(&targets[0], &targets[1]);
                    (targets.map(|target| plain(escaped(&target))), finding)
                }
                _ => ([old, new].map(|node| plain(attribute(kind, node))), unknown()),
            },
        };
        let [first, second] = values;
        let (words, cure) = (finding.cause.words().into(), finding.cause.cure().into());
        let (path, kind) = (shown(path), kind.into());
        Ok(PathDifference { path, kind, offset, first, second, finding, words, cure })
    }

    fn of_names(&self, first: &[u8], second: &[u8]) -> Finding {
        recognise::name(first, second, self.known())
    }

    fn content(
        &self,
        path: &[u8],
        nodes: [&Node; 2],
    ) -> Result<(Option<u64>, [Value; 2], Finding), BakeError> {
        let mut contents = Vec::new();
        for (side, node) in self.sides.iter().zip(nodes) {
            let found = tree_diff::content(side.tree, node);
            let digest = found.map(|(_, digest)| digest);
            contents.push(match digest {
                Some(digest) => read(side.store, &digest)?,
                None => Vec::new(),
            });
        }
        let (a, b) = (&contents[0], &contents[1]);
        let at = recognise::first_difference(a, b);
        let from = at.unwrap_or(0).saturating_sub(SHOWN.0);
        let part = |bytes: &Vec<u8>| {
            let end = (at.unwrap_or(0) + SHOWN.1).min(bytes.len());
            let part = bytes.get(from..end).unwrap_or_default();
            Value {
                text: printable(part),
                hex: part.iter().map(|byte| format!("{byte:02x}")).collect(),
                at: Some(from as u64),
                size: Some(bytes.len() as u64),
            }
        };
        let finding = if a.len().max(b.len()) <= WHOLE {
            recognise::content(path, a, b, self.known())
        } else {
            let near = |bytes: &'_ [u8]| -> Vec<u8> {
                let from = at.unwrap_or(0).saturating_sub(WHOLE / 32);
                bytes[from.min(bytes.len())..(from + WHOLE / 16).min(bytes.len())].to_vec()
            };
            recognise::content(path, &near(a), &near(b), self.known())
        };
        Ok((at.map(|at| at as u64), [part(a), part(b)], finding))
    }
}

fn read(store: &Store, digest: &Digest) -> Result<Vec<u8>, BakeError> {
    store.get(digest).map_err(BakeError::store)
}

fn plain(text: String) -> Value {
    Value { text, ..Value::default() }
}

fn described(node: &Node) -> String {
    let what = match &node.kind {
        Kind::Dir => "a directory".to_owned(),
        Kind::File { size, .. } => format!("a file of {size} bytes"),
        Kind::Hardlink { to } => format!("a further name of {}", shown(to)),
        Kind::Symlink { target } => format!("a link to {}", escaped(target)),
        Kind::Fifo => "a pipe".to_owned(),
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } => "a device".to_owned(),
    };
    format!("{what}, mode {:04o}, owner {}:{}", node.mode, node.uid, node.gid)
}

fn attribute(kind: &str, node: &Node) -> String {
    match kind {
        "mode" => format!("{:04o}", node.mode),
        "owner" => format!("{}:{}", node.uid, node.gid),
        "xattr" => {
            let pairs = node.xattrs.iter().map(|(name, value)| {
                let value: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{}={value}", escaped(name))
            });
            pairs.collect::<Vec<_>>().join(" ")
        }
        _ => described(node),
    }
}

/// An absolute path for people.
pub(crate) fn shown(path: &[u8]) -> String {
    format!("/{}", escaped(path))
}

fn escaped(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes
            .iter()
            .map(|byte| match byte {
                b' '..=b'~' => char::from(*byte).to_string(),
                other => format!("\\{other:03o}"),
            })
            .collect(),
    }
}

fn printable(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '.' })
        .collect()
}
