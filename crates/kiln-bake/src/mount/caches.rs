//! `--mount=type=cache`: directories that persist between builds.
//!
//! ```text
//! cache/mounts/<sha256 over project, id, owner, mode and seed>/
//!   about       project, id: text, for whoever looks
//!   used        its mtime is when the cache was used last
//!   0/          the cache; 1/, 2/ … where `private` steps ran side by side
//!     lock      held shared or alone while a step uses it
//!     data/     what the step sees
//!     work/     with a seed: overlayfs's own; `data/` is then the layer over the seed
//! ```
//! Nothing refers to a cache: [`collect`] removes what was not used for long, and a directory that
//! a step holds is left alone.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_core::Digest;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::{Caches, Content, Hand, Ready};
use crate::dockerfile::mount::Sharing;
use crate::error::BakeError;
use crate::key::Key;
use crate::runner::{ImageMount, StepMount};

/// How long somebody who waits for a cache may go on after it was given up.
const LOOK: Duration = Duration::from_millis(20);

/// Where the caches of a project are, below the root of a store.
pub fn room(root: &Path) -> PathBuf {
    root.join("cache/mounts")
}

/// A cache as one step wants it.
#[derive(Debug, Clone)]
pub struct Cache {
    /// The project that it belongs to.
    pub project: String,
    /// Its id.
    pub id: String,
    /// Absolute.
    pub target: String,
    /// What of the cache is mounted, relative; empty is all.
    pub source: String,
    /// What is in it when it is new.
    pub seed: Option<Content>,
    /// Who may use it beside this step.
    pub sharing: Sharing,
    /// Mounted read-only.
    pub read_only: bool,
    /// Owner of a new one.
    pub uid: u32,
    /// Group of a new one.
    pub gid: u32,
    /// Permission bits of a new one.
    pub mode: u32,
}

/// A cache that a step uses; others may again when this is dropped.
#[derive(Debug)]
pub(crate) struct InUse {
    dir: PathBuf,
    lock: Option<Arc<File>>,
    /// The mounted part, so that nobody can put another one in its place.
    part: Option<OwnedFd>,
}

impl Cache {
    /// What it is and where it goes; what is in it is no input.
    pub(crate) fn key(&self, key: Key) -> Key {
        let key = key
            .text("cache")
            .text(&self.id)
            .text(&self.target)
            .text(&self.source)
            .number(u64::from(self.read_only))
            .number(u64::from(self.uid) << 32 | u64::from(self.gid))
            .number(u64::from(self.mode));
        match &self.seed {
            None => key.number(0),
            Some(seed) => seed.key(key.number(1)),
        }
    }

    /// Name of its directory.
    pub(crate) fn name(&self) -> Digest {
        let key = Key::new("cache")
            .text(&self.project)
            .text(&self.id)
            .number(u64::from(self.uid) << 32 | u64::from(self.gid))
            .number(u64::from(self.mode));
        match &self.seed {
            None => key.number(0),
            Some(seed) => seed.key(key.number(1)),
        }
        .finish()
    }

    /// Takes it into use, waiting where others must not use it meanwhile.
    pub(crate) fn take(&self, hand: &Hand<'_>) -> Result<InUse, BakeError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| BakeError::io("cannot use the cache", path, error)
        };
        let top = match hand.caches {
            Caches::Empty => {
                let dir = hand.scratch.join(format!("cache-{}", self.name().hex()));
                self.make(&dir).map_err(failed(&dir))?;
                return Ok(InUse { dir, lock: None, part: None });
            }
            Caches::Kept(room) => room.join(self.name().hex()),
        };
        make_private(&top).map_err(failed(&top))?;
        let about = format!("{}\n{}\n", self.project, self.id);
        fs::write(top.join("about"), about).map_err(failed(&top))?;
        File::create(top.join("used"))
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(failed(&top))?;
        // Two mounts of one layer disturb each other.
        let sharing = match (self.sharing, &self.seed) {
            (Sharing::Shared, Some(_)) => Sharing::Locked,
            (sharing, _) => sharing,
        };
        let mut number = 0;
        loop {
            let dir = top.join(number.to_string());
            self.make(&dir).map_err(failed(&dir))?;
            let lock = File::create(dir.join("lock")).map_err(failed(&dir))?;
            let locked = match sharing {
                Sharing::Shared => lock.try_lock_shared(),
                Sharing::Private | Sharing::Locked => lock.try_lock(),
            };
            match (locked, sharing) {
                // It may have been collected in between.
                (Ok(()), _) if dir.join("lock").exists() => {
                    return Ok(InUse { dir, lock: Some(Arc::new(lock)), part: None });
                }
                (Ok(()), _) => {}
                (Err(TryLockError::WouldBlock), Sharing::Private) => number += 1,
                (Err(TryLockError::WouldBlock), _) => {
                    if (hand.given_up)() {
                        return Err(BakeError::Cancelled);
                    }
                    std::thread::sleep(LOOK);
                }
                (Err(TryLockError::Error(error)), _) => return Err(failed(&dir)(error)),
            }
        }
    }

    /// Makes the directories of a new one.
    fn make(&self, dir: &Path) -> io::Result<()> {
        let data = dir.join("data");
        if data.exists() {
            return Ok(());
        }
        make_private(dir)?;
        if self.seed.is_some() {
            // The layer's own directory takes the place of `data` in the overlay.
            return make_private(&data);
        }
        let temporary = dir.join("new");
        let _ = fs::remove_dir(&temporary);
        fs::create_dir(&temporary)?;
        chown(&temporary, Some(self.uid), Some(self.gid))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(self.mode & 0o7777);
        fs::set_permissions(&temporary, mode)?;
        match fs::rename(&temporary, &data) {
            Err(_) if data.exists() => Ok(()),
            done => done,
        }
    }
}

impl InUse {
    /// The same again, for another mount of the same step: it must not wait for itself.
    pub(crate) fn again(&self, cache: &Cache) -> Result<Self, BakeError> {
        // Two mounts of one layer disturb each other.
        if cache.seed.is_some() {
            let what = format!("the cache `{}`, which has a `from`, is mounted twice", cache.id);
            return Err(BakeError::usage(what, "mount it once, or give the second one another id"));
        }
        Ok(Self { dir: self.dir.clone(), lock: self.lock.clone(), part: None })
    }

    /// Adds it to what the step has.
    pub(crate) fn mount(
        &self,
        cache: &Cache,
        hand: &Hand<'_>,
        ready: &mut Ready,
    ) -> Result<(), BakeError> {
        let data = self.dir.join("data");
        let (target, read_only) = (cache.target.clone(), cache.read_only);
        if let Some(seed) = &cache.seed {
            let (lower, path, dir) = seed.lower(hand.store)?;
            let upper_dir = Some(data);
            let image = ImageMount { lower, upper_dir, path, dir, target, read_only };
            ready.around.images.push(image);
            return Ok(());
        }
        let source = match &self.part {
            None => data,
            Some(part) => format!("/proc/{}/fd/{}", std::process::id(), part.as_raw_fd()).into(),
        };
        ready.mounts.push(StepMount { source, target, read_only });
        Ok(())
    }

    /// Goes down to what of it is mounted. A link that a step left in the cache leads nowhere.
    pub(crate) fn descend(mut self, source: &str) -> Result<Self, BakeError> {
        let data = self.dir.join("data");
        let path = crate::paths::clean(&format!("/{source}"));
        if path == "/" {
            return Ok(self);
        }
        let wanted = Path::new(&path[1..]);
        let failed = |error: rustix::io::Errno| {
            BakeError::io("cannot mount from the cache", wanted, error.into())
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = openat(CWD, &data, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let part = openat2(&root, wanted, flags, Mode::empty(), resolve).map_err(failed)?;
        self.part = Some(part);
        Ok(self)
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// What [`collect`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Caches.
    pub caches: usize,
    /// Bytes that they took.
    pub bytes: u64,
}

/// Removes the caches below `room` that no step uses and none has used for `age`; with `dry_run`
/// it only says what it would remove.
///
/// # Errors
/// A directory cannot be read or removed.
pub fn collect(room: &Path, age: Duration, dry_run: bool) -> io::Result<Collected> {
    let mut collected = Collected::default();
    let entries = match fs::read_dir(room) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(collected),
        entries => entries?,
    };
    for entry in entries {
        let top = entry?.path();
        let used = fs::metadata(top.join("used")).and_then(|meta| meta.modified());
        let idle = used.ok().and_then(|used| used.elapsed().ok());
        if idle.is_some_and(|idle| idle < age) {
            continue;
        }
        let Some(_locks) = all_locks(&top)? else { continue };
        collected.caches += 1;
        collected.bytes += size(&top)?;
        if !dry_run {
            kiln_store::mount::remove_tree(&top)?;
        }
    }
    Ok(collected)
}

/// Every lock of a cache, unless a step holds one.
fn all_locks(top: &Path) -> io::Result<Option<Vec<File>>> {
    let mut locks = Vec::new();
    for entry in fs::read_dir(top)? {
        let lock = match File::open(entry?.path().join("lock")) {
            Ok(lock) => lock,
            Err(_) => continue,
        };
        match lock.try_lock() {
            Ok(()) => locks.push(lock),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(Some(locks))
}

fn size(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { size(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}
