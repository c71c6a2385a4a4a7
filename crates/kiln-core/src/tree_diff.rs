//! What differs between two trees.
//!
//! [`diff`] walks both listings side by side and gives every path whose line in the canonical
//! listing differs, in the listing's order: it gives nothing exactly if the tree digests are equal.
//! It looks at no content; whoever wants the first differing byte has both digests.
//!
//! ```
//! use kiln_core::tree::{Kind, Node, Tree};
//! use kiln_core::tree_diff::{Aspect, Change, diff};
//!
//! let (mut old, mut new) = (Tree::new(), Tree::new());
//! old.insert(b"etc", Node::new(Kind::Dir, 0o755));
//! new.insert(b"etc", Node::new(Kind::Dir, 0o700));
//! let difference = diff(&old, &new).next().unwrap();
//! assert_eq!(difference.path, b"etc");
//! let Change::Changed { aspects, .. } = difference.change else { panic!() };
//! assert_eq!(aspects, [Aspect::Mode]);
//! ```

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::digest::Digest;
use crate::tree::{Kind, Node, Tree};

/// One path at which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference<'a> {
    /// The path, as in [`Tree::entries`].
    pub path: &'a [u8],
    /// In what way.
    pub change: Change<'a>,
}

/// In what way two trees differ at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<'a> {
    /// Only the new tree has it.
    Added(&'a Node),
    /// Only the old tree had it.
    Removed(&'a Node),
    /// Both have it.
    Changed {
        /// In the old tree.
        old: &'a Node,
        /// In the new tree.
        new: &'a Node,
        /// What of it differs, in the order of [`Aspect`]; never empty.
        aspects: Vec<Aspect>,
    },
}

/// A part of an entry that can differ by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// What it is: a file, a directory, a link …
    Type,
    /// The bytes of a file.
    Content,
    /// Of which file it is a further name. Also given if only one of the two is one: a name that
    /// became the first of its file because the one before it went.
    Hardlink,
    /// The text of a symbolic link.
    Target,
    /// Major and minor number of a device.
    Device,
    /// Permission, set-id and sticky bits.
    Mode,
    /// Numeric owner.
    Uid,
    /// Numeric group.
    Gid,
    /// Extended attributes.
    Xattrs,
    /// Modification time.
    Time,
}

/// Every path at which `new` differs from `old`, ordered by path as bytes.
pub fn diff<'a>(old: &'a Tree, new: &'a Tree) -> impl Iterator<Item = Difference<'a>> {
    let mut olds = old.entries.iter().peekable();
    let mut news = new.entries.iter().peekable();
    std::iter::from_fn(move || {
        loop {
            let order = match (olds.peek(), news.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((before, _)), Some((after, _))) => before.cmp(after),
            };
            if order == Ordering::Less {
                let (path, node) = olds.next()?;
                return Some(Difference { path, change: Change::Removed(node) });
            }
            let (path, after) = news.next()?;
            if order == Ordering::Greater {
                return Some(Difference { path, change: Change::Added(after) });
            }
            let (_, before) = olds.next()?;
            if before != after {
                let aspects = aspects((old, before), (new, after));
                let change = Change::Changed { old: before, new: after, aspects };
                return Some(Difference { path, change });
            }
        }
    })
}

/// Size in bytes and digest of the content behind `node` of `tree`, whichever of a file's names it
/// is; `None` for all that is no file.
pub fn content(tree: &Tree, node: &Node) -> Option<(u64, Digest)> {
    match &node.kind {
        Kind::File { size, digest } => Some((*size, *digest)),
        Kind::Hardlink { to } => match tree.get(to)?.kind {
            Kind::File { size, digest } => Some((size, digest)),
            _ => None,
        },
        _ => None,
    }
}

fn aspects((old_tree, old): (&Tree, &Node), (new_tree, new): (&Tree, &Node)) -> Vec<Aspect> {
    let mut aspects = Vec::new();
    let mut differs = |aspect, it: bool| {
        if it {
            aspects.push(aspect);
        }
    };
    if type_name(old) == type_name(new) {
        differs(Aspect::Content, content(old_tree, old) != content(new_tree, new));
        let first = |node: &Node| match &node.kind {
            Kind::Hardlink { to } => Some(to.clone()),
            _ => None,
        };
        differs(Aspect::Hardlink, first(old) != first(new));
        let is_link = matches!(old.kind, Kind::Symlink { .. });
        differs(Aspect::Target, is_link && old.kind != new.kind);
        let is_device = matches!(old.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. });
        differs(Aspect::Device, is_device && old.kind != new.kind);
    } else {
        differs(Aspect::Type, true);
    }
    // The mode of a link is no choice of anybody's.
    let has_mode = |node: &Node| !matches!(node.kind, Kind::Symlink { .. });
    differs(Aspect::Mode, old.mode != new.mode && has_mode(old) && has_mode(new));
    differs(Aspect::Uid, old.uid != new.uid);
    differs(Aspect::Gid, old.gid != new.gid);
    differs(Aspect::Xattrs, old.xattrs != new.xattrs);
    differs(Aspect::Time, old.time != new.time);
    aspects
}

/// What an entry is, in a word: `file` (also a further name of one), `directory`, `link`, `pipe`,
/// `character device` or `block device`.
pub fn type_name(node: &Node) -> &'static str {
    match node.kind {
        Kind::Dir => "directory",
        Kind::File { .. } | Kind::Hardlink { .. } => "file",
        Kind::Symlink { .. } => "link",
        Kind::Fifo => "pipe",
        Kind::CharDevice { .. } => "character device",
        Kind::BlockDevice { .. } => "block device",
    }
}

impl Aspect {
    /// The name of the aspect, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Content => "content",
            Self::Hardlink => "hardlink",
            Self::Target => "target",
            Self::Device => "device",
            Self::Mode => "mode",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Xattrs => "xattrs",
            Self::Time => "time",
        }
    }

    /// This aspect of `node`, an entry of `tree`, as text: `0644`, a digest, a link's target.
    /// Bytes that are no UTF-8 are replaced; values of extended attributes are hexadecimal. Empty
    /// if the entry has no such thing.
    pub fn value(self, tree: &Tree, node: &Node) -> String {
        match self {
            Self::Type => type_name(node).to_owned(),
            Self::Content => {
                content(tree, node).map(|(_, digest)| digest.to_string()).unwrap_or_default()
            }
            Self::Hardlink => match &node.kind {
                Kind::Hardlink { to } => String::from_utf8_lossy(to).into_owned(),
                _ => String::new(),
            },
            Self::Target => match &node.kind {
                Kind::Symlink { target } => String::from_utf8_lossy(target).into_owned(),
                _ => String::new(),
            },
            Self::Device => match node.kind {
                Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                    format!("{major},{minor}")
                }
                _ => String::new(),
            },
            Self::Mode => format!("{:04o}", node.mode),
            Self::Uid => node.uid.to_string(),
            Self::Gid => node.gid.to_string(),
            Self::Xattrs => xattrs(node),
            Self::Time => node.time.to_string(),
        }
    }
}

fn xattrs(node: &Node) -> String {
    let mut out = String::new();
    for (name, value) in &node.xattrs {
        if !out.is_empty() {
            out.push(' ');
        }
        let _ = write!(out, "{}=", String::from_utf8_lossy(name));
        for byte in value {
            let _ = write!(out, "{byte:02x}");
        }
    }
    out
}

/// Names of extended attributes that only one of two entries has or whose values differ.
pub fn changed_xattrs<'a>(old: &'a Node, new: &'a Node) -> BTreeSet<&'a [u8]> {
    let names = old.xattrs.keys().chain(new.xattrs.keys());
    let names = names.filter(|name| old.xattrs.get(*name) != new.xattrs.get(*name));
    names.map(Vec::as_slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Node {
        let kind = Kind::File { size: text.len() as u64, digest: Digest::of(text) };
        Node::new(kind, 0o644)
    }

    fn tree(entries: &[(&str, Node)]) -> Tree {
        let mut tree = Tree::new();
        for (path, node) in entries {
            tree.insert(path.as_bytes(), node.clone());
        }
        tree
    }

    fn link(target: &str) -> Node {
        Node::new(Kind::Symlink { target: target.into() }, 0)
    }

    fn further(to: &str) -> Node {
        Node::new(Kind::Hardlink { to: to.into() }, 0o644)
    }

    /// `+path`, `-path`, `path:aspect,aspect`, in order.
    fn words(old: &Tree, new: &Tree) -> Vec<String> {
        let word = |difference: Difference<'_>| {
            let path = String::from_utf8_lossy(difference.path).into_owned();
            match difference.change {
                Change::Added(_) => format!("+{path}"),
                Change::Removed(_) => format!("-{path}"),
                Change::Changed { aspects, .. } => {
                    let aspects: Vec<_> = aspects.into_iter().map(Aspect::word).collect();
                    format!("{path}:{}", aspects.join(","))
                }
            }
        };
        diff(old, new).map(word).collect()
    }

    #[test]
    fn added_removed_and_changed_come_in_order() {
        let old = tree(&[("a", file("1")), ("b", file("1")), ("d/x", file("1"))]);
        let new =
            tree(&[("b", file("2")), ("c", file("1")), ("d/x", file("1")), ("d/y", file(""))]);
        assert_eq!(words(&old, &new), ["-a", "b:content", "+c", "+d/y"]);
        assert_eq!(words(&new, &old), ["+a", "b:content", "-c", "-d/y"]);
        assert!(words(&old, &old).is_empty());
        assert_eq!(words(&Tree::default(), &tree(&[])), ["+"]);
    }

    #[test]
    fn each_aspect_is_told_by_itself() {
        let with = |change: &dyn Fn(&mut Node)| {
            let mut node = file("1");
            change(&mut node);
            tree(&[("f", node)])
        };
        let old = with(&|_| {});
        for (new, expected) in [
            (with(&|node| node.mode = 0o4755), "f:mode"),
            (with(&|node| node.uid = 7), "f:uid"),
            (with(&|node| node.gid = 7), "f:gid"),
            (with(&|node| drop(node.xattrs.insert(b"user.a".to_vec(), vec![1]))), "f:xattrs"),
            (with(&|node| node.kind = file("2").kind), "f:content"),
            (with(&|node| node.time = 7), "f:time"),
            (tree(&[("f", link("g"))]), "f:type"),
            (tree(&[("f", Node::new(Kind::Fifo, 0o600))]), "f:type,mode"),
        ] {
            assert_eq!(words(&old, &new), [expected]);
        }
        let (old, new) = (tree(&[("l", link("a"))]), tree(&[("l", link("b"))]));
        assert_eq!(words(&old, &new), ["l:target"]);
        let device = |minor| tree(&[("d", Node::new(Kind::CharDevice { major: 1, minor }, 0o600))]);
        assert_eq!(words(&device(3), &device(5)), ["d:device"]);
    }

    #[test]
    fn hard_links_are_files_with_a_content() {
        let both = tree(&[("a", file("1")), ("b", further("a"))]);
        let second = tree(&[("b", file("1"))]);
        assert_eq!(words(&both, &second), ["-a", "b:hardlink"]);
        let other = tree(&[("a", file("1")), ("b", file("2"))]);
        assert_eq!(words(&both, &other), ["b:content,hardlink"]);
        // The first name tells of a change of the content that both share.
        let changed = tree(&[("a", file("2")), ("b", further("a"))]);
        assert_eq!(words(&both, &changed), ["a:content"]);
        assert_eq!(content(&both, &both.entries[b"b".as_slice()]), Some((1, Digest::of("1"))));
    }

    #[test]
    fn nothing_differs_exactly_if_the_digests_are_equal() {
        let some = [
            tree(&[]),
            tree(&[("a", file("1"))]),
            tree(&[("a", file("2"))]),
            tree(&[("a", link("1"))]),
            tree(&[("a", link("2"))]),
            tree(&[("a", file("1")), ("b", further("a"))]),
            tree(&[("a", file("1")), ("b", file("1"))]),
        ];
        for one in &some {
            for other in &some {
                let equal = one.digest() == other.digest();
                assert_eq!(words(one, other).is_empty(), equal, "{one:?} {other:?}");
            }
        }
    }
}
