//! A root file system while layers are laid over one another: names that lead to files, as in a
//! real one, so that a further name keeps its file when the first one goes.

use std::collections::{BTreeMap, BTreeSet};

use kiln_archive::PATH_MAX;
use kiln_core::Tree;
use kiln_core::tree::{Kind, Node};

use crate::error::{Error, Result, shown};

/// Names that an image may have in all.
const MAX_NAMES: usize = 1 << 20;

/// Bytes that names, texts of links and attributes of an image may have in all: they are held in
/// memory while its layers are laid over one another.
const MAX_BYTES: usize = 512 << 20;

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
    /// Bytes of all names and nodes, and of what is only of the layer under way.
    bytes: usize,
    fresh_bytes: usize,
    most_bytes: usize,
}

/// What a node has beyond its own size.
fn weight(node: &Node) -> usize {
    let text = match &node.kind {
        Kind::Symlink { target } => target.len(),
        Kind::Hardlink { to } => to.len(),
        _ => 0,
    };
    let attributes = node.xattrs.iter().map(|(name, value)| name.len() + value.len());
    text + attributes.sum::<usize>()
}

impl Rootfs {
    /// With a root directory only: 0755, owned by root.
    pub(crate) fn new() -> Self {
        let nodes = vec![Node::new(Kind::Dir, 0o755)];
        let names = BTreeMap::from([(Vec::new(), 0)]);
        let (fresh, opaque) = (BTreeSet::new(), BTreeSet::new());
        Self { names, nodes, fresh, opaque, bytes: 0, fresh_bytes: 0, most_bytes: MAX_BYTES }
    }

    /// A layer begins: what is there now is what its whiteouts hide.
    pub(crate) fn begin_layer(&mut self) {
        self.fresh.clear();
        self.opaque.clear();
        self.fresh_bytes = 0;
    }

    /// Puts `node` at `path`. Its parents are made if need be, and links on the way are followed,
    /// as for an extractor that is locked in here. A directory over a directory keeps what is in
    /// it; anything else takes the place of what is there.
    pub(crate) fn put(&mut self, path: &[u8], node: Node) -> Result<()> {
        let path = self.locate(path)?;
        let at = self.replace(&path, node.is_dir())?;
        self.bytes += weight(&node);
        match at {
            Some(dir) => {
                self.bytes -= weight(&self.nodes[dir]);
                self.nodes[dir] = node;
            }
            None => {
                self.nodes.push(node);
                self.name(path, self.nodes.len() - 1);
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
        self.name(path, target);
        self.bounded()
    }

    /// Hides what lower layers have at `path` and below it.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        let Some(path) = self.find(path)? else { return Ok(()) };
        if !self.fresh.contains(&path) {
            self.unname(&path);
        }
        self.hide_below(&path);
        Ok(())
    }

    /// Hides what lower layers have in the directory at `path`.
    pub(crate) fn opaque(&mut self, path: &[u8]) -> Result<()> {
        if let Some(path) = self.find(path)?
            && self.opaque.insert(path.clone())
        {
            self.fresh_bytes += path.len();
            self.hide_below(&path);
        }
        self.bounded()
    }

    /// The tree: of each file, the first name in order is the file and the others are links to it.
    ///
    /// # Errors
    /// [`Error::TooMuch`]: a link in a tree has the attributes of its file, and its path.
    pub(crate) fn into_tree(self) -> Result<Tree> {
        let Self { names, nodes, fresh, opaque, most_bytes, mut bytes, .. } = self;
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
                let own = nodes[at].as_ref().map_or(0, weight);
                bytes += own + to.as_ref().map_or(0, Vec::len);
                if bytes > most_bytes {
                    return Err(too_many_bytes(most_bytes));
                }
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
        Ok(tree)
    }

    fn name(&mut self, path: Vec<u8>, at: usize) {
        let length = path.len();
        if self.names.insert(path, at).is_none() {
            self.bytes += length;
        }
    }

    fn unname(&mut self, path: &[u8]) {
        if self.names.remove(path).is_some() {
            self.bytes -= path.len();
        }
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
                self.unname(path);
                for below in self.below(path) {
                    self.unname(&below);
                    if self.fresh.remove(&below) {
                        self.fresh_bytes -= below.len();
                    }
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
            self.fresh_bytes += end;
            end = path[..end].iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        }
    }

    fn hide_below(&mut self, path: &[u8]) {
        for below in self.below(path) {
            if !self.fresh.contains(&below) {
                self.unname(&below);
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
                    self.name(here.clone(), self.nodes.len() - 1);
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
        if self.bytes + self.fresh_bytes > self.most_bytes {
            return Err(too_many_bytes(self.most_bytes));
        }
        Ok(())
    }
}

fn too_many_bytes(most: usize) -> Error {
    let what = "what the names, links and extended attributes of the image's files take together";
    Error::too_much(what, format!("{} MiB", most >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Rootfs {
        Rootfs { most_bytes: 1 << 20, ..Rootfs::new() }
    }

    fn file(attribute: usize) -> Node {
        let digest = kiln_core::Digest::of("x");
        let mut node = Node::new(Kind::File { size: 1, digest }, 0o644);
        node.xattrs.insert(b"user.a".to_vec(), vec![7; attribute]);
        node
    }

    fn long(nth: usize) -> Vec<u8> {
        format!("{nth:04}{}", "n".repeat(200)).into_bytes()
    }

    #[track_caller]
    fn is_too_much(mut each: impl FnMut(usize) -> Result<()>) {
        let error = (0..100_000).find_map(|nth| each(nth).err()).expect("it is bounded");
        assert!(matches!(error, Error::TooMuch { .. }), "{error}");
        assert!(error.to_string().contains("attributes of the image's files"), "{error}");
    }

    #[test]
    fn names_links_and_attributes_are_bounded_in_sum() {
        let mut names = small();
        is_too_much(|nth| names.put(&long(nth), file(0)));
        let mut attributes = small();
        is_too_much(|nth| attributes.put(format!("{nth}").as_bytes(), file(60_000)));
        let mut links = small();
        let target = vec![b't'; 4000];
        is_too_much(|nth| {
            let link = Node::new(Kind::Symlink { target: target.clone() }, 0);
            links.put(format!("{nth}").as_bytes(), link)
        });
        let mut opaque = small();
        is_too_much(|nth| opaque.opaque(&long(nth)));
        // Each further name of a file takes its attributes along into the tree.
        let mut further = small();
        further.put(b"a", file(60_000)).unwrap();
        for nth in 0..100 {
            further.link(format!("{nth}").as_bytes(), b"a").unwrap();
        }
        assert!(matches!(further.into_tree(), Err(Error::TooMuch { .. })));
    }

    #[test]
    fn what_went_does_not_count() {
        let mut rootfs = small();
        for layer in 0..50 {
            rootfs.begin_layer();
            rootfs.put(b"dir", Node::new(Kind::Dir, 0o755)).unwrap();
            rootfs.opaque(b"dir").unwrap();
            for nth in 0..1000 {
                let path = [&b"dir/"[..], &long(nth + layer)].concat();
                rootfs.put(&path, file(0)).unwrap();
            }
        }
        let names: usize = rootfs.names.keys().map(Vec::len).sum();
        let nodes: usize = rootfs.nodes.iter().map(weight).sum();
        assert_eq!(rootfs.bytes, names + nodes);
        assert_eq!(
            rootfs.fresh_bytes,
            rootfs.fresh.iter().chain(&rootfs.opaque).map(Vec::len).sum::<usize>()
        );
        assert_eq!(rootfs.into_tree().unwrap().entries.len(), 1002);
    }
}
