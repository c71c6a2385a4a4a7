//! What can go wrong on the way out or in.

use std::io;

use kiln_core::Digest;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// What the system answered.
        source: io::Error,
    },
    /// The store could not.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// Something is not what its format demands.
    #[error("{what}: {why}")]
    Malformed {
        /// Which file, document or entry.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A content is not the one that its name promises.
    #[error("{what} is not what it claims: expected {expected}, found {found}")]
    Mismatch {
        /// Which content.
        what: String,
        /// The digest that was promised.
        expected: Digest,
        /// The digest of what is there.
        found: Digest,
    },
    /// More than is taken from anybody.
    #[error("{what} exceeds the limit of {limit}")]
    TooMuch {
        /// What there is too much of.
        what: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// The image that was asked for is not there, or it is not clear which one is meant.
    #[error("{0}")]
    Select(String),
    /// Something could not be had from where it is.
    #[error("{what}: {source}")]
    Remote {
        /// What was asked for.
        what: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tree has something that a layer cannot carry.
    #[error("`{path}` cannot be exported: {why}")]
    Unfit {
        /// The entry.
        path: String,
        /// Why not.
        why: String,
    },
    /// Given up because nobody waits any more.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn malformed(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Malformed { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn remote(
        what: impl Into<String>,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> Self {
        Self::Remote { what: what.into(), source }
    }

    /// With the layer in which something is wrong.
    pub(crate) fn in_layer(self, layer: &Digest) -> Self {
        match self {
            Self::Malformed { what, why } => {
                Self::Malformed { what: format!("layer {}: {what}", layer.short()), why }
            }
            other => other,
        }
    }

    pub(crate) fn too_much(what: impl Into<String>, limit: impl Into<String>) -> Self {
        Self::TooMuch { what: what.into(), limit: limit.into() }
    }
}

/// Adds what was being done to an I/O error.
pub(crate) trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { doing: doing(), source: source.into() })
    }
}

/// A path as a person reads it.
pub(crate) fn shown(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}
