//! A package file, decoded into a tree of its own: `control/…` and `data/…`.
//!
//! The tree is kept under a key made of the file's digest, so packages that several bases share are
//! decoded once. Beside what a [`Tree`] says, two things are noted as attributes, which
//! [`super::assemble`] takes off again: [`OWNER`] and [`MD5`].

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use kiln_core::tree::{Kind, Node, Path};
use kiln_core::{Digest, ImageConfig, ImageId, Tree};
use kiln_store::Store;
use md5::{Digest as _, Md5};
use tar::{Archive, Entry, EntryType};

use super::ar;
use super::error::BaseError;
use super::lock::LockedPackage;

/// Version of the decoded form; part of the key under which it is kept.
const VERSION: u32 = 1;
/// `user:group`, where that is not `root:root`. dpkg goes by the names, not by the numbers.
pub(crate) const OWNER: &[u8] = b"kiln.owner";
/// md5 of a configuration file in hex, which dpkg's status wants.
pub(crate) const MD5: &[u8] = b"kiln.md5";

/// Memory that a decoder may take, in bytes: xz -9 needs 65 MiB.
const DECODER_MEMORY: u64 = 256 << 20;
/// The longest control archive, in bytes. It is kept in memory.
const CONTROL_LIMIT: u64 = 64 << 20;
/// Most entries of one package.
const ENTRIES: usize = 1 << 20;

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
            let mut unpacked = decoder(form, &mut content)?.take(CONTROL_LIMIT);
            read_control(store, &mut unpacked, &mut tree)?;
            conffiles = Some(conffiles_of(store, &tree)?);
        } else if let Some(form) = member.name.strip_prefix("data.tar") {
            let conffiles =
                conffiles.as_ref().ok_or_else(|| bad("its data come before its control"))?;
            let mut unpacked = decoder(form, &mut content)?;
            read_data(store, &mut unpacked, &mut tree, conffiles)?;
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

fn decoder<'a>(form: &str, from: &'a mut dyn Read) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match form {
        "" => Box::new(from),
        ".gz" => Box::new(flate2::read::GzDecoder::new(from)),
        ".xz" => {
            let stream = liblzma::stream::Stream::new_stream_decoder(DECODER_MEMORY, 0)
                .map_err(io::Error::other)?;
            Box::new(liblzma::read::XzDecoder::new_stream(from, stream))
        }
        ".zst" => {
            let mut decoder = zstd::stream::read::Decoder::new(from)?;
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
        other => return Err(bad(&format!("compression `{other}` is not known"))),
    })
}

fn read_control(store: &Store, from: &mut dyn Read, tree: &mut Tree) -> io::Result<()> {
    for entry in Archive::new(from).entries()? {
        let mut entry = entry?;
        let path = clean(&entry.path_bytes())?;
        if path.is_empty() || entry.header().entry_type() != EntryType::Regular {
            continue;
        }
        if path.contains(&b'/') {
            return Err(bad("its control archive has directories"));
        }
        let mode = (entry.header().mode()? & 0o7777) as u16;
        let (digest, size) = store.put_reader(&mut entry).map_err(io::Error::other)?;
        let at = [b"control/".as_slice(), &path].concat();
        tree.insert(&at, Node::new(Kind::File { size, digest }, mode));
    }
    Ok(())
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
    for (count, entry) in Archive::new(from).entries()?.enumerate() {
        let mut entry = entry?;
        if count > ENTRIES {
            return Err(bad("it has too many files"));
        }
        let path = clean(&entry.path_bytes())?;
        let at = if path.is_empty() { b"data".to_vec() } else { [b"data/", &path[..]].concat() };
        if entry.header().entry_type() == EntryType::Link {
            let to = entry.link_name_bytes().ok_or_else(|| bad("a hard link has no target"))?;
            links.push((at, [b"data/".as_slice(), &clean(&to)?].concat()));
            continue;
        }
        let node = read_entry(store, &mut entry, conffiles.contains(&path))?;
        if let Some(node) = node {
            tree.insert(&at, node);
        }
    }
    links.into_iter().try_for_each(|(at, to)| link(tree, at, to))
}

fn read_entry<R: Read>(
    store: &Store,
    entry: &mut Entry<'_, R>,
    conffile: bool,
) -> io::Result<Option<Node>> {
    let header = entry.header().clone();
    let device = || -> io::Result<(u32, u32)> {
        let (major, minor) = (header.device_major()?, header.device_minor()?);
        major.zip(minor).ok_or_else(|| bad("a device has no number"))
    };
    let mut md5 = None;
    let kind = match header.entry_type() {
        EntryType::Directory => Kind::Dir,
        EntryType::Symlink => {
            let target = entry.link_name_bytes().ok_or_else(|| bad("a link has no target"))?;
            Kind::Symlink { target: target.into_owned() }
        }
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
        EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut hashed = Hashed { from: entry, md5: conffile.then(Md5::new) };
            let (digest, size) = store.put_reader(&mut hashed).map_err(io::Error::other)?;
            md5 = hashed.md5;
            Kind::File { size, digest }
        }
        EntryType::XGlobalHeader => return Ok(None),
        other => return Err(bad(&format!("it has an entry of the unknown type {other:?}"))),
    };
    let mut node = Node::new(kind, (header.mode()? & 0o7777) as u16);
    let id = |id: u64| u32::try_from(id).map_err(|_| bad("an owner's number is too large"));
    (node.uid, node.gid) = (id(header.uid()?)?, id(header.gid()?)?);
    let user = header.username_bytes().unwrap_or_default();
    let group = header.groupname_bytes().unwrap_or_default();
    if (user, group) != (b"root", b"root") && !(user.is_empty() && group.is_empty()) {
        node.xattrs.insert(OWNER.to_vec(), [user, b":", group].concat());
    }
    if let Some(md5) = md5 {
        let hex: String = md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        node.xattrs.insert(MD5.to_vec(), hex.into_bytes());
    }
    Ok(Some(node))
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

/// A path without `.`, doubled or outer slashes. One that could leave the tree is refused.
fn clean(path: &[u8]) -> io::Result<Path> {
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|byte| *byte == b'/') {
        if part == b".." || part.contains(&0) || part.len() > 255 {
            let path = String::from_utf8_lossy(path);
            return Err(bad(&format!("it has a path that is not allowed: {path}")));
        }
        if !part.is_empty() && part != b"." {
            if !out.is_empty() {
                out.push(b'/');
            }
            out.extend_from_slice(part);
        }
    }
    Ok(out)
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
