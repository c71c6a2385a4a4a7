//! The packages that are built in, as cargo resolves them from `Cargo.lock`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use semver::Version;
use serde::Deserialize;

use crate::shell;

/// One package of the resolved graph.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: Version,
    /// SPDX expression.
    pub(super) license: Option<String>,
    /// `None` for packages of this repository.
    pub(super) source: Option<String>,
}

/// All of them.
#[derive(Debug, Deserialize)]
pub(super) struct Locked {
    pub(super) packages: Vec<Package>,
}

impl Locked {
    /// Asks cargo, without changing the lock.
    pub(super) fn read() -> Result<Self> {
        let mut command = shell::cargo();
        // Packages for other systems are locked too, but never built.
        let host = shell::read(std::process::Command::new("rustc").arg("-vV"))?;
        let host = host.lines().find_map(|line| line.strip_prefix("host: "));
        command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform"]);
        command.arg(host.context("rustc -vV names no host")?);
        Ok(serde_json::from_str(&shell::read(&mut command)?)?)
    }

    /// How many are this repository's own.
    pub(super) fn own(&self) -> usize {
        self.packages.iter().filter(|package| package.source.is_none()).count()
    }

    /// Packages that were yanked, and packages of which nothing is known. Cargo has just read
    /// their entries of the registry's index, and keeps them in its home.
    pub(super) fn yanked(&self) -> (Vec<String>, Vec<String>) {
        let (mut yanked, mut unknown) = (Vec::new(), Vec::new());
        let indexes = indexes();
        for package in self.packages.iter().filter(|package| package.source.is_some()) {
            let label = format!("{} {}", package.name, package.version);
            match indexes.iter().find_map(|index| is_yanked(index, package)) {
                Some(true) => yanked.push(label),
                Some(false) => {}
                None => unknown.push(label),
            }
        }
        (yanked, unknown)
    }
}

/// The caches of all registry indexes in cargo's home.
fn indexes() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let Some(home) = home else { return Vec::new() };
    let entries = fs::read_dir(home.join("registry/index")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().join(".cache")).collect()
}

fn is_yanked(index: &Path, package: &Package) -> Option<bool> {
    let bytes = fs::read(index.join(index_path(&package.name))).ok()?;
    yanked_in(&bytes, &package.version.to_string())
}

/// Where the index has a package: `1/a`, `2/ab`, `3/a/abc`, `ab/cd/abcd…`, in lower case.
fn index_path(name: &str) -> PathBuf {
    let name = name.to_lowercase();
    let dir = match name.len() {
        1 => "1".to_owned(),
        2 => "2".to_owned(),
        3 => format!("3/{}", &name[..1]),
        _ => format!("{}/{}", &name[..2], &name[2..4]),
    };
    Path::new(&dir).join(name)
}

/// A cache file is a header and, separated by NUL, versions each followed by its JSON document.
fn yanked_in(cache: &[u8], version: &str) -> Option<bool> {
    #[derive(Deserialize)]
    struct Entry {
        vers: String,
        yanked: bool,
    }
    let documents = cache.split(|byte| *byte == 0).filter(|part| part.starts_with(b"{"));
    let entries = documents.filter_map(|json| serde_json::from_slice::<Entry>(json).ok());
    entries.into_iter().find(|entry| entry.vers == version).map(|entry| entry.yanked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_has_packages_by_the_length_of_their_names() {
        for (name, path) in
            [("a", "1/a"), ("ab", "2/ab"), ("Abc", "3/a/abc"), ("serde_json", "se/rd/serde_json")]
        {
            assert_eq!(index_path(name), Path::new(path));
        }
    }

    #[test]
    fn a_yanked_version_is_told_from_others() {
        let cache = b"\x03header\x001.0.0\0{\"vers\":\"1.0.0\",\"yanked\":true}\x001.0.1\0{\"vers\":\"1.0.1\",\"yanked\":false}\0";
        assert_eq!(yanked_in(cache, "1.0.0"), Some(true));
        assert_eq!(yanked_in(cache, "1.0.1"), Some(false));
        assert_eq!(yanked_in(cache, "1.0.2"), None);
    }
}
