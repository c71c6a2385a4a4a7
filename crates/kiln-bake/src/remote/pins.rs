//! What `kiln.lock` says of URLs and repositories.

use std::collections::BTreeMap;

use kiln_core::Digest;
use serde::{Deserialize, Serialize};

/// A file behind a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedUrl {
    /// The address, a password in it masked.
    pub url: String,
    /// Bytes.
    pub size: u64,
    /// sha256 of the content.
    #[serde(with = "crate::base::lock::hex")]
    pub sha256: Digest,
}

/// A commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedGit {
    /// The address, a password in it masked.
    pub remote: String,
    /// As the Dockerfile names it; empty for the default branch.
    #[serde(rename = "ref", default)]
    pub name: String,
    /// The full reference that it was: `refs/heads/main`.
    #[serde(default)]
    pub full: String,
    /// Hash of the annotated tag, if it is one.
    #[serde(default)]
    pub tag: String,
    /// Hash of the commit.
    pub commit: String,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// By address.
    pub(crate) urls: BTreeMap<String, LockedUrl>,
    /// By address and name.
    pub(crate) git: BTreeMap<(String, String), LockedGit>,
}

impl Pins {
    /// Those of a lock.
    pub fn new(urls: &[LockedUrl], git: &[LockedGit]) -> Self {
        Self {
            urls: urls.iter().map(|pin| (pin.url.clone(), pin.clone())).collect(),
            git: git
                .iter()
                .map(|pin| ((pin.remote.clone(), pin.name.clone()), pin.clone()))
                .collect(),
        }
    }

    /// As a lock has them: in order.
    pub fn parts(&self) -> (Vec<LockedUrl>, Vec<LockedGit>) {
        (self.urls.values().cloned().collect(), self.git.values().cloned().collect())
    }

    /// Equal for equal pins.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(serde_json::to_vec(&self.parts()).unwrap_or_default())
    }
}

impl LockedGit {
    /// What must hold: the parts become arguments of Git.
    pub(crate) fn check(&self) -> Result<(), String> {
        let hash = |text: &str| super::reference::is_hash(text);
        if !hash(&self.commit) || !(self.tag.is_empty() || hash(&self.tag)) {
            return Err(format!("`{}`: its commit or tag is no whole hash", self.remote));
        }
        let full = &self.full;
        let odd = full.bytes().any(|byte| byte <= b' ' || b"~^:?*[\\\x7f".contains(&byte));
        if !full.is_empty() && (!full.starts_with("refs/") || full.contains("..") || odd) {
            return Err(format!("`{}`: `{full}` is no full name of a reference", self.remote));
        }
        Ok(())
    }
}
