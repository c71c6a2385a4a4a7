//! Bytes → values, of every format that there was.
//!
//! A member that is not known is refused: a newer Kiln wrote it, and meant something by it. One
//! that has its default is not written, so a newer Kiln's release is read by an older one as long
//! as it uses nothing new.

use serde::Deserialize;

use super::{FORMAT, Release};
use crate::digest::Digest;

/// Why bytes are no release that this Kiln can read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A newer Kiln's.
    #[error("it has format {0}; use a newer kiln")]
    Newer(u32),
    /// It does not parse.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// What every format has.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// What a release of format 1 or 2 may have beside the members of [`Release`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    #[serde(rename = "format")]
    _format: u32,
    project: String,
    /// Format 1 only: the release that served when it was cut. The ledger has it now.
    #[serde(default, rename = "parent")]
    _parent: Option<Digest>,
    #[serde(default)]
    source: super::Source,
    services: std::collections::BTreeMap<String, super::ReleasedService>,
    #[serde(default)]
    proposes: std::collections::BTreeMap<String, crate::stage::Policy>,
    #[serde(default)]
    stages: std::collections::BTreeMap<String, std::collections::BTreeMap<String, super::Settings>>,
}

/// Reads a release. Format 1 had all defaults folded in, so there everything counts as stated, and
/// it runs as it did.
///
/// # Errors
/// A newer format, an unknown member, or no release at all.
pub fn read(bytes: &[u8]) -> Result<Release, ReadError> {
    let Head { format } = serde_json::from_slice(bytes)?;
    if format > FORMAT {
        return Err(ReadError::Newer(format));
    }
    let Whole { project, source, services, proposes, stages, .. } = serde_json::from_slice(bytes)?;
    Ok(Release { project, source, services, proposes, stages })
}
