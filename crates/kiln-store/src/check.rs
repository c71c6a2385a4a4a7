//! Re-hashing what is stored.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use kiln_core::Digest;
use serde::Serialize;

use crate::error::{Context as _, Error, Result};
use crate::objects::hash_copy;
use crate::store::{Store, ignore_missing};

/// What [`Store::check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Objects looked at.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects whose content is not what their name says, in order.
    pub corrupt: Vec<Corrupt>,
    /// Files among the objects that are none.
    pub foreign: Vec<PathBuf>,
}

/// A damaged object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Corrupt {
    /// Its name.
    pub digest: Digest,
    /// The digest of its content; `None` if it cannot be read.
    pub found: Option<Digest>,
}

/// An object's file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) digest: Option<Digest>,
    pub(crate) path: PathBuf,
    pub(crate) meta: fs::Metadata,
}

impl Store {
    /// Reads and hashes every object, on all processors. Nothing is changed.
    ///
    /// # Errors
    /// I/O errors.
    pub fn check(&self) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let mut known = Vec::new();
        for stored in stored(self.root())? {
            match stored.digest {
                Some(digest) => {
                    report.bytes += stored.meta.len();
                    known.push((digest, stored.path));
                }
                None => report.foreign.push(stored.path),
            }
        }
        report.objects = known.len() as u64;
        report.corrupt = hash_all(&known, Absent::Collected);
        Ok(report)
    }

    /// Reads and hashes these objects, on all processors; gives those that are not what they should
    /// be. Of one that is not there, or cannot be read, nothing is found.
    pub fn check_these(&self, objects: &BTreeSet<Digest>) -> Vec<Corrupt> {
        let known: Vec<(Digest, PathBuf)> =
            objects.iter().map(|digest| (*digest, self.object_path(digest))).collect();
        hash_all(&known, Absent::Lacking)
    }
}

/// What it means that an object is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// It was there a moment ago: it was collected since.
    Collected,
    /// It should be there.
    Lacking,
}

/// Those whose content is another one than their names say, or cannot be read, in order.
fn hash_all(known: &[(Digest, PathBuf)], absent: Absent) -> Vec<Corrupt> {
    let next = AtomicUsize::new(0);
    let bad = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((digest, path)) = known.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Only what was asked says that it is gone; asked before, it may go since.
                    let found = match hash(path) {
                        Err(error) if is_gone(&error) && absent == Absent::Collected => continue,
                        found => found.ok(),
                    };
                    if found != Some(*digest) {
                        let mut bad = bad.lock().unwrap_or_else(PoisonError::into_inner);
                        bad.push(Corrupt { digest: *digest, found });
                    }
                }
            });
        }
    });
    let mut bad = bad.into_inner().unwrap_or_else(PoisonError::into_inner);
    bad.sort();
    bad
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// `None` for what is not there; what cannot be looked at is an error.
fn unless_gone<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        looked => looked.map(Some),
    }
}

pub(crate) fn hash(path: &Path) -> Result<Digest> {
    let mut file = File::open(path).doing("opening", path)?;
    Ok(hash_copy(&mut file, None).doing("reading", path)?.0)
}

/// All files among the objects; those that vanish meanwhile are left out.
pub(crate) fn stored(root: &Path) -> Result<Vec<Stored>> {
    let top = root.join("objects");
    let mut found = Vec::new();
    for shard in fs::read_dir(&top).doing("reading", &top)? {
        let shard = shard.doing("reading", &top)?;
        let dir = shard.path();
        let Some(meta) = unless_gone(fs::symlink_metadata(&dir)).doing("looking at", &dir)? else {
            continue;
        };
        if !meta.is_dir() {
            found.push(Stored { digest: None, path: dir, meta });
            continue;
        }
        for entry in fs::read_dir(&dir).doing("reading", &dir)? {
            let entry = entry.doing("reading", &dir)?;
            let meta = unless_gone(entry.metadata()).doing("looking at", entry.path())?;
            let Some(meta) = meta else { continue };
            let (head, tail) = (shard.file_name(), entry.file_name());
            let hex = format!("{}{}", head.to_string_lossy(), tail.to_string_lossy());
            let digest = hex.parse().ok().filter(|_| meta.is_file());
            found.push(Stored { digest, path: entry.path(), meta });
        }
    }
    Ok(found)
}

/// After a power cut: removes objects that changed since and are not what their name says, and
/// everything derived since. Two seconds of slack are for file systems with coarse times.
pub(crate) fn drop_torn(root: &Path, since: SystemTime) -> Result<()> {
    let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let recent = |meta: &fs::Metadata| meta.ctime() + 2 >= since;
    for stored in stored(root)?.iter().filter(|stored| recent(&stored.meta)) {
        let Some(digest) = stored.digest else { continue };
        let torn = match hash(&stored.path) {
            Err(error) if is_gone(&error) => false,
            found => found? != digest,
        };
        if torn {
            ignore_missing(fs::remove_file(&stored.path)).doing("removing", &stored.path)?;
        }
    }
    for dir in ["cache/steps", "images", "links/trees"] {
        let dir = root.join(dir);
        for entry in fs::read_dir(&dir).doing("reading", &dir)? {
            let path = entry.doing("reading", &dir)?.path();
            let meta = unless_gone(fs::symlink_metadata(&path)).doing("looking at", &path)?;
            if meta.is_some_and(|meta| recent(&meta)) {
                crate::mount::remove_tree(&path).doing("removing", &path)?;
            }
        }
    }
    // Copies for links are not checked one by one: they are quick to make again.
    crate::mount::remove_tree(root.join("links/objects")).doing("removing", root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of("x");
        let gone = (digest, dir.path().join("gone"));
        assert_eq!(hash_all(std::slice::from_ref(&gone), Absent::Collected), []);
        let lacking = Corrupt { digest, found: None };
        assert_eq!(hash_all(&[gone], Absent::Lacking), std::slice::from_ref(&lacking));
        // It leads to itself: it is there, and cannot be read.
        let looped = dir.path().join("loop");
        std::os::unix::fs::symlink("loop", &looped).unwrap();
        assert_eq!(hash_all(&[(digest, looped)], Absent::Collected), [lacking]);
    }
}
