//! What reaches the disk, and when.
//!
//! A flush costs milliseconds, so objects are put without one; [`crate::Store::flush`] makes all
//! of them durable at once, before anything durable names them: a few by a sync of each, many with
//! a single `syncfs`, which waits for what anybody has written to the file system.
//!
//! From its first put on, a process has a marker `unsynced/BOOT.PID.…` in the root, which is durable
//! before anything is put and says until when all was flushed. A marker that outlives a reboot says
//! that what was put since may be torn; see [`crate::store`] for what is done about it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime};

use rustix::fs::Statx;

use crate::disk::{self, Site};
use crate::error::{Context as _, Result};
use crate::owner;

/// Writes `bytes` to `path` so that after any crash there is either the old file or the new one,
/// whole: temporary file beside it, sync, rename, sync of the folder.
///
/// # Errors
/// Any I/O error; the temporary file is removed then.
pub fn write_durable(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    durable(path.as_ref(), bytes, 0o666)
}

/// The same for a file that is its owner's only, whatever the umask.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    durable(path, bytes, 0o600)
}

fn durable(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    replace(path, bytes, true, mode)?;
    disk::sync_dir(Site::Folder, dir)
}

/// Like [`write_durable`] without any sync: whole for readers and after a crash of the process,
/// not after a power cut.
///
/// # Errors
/// As [`write_durable`].
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    replace(path.as_ref(), bytes, false, 0o666)
}

fn replace(path: &Path, bytes: &[u8], sync: bool, mode: u32) -> io::Result<()> {
    let temporary = path.with_file_name(owner::unique(".new"));
    let result = (|| {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        disk::wrote(&file, path);
        if sync {
            disk::sync(Site::File, &file, path)?;
        }
        fs::rename(&temporary, path)
    })();
    disk::named(path);
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

/// A file that says until when all was flushed (Unix time in seconds), and `+` if something was put
/// since.
#[derive(Debug)]
struct Marker {
    path: PathBuf,
    file: File,
    flushed: i64,
}

impl Marker {
    /// Makes it, durably: whatever is put after it and lost is known to be so.
    fn make(dir: &Path) -> Result<Self> {
        let path = dir.join(owner::unique("unsynced"));
        let file = File::create_new(&path).doing("creating", &path)?;
        disk::named(&path);
        disk::sync_dir(Site::Mark, dir).doing("syncing", dir)?;
        let flushed = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse).tv_sec;
        Ok(Self { path, file, flushed })
    }

    /// Not synced: an older time only has more checked after a power cut.
    fn say(&self, dirty: bool) -> io::Result<()> {
        let sign = if dirty { '+' } else { '-' };
        self.file.write_all_at(format!("{:>20} {sign}\n", self.flushed).as_bytes(), 0)?;
        disk::wrote(&self.file, &self.path);
        Ok(())
    }
}

fn says_flushed(marker: &Path) -> bool {
    fs::read_to_string(marker).is_ok_and(|text| text.trim_end().ends_with('-'))
}

/// Since when what the marker at `path` is about may be torn.
pub(crate) fn unsynced_since(path: &Path) -> SystemTime {
    let text = fs::read_to_string(path).unwrap_or_default();
    let said = text.split_whitespace().next().and_then(|word| word.parse().ok());
    let said = said.map(Duration::from_secs);
    let made = || fs::metadata(path).and_then(|meta| meta.modified());
    // One that says nothing was not flushed since it was made; its file may never have been written.
    said.map(|said| SystemTime::UNIX_EPOCH + said)
        .or_else(|| made().ok())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Tracks whether something was put since the last flush.
#[derive(Debug)]
pub(crate) struct Unsynced {
    dir: PathBuf,
    dirty: AtomicBool,
    /// Real time, in ns, before which everything in the root is durable.
    flushed_at: AtomicI64,
    pending: Mutex<Pending>,
    /// Made at the first put; stays until the process ends.
    marker: Mutex<Option<Marker>>,
    /// Markers of processes that died, taken over.
    adopted: Mutex<Vec<PathBuf>>,
    /// Held shared from marking to linking, exclusively while a flush turns `dirty` off: else an
    /// object could be linked after the flush and counted as before it.
    publishing: RwLock<()>,
    flushing: Mutex<()>,
}

impl Drop for Unsynced {
    fn drop(&mut self) {
        if !self.dirty.load(Ordering::Acquire)
            && let Some(marker) = lock(&self.marker).take()
        {
            // One that stays only has more checked than need be.
            let _ = disk::remove(&marker.path);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Unsynced {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            dirty: AtomicBool::new(false),
            flushed_at: AtomicI64::new(0),
            pending: Mutex::default(),
            marker: Mutex::default(),
            adopted: Mutex::default(),
            publishing: RwLock::new(()),
            flushing: Mutex::new(()),
        }
    }

    /// Marks the root as having something unsynced. What is published must be published while the
    /// guard lives.
    pub(crate) fn mark(&self, published: Published<'_>) -> Result<RwLockReadGuard<'_, ()>> {
        let guard = self.publishing.read().unwrap_or_else(PoisonError::into_inner);
        {
            let mut marker = lock(&self.marker);
            let made = match marker.take() {
                Some(made) => made,
                None => Marker::make(&self.dir)?,
            };
            let said = match self.dirty.swap(true, Ordering::AcqRel) {
                true => Ok(()),
                false => made.say(true).doing("writing", &made.path),
            };
            *marker = Some(made);
            said?;
        }
        lock(&self.pending).add(published);
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
        let _one = lock(&self.flushing);
        let flushed = {
            let _all = self.publishing.write().unwrap_or_else(PoisonError::into_inner);
            if !self.dirty.swap(false, Ordering::AcqRel) {
                return Ok(());
            }
            std::mem::take(&mut *lock(&self.pending))
        };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        let result = match flushed.many {
            true => disk::sync_all(Site::All, root, self.dir.parent().unwrap_or(&self.dir)),
            false => sync_each(&flushed.files),
        };
        if let Err(error) = result {
            // The next flush tries again, this time everything.
            lock(&self.pending).add(Published::Many);
            self.dirty.store(true, Ordering::Release);
            return Err(error).doing("syncing", &self.dir);
        }
        if flushed.many {
            for marker in std::mem::take(&mut *lock(&self.adopted)) {
                disk::remove(&marker).doing("removing", &marker)?;
            }
        }
        if flushed.many || self.alone() {
            self.flushed_at.store(now.tv_sec * 1_000_000_000 + now.tv_nsec, Ordering::Release);
        }
        let mut marker = lock(&self.marker);
        if let Some(marker) = &mut *marker {
            marker.flushed = now.tv_sec;
            let dirty = self.dirty.load(Ordering::Acquire);
            marker.say(dirty).doing("writing", &marker.path)?;
        }
        Ok(())
    }

    /// Whether there are no markers but this process's: then no other one has put anything that it
    /// may not have flushed.
    fn alone(&self) -> bool {
        let Ok(mut entries) = fs::read_dir(&self.dir) else { return false };
        let marker = lock(&self.marker);
        let mine = |path: &Path| marker.as_ref().is_some_and(|marker| marker.path == path);
        entries.all(|entry| {
            entry.is_ok_and(|entry| mine(&entry.path()) || says_flushed(&entry.path()))
        })
    }

    /// Takes over the marker of a process that ended without a flush.
    pub(crate) fn adopt(&self, marker: &Path) -> Result<()> {
        if says_flushed(marker) {
            return disk::remove(marker).doing("removing", marker);
        }
        let mine = self.dir.join(owner::unique("unsynced"));
        match fs::rename(marker, &mine) {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.doing("renaming", marker)?,
        }
        disk::unnamed(marker);
        disk::named(&mine);
        lock(&self.adopted).push(mine);
        lock(&self.pending).add(Published::Many);
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
            Ok(file) => files.push((path, file)),
            // Collected meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        dirs.extend(path.ancestors().skip(1).take(2));
    }
    for (_, file) in &files {
        // All begin to be written, so that one commit of the file system's journal has them all. A
        // hint: what it does not do, the sync does.
        // SAFETY: the descriptor is open, and no memory is passed.
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    }
    files.iter().try_for_each(|(path, file)| disk::sync(Site::Object, file, path))?;
    dirs.iter().try_for_each(|dir| disk::sync_dir(Site::ObjectFolder, dir))
}
