//! The structures on disk, little-endian, as in Linux's `fs/erofs/erofs_fs.h`.

use kiln_core::tree::Kind;

use super::plan::Xattr;

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;
/// Inodes start at multiples of this; an inode's number is its offset divided by it.
pub(super) const SLOT: usize = 32;
/// Where the superblock is.
const SUPER: usize = 1024;
/// First byte behind the superblock.
pub(super) const SUPER_END: usize = SUPER + 128;
/// A chunk that is all zeros: its content comes from elsewhere.
pub(super) const NO_BLOCK: u32 = u32::MAX;

const MAGIC: u32 = 0xE0F5_E1E2;
/// The checksum is there; inode times are modification times.
const COMPAT: u32 = 0x1 | 0x2;
/// Files may be in chunks.
const INCOMPAT: u32 = 0x4;

/// How a file's data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Whole blocks.
    Plain = 0,
    /// Whole blocks and a tail behind the inode.
    Inline = 2,
    /// A map of chunks behind the inode.
    Chunks = 4,
}

/// Everything of an inode's header.
pub(super) struct Inode {
    pub(super) extended: bool,
    pub(super) layout: Layout,
    pub(super) xattrs: usize,
    pub(super) mode: u16,
    pub(super) nlink: u32,
    pub(super) size: u64,
    pub(super) union: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds; in a compact inode, the superblock's.
    pub(super) time: i64,
}

pub(super) fn inode_len(extended: bool) -> usize {
    if extended { 64 } else { 32 }
}

impl Inode {
    pub(super) fn write(&self, out: &mut [u8]) {
        put16(out, 0, u16::from(self.extended) | (self.layout as u16) << 1);
        // Counted in words, the first of which stands for the 12 bytes of the header.
        let words = if self.xattrs == 0 { 0 } else { (self.xattrs - 12) / 4 + 1 };
        put16(out, 2, words as u16);
        put16(out, 4, self.mode);
        put32(out, 16, self.union);
        put32(out, 20, self.number);
        if self.extended {
            put64(out, 8, self.size);
            put32(out, 24, self.uid);
            put32(out, 28, self.gid);
            put64(out, 32, self.time.cast_unsigned());
            put32(out, 44, self.nlink);
        } else {
            // The plan has made sure that these fit; time is the superblock's.
            put16(out, 6, self.nlink as u16);
            put32(out, 8, self.size as u32);
            put16(out, 24, self.uid as u16);
            put16(out, 26, self.gid as u16);
        }
    }
}

/// The file type in `st_mode`.
pub(super) fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice { .. } => 0o020_000,
        Kind::Dir => 0o040_000,
        Kind::BlockDevice { .. } => 0o060_000,
        Kind::File { .. } | Kind::Hardlink { .. } => 0o100_000,
        Kind::Symlink { .. } => 0o120_000,
    }
}

/// The file type in a directory entry.
pub(super) fn dirent_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } | Kind::Hardlink { .. } => 1,
        Kind::Dir => 2,
        Kind::CharDevice { .. } => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::Fifo => 5,
        Kind::Symlink { .. } => 7,
    }
}

/// Device number as the kernel's `new_encode_dev` makes it: 12 bits of major, 20 of minor.
pub(super) fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Log2 of the chunk size in blocks, so that one chunk covers the file.
pub(super) fn chunk_format(size: u64) -> u32 {
    let blocks = size.div_ceil(BLOCK as u64);
    blocks.next_power_of_two().trailing_zeros().min(31)
}

/// Largest size that one chunk covers.
pub(super) const CHUNK_MAX: u64 = (BLOCK as u64) << 31;

/// Length of the attributes' area, or why they cannot be stored.
pub(super) fn xattrs_len(xattrs: &[Xattr<'_>]) -> Result<usize, String> {
    if xattrs.is_empty() {
        return Ok(0);
    }
    let mut len = 12;
    for xattr in xattrs {
        let (_, suffix) = xattr.split()?;
        let name = String::from_utf8_lossy(&xattr.name);
        if suffix.len() > 255 || xattr.value.len() > usize::from(u16::MAX) {
            return Err(format!("attribute `{name}` is too long"));
        }
        len += (4 + suffix.len() + xattr.value.len()).next_multiple_of(4);
    }
    // The area may not be larger than a block: more would be read in pieces by old kernels.
    if len > BLOCK {
        Err(format!("its attributes take {len} bytes, at most {BLOCK} fit"))
    } else {
        Ok(len)
    }
}

/// Writes the attributes; `out` is as long as [`xattrs_len`] said, and zero.
pub(super) fn write_xattrs(out: &mut [u8], xattrs: &[Xattr<'_>]) {
    let mut at = 12;
    for xattr in xattrs {
        // Checked by `xattrs_len`.
        let Ok((index, suffix)) = xattr.split() else { continue };
        out[at] = suffix.len() as u8;
        out[at + 1] = index;
        put16(out, at + 2, xattr.value.len() as u16);
        at += 4;
        out[at..at + suffix.len()].copy_from_slice(suffix);
        at += suffix.len();
        out[at..at + xattr.value.len()].copy_from_slice(&xattr.value);
        at = (at + xattr.value.len()).next_multiple_of(4);
    }
}

/// Writes the superblock, last of all, since its checksum covers the rest of the first block.
pub(super) fn write_super(image: &mut [u8], root: u64, inodes: u64, blocks: u32) {
    let head = &mut image[SUPER..];
    put32(head, 0, MAGIC);
    put32(head, 8, COMPAT);
    head[12] = BLOCK.trailing_zeros() as u8;
    // The root is the first inode, so its number is small.
    put16(head, 14, root as u16);
    put64(head, 16, inodes);
    put64(head, 24, crate::EPOCH as u64);
    put32(head, 36, blocks);
    put32(head, 80, INCOMPAT);
    let sum = crc32c(&image[SUPER..BLOCK]);
    put32(&mut image[SUPER..], 4, sum);
}

/// Number of blocks that the superblock in `head` states, if its checksum is right.
pub(super) fn check_super(head: &[u8]) -> Option<u32> {
    let mut block: Vec<u8> = head.get(SUPER..BLOCK)?.to_vec();
    let word = |at: usize| Some(u32::from_le_bytes(block.get(at..at + 4)?.try_into().ok()?));
    let (magic, sum, blocks) = (word(0)?, word(4)?, word(36)?);
    put32(&mut block, 4, 0);
    (magic == MAGIC && sum == crc32c(&block)).then_some(blocks)
}

/// CRC-32C as the kernel computes it here: all ones first, no final inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82F6_3B78 & (sum & 1).wrapping_neg())
        })
    })
}

fn put16(out: &mut [u8], at: usize, value: u16) {
    out[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_castagnoli() {
        // RFC 3720 B.4 gives 0x8a9136aa for 32 zero bytes, with the final inversion.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn one_chunk_covers_the_file() {
        for size in [1, 4096, 4097, 1 << 20, (1 << 20) + 1, 5 << 30] {
            let chunk = (BLOCK as u64) << chunk_format(size);
            assert!(chunk >= size && (chunk < 2 * size || chunk == 4096), "{size}");
        }
    }

    #[test]
    fn devices_are_encoded_as_the_kernel_does() {
        assert_eq!(device(5, 1), 0x0501);
        assert_eq!(device(259, 70_000), 0x1111_0370);
    }
}
