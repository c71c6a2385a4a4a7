//! Collection: what nothing names goes.
//!
//! Kept are the roots that the caller names, what references name, what stages have active, on
//! standby or still restorable, and everything that those lead to: a release keeps its images and
//! files, a tree keeps the contents that its listing names. A release or listing on that way that
//! cannot be read and checked stops the collection, for nobody could say what it keeps. While
//! something is wrong with the ledger, nobody could say what the roots are.
//!
//! Bakes go on meanwhile: only for the removal of one batch is the store the collection's alone.
//! Whoever takes a lease leaves a stamp; if there is another one than before, the roots are looked
//! at again before the batch goes, so what was named in between is kept. Step results go before
//! objects, so that no bake finds a result whose contents are half gone.
//!
//! | module | what |
//! |---|---|
//! | `mark` | what is kept |
//! | `held` | which references still stand |
//! | `sweep` | what goes, one kind after the other |

mod held;
mod mark;
mod sweep;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant, SystemTime};

use kiln_core::Digest;
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Error, Result};
use crate::lease::Lease;
use crate::marks::Marks;
use crate::mount::remove_tree;
use crate::refs::{RefName, Seen};
use crate::store::Store;

/// How many caches of build contexts stay, and for how long after the last change of each.
const CONTEXTS: usize = 200;
const CONTEXT_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long the beginning of an interrupted transfer stays that nobody goes on with.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// What is removed while bakes wait: so many files, or so many bytes.
const BATCH: usize = 500;
const BATCH_BYTES: u64 = 1 << 30;

/// Files that are removed at once. An ext4 without a journal that is mounted with `discard` waits
/// for the device at each file: 50,000 took 38 to 73 s one after the other, 4.4 s by eight at once,
/// 3.6 s by 32, and with 64 no less.
const AT_ONCE: usize = 32;

/// For how many of the root's days a reference stays that nothing needs.
pub const UNUSED_DAYS: u64 = 30;

/// How to collect.
#[derive(Debug, Clone)]
pub struct GcOptions {
    /// Remove nothing, only report. Bakes are not held up.
    pub dry_run: bool,
    /// How long to wait for leases to end, for each batch.
    pub wait: Duration,
    /// A reference of a kind in [`crate::refs::HELD`] that nothing needs goes when it was not used
    /// for so many of the [root's days](Store::today).
    pub unused: u64,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { dry_run: false, wait: Duration::from_secs(10), unused: UNUSED_DAYS }
    }
}

/// What the caller knows to be needed.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// Kept, with all that they lead to.
    pub digests: BTreeSet<Digest>,
    /// References that something needs, beside those that references say.
    pub needs: BTreeSet<RefName>,
    /// Projects (names of references of the kind [`crate::refs::PROJECTS`]) that are not there any
    /// more. They stand until nothing of theirs was used for a while: a disk may be away.
    pub gone: BTreeSet<String>,
    /// It cannot be said what is needed, so no reference goes.
    pub unknown: bool,
}

impl From<BTreeSet<Digest>> for Roots {
    fn from(digests: BTreeSet<Digest>) -> Self {
        Self { digests, ..Self::default() }
    }
}

/// What [`Store::gc`] did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Objects that stay.
    pub kept_objects: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// References that nothing needed any more.
    pub references: u64,
    /// Objects that went.
    pub objects: u64,
    /// Derived images and link trees that went.
    pub images: u64,
    /// Step results that went.
    pub steps: u64,
    /// Caches of build contexts that went.
    pub contexts: u64,
    /// Bytes of all that went; what links share counts once.
    pub bytes: u64,
    /// Whether bakes kept it from going on to the end.
    pub interrupted: bool,
    /// The longest that bakes had to wait for a batch, in ms.
    pub longest_ms: u64,
}

impl Store {
    /// [`Store::gc_with`] the default wait and fixed roots.
    ///
    /// # Errors
    /// As there.
    pub fn gc(&self, keep: &BTreeSet<Digest>, dry_run: bool) -> Result<GcReport> {
        self.gc_with(&|| keep.clone().into(), &GcOptions { dry_run, ..GcOptions::default() })
    }

    /// Removes everything that neither `roots`, nor references, nor stages lead to. `roots` is
    /// asked again whenever somebody may have made something meanwhile.
    ///
    /// # Errors
    /// [`Error::Busy`] if leases outlast `options.wait` before anything went; [`Error::Held`];
    /// [`Error::Stops`] for something that is kept and cannot be read; [`Error::Reference`]; I/O
    /// errors.
    pub fn gc_with(&self, roots: &dyn Fn() -> Roots, options: &GcOptions) -> Result<GcReport> {
        let _one = self.collector_lock(options)?;
        let mut collector = Collector {
            store: self,
            roots,
            options,
            kept: Marks::new(self.scratch_dir()?),
            traced: HashSet::new(),
            references: Seen::default(),
            fallen: BTreeSet::new(),
            today: if options.dry_run { self.day()? } else { self.today()? },
            stamp: None,
            began: SystemTime::now(),
            report: GcReport::default(),
        };
        let result = collector.collect();
        match result {
            Err(Error::Busy(_)) if collector.report.bytes > 0 => {
                collector.report.interrupted = true;
                Ok(collector.report)
            }
            result => result.map(|()| collector.report),
        }
    }

    /// Two collections at once would only be in each other's way; one that looks is in nobody's.
    fn collector_lock(&self, options: &GcOptions) -> Result<Option<Lease>> {
        if options.dry_run {
            return Ok(None);
        }
        self.lock_alone("gc.lock", options.wait).map(Some)
    }
}

/// One collection under way.
struct Collector<'a> {
    store: &'a Store,
    roots: &'a dyn Fn() -> Roots,
    options: &'a GcOptions,
    kept: Marks,
    /// Roots and trees that are marked, with all that they lead to.
    traced: HashSet<Digest>,
    references: Seen,
    /// References that nothing needs any more.
    fallen: BTreeSet<RefName>,
    today: u64,
    /// That of the lease that was taken last before the roots were looked at with no lease held.
    /// None before the first time: who holds a lease now may name things when all is marked.
    stamp: Option<Vec<u8>>,
    began: SystemTime,
    report: GcReport,
}

/// Something that may go.
struct Candidate {
    path: PathBuf,
    digest: Option<Digest>,
    /// What is gained when it goes.
    bytes: u64,
    /// It was seen to be a file a moment ago, and need not be looked at again.
    file: bool,
}

/// The store, for the collection alone.
struct Alone {
    _lock: Lease,
    since: Instant,
}

impl Collector<'_> {
    fn collect(&mut self) -> Result<()> {
        self.store.ledger_is_whole()?;
        self.mark()?;
        self.collect_references()?;
        self.collect_steps()?;
        self.collect_derived()?;
        self.collect_objects()?;
        self.collect_spares()?;
        self.collect_copies()?;
        self.collect_contexts()
    }

    /// Waits until no lease is held, and looks again at what was named since the last time.
    fn alone(&mut self) -> Result<Alone> {
        // Most of it while bakes go on.
        if self
            .stamp
            .as_ref()
            .is_some_and(|seen| self.store.lease_stamp().is_ok_and(|stamp| stamp != *seen))
        {
            self.mark()?;
        }
        let lock = self.store.lock_alone("lease.lock", self.options.wait)?;
        let alone = Alone { _lock: lock, since: Instant::now() };
        let stamp = self.store.lease_stamp()?;
        if self.stamp.as_ref() != Some(&stamp) {
            self.mark()?;
            self.drop_fresh_steps()?;
            self.stamp = Some(stamp);
        }
        Ok(alone)
    }

    /// Lets bakes go on.
    fn release(&mut self, alone: Alone) {
        let took = u64::try_from(alone.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.report.longest_ms = self.report.longest_ms.max(took);
    }

    fn is_kept(&self, digest: &Digest) -> Result<bool> {
        Ok(self.kept.load(digest.as_bytes()[0])?.contains(digest))
    }

    /// Removes `batch` while no lease is held, but for what was named since it was put together.
    fn remove(&mut self, batch: &mut Vec<Candidate>) -> Result<u64> {
        if batch.is_empty() {
            return Ok(0);
        }
        if self.options.dry_run {
            self.report.bytes += batch.iter().map(|candidate| candidate.bytes).sum::<u64>();
            return Ok(batch.drain(..).count() as u64);
        }
        let seen = self.stamp.clone();
        let alone = self.alone()?;
        if self.stamp != seen {
            self.keep_what_was_named(batch)?;
        }
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for candidate in batch.drain(..) {
            // Somebody else may have been faster.
            let folder = match candidate.file {
                true => false,
                false => match look(&candidate.path)? {
                    Some(meta) => meta.is_dir(),
                    None => continue,
                },
            };
            if folder {
                folders.push(self.put_aside(&candidate.path)?);
                self.report.bytes += candidate.bytes;
            } else {
                files.push((candidate.path, candidate.bytes));
            }
        }
        let (count, bytes) = unlink(&files)?;
        self.report.bytes += bytes;
        let gone = count + folders.len() as u64;
        self.release(alone);
        // A link tree is thousands of files: nobody has to wait for them.
        for folder in folders {
            remove_tree(&folder).doing("removing", &folder)?;
        }
        Ok(gone)
    }

    fn keep_what_was_named(&self, batch: &mut Vec<Candidate>) -> Result<()> {
        let mut loaded = None;
        let mut left = Vec::new();
        for candidate in batch.drain(..) {
            let kept = match candidate.digest {
                None => false,
                Some(digest) => {
                    let number = digest.as_bytes()[0];
                    let part = match loaded.take() {
                        Some((same, part)) if same == number => part,
                        _ => self.kept.load(number)?,
                    };
                    let kept = part.contains(&digest);
                    loaded = Some((number, part));
                    kept
                }
            };
            if !kept {
                left.push(candidate);
            }
        }
        *batch = left;
        Ok(())
    }

    /// Takes a folder away, to be emptied.
    fn put_aside(&self, folder: &Path) -> Result<PathBuf> {
        let aside = self.store.temporary("gone");
        fs::rename(folder, &aside).doing("putting aside", folder)?;
        Ok(aside)
    }
}

/// Removes files, several at a time: each waits for the file system's disk, and they can do so
/// together. Says how many were there, and what they are said to gain.
fn unlink(files: &[(PathBuf, u64)]) -> Result<(u64, u64)> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut all = (0, 0);
        while let Some((path, bytes)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if crate::disk::remove_if_there(path).doing("removing", path)? {
                all = (all.0 + 1, all.1 + bytes);
            }
        }
        Ok(all)
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..AT_ONCE.min(files.len())).map(|_| scope.spawn(work)).collect();
        let own = work();
        let join = |other: ScopedJoinHandle<'_, Result<(u64, u64)>>| {
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All of them end before the first error is told.
        let others: Vec<_> = others.into_iter().map(join).collect();
        others.into_iter().try_fold(own?, |all, other| {
            let other = other?;
            Ok((all.0 + other.0, all.1 + other.1))
        })
    })
}

/// What is larger is no listing and no release.
const CONTAINER: u64 = 256 << 20;

/// The entries of a folder, one after the other; none if it is not there. Anything else that is
/// wrong with it is told.
fn entries(dir: &Path) -> Result<impl Iterator<Item = Result<fs::DirEntry>>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries.doing("reading", dir)?),
    };
    let dir = dir.to_owned();
    Ok(entries.into_iter().flatten().map(move |entry| entry.doing("reading", &dir)))
}

/// `None` for what is gone meanwhile.
fn look(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        meta => meta.doing("looking at", path).map(Some),
    }
}

/// The byte that a folder of objects is for.
fn shard_number(shard: &fs::DirEntry) -> Option<u8> {
    let name = shard.file_name();
    let name = name.to_str().filter(|name| name.len() == 2)?;
    let lower = !name.bytes().any(|byte| byte.is_ascii_uppercase() || byte == b'+');
    let folder = shard.file_type().is_ok_and(|kind| kind.is_dir());
    u8::from_str_radix(name, 16).ok().filter(|_| lower && folder)
}
