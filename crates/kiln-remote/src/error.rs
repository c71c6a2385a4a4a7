//! What can go wrong with what is fetched.

use kiln_core::Digest;

/// Why a URL or a Git repository did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The text says nothing that can be fetched.
    #[error("`{source_text}`: {what}")]
    Reference {
        /// As in the Dockerfile.
        source_text: String,
        /// What is wrong with it.
        what: String,
    },
    /// Content that is not the pinned one.
    #[error("input differs: `{source_text}` gave {found}, {pinned_by} says {expected}")]
    Differs {
        /// As in the Dockerfile.
        source_text: String,
        /// What came: a digest or a commit.
        found: String,
        /// What was pinned.
        expected: String,
        /// `kiln.lock` or `--checksum`.
        pinned_by: &'static str,
    },
    /// Nothing pins it, and nothing may be pinned now.
    #[error("`{0}` is not in kiln.lock")]
    NotPinned(String),
    /// The server did not give it.
    #[error("`{url}` could not be fetched: {what}")]
    Fetch {
        /// The address.
        url: String,
        /// What was answered, or what failed.
        what: String,
    },
    /// It has more than may be fetched.
    #[error("`{url}` could not be fetched: it is larger than {limit} bytes")]
    TooLarge {
        /// The address.
        url: String,
        /// Bytes.
        limit: u64,
    },
    /// There is no Git.
    #[error("`{0}` is a Git repository, and there is no `git` on this machine")]
    NoGit(String),
    /// Git said no.
    #[error("`{remote}`: {what}: {output}")]
    Git {
        /// The repository.
        remote: String,
        /// What was tried.
        what: String,
        /// Its last lines.
        output: String,
    },
    /// The store failed.
    #[error("store: {0}")]
    Store(#[from] kiln_store::Error),
    /// A file of the host failed.
    #[error("a checkout could not be read: {0}")]
    Io(#[from] std::io::Error),
    /// Interrupted.
    #[error("interrupted")]
    Cancelled,
}

impl RemoteError {
    /// [`RemoteError::Reference`], without a password.
    pub fn reference(text: &str, what: impl Into<String>) -> Self {
        Self::Reference { source_text: crate::reference::redacted(text), what: what.into() }
    }

    /// [`RemoteError::Fetch`], without a password.
    pub fn fetch(url: &str, what: impl Into<String>) -> Self {
        Self::Fetch { url: crate::reference::redacted(url), what: what.into() }
    }

    /// [`RemoteError::Differs`] of a file, without a password.
    pub fn differs(text: &str, found: Digest, expected: Digest, by_lock: bool) -> Self {
        Self::Differs {
            source_text: crate::reference::redacted(text),
            found: format!("sha256:{}", found.hex()),
            expected: format!("sha256:{}", expected.hex()),
            pinned_by: if by_lock { "kiln.lock" } else { "--checksum" },
        }
    }

    /// Whether the user has to edit a file.
    pub const fn is_usage(&self) -> bool {
        matches!(self, Self::Reference { .. } | Self::NotPinned(_))
    }

    /// What to do, where it can be told.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Differs { pinned_by, .. } if *pinned_by == "kiln.lock" => {
                Some("if the new content is wanted, run `kiln lock --update`")
            }
            Self::Differs { .. } => Some("if the new content is wanted, change `--checksum`"),
            Self::NotPinned(_) => Some("run `kiln bake` once, and keep kiln.lock"),
            Self::TooLarge { .. } => Some(
                "where that is right, allow more by the build argument `KILN_FETCH_LIMIT`, for \
                 example `KILN_FETCH_LIMIT=100gb`",
            ),
            Self::NoGit(_) => Some("install git; what kiln.lock pins and the store has needs none"),
            _ => None,
        }
    }
}
