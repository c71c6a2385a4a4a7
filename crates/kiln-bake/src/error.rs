//! What can go wrong while baking. Each message names its operand; [`BakeError::is_usage`] says
//! whether the user has to edit a file (exit 2) or something failed (exit 1).

use std::path::PathBuf;

/// Why a bake did not end in an image.
#[derive(Debug, thiserror::Error)]
pub enum BakeError {
    /// The Dockerfile asks for something that is wrong or not supported.
    #[error("{file}:{line}: {what}{}", hinted(.hint))]
    Dockerfile {
        /// The file, as users know it.
        file: String,
        /// One-based line.
        line: usize,
        /// What was asked and what was found.
        what: String,
        /// What to do.
        hint: Option<String>,
    },
    /// Something else of the user's is wrong: a context, an ignore file, a target, a base.
    #[error("{what}{}", hinted(.hint))]
    Usage {
        /// What was asked and what was found.
        what: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A command of the Dockerfile failed.
    #[error("{0}")]
    Step(Box<FailedStep>),
    /// A file of the host could not be used.
    #[error("{what} {}: {source}", .path.display())]
    Io {
        /// What was tried: `cannot read`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The store failed.
    #[error("store: {0}")]
    Store(String),
    /// Something failed that is nobody's file.
    #[error("{0}")]
    Failed(String),
    /// Interrupted.
    #[error("interrupted; nothing was recorded")]
    Cancelled,
}

/// A step whose command failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "bake step {number}/{total} `{text}` at {file}:{line} {how}{}{}",
    last_lines(.output),
    hinted(.hint)
)]
pub struct FailedStep {
    /// One-based number of the step.
    pub number: usize,
    /// Number of steps.
    pub total: usize,
    /// The instruction.
    pub text: String,
    /// The file, as users know it.
    pub file: String,
    /// One-based line.
    pub line: usize,
    /// `failed with exit status 2`, `was killed by signal 9`, …
    pub how: String,
    /// The last lines that it wrote.
    pub output: Vec<String>,
    /// What to do, where it can be told.
    pub hint: Option<String>,
}

impl BakeError {
    /// Whether the user has to edit something.
    pub const fn is_usage(&self) -> bool {
        matches!(self, Self::Dockerfile { .. } | Self::Usage { .. })
    }

    /// A mistake of the user that is not in the Dockerfile.
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        Self::Usage { what: what.into(), hint: (!hint.is_empty()).then_some(hint) }
    }

    /// A file of the host could not be used; `what` is like `cannot read`.
    pub fn io(what: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { what, path: path.into(), source }
    }

    /// The store failed.
    pub fn store(cause: impl std::fmt::Display) -> Self {
        Self::Store(cause.to_string())
    }
}

fn hinted(hint: &Option<String>) -> String {
    hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default()
}

fn last_lines(output: &[String]) -> String {
    let mut out = String::new();
    if !output.is_empty() {
        out.push_str("; its last lines:");
    }
    for line in output {
        out.push_str("\n  | ");
        out.push_str(line);
    }
    out
}
