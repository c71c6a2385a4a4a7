//! One layer onto a root file system, as the OCI image specification (`layer.md`) has it.

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

/// Prefix of what AUFS noted for itself; no part of an image.
const AUFS: &[u8] = b".wh..wh.";

/// Applies the uncompressed `layer`, and reads it to its very end.
pub(crate) fn apply(store: &Store, rootfs: &mut Rootfs, mut reader: Reader<'_>) -> Result<()> {
    rootfs.begin_layer();
    while let Some(entry) = entry::next(&mut reader)? {
        let (dir, name) = match entry.path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&entry.path[..at], &entry.path[at + 1..]),
            None => (&entry.path[..0], entry.path.as_slice()),
        };
        if name == OPAQUE {
            rootfs.opaque(dir)?;
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
            rootfs.whiteout(&[dir, slash, hidden].concat())?;
            continue;
        }
        place(store, rootfs, &mut reader, entry)?;
    }
    reader.finish().map_err(entry::failed)
}

fn place(
    store: &Store,
    rootfs: &mut Rootfs,
    reader: &mut Reader<'_>,
    mut entry: Entry,
) -> Result<()> {
    let kind = match std::mem::replace(&mut entry.kind, Type::Dir) {
        Type::Hardlink(to) => return rootfs.link(&entry.path, &to),
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
    rootfs.put(&entry.path, node)
}
