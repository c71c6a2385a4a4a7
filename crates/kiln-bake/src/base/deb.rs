//! A package file, decoded into a tree of its own: `control/…` and `data/…`.
//!
//! The tree is kept under a key made of the file's digest, so packages that several bases share are
//! decoded once. Beside what a [`Tree`] says, two things are noted as attributes, which
//! [`super::assemble`] takes off again: [`OWNER`] and [`MD5`].

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use kiln_archive::{ArchiveError, Entry, EntryKind, Limits, Reader, ar};
use kiln_core::tree::{Kind, Node, Path};
use kiln_core::{Digest, ImageConfig, ImageId, Tree};
use kiln_store::Store;
use md5::{Digest as _, Md5};

use super::error::BaseError;
use super::lock::LockedPackage;

/// Version of the decoded form; part of the key under which it is kept.
const VERSION: u32 = 1;
/// `user:group`, where that is not `root:root`. dpkg goes by the names, not by the numbers.
pub(crate) const OWNER: &[u8] = b"kiln.owner";
/// md5 of a configuration file in hex, which dpkg's status wants.
pub(crate) const MD5: &[u8] = b"kiln.md5";

/// The longest control archive, in bytes.
const CONTROL_LIMIT: u64 = 64 << 20;
/// How a member may be packed, by the end of its name; how it is, its first bytes say.
const FORMS: [&str; 5] = ["", ".bz2", ".gz", ".xz", ".zst"];

/// The decoded form of `package`, whose file is in the store.
pub(crate) fn decoded(store: &Store, package: &LockedPackage) -> Result<Arc<Tree>, BaseError> {
    let key = Digest::of(format!("kiln deb {VERSION}\n{}\n", package.sha256));
    if let Some(image) = store.step_result(&key)
        && let Ok(tree) = store.get_tree(&image.tree)
        && tree.objects().iter().all(|object| store.seems_whole(object).unwrap_or(false))
    {
        return Ok(tree);
    }
    let failed = |error: io::Error| BaseError::Deb {
        package: package.label(),
        what: format!("its file cannot be read: {error}"),
    };
    let file = store.open_object(&package.sha256)?;
    let tree = read(store, file).map_err(failed)?;
    let config = store.put_config(&ImageConfig::default())?;
    let image = ImageId { tree: store.put_tree(&tree)?, config };
    store.set_step_result(&key, &image)?;
    Ok(Arc::new(tree))
}

/// Reads a whole package file.
pub(crate) fn read(store: &Store, file: File) -> io::Result<Tree> {
    let mut from = BufReader::with_capacity(256 << 10, file);
    ar::magic(&mut from)?;
    let mut tree = Tree::new();
    tree.insert(b"data", Node::new(Kind::Dir, 0o755));
    let mut conffiles = None;
    let mut complete = false;
    while let Some(member) = ar::next(&mut from)? {
        let mut content = (&mut from).take(member.size);
        if let Some(form) = member.name.strip_prefix("control.tar") {
            known(form)?;
            read_control(store, &mut content, &mut tree)?;
            conffiles = Some(conffiles_of(store, &tree)?);
        } else if let Some(form) = member.name.strip_prefix("data.tar") {
            let conffiles =
                conffiles.as_ref().ok_or_else(|| bad("its data come before its control"))?;
            known(form)?;
            read_data(store, &mut content, &mut tree, conffiles)?;
            complete = true;
        }
        let rest = content.limit() + member.size % 2;
        let skipped = io::copy(&mut (&mut from).take(rest), &mut io::sink())?;
        if skipped + 1 < rest {
            return Err(bad("it ends in the middle"));
        }
    }
    if complete { Ok(tree) } else { Err(bad("it has no data")) }
}

fn known(form: &str) -> io::Result<()> {
    if FORMS.contains(&form) {
        return Ok(());
    }
    Err(bad(&format!("compression `{form}` is not known")))
}

fn read_control(store: &Store, from: &mut dyn Read, tree: &mut Tree) -> io::Result<()> {
    let limits = Limits { bytes: CONTROL_LIMIT, ..Limits::default() };
    let mut reader = Reader::new(kiln_archive::open(from, limits)?);
    while let Some(entry) = reader.next_entry().map_err(ArchiveError::into_io)? {
        let path = clean(&entry.name)?;
        if path.is_empty() || entry.kind != EntryKind::File {
            continue;
        }
        if path.contains(&b'/') {
            return Err(bad("its control archive has directories"));
        }
        let mode = (entry.mode & 0o7777) as u16;
        let (digest, size) = store.put_reader(&mut reader).map_err(io::Error::other)?;
        let at = [b"control/".as_slice(), &path].concat();
        tree.insert(&at, Node::new(Kind::File { size, digest }, mode));
    }
    reader.finish().map_err(ArchiveError::into_io)
}

/// Paths in `control/conffiles`, without those that are to be removed on upgrade.
fn conffiles_of(store: &Store, tree: &Tree) -> io::Result<BTreeSet<Path>> {
    let Some(Kind::File { digest, .. }) = tree.get(b"control/conffiles").map(|node| &node.kind)
    else {
        return Ok(BTreeSet::new());
    };
    let text = store.get(digest).map_err(io::Error::other)?;
    text.split(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(b"/"))
        .map(|line| clean(line.trim_ascii()))
        .collect()
}

fn read_data(
    store: &Store,
    from: &mut dyn Read,
    tree: &mut Tree,
    conffiles: &BTreeSet<Path>,
) -> io::Result<()> {
    let mut links = Vec::new();
    let mut reader = Reader::new(kiln_archive::open(from, Limits::default())?);
    while let Some(entry) = reader.next_entry().map_err(ArchiveError::into_io)? {
        let path = clean(&entry.name)?;
        let at = if path.is_empty() { b"data".to_vec() } else { [b"data/", &path[..]].concat() };
        if let EntryKind::Link(to) = &entry.kind {
            links.push((at, [b"data/".as_slice(), &clean(to)?].concat()));
            continue;
        }
        let node = read_entry(store, entry, &mut reader, conffiles.contains(&path))?;
        tree.insert(&at, node);
    }
    reader.finish().map_err(ArchiveError::into_io)?;
    links.into_iter().try_for_each(|(at, to)| link(tree, at, to))
}

fn read_entry(
    store: &Store,
    entry: Entry,
    content: &mut Reader<'_>,
    conffile: bool,
) -> io::Result<Node> {
    let number = |number: u64| u32::try_from(number).map_err(|_| bad("a number is too large"));
    let mut md5 = None;
    let kind = match entry.kind {
        EntryKind::Dir => Kind::Dir,
        EntryKind::Symlink(target) => Kind::Symlink { target },
        EntryKind::Fifo => Kind::Fifo,
        EntryKind::Char(major, minor) => {
            Kind::CharDevice { major: number(major)?, minor: number(minor)? }
        }
        EntryKind::Block(major, minor) => {
            Kind::BlockDevice { major: number(major)?, minor: number(minor)? }
        }
        EntryKind::File => {
            let mut hashed = Hashed { from: content, md5: conffile.then(Md5::new) };
            let (digest, size) = store.put_reader(&mut hashed).map_err(io::Error::other)?;
            md5 = hashed.md5;
            Kind::File { size, digest }
        }
        EntryKind::Link(_) => return Err(bad("a link is no entry of its own")),
        EntryKind::Other(flag) => {
            let flag = char::from(flag).escape_default();
            return Err(bad(&format!("it has an entry of the unknown type `{flag}`")));
        }
    };
    let mut node = Node::new(kind, (entry.mode & 0o7777) as u16);
    (node.uid, node.gid) = (number(entry.uid)?, number(entry.gid)?);
    let (user, group) = (&entry.user[..], &entry.group[..]);
    if (user, group) != (b"root", b"root") && !(user.is_empty() && group.is_empty()) {
        node.xattrs.insert(OWNER.to_vec(), [user, b":", group].concat());
    }
    if let Some(md5) = md5 {
        let hex: String = md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        node.xattrs.insert(MD5.to_vec(), hex.into_bytes());
    }
    Ok(node)
}

/// Makes `at` a further name of the file `to`. The name that sorts first holds the content.
fn link(tree: &mut Tree, at: Path, to: Path) -> io::Result<()> {
    let mut first = to;
    let mut node = tree.get(&first).cloned();
    if let Some(Node { kind: Kind::Hardlink { to }, .. }) = &node {
        first = to.clone();
        node = tree.get(&first).cloned();
    }
    let Some(mut node) = node.filter(|node| matches!(node.kind, Kind::File { .. })) else {
        return Err(bad(&format!(
            "{} is a hard link to something that is no file of it",
            String::from_utf8_lossy(&at)
        )));
    };
    if at < first {
        // The listing wants the content at the name that sorts first.
        tree.insert(&at, node.clone());
        for other in tree.entries.values_mut() {
            if matches!(&other.kind, Kind::Hardlink { to } if *to == first) {
                other.kind = Kind::Hardlink { to: at.clone() };
            }
        }
        node.kind = Kind::Hardlink { to: at };
        tree.entries.insert(first, node);
    } else if at != first {
        node.kind = Kind::Hardlink { to: first };
        tree.insert(&at, node);
    }
    Ok(())
}

/// A path below the package's root. One that could leave the tree is refused.
fn clean(path: &[u8]) -> io::Result<Path> {
    kiln_archive::clean(path).map_err(|_| {
        let path = kiln_archive::shown(path);
        bad(&format!("it has a path that is not allowed: {path}"))
    })
}

struct Hashed<R> {
    from: R,
    md5: Option<Md5>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        if let Some(md5) = &mut self.md5 {
            md5.update(&buffer[..count]);
        }
        Ok(count)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
