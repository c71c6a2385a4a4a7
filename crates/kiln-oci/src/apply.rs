//! What a layer does to a root file system, one operation after the other, as the OCI image
//! specification (`layer.md`) has it.

use kiln_archive::Reader;
use kiln_core::tree::{Kind, Node};
use kiln_store::Store;

use crate::entry::{self, Entry, Type};
use crate::error::{Error, Result, shown};
use crate::rootfs::Rootfs;

/// Prefix of a name that hides another of lower layers.
const WHITEOUT: &[u8] = b".wh.";

/// In a directory: hides all that lower layers have there.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Longest value of an extended attribute, and longest name, in bytes: what is longer, no file of
/// a root file system can have.
const ATTRIBUTE: usize = 65_535;
const ATTRIBUTE_NAME: usize = 255;

/// Prefix of what AUFS noted for itself; no part of an image.
const AUFS: &[u8] = b".wh..wh.";

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// Puts an entry; the content of a file is in the store.
    Put(Vec<u8>, Node),
    /// Makes the first path a further name of the file at the second.
    Link(Vec<u8>, Vec<u8>),
    /// Hides what lower layers have at the path.
    Whiteout(Vec<u8>),
    /// Hides what lower layers have in the directory.
    Opaque(Vec<u8>),
}

impl Rootfs {
    /// Carries one out.
    pub(crate) fn apply(&mut self, op: Op) -> Result<()> {
        match op {
            Op::Put(path, node) => self.put(&path, node),
            Op::Link(path, to) => self.link(&path, &to),
            Op::Whiteout(path) => self.whiteout(&path),
            Op::Opaque(path) => self.opaque(&path),
        }
    }
}

/// Reads an uncompressed layer to its very end; contents go into the store.
pub(crate) fn operations(
    store: &Store,
    mut reader: Reader<'_>,
    each: &mut dyn FnMut(Op) -> Result<()>,
) -> Result<()> {
    while let Some(entry) = entry::next(&mut reader)? {
        let (dir, name) = match entry.path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&entry.path[..at], &entry.path[at + 1..]),
            None => (&entry.path[..0], entry.path.as_slice()),
        };
        if name == OPAQUE {
            each(Op::Opaque(dir.to_vec()))?;
            continue;
        }
        if entry.path.split(|byte| *byte == b'/').any(|part| part.starts_with(AUFS)) {
            continue;
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                let what = format!("whiteout {}", shown(&entry.path));
                return Err(Error::malformed(what, "it names no file"));
            }
            let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
            each(Op::Whiteout([dir, slash, hidden].concat()))?;
            continue;
        }
        each(placed(store, &mut reader, entry)?)?;
    }
    reader.finish().map_err(entry::failed)
}

fn placed(store: &Store, reader: &mut Reader<'_>, mut entry: Entry) -> Result<Op> {
    let kind = match std::mem::replace(&mut entry.kind, Type::Dir) {
        Type::Hardlink(to) => return Ok(Op::Link(entry.path, to)),
        Type::File => {
            let (digest, size) = store.put_reader(reader).map_err(entry::stored)?;
            Kind::File { size, digest }
        }
        Type::Symlink(target) => Kind::Symlink { target },
        Type::Dir => Kind::Dir,
        Type::Fifo => Kind::Fifo,
        Type::CharDevice(0, 0) => {
            let what = format!("tar entry {}", shown(&entry.path));
            return Err(Error::malformed(what, "device 0, 0 is overlayfs' own mark"));
        }
        Type::CharDevice(major, minor) => Kind::CharDevice { major, minor },
        Type::BlockDevice(major, minor) => Kind::BlockDevice { major, minor },
    };
    let mut node = Node::new(kind, entry.mode).with_archive_time(entry.time);
    (node.uid, node.gid) = (entry.uid, entry.gid);
    // As at capture: the rest is the machine's on which the layer was made.
    let kept = |name: &[u8]| name == b"security.capability" || name.starts_with(b"user.");
    node.xattrs = entry.xattrs.into_iter().filter(|(name, _)| kept(name)).collect();
    for (name, value) in &node.xattrs {
        if value.len() <= ATTRIBUTE && name.len() <= ATTRIBUTE_NAME {
            continue;
        }
        let path = shown(&entry.path);
        let short = name[..name.len().min(60)].escape_ascii().to_string();
        let why = format!(
            "its attribute `{short}` has a name of {} and a value of {} bytes; a file can have \
             {ATTRIBUTE_NAME} and {ATTRIBUTE}: build the image without it (`RUN setfattr -x {short} \
             {path}`)",
            name.len(),
            value.len()
        );
        return Err(Error::malformed(format!("tar entry {path}"), why));
    }
    Ok(Op::Put(entry.path, node))
}
