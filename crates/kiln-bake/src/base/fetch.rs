//! Package files: from the store, else from the mirrors by apt's own methods, checked by digest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kiln_core::Digest;
use kiln_store::Store;

use super::apt::AptRoot;
use super::error::BaseError;
use super::lock::{LockedBase, LockedPackage};
use super::progress::{Phase, Watch};
use super::sources::AskHost;

/// Files that one call of apt's downloader gets: enough to keep its connections busy, few enough
/// that progress is seen and the user can stop.
const BATCH: usize = 48;

/// Kind of the references that keep package files in the store; each is named by the hex digits of
/// [`LockedBase::digest`].
pub const REF_KIND: &str = "locks";

/// Kind of the references that keep the images of locked bases; each is named by [`super::key`].
pub const IMAGE_REF_KIND: &str = "bases";

/// Puts every package file of `base` into the store that is not there yet, and keeps it there. No
/// mirror is asked when none is missing. `root` is apt's root, where the caller has entered it.
pub(crate) fn fetch(
    store: &Store,
    name: &str,
    base: &LockedBase,
    root: Option<&AptRoot>,
    host: AskHost<'_>,
    watch: Watch<'_>,
) -> Result<(), BaseError> {
    let mut missing: BTreeMap<Digest, &LockedPackage> = BTreeMap::new();
    for package in base.unpack.iter().filter(|package| !there(store, &package.sha256)) {
        missing.insert(package.sha256, package);
    }
    if !missing.is_empty() {
        let entered;
        let root = match root {
            Some(root) => root,
            None => {
                let cache = cache_dir(store);
                entered = AptRoot::enter(&cache, &host()?, name, &base.suite)?;
                &entered
            }
        };
        download(store, name, &missing.into_values().collect::<Vec<_>>(), root, watch)?;
        store.flush()?;
    }
    let digests: BTreeSet<Digest> = base.unpack.iter().map(|package| package.sha256).collect();
    Ok(store.set_ref(REF_KIND, &base.digest().hex(), &digests)?)
}

fn there(store: &Store, digest: &Digest) -> bool {
    store.seems_whole(digest).unwrap_or(false)
}

/// Where the private roots of apt are.
pub(crate) fn cache_dir(store: &Store) -> PathBuf {
    store.root().join("cache/apt")
}

fn download(
    store: &Store,
    name: &str,
    missing: &[&LockedPackage],
    root: &AptRoot,
    watch: Watch<'_>,
) -> Result<(), BaseError> {
    let total: u64 = missing.iter().map(|package| package.size).sum();
    let mut done = 0;
    for batch in missing.chunks(BATCH) {
        let first = batch.first().map(|package| package.name.as_str()).unwrap_or_default();
        watch.step(name, Phase::Download, (done, total), first)?;
        download_batch(store, batch, root, watch)?;
        done += batch.iter().map(|package| package.size).sum::<u64>();
    }
    watch.step(name, Phase::Download, (total, total), "")
}

/// Asks the likeliest archive for all, then the next for what it did not have.
fn download_batch(
    store: &Store,
    batch: &[&LockedPackage],
    root: &AptRoot,
    watch: Watch<'_>,
) -> Result<(), BaseError> {
    let scratch = store.scratch_dir()?;
    let mut left: Vec<Wanted<'_>> = batch
        .iter()
        .map(|package| Wanted {
            package,
            file: scratch.path().join(format!("{}.deb", package.sha256.hex())),
            addresses: root.addresses(&package.filename),
            failures: Vec::new(),
        })
        .collect();
    for turn in 0.. {
        let asked: Vec<(String, PathBuf, Digest)> = left
            .iter()
            .filter_map(|wanted| {
                let address = wanted.addresses.get(turn)?.clone();
                Some((address, wanted.file.clone(), wanted.package.sha256))
            })
            .collect();
        if asked.is_empty() {
            break;
        }
        let reasons = root.download(&asked, watch)?;
        let mut still = Vec::new();
        for mut wanted in left {
            let address = wanted.addresses.get(turn);
            match address.and_then(|address| reasons.get(address)) {
                None if wanted.file.is_file() => wanted.put(store)?,
                reason => {
                    let reason = reason.cloned().unwrap_or_else(|| "no answer".into());
                    wanted.failures.push(reason);
                    still.push(wanted);
                }
            }
        }
        left = still;
    }
    left.first().map_or(Ok(()), |wanted| Err(wanted.error()))
}

struct Wanted<'a> {
    package: &'a LockedPackage,
    file: PathBuf,
    addresses: Vec<String>,
    failures: Vec<String>,
}

impl Wanted<'_> {
    fn put(&self, store: &Store) -> Result<(), BaseError> {
        let (found, _) = store.put_file(&self.file)?;
        if found == self.package.sha256 {
            return Ok(());
        }
        Err(BaseError::WrongHash {
            package: self.package.label(),
            expected: self.package.sha256,
            found: found.to_string(),
        })
    }

    fn error(&self) -> BaseError {
        let package = self.package.label();
        let mut refused = self.file.clone().into_os_string();
        refused.push(".FAILED");
        if self.failures.iter().any(|reason| reason.contains("Hash Sum mismatch")) {
            let digest = std::fs::read(PathBuf::from(refused)).ok().map(Digest::of);
            let found = digest.map_or("something else".into(), |digest| digest.to_string());
            return BaseError::WrongHash { package, expected: self.package.sha256, found };
        }
        let gone = |reason: &String| {
            reason.starts_with("404") || reason.starts_with("410") || reason.contains("not found")
        };
        if !self.failures.is_empty() && self.failures.iter().all(gone) {
            return BaseError::PackageGone { package, asked: self.addresses.clone() };
        }
        let mut found: Vec<String> = self
            .addresses
            .iter()
            .zip(&self.failures)
            .filter(|(_, reason)| !gone(reason))
            .map(|(address, reason)| format!("{address}: {reason}"))
            .collect();
        if found.is_empty() {
            found.push("no mirror is known for it".into());
        }
        BaseError::MirrorDown { package, found: found.join("; ") }
    }
}
