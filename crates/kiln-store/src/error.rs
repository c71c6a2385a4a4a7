//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

use kiln_core::Digest;

/// Result of the store's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done, as in "writing".
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// No such object.
    #[error("object {0} is not in the store; `kiln bake` makes it again")]
    Missing(Digest),
    /// An object's content is not what its name says.
    #[error("object {digest} is damaged: its content has digest {found}; bake or pull it again")]
    Corrupt {
        /// The name.
        digest: Digest,
        /// The digest of what is there.
        found: Digest,
    },
    /// An object is not of the kind that was asked for.
    #[error("object {digest} is no {expected}: {why}")]
    Kind {
        /// The object.
        digest: Digest,
        /// What was asked for.
        expected: &'static str,
        /// What the reader said.
        why: String,
    },
    /// The root was written by another version.
    #[error("{root} has store format `{found}`, this kiln reads `{expected}`: use a newer kiln")]
    Format {
        /// The root folder.
        root: PathBuf,
        /// What its `format` file says.
        found: String,
        /// What would have been understood.
        expected: String,
    },
    /// A name that cannot be a file name.
    #[error("`{name}` cannot be the name of a {what}: use 1 to 200 characters without `/`")]
    Name {
        /// What it was to name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Somebody else moved the pointer in between.
    #[error(
        "stage {project}/{stage} is at generation {found}, not {expected}: \
         another deploy moved it; look at it again and retry"
    )]
    Stale {
        /// The project.
        project: String,
        /// The stage.
        stage: String,
        /// The generation that the caller had seen.
        expected: u64,
        /// The generation that is recorded.
        found: u64,
    },
    /// The ledger has a line that is not what was written.
    #[error("{path}, line {line}: {why}")]
    Ledger {
        /// The log.
        path: PathBuf,
        /// One-based line.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A reference is not what was written.
    #[error("{path} cannot be believed: {why}")]
    Reference {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Something is wrong with the ledger, or a copy beside it has what it has lost.
    #[error(
        "the ledger cannot be believed, so nothing is delivered and nothing collected: {}",
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Held {
        /// What is wrong.
        faults: Vec<crate::ledger::Fault>,
    },
    /// Something that is kept cannot be read, so nobody can say what hangs on it.
    #[error("{who} needs something that cannot be read, so nothing is collected: {source}")]
    Stops {
        /// Who needs it.
        who: String,
        /// What cannot be read, and why.
        source: Box<Error>,
    },
    /// Collection could not get the store for itself.
    #[error("the store is in use by a bake, deploy or transfer; waited {0} ms, try again later")]
    Busy(u128),
    /// A tree that has no form on disk.
    #[error("tree {tree}, `{path}`: {why}")]
    Tree {
        /// The tree.
        tree: Digest,
        /// The entry.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A backing that was forced is not there.
    #[error("KILN_STORE_BACKING={value}: {why}")]
    Backing {
        /// What was asked for.
        value: String,
        /// Why it cannot be.
        why: String,
    },
}

/// Adds what was being done, and to what, to an I/O error.
pub(crate) trait Context<T> {
    fn doing(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T>
    where
        Self: Sized,
    {
        self.doing_lazily(doing, || path.as_ref().to_owned())
    }

    /// The same for a path that takes some finding.
    fn doing_lazily(self, doing: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn doing_lazily(self, doing: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T> {
        self.map_err(|source| Error::Io { doing, path: path(), source: source.into() })
    }
}

/// Checks that `name` can be one component of a path and is not hidden.
pub(crate) fn component<'a>(what: &'static str, name: &'a str) -> Result<&'a str> {
    let fits = (1..=200).contains(&name.len()) && !name.starts_with('.');
    if fits && !name.bytes().any(|byte| byte == b'/' || byte < 0x20) {
        Ok(name)
    } else {
        Err(Error::Name { what, name: name.to_owned() })
    }
}
