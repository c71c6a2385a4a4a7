//! An image: a tree and a configuration, each with its digest.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Identity of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageId {
    /// Digest of the canonical listing.
    pub tree: Digest,
    /// Digest of the canonical configuration.
    pub config: Digest,
}

/// The execution configuration of an image: the `config` object of an OCI image, with Docker's
/// health check. Its canonical form is compact JSON with keys in this order and empty members
/// left out; the **config digest** is the sha256 of that.
///
/// Source: OCI image-spec v1.1 `config.md`; Docker image spec v1.2 for `Healthcheck`, `Shell`,
/// `OnBuild`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `port/protocol`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=value`, in order of first definition.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The fixed head of the command line; `None` is unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The default tail of the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Paths declared by VOLUME.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// Absolute working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `15` …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// HEALTHCHECK of the Dockerfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// SHELL, where one was given; else `["/bin/sh", "-c"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// ONBUILD triggers: instructions for builds that are `FROM` this image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// MAINTAINER. An OCI image has it beside the `config` object, as `author`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
}

impl ImageConfig {
    /// The canonical bytes.
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The config digest.
    pub fn digest(&self) -> Digest {
        Digest::of(self.canonical())
    }

    /// Value of `name` in `env`.
    pub fn env_get(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// Sets `name`, keeping its place when it is there already.
    pub fn env_set(&mut self, name: &str, value: &str) {
        let pair = format!("{name}={value}");
        let is_it = |old: &&mut String| old.split('=').next() == Some(name);
        match self.env.iter_mut().find(is_it) {
            Some(old) => *old = pair,
            None => self.env.push(pair),
        }
    }
}

/// A health check, of an image or of a service. Times are in nanoseconds, as in Docker's image
/// configuration; `None` means the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", arg…]` or `["CMD-SHELL", command]`; empty inherits.
    pub test: Vec<String>,
    /// Time between probes once healthy. Default 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<u64>,
    /// How long one probe may take. Default 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Failures within this time after the start do not count. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period: Option<u64>,
    /// Time between probes in the start period. Default 5 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_interval: Option<u64>,
    /// Failures in a row that make it unhealthy. Default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}
