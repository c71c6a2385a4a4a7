//! Archives that strangers made: the one reader of them. tar in all its dialects, plain or packed by
//! gzip, bzip2, xz or zstd, known by content; and ar, the outer form of Debian packages.
//!
//! Read as a stream, so memory does not depend on sizes, and distrusted throughout: sizes, numbers
//! of entries, lengths of names and the ratio of packing are bounded ([`Limits`]), and what cannot
//! be is refused. What an entry *means* is its caller's: ADD unpacks as `moby/go-archive` does, a
//! layer hides what is below it, a package has its own rules. The fuzz targets `archive`, `layer`
//! and `package` come in through those three.
//!
//! | module | noun |
//! |---|---|
//! | [`decode`] | compression: told by the first bytes, undone, measured |
//! | [`reader`] | a stream of entries |
//! | `header` | one block of 512 bytes |
//! | `pax` | the records of an extended header |
//! | `sparse` | files with holes |
//! | [`ar`] | members of an ar archive |
#![forbid(unsafe_code)]

pub mod ar;
pub mod decode;
mod header;
mod pax;
pub mod reader;
mod sparse;

use std::io;

pub use decode::{Decoded, open, open_bare, plain};
pub use reader::{Entry, EntryKind, Reader};

/// Longest path and longest link, in bytes: no program could open a longer one (`PATH_MAX`).
pub const PATH_MAX: usize = 4095;
/// Longest part of a path, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// How much an archive may unpack to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes: contents, their holes, and headers.
    pub bytes: u64,
    /// Beyond the first gigabyte, bytes for each packed byte; `None` without this limit.
    pub ratio: Option<u64>,
    /// Entries.
    pub entries: u64,
}

/// The ratio counts only beyond this size: what is smaller does no harm.
const RATIO_FROM: u64 = 1 << 30;

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, ratio: Some(200), entries: 1 << 20 }
    }
}

impl Limits {
    /// What a user allows who names a size: that, however well it was packed.
    pub fn of_bytes(bytes: u64) -> Self {
        Self { bytes, ratio: None, ..Self::default() }
    }
}

/// Why an archive was not read. What it is called, the caller knows.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It ends early, a checksum is wrong, or it is no such form at all.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It unpacks to more than it may.
    #[error("it unpacks to more than {0}")]
    TooLarge(String),
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
}

impl ArchiveError {
    /// [`ArchiveError::Damaged`].
    pub fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    /// As an error of a [`Read`](io::Read), from which [`ArchiveError::from`] gets it back.
    pub fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self)
    }
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(error) => Self::Read(error),
        }
    }
}

/// A name of an archive in a message: whole, if it is bearable.
pub fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut text: String = text.chars().flat_map(char::escape_debug).take(200).collect();
    if name.len() > 200 {
        text.push('…');
    }
    text
}

/// The parts of a path that say something: without empty ones and `.`.
pub fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

/// A path without `.`, doubled or outer slashes; empty for the top. One with `..` is refused, also
/// if it would come back, and so is one that no file could have.
///
/// # Errors
/// What is wrong with it.
pub fn clean(path: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut clean: Vec<u8> = Vec::with_capacity(path.len().min(PATH_MAX));
    for part in parts(path) {
        if part == b".." {
            return Err("its path has `..`");
        }
        if part.len() > NAME_MAX || part.contains(&0) {
            return Err("its path has a part that is no file name");
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(part);
        if clean.len() > PATH_MAX {
            return Err("its path is too long");
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_or_refused() {
        assert_eq!(clean(b"./a//b/./c/"), Ok(b"a/b/c".to_vec()));
        assert_eq!(clean(b"/etc/passwd"), Ok(b"etc/passwd".to_vec()));
        assert_eq!(clean(b"./"), Ok(Vec::new()));
        let long = b"n/".repeat(3000);
        for bad in [&b"../x"[..], b"a/../b", b"a/..", &[b'x'; 256], b"a\0b", &long] {
            assert!(clean(bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
