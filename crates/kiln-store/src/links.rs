//! Tree → folder of hard links, for kernels before 6.12.
//!
//! A hard link shares owner, mode and attributes with all its names, so there is one copy of a
//! content for each set of those that occurs: `links/objects/ab/<62 hex>`; the most common set
//! (0644, root, the constant time, no attributes) is the object itself. Within one tree, two entries with the same
//! content and the same attributes must not look like hard links to one another: the second one
//! takes a second copy, and so on. Real hard links of a tree share theirs.
//!
//! So all that a program can see is the same as with an image, but for the number of links of a
//! file, which also counts names in other trees. Where that must not be seen, every file is a copy.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use kiln_core::Digest;
use kiln_core::tree::{Kind, Node, Tree};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, XattrFlags};

use crate::durable::Published;
use crate::error::{Context as _, Error, Result};
use crate::mount::{remove_tree, times};
use crate::store::Store;

/// What the files of a folder are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Files {
    /// Hard links to what other folders have too.
    Links,
    /// Copies, each with as many links as it has names in the tree.
    Copies,
}

/// Builds the folder of `tree` at `dir`, which appears whole or not at all.
pub(crate) fn build(
    store: &Store,
    tree: &Tree,
    digest: &Digest,
    files: Files,
    dir: &Path,
) -> Result<()> {
    let root = store.root();
    let empty = root.join("links/empty");
    fs::create_dir_all(&empty).doing("creating", &empty)?;
    let staging = store.temporary("links");
    let mut builder = Builder { store, staging: &staging, files, copies: HashMap::new() };
    // Copies are a step's scratch, which no power cut spares.
    let _unsynced_early = match files {
        Files::Links => Some(store.inner.unsynced.mark(Published::Many)?),
        Files::Copies => None,
    };
    for (path, node) in &tree.entries {
        let made = builder.entry(path, node);
        made.map_err(|error| in_tree(digest, path, error))?;
    }
    // Filling a folder changes its time, so folders come last.
    for (path, node) in tree.entries.iter().rev().filter(|(_, node)| node.is_dir()) {
        let at = builder.at(path);
        dress(&at, node).map_err(|error| in_tree(digest, path, error.into()))?;
    }
    match fs::rename(&staging, dir) {
        Ok(()) => Ok(()),
        // Another process was faster; its tree is the same.
        Err(_) if dir.exists() => remove_tree(&staging).doing("removing", &staging),
        Err(error) => Err(error).doing("renaming", &staging),
    }
}

/// The empty folder that stands in as second layer for a tree at `dir` (`links/trees/<hex>`).
pub(crate) fn empty_beside(dir: &Path) -> PathBuf {
    dir.parent().and_then(Path::parent).unwrap_or(dir).join("empty")
}

enum Fault {
    Io(io::Error),
    Store(Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for Fault {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

fn in_tree(tree: &Digest, path: &[u8], fault: Fault) -> Error {
    match fault {
        Fault::Store(error) => error,
        Fault::Io(error) => {
            let path = String::from_utf8_lossy(path).into_owned();
            Error::Tree { tree: *tree, path, why: error.to_string() }
        }
    }
}

struct Builder<'a> {
    store: &'a Store,
    staging: &'a Path,
    files: Files,
    /// How often a copy was used in this tree.
    copies: HashMap<Digest, u32>,
}

impl Builder<'_> {
    fn at(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() {
            self.staging.to_owned()
        } else {
            self.staging.join(std::ffi::OsStr::from_bytes(path))
        }
    }

    fn entry(&mut self, path: &[u8], node: &Node) -> Result<(), Fault> {
        let at = self.at(path);
        match &node.kind {
            Kind::Dir => return Ok(DirBuilder::new().mode(0o700).create(&at)?),
            Kind::File { digest, .. } => {
                return match self.files {
                    Files::Links => self.file(&at, node, digest),
                    Files::Copies => self.write_copy(&at, node, digest),
                };
            }
            Kind::Hardlink { to } => return Ok(fs::hard_link(self.at(to), &at)?),
            Kind::Symlink { target } => symlink(std::ffi::OsStr::from_bytes(target), &at)?,
            Kind::Fifo => make_node(&at, FileType::Fifo, 0, 0)?,
            Kind::CharDevice { major: 0, minor: 0 } => {
                let why = "a character device 0:0 means a deletion to overlayfs";
                return Err(io::Error::other(why).into());
            }
            Kind::CharDevice { major, minor } => {
                make_node(&at, FileType::CharacterDevice, *major, *minor)?;
            }
            Kind::BlockDevice { major, minor } => {
                make_node(&at, FileType::BlockDevice, *major, *minor)?;
            }
        }
        Ok(dress(&at, node)?)
    }

    /// Links a copy of the content that has the node's attributes and no other name in this tree.
    fn file(&mut self, at: &Path, node: &Node, digest: &Digest) -> Result<(), Fault> {
        let key = Digest::of(attributes_key(node, digest));
        let nth = self.copies.entry(key).or_default();
        *nth += 1;
        let plain = (node.mode, node.uid, node.gid, node.time) == (0o644, 0, 0, crate::EPOCH)
            && node.xattrs.is_empty();
        let copy = if plain && *nth == 1 {
            if !self.store.contains(digest) {
                return Err(Fault::Store(Error::Missing(*digest)));
            }
            self.store.object_path(digest)
        } else {
            let hex = Digest::of(format!("{key} {nth}")).hex();
            self.store.root().join("links/objects").join(&hex[..2]).join(&hex[2..])
        };
        if !looks_right(&copy, node) {
            self.copy(&copy, node, digest)?;
        }
        match fs::hard_link(&copy, at) {
            // The file system's limit on links is reached (65,000 on ext4): a copy of its own.
            Err(error) if error.raw_os_error() == Some(libc::EMLINK) => {
                self.write_copy(at, node, digest)
            }
            result => Ok(result?),
        }
    }

    fn copy(&self, copy: &Path, node: &Node, digest: &Digest) -> Result<(), Fault> {
        fs::create_dir_all(copy.parent().unwrap_or(copy))?;
        let beside = self.store.temporary("link");
        let result = self.write_copy(&beside, node, digest);
        if result.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&beside);
        }
        result?;
        Ok(fs::rename(&beside, copy)?)
    }

    fn write_copy(&self, at: &Path, node: &Node, digest: &Digest) -> Result<(), Fault> {
        let mut from = self.store.open_object(digest).map_err(Fault::Store)?;
        let mut to = File::create_new(at)?;
        if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
            // Uses copy_file_range(2).
            io::copy(&mut from, &mut to)?;
        }
        Ok(dress(at, node)?)
    }
}

/// Whether a copy is there that nobody wrote to, as far as can be told without reading it. Whoever
/// writes to a file changes its time.
fn looks_right(copy: &Path, node: &Node) -> bool {
    fs::symlink_metadata(copy).is_ok_and(|meta| {
        meta.is_file()
            && meta.len() == node.size()
            && (meta.mtime(), meta.mtime_nsec()) == (node.time, 0)
    })
}

/// Puts another file at `at`, in a folder of links that may be mounted: the same to look at as
/// `node`, with the content of the object `digest`. Whoever has the old one open keeps it.
pub(crate) fn replace(store: &Store, at: &Path, node: &Node, digest: &Digest) -> Result<()> {
    let beside = store.temporary("link");
    let builder = Builder { store, staging: &beside, files: Files::Copies, copies: HashMap::new() };
    let made = builder.write_copy(&beside, node, digest);
    let made = made.and_then(|()| {
        // The folder's own time is its tree's.
        let folder = File::open(at.parent().unwrap_or(at))?;
        let time = folder.metadata()?.modified()?;
        fs::rename(&beside, at)?;
        Ok(folder.set_modified(time)?)
    });
    made.map_err(|fault| {
        let _ = fs::remove_file(&beside);
        match fault {
            Fault::Store(error) => error,
            Fault::Io(source) => Error::Io { doing: "replacing", path: at.to_owned(), source },
        }
    })
}

/// What distinguishes copies of one content.
fn attributes_key(node: &Node, digest: &Digest) -> Vec<u8> {
    let Node { mode, uid, gid, xattrs, time, .. } = node;
    let time = if *time == crate::EPOCH { String::new() } else { format!(" {time}") };
    let mut key = format!("{digest} {mode:o} {uid} {gid}{time}\n").into_bytes();
    for (name, value) in xattrs {
        key.extend((name.len() as u64).to_le_bytes());
        key.extend(name);
        key.extend((value.len() as u64).to_le_bytes());
        key.extend(value);
    }
    key
}

fn make_node(at: &Path, kind: FileType, major: u32, minor: u32) -> io::Result<()> {
    let device = rustix::fs::makedev(major, minor);
    Ok(rustix::fs::mknodat(CWD, at, kind, Mode::from_raw_mode(0o600), device)?)
}

/// Gives what is at `at` the node's owner, attributes, mode and time. In this order: a
/// change of owner clears set-id bits and capabilities, everything else changes no time.
fn dress(at: &Path, node: &Node) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let (owner, group) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    rustix::fs::chownat(CWD, at, Some(owner), Some(group), flags)?;
    for (name, value) in &node.xattrs {
        rustix::fs::lsetxattr(at, name.as_slice(), value, XattrFlags::empty())?;
    }
    if !matches!(node.kind, Kind::Symlink { .. }) {
        let mode = Mode::from_raw_mode(node.mode.into());
        rustix::fs::chmodat(CWD, at, mode, AtFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(CWD, at, &times(node.time), flags)?)
}
