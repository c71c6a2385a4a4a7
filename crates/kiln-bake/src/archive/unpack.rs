//! Entries into a tree, as `tar -x` in a chroot at the destination would: no name and no link leads
//! out of it.
//!
//! Names of one file share owner, mode and attributes, and an archive may change them by any of
//! them, or remove the first. So while unpacking, files with several names are kept apart as
//! [`Group`]s; at the end the name that sorts first holds the content, as a [`Tree`] has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;

use kiln_archive::{
    ArchiveError, Entry, EntryKind, Limits, NAME_MAX, PATH_MAX, Reader, parts, shown,
};
use kiln_core::tree::{Kind, Node, Path, Tree};
use kiln_store::Store;

use super::UnpackError;
use crate::paths;
use crate::users::Owner;

/// Where an archive goes to.
#[derive(Debug)]
pub(crate) struct Destination<'a> {
    /// Takes the contents.
    pub(crate) store: &'a Store,
    /// An existing directory of the tree, resolved.
    pub(crate) dest: &'a [u8],
    /// Whose everything becomes; else whose the archive says.
    pub(crate) chown: Option<Owner>,
    /// How much it may be.
    pub(crate) limits: Limits,
}

/// How many links may follow one another, as in `moby/go-archive`.
const MAX_LINKS: usize = 255;
/// Longest value of an attribute, in bytes, as in Linux.
const XATTR_MAX: usize = 64 << 10;

/// Unpacks all of `from` into `tree`.
///
/// # Errors
/// [`UnpackError`]; contents that were put before stay in the store until it is collected.
pub(crate) fn unpack(
    tree: Tree,
    into: &Destination<'_>,
    from: &mut dyn Read,
) -> Result<Tree, UnpackError> {
    let mut work = Unpacking::new(tree, into);
    let mut reader =
        Reader::new(kiln_archive::open(from, into.limits).map_err(ArchiveError::from)?);
    while let Some(entry) = reader.next_entry()? {
        let named = |what| UnpackError::Entry { entry: shown(&entry.name), what };
        let place = work.place(&entry).map_err(named)?;
        let Some(at) = place else { continue };
        if let EntryKind::Link(target) = &entry.kind {
            work.link(at, target, &entry).map_err(named)?;
            continue;
        }
        let mut node = work.node(&entry).map_err(named)?;
        if entry.kind == EntryKind::File {
            let put = into.store.put_reader(&mut reader).map_err(unwrap);
            let (digest, size) = put.map_err(|error| match error {
                UnpackError::Archive(ArchiveError::Damaged(what)) => named(what),
                other => other,
            })?;
            node.kind = Kind::File { size, digest };
        }
        work.put(at, node);
    }
    reader.finish()?;
    Ok(work.finish())
}

/// An error of the archive that the store passed on.
fn unwrap(error: kiln_store::Error) -> UnpackError {
    match error {
        kiln_store::Error::Io { doing, path, source } => match source.downcast::<ArchiveError>() {
            Ok(own) => own.into(),
            Err(source) => kiln_store::Error::Io { doing, path, source }.into(),
        },
        other => other.into(),
    }
}

/// A file with several names.
struct Group {
    node: Node,
    names: BTreeSet<Path>,
}

struct Unpacking<'a> {
    into: &'a Destination<'a>,
    tree: Tree,
    groups: Vec<Group>,
    /// The group of each name that has one; in the tree such a name is a file.
    group_of: HashMap<Path, usize>,
    /// The parent that was resolved last, as written and as found: entries come by directory.
    last: Option<(Path, Path)>,
}

impl<'a> Unpacking<'a> {
    fn new(tree: Tree, into: &'a Destination<'a>) -> Self {
        let (groups, group_of) = (Vec::new(), HashMap::new());
        let mut work = Self { into, tree, groups, group_of, last: None };
        let links: Vec<(Path, Path)> = work
            .tree
            .entries
            .iter()
            .filter_map(|(path, node)| match &node.kind {
                Kind::Hardlink { to } => Some((path.clone(), to.clone())),
                _ => None,
            })
            .collect();
        for (path, to) in links {
            work.join(path, &to);
        }
        work
    }

    /// Where an entry goes, its parents made and what is in its way removed; `None` for the
    /// destination itself, which stays as it is.
    fn place(&mut self, entry: &Entry) -> Result<Option<Path>, String> {
        let name = clean(&entry.name)?;
        if name.is_empty() {
            return Ok(None);
        }
        let at = self.resolve(&name)?;
        self.make_parents(&at)?;
        let dir = entry.kind == EntryKind::Dir;
        if self.tree.get(&at).is_some_and(|old| !(dir && old.is_dir())) {
            self.remove(&at);
        }
        Ok(Some(at))
    }

    /// The key of `name` in the tree: links on the way to it followed, not the last part itself.
    fn resolve(&mut self, name: &[u8]) -> Result<Path, String> {
        let parent = paths::parent(name);
        let known = self.last.as_ref().filter(|(written, _)| written == parent);
        let found = match known {
            Some((_, found)) => found.clone(),
            None => self.resolve_dir(parent)?,
        };
        self.last = Some((parent.to_vec(), found.clone()));
        let key = paths::join(&found, paths::base_name(name));
        if key.len() > PATH_MAX {
            return Err("its path is too long".into());
        }
        Ok(key)
    }

    /// Follows links as a chroot at the destination does. A relative one that climbs out of it is
    /// an attempt to break out, as in the reference; after an absolute one, `..` stops at the top.
    fn resolve_dir(&self, path: &[u8]) -> Result<Path, String> {
        let dest = self.into.dest;
        let mut done = dest.to_vec();
        let mut rest: Vec<&[u8]> = parts(path).rev().collect();
        let mut links = 0;
        let mut absolute = false;
        while let Some(part) = rest.pop() {
            if part == b".." {
                if done == dest && !absolute {
                    return Err("a link on its way leads out of the destination".into());
                }
                if done != dest {
                    done = paths::parent(&done).to_vec();
                }
                continue;
            }
            let next = paths::join(&done, part);
            match self.tree.get(&next).map(|node| &node.kind) {
                Some(Kind::Symlink { target }) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err("too many symbolic links on its way".into());
                    }
                    if target.starts_with(b"/") {
                        done = dest.to_vec();
                        absolute = true;
                    }
                    rest.extend(parts(target).rev());
                }
                Some(Kind::Dir) | None => done = next,
                Some(_) => return Err(format!("`{}` is no directory", shown(&next))),
            }
        }
        Ok(done)
    }

    /// Directories that the archive does not name are root's, mode 0755.
    fn make_parents(&mut self, at: &[u8]) -> Result<(), String> {
        let parent = paths::parent(at);
        if self.tree.get(parent).is_some_and(Node::is_dir) {
            return Ok(());
        }
        let ends = parent.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([parent.len()]) {
            let part = &parent[..end];
            match self.tree.get(part).map(Node::is_dir) {
                Some(true) => {}
                Some(false) => return Err(format!("`{}` is no directory", shown(part))),
                None => {
                    self.tree.entries.insert(part.to_vec(), Node::new(Kind::Dir, 0o755));
                }
            }
        }
        Ok(())
    }

    /// What an entry says, contents aside.
    fn node(&self, entry: &Entry) -> Result<Node, String> {
        let device = |major: u64, minor: u64| -> Result<(u32, u32), String> {
            if (major, minor) == (0, 0) || major > 0xfff || minor > 0xf_ffff {
                return Err(format!("there is no device {major}:{minor}"));
            }
            Ok((major as u32, minor as u32))
        };
        let kind = match &entry.kind {
            EntryKind::Dir => Kind::Dir,
            // Both get their contents from the caller.
            EntryKind::File | EntryKind::Link(_) => {
                Kind::File { size: 0, digest: kiln_core::Digest::from_bytes([0; 32]) }
            }
            EntryKind::Symlink(target) => {
                if target.is_empty() || target.len() > PATH_MAX {
                    return Err("its link is empty or too long".into());
                }
                Kind::Symlink { target: target.clone() }
            }
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Char(major, minor) => {
                let (major, minor) = device(*major, *minor)?;
                Kind::CharDevice { major, minor }
            }
            EntryKind::Block(major, minor) => {
                let (major, minor) = device(*major, *minor)?;
                Kind::BlockDevice { major, minor }
            }
            EntryKind::Other(flag) => {
                let flag = char::from(*flag).escape_default();
                return Err(format!("its type `{flag}` is none that can be unpacked"));
            }
        };
        let mode = (entry.mode & 0o7777) as u16;
        let mut node = Node::new(kind, mode).with_archive_time(entry.time);
        let owner = match self.into.chown {
            Some(Owner { uid, gid }) => (uid, gid),
            None => (id(entry.uid)?, id(entry.gid)?),
        };
        (node.uid, node.gid) = owner;
        node.xattrs = xattrs(entry, &node.kind)?;
        Ok(node)
    }

    /// Puts what has no former self, or a directory over a directory.
    fn put(&mut self, at: Path, mut node: Node) {
        if matches!(node.kind, Kind::Symlink { .. }) {
            self.last = None;
        }
        if let Some(old) = self.tree.entries.get(&at) {
            // Attributes that the archive does not name stay.
            for (name, value) in &old.xattrs {
                node.xattrs.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        self.tree.entries.insert(at, node);
    }

    /// Makes `at` a further name of what `target` names, with what the entry says of it.
    fn link(&mut self, at: Path, target: &[u8], entry: &Entry) -> Result<(), String> {
        let name = clean(target).map_err(|what| format!("its link `{}`: {what}", shown(target)))?;
        let to = self.resolve(&name)?;
        let said = self.node(entry)?;
        match self.tree.get(&to).map(|node| &node.kind) {
            None => Err(format!("it links to `{}`, which is not there", shown(target))),
            Some(Kind::Dir) => Err(format!("it links to `{}`, a directory", shown(target))),
            Some(Kind::File { .. }) => {
                let file = self.tree.get(&to).cloned();
                self.tree.entries.extend(file.map(|file| (at.clone(), file)));
                self.join(at.clone(), &to);
                let group = self.group_of.get(&at).and_then(|group| self.groups.get_mut(*group));
                if let Some(Group { node, .. }) = group {
                    (node.uid, node.gid, node.mode) = (said.uid, said.gid, said.mode);
                    node.time = said.time;
                    node.xattrs.extend(said.xattrs);
                }
                Ok(())
            }
            // A second one of the same is all that a link to anything else can show.
            Some(_) => {
                let other = self.tree.get(&to).cloned();
                self.last = None;
                self.tree.entries.extend(other.map(|other| (at, other)));
                Ok(())
            }
        }
    }

    /// Puts `path` into the group of the file at `to`.
    fn join(&mut self, path: Path, to: &[u8]) {
        let group = match self.group_of.get(to) {
            Some(group) => *group,
            None => {
                let Some(node) = self.tree.get(to).cloned() else { return };
                self.groups.push(Group { node, names: BTreeSet::from([to.to_vec()]) });
                self.group_of.insert(to.to_vec(), self.groups.len() - 1);
                self.groups.len() - 1
            }
        };
        let Group { node, names } = &mut self.groups[group];
        self.tree.entries.insert(path.clone(), node.clone());
        names.insert(path.clone());
        self.group_of.insert(path, group);
    }

    /// Removes what is at `at` and all below it.
    fn remove(&mut self, at: &[u8]) {
        self.last = None;
        let mut below = at.to_vec();
        below.push(b'/');
        let range = self.tree.entries.range(below.clone()..);
        let below: Vec<Path> = range
            .take_while(|(path, _)| path.starts_with(&below))
            .map(|(path, _)| path.clone())
            .collect();
        for path in below.iter().map(Vec::as_slice).chain([at]) {
            self.tree.entries.remove(path);
            if let Some(group) = self.group_of.remove(path) {
                self.groups[group].names.remove(path);
            }
        }
    }

    /// The tree, with every group in its canonical form.
    fn finish(mut self) -> Tree {
        for Group { mut node, names } in self.groups {
            let mut names = names.into_iter();
            let Some(first) = names.next() else { continue };
            self.tree.entries.insert(first.clone(), node.clone());
            node.kind = Kind::Hardlink { to: first };
            self.tree.entries.extend(names.map(|name| (name, node.clone())));
        }
        self.tree
    }
}

/// A name below the destination, `.` and `..` undone; empty for the destination itself.
fn clean(name: &[u8]) -> Result<Path, String> {
    let mut clean: Vec<&[u8]> = Vec::new();
    for part in parts(name) {
        if part == b".." {
            clean.pop().ok_or("it leads out of the destination")?;
        } else if part.len() > NAME_MAX || part.contains(&0) {
            return Err("it has a part that is too long, or a zero byte".into());
        } else {
            clean.push(part);
        }
    }
    let clean = clean.join(&b'/');
    if clean.len() > PATH_MAX { Err("its path is too long".into()) } else { Ok(clean) }
}

/// The highest number stands for "unchanged" in chown(2): nobody has it.
fn id(number: u64) -> Result<u32, String> {
    u32::try_from(number)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| format!("{number} is no number of an owner"))
}

/// The attributes that images keep, where Linux lets them be.
fn xattrs(entry: &Entry, kind: &Kind) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let mut kept = BTreeMap::new();
    let file = matches!(kind, Kind::File { .. });
    for (name, value) in &entry.xattrs {
        let user = name.starts_with(b"user.") && (file || matches!(kind, Kind::Dir));
        let capability = name == b"security.capability" && file;
        if !user && !capability {
            continue;
        }
        // Versions 2 and 3 of `struct vfs_cap_data`; the kernel takes no other.
        let valid = match (capability, value.as_slice()) {
            (true, [_, _, _, 2, ..]) => value.len() == 20,
            (true, [_, _, _, 3, ..]) => value.len() == 24,
            (true, _) => false,
            (false, _) => {
                (6..=NAME_MAX).contains(&name.len())
                    && !name.contains(&0)
                    && value.len() <= XATTR_MAX
            }
        };
        if !valid {
            return Err(format!("its attribute `{}` is none that a file can have", shown(name)));
        }
        kept.insert(name.clone(), value.clone());
    }
    Ok(kept)
}
