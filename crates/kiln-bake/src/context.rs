//! The build context as a tree: what of a directory a COPY can see.
//!
//! Files get Git's two modes (0644, 0755), directories 0755, everything is root's; symlinks stay;
//! times, extended attributes and hard links do not count. So the same source gives the same tree
//! on any machine. Contents stay where they are until a COPY needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kiln_core::Tree;
use kiln_core::digest::{Digest, Hasher};
use kiln_core::tree::{Kind, Node};
use kiln_store::Store;

use crate::error::BakeError;
use crate::ignore::{Ignore, Matched};
use crate::key::Key;
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
}

impl Snapshot {
    /// Walks `root`. Files that the cache of `store` knows as unchanged are not read.
    ///
    /// # Errors
    /// The directory is not there or something in it cannot be read.
    pub fn take(store: &Store, root: &Path, ignore: &Ignore) -> Result<Self, BakeError> {
        let meta = fs::metadata(root).map_err(|error| {
            let what = format!("the build context {} cannot be used: {error}", root.display());
            BakeError::usage(what, "check `build.context` in the Compose file")
        })?;
        if !meta.is_dir() {
            let what = format!("the build context {} is not a directory", root.display());
            return Err(BakeError::usage(what, "check `build.context` in the Compose file"));
        }
        let mut walk =
            Walk { root, ignore, nodes: vec![], files: vec![], special: BTreeSet::new() };
        walk.nodes.push((Vec::new(), Node::new(Kind::Dir, 0o755)));
        walk.directory(root, &[], &Matched::new())?;
        walk.finish(store)
    }

    /// Puts the contents of `files` (paths and what they should be) into the store.
    ///
    /// # Errors
    /// A file cannot be read, or changed since the snapshot.
    pub fn put(store: &Store, root: &Path, files: &[(Vec<u8>, Digest)]) -> Result<(), BakeError> {
        parallel::map(files, |(path, digest)| {
            if store.contains(digest) {
                return Ok(());
            }
            let file = root.join(std::ffi::OsStr::from_bytes(path));
            let open = File::open(&file).map_err(|e| BakeError::io("cannot read", &file, e))?;
            let (found, _) = store.put_open_file(&open).map_err(BakeError::store)?;
            if found == *digest { Ok(()) } else { Err(changing(&file)) }
        })?;
        Ok(())
    }
}

fn changing(file: &Path) -> BakeError {
    BakeError::Failed(format!("{} changed while it was baked; bake again", file.display()))
}

struct Walk<'a> {
    root: &'a Path,
    ignore: &'a Ignore,
    nodes: Vec<(Vec<u8>, Node)>,
    files: Vec<(Vec<u8>, Stamp)>,
    special: BTreeSet<Vec<u8>>,
}

impl Walk<'_> {
    /// Walks one directory; says whether anything in it is kept.
    fn directory(&mut self, dir: &Path, key: &[u8], above: &Matched) -> Result<bool, BakeError> {
        let failed = |error| BakeError::io("cannot read", dir, error);
        let mut any = false;
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = paths::join(key, entry.file_name().as_bytes());
            let (ignored, matched) = if self.ignore.is_empty() {
                (false, Matched::new())
            } else {
                self.ignore.matches(&String::from_utf8_lossy(&path), above)
            };
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // Gone between reading the directory and looking: as if it had never been there.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(BakeError::io("cannot read", entry.path(), error)),
            };
            any |= if meta.is_dir() {
                self.subdirectory(&entry.path(), path, ignored, &matched)?
            } else {
                !ignored && self.entry(&entry.path(), path, &meta)?
            };
        }
        Ok(any)
    }

    fn subdirectory(
        &mut self,
        dir: &Path,
        path: Vec<u8>,
        ignored: bool,
        matched: &Matched,
    ) -> Result<bool, BakeError> {
        if ignored && !self.ignore.may_take_back_below(&String::from_utf8_lossy(&path)) {
            return Ok(false);
        }
        // One that is left out itself is there only for what is taken back below it.
        let any = self.directory(dir, &path, matched)?;
        if any || !ignored {
            self.nodes.push((path, Node::new(Kind::Dir, 0o755)));
        }
        Ok(any || !ignored)
    }

    fn entry(&mut self, file: &Path, path: Vec<u8>, meta: &Metadata) -> Result<bool, BakeError> {
        let kind = meta.file_type();
        if kind.is_file() {
            let executable = meta.permissions().mode() & 0o100 != 0;
            let pending = Kind::File { size: meta.len(), digest: Digest::from_bytes([0; 32]) };
            self.nodes
                .push((path.clone(), Node::new(pending, if executable { 0o755 } else { 0o644 })));
            self.files.push((path, Stamp::of(meta)));
        } else if kind.is_symlink() {
            let target = fs::read_link(file).map_err(|e| BakeError::io("cannot read", file, e))?;
            let target = target.into_os_string().into_vec();
            self.nodes.push((path, Node::new(Kind::Symlink { target }, 0)));
        } else {
            debug_assert!(
                kind.is_socket()
                    || kind.is_fifo()
                    || kind.is_char_device()
                    || kind.is_block_device()
            );
            self.special.insert(path);
            return Ok(false);
        }
        Ok(true)
    }

    fn finish(self, store: &Store) -> Result<Snapshot, BakeError> {
        let name = Key::new("context")
            .bytes(self.root.as_os_str().as_bytes())
            .list(&self.ignore.patterns())
            .finish()
            .hex();
        let at = store.root().join("cache/contexts").join(name);
        let known = StatCache::load(&at);
        let begun = SystemTime::now();
        let mut fresh = StatCache::default();
        let mut digests: BTreeMap<Vec<u8>, (u64, Digest)> = BTreeMap::new();
        let mut unknown = Vec::new();
        let mut kept = 0;
        for (path, stamp) in self.files {
            match known.get(&path, &stamp) {
                Some(digest) => {
                    kept += 1;
                    fresh.insert(path, stamp, digest);
                }
                None => unknown.push(path),
            }
        }
        let hashed = parallel::map(&unknown, |path| hash(self.root, path))?;
        for (path, (stamp, size, digest)) in unknown.iter().zip(&hashed) {
            if stamp.settled(begun) {
                fresh.insert(path.clone(), *stamp, *digest);
            }
            digests.insert(path.clone(), (*size, *digest));
        }
        let mut nodes = self.nodes;
        for (path, node) in &mut nodes {
            let Kind::File { size, digest } = &mut node.kind else { continue };
            if let Some((found, of)) = digests.get(path) {
                (*size, *digest) = (*found, *of);
            } else if let Some(known) = fresh.digest(path) {
                *digest = known;
            }
        }
        if fresh.len() != known.len() || kept != known.len() {
            let scratch = store.scratch_dir().map_err(BakeError::store)?;
            fresh.save(&at, scratch.path());
        }
        let tree = Tree { entries: nodes.into_iter().collect() };
        Ok(Snapshot { root: self.root.to_owned(), tree, special: self.special })
    }
}

/// Reads a file to its digest; a file that changes meanwhile is read again a few times.
fn hash(root: &Path, path: &[u8]) -> Result<(Stamp, u64, Digest), BakeError> {
    let file = root.join(std::ffi::OsStr::from_bytes(path));
    let failed = |error| BakeError::io("cannot read", &file, error);
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..5 {
        let mut open = File::open(&file).map_err(failed)?;
        let before = Stamp::of(&open.metadata().map_err(failed)?);
        let mut hasher = Hasher::new();
        let mut size = 0;
        loop {
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
