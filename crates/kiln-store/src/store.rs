//! The root folder: opening it, its format, and what is done about what a crash left.
//!
//! Nothing in here needs repair after a killed process: objects and derived files appear by one
//! `link` or `rename`. Left-overs carry their owner's name and are removed at the next open. After
//! a power cut, contents that were put and never flushed may be torn although their names are
//! there: the markers of [`crate::durable`] tell, and everything that changed since such a marker
//! is checked (objects) or dropped (step results, derived images).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use kiln_core::Digest;
use rustix::fs::IFlags;

use crate::disk;
use crate::durable::{Unsynced, write_durable};
use crate::error::{Context as _, Error, Result};
use crate::ledger::Ledger;
use crate::lower::{Backing, Choice};
use crate::owner::{self, Life};
use crate::steps::Turns;
use crate::typed::TreeCache;

/// Version of the layout and of all formats in it; see `docs/formats.md`.
pub const FORMAT: u32 = 1;

const DIRS: [&str; 10] = [
    "objects",
    "images",
    "cache/steps",
    "ledger",
    "refs",
    "spare",
    "stages",
    "tmp",
    "unsynced",
    "links/trees",
];

/// A root folder, open. Cheap to clone; all methods take `&self` and may be called from any
/// thread, and several processes may have the same root open.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    /// For `syncfs`.
    pub(crate) root_fd: File,
    pub(crate) unsynced: Unsynced,
    /// Where this process's new objects are made, before they have a name.
    pub(crate) nursery: PathBuf,
    pub(crate) trees: Mutex<TreeCache>,
    pub(crate) ledger: Ledger,
    pub(crate) choice: Choice,
    /// Trees whose derived form was built or checked by this process; held while one is built.
    pub(crate) lowers: Mutex<BTreeSet<Digest>>,
    pub(crate) turns: Turns,
    /// Objects that were found to be wrong.
    pub(crate) suspects: Mutex<BTreeSet<Digest>>,
    /// User and group that objects belong to: whoever this process is.
    pub(crate) owner: (u32, u32),
}

impl Drop for Inner {
    fn drop(&mut self) {
        // It may never have been made. A left-over is removed at the next open.
        let _ = fs::remove_dir(&self.nursery);
    }
}

impl Store {
    /// Opens the store at `root`, making it if there is none, and cleans up after processes that
    /// died. `KILN_STORE_BACKING=composefs|links` forces how images are mounted.
    ///
    /// # Errors
    /// [`Error::Format`] for a root of a newer version; [`Error::Backing`] for a forced backing
    /// that this kernel cannot do; I/O errors.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(root, None)
    }

    /// [`Store::open`] with the backing given instead of looked up.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(root: impl AsRef<Path>, backing: Option<Backing>) -> Result<Self> {
        let root = root.as_ref();
        fs::create_dir_all(root).doing("creating", root)?;
        // Recipes for mounts carry paths to other processes.
        let root = root.canonicalize().doing("resolving", root)?;
        let fresh = check_format(&root)?;
        crate::inherited::disown(&root, fresh).doing("setting the modes of", &root)?;
        for dir in DIRS {
            let dir = root.join(dir);
            // Objects hold secrets, and link trees set-id programs: not for other users. Overlayfs
            // reads its layers with the rights of whoever mounted.
            disk::create_dirs(&dir).doing("creating", &dir)?;
        }
        let root_fd = File::open(&root).doing("opening", &root)?;
        let unsynced = Unsynced::new(root.join("unsynced"));
        recover(&root, &unsynced)?;
        spread(&root.join("tmp"));
        let nursery = root.join("tmp").join(owner::unique("objects"));
        let ledger = Ledger::open(&root)?;
        let choice = Choice::make(&root, backing)?;
        let inner = Inner {
            root,
            root_fd,
            unsynced,
            nursery,
            trees: Mutex::default(),
            ledger,
            choice,
            lowers: Mutex::default(),
            turns: Turns::default(),
            suspects: Mutex::default(),
            owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The root folder, absolute.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The log of the root.
    pub fn ledger(&self) -> &Ledger {
        &self.inner.ledger
    }

    /// Makes everything that was put so far durable: one `syncfs`, or nothing when nothing was put
    /// since the last flush. Call it before anything durable names what was put.
    ///
    /// # Errors
    /// I/O errors; what was put counts as not durable then.
    pub fn flush(&self) -> Result<()> {
        self.inner.unsynced.flush(&self.inner.root_fd)
    }

    /// A folder of one's own under the root's `tmp/`, on the same file system as the objects. It
    /// is removed when dropped, or when the root is next opened after its process died.
    ///
    /// # Errors
    /// I/O errors.
    pub fn scratch_dir(&self) -> Result<tempfile::TempDir> {
        let tmp = self.inner.root.join("tmp");
        let prefix = format!("{}.", owner::unique("scratch"));
        tempfile::Builder::new().prefix(&prefix).tempdir_in(&tmp).doing("creating a folder in", tmp)
    }

    /// A path in `tmp/` that nobody else uses.
    pub(crate) fn temporary(&self, what: &str) -> PathBuf {
        self.inner.root.join("tmp").join(owner::unique(what))
    }
}

/// The `format` file says who may write here. It is the first thing made in a new root.
/// Whether the root is new.
fn check_format(root: &Path) -> Result<bool> {
    let path = root.join("format");
    let expected = format!("kiln-store {FORMAT}");
    match fs::read_to_string(&path) {
        Ok(found) if found.trim_end() == expected => Ok(false),
        Ok(found) => {
            let found = found.trim_end().to_owned();
            Err(Error::Format { root: root.to_owned(), found, expected })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_durable(&path, format!("{expected}\n").as_bytes()).doing("writing", &path)?;
            Ok(true)
        }
        Err(error) => Err(error).doing("reading", &path),
    }
}

/// Asks ext4 to put each folder of `dir` into a block group of its own. It does not give out again
/// what was removed within the last minutes but steps over it, one file after the other: beside the
/// removed scratch of a step, a thousand new files took ten times as long. A hint; other file
/// systems do without.
fn spread(dir: &Path) {
    let Ok(dir) = File::open(dir) else { return };
    if let Ok(flags) = rustix::fs::ioctl_getflags(&dir)
        && !flags.contains(IFlags::TOPDIR)
    {
        let _ = rustix::fs::ioctl_setflags(&dir, flags | IFlags::TOPDIR);
    }
}

/// Removes what dead processes left, and mistrusts what a power cut may have torn.
fn recover(root: &Path, unsynced: &Unsynced) -> Result<()> {
    let mut torn_since: Option<SystemTime> = None;
    let mut stale = Vec::new();
    for (path, life) in owned(&root.join("unsynced"))? {
        match life {
            Life::Alive | Life::Foreign => {}
            Life::Dead => unsynced.adopt(&path)?,
            Life::Rebooted => {
                let since = crate::durable::unsynced_since(&path);
                torn_since = Some(torn_since.map_or(since, |other| other.min(since)));
                stale.push(path);
            }
        }
    }
    if let Some(since) = torn_since {
        crate::check::drop_torn(root, since)?;
    }
    // Only now: a crash in between would have forgotten that a check is due.
    for path in stale {
        ignore_missing(fs::remove_file(&path)).doing("removing", &path)?;
    }
    for (path, life) in owned(&root.join("tmp"))? {
        if matches!(life, Life::Dead | Life::Rebooted) {
            crate::mount::remove_tree(&path).doing("removing", &path)?;
        }
    }
    remove_halves(root)
}

const NEW: &[u8] = b".new.";

/// Removes temporaries that [`crate::durable`] writes beside their targets.
fn remove_halves(root: &Path) -> Result<()> {
    let mut dirs = vec![root.to_owned()];
    for dir in ["spare", "cache/steps", "cache/contexts", "ledger"] {
        dirs.push(root.join(dir));
    }
    for parent in ["refs", "stages"] {
        let entries = root.join(parent);
        for entry in fs::read_dir(&entries).doing("reading", &entries)? {
            dirs.push(entry.doing("reading", &entries)?.path());
        }
    }
    for dir in dirs.iter().filter(|dir| dir.is_dir()) {
        for (path, life) in owned(dir)? {
            let ours =
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(NEW));
            if ours && matches!(life, Life::Dead | Life::Rebooted) {
                ignore_missing(fs::remove_file(&path)).doing("removing", &path)?;
            }
        }
    }
    Ok(())
}

/// Entries of `dir` with the life of their owners.
fn owned(dir: &Path) -> Result<Vec<(PathBuf, Life)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).doing("reading", dir)? {
        let entry = entry.doing("reading", dir)?;
        found.push((entry.path(), owner::life(&entry.file_name().to_string_lossy())));
    }
    Ok(found)
}

/// Somebody else having removed it is as good.
pub(crate) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
