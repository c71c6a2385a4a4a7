//! A new volume takes content, owners, modes and attributes from the image, else a database that
//! runs as its own user could not write to it.
//!
//! It is made beside its place, reaches the disk, and is then renamed to it: it is there whole or
//! not at all, after a kill or a power cut too. What is half made is begun anew. Everything is made
//! in a new folder and through descriptors of it, so nothing that an image holds leads out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use kiln_core::Digest;
use kiln_core::digest::Hasher;
use kiln_core::tree::{Kind, Node, Tree};
use kiln_store::Store;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};

use super::lasting::{self, Site};
use super::lock;
use crate::report::{Because, Report};

/// So many files and folders are synced one by one; above, `syncfs` is faster.
const FEW: usize = 16;

/// How long a volume is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasts {
    /// It goes with its instance: a power cut ends both.
    Instance,
    /// It is data.
    Stage,
}

/// Makes the volume at `dir` unless it is there, with what the image (if one is to be asked) has at
/// `target`. It appears whole or not at all.
pub(crate) fn fill_if_new(
    store: &Store,
    dir: &Path,
    image: Option<&Digest>,
    target: &str,
    lasts: Lasts,
) -> Result<(), Report> {
    let _alone = Filling::begin(dir);
    let doing = || format!("making the volume {}", dir.display());
    if is_there(dir).because(doing)? {
        // Whoever made it may have been killed before its name lasted.
        return match lasts {
            Lasts::Stage => names_last(store, dir).because(doing),
            Lasts::Instance => Ok(()),
        };
    }
    let tree = image.map_or_else(|| Ok(std::sync::Arc::default()), |image| store.get_tree(image));
    let tree = tree.because(doing)?;
    if let Some(parent) = dir.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).because(doing)?;
    }
    let part =
        dir.with_file_name(format!(".part-{}", &Digest::of(name(dir).as_bytes()).hex()[..16]));
    // What a killed agent left half-way is begun anew.
    kiln_store::mount::remove_tree(&part).because(doing)?;
    DirBuilder::new().mode(0o700).create(&part).because(doing)?;
    let made = fill(store, &tree, &resolve(&tree, target), &part);
    let made = made.and_then(|count| match lasts {
        Lasts::Stage => sync(&part, count),
        Lasts::Instance => Ok(()),
    });
    let made = made.and_then(|()| {
        // What has come into being meanwhile is nothing that this may replace.
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, &part, here, dir, RenameFlags::NOREPLACE)?;
        // The name that lasted, if there was one, was another volume's.
        lock(&LASTING).remove(dir);
        lasting::named(dir);
        Ok(())
    });
    if made.is_err() {
        // The first error is the one to report.
        let _ = kiln_store::mount::remove_tree(&part);
    }
    made.because(doing)?;
    match lasts {
        Lasts::Stage => names_last(store, dir).because(doing),
        Lasts::Instance => Ok(()),
    }
}

fn name(dir: &Path) -> &OsStr {
    dir.file_name().unwrap_or_default()
}

/// A volume is a folder, or a link to one that an administrator has put in its place.
fn is_there(dir: &Path) -> io::Result<bool> {
    match fs::metadata(dir) {
        Ok(found) if found.is_dir() => Ok(true),
        Ok(_) => Err(io::Error::other("something is there that is no folder")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(dir) {
            Ok(_) => Err(io::Error::other("it is a link to something that is not there")),
            Err(_) => Ok(false),
        },
        Err(error) => Err(error),
    }
}

/// Volumes whose names last, as they are.
static LASTING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Makes the name of a volume last, and those of the folders above it: syncing a folder does not
/// promise that its own name does, and another volume's maker may not have come to it yet. Once for
/// each volume is enough.
fn names_last(store: &Store, dir: &Path) -> io::Result<()> {
    if lock(&LASTING).contains(dir) {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(dir).canonicalize()?;
    let mut above = parent.ancestors().take_while(|path| path.starts_with(store.root()));
    above.try_for_each(|folder| lasting::folder(Site::VolumeName, folder))?;
    lock(&LASTING).insert(dir.to_owned());
    Ok(())
}

/// Makes everything in the new folder last: `count` files and folders.
fn sync(part: &Path, count: usize) -> io::Result<()> {
    if count > FEW {
        return lasting::all(Site::VolumeAll, part);
    }
    let mut todo = vec![part.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let (entry, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
            match kind {
                kind if kind.is_dir() => todo.push(entry),
                kind if kind.is_file() => lasting::file(Site::VolumeFile, &entry)?,
                _ => {}
            }
        }
        lasting::folder(Site::VolumeFolder, &dir)?;
    }
    Ok(())
}

/// One volume is filled by one at a time: services that start together may have it in common, and
/// the second would throw away what the first has half made.
struct Filling<'a>(&'a Path);

static UNDER_WAY: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static DONE: Condvar = Condvar::new();

impl<'a> Filling<'a> {
    fn begin(dir: &'a Path) -> Self {
        let mut under_way = lock(&UNDER_WAY);
        while !under_way.insert(dir.to_owned()) {
            under_way = DONE.wait(under_way).unwrap_or_else(PoisonError::into_inner);
        }
        Self(dir)
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        lock(&UNDER_WAY).remove(self.0);
        DONE.notify_all();
    }
}

/// `target` with the symlinks of the image followed (`/var/run` is one, often).
fn resolve(tree: &kiln_core::Tree, target: &str) -> Vec<u8> {
    let mut path: Vec<u8> = Vec::new();
    let mut todo: Vec<Vec<u8>> =
        target.split('/').rev().map(|part| part.as_bytes().to_vec()).collect();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        match part.as_slice() {
            b"" | b"." => continue,
            b".." => {
                let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                path.truncate(end);
                continue;
            }
            _ => {}
        }
        let parent = path.len();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&part);
        if let Some(Kind::Symlink { target }) = tree.get(&path).map(|node| &node.kind)
            && links < 40
        {
            links += 1;
            path.truncate(if target.starts_with(b"/") { 0 } else { parent });
            todo.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        }
    }
    path
}

/// Whether the image has something at `target` that is no folder.
pub(crate) fn has_file(store: &Store, image: &Digest, target: &str) -> Result<bool, Report> {
    let tree = store.get_tree(image).because(|| format!("looking for `{target}` in an image"))?;
    Ok(tree.get(&resolve(&tree, target)).is_some_and(|node| !node.is_dir()))
}

/// Copies what `tree` has below `base` into the empty folder `to`, and says how many files and
/// folders that are.
fn fill(store: &Store, tree: &Tree, base: &[u8], to: &Path) -> io::Result<usize> {
    let Some(top) = tree.get(base).filter(|node| node.is_dir()) else { return Ok(0) };
    let mut copy = Copy { store, root: open_dir(to)?, parent: None, first: BTreeMap::new() };
    let mut prefix = base.to_vec();
    if !prefix.is_empty() {
        prefix.push(b'/');
    }
    let below = || {
        let entries = tree.entries.range(prefix.clone()..);
        let inside = entries.take_while(|(path, _)| path.starts_with(&prefix));
        inside.filter(|(path, _)| path.len() > prefix.len())
    };
    let mut count = 0;
    for (path, node) in below() {
        let at = &path[prefix.len()..];
        copy.entry(tree, path, at, node).map_err(|error| named(at, &error))?;
        count += 1;
    }
    // Filling a folder changes its time, and its mode may forbid it, so folders come last.
    let mut folders: Vec<(&[u8], &Node)> = below()
        .filter(|(_, node)| node.is_dir())
        .map(|(path, node)| (&path[prefix.len()..], node))
        .collect();
    folders.reverse();
    folders.push((b"", top));
    for (at, node) in folders {
        let dir = copy.open(at).map_err(|error| named(at, &error))?;
        dress(&dir, node).map_err(|error| named(at, &error))?;
    }
    Ok(count)
}

fn named(path: &[u8], error: &io::Error) -> io::Error {
    io::Error::other(format!("`{}`: {error}", String::from_utf8_lossy(path).escape_debug()))
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// A volume being filled.
struct Copy<'a> {
    store: &'a Store,
    root: OwnedFd,
    /// The folder that the last entry went into.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Where in the volume a file is that has several names in the image.
    first: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Copy<'_> {
    /// A folder of the volume.
    fn open(&self, at: &[u8]) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = if at.is_empty() { b".".as_slice() } else { at };
        Ok(rustix::fs::openat2(&self.root, at, flags, Mode::empty(), resolve)?)
    }

    fn parent(&mut self, at: &[u8]) -> io::Result<&OwnedFd> {
        if self.parent.as_ref().is_none_or(|(path, _)| path != at) {
            self.parent = Some((at.to_vec(), self.open(at)?));
        }
        match &self.parent {
            Some((_, fd)) => Ok(fd),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Makes what is at `path` of the image at `at` of the volume; folders without their attributes.
    fn entry(&mut self, tree: &Tree, path: &[u8], at: &[u8], node: &Node) -> io::Result<()> {
        let cut = at.iter().rposition(|byte| *byte == b'/');
        let (folder, name) = cut.map_or((&b""[..], at), |cut| (&at[..cut], &at[cut + 1..]));
        let name = OsStr::from_bytes(name);
        if let Kind::Hardlink { to } = &node.kind {
            // The first name may lie outside of the volume: then this one is the first in it.
            let Some(first) = self.first.get(to).cloned() else {
                let target = tree.get(to).ok_or(io::ErrorKind::NotFound)?;
                self.first.insert(to.clone(), at.to_vec());
                return self.entry(tree, to, at, target);
            };
            let root = rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?;
            let parent = self.parent(folder)?;
            return Ok(rustix::fs::linkat(root, first, parent, name, AtFlags::empty())?);
        }
        let store = self.store;
        let parent = self.parent(folder)?;
        match &node.kind {
            Kind::Dir => Ok(rustix::fs::mkdirat(parent, name, Mode::RWXU)?),
            Kind::File { digest, .. } => {
                file(store, digest, parent, name, node)?;
                self.first.entry(path.to_vec()).or_insert_with(|| at.to_vec());
                Ok(())
            }
            Kind::Symlink { target } => {
                rustix::fs::symlinkat(OsStr::from_bytes(target), parent, name)?;
                dress_by_name(parent, name, node)
            }
            Kind::Fifo => {
                rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::RUSR, 0)?;
                dress_by_name(parent, name, node)
            }
            // No volume lets a device be opened, and links have been dealt with.
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Hardlink { .. } => Ok(()),
        }
    }
}

/// Copies an object, and looks whether it is what it should be: what is damaged is not spread.
fn file(
    store: &Store,
    digest: &Digest,
    parent: &OwnedFd,
    name: &OsStr,
    node: &Node,
) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut to = File::from(rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?);
    let mut from = store.open_object(digest).map_err(io::Error::other)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            count => {
                hasher.update(&buffer[..count]);
                to.write_all(&buffer[..count])?;
            }
        }
    }
    if hasher.finish() != *digest {
        return Err(io::Error::other(format!("its content, {digest}, is damaged in the store")));
    }
    dress(&OwnedFd::from(to), node)
}

/// Gives a file or folder the node's owner, attributes, mode and time. In this order: a change of
/// owner clears set-id bits and capabilities, everything else changes no time.
fn dress(fd: &OwnedFd, node: &Node) -> io::Result<()> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)))?;
    for (name, value) in &node.xattrs {
        rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(node.mode.into()))?;
    Ok(rustix::fs::futimens(fd, &times(node))?)
}

/// As [`dress`], for what is not opened: links and pipes.
fn dress_by_name(parent: &OwnedFd, name: &OsStr, node: &Node) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let (owner, group) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    rustix::fs::chownat(parent, name, Some(owner), Some(group), flags)?;
    let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
    for (name, value) in &node.xattrs {
        rustix::fs::lsetxattr(&path, name.as_slice(), value, XattrFlags::empty())?;
    }
    if node.kind == Kind::Fifo {
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(node.mode.into()), AtFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(parent, name, &times(node), flags)?)
}

/// The time that something has in its image.
fn times(node: &Node) -> Timestamps {
    let time = Timespec { tv_sec: node.time, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    fn world() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        (root, store)
    }

    fn owned(kind: Kind, mode: u16, uid: u32) -> Node {
        Node { uid, ..Node::new(kind, mode) }
    }

    fn fill_new(store: &Store, dir: &Path, tree: &Tree, target: &str) -> Result<(), Report> {
        let tree = store.put_tree(tree).unwrap();
        fill_if_new(store, dir, Some(&tree), target, Lasts::Stage)
    }

    #[test]
    fn services_that_start_together_get_the_same_folder() {
        let (root, store) = world();
        let dir = root.path().join("volumes/v");
        let fill = || {
            fill_new(&store, &dir, &Tree::new(), "/data").unwrap();
            fs::metadata(&dir).unwrap().ino()
        };
        let seen: BTreeSet<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(fill)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(seen.len(), 1);
    }

    /// A power cut at any moment leaves no volume or a whole one, and one that was promised. Without
    /// any one of the syncs it does not.
    #[test]
    fn a_power_cut_leaves_a_whole_volume_or_none() {
        use lasting::tape;
        for (count, sites) in [
            (3, &[Site::VolumeFile, Site::VolumeFolder, Site::VolumeName][..]),
            (40, &[Site::VolumeAll, Site::VolumeName][..]),
        ] {
            let filled = |without: Option<Site>| {
                let (_root, store) = world();
                let dir = store.root().join("volumes/shop/dev/data");
                let mut tree = Tree::new();
                for nth in 0..count {
                    let text = nth.to_string();
                    let (digest, size) = (store.put(text.as_bytes()).unwrap(), text.len() as u64);
                    let path = format!("data/sub/{nth}");
                    tree.insert(path.as_bytes(), Node::new(Kind::File { size, digest }, 0o600));
                }
                let events =
                    tape::record(without, || fill_new(&store, &dir, &tree, "/data").unwrap());
                let part = format!(".part-{}", &Digest::of("data").hex()[..16]);
                let part = dir.with_file_name(part);
                let files = (0..count).map(|nth| part.join(format!("sub/{nth}"))).collect();
                let folders = BTreeSet::from([part.clone(), part.join("sub")]);
                let above = dir.ancestors().take_while(|path| *path != store.root());
                let above = above.map(Path::to_owned).collect();
                let work = tape::Work { files, folders, named: dir.clone(), above };
                tape::wrong(&events, &work)
            };
            assert_eq!(filled(None), None, "{count} files");
            for site in sites {
                assert!(filled(Some(*site)).is_some(), "{count} files do without {site:?}");
            }
        }
    }

    #[test]
    fn a_volume_whose_maker_was_killed_gets_a_lasting_name() {
        let (_root, store) = world();
        let dir = store.root().join("volumes/shop/dev/data");
        fs::create_dir_all(&dir).unwrap();
        let events = lasting::tape::record(None, || {
            fill_new(&store, &dir, &Tree::new(), "/data").unwrap();
        });
        let parent = lasting::tape::Event::Folder(dir.parent().unwrap().to_owned());
        assert!(events.contains(&parent), "{events:?}");
        let again = lasting::tape::record(None, || {
            fill_new(&store, &dir, &Tree::new(), "/data").unwrap();
        });
        assert_eq!(again, [], "once is enough");
    }

    #[test]
    fn a_volume_in_the_place_of_a_removed_one_gets_a_lasting_name_too() {
        let (_root, store) = world();
        let dir = store.root().join("volumes/shop/dev/data");
        fill_new(&store, &dir, &Tree::new(), "/data").unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let events = lasting::tape::record(None, || {
            fill_new(&store, &dir, &Tree::new(), "/data").unwrap();
        });
        let named = events.iter().position(|it| *it == lasting::tape::Event::Named(dir.clone()));
        let parent = lasting::tape::Event::Folder(dir.parent().unwrap().to_owned());
        assert!(events[named.unwrap()..].contains(&parent), "{events:?}");
    }

    #[test]
    fn takes_content_and_owner_once() {
        let (root, store) = world();
        let mut tree = Tree::new();
        tree.insert(b"var/lib/data", owned(Kind::Dir, 0o700, 70));
        let digest = store.put(b"hello").unwrap();
        tree.insert(b"var/lib/data/seed", Node::new(Kind::File { size: 5, digest }, 0o640));
        tree.insert(b"data", Node::new(Kind::Symlink { target: b"/var/lib/data".to_vec() }, 0));
        let dir = root.path().join("volumes/p/dev/v");
        fill_new(&store, &dir, &tree, "/data/").unwrap();
        assert_eq!(fs::read(dir.join("seed")).unwrap(), b"hello");
        let meta = fs::metadata(&dir).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (70, 0o700));
        // What the program writes later is never touched again.
        fs::write(dir.join("seed"), b"changed").unwrap();
        fill_new(&store, &dir, &tree, "/data/").unwrap();
        assert_eq!(fs::read(dir.join("seed")).unwrap(), b"changed");
    }

    #[test]
    fn keeps_attributes_links_pipes_and_times() {
        let (root, store) = world();
        let digest = store.put(b"#!").unwrap();
        let content = || Kind::File { size: 2, digest };
        let mut program = owned(content(), 0o4751, 7);
        program.xattrs.insert(b"user.origin".to_vec(), b"image".to_vec());
        let link = |to: &[u8]| Kind::Hardlink { to: to.to_vec() };
        let mut tree = Tree::new();
        tree.insert(b"outside", Node::new(content(), 0o600));
        tree.insert(b"v/bin", owned(Kind::Dir, 0o555, 7));
        tree.insert(b"v/bin/a", program.clone());
        tree.insert(b"v/bin/b", Node { kind: link(b"v/bin/a"), ..program });
        tree.insert(b"v/x", Node::new(link(b"outside"), 0o600));
        tree.insert(b"v/y", Node::new(link(b"outside"), 0o600));
        tree.insert(b"v/pipe", owned(Kind::Fifo, 0o622, 9));
        tree.insert(b"v/null", Node::new(Kind::CharDevice { major: 1, minor: 3 }, 0o666));
        let dir = root.path().join("volumes/v");
        fill_new(&store, &dir, &tree, "/v").unwrap();
        let meta = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap();
        let (a, b) = (meta("bin/a"), meta("bin/b"));
        assert_eq!((a.uid(), a.mode() & 0o7777, a.nlink()), (7, 0o4751, 2));
        assert_eq!(a.ino(), b.ino(), "one file of two names");
        assert_eq!((meta("x").ino(), meta("x").nlink()), (meta("y").ino(), 2));
        assert_eq!(meta("bin").mode() & 0o7777, 0o555);
        let mut value = [0; 16];
        let count =
            rustix::fs::lgetxattr(dir.join("bin/a"), "user.origin", &mut value[..]).unwrap();
        assert_eq!(&value[..count], b"image");
        let pipe = meta("pipe");
        assert!(pipe.file_type().is_fifo() && pipe.mode() & 0o7777 == 0o622 && pipe.uid() == 9);
        assert!(!dir.join("null").exists(), "devices are left out");
        for name in ["", "bin", "bin/a", "x", "pipe"] {
            assert_eq!(meta(name).mtime(), kiln_store::EPOCH, "{name}");
        }
    }

    #[test]
    fn links_of_the_image_lead_nowhere() {
        let (root, store) = world();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let mut tree = Tree::new();
        let target = outside.as_os_str().as_bytes().to_vec();
        tree.insert(b"v/out", Node::new(Kind::Symlink { target: target.clone() }, 0));
        let dir = root.path().join("volumes/v");
        fill_new(&store, &dir, &tree, "/v").unwrap();
        assert_eq!(fs::read_link(dir.join("out")).unwrap(), outside);
        let owner = fs::metadata(&outside).unwrap().mtime();
        assert_ne!(owner, kiln_store::EPOCH, "the link was dressed, not what it leads to");
        // A listing that says that something lies below a link cannot have it made there.
        tree.entries.insert(b"v/out/x".to_vec(), Node::new(Kind::Fifo, 0o600));
        let part = root.path().join("part");
        fs::create_dir(&part).unwrap();
        assert!(fill(&store, &tree, b"v", &part).is_err());
        assert!(!outside.join("x").exists());
    }

    #[test]
    fn what_is_half_made_is_made_again_and_damage_is_not_spread() {
        let (root, store) = world();
        let digest = store.put(b"good").unwrap();
        let mut tree = Tree::new();
        tree.insert(b"v/f", Node::new(Kind::File { size: 4, digest }, 0o644));
        let dir = root.path().join("volumes/v");
        // As a kill in the middle leaves it.
        let part = dir.with_file_name(format!(".part-{}", &Digest::of(b"v").hex()[..16]));
        fs::create_dir_all(part.join("half")).unwrap();
        fill_new(&store, &dir, &tree, "/v").unwrap();
        assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1, "nothing beside it");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "only what the image has");

        fs::write(store.object_path(&digest), b"evil").unwrap();
        let second = root.path().join("volumes/second");
        let refused = fill_new(&store, &second, &tree, "/v").unwrap_err();
        assert!(refused.message.contains("damaged"), "{}", refused.message);
        assert!(!second.exists());
        assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_folder_is_no_volume() {
        let (root, store) = world();
        let dir = root.path().join("volumes/v");
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(root.path().join("nowhere"), &dir).unwrap();
        assert!(fill_new(&store, &dir, &Tree::new(), "/v").is_err());
        fs::remove_file(&dir).unwrap();
        fs::write(&dir, "").unwrap();
        assert!(fill_new(&store, &dir, &Tree::new(), "/v").is_err());
    }
}
