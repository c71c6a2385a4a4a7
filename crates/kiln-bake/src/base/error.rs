//! What can go wrong with a base.

use std::path::{Path, PathBuf};

use kiln_core::Digest;

/// Why a base could not be resolved or baked.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// A tool of apt is not on this machine.
    #[error("`{program}` is not on this machine: {source}")]
    NoApt {
        /// The program.
        program: String,
        /// Why it did not start.
        source: std::io::Error,
    },
    /// apt ended with an error that has no variant of its own.
    #[error("base `{base}`: {what} failed:\n{output}")]
    Apt {
        /// Name of the base.
        base: String,
        /// What apt was asked for.
        what: String,
        /// Its last lines.
        output: String,
    },
    /// The suite is in none of the host's sources.
    #[error(
        "base `{base}`: the suite `{suite}` is not among this host's apt sources (found: {})",
        list(found)
    )]
    NoSuite {
        /// Name of the base.
        base: String,
        /// The suite asked for.
        suite: String,
        /// Suites that the host has.
        found: Vec<String>,
    },
    /// No package of that name in the suite.
    #[error("base `{base}`: there is no package `{package}` in `{suite}`")]
    NoPackage {
        /// Name of the base.
        base: String,
        /// The package.
        package: String,
        /// The suite.
        suite: String,
    },
    /// A name that cannot be one of a suite or package.
    #[error("base `{base}`: `{name}` is not a valid {kind} name")]
    BadName {
        /// Name of the base.
        base: String,
        /// `suite` or `package`.
        kind: &'static str,
        /// What was written.
        name: String,
    },
    /// No mirror of the host could be reached for a file.
    #[error("package {package}: could not be downloaded: {found}")]
    MirrorDown {
        /// Name and version.
        package: String,
        /// What the mirrors answered.
        found: String,
    },
    /// The mirrors are there, the locked file is not.
    #[error("package {package} is locked, but is no longer on the mirror (asked: {})", list(asked))]
    PackageGone {
        /// Name and version.
        package: String,
        /// Addresses that were asked.
        asked: Vec<String>,
    },
    /// A file is not what the lock says.
    #[error("package {package}: the mirror served {found}, the lock says {expected}")]
    WrongHash {
        /// Name and version.
        package: String,
        /// From the lock.
        expected: Digest,
        /// Of what came; a digest, or apt's words.
        found: String,
    },
    /// A package file that cannot be read.
    #[error("package {package}: {what}")]
    Deb {
        /// Name of the package or file.
        package: String,
        /// What was wrong with it.
        what: String,
    },
    /// `kiln.lock` cannot be used.
    #[error("{}: {what}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        what: String,
    },
    /// A script of a package failed, or dpkg did.
    #[error("base `{base}`: {what}\n{log}")]
    Script {
        /// Name of the base.
        base: String,
        /// What failed.
        what: String,
        /// The lines that matter.
        log: String,
    },
    /// The sandbox did not start.
    #[error("base `{base}`: the sandbox could not run: {what}")]
    Sandbox {
        /// Name of the base.
        base: String,
        /// Why.
        what: String,
    },
    /// Capturing what the scripts wrote failed.
    #[error("base `{base}`: reading back what was configured: {what}")]
    Capture {
        /// Name of the base.
        base: String,
        /// Why.
        what: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// A file of Kiln's own could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The user asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl BaseError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoApt { .. } => Some(
                "resolving a base needs apt on the host; a project with a kiln.lock whose packages \
                 are in the store bakes without it",
            ),
            Self::NoSuite { .. } => {
                Some("add the suite to /etc/apt/sources.list.d, or name one of those found")
            }
            Self::NoPackage { .. } => {
                Some("correct `packages` under `x-kiln.bases`; `apt-cache search WORD` finds names")
            }
            Self::PackageGone { .. } | Self::WrongHash { .. } => {
                Some("`kiln lock --update` locks what the mirrors have now")
            }
            Self::MirrorDown { .. } | Self::Apt { .. } => {
                Some("check the network and the host's apt sources, then try again")
            }
            Self::Lock { .. } => {
                Some("restore the file from version control, or remove it and run `kiln lock`")
            }
            _ => None,
        }
    }

    /// Whether the user has to edit something (exit code 2) rather than try again (1).
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoSuite { .. }
                | Self::NoPackage { .. }
                | Self::BadName { .. }
                | Self::Lock { .. }
        )
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The last `count` lines of `text` that are not blank.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
