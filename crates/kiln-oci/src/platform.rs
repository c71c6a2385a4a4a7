//! For which processor the programs in a tree are: asked of the programs themselves, for an
//! identity does not say where it was baked, and a manifest must not depend on where it is written.

use std::collections::BTreeMap;
use std::io::Read as _;

use kiln_core::Tree;
use kiln_core::tree::Kind;
use kiln_store::Store;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// `os/architecture[/variant]`, in the words of Go's `GOOS` and `GOARCH`, as OCI has them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// As in `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// As in `linux`.
    #[serde(default)]
    pub os: String,
    /// As in `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Of this very program.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }
}

impl Platform {
    /// With the words that name the same machines made alike, as containerd has it.
    pub(crate) fn normalised(mut self) -> Self {
        let lower = |text: &str| text.to_ascii_lowercase();
        (self.os, self.architecture) = (lower(&self.os), lower(&self.architecture));
        self.variant = self.variant.map(|variant| lower(&variant)).filter(|it| !it.is_empty());
        let alias = match self.architecture.as_str() {
            "x86_64" | "x86-64" => Some("amd64"),
            "aarch64" => Some("arm64"),
            "i386" => Some("386"),
            _ => None,
        };
        if let Some(alias) = alias {
            alias.clone_into(&mut self.architecture);
        }
        let usual = match self.architecture.as_str() {
            "amd64" => "v1",
            "arm64" => "v8",
            "arm" => "v7",
            _ => "",
        };
        if self.variant.as_deref() == Some(usual) {
            self.variant = None;
        }
        self
    }

    /// How well this machine runs what is for `self`: none at all, or the less the better. What
    /// every machine of its kind runs comes first, so that one release is the same everywhere.
    pub fn rank_here(&self) -> Option<u32> {
        let host = Self::host();
        if (&self.os, &self.architecture) != (&host.os, &host.architecture) {
            return None;
        }
        let Some(variant) = &self.variant else { return Some(0) };
        let level = variant.strip_prefix('v')?.parse().ok()?;
        runs(level).then_some(level)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl std::str::FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(format!("`{text}` is no platform: write `linux/amd64`")),
        };
        if !parts.iter().all(|part| known(part)) {
            return Err(format!("`{text}` is no platform: write `linux/amd64`"));
        }
        let variant = variant.map(str::to_owned);
        let (os, architecture) = (os.to_owned(), architecture.to_owned());
        Ok(Self { architecture, os, variant }.normalised())
    }
}

/// Whether this processor runs what was built for a level of its architecture.
fn runs(level: u32) -> bool {
    #[cfg(target_arch = "x86_64")]
    match level {
        // The levels of the x86-64 psABI, by what is not in the one below.
        2 => std::arch::is_x86_feature_detected!("sse4.2"),
        3 => {
            std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("bmi2")
                && std::arch::is_x86_feature_detected!("fma")
        }
        4 => std::arch::is_x86_feature_detected!("avx512f"),
        level => level == 1,
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        level <= 8
    }
}

/// What a tree without any program is said to be for. It runs nowhere, and anywhere.
const NEUTRAL: &str = "amd64";

/// The architecture of most programs in the tree: executable files that are ELF. An equal number
/// goes to the first by name.
pub(crate) fn architecture(store: &Store, tree: &Tree) -> Result<&'static str> {
    let mut votes: BTreeMap<&'static str, usize> = BTreeMap::new();
    for node in tree.entries.values() {
        let Kind::File { size, digest } = &node.kind else { continue };
        if node.mode & 0o111 == 0 || *size < 20 {
            continue;
        }
        let mut head = [0; 20];
        if store.open_object(digest)?.read_exact(&mut head).is_ok()
            && let Some(machine) = machine(&head)
        {
            *votes.entry(machine).or_default() += 1;
        }
    }
    let most = votes.values().copied().max().unwrap_or(0);
    Ok(votes.into_iter().find(|(_, count)| *count == most).map_or(NEUTRAL, |(name, _)| name))
}

/// The machine of an ELF header's first 20 bytes.
///
/// Source: System V ABI, `e_ident` and `e_machine`.
fn machine(head: &[u8; 20]) -> Option<&'static str> {
    if head[..4] != *b"\x7fELF" {
        return None;
    }
    let little = head[5] == 1;
    let pair = [head[18], head[19]];
    let machine = if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) };
    match (machine, little) {
        (3, true) => Some("386"),
        (21, true) => Some("ppc64le"),
        (21, false) => Some("ppc64"),
        (22, false) => Some("s390x"),
        (40, true) => Some("arm"),
        (62, true) => Some("amd64"),
        (183, true) => Some("arm64"),
        (243, true) => Some("riscv64"),
        (258, true) => Some("loong64"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elf_headers_tell_the_machine() {
        let head = |endian: u8, low: u8, high: u8| {
            let mut head = [0; 20];
            head[..4].copy_from_slice(b"\x7fELF");
            (head[5], head[18], head[19]) = (endian, low, high);
            machine(&head)
        };
        assert_eq!(head(1, 62, 0), Some("amd64"));
        assert_eq!(head(1, 183, 0), Some("arm64"));
        assert_eq!(head(2, 0, 22), Some("s390x"));
        assert_eq!(head(1, 255, 255), None);
        assert_eq!(machine(b"#!/bin/sh\necho 12345"), None);
    }
}
