//! An overlay's upper layer → changes of a tree.
//!
//! The upper layer says only *which* paths may have changed. Content and metadata are read through
//! the merged mount: after a `chmod` with `metacopy` the upper file has the right size and only
//! zeros, and after a rename with `redirect_dir` the upper directory is empty.
//!
//! What is left out: times, but for what has the content that it had before the step, which keeps
//! the time that it came with; every extended attribute but `security.capability` and `user.*`;
//! sockets; empty stubs that the sandbox made to mount on; and the caches and logs of
//! [`left_out`], which differ from run to run and which nothing needs. Java's trust store loses the
//! times at which its entries were put in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path as FsPath, PathBuf};

use kiln_core::Digest;
use kiln_core::tree::{EPOCH, Kind, Node, Path, Tree};
use kiln_core::tree_diff::content;
use kiln_store::mount::mount_image;
use kiln_store::{Lower, Store, Upper};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use crate::edit::Editor;
use crate::error::BakeError;
use crate::{keystore, parallel, paths};

/// Paths that a sandbox mounts on; if it has to make them, they are stubs.
pub const MOUNT_POINTS: [&str; 6] =
    ["dev", "etc/hostname", "etc/hosts", "etc/resolv.conf", "proc", "sys"];

/// A step's upper layer, to be read.
#[derive(Debug)]
pub struct Capture<'a> {
    /// Where contents go.
    pub store: &'a Store,
    /// The tree that the step ran on.
    pub parent: &'a Tree,
    /// Its mount.
    pub lower: &'a Lower,
    /// Directory that holds `upper/` and `work/`. No mount of it is left.
    pub upper_dir: &'a FsPath,
    /// Further paths that were mounted on.
    pub mounted: &'a BTreeSet<Path>,
}

/// Whether a changed path is one of the caches, logs and backups that are never part of an image.
/// Directories stay.
pub fn left_out(path: &[u8]) -> bool {
    const FILES: [&[u8]; 9] = [
        b"var/cache/ldconfig/aux-cache",
        b"var/lib/systemd/random-seed",
        b"var/log/alternatives.log",
        b"var/log/apk.log",
        b"var/log/bootstrap.log",
        b"var/log/dpkg.log",
        b"var/log/fontconfig.log",
        b"var/cache/apt/pkgcache.bin",
        b"var/cache/apt/srcpkgcache.bin",
    ];
    // The index of manual pages has the times of links, and is in the order of a directory.
    const BELOW: [&[u8]; 3] = [b"var/cache/man/", b"var/lib/apt/lists/", b"var/log/apt/"];
    const OLD: [&[u8]; 2] = [b"var/lib/dpkg/", b"var/cache/debconf/"];
    FILES.contains(&path)
        || BELOW.iter().any(|dir| path.starts_with(dir))
        || (path.ends_with(b"-old") && OLD.iter().any(|dir| path.starts_with(dir)))
        || below_home(path).is_some_and(left_out_at_home)
}

/// The path from a home directory on: `/root`, or one of `/home`.
fn below_home(path: &[u8]) -> Option<&[u8]> {
    path.strip_prefix(b"root/").or_else(|| {
        let below = path.strip_prefix(b"home/")?;
        let slash = below.iter().position(|byte| *byte == b'/')?;
        Some(&below[slash + 1..])
    })
}

/// When wget first spoke to which host, and npm's logs, whose names have the time of each call.
fn left_out_at_home(path: &[u8]) -> bool {
    path == b".wget-hsts" || path.starts_with(b".npm/_logs/")
}

impl Capture<'_> {
    /// The tree after the step; new contents are in the store.
    ///
    /// # Errors
    /// The layer cannot be read, or the store fails.
    pub fn tree(&self) -> Result<Tree, BakeError> {
        let upper = Upper::whole(self.upper_dir.to_owned());
        let merged = mount_image(self.lower, Some(&upper))
            .map_err(|error| BakeError::io("cannot mount the layer", self.upper_dir, error))?;
        let mut changes = Changes::default();
        let root = self.upper_dir.join("upper");
        self.walk(&root, b"", merged.as_fd(), &mut changes)
            .map_err(|error| BakeError::io("cannot read the layer", &root, error))?;
        changes.paths.insert(Path::new(), InodeKey::None);
        let wanted: Vec<(Path, InodeKey)> = changes.paths.into_iter().collect();
        let mut editor = Editor::new(self.parent.clone());
        for path in changes.replaced.iter().chain(&changes.removed) {
            editor.remove(path);
        }
        self.put_all(merged.as_fd(), wanted, &mut editor)?;
        Ok(editor.finish())
    }

    fn put_all(
        &self,
        merged: BorrowedFd<'_>,
        wanted: Vec<(Path, InodeKey)>,
        editor: &mut Editor,
    ) -> Result<(), BakeError> {
        // A further name of a file is not read again.
        let mut firsts: HashMap<InodeKey, usize> = HashMap::new();
        let mut links: BTreeMap<usize, usize> = BTreeMap::new();
        for (at, (_, inode)) in wanted.iter().enumerate() {
            if *inode != InodeKey::None {
                match firsts.get(inode) {
                    Some(first) => {
                        links.insert(at, *first);
                    }
                    None => {
                        firsts.insert(*inode, at);
                    }
                }
            }
        }
        let jobs: Vec<(usize, &Path)> =
            wanted.iter().enumerate().map(|(at, (path, _))| (at, path)).collect();
        let nodes = parallel::map(&jobs, |(at, path)| {
            if links.contains_key(at) { Ok(None) } else { self.read(merged, path) }
        })?;
        for (at, (path, _)) in wanted.iter().enumerate() {
            let node = match links.get(&at) {
                None => nodes[at].clone(),
                Some(first) => nodes[*first].clone().map(|node| Node {
                    kind: Kind::Hardlink { to: wanted[*first].0.clone() },
                    ..node
                }),
            };
            match node {
                Some(node) => editor.put(path.clone(), node),
                // A socket took the place of what was there.
                None => editor.remove(path),
            }
        }
        Ok(())
    }

    /// Collects what one directory of the upper layer says; returns whether anything of it stays.
    fn walk(
        &self,
        dir: &FsPath,
        key: &[u8],
        merged: BorrowedFd<'_>,
        changes: &mut Changes,
    ) -> io::Result<bool> {
        let mut any = false;
        let mut stubs = false;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = paths::join(key, entry.file_name().as_bytes());
            let meta = entry.metadata()?;
            if is_whiteout(&entry.path(), &meta) {
                changes.removed.push(path);
                any = true;
            } else if left_out(&path) && !meta.is_dir() {
                any = true;
            } else if self.is_stub(&entry.path(), &path, &meta)? {
                stubs = true;
            } else if meta.is_dir() {
                match self.walk_dir(&entry.path(), path, merged, changes)? {
                    Kept::Yes => any = true,
                    Kept::OnlyStubs => stubs = true,
                }
            } else {
                let inode = if meta.is_file() && meta.nlink() > 1 {
                    InodeKey::Upper(meta.ino())
                } else {
                    InodeKey::None
                };
                changes.paths.insert(path, inode);
                any = true;
            }
        }
        Ok(any || !stubs)
    }

    fn walk_dir(
        &self,
        dir: &FsPath,
        path: Path,
        merged: BorrowedFd<'_>,
        changes: &mut Changes,
    ) -> io::Result<Kept> {
        if xattr(dir, "trusted.overlay.redirect").is_some() {
            changes.replaced.push(path.clone());
            self.whole(merged, &path, changes)?;
            return Ok(Kept::Yes);
        }
        let opaque = xattr(dir, "trusted.overlay.opaque").is_some_and(|value| value == b"y");
        if opaque {
            changes.replaced.push(path.clone());
        }
        let kept = self.walk(dir, &path, merged, changes)?;
        if !kept && (opaque || self.parent.get(&path).is_none()) {
            return Ok(Kept::OnlyStubs);
        }
        changes.paths.insert(path, InodeKey::None);
        Ok(Kept::Yes)
    }

    /// Everything below a directory of the merged mount: it came from elsewhere by a rename.
    fn whole(&self, merged: BorrowedFd<'_>, path: &[u8], changes: &mut Changes) -> io::Result<()> {
        changes.paths.insert(path.to_vec(), InodeKey::None);
        let dir = open(merged, path, OFlags::DIRECTORY)?;
        for entry in rustix::fs::Dir::new(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let below = paths::join(path, name);
            let stat = rustix::fs::statat(merged, below.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => self.whole(merged, &below, changes)?,
                FileType::RegularFile if left_out(&below) => {}
                FileType::RegularFile if stat.st_nlink > 1 => {
                    changes.paths.insert(below, InodeKey::Merged(stat.st_dev, stat.st_ino));
                }
                _ => {
                    changes.paths.insert(below, InodeKey::None);
                }
            }
        }
        Ok(())
    }

    /// An empty directory or file at a mount point that the parent does not have.
    fn is_stub(&self, file: &FsPath, path: &[u8], meta: &fs::Metadata) -> io::Result<bool> {
        let mounted = self.mounted.contains(path)
            || MOUNT_POINTS.iter().any(|point| point.as_bytes() == path);
        if !mounted || self.parent.get(path).is_some() {
            return Ok(false);
        }
        Ok(if meta.is_dir() {
            fs::read_dir(file)?.next().is_none()
        } else {
            meta.is_file() && meta.len() == 0
        })
    }

    /// Reads an entry through the merged mount; `None` for what cannot be in an image.
    fn read(&self, merged: BorrowedFd<'_>, path: &[u8]) -> Result<Option<Node>, BakeError> {
        let failed = |error: io::Error| {
            let shown = PathBuf::from("/").join(std::ffi::OsStr::from_bytes(path));
            BakeError::io("cannot read the step's", shown, error)
        };
        let at = if path.is_empty() { b".".as_slice() } else { path };
        let stat = rustix::fs::statat(merged, at, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(errno.into()))?;
        let major = || rustix::fs::major(stat.st_rdev);
        let minor = || rustix::fs::minor(stat.st_rdev);
        let mut xattrs = BTreeMap::new();
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let dir = open(merged, at, OFlags::DIRECTORY).map_err(failed)?;
                xattrs = kept_xattrs(dir.as_fd()).map_err(failed)?;
                Kind::Dir
            }
            FileType::RegularFile => {
                let file = File::from(open(merged, at, OFlags::empty()).map_err(failed)?);
                xattrs = kept_xattrs(file.as_fd()).map_err(failed)?;
                let size = stat.st_size as u64;
                let found = match Self::timeless(path, &file, size).map_err(failed)? {
                    Some(content) => {
                        Some((self.store.put(&content).map_err(BakeError::store)?, size))
                    }
                    None => self.adopt(path, size)?,
                };
                let (digest, size) = match found {
                    Some(found) => found,
                    None => self.store.put_open_file(&file).map_err(BakeError::store)?,
                };
                Kind::File { size, digest }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(merged, at, Vec::new())
                    .map_err(|errno| failed(errno.into()))?;
                Kind::Symlink { target: target.into_bytes() }
            }
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharDevice { major: major(), minor: minor() },
            FileType::BlockDevice => Kind::BlockDevice { major: major(), minor: minor() },
            _ => return Ok(None),
        };
        let mut node = Node::new(kind, (stat.st_mode & 0o7777) as u16);
        (node.uid, node.gid, node.xattrs) = (stat.st_uid, stat.st_gid, xattrs);
        node.time = self.time(path, &node.kind);
        Ok(Some(node))
    }
}

impl Capture<'_> {
    /// The time of what is now at `path`: what has the content that it had keeps its time, so that
    /// a `chown` leaves Python's compiled modules valid. What a step changed has the constant one.
    fn time(&self, path: &[u8], kind: &Kind) -> i64 {
        let Some(old) = self.parent.get(path) else { return EPOCH };
        let same = match (kind, &old.kind) {
            (Kind::Dir, Kind::Dir) => true,
            (Kind::File { size, digest }, _) => content(self.parent, old) == Some((*size, *digest)),
            (now, old) => now == old,
        };
        if same { old.time } else { EPOCH }
    }

    /// What `file` holds instead, if it is the trust store of Java at its place. The length is the
    /// same, and `file` is not moved on.
    fn timeless(path: &[u8], file: &File, size: u64) -> io::Result<Option<Vec<u8>>> {
        if path != keystore::PATH || size > keystore::LONGEST {
            return Ok(None);
        }
        let mut content = vec![0; size as usize];
        file.read_exact_at(&mut content, 0)?;
        Ok(keystore::timeless(&content))
    }

    /// Makes the file at `path` of the upper layer an object itself, where its data are there:
    /// after this nobody needs the layer any more.
    fn adopt(&self, path: &[u8], size: u64) -> Result<Option<(Digest, u64)>, BakeError> {
        let upper = self.upper_dir.join("upper");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let found = rustix::fs::open(&upper, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .and_then(|dir| rustix::fs::openat2(dir, path, flags, Mode::empty(), inside));
        // A directory that was renamed is elsewhere in the layer, or below it.
        let Ok(file) = found.map(File::from) else { return Ok(None) };
        let same = file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == size);
        if !same || rustix::fs::fgetxattr(&file, "trusted.overlay.metacopy", &mut [0_u8; 0]).is_ok()
        {
            return Ok(None);
        }
        self.store.adopt_file(&file).map_err(BakeError::store)
    }
}

enum Kept {
    Yes,
    OnlyStubs,
}

#[derive(Default)]
struct Changes {
    /// Gone.
    removed: Vec<Path>,
    /// Directories of which nothing of the parent's shows any more.
    replaced: Vec<Path>,
    /// To be read.
    paths: BTreeMap<Path, InodeKey>,
}

/// Which names are one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum InodeKey {
    /// It has one name only.
    None,
    /// Inode in the upper layer.
    Upper(u64),
    /// Device and inode in the merged mount.
    Merged(u64, u64),
}

fn open(merged: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<std::os::fd::OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(merged, path, flags, Mode::empty())?)
}

/// A removed entry: a character device 0/0, or a file marked so.
fn is_whiteout(file: &FsPath, meta: &fs::Metadata) -> bool {
    let kind = meta.file_type();
    (kind.is_char_device() && meta.rdev() == 0)
        || (kind.is_file() && meta.len() == 0 && xattr(file, "trusted.overlay.whiteout").is_some())
}

fn xattr(file: &FsPath, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(file, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

fn kept_xattrs(file: BorrowedFd<'_>) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0_u8; 4096];
    let length = loop {
        match rustix::fs::flistxattr(file, names.as_mut_slice()) {
            Ok(0) | Err(rustix::io::Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
            // The kernel's own limit for a list is 64 KiB.
            Err(rustix::io::Errno::RANGE) if names.len() < 64 << 10 => names.resize(64 << 10, 0),
            other => break other?,
        }
    };
    let mut kept = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if name == b"security.capability" || name.starts_with(b"user.") {
            let mut value = vec![0_u8; 64 << 10];
            let length = rustix::fs::fgetxattr(file, name, value.as_mut_slice())?;
            value.truncate(length);
            kept.insert(name.to_vec(), value);
        }
    }
    Ok(kept)
}
