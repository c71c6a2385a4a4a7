//! Package trees → one tree, as dpkg would have unpacked them one after the other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node, Path};
use kiln_store::Store;

use super::accounts::{Numbers, text_of};
use super::control::{self, Paragraph};
use super::deb::{MD5, OWNER};
use super::error::BaseError;
use super::lock::{LockedBase, LockedPackage};
use crate::paths;

/// Directories that are links into `/usr` from the first file on.
const MERGED: [&str; 7] = ["bin", "sbin", "lib", "lib32", "lib64", "libo32", "libx32"];

/// One package with what is needed of its control file.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) locked: LockedPackage,
    pub(crate) tree: Arc<Tree>,
    pub(crate) control: Paragraph,
    /// Paths below `/`, as the package names them, that ended up as this package's own.
    pub(crate) paths: Vec<Path>,
}

impl Unpacked {
    pub(crate) fn new(
        store: &Store,
        locked: LockedPackage,
        tree: Arc<Tree>,
    ) -> Result<Self, BaseError> {
        let text = text_of(store, &tree, b"control/control")?;
        let control = control::parse(&text).into_iter().next().unwrap_or_default();
        let (name, version) = (control.get("Package"), control.get("Version"));
        if name != Some(&locked.name) || version != Some(&locked.version) {
            let what = format!(
                "its file says that it is {} {}",
                name.unwrap_or("nameless"),
                version.unwrap_or("without a version"),
            );
            return Err(BaseError::Deb { package: locked.label(), what });
        }
        Ok(Self { locked, tree, control, paths: Vec::new() })
    }

    /// The name under which dpkg keeps its files: with the architecture where several may be
    /// installed at once.
    pub(crate) fn info_name(&self) -> String {
        if self.control.get("Multi-Arch") == Some("same") {
            format!("{}:{}", self.locked.name, self.locked.arch)
        } else {
            self.locked.name.clone()
        }
    }
}

/// Puts `text` at `path`, owned by root.
pub(crate) fn put_file(
    store: &Store,
    tree: &mut Tree,
    path: &[u8],
    text: &[u8],
    mode: u16,
) -> Result<(), BaseError> {
    let kind = Kind::File { size: text.len() as u64, digest: store.put(text)? };
    tree.insert(path, Node::new(kind, mode));
    Ok(())
}

/// Unpacks `packages` in their order. Says in each which of its paths stayed its own.
pub(crate) fn assemble(
    base: &LockedBase,
    numbers: &Numbers,
    packages: &mut [Unpacked],
) -> Result<Tree, BaseError> {
    let mut work = Assembly { tree: Tree::new(), ..Assembly::default() };
    work.merge_usr(packages);
    for line in &base.diversions {
        if let [from, to, package] = line.split(' ').collect::<Vec<_>>().as_slice() {
            let from = work.resolve(from.trim_start_matches('/').as_bytes());
            let to = work.resolve(to.trim_start_matches('/').as_bytes());
            work.diverted.insert(from, (to, (*package).to_owned()));
        }
    }
    for at in 0..packages.len() {
        work.unpack(at, packages, numbers)?;
    }
    work.relink();
    for (path, (owner, raw)) in &work.owners {
        if work.tree.get(path).is_some() {
            packages[*owner].paths.push(raw.clone());
        }
    }
    Ok(work.tree)
}

#[derive(Default)]
struct Assembly {
    tree: Tree,
    /// Owner of each path that is no directory, and the path as that package names it.
    owners: BTreeMap<Path, (usize, Path)>,
    /// By path: where everybody's but that package's file goes.
    diverted: HashMap<Path, (Path, String)>,
    /// Names of one file: by package and first name in it.
    links: BTreeMap<(usize, Path), Vec<Path>>,
    resolved: HashMap<Path, Path>,
}

impl Assembly {
    fn merge_usr(&mut self, packages: &[Unpacked]) {
        for name in MERGED {
            let always = ["bin", "sbin", "lib"].contains(&name);
            let used = |below: &str| {
                let path = format!("data/{below}{name}");
                packages.iter().any(|package| package.tree.get(path.as_bytes()).is_some())
            };
            if always || used("") || used("usr/") {
                let target = format!("usr/{name}");
                self.tree.insert(target.as_bytes(), Node::new(Kind::Dir, 0o755));
                let link = Kind::Symlink { target: target.into_bytes() };
                self.tree.insert(name.as_bytes(), Node::new(link, 0o777));
            }
        }
    }

    fn unpack(
        &mut self,
        at: usize,
        packages: &[Unpacked],
        numbers: &Numbers,
    ) -> Result<(), BaseError> {
        let package = &packages[at];
        for (path, node) in package.tree.entries.range(b"data".to_vec()..) {
            let raw = match path.strip_prefix(b"data") {
                Some([]) => Vec::new(),
                Some([b'/', rest @ ..]) => rest.to_vec(),
                _ => break,
            };
            let mut node = node.clone();
            if let Some(names) = node.xattrs.remove(OWNER) {
                numbers.own(&mut node, &names);
            }
            node.xattrs.remove(MD5);
            let mut path = self.resolve(&raw);
            if node.is_dir() {
                self.add_dir(path, node);
                continue;
            }
            if let Some((to, by)) = self.diverted.get(&path)
                && *by != package.locked.name
            {
                path = to.clone();
            }
            self.add(at, packages, raw, path, node)?;
        }
        Ok(())
    }

    /// dpkg keeps a directory, or a link to one, that is there already.
    fn add_dir(&mut self, path: Path, node: Node) {
        if path.is_empty() || self.tree.get(&path).is_some_and(Node::is_dir) {
            return;
        }
        if matches!(self.tree.get(&path).map(|node| &node.kind), Some(Kind::Symlink { .. })) {
            let target = self.follow(&path);
            if self.tree.get(&target).is_some_and(Node::is_dir) {
                return;
            }
        }
        self.tree.insert(&path, node);
    }

    fn add(
        &mut self,
        at: usize,
        packages: &[Unpacked],
        raw: Path,
        path: Path,
        mut node: Node,
    ) -> Result<(), BaseError> {
        if self.tree.get(&path).is_some_and(Node::is_dir) {
            // A link over a directory that others filled: dpkg leaves the directory.
            if matches!(node.kind, Kind::Symlink { .. }) {
                return Ok(());
            }
            let what = format!("/{} is a directory of another package", show(&path));
            return Err(BaseError::Deb { package: packages[at].locked.label(), what });
        }
        if let Some((owner, _)) = self.owners.get(&path)
            && packages[*owner]
                .control
                .related("Replaces")
                .contains(&packages[at].locked.name.as_str())
        {
            return Ok(());
        }
        let first = match &node.kind {
            Kind::Hardlink { to } => Some(to.clone()),
            Kind::File { .. } => Some([b"data/".as_slice(), &raw].concat()),
            _ => None,
        };
        if let Kind::Hardlink { to } = &node.kind
            && let Some(target) = packages[at].tree.get(to)
        {
            node.kind = target.kind.clone();
        }
        self.tree.insert(&path, node);
        self.owners.insert(path.clone(), (at, raw));
        if let Some(first) = first {
            self.links.entry((at, first)).or_default().push(path);
        }
        Ok(())
    }

    /// Ties the names of each file together that are still that package's.
    fn relink(&mut self) {
        for ((at, _), mut names) in std::mem::take(&mut self.links) {
            names.retain(|name| self.owners.get(name).is_some_and(|(owner, _)| *owner == at));
            names.sort();
            names.dedup();
            let mut names = names.into_iter();
            let Some(first) = names.next() else { continue };
            for name in names {
                if let Some(node) = self.tree.entries.get_mut(&name) {
                    node.kind = Kind::Hardlink { to: first.clone() };
                }
            }
        }
    }

    /// Where `path` is when the links among its parents are followed.
    fn resolve(&mut self, path: &[u8]) -> Path {
        let Some(cut) = path.iter().rposition(|byte| *byte == b'/') else { return path.to_vec() };
        let (parent, name) = (&path[..cut], &path[cut + 1..]);
        let parent = match self.resolved.get(parent) {
            Some(known) => known.clone(),
            None => {
                let known = self.follow(parent);
                if self.tree.get(&known).is_some() {
                    self.resolved.insert(parent.to_vec(), known.clone());
                }
                known
            }
        };
        paths::join(&parent, name)
    }

    /// Where `path` is when all its links are followed; never out of the tree.
    fn follow(&self, path: &[u8]) -> Path {
        paths::resolve(&self.tree, path, true).unwrap_or_else(|_| path.to_vec())
    }
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
