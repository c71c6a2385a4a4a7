//! Archives that ADD unpacks: tar, plain or packed by gzip, bzip2, xz or zstd, known by content.
//!
//! `kiln-archive` reads them. What an archive means is as `moby/go-archive` has it, which BuildKit
//! unpacks with; what could leave the destination is refused with the entry's name ([`unpack`]).

#[cfg(test)]
mod tests;
mod unpack;

use std::fs::File;
use std::io::{self, Read};

use kiln_archive::{ArchiveError, Reader};
use kiln_core::Digest;
use kiln_core::digest::Hasher;

pub(crate) use unpack::{Destination, unpack};

pub use kiln_archive::Limits;

/// Why an archive was not unpacked. What it is called, the caller knows.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is damaged, or no archive at all, or cannot be read.
    #[error(transparent)]
    Archive(ArchiveError),
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
        "{0}; where that is right, allow more by the build argument `{UNPACK_LIMIT}`, for example \
         `{UNPACK_LIMIT}=200gb`"
    )]
    TooLarge(ArchiveError),
    /// The store did not take a content.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
}

impl UnpackError {
    /// Whether the archive itself is in order: reading or storing it failed.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Archive(ArchiveError::Read(_)))
    }
}

impl From<ArchiveError> for UnpackError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::TooLarge(_) => Self::TooLarge(error),
            other => Self::Archive(other),
        }
    }
}

/// The build argument by which a user allows archives more than [`Limits::default`].
pub const UNPACK_LIMIT: &str = "KILN_UNPACK_LIMIT";

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
    let found = kiln_archive::open(from, limits)
        .map_err(ArchiveError::from)
        .and_then(|decoded| Reader::new(decoded).next_entry());
    match found {
        Ok(first) => Ok(first.is_some()),
        Err(ArchiveError::Read(error)) => Err(error),
        Err(_) => Ok(false),
    }
}
