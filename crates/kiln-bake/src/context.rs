//! The build context as a tree: what of a directory a COPY can see.
//!
//! Files get Git's two modes (0644, 0755), directories 0755, everything is root's; symlinks stay;
//! times, extended attributes and hard links do not count. So the same source gives the same tree
//! on any machine. Contents stay where they are until a COPY needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use kiln_core::Tree;
use kiln_core::digest::{Digest, Hasher};
use kiln_core::tree::{Kind, Node};
use kiln_store::Store;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::error::BakeError;
use crate::ignore::{Ignore, Matched};
use crate::key::Key;
use crate::remembered::{self, Dir, Remembered};
use crate::statcache::{Stamp, StatCache};
use crate::{parallel, paths};

/// A context at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The directory.
    pub root: PathBuf,
    /// What is in it and not left out.
    pub tree: Tree,
    /// Sockets, pipes and devices: never part of a context, named when somebody asks for them.
    pub special: BTreeSet<Vec<u8>>,
    key: OnceLock<Digest>,
}

impl Snapshot {
    /// [`Snapshot::take`], or the one that this process took before if nothing changed since.
    ///
    /// # Errors
    /// As [`Snapshot::take`]; [`BakeError::Cancelled`] when `cancel` is set.
    pub(crate) fn recall(
        store: &Store,
        root: &Path,
        ignore: &Ignore,
        cancel: &AtomicBool,
    ) -> Result<Arc<Self>, BakeError> {
        let name = name(root, ignore);
        if let Some(known) = remembered::recall(&name) {
            return Ok(known);
        }
        let (snapshot, dirs) = Self::walk(store, root, ignore, cancel)?;
        let snapshot = Arc::new(snapshot);
        if let Some(dirs) = dirs {
            remembered::remember(name, Remembered { snapshot: Arc::clone(&snapshot), dirs });
        }
        Ok(snapshot)
    }

    /// A digest over everything in it, for keys.
    pub(crate) fn key(&self) -> Digest {
        *self.key.get_or_init(|| Key::new("context").entries(self.tree.entries.iter()).finish())
    }

    /// Walks `root`. Files that the cache of `store` knows as unchanged are not read.
    ///
    /// # Errors
    /// The directory is not there or something in it cannot be read.
    pub fn take(store: &Store, root: &Path, ignore: &Ignore) -> Result<Self, BakeError> {
        Ok(Self::walk(store, root, ignore, &AtomicBool::new(false))?.0)
    }

    /// Walks `root`; also gives what tells later whether anything changed, if that can be told.
    fn walk(
        store: &Store,
        root: &Path,
        ignore: &Ignore,
        cancel: &AtomicBool,
    ) -> Result<(Self, Option<Vec<Dir>>), BakeError> {
        let begun = SystemTime::now();
        let meta = fs::metadata(root).map_err(|error| {
            let what = format!("the build context {} cannot be used: {error}", root.display());
            BakeError::usage(what, "check `build.context` in the Compose file")
        })?;
        if !meta.is_dir() {
            let what = format!("the build context {} is not a directory", root.display());
            return Err(BakeError::usage(what, "check `build.context` in the Compose file"));
        }
        let mut walk =
            Walk { root, ignore, found: Vec::new(), special: BTreeSet::new(), walked: Vec::new() };
        walk.found.push(Found::new(Vec::new(), Node::new(Kind::Dir, 0o755), None));
        walk.all()?;
        walk.digests(store, cancel)?;
        let dirs = walk.dirs(begun);
        let entries = walk.found.into_iter().map(|found| (found.path, found.node)).collect();
        let tree = Tree { entries };
        let (root, special) = (root.to_owned(), walk.special);
        Ok((Self { root, tree, special, key: OnceLock::new() }, dirs))
    }

    /// Puts the contents of `files` (paths and what they should be) into the store.
    ///
    /// # Errors
    /// A file cannot be read, or changed since the snapshot.
    pub fn put(store: &Store, root: &Path, files: &[(Vec<u8>, Digest)]) -> Result<(), BakeError> {
        parallel::map(files, |(path, digest)| {
            if store.seems_whole(digest).unwrap_or(false) {
                return Ok(());
            }
            let file = root.join(std::ffi::OsStr::from_bytes(path));
            let open = open_inside(root, path)?;
            let (found, _) = store.copy_open_file(&open).map_err(BakeError::store)?;
            if found == *digest { Ok(()) } else { Err(changing(&file)) }
        })?;
        Ok(())
    }
}

/// Opens a file of a context: no link leads to it, whatever stands there by now, and no pipe is
/// waited for.
///
/// # Errors
/// It is no such file any more, or cannot be read.
pub(crate) fn open_inside(root: &Path, path: &[u8]) -> Result<File, BakeError> {
    let file = root.join(std::ffi::OsStr::from_bytes(path));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let top =
        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let opened = top.and_then(|top| {
        loop {
            // EAGAIN: something in the folder was renamed meanwhile.
            match openat2(&top, path, flags, Mode::empty(), inside) {
                Err(Errno::AGAIN) => {}
                opened => break opened,
            }
        }
    });
    match opened.map(File::from) {
        Ok(open) if open.metadata().is_ok_and(|meta| meta.is_file()) => Ok(open),
        Ok(_) | Err(Errno::LOOP | Errno::NOENT | Errno::NOTDIR | Errno::NXIO) => {
            Err(changing(&file))
        }
        Err(error) => Err(BakeError::io("cannot read", &file, error.into())),
    }
}

fn changing(file: &Path) -> BakeError {
    BakeError::Failed(format!("{} changed while it was baked; bake again", file.display()))
}

/// So many directories of one level are walked on two threads: `stat` is most of the work.
const WORTH: usize = 4;

struct Walk<'a> {
    root: &'a Path,
    ignore: &'a Ignore,
    found: Vec<Found>,
    special: BTreeSet<Vec<u8>>,
    /// Directories that were read, with their stamps from before that.
    walked: Vec<(Vec<u8>, Stamp)>,
}

/// An entry.
struct Found {
    path: Vec<u8>,
    node: Node,
    /// For a file, what `stat` says of it.
    stamp: Option<Stamp>,
    /// A directory that is left out itself: it is there only for what is taken back below it.
    ignored: bool,
}

impl Found {
    fn new(path: Vec<u8>, node: Node, stamp: Option<Stamp>) -> Self {
        Self { path, node, stamp, ignored: false }
    }
}

/// A directory to walk: where it is in the context, and which patterns matched it.
struct Below {
    path: Vec<u8>,
    matched: Matched,
}

/// What one directory has.
struct Level {
    dir: (Vec<u8>, Stamp),
    found: Vec<Found>,
    special: Vec<Vec<u8>>,
    below: Vec<Below>,
}

impl Walk<'_> {
    /// Walks everything, level by level.
    fn all(&mut self) -> Result<(), BakeError> {
        let mut level = vec![Below { path: Vec::new(), matched: Matched::new() }];
        while !level.is_empty() {
            let dirs = parallel::map_from(WORTH, &level, |dir| self.directory(dir))?;
            level.clear();
            for dir in dirs {
                self.found.extend(dir.found);
                self.special.extend(dir.special);
                self.walked.push(dir.dir);
                level.extend(dir.below);
            }
        }
        self.found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.drop_empty();
        Ok(())
    }

    /// Drops directories that are left out and have nothing that is taken back.
    fn drop_empty(&mut self) {
        if !self.found.iter().any(|found| found.ignored) {
            return;
        }
        let mut kept: Vec<Found> = Vec::with_capacity(self.found.len());
        // Backwards, so that what lies below a directory was seen before it.
        for found in std::mem::take(&mut self.found).into_iter().rev() {
            let inside = |other: &Found| {
                let rest = other.path.strip_prefix(found.path.as_slice());
                rest.is_some_and(|rest| rest.first() == Some(&b'/'))
            };
            // Between a directory and its entries lie only names that begin with its own.
            let mut after =
                kept.iter().rev().take_while(|other| other.path.starts_with(&found.path));
            if !found.ignored || after.any(inside) {
                kept.push(found);
            }
        }
        kept.reverse();
        self.found = kept;
    }

    fn directory(&self, at: &Below) -> Result<Level, BakeError> {
        let dir = self.root.join(std::ffi::OsStr::from_bytes(&at.path));
        let failed = |error| BakeError::io("cannot read", &dir, error);
        let stamp = Stamp::of(&fs::metadata(&dir).map_err(failed)?);
        let mut level = Level {
            dir: (at.path.clone(), stamp),
            found: Vec::new(),
            special: Vec::new(),
            below: Vec::new(),
        };
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = paths::join(&at.path, entry.file_name().as_bytes());
            let (ignored, matched) = if self.ignore.is_empty() {
                (false, Matched::new())
            } else {
                self.ignore.matches(&String::from_utf8_lossy(&path), &at.matched)
            };
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // Gone between reading the directory and looking: as if it had never been there.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(BakeError::io("cannot read", entry.path(), error)),
            };
            if !meta.is_dir() {
                if !ignored {
                    level.entry(&entry, path, &meta)?;
                }
                continue;
            }
            if ignored && !self.ignore.may_take_back_below(&String::from_utf8_lossy(&path)) {
                continue;
            }
            let node = Node::new(Kind::Dir, 0o755);
            level.found.push(Found { ignored, ..Found::new(path.clone(), node, None) });
            level.below.push(Below { path, matched });
        }
        Ok(level)
    }
}

impl Level {
    fn entry(
        &mut self,
        entry: &fs::DirEntry,
        path: Vec<u8>,
        meta: &Metadata,
    ) -> Result<(), BakeError> {
        let kind = meta.file_type();
        if kind.is_file() {
            let mode = if meta.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
            let unread = Kind::File { size: meta.len(), digest: Digest::from_bytes([0; 32]) };
            let stamp = Some(Stamp::of(meta));
            self.found.push(Found::new(path, Node::new(unread, mode), stamp));
        } else if kind.is_symlink() {
            let file = entry.path();
            let target = fs::read_link(&file).map_err(|e| BakeError::io("cannot read", file, e))?;
            let target = target.into_os_string().into_vec();
            self.found.push(Found::new(path, Node::new(Kind::Symlink { target }, 0), None));
        } else {
            // A socket, a pipe or a device.
            self.special.push(path);
        }
        Ok(())
    }
}

impl Walk<'_> {
    /// Fills in the digests: those of unchanged files from the cache, the others by reading.
    fn digests(&mut self, store: &Store, cancel: &AtomicBool) -> Result<(), BakeError> {
        let name = name(self.root, self.ignore).hex();
        let at = store.root().join("cache/contexts").join(name);
        let known = StatCache::load(&at);
        let mut cursor = known.cursor();
        let mut unknown = Vec::new();
        let mut kept = 0;
        for (index, found) in self.found.iter_mut().enumerate() {
            let (Some(stamp), Kind::File { digest, .. }) = (&found.stamp, &mut found.node.kind)
            else {
                continue;
            };
            match cursor.get(&found.path, stamp) {
                Some(unchanged) => {
                    *digest = unchanged;
                    kept += 1;
                }
                None => unknown.push(index),
            }
        }
        let begun = SystemTime::now();
        let read =
            parallel::map(&unknown, |index| hash(self.root, &self.found[*index].path, cancel))?;
        let mut fresh = false;
        for (index, (stamp, size, digest)) in unknown.into_iter().zip(read) {
            let found = &mut self.found[index];
            found.node.kind = Kind::File { size, digest };
            found.stamp = stamp.settled(begun).then_some(stamp);
            fresh |= found.stamp.is_some();
        }
        if fresh || kept != known.len() {
            let files =
                self.found.iter().filter_map(|found| match (found.stamp, &found.node.kind) {
                    (Some(stamp), Kind::File { digest, .. }) => {
                        Some((found.path.as_slice(), stamp, *digest))
                    }
                    _ => None,
                });
            StatCache::save(&at, files);
        }
        Ok(())
    }

    /// What tells whether anything changed since the walk, which began at `begun`; `None` if
    /// something was changed too shortly before to tell.
    fn dirs(&mut self, begun: SystemTime) -> Option<Vec<Dir>> {
        let mut dirs: BTreeMap<&[u8], Dir> = BTreeMap::new();
        for (path, stamp) in &self.walked {
            let settled = stamp.settled(begun).then_some(*stamp)?;
            let dir = Dir { path: cstring(path)?, stamp: settled, files: Vec::new() };
            dirs.insert(path, dir);
        }
        for found in &self.found {
            if let Kind::File { .. } = found.node.kind {
                let dir = dirs.get_mut(paths::parent(&found.path))?;
                dir.files.push((cstring(paths::base_name(&found.path))?, found.stamp?));
            }
        }
        Some(dirs.into_values().collect())
    }
}

fn cstring(bytes: &[u8]) -> Option<CString> {
    CString::new(bytes).ok()
}

/// What a context is known by: where it is, and what is left out of it.
fn name(root: &Path, ignore: &Ignore) -> Digest {
    Key::new("context").bytes(root.as_os_str().as_bytes()).list(&ignore.patterns()).finish()
}

/// Reads a file to its digest; a file that changes meanwhile is read again a few times.
fn hash(root: &Path, path: &[u8], cancel: &AtomicBool) -> Result<(Stamp, u64, Digest), BakeError> {
    let file = root.join(std::ffi::OsStr::from_bytes(path));
    let failed = |error| BakeError::io("cannot read", &file, error);
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..5 {
        let mut open = open_inside(root, path)?;
        let before = Stamp::of(&open.metadata().map_err(failed)?);
        let mut hasher = Hasher::new();
        let mut size = 0;
        loop {
            if cancel.load(Ordering::Acquire) {
                return Err(BakeError::Cancelled);
            }
            match open.read(&mut buffer).map_err(failed)? {
                0 => break,
                n => {
                    hasher.update(&buffer[..n]);
                    size += n as u64;
                }
            }
        }
        if Stamp::of(&open.metadata().map_err(failed)?) == before {
            return Ok((before, size, hasher.finish()));
        }
    }
    Err(changing(&file))
}
