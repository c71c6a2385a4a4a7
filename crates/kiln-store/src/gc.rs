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

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kiln_core::{Digest, ImageId, Tree};
use serde::Serialize;

use crate::error::{Context as _, Error, Result};
use crate::lease::Lease;
use crate::marks::Marks;
use crate::mount::remove_tree;
use crate::store::Store;

/// How many caches of build contexts stay, and for how long after the last change of each.
const CONTEXTS: usize = 200;
const CONTEXT_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What is removed while bakes wait: so many files, or so many bytes.
const BATCH: usize = 500;
const BATCH_BYTES: u64 = 1 << 30;

/// How to collect.
#[derive(Debug, Clone)]
pub struct GcOptions {
    /// Remove nothing, only report. Bakes are not held up.
    pub dry_run: bool,
    /// How long to wait for leases to end, for each batch.
    pub wait: Duration,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { dry_run: false, wait: Duration::from_secs(10) }
    }
}

/// What [`Store::gc`] did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Objects that stay.
    pub kept_objects: u64,
    /// Their bytes.
    pub kept_bytes: u64,
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
        self.gc_with(&|| keep.clone(), &GcOptions { dry_run, ..GcOptions::default() })
    }

    /// Removes everything that neither `roots`, nor references, nor stages lead to. `roots` is
    /// asked again whenever somebody may have made something meanwhile.
    ///
    /// # Errors
    /// [`Error::Busy`] if leases outlast `options.wait` before anything went; [`Error::Held`];
    /// [`Error::Stops`] for something that is kept and cannot be read; I/O errors.
    pub fn gc_with(
        &self,
        roots: &dyn Fn() -> BTreeSet<Digest>,
        options: &GcOptions,
    ) -> Result<GcReport> {
        let _one = self.collector_lock(options)?;
        let mut collector = Collector {
            store: self,
            roots,
            options,
            kept: Marks::new(self.scratch_dir()?),
            traced: HashSet::new(),
            stamp: self.stamp_before_looking()?,
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
    roots: &'a dyn Fn() -> BTreeSet<Digest>,
    options: &'a GcOptions,
    kept: Marks,
    /// Releases and trees whose contents are marked.
    traced: HashSet<Digest>,
    /// That of the lease that was taken last before the roots were looked at.
    stamp: Vec<u8>,
    began: SystemTime,
    report: GcReport,
}

/// How a root is to be read.
#[derive(Clone, Copy)]
enum Expected {
    Release,
    /// Nobody says; a listing if it reads as one.
    Anything,
    /// One content; nothing hangs on it.
    Content,
}

/// Something that may go.
struct Candidate {
    path: PathBuf,
    digest: Option<Digest>,
    /// What is gained when it goes.
    bytes: u64,
}

impl Collector<'_> {
    fn collect(&mut self) -> Result<()> {
        self.store.ledger_is_whole()?;
        self.mark()?;
        self.collect_steps()?;
        self.collect_derived()?;
        self.collect_objects()?;
        self.collect_spares()?;
        self.collect_copies()?;
        self.collect_contexts()
    }

    /// Marks all that the roots lead to, themselves included.
    fn mark(&mut self) -> Result<()> {
        for ((project, stage), pointer) in self.store.pointers()? {
            let releases = pointer.active.iter().chain(&pointer.standby).chain(&pointer.previous);
            for digest in releases {
                let who = || format!("stage {project}/{stage}");
                self.mark_root(*digest, Expected::Release, &who)?;
            }
        }
        for ((kind, name), digests) in self.store.refs()? {
            let expected = match kind.as_str() {
                "releases" => Expected::Release,
                "locks" => Expected::Content,
                _ => Expected::Anything,
            };
            for digest in digests {
                self.mark_root(digest, expected, &|| format!("refs/{kind}/{name}"))?;
            }
        }
        for digest in (self.roots)() {
            self.mark_root(digest, Expected::Anything, &|| "what runs".to_owned())?;
        }
        Ok(())
    }

    fn mark_root(
        &mut self,
        digest: Digest,
        expected: Expected,
        who: &dyn Fn() -> String,
    ) -> Result<()> {
        if self.traced.contains(&digest) {
            return Ok(());
        }
        let traced = match expected {
            Expected::Content => self.kept.add(&digest),
            Expected::Release => self.mark_release(&digest),
            Expected::Anything => self.mark_anything(&digest),
        };
        traced.map_err(|error| match error {
            Error::Missing(_) | Error::Corrupt { .. } | Error::Kind { .. } | Error::Io { .. } => {
                Error::Stops { who: who(), source: Box::new(error) }
            }
            error => error,
        })
    }

    fn mark_release(&mut self, digest: &Digest) -> Result<()> {
        let release = self.store.get_release(digest)?;
        for tree in release.trees() {
            self.mark_tree(&tree)?;
        }
        for pin in release.pins() {
            self.kept.add(&pin)?;
        }
        self.kept.add(digest)?;
        self.traced.insert(*digest);
        Ok(())
    }

    /// The listing is read here and forgotten: there may be many.
    fn mark_tree(&mut self, digest: &Digest) -> Result<()> {
        if self.traced.contains(digest) {
            return Ok(());
        }
        let text = self.store.get(digest)?;
        self.mark_listing(digest, &text)
    }

    fn mark_listing(&mut self, digest: &Digest, text: &[u8]) -> Result<()> {
        let kind = |why: String| Error::Kind { digest: *digest, expected: "tree listing", why };
        let text = std::str::from_utf8(text).map_err(|error| kind(error.to_string()))?;
        let tree = Tree::parse(text).map_err(|error| kind(error.to_string()))?;
        for object in tree.objects() {
            self.kept.add(&object)?;
        }
        self.kept.add(digest)?;
        self.traced.insert(*digest);
        Ok(())
    }

    /// Nothing says what kind of object it is but its first bytes: a listing begins with mtree's
    /// mark, a release with its format. It is checked before its word is taken; a large one is
    /// neither. A user's file that looks like one keeps too much, never too little.
    fn mark_anything(&mut self, digest: &Digest) -> Result<()> {
        let Some(size) = self.store.object_size(digest)? else {
            // What is not there keeps nothing.
            return Ok(());
        };
        if size > CONTAINER {
            return self.kept.add(digest);
        }
        let content = self.store.get(digest)?;
        if kiln_core::tree::begins_listing(&content) && self.mark_listing(digest, &content).is_ok()
        {
            return Ok(());
        }
        if content.starts_with(b"{\"format\":")
            && content.windows(11).take(64).any(|part| part == b",\"project\":")
        {
            return self.mark_release(digest);
        }
        self.kept.add(digest)
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
        let _alone = self.store.lock_alone("lease.lock", self.options.wait)?;
        let began = std::time::Instant::now();
        let stamp = self.store.lease_stamp()?;
        if stamp != self.stamp {
            self.mark()?;
            self.drop_fresh_steps()?;
            let mut left = Vec::new();
            for candidate in batch.drain(..) {
                let kept = candidate.digest.map(|digest| self.is_kept(&digest));
                if !kept.transpose()?.unwrap_or(false) {
                    left.push(candidate);
                }
            }
            *batch = left;
            self.stamp = stamp;
        }
        let gone = batch.len() as u64;
        for candidate in batch.drain(..) {
            remove_tree(&candidate.path).doing("removing", &candidate.path)?;
            crate::disk::unnamed(&candidate.path);
            self.report.bytes += candidate.bytes;
        }
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.report.longest_ms = self.report.longest_ms.max(took);
        Ok(gone)
    }

    /// Objects, one folder of them after the other.
    fn collect_objects(&mut self) -> Result<()> {
        let top = self.store.root().join("objects");
        let mut batch = Vec::new();
        let mut bytes = 0;
        for shard in entries(&top)? {
            let Some(number) = shard_number(&shard) else {
                let bytes = shard.metadata().map_or(0, |meta| meta.len());
                batch.push(Candidate { path: shard.path(), digest: None, bytes });
                continue;
            };
            let kept = self.kept.load(number)?;
            for entry in entries(&shard.path())? {
                let path = entry.path();
                let Some(meta) = look(&path)? else { continue };
                let name = entry.file_name();
                let hex = format!("{number:02x}{}", name.to_string_lossy());
                let digest: Option<Digest> = hex.parse().ok().filter(|_| meta.is_file());
                if digest.is_some_and(|digest| kept.contains(&digest)) {
                    self.report.kept_objects += 1;
                    self.report.kept_bytes += meta.len();
                    continue;
                }
                // A content that link trees share goes with the last of its names.
                let gain = if meta.nlink() == 1 { meta.len() } else { 0 };
                bytes += gain;
                batch.push(Candidate { path, digest, bytes: gain });
                if batch.len() >= BATCH || bytes >= BATCH_BYTES {
                    self.report.objects += self.remove(&mut batch)?;
                    bytes = 0;
                }
            }
        }
        self.report.objects += self.remove(&mut batch)?;
        if let Ok(mut lowers) = self.store.inner.lowers.lock()
            && !self.options.dry_run
        {
            // What is built again is looked at again.
            lowers.clear();
        }
        Ok(())
    }

    /// Step results whose image is not kept.
    fn collect_steps(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        for entry in entries(&self.store.root().join("cache/steps"))? {
            let path = entry.path();
            if self.step_stays(&path)? {
                continue;
            }
            batch.push(Candidate { path, digest: None, bytes: 0 });
            if batch.len() >= BATCH {
                self.report.steps += self.remove(&mut batch)?;
            }
        }
        self.report.steps += self.remove(&mut batch)?;
        if !self.options.dry_run {
            // After a power cut there must be no result without its objects.
            let dir = self.store.root().join("cache/steps");
            crate::disk::sync_dir(crate::disk::Site::Steps, &dir).doing("syncing", &dir)?;
        }
        Ok(())
    }

    fn step_stays(&self, path: &Path) -> Result<bool> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            text => text.doing("reading", path)?,
        };
        let Ok(image) = serde_json::from_slice::<ImageId>(&text) else { return Ok(false) };
        Ok(self.is_kept(&image.tree)? && self.is_kept(&image.config)?)
    }

    /// What was baked while the collection was under way and is named by nothing: its contents may
    /// be among those that go.
    fn drop_fresh_steps(&mut self) -> Result<()> {
        let since = self.began - Duration::from_secs(2);
        for entry in entries(&self.store.root().join("cache/steps"))? {
            let path = entry.path();
            let Some(meta) = look(&path)? else { continue };
            if meta.modified().is_ok_and(|time| time >= since) && !self.step_stays(&path)? {
                crate::disk::remove(&path).doing("removing", &path)?;
                self.report.steps += 1;
            }
        }
        Ok(())
    }

    /// Images and link trees of trees that are not kept.
    fn collect_derived(&mut self) -> Result<()> {
        for dir in ["images", "links/trees"] {
            let mut batch = Vec::new();
            for entry in entries(&self.store.root().join(dir))? {
                let path = entry.path();
                let tree = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
                if let Some(tree) = tree
                    && self.is_kept(&tree)?
                {
                    continue;
                }
                let Some(meta) = look(&path)? else { continue };
                let bytes = if meta.is_file() { meta.len() } else { 0 };
                if path.extension().is_some_and(|extension| extension == "sum") {
                    self.remove(&mut vec![Candidate { path, digest: tree, bytes }])?;
                    continue;
                }
                batch.push(Candidate { path, digest: tree, bytes });
                // A link tree is thousands of files.
                if batch.len() >= if dir == "images" { BATCH } else { 1 } {
                    self.report.images += self.remove(&mut batch)?;
                }
            }
            self.report.images += self.remove(&mut batch)?;
        }
        Ok(())
    }

    /// Second copies of releases that went.
    fn collect_spares(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        for entry in entries(&self.store.root().join("spare"))? {
            let path = entry.path();
            let release = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(release) = release
                && self.is_kept(&release)?
            {
                continue;
            }
            batch.push(Candidate { path, digest: release, bytes: 0 });
        }
        self.remove(&mut batch)?;
        Ok(())
    }

    /// Copies that no link tree uses any more.
    fn collect_copies(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        for shard in entries(&self.store.root().join("links/objects"))? {
            for entry in entries(&shard.path())? {
                let path = entry.path();
                let Some(meta) = look(&path)? else { continue };
                if meta.nlink() > 1 {
                    continue;
                }
                batch.push(Candidate { path, digest: None, bytes: meta.len() });
                if batch.len() >= BATCH {
                    self.remove(&mut batch)?;
                }
            }
        }
        self.remove(&mut batch)?;
        Ok(())
    }

    /// What is known of build contexts, where that is old: nothing says whether a context still
    /// exists. One that is missed is read once more.
    fn collect_contexts(&mut self) -> Result<()> {
        let mut caches = Vec::new();
        for entry in entries(&self.store.root().join("cache/contexts"))? {
            let path = entry.path();
            let Some(meta) = look(&path)? else { continue };
            caches.push((meta.modified().doing("looking at", &path)?, meta.len(), path));
        }
        // The newest first.
        caches.sort_by_key(|(changed, ..)| std::cmp::Reverse(*changed));
        let mut batch = Vec::new();
        for (nth, (changed, bytes, path)) in caches.into_iter().enumerate() {
            if nth < CONTEXTS && changed.elapsed().is_ok_and(|age| age < CONTEXT_AGE) {
                continue;
            }
            batch.push(Candidate { path, digest: None, bytes });
        }
        self.report.contexts += self.remove(&mut batch)?;
        Ok(())
    }
}

/// What is larger is no listing and no release.
const CONTAINER: u64 = 256 << 20;

/// The entries of a folder; none if it is not there. Anything else that is wrong with it is told.
fn entries(dir: &Path) -> Result<Vec<fs::DirEntry>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.doing("reading", dir)?.collect::<io::Result<_>>().doing("reading", dir),
    }
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
