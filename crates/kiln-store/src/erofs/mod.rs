//! Tree → EROFS image that holds all metadata and no file contents.
//!
//! A regular file is an inode of the right size without blocks, whose overlayfs attributes lead to
//! its object: `trusted.overlay.metacopy` and `trusted.overlay.redirect=/ab/<62 hex>`. Mounted as
//! the lower layer of an overlay with `objects/` as its data-only layer (the composefs way), files
//! read their contents straight from the store.
//!
//! Same tree, same bytes: inodes stand in path order, attributes in name order, one time for all,
//! no identifiers. The image is a cache all the same; a tree's identity is its listing.
//!
//! | module | noun |
//! |---|---|
//! | here | placing inodes, writing them |
//! | `plan` | what becomes an inode: links counted, names gathered |
//! | `format` | the structures on disk |
//! | `dir` | blocks of a directory |
//!
//! Source of the format: Linux `fs/erofs/erofs_fs.h`, `Documentation/filesystems/erofs.rst`.

mod dir;
mod format;
mod plan;

use kiln_core::Digest;
use kiln_core::tree::{Kind, Node, Tree};

use self::format::{BLOCK, Inode, Layout, SLOT};
use self::plan::{Entry, Plan};
use crate::error::{Error, Result};

/// Builds the image of `tree`. `digest` is only for messages.
///
/// # Errors
/// [`Error::Tree`] for what overlayfs or EROFS cannot show: a character device 0:0 (overlayfs's
/// mark for a deletion), names beyond 255 bytes, attributes of unknown namespaces, an entry whose
/// parent is missing, a hard link to nothing.
pub fn build(tree: &Tree, digest: &Digest) -> Result<Vec<u8>> {
    let fail = |path: &[u8], why: String| Error::Tree {
        tree: *digest,
        path: String::from_utf8_lossy(path).into_owned(),
        why,
    };
    let plan = Plan::of(tree).map_err(|(path, why)| fail(&path, why))?;
    let mut places = Vec::with_capacity(plan.entries.len());
    let mut end = format::SUPER_END;
    for entry in &plan.entries {
        let place = Place::after(end, entry).map_err(|why| fail(entry.path, why))?;
        end = place.end();
        places.push(place);
    }
    // Whole blocks of directories and long symlinks come after all inodes.
    let mut block = end.div_ceil(BLOCK);
    for place in &mut places {
        place.block = block;
        block += place.blocks;
    }
    let blocks = u32::try_from(block).map_err(|_| fail(b"", "the image is too large".into()))?;
    let mut image = vec![0; block * BLOCK];
    for (index, entry) in plan.entries.iter().enumerate() {
        write_entry(&mut image, &places, index, entry);
    }
    let root = places.first().map_or(0, |place| place.nid());
    format::write_super(&mut image, root, plan.entries.len() as u64, blocks);
    Ok(image)
}

/// Whether `head`, the start of a file of `length` bytes, is an image as [`build`] makes it, whole.
/// Looks at the checksum of the first block and at the length.
pub fn looks_whole(head: &[u8], length: u64) -> bool {
    format::check_super(head).is_some_and(|blocks| u64::from(blocks) * BLOCK as u64 == length)
}

/// Where an inode and its data are.
struct Place {
    /// Byte offset of the inode.
    at: usize,
    /// Extended rather than compact.
    extended: bool,
    /// Length of its attributes.
    xattrs: usize,
    /// Length of what follows the attributes: tail of the data, or chunk map.
    tail: usize,
    layout: Layout,
    /// First whole block, and how many.
    block: usize,
    blocks: usize,
}

impl Place {
    fn after(end: usize, entry: &Entry<'_>) -> Result<Self, String> {
        let extended = entry.needs_extended();
        let xattrs = format::xattrs_len(&entry.xattrs)?;
        let header = format::inode_len(extended) + xattrs;
        let (layout, blocks, tail) = match entry.data_len() {
            None if entry.chunked() => (Layout::Chunks, 0, 4),
            None | Some(0) => (Layout::Plain, 0, 0),
            Some(len) => match (len / BLOCK, len % BLOCK) {
                (full, 0) => (Layout::Plain, full, 0),
                // The tail shares the inode's block, if there is a way to place them so.
                (full, tail) if header % SLOT + tail <= BLOCK => (Layout::Inline, full, tail),
                (full, _) => (Layout::Plain, full + 1, 0),
            },
        };
        let mut at = end.next_multiple_of(SLOT);
        if layout == Layout::Inline {
            while (at + header) % BLOCK + tail > BLOCK {
                at += SLOT;
            }
        }
        Ok(Self { at, extended, xattrs, tail, layout, block: 0, blocks })
    }

    fn end(&self) -> usize {
        self.tail_at() + self.tail
    }

    fn tail_at(&self) -> usize {
        self.at + format::inode_len(self.extended) + self.xattrs
    }

    fn nid(&self) -> u64 {
        (self.at / SLOT) as u64
    }
}

fn write_entry(image: &mut [u8], places: &[Place], index: usize, entry: &Entry<'_>) {
    let place = &places[index];
    let Node { kind, mode, uid, gid, time, .. } = entry.node;
    let union = match kind {
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            format::device(*major, *minor)
        }
        Kind::File { size, .. } if *size > 0 => format::chunk_format(*size),
        _ if place.blocks > 0 => place.block as u32,
        _ => 0,
    };
    let size = match kind {
        Kind::File { size, .. } => *size,
        _ => entry.data_len().unwrap_or(0) as u64,
    };
    let inode = Inode {
        extended: place.extended,
        layout: place.layout,
        xattrs: place.xattrs,
        mode: format::type_bits(kind) | mode,
        nlink: entry.nlink,
        size,
        union,
        number: index as u32 + 1,
        uid: *uid,
        gid: *gid,
        time: *time,
    };
    inode.write(&mut image[place.at..]);
    let xattrs_at = place.at + format::inode_len(place.extended);
    format::write_xattrs(&mut image[xattrs_at..xattrs_at + place.xattrs], &entry.xattrs);
    let tail_at = place.tail_at();
    match kind {
        Kind::Symlink { target } => put_data(image, place, target),
        Kind::Dir => {
            let nid = |of: usize| places[of].nid();
            let data = dir::encode(&entry.names, nid, index, entry.parent);
            put_data(image, place, &data);
        }
        Kind::File { size, .. } if *size > 0 => {
            image[tail_at..tail_at + 4].copy_from_slice(&format::NO_BLOCK.to_le_bytes());
        }
        _ => {}
    }
}

/// Writes data to its whole blocks and its tail.
fn put_data(image: &mut [u8], place: &Place, data: &[u8]) {
    let (whole, tail) = data.split_at(data.len() - place.tail);
    let at = place.block * BLOCK;
    image[at..at + whole.len()].copy_from_slice(whole);
    let tail_at = place.tail_at();
    image[tail_at..tail_at + tail.len()].copy_from_slice(tail);
}

#[cfg(test)]
mod tests;
