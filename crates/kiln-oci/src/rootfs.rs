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

/// Names and the files they lead to. An image may have a million: they are kept small.
#[derive(Debug)]
pub(crate) struct Rootfs {
    names: BTreeMap<Box<[u8]>, Name>,
    nodes: Vec<Node>,
    /// The number of the layer under way.
    layer: u32,
    /// Directories that it has made opaque: a second time would find nothing.
    opaque: BTreeSet<Vec<u8>>,
    /// Bytes of all names and nodes, and of what is only of the layer under way.
    bytes: usize,
    opaque_bytes: usize,
    most_bytes: usize,
}

/// Where a name leads.
#[derive(Debug, Clone, Copy)]
struct Name {
    /// In [`Rootfs::nodes`].
    at: u32,
    /// The last layer that put it or something below it. All above it has the same one then.
    layer: u32,
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
        let names = BTreeMap::from([(Box::from([]), Name { at: 0, layer: 0 })]);
        let (bytes, opaque_bytes, most_bytes) = (0, 0, MAX_BYTES);
        Self { names, nodes, layer: 1, opaque: BTreeSet::new(), bytes, opaque_bytes, most_bytes }
    }

    /// A layer begins: what is there now is what its whiteouts hide.
    pub(crate) fn begin_layer(&mut self) {
        self.layer += 1;
        self.opaque.clear();
        self.opaque_bytes = 0;
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
                let at = self.node(node)?;
                self.name(path, at, self.layer);
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
        let Some(target) = self.names.get(&to[..]).map(|name| name.at) else {
            return bad("its target is not there");
        };
        if self.nodes[target as usize].is_dir() {
            return bad("its target is a directory");
        }
        let path = self.locate(path)?;
        if path == to {
            return Ok(());
        }
        self.replace(&path, false)?;
        self.name(path, target, self.layer);
        self.bounded()
    }

    /// Hides what lower layers have at `path` and below it.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        let Some(path) = self.find(path)? else { return Ok(()) };
        if !self.is_fresh(&path) {
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
            self.opaque_bytes += path.len();
            self.hide_below(&path);
        }
        self.bounded()
    }

    /// The tree: of each file, the first name in order is the file and the others are links to it.
    ///
    /// # Errors
    /// [`Error::TooMuch`]: a link in a tree has the attributes of its file, and its path.
    pub(crate) fn into_tree(self) -> Result<Tree> {
        let Self { names, nodes, opaque, most_bytes, mut bytes, .. } = self;
        // A tree may have a million entries, and is there twice for a moment.
        drop(opaque);
        let mut counts = vec![0_u32; nodes.len()];
        names.values().for_each(|name| counts[name.at as usize] += 1);
        let mut nodes: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
        let mut first: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let mut entries = Vec::with_capacity(names.len());
        for (path, name) in names {
            let (path, at) = (path.into_vec(), name.at as usize);
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
            entries.extend(node.map(|node| (path, node)));
        }
        drop(nodes);
        // In order, so that it is built full; grown entry by entry it would take twice as much.
        Ok(Tree { entries: entries.into_iter().collect() })
    }

    fn node(&mut self, node: Node) -> Result<u32> {
        let at = u32::try_from(self.nodes.len());
        let at = at.map_err(|_| Error::too_much("the number of files", MAX_NAMES.to_string()))?;
        self.nodes.push(node);
        Ok(at)
    }

    /// `layer` is that under way, or none: 0.
    fn name(&mut self, path: Vec<u8>, at: u32, layer: u32) {
        let length = path.len();
        let name = Name { at, layer };
        if self.names.insert(path.into_boxed_slice(), name).is_none() {
            self.bytes += length;
        }
    }

    /// Whether the layer under way put it, or something below it.
    fn is_fresh(&self, path: &[u8]) -> bool {
        self.names.get(path).is_some_and(|name| name.layer == self.layer)
    }

    fn unname(&mut self, path: &[u8]) {
        if self.names.remove(path).is_some() {
            self.bytes -= path.len();
        }
    }

    /// Makes room at `path` and remembers that this layer put it. Gives the directory that is
    /// there, if a directory is to be.
    fn replace(&mut self, path: &[u8], dir: bool) -> Result<Option<usize>> {
        let there = self.names.get(path).map(|name| name.at as usize);
        let kept = there.filter(|at| dir && self.nodes[*at].is_dir());
        if kept.is_none() {
            if path.is_empty() {
                return Err(Error::malformed("layer", "its root is no directory"));
            }
            if there.is_some() {
                self.unname(path);
                for below in self.below(path) {
                    self.unname(&below);
                }
            }
        }
        self.touch(path);
        Ok(kept)
    }

    /// Remembers `path`, if it is there, and all above it as this layer's.
    fn touch(&mut self, path: &[u8]) {
        let layer = self.layer;
        let mut end = path.len();
        loop {
            let name = self.names.get_mut(&path[..end]);
            let before = name.map(|name| std::mem::replace(&mut name.layer, layer));
            if before == Some(layer) || end == 0 {
                return;
            }
            end = path[..end].iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        }
    }

    fn hide_below(&mut self, path: &[u8]) {
        for below in self.below(path) {
            if !self.is_fresh(&below) {
                self.unname(&below);
            }
        }
    }

    fn below(&self, path: &[u8]) -> Vec<Box<[u8]>> {
        let mut prefix = path.to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        self.names
            .range(prefix.clone().into_boxed_slice()..)
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
            match self.names.get(&here[..]).map(|name| &self.nodes[name.at as usize].kind) {
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
                    let at = self.node(Node::new(Kind::Dir, 0o755))?;
                    // What it leads to is touched when it is there.
                    self.name(here.clone(), at, 0);
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
        if self.bytes + self.opaque_bytes > self.most_bytes {
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
        let names: usize = rootfs.names.keys().map(|name| name.len()).sum();
        let nodes: usize = rootfs.nodes.iter().map(weight).sum();
        assert_eq!((rootfs.bytes, rootfs.opaque_bytes), (names + nodes, 3));
        assert_eq!(rootfs.into_tree().unwrap().entries.len(), 1002);
    }
}
