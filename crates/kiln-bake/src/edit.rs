//! Changes of a tree that need neither mount nor process: COPY, ADD, WORKDIR.
//!
//! An [`Edit`] waits until somebody needs the tree (a RUN, the end of the stage, a `--from`); then
//! all that wait are applied together, or found together in the step cache.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use kiln_archive::{NAME_MAX, PATH_MAX};
use kiln_core::digest::Digest;
use kiln_core::tree::{Kind, Node, Path, Tree};
use kiln_store::Store;

use crate::archive::{self, Limits, UnpackError};
use crate::context::Snapshot;
use crate::error::BakeError;
use crate::key::Key;
use crate::mode::Chmod;
use crate::paths;
use crate::users::{self, Owner};

/// One change, with its place in the Dockerfile.
#[derive(Debug, Clone)]
pub struct Edit {
    /// One-based number of its step.
    pub number: usize,
    /// One-based line.
    pub line: usize,
    /// What to do.
    pub op: Op,
}

/// What an [`Edit`] does.
#[derive(Debug, Clone)]
pub enum Op {
    /// COPY and ADD.
    Copy(CopyOp),
    /// WORKDIR: the directory is made if it is not there.
    Workdir {
        /// Absolute.
        path: String,
        /// `user[:group]` of what is made.
        owner: Option<String>,
    },
}

/// COPY and ADD with their sources selected.
#[derive(Debug, Clone)]
pub struct CopyOp {
    /// What to copy, in order.
    pub sources: Vec<Source>,
    /// Absolute and clean.
    pub dest: String,
    /// The destination was written with a slash at its end, or as `.`: it is a directory.
    pub into_directory: bool,
    /// `--chown`, expanded.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<Chmod>,
    /// `--link`: nothing of the tree is looked at. Directories take the place of links on the way,
    /// and copied ones have their own mode and owner.
    pub link: bool,
}

/// One file, directory or document to copy.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its own name, for when the destination is a directory.
    pub name: Path,
    /// The entry itself (under the empty path) and all below it, in order.
    pub entries: Vec<(Path, Node)>,
    /// Where contents come from.
    pub origin: Origin,
    /// It is an archive, and what is in it goes into the destination, a directory, with the modes
    /// that it has; at most so much.
    pub unpacked: Option<Limits>,
    /// Directories that come along only for what is below them: one that is there already keeps
    /// its owner.
    pub implied: BTreeSet<Path>,
}

/// Where the contents of a [`Source`] are.
#[derive(Debug, Clone)]
pub enum Origin {
    /// In the store already, from elsewhere.
    Store,
    /// In the store already: what this tree has at this path.
    Tree(Digest, Path),
    /// Below this directory of the host, at this path.
    Host(PathBuf, Path),
    /// Here.
    Inline(Vec<u8>),
}

impl Edit {
    /// Adds all that decides the outcome, beside the tree that is changed.
    pub(crate) fn key(&self, key: Key) -> Key {
        match &self.op {
            Op::Workdir { path, owner } => key.text("workdir").text(path).option(owner.as_deref()),
            Op::Copy(op) => {
                let chmod = op.chmod.as_ref().map(|chmod| format!("{chmod:?}"));
                let key = key
                    .text("copy")
                    .text(&op.dest)
                    .number(u64::from(op.into_directory))
                    .option(op.chown.as_deref())
                    .option(chmod.as_deref())
                    .number(u64::from(op.link))
                    .number(op.sources.len() as u64);
                op.sources.iter().fold(key, |key, source| {
                    let entries = source.entries.iter().map(|(path, node)| (path, node));
                    let key = key.number(u64::from(source.unpacked.is_some()));
                    let key = key.number(source.implied.len() as u64);
                    let key = source.implied.iter().fold(key, |key, path| key.bytes(path));
                    key.bytes(&source.name).entries(entries)
                })
            }
        }
    }

    /// Carries it out.
    ///
    /// # Errors
    /// What the user has to change, without place; or a failure of the store or the host.
    pub(crate) fn apply(&self, store: &Store, editor: &mut Editor) -> Result<(), EditError> {
        match &self.op {
            Op::Workdir { path, owner } => {
                let owner = owner.as_deref().unwrap_or("0");
                let owner = users::owner_or_root(store, &editor.tree, owner);
                let at = editor.resolve(&paths::key(path))?;
                editor.make_dirs(&at, 0o755, owner.map_err(EditError::User)?)
            }
            Op::Copy(op) => op.apply(store, editor),
        }
    }
}

/// Why an edit was not applied.
#[derive(Debug)]
pub(crate) enum EditError {
    /// The Dockerfile asks for what cannot be.
    User(String),
    /// Not the user's mistake.
    Failed(BakeError),
}

impl From<paths::LinkLoop> for EditError {
    fn from(error: paths::LinkLoop) -> Self {
        Self::User(error.to_string())
    }
}

fn resolve_owner(
    store: &Store,
    editor: &Editor,
    text: Option<&str>,
) -> Result<Option<Owner>, EditError> {
    text.map(|text| users::owner(store, &editor.tree, text)).transpose().map_err(EditError::User)
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// No program could open what is longer, and no step could run on it.
fn fits(path: &[u8]) -> Result<(), EditError> {
    let name = path.split(|byte| *byte == b'/').map(<[u8]>::len).max().unwrap_or_default();
    // Behind the slash of the root.
    let what = match (name > NAME_MAX, path.len() + 1 > PATH_MAX) {
        (true, _) => format!("a name in it has {name} bytes, and {NAME_MAX} are the most"),
        (_, true) => format!("it has {} bytes, and {PATH_MAX} are the most", path.len() + 1),
        _ => return Ok(()),
    };
    let mut start = shown(path);
    if let Some((at, _)) = start.char_indices().nth(60) {
        start.truncate(at);
        start.push('…');
    }
    Err(EditError::User(format!("the path `{start}` is too long: {what}")))
}

impl CopyOp {
    fn apply(&self, store: &Store, editor: &mut Editor) -> Result<(), EditError> {
        if !self.link {
            return self.apply_to(store, editor);
        }
        let mut layer = Editor::new(Tree::new());
        self.apply_to(store, &mut layer).map_err(|error| match error {
            EditError::User(what) if self.chown.is_some() => EditError::User(format!(
                "{what}; with --link the image is not looked at, so --chown needs numbers"
            )),
            error => error,
        })?;
        editor.lay(layer.finish());
        Ok(())
    }

    fn apply_to(&self, store: &Store, editor: &mut Editor) -> Result<(), EditError> {
        let chown = resolve_owner(store, editor, self.chown.as_deref())?;
        self.check_destination(editor)?;
        for source in &self.sources {
            if let Some(limits) = source.unpacked {
                self.unpack(store, source, limits, chown, editor)?;
                continue;
            }
            source.put(store)?;
            self.copy(source, chown, editor)?;
        }
        Ok(())
    }

    /// Unpacks an archive into the destination. As in the reference, `--chmod` and `--exclude` do
    /// not reach into it.
    fn unpack(
        &self,
        store: &Store,
        source: &Source,
        limits: Limits,
        chown: Option<Owner>,
        editor: &mut Editor,
    ) -> Result<(), EditError> {
        let dest = editor.resolve(&paths::key(&self.dest))?;
        editor.make_dirs(&dest, 0o755, chown.unwrap_or(Owner { uid: 0, gid: 0 }))?;
        let mut from = source.archive(store)?;
        let into = archive::Destination { store, dest: &dest, chown, limits };
        let tree = std::mem::take(&mut editor.tree);
        let failed = |error: UnpackError| {
            let name = String::from_utf8_lossy(&source.name);
            let what = format!("the archive `{name}` cannot be unpacked: {error}");
            match error.is_ours() {
                true => EditError::Failed(BakeError::Failed(what)),
                false => EditError::User(what),
            }
        };
        *editor = Editor::new(archive::unpack(tree, &into, &mut from).map_err(failed)?);
        from.finish().map_err(|error| failed(kiln_archive::ArchiveError::Read(error).into()))
    }

    /// Several files into what is no directory would each replace the one before.
    fn check_destination(&self, editor: &Editor) -> Result<(), EditError> {
        let file = |source: &Source| {
            let file = source.entries.first().is_some_and(|(_, node)| !node.is_dir());
            file && source.unpacked.is_none()
        };
        // A directory that comes first makes the destination one.
        if self.into_directory || self.sources.len() < 2 || !file(&self.sources[0]) {
            return Ok(());
        }
        let at = editor.resolve(&paths::key(&self.dest))?;
        if editor.tree.get(&at).is_some_and(Node::is_dir) {
            return Ok(());
        }
        let what = format!(
            "several sources are copied to `{}`, which is no directory; end it with `/`",
            self.dest
        );
        Err(EditError::User(what))
    }

    fn copy(
        &self,
        source: &Source,
        chown: Option<Owner>,
        editor: &mut Editor,
    ) -> Result<(), EditError> {
        let Some((_, root)) = source.entries.first() else { return Ok(()) };
        let made = chown.unwrap_or(Owner { uid: 0, gid: 0 });
        let made_mode = self.chmod.as_ref().map_or(0o755, Chmod::of_parents);
        let dest = paths::key(&self.dest);
        let first = if self.into_directory { dest.as_slice() } else { paths::parent(&dest) };
        let first = editor.resolve(first)?;
        editor.make_dirs(&first, made_mode, made)?;
        let mut at = editor.resolve(&dest)?;
        match editor.tree.get(&at).map(Node::is_dir) {
            Some(true) if !root.is_dir() => at = paths::join(&at, &source.name),
            None if root.is_dir() => editor.make_dirs(&at, made_mode, made)?,
            _ => editor.make_dirs(paths::parent(&at), made_mode, made)?,
        }
        for (relative, node) in &source.entries {
            let path = paths::join(&at, relative);
            if source.implied.contains(relative)
                && let Some(there) = editor.tree.entries.get_mut(&path).filter(|it| it.is_dir())
            {
                there.mode = node.mode;
                continue;
            }
            let mut node = node.clone();
            if let Some(owner) = chown {
                (node.uid, node.gid) = (owner.uid, owner.gid);
            }
            if let (Some(chmod), false) = (&self.chmod, matches!(node.kind, Kind::Symlink { .. })) {
                node.mode = chmod.apply(node.mode, node.is_dir());
            }
            if let Kind::Hardlink { to } = &mut node.kind {
                *to = paths::join(&at, to);
            }
            editor.place(path, node, relative.is_empty())?;
        }
        Ok(())
    }
}

impl Source {
    /// The archive that this is, to be read once.
    fn archive(&self, store: &Store) -> Result<archive::Checked, EditError> {
        let digest = self.entries.first().and_then(|(_, node)| match node.kind {
            Kind::File { digest, .. } => Some(digest),
            _ => None,
        });
        let (Some(digest), name) = (digest, String::from_utf8_lossy(&self.name)) else {
            let what = format!("`{}` is no archive", String::from_utf8_lossy(&self.name));
            return Err(EditError::User(what));
        };
        let file = match &self.origin {
            Origin::Host(root, path) => crate::context::open_inside(root, path),
            Origin::Store | Origin::Tree(..) => {
                store.open_object(&digest).map_err(BakeError::store)
            }
            Origin::Inline(_) => Err(BakeError::Failed(format!("`{name}` is no archive"))),
        };
        Ok(archive::Checked::new(file.map_err(EditError::Failed)?, digest))
    }

    /// Puts the contents into the store.
    pub(crate) fn put(&self, store: &Store) -> Result<(), EditError> {
        match &self.origin {
            Origin::Store | Origin::Tree(..) => Ok(()),
            Origin::Inline(bytes) => {
                store.put(bytes).map_err(|e| EditError::Failed(BakeError::store(e)))?;
                Ok(())
            }
            Origin::Host(root, path) => {
                let files: Vec<(Path, Digest)> = self
                    .entries
                    .iter()
                    .filter_map(|(relative, node)| match node.kind {
                        Kind::File { digest, .. } => Some((paths::join(path, relative), digest)),
                        _ => None,
                    })
                    .collect();
                Snapshot::put(store, root, &files).map_err(EditError::Failed)
            }
        }
    }
}

/// A tree under change.
#[derive(Debug)]
pub(crate) struct Editor {
    tree: Tree,
    /// First names of hard links: removing one of them moves the content to the next name.
    link_targets: HashSet<Path>,
}

impl Editor {
    pub(crate) fn new(tree: Tree) -> Self {
        let link_targets = targets(&tree);
        Self { tree, link_targets }
    }

    pub(crate) fn finish(self) -> Tree {
        self.tree
    }

    fn resolve(&self, path: &[u8]) -> Result<Path, paths::LinkLoop> {
        paths::resolve(&self.tree, path, true)
    }

    /// Removes an entry and all below it.
    pub(crate) fn remove(&mut self, path: &[u8]) {
        let Some(node) = self.tree.get(path) else { return };
        if node.is_dir() || self.link_targets.contains(path) {
            self.tree.remove(path);
            if !self.link_targets.is_empty() {
                self.link_targets = targets(&self.tree);
            }
        } else {
            self.tree.entries.remove(path);
        }
    }

    /// Sets an entry whose parent is there; a directory over a directory keeps its children.
    pub(crate) fn put(&mut self, path: Path, node: Node) {
        let both_dirs = node.is_dir() && self.tree.get(&path).is_some_and(Node::is_dir);
        if !both_dirs {
            self.remove(&path);
        }
        if let Kind::Hardlink { to } = &node.kind {
            self.link_targets.insert(to.clone());
        }
        self.tree.entries.insert(path, node);
    }

    /// Lays a tree over this one; its root says nothing.
    fn lay(&mut self, layer: Tree) {
        for (path, node) in layer.entries.into_iter().skip(1) {
            self.put(path, node);
        }
    }

    /// Makes the directory at `path`, a resolved path, and its parents.
    fn make_dirs(&mut self, path: &[u8], mode: u16, owner: Owner) -> Result<(), EditError> {
        fits(path)?;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let ends: Vec<usize> = ends.chain([path.len()]).collect();
        for end in ends {
            let part = &path[..end];
            match self.tree.get(part) {
                Some(node) if node.is_dir() => {}
                Some(_) => {
                    return Err(EditError::User(format!("`{}` is not a directory", shown(part))));
                }
                None => {
                    let mut node = Node::new(Kind::Dir, mode);
                    (node.uid, node.gid) = (owner.uid, owner.gid);
                    self.tree.entries.insert(part.to_vec(), node);
                }
            }
        }
        Ok(())
    }

    /// Puts a copied entry: directories merge, files and links replace anything but directories.
    fn place(&mut self, path: Path, node: Node, top: bool) -> Result<(), EditError> {
        fits(&path)?;
        match (node.is_dir(), self.tree.get(&path).map(Node::is_dir)) {
            // What is there already keeps its mode and owner where it is the destination itself.
            (true, Some(true)) if top => {}
            (true, Some(false)) => {
                let what = format!("a directory cannot replace `{}`", shown(&path));
                return Err(EditError::User(what));
            }
            (false, Some(true)) => {
                let what = format!("a file cannot replace the directory `{}`", shown(&path));
                return Err(EditError::User(what));
            }
            _ => self.put(path, node),
        }
        Ok(())
    }
}

fn targets(tree: &Tree) -> HashSet<Path> {
    let links = tree.entries.values().filter_map(|node| match &node.kind {
        Kind::Hardlink { to } => Some(to.clone()),
        _ => None,
    });
    links.collect()
}
