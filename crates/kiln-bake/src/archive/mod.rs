//! Archives that ADD unpacks: tar, plain or packed by gzip, bzip2, xz or zstd, known by content.
//!
//! Read as a stream, so memory does not depend on sizes, and distrusted throughout: whatever could
//! leave the destination, or grow without bound, is refused with the entry's name. What an archive
//! means is as `moby/go-archive` has it, which BuildKit unpacks with.
//!
//! | module | noun |
//! |---|---|
//! | [`decode`] | compression: told by the first bytes, undone, measured |
//! | [`header`] | one block of 512 bytes |
//! | [`pax`] | the records of an extended header |
//! | [`sparse`] | files with holes |
//! | [`reader`] | a stream of entries |
//! | [`unpack`] | entries into a tree |

mod decode;
mod header;
mod pax;
mod reader;
mod sparse;
#[cfg(test)]
mod tests;
mod unpack;

use std::fs::File;
use std::io::{self, Read};

use kiln_core::Digest;
use kiln_core::digest::Hasher;

pub(crate) use unpack::{Destination, unpack};

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

/// Why an archive was not unpacked. What it is called, the caller knows.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It ends early, a checksum is wrong, or it is no such form at all.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// An entry asks for what must not be.
    #[error("entry `{entry}`: {what}")]
    Entry {
        /// Its name, as far as it can be shown.
        entry: String,
        /// What is wrong with it.
        what: String,
    },
    /// It unpacks to more than it may.
    #[error(
        "it unpacks to more than {0}; where that is right, allow more by the build argument \
         `{UNPACK_LIMIT}`, for example `{UNPACK_LIMIT}=200gb`"
    )]
    TooLarge(String),
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    /// The store did not take a content.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
}

/// The build argument by which a user allows archives more than [`Limits::default`].
pub const UNPACK_LIMIT: &str = "KILN_UNPACK_LIMIT";

impl ArchiveError {
    fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    /// As an error of a [`Read`], from which [`ArchiveError::from`] gets it back.
    fn into_io(self) -> io::Error {
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

/// An archive file, checked against its digest while it is read.
#[derive(Debug)]
pub(crate) struct Checked {
    file: File,
    hasher: Hasher,
    digest: Digest,
}

impl Checked {
    pub(crate) fn new(file: File, digest: Digest) -> Self {
        Self { file, hasher: Hasher::new(), digest }
    }

    /// Reads what is left and says whether all of it was what it should have been.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink())?;
        if self.hasher.finish() == self.digest {
            return Ok(());
        }
        Err(io::Error::other("it changed while it was read; bake again"))
    }
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Whether `from` is an archive that ADD unpacks: its first entry can be read. As in the reference,
/// what is packed and holds no tar is none, nor is an empty archive.
///
/// # Errors
/// Only those of reading `from` itself.
pub(crate) fn is_archive(from: &mut dyn Read) -> io::Result<bool> {
    let limits = Limits { bytes: 4 << 20, ..Limits::default() };
    let found = decode::open(from, limits)
        .map_err(ArchiveError::from)
        .and_then(|decoded| reader::Reader::new(decoded).next());
    match found {
        Ok(first) => Ok(first.is_some()),
        Err(ArchiveError::Read(error)) => Err(error),
        Err(_) => Ok(false),
    }
}

/// A name of an archive in a message: whole, if it is bearable.
fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut text: String = text.chars().flat_map(char::escape_debug).take(200).collect();
    if name.len() > 200 {
        text.push('…');
    }
    text
}
