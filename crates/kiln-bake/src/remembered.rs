//! Snapshots that this process remembers, so that an unchanged context costs its `stat`s and
//! nothing else: no names are read, nothing is sorted, no digest is computed.
//!
//! What is remembered holds while every directory that was walked and every file still has the
//! stamp that it had. A name that comes, goes or is replaced changes the time of its directory, a
//! content that is written the time of its file. Where a time lies too close to the walk to tell a
//! later change, nothing is remembered; see [`crate::statcache`].

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_core::Digest;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};

use crate::context::Snapshot;
use crate::parallel;
use crate::statcache::Stamp;

/// Stamps that are kept over all contexts; one takes some 100 bytes, and its file's entry 200.
const LIMIT: usize = 200_000;
/// So many directories are looked at on two threads.
const WORTH: usize = 4;

/// By the digest of directory and ignore patterns; the most recently used last.
static REMEMBERED: Mutex<VecDeque<(Digest, Arc<Remembered>)>> = Mutex::new(VecDeque::new());

/// A snapshot with what tells whether it still holds.
#[derive(Debug)]
pub(crate) struct Remembered {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) dirs: Vec<Dir>,
}

/// A directory that was walked.
#[derive(Debug)]
pub(crate) struct Dir {
    /// From the context's root; empty for the root itself.
    pub(crate) path: CString,
    pub(crate) stamp: Stamp,
    /// Its regular files that are part of the context.
    pub(crate) files: Vec<(CString, Stamp)>,
}

/// The snapshot of this key, if it is known and nothing changed since.
pub(crate) fn recall(key: &Digest) -> Option<Arc<Snapshot>> {
    let known = {
        let mut all = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|(known, _)| known == key)?;
        let entry = all.remove(at)?;
        let known = Arc::clone(&entry.1);
        all.push_back(entry);
        known
    };
    if known.holds() {
        return Some(Arc::clone(&known.snapshot));
    }
    REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, _)| other != key);
    None
}

/// Keeps a snapshot at hand.
pub(crate) fn remember(key: Digest, new: Remembered) {
    let mut all = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|(other, _)| *other != key);
    let mut stamps = new.stamps();
    if stamps > LIMIT {
        return;
    }
    all.push_back((key, Arc::new(new)));
    // The oldest go first.
    let kept = all.iter().rev().take_while(|(_, known)| {
        stamps += known.stamps();
        stamps <= 2 * LIMIT
    });
    let gone = all.len() - kept.count();
    all.drain(..gone);
}

impl Remembered {
    fn stamps(&self) -> usize {
        self.dirs.iter().map(|dir| 1 + dir.files.len()).sum()
    }

    fn holds(&self) -> bool {
        let Ok(root) = open(CWD, &self.snapshot.root) else { return false };
        parallel::map_from(WORTH, &self.dirs, |dir| dir.holds(&root)).is_ok()
    }
}

/// Something is not what it was.
struct Changed;

impl From<rustix::io::Errno> for Changed {
    fn from(_: rustix::io::Errno) -> Self {
        Self
    }
}

impl Dir {
    fn holds(&self, root: &OwnedFd) -> Result<(), Changed> {
        let own;
        let dir = if self.path.is_empty() {
            root
        } else {
            own = open(root, self.path.as_c_str())?;
            &own
        };
        same(dir, c"", AtFlags::EMPTY_PATH, &self.stamp)?;
        let mut files = self.files.iter();
        files.try_for_each(|(name, stamp)| same(dir, name, AtFlags::SYMLINK_NOFOLLOW, stamp))
    }
}

fn open(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

fn same(
    dir: &OwnedFd,
    name: &std::ffi::CStr,
    flags: AtFlags,
    stamp: &Stamp,
) -> Result<(), Changed> {
    let wanted = StatxFlags::TYPE
        | StatxFlags::MODE
        | StatxFlags::INO
        | StatxFlags::SIZE
        | StatxFlags::MTIME
        | StatxFlags::CTIME;
    let found = rustix::fs::statx(dir, name, flags, wanted)?;
    if Stamp::of_statx(&found) == *stamp { Ok(()) } else { Err(Changed) }
}
