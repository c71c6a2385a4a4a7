//! What reaches the disk, and when.
//!
//! A flush costs milliseconds, so objects are put without one; [`crate::Store::flush`] makes all
//! of them durable at once, with a single `syncfs`, before anything durable names them.
//!
//! From the first put after a flush until the next flush, a marker `unsynced/BOOT.PID.…` stands in
//! the root. A marker that outlives a reboot says that what was put since may be torn; see
//! [`crate::store`] for what is done about it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

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
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, false)
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

/// Tracks whether something was put since the last flush.
#[derive(Debug)]
pub(crate) struct Unsynced {
    dir: PathBuf,
    dirty: AtomicBool,
    /// Real time, in ns, at which the last completed flush began.
    flushed_at: AtomicI64,
    markers: Mutex<Vec<PathBuf>>,
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
            markers: Mutex::new(Vec::new()),
            publishing: RwLock::new(()),
            flushing: Mutex::new(()),
        }
    }

    /// Marks the root as having something unsynced. What is published must be published while the
    /// guard lives.
    pub(crate) fn mark(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let guard = self.publishing.read().unwrap_or_else(PoisonError::into_inner);
        if !self.dirty.load(Ordering::Acquire) {
            let mut markers = self.markers.lock().unwrap_or_else(PoisonError::into_inner);
            if markers.is_empty() {
                let path = self.dir.join(owner::unique("unsynced"));
                File::create_new(&path).doing("creating", &path)?;
                markers.push(path);
            }
            self.dirty.store(true, Ordering::Release);
        }
        Ok(guard)
    }

    /// Takes note that an object was found already there. Another process may have put it and not
    /// flushed, so unless it is older than our last flush it counts as put by us.
    pub(crate) fn found(&self, stat: &Statx) -> Result<()> {
        let changed = stat.stx_ctime.tv_sec * 1_000_000_000 + i64::from(stat.stx_ctime.tv_nsec);
        if changed >= self.flushed_at.load(Ordering::Acquire) {
            drop(self.mark()?);
        }
        Ok(())
    }

    /// Makes everything put so far durable, if there is anything.
    pub(crate) fn flush(&self, root: &File) -> Result<()> {
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let markers = {
            let _all = self.publishing.write().unwrap_or_else(PoisonError::into_inner);
            if !self.dirty.swap(false, Ordering::AcqRel) {
                return Ok(());
            }
            std::mem::take(&mut *self.markers.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        if let Err(error) = rustix::fs::syncfs(root) {
            // The markers stay, and the next flush tries again.
            self.markers.lock().unwrap_or_else(PoisonError::into_inner).extend(markers);
            self.dirty.store(true, Ordering::Release);
            return Err(error).doing("syncing", &self.dir);
        }
        self.flushed_at.store(now.tv_sec * 1_000_000_000 + now.tv_nsec, Ordering::Release);
        for marker in markers {
            fs::remove_file(&marker).doing("removing", &marker)?;
        }
        Ok(())
    }

    /// Takes over the marker of a process that ended without a flush.
    pub(crate) fn adopt(&self, marker: &Path) -> Result<()> {
        let mine = self.dir.join(owner::unique("unsynced"));
        match fs::rename(marker, &mine) {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.doing("renaming", marker)?,
        }
        self.markers.lock().unwrap_or_else(PoisonError::into_inner).push(mine);
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }
}
