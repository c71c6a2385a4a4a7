//! Blocks of a directory: each begins with its entries of 12 bytes (inode number, offset of the
//! name, type), the names follow. Entries are in bytewise order over all blocks, `.` and `..`
//! among them.

use super::format::BLOCK;
use super::plan::Name;

const ENTRY: usize = 12;
const DOTS: [&[u8]; 2] = [b".", b".."];
const TYPE_DIR: u8 = 2;

/// Length of the directory's data in bytes.
pub(super) fn length(names: &[Name<'_>]) -> usize {
    let mut blocks = 0;
    let mut used = 0;
    // Order matters, because it decides which names share a block.
    for name in sorted(names) {
        let need = ENTRY + name.len();
        if used + need > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += need;
    }
    blocks * BLOCK + used
}

/// The directory's data. `nid` gives the inode number of an index; `this` and `parent` are the
/// indices of `.` and `..`.
pub(super) fn encode(
    names: &[Name<'_>],
    nid: impl Fn(usize) -> u64,
    this: usize,
    parent: usize,
) -> Vec<u8> {
    let mut all: Vec<(&[u8], u64, u8)> =
        names.iter().map(|entry| (entry.name, nid(entry.to), entry.kind)).collect();
    for (dot, to) in DOTS.into_iter().zip([this, parent]) {
        let at = all.partition_point(|(name, ..)| *name < dot);
        all.insert(at, (dot, nid(to), TYPE_DIR));
    }
    let mut out = Vec::with_capacity(length(names));
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let mut used = 0;
        let fitting = rest.iter().take_while(|(name, ..)| {
            used += ENTRY + name.len();
            used <= BLOCK
        });
        let (block, next) = rest.split_at(fitting.count());
        // All blocks but the last are full; names end at the first NUL.
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        let mut offset = block.len() * ENTRY;
        for (name, nid, kind) in block {
            out.extend_from_slice(&nid.to_le_bytes());
            out.extend_from_slice(&(offset as u16).to_le_bytes());
            out.extend_from_slice(&[*kind, 0]);
            offset += name.len();
        }
        for (name, ..) in block {
            out.extend_from_slice(name);
        }
        rest = next;
    }
    out
}

/// Names in order, with the two dots.
fn sorted<'a>(names: &'a [Name<'_>]) -> impl Iterator<Item = &'a [u8]> {
    let mut dots = DOTS.into_iter().peekable();
    let mut names = names.iter().map(|entry| entry.name).peekable();
    std::iter::from_fn(move || match (dots.peek(), names.peek()) {
        (Some(dot), Some(name)) if name < dot => names.next(),
        (Some(_), _) => dots.next(),
        (None, _) => names.next(),
    })
}
