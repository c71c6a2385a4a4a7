//! Archives made by hand, and trees as text.

use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use kiln_core::tree::{Kind, Node, Tree};
use kiln_store::Store;
use tar::{Builder, EntryType, Header};

use crate::archive::{Destination, Limits, UnpackError, unpack};
use crate::users::Owner;

/// A store in a folder of its own.
pub(super) struct Kitchen {
    pub(super) dir: tempfile::TempDir,
    pub(super) store: Store,
}

impl Kitchen {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("root")).unwrap();
        Self { dir, store }
    }

    /// Unpacks into `tree` at `dest`.
    pub(super) fn onto(
        &self,
        tree: Tree,
        dest: &str,
        chown: Option<Owner>,
        mut archive: &[u8],
    ) -> Result<Tree, UnpackError> {
        let (store, limits) = (&self.store, Limits::default());
        let into = Destination { store, dest: dest.as_bytes(), chown, limits };
        unpack(tree, &into, &mut archive)
    }

    /// Unpacks into an empty tree.
    pub(super) fn unpack(&self, archive: &[u8]) -> Result<Tree, UnpackError> {
        self.onto(Tree::new(), "", None, archive)
    }

    /// What is said of a bad archive.
    #[track_caller]
    pub(super) fn error(&self, archive: &[u8]) -> String {
        match self.unpack(archive) {
            Ok(tree) => panic!("it was unpacked: {}", tree.listing()),
            Err(error) => error.to_string(),
        }
    }

    pub(super) fn content(&self, tree: &Tree, path: &str) -> Vec<u8> {
        match tree.get(path.as_bytes()).map(|node| &node.kind) {
            Some(Kind::File { digest, .. }) => self.store.get(digest).unwrap(),
            other => panic!("{path} is {other:?}"),
        }
    }
}

/// An archive under construction.
pub(super) struct Tar(pub(super) Builder<Vec<u8>>);

impl Tar {
    pub(super) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Adds an entry under exactly this name.
    pub(super) fn entry(
        mut self,
        kind: EntryType,
        name: &[u8],
        link: &[u8],
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_size(content.len() as u64);
        header.set_uid(7);
        header.set_gid(8);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(super) fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name.as_bytes(), b"", content.as_bytes())
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name.as_bytes(), b"", b"")
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name.as_bytes(), target.as_bytes(), b"")
    }

    pub(super) fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name.as_bytes(), target.as_bytes(), b"")
    }

    /// Adds an extended header for the entry that follows.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let bare = key.len() + value.len() + 3;
            let digits = (bare + 1).to_string().len();
            let length = match (bare + digits).to_string().len() {
                longer if longer > digits => bare + longer,
                _ => bare + digits,
            };
            write!(text, "{length} {key}=").unwrap();
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.entry(EntryType::XHeader, b"pax", b"", &text)
    }

    pub(super) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// The listing without its head and without the root.
pub(super) fn lines(tree: &Tree) -> Vec<String> {
    tree.listing().lines().skip(2).map(str::to_owned).collect()
}

/// A folder of this machine as a tree: what is really there.
pub(super) fn walk(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut paths = vec![];
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                open.push(path.clone());
            }
            paths.push(path);
        }
    }
    let key = |path: &Path| path.strip_prefix(dir).unwrap().as_os_str().as_bytes().to_vec();
    paths.sort_by_key(|path| key(path));
    let mut seen = std::collections::HashMap::new();
    for path in paths {
        let meta = path.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let device = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let kind = if kind.is_dir() {
            Kind::Dir
        } else if let Some(first) = seen.get(&meta.ino()).filter(|_| kind.is_file()) {
            Kind::Hardlink { to: Clone::clone(first) }
        } else if kind.is_file() {
            seen.insert(meta.ino(), key(&path));
            let content = fs::read(&path).unwrap();
            Kind::File { size: meta.len(), digest: kiln_core::Digest::of(content) }
        } else if kind.is_symlink() {
            Kind::Symlink { target: fs::read_link(&path).unwrap().as_os_str().as_bytes().into() }
        } else if kind.is_fifo() {
            Kind::Fifo
        } else if kind.is_char_device() {
            Kind::CharDevice { major: device.0, minor: device.1 }
        } else {
            Kind::BlockDevice { major: device.0, minor: device.1 }
        };
        let mut node = Node::new(kind, (meta.mode() & 0o7777) as u16);
        if meta.is_symlink() {
            node.mode = 0o777;
        }
        (node.uid, node.gid) = (meta.uid(), meta.gid());
        node = node.with_archive_time(meta.mtime());
        let mut value = vec![0; 4096];
        if meta.is_file()
            && let Ok(length) = rustix::fs::lgetxattr(&path, "user.note", &mut value[..])
        {
            node.xattrs.insert(b"user.note".to_vec(), value[..length].to_vec());
        }
        tree.entries.insert(key(&path), node);
    }
    tree
}
