//! A root file system while layers are laid over one another: names that lead to files, as in a
//! real one, so that a further name keeps its file when the first one goes.

use std::collections::{BTreeMap, BTreeSet};

use kiln_archive::PATH_MAX;
use kiln_core::Tree;
use kiln_core::tree::{Kind, Node};

use crate::error::{Error, Result, shown};

/// Names that an image may have in all.
const MAX_NAMES: usize = 1 << 20;

/// Links that one path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

/// Names and the files they lead to.
#[derive(Debug)]
pub(crate) struct Rootfs {
    names: BTreeMap<Vec<u8>, usize>,
    nodes: Vec<Node>,
    /// What the layer under way has put, with all above it.
    fresh: BTreeSet<Vec<u8>>,
    /// Directories that it has made opaque: a second time would find nothing.
    opaque: BTreeSet<Vec<u8>>,
}

impl Rootfs {
    /// With a root directory only: 0755, owned by root.
    pub(crate) fn new() -> Self {
        let nodes = vec![Node::new(Kind::Dir, 0o755)];
        let names = BTreeMap::from([(Vec::new(), 0)]);
        Self { names, nodes, fresh: BTreeSet::new(), opaque: BTreeSet::new() }
    }

    /// A layer begins: what is there now is what its whiteouts hide.
    pub(crate) fn begin_layer(&mut self) {
        self.fresh.clear();
        self.opaque.clear();
    }

    /// Puts `node` at `path`. Its parents are made if need be, and links on the way are followed,
    /// as for an extractor that is locked in here. A directory over a directory keeps what is in
    /// it; anything else takes the place of what is there.
    pub(crate) fn put(&mut self, path: &[u8], node: Node) -> Result<()> {
        let path = self.locate(path)?;
        let at = self.replace(&path, node.is_dir())?;
        match at {
            Some(dir) => self.nodes[dir] = node,
            None => {
                self.nodes.push(node);
                self.names.insert(path, self.nodes.len() - 1);
            }
        }
        self.bounded()
    }

    /// Makes `path` a further name of the file at `to`.
    pub(crate) fn link(&mut self, path: &[u8], to: &[u8]) -> Result<()> {
        let bad = |why: &str| {
            let what = format!("link {} to {}", shown(path), shown(to));
            Err(Error::malformed(what, why))
        };
        let Some(to) = self.find(to)? else { return bad("its target is not there") };
        let Some(&target) = self.names.get(&to) else { return bad("its target is not there") };
        if self.nodes[target].is_dir() {
            return bad("its target is a directory");
        }
        let path = self.locate(path)?;
        if path == to {
            return Ok(());
        }
        self.replace(&path, false)?;
        self.names.insert(path, target);
        self.bounded()
    }

    /// Hides what lower layers have at `path` and below it.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        let Some(path) = self.find(path)? else { return Ok(()) };
        if !self.fresh.contains(&path) {
            self.names.remove(&path);
        }
        self.hide_below(&path);
        Ok(())
    }

    /// Hides what lower layers have in the directory at `path`.
    pub(crate) fn opaque(&mut self, path: &[u8]) -> Result<()> {
        if let Some(path) = self.find(path)?
            && self.opaque.insert(path.clone())
        {
            self.hide_below(&path);
        }
        Ok(())
    }

    /// The tree: of each file, the first name in order is the file and the others are links to it.
    pub(crate) fn into_tree(self) -> Tree {
        let Self { names, nodes, fresh, opaque } = self;
        // A tree may have a million entries, and is there twice for a moment.
        drop((fresh, opaque));
        let mut counts = vec![0_u32; nodes.len()];
        names.values().for_each(|at| counts[*at] += 1);
        let mut nodes: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
        let mut first: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let mut tree = Tree::default();
        for (path, at) in names {
            let node = if counts[at] == 1 {
                nodes[at].take()
            } else {
                let to = first.get(&at).cloned();
                nodes[at].clone().map(|mut node| {
                    match (&node.kind, to) {
                        (Kind::File { .. }, Some(to)) => node.kind = Kind::Hardlink { to },
                        (Kind::File { .. }, None) => drop(first.insert(at, path.clone())),
                        _ => {}
                    }
                    node
                })
            };
            tree.entries.extend(node.map(|node| (path, node)));
        }
        tree
    }

    /// Makes room at `path` and remembers that this layer put it. Gives the directory that is
    /// there, if a directory is to be.
    fn replace(&mut self, path: &[u8], dir: bool) -> Result<Option<usize>> {
        let there = self.names.get(path).copied();
        let kept = there.filter(|at| dir && self.nodes[*at].is_dir());
        if kept.is_none() {
            if path.is_empty() {
                return Err(Error::malformed("layer", "its root is no directory"));
            }
            if there.is_some() {
                self.names.remove(path);
                for below in self.below(path) {
                    self.names.remove(&below);
                    self.fresh.remove(&below);
                }
            }
        }
        self.touch(path);
        Ok(kept)
    }

    /// Remembers `path` and all above it as this layer's.
    fn touch(&mut self, path: &[u8]) {
        let mut end = path.len();
        while self.fresh.insert(path[..end].to_vec()) && end > 0 {
            end = path[..end].iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        }
    }

    fn hide_below(&mut self, path: &[u8]) {
        for below in self.below(path) {
            if !self.fresh.contains(&below) {
                self.names.remove(&below);
            }
        }
    }

    fn below(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let mut prefix = path.to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        self.names
            .range(prefix.clone()..)
            .map(|(name, _)| name)
            .take_while(|name| name.starts_with(&prefix))
            .filter(|name| !name.is_empty())
            .cloned()
            .collect()
    }

    /// Where `path` really is: links in its parents are followed, not one at its end. Parents that
    /// are missing are made.
    fn locate(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        self.walk(path, true)?.ok_or_else(|| {
            Error::malformed(format!("tar entry {}", shown(path)), "it has no parent")
        })
    }

    /// As [`Rootfs::locate`], or `None` if a parent is missing.
    fn find(&mut self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        self.walk(path, false)
    }

    fn walk(&mut self, path: &[u8], make: bool) -> Result<Option<Vec<u8>>> {
        let bad = |why: &str| Err(Error::malformed(format!("tar entry {}", shown(path)), why));
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/')
                .filter(|part| !matches!(*part, b"" | b"."))
                .map(<[u8]>::to_vec)
                .rev()
                .collect()
        };
        let mut left = parts(path);
        let mut here: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part == b".." {
                // Only a link's text has it; above the root is the root.
                let parent = here.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                here.truncate(parent);
                continue;
            }
            let parent = here.len();
            if !here.is_empty() {
                here.push(b'/');
            }
            here.extend_from_slice(&part);
            if here.len() > PATH_MAX {
                return bad("the links on its way make it too long");
            }
            if left.is_empty() {
                return Ok(Some(here));
            }
            match self.names.get(&here).map(|at| &self.nodes[*at].kind) {
                Some(Kind::Dir) => {}
                Some(Kind::Symlink { target }) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return bad("too many links lead to it");
                    }
                    let absolute = target.starts_with(b"/");
                    left.extend(parts(target));
                    here.truncate(if absolute { 0 } else { parent });
                }
                Some(_) => return bad("one of its parents is no directory"),
                None if make => {
                    self.nodes.push(Node::new(Kind::Dir, 0o755));
                    self.names.insert(here.clone(), self.nodes.len() - 1);
                    self.bounded()?;
                }
                None => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    fn bounded(&self) -> Result<()> {
        if self.names.len() > MAX_NAMES || self.nodes.len() > 4 * MAX_NAMES {
            return Err(Error::too_much("the number of files", MAX_NAMES.to_string()));
        }
        Ok(())
    }
}
