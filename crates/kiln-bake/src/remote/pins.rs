//! What `kiln.lock` says of URLs and repositories.

use std::collections::BTreeMap;

use kiln_core::Digest;
use kiln_remote::LockedGit;
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
