//! What reaches the disk, and when.
//!
//! A flush costs milliseconds, so objects are put without one; [`crate::Store::flush`] makes all
//! of them durable at once, before anything durable names them: a few by a sync of each, many with
//! a single `syncfs`, which waits for what anybody has written to the file system.
//!
//! From the first put after a flush until the next flush, a marker `unsynced/BOOT.PID.…` stands in
//! the root. A marker that outlives a reboot says that what was put since may be torn; see
//! [`crate::store`] for what is done about it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::Statx;

use crate::error::{Context as _, Result};
use crate::owner;

/// Writes `bytes` to `path` so that after any crash there is either the old file or the new one,
/// whole: temporary file beside it, sync, rename, sync of the folder.
///
/// # Errors
/// Any I/O error; the temporary file is removed then.
pub fn write_durable(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    replace(path, bytes, true)?;
    File::open(dir)?.sync_all()
}

/// Like [`write_durable`] without any sync: whole for readers and after a crash of the process,
/// not after a power cut.
///
/// # Errors
/// As [`write_durable`].
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    replace(path.as_ref(), bytes, false)
}

fn replace(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let temporary = path.with_file_name(owner::unique(".new"));
    let result = (|| {
        let mut file = File::create_new(&temporary)?;
        file.write_all(bytes)?;
        if sync {
            file.sync_data()?;
        }
        fs::rename(&temporary, path)
    })();
    if result.is_err() {
        // The first error is the one to report; a left-over is cleaned at the next open.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// So many files are synced one by one; above, `syncfs` is faster.
const FEW: usize = 16;

/// What appears in the root, and will have to be made durable.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Published<'a> {
    /// One file at this path.
    File(&'a Path),
    /// Files that nobody counts.
    Many,
}

/// What was put since the last flush.
#[derive(Debug, Default)]
struct Pending {
    markers: Vec<PathBuf>,
    /// Everything, unless `many`.
    files: BTreeSet<PathBuf>,
    many: bool,
}

impl Pending {
    fn add(&mut self, published: Published<'_>) {
        if let (Published::File(path), false) = (published, self.many) {
            self.files.insert(path.to_owned());
        }
        if matches!(published, Published::Many) || self.files.len() > FEW {
            self.files.clear();
            self.many = true;
        }
    }
}

/// Tracks whether something was put since the last flush.
#[derive(Debug)]
pub(crate) struct Unsynced {
    dir: PathBuf,
    dirty: AtomicBool,
    /// Real time, in ns, before which everything in the root is durable.
    flushed_at: AtomicI64,
    pending: Mutex<Pending>,
    /// Held shared from marking to linking, exclusively while a flush turns `dirty` off: else an
    /// object could be linked after the flush and counted as before it.
    publishing: RwLock<()>,
    flushing: Mutex<()>,
}

impl Unsynced {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            dirty: AtomicBool::new(false),
            flushed_at: AtomicI64::new(0),
            pending: Mutex::default(),
            publishing: RwLock::new(()),
            flushing: Mutex::new(()),
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the root as having something unsynced. What is published must be published while the
    /// guard lives.
    pub(crate) fn mark(&self, published: Published<'_>) -> Result<RwLockReadGuard<'_, ()>> {
        let guard = self.publishing.read().unwrap_or_else(PoisonError::into_inner);
        let mut pending = self.pending();
        if pending.markers.is_empty() {
            let path = self.dir.join(owner::unique("unsynced"));
            File::create_new(&path).doing("creating", &path)?;
            pending.markers.push(path);
        }
        pending.add(published);
        self.dirty.store(true, Ordering::Release);
        Ok(guard)
    }

    /// Takes note that an object was found already there. Another process may have put it and not
    /// flushed, so unless it is older than our last flush it counts as put by us.
    pub(crate) fn found(&self, stat: &Statx, path: &Path) -> Result<()> {
        let changed = stat.stx_ctime.tv_sec * 1_000_000_000 + i64::from(stat.stx_ctime.tv_nsec);
        if changed >= self.flushed_at.load(Ordering::Acquire) {
            drop(self.mark(Published::File(path))?);
        }
        Ok(())
    }

    /// Makes everything put so far durable, if there is anything.
    pub(crate) fn flush(&self, root: &File) -> Result<()> {
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let flushed = {
            let _all = self.publishing.write().unwrap_or_else(PoisonError::into_inner);
            if !self.dirty.swap(false, Ordering::AcqRel) {
                return Ok(());
            }
            std::mem::take(&mut *self.pending())
        };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        let result = match flushed.many {
            true => rustix::fs::syncfs(root).map_err(io::Error::from),
            false => sync_each(&flushed.files),
        };
        if let Err(error) = result {
            // The markers stay, and the next flush tries again, this time everything.
            let mut pending = self.pending();
            pending.markers.extend(flushed.markers);
            pending.add(Published::Many);
            self.dirty.store(true, Ordering::Release);
            return Err(error).doing("syncing", &self.dir);
        }
        if flushed.many || self.alone(&flushed.markers) {
            self.flushed_at.store(now.tv_sec * 1_000_000_000 + now.tv_nsec, Ordering::Release);
        }
        for marker in flushed.markers {
            fs::remove_file(&marker).doing("removing", &marker)?;
        }
        Ok(())
    }

    /// Whether there are no markers but these: then no other process has put anything that it has
    /// not flushed.
    fn alone(&self, markers: &[PathBuf]) -> bool {
        let Ok(mut entries) = fs::read_dir(&self.dir) else { return false };
        entries.all(|entry| entry.is_ok_and(|entry| markers.contains(&entry.path())))
    }

    /// Takes over the marker of a process that ended without a flush.
    pub(crate) fn adopt(&self, marker: &Path) -> Result<()> {
        let mine = self.dir.join(owner::unique("unsynced"));
        match fs::rename(marker, &mine) {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.doing("renaming", marker)?,
        }
        let mut pending = self.pending();
        pending.markers.push(mine);
        pending.add(Published::Many);
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }
}

/// Syncs files, and the folders that they and their folders are in: those may be new too.
fn sync_each(paths: &BTreeSet<PathBuf>) -> io::Result<()> {
    let mut files = Vec::new();
    let mut dirs = BTreeSet::new();
    for path in paths {
        match File::open(path) {
            Ok(file) => files.push(file),
            // Collected meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        dirs.extend(path.ancestors().skip(1).take(2));
    }
    for file in &files {
        // All begin to be written, so that one commit of the file system's journal has them all. A
        // hint: what it does not do, the sync does.
        // SAFETY: the descriptor is open, and no memory is passed.
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    }
    files.iter().try_for_each(File::sync_all)?;
    dirs.iter().try_for_each(|dir| File::open(dir)?.sync_all())
}
