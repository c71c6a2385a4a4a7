//! What is wrong with the log or with the copies beside it. While there is any of this, nothing is
//! delivered and nothing collected: the log may say something that was never decided.

use std::fmt;

use kiln_core::Digest;
use serde::{Deserialize, Serialize};

/// One thing that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Fault {
    /// A line is no entry, or does not follow from the one before.
    Line {
        /// One-based line.
        line: u64,
        /// What the next good line says that the hash of the line before it was.
        said: Digest,
        /// What is wrong, for people.
        why: String,
    },
    /// The log lacks, or has otherwise, a line that it was seen to have.
    Lost {
        /// Its sequence number.
        seq: u64,
        /// What is wrong, for people.
        why: String,
    },
    /// The copy of a stage's pointer is not the ledger's, and not simply older.
    Copy {
        /// The project.
        project: String,
        /// The stage.
        stage: String,
        /// Generation that the ledger has; 0 if it never heard of the stage.
        ledger: u64,
        /// Generation that the copy has.
        copy: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { line, why, .. } => write!(f, "ledger/log.jsonl, line {line}: {why}"),
            Self::Lost { why, .. } => write!(f, "ledger/log.jsonl: {why}"),
            Self::Copy { project, stage, ledger, copy } if ledger == copy => write!(
                f,
                "stages/{project}/{stage}.json and the ledger tell different things of generation \
                 {copy}: one of them was changed"
            ),
            Self::Copy { project, stage, ledger, copy } => write!(
                f,
                "stages/{project}/{stage}.json is at generation {copy}, the ledger at {ledger}: \
                 the ledger has lost what was recorded"
            ),
        }
    }
}

/// Breaks that a person has taken note of: `data` of an entry of kind `ledger.mended`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mended {
    /// Which lines, as [`Fault::Line`] has them.
    pub(crate) breaks: Vec<Break>,
}

/// See [`Fault::Line`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Break {
    pub(crate) line: u64,
    pub(crate) said: Digest,
}

/// Kind of the entry that says so.
pub(crate) const MENDED: &str = "ledger.mended";
