//! Trees, configurations and releases as objects. Their canonical bytes are what is stored, so an
//! object's name is the tree, config or release digest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use kiln_core::digest::Hasher;
use kiln_core::tree::{Kind, LISTING_HEAD, begins_listing};
use kiln_core::{Digest, ImageConfig, Release, Tree};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::durable::{Published, write_atomic};
use crate::error::{Context as _, Error, Result};
use crate::ledger::{Durability, Record};
use crate::store::Store;

/// How many parsed trees are kept. A tree of a Debian base takes some 5 MB.
const CACHED: usize = 12;

/// How many entries those may have together, if there are several.
const CACHED_ENTRIES: usize = 300_000;

/// Trees of fewer entries are written out as one text.
const FEW: usize = 10_000;

/// A listing as it is read, line by line.
struct Text<I> {
    lines: I,
    line: Vec<u8>,
    at: usize,
}

impl<I: Iterator<Item = String>> Read for Text<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.line.len() {
            let Some(line) = self.lines.next() else { return Ok(0) };
            (self.line, self.at) = (line.into_bytes(), 0);
        }
        let count = buffer.len().min(self.line.len() - self.at);
        buffer[..count].copy_from_slice(&self.line[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Parsed trees, the most recently used last.
#[derive(Debug, Default)]
pub(crate) struct TreeCache(VecDeque<(Digest, Arc<Tree>)>);

impl TreeCache {
    fn get(&mut self, digest: &Digest) -> Option<Arc<Tree>> {
        let at = self.0.iter().position(|(key, _)| key == digest)?;
        let entry = self.0.remove(at)?;
        let tree = Arc::clone(&entry.1);
        self.0.push_back(entry);
        Some(tree)
    }

    fn add(&mut self, digest: Digest, tree: Arc<Tree>) {
        if self.0.iter().any(|(key, _)| *key == digest) {
            return;
        }
        self.0.push_back((digest, tree));
        let entries = |trees: &VecDeque<(Digest, Arc<Tree>)>| -> usize {
            trees.iter().map(|(_, tree)| tree.entries.len()).sum()
        };
        while self.0.len() > CACHED || self.0.len() > 1 && entries(&self.0) > CACHED_ENTRIES {
            self.0.pop_front();
        }
    }
}

/// A tree in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StoredTree {
    /// The tree digest.
    pub tree: Digest,
    /// Regular files; further names of one do not count.
    pub files: u64,
    /// Bytes of their contents, each content once.
    pub bytes: u64,
}

impl Store {
    /// All trees in the store, those of bake steps among them, by digest. Looks at the head of
    /// every object: for people, not for the hot path.
    ///
    /// # Errors
    /// I/O errors; damaged listings are left out.
    pub fn images(&self) -> Result<Vec<StoredTree>> {
        let mut images = Vec::new();
        for stored in crate::check::stored(self.root())? {
            let Some(digest) = stored.digest.filter(|_| is_listing(&stored.path)) else { continue };
            let Ok(bytes) = self.get(&digest) else { continue };
            let Some(tree) = String::from_utf8(bytes).ok().and_then(|text| Tree::parse(&text).ok())
            else {
                continue;
            };
            let sizes = tree.entries.values().filter_map(|node| match &node.kind {
                Kind::File { size, digest } => Some((*digest, *size)),
                _ => None,
            });
            let files = sizes.clone().count() as u64;
            let contents: BTreeMap<Digest, u64> = sizes.collect();
            images.push(StoredTree { tree: digest, files, bytes: contents.values().sum() });
        }
        images.sort_by_key(|image| image.tree);
        Ok(images)
    }

    /// Puts a tree's listing; returns the tree digest. The contents it names are put apart.
    ///
    /// # Errors
    /// I/O errors.
    pub fn put_tree(&self, tree: &Tree) -> Result<Digest> {
        if tree.entries.len() < FEW {
            return self.put_surely(tree.listing().as_bytes());
        }
        let (mut hasher, mut size) = (Hasher::new(), 0);
        for line in tree.listing_lines() {
            hasher.update(line.as_bytes());
            size += line.len() as u64;
        }
        let lines = tree.listing_lines();
        self.put_known_surely(&hasher.finish(), size, &mut Text { lines, line: Vec::new(), at: 0 })
    }

    /// [`Store::put_tree`], and keeps the tree at hand so that [`Store::get_tree`] and
    /// [`Store::lower`] need not parse it again.
    ///
    /// # Errors
    /// I/O errors.
    pub fn keep_tree(&self, tree: Arc<Tree>) -> Result<Digest> {
        let digest = self.put_tree(&tree)?;
        self.inner.trees.lock().unwrap_or_else(PoisonError::into_inner).add(digest, tree);
        Ok(digest)
    }

    /// The tree of this digest.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`], [`Error::Kind`] if it is no listing, I/O errors.
    pub fn get_tree(&self, digest: &Digest) -> Result<Arc<Tree>> {
        let cached = self.inner.trees.lock().unwrap_or_else(PoisonError::into_inner).get(digest);
        // Another process may have collected it.
        if let Some(tree) = cached.filter(|_| self.contains(digest)) {
            return Ok(tree);
        }
        let kind = |why: String| Error::Kind { digest: *digest, expected: "tree listing", why };
        let bytes = self.get(digest)?;
        let text = std::str::from_utf8(&bytes).map_err(|error| kind(error.to_string()))?;
        let tree = Arc::new(Tree::parse(text).map_err(|error| kind(error.to_string()))?);
        let mut cache = self.inner.trees.lock().unwrap_or_else(PoisonError::into_inner);
        cache.add(*digest, Arc::clone(&tree));
        Ok(tree)
    }

    /// Puts a configuration; returns the config digest.
    ///
    /// # Errors
    /// I/O errors.
    pub fn put_config(&self, config: &ImageConfig) -> Result<Digest> {
        self.put_surely(&config.canonical())
    }

    /// The configuration of this digest.
    ///
    /// # Errors
    /// As [`Store::get_tree`].
    pub fn get_config(&self, digest: &Digest) -> Result<ImageConfig> {
        self.get_json(digest, "image configuration")
    }

    /// Puts a release, and a second copy of it: a release that cannot be read any more would take
    /// everything along that it names. Returns the release digest.
    ///
    /// # Errors
    /// I/O errors.
    pub fn put_release(&self, release: &Release) -> Result<Digest> {
        let bytes = release.canonical();
        let digest = self.put_surely(&bytes)?;
        if !fs::read(self.spare(&digest)).is_ok_and(|there| there == bytes) {
            self.write_spare(&digest, &bytes)?;
        }
        Ok(digest)
    }

    /// The release of this digest; if it is damaged or gone, its second copy, which takes its place.
    ///
    /// # Errors
    /// As [`Store::get_tree`]; also if it is of a newer format.
    pub fn get_release(&self, digest: &Digest) -> Result<Release> {
        let bytes = match self.get(digest) {
            Err(Error::Missing(_) | Error::Corrupt { .. } | Error::Io { .. })
                if self.heal_release(digest)? =>
            {
                self.get(digest)?
            }
            read => read?,
        };
        kiln_core::release::read(&bytes).map_err(|error| Error::Kind {
            digest: *digest,
            expected: "readable release",
            why: error.to_string(),
        })
    }

    pub(crate) fn spare(&self, release: &Digest) -> PathBuf {
        self.root().join("spare").join(release.hex())
    }

    /// Makes the second copies that the releases of stages lack, and says how many: those of an older
    /// Kiln have none. Nothing is made of a release that is not whole.
    ///
    /// # Errors
    /// I/O errors; what is wrong with the ledger.
    pub fn second_copies(&self) -> Result<usize> {
        let mut made = 0;
        for release in self.releases_of_stages()? {
            if !self.lacks_second_copy(&release) {
                continue;
            }
            let Ok(bytes) = self.get(&release) else { continue };
            self.write_spare(&release, &bytes)?;
            made += 1;
        }
        Ok(made)
    }

    /// All releases that a stage points to, or could go back to.
    pub(crate) fn releases_of_stages(&self) -> Result<BTreeSet<Digest>> {
        let pointers = self.pointers()?;
        let kept = pointers.values().flat_map(|pointer| {
            pointer.active.iter().chain(&pointer.standby).chain(&pointer.previous)
        });
        Ok(kept.copied().collect())
    }

    pub(crate) fn lacks_second_copy(&self, release: &Digest) -> bool {
        fs::symlink_metadata(self.spare(release))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    pub(crate) fn write_spare(&self, release: &Digest, bytes: &[u8]) -> Result<()> {
        let spare = self.spare(release);
        let _unsynced = self.inner.unsynced.mark(Published::File(&spare))?;
        write_atomic(&spare, bytes).doing("writing", &spare)
    }

    /// Puts a release again from its second copy; false if that is of no use either.
    pub(crate) fn heal_release(&self, digest: &Digest) -> Result<bool> {
        let Ok(bytes) = fs::read(self.spare(digest)) else { return Ok(false) };
        if Digest::of(&bytes) != *digest {
            return Ok(false);
        }
        self.suspect(digest);
        self.put_surely(&bytes)?;
        self.flush()?;
        self.healed(&format!("release {digest}"), "its second copy");
        Ok(true)
    }

    /// Says in the ledger that something was damaged and is whole again.
    pub(crate) fn healed(&self, what: &str, from: &str) {
        let data = serde_json::json!({ "what": what, "from": from });
        let (time, kind) = (crate::ledger::now(), "damage.healed".to_owned());
        let record = Record { time, kind, project: None, stage: None, data };
        // What cannot be said in the ledger is whole all the same.
        let _ = self.ledger().append(&[record], Durability::Later);
    }

    fn get_json<T: DeserializeOwned>(&self, digest: &Digest, expected: &'static str) -> Result<T> {
        let bytes = self.get(digest)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Kind {
            digest: *digest,
            expected,
            why: error.to_string(),
        })
    }
}

/// Whether the file begins as a tree listing does.
pub(crate) fn is_listing(path: &Path) -> bool {
    let mut head = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(LISTING_HEAD as u64).read_to_end(&mut head));
    read.is_ok() && begins_listing(&head)
}
