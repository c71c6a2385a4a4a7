//! Collection: what nothing names goes.
//!
//! Kept are the roots that the caller names, what references name, what stages have active, on
//! standby or still restorable, and everything that those lead to: a release keeps its images and files, a tree keeps
//! the contents that its listing names. A release that is named and cannot be read stops the
//! collection, for nobody could say what it keeps.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use kiln_core::{Digest, ImageId};
use serde::Serialize;

use crate::check::stored;
use crate::error::{Context as _, Result};
use crate::mount::remove_tree;
use crate::store::{Store, ignore_missing};

/// How many caches of build contexts stay, and for how long after the last change of each.
const CONTEXTS: usize = 200;
const CONTEXT_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How to collect.
#[derive(Debug, Clone)]
pub struct GcOptions {
    /// Remove nothing, only report.
    pub dry_run: bool,
    /// How long to wait for leases to end.
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
}

impl Store {
    /// [`Store::gc_with`] the default wait.
    ///
    /// # Errors
    /// As there.
    pub fn gc(&self, keep: &BTreeSet<Digest>, dry_run: bool) -> Result<GcReport> {
        self.gc_with(keep, &GcOptions { dry_run, ..GcOptions::default() })
    }

    /// Removes everything that neither `keep`, nor references, nor stages lead to. Waits until no
    /// lease is held, and keeps new ones out meanwhile.
    ///
    /// # Errors
    /// [`crate::Error::Busy`] if leases outlast `options.wait`; errors in reading what is kept;
    /// I/O errors.
    pub fn gc_with(&self, keep: &BTreeSet<Digest>, options: &GcOptions) -> Result<GcReport> {
        let _alone = self.lease_alone(options.wait)?;
        let kept = self.reachable(keep)?;
        let mut report = GcReport::default();
        for stored in stored(self.root())? {
            if stored.digest.is_some_and(|digest| kept.contains(&digest)) {
                report.kept_objects += 1;
                report.kept_bytes += stored.meta.len();
                continue;
            }
            report.objects += 1;
            // A content that link trees share goes with the last of its names.
            if stored.meta.nlink() == 1 {
                report.bytes += stored.meta.len();
            }
            if !options.dry_run {
                remove_tree(&stored.path).doing("removing", &stored.path)?;
            }
        }
        self.collect_steps(&kept, options, &mut report)?;
        self.collect_derived(&kept, options, &mut report)?;
        self.collect_contexts(options, &mut report)?;
        if !options.dry_run {
            let mut lowers = self.inner.lowers.lock();
            if let Ok(lowers) = &mut lowers {
                lowers.retain(|tree| kept.contains(tree));
            }
        }
        Ok(report)
    }

    /// Everything that the roots lead to, themselves included.
    fn reachable(&self, keep: &BTreeSet<Digest>) -> Result<HashSet<Digest>> {
        let mut todo: Vec<Digest> = keep.iter().copied().collect();
        todo.extend(self.refs()?.into_values().flatten());
        for pointer in self.pointers()?.values() {
            todo.extend(pointer.active);
            todo.extend(pointer.standby);
            todo.extend(&pointer.previous);
        }
        let mut kept = HashSet::new();
        while let Some(digest) = todo.pop() {
            if !kept.insert(digest) {
                continue;
            }
            match self.sniff(&digest)? {
                Sniffed::Tree => {
                    let tree = self.get_tree(&digest)?;
                    kept.extend(tree.objects());
                }
                Sniffed::Release => todo.extend(self.get_release(&digest)?.pins()),
                Sniffed::Other => {}
            }
        }
        Ok(kept)
    }

    /// What kind of object a root is. Nothing says so but its first bytes: a listing begins with
    /// mtree's mark, a release with its format. A user's file that looks like one keeps too much,
    /// never too little.
    fn sniff(&self, digest: &Digest) -> Result<Sniffed> {
        let path = self.object_path(digest);
        let mut head = Vec::new();
        match File::open(&path) {
            Ok(file) => file.take(64).read_to_end(&mut head).doing("reading", &path)?,
            // What is gone keeps nothing. Its user will say so better than collection could.
            Err(_) => return Ok(Sniffed::Other),
        };
        if head.starts_with(b"#mtree\n") && self.get_tree(digest).is_ok() {
            return Ok(Sniffed::Tree);
        }
        if head.starts_with(b"{\"format\":")
            && head.windows(11).any(|part| part == b",\"project\":")
        {
            return Ok(Sniffed::Release);
        }
        Ok(Sniffed::Other)
    }

    /// Step results whose image is not kept.
    fn collect_steps(
        &self,
        kept: &HashSet<Digest>,
        options: &GcOptions,
        report: &mut GcReport,
    ) -> Result<()> {
        let dir = self.root().join("cache/steps");
        for entry in fs::read_dir(&dir).doing("reading", &dir)? {
            let path = entry.doing("reading", &dir)?.path();
            let image = fs::read(&path).ok();
            let image = image.and_then(|text| serde_json::from_slice::<ImageId>(&text).ok());
            if image.is_some_and(|image| kept.contains(&image.tree) && kept.contains(&image.config))
            {
                continue;
            }
            report.steps += 1;
            if !options.dry_run {
                ignore_missing(fs::remove_file(&path)).doing("removing", &path)?;
            }
        }
        Ok(())
    }

    /// What is known of build contexts, where that is old: nothing says whether a context still
    /// exists. One that is missed is read once more.
    fn collect_contexts(&self, options: &GcOptions, report: &mut GcReport) -> Result<()> {
        let dir = self.root().join("cache/contexts");
        if !dir.is_dir() {
            return Ok(());
        }
        let mut caches = Vec::new();
        for entry in fs::read_dir(&dir).doing("reading", &dir)? {
            let entry = entry.doing("reading", &dir)?;
            let meta = entry.metadata().doing("looking at", entry.path())?;
            caches.push((meta.modified().doing("looking at", entry.path())?, meta.len(), entry));
        }
        // The newest first.
        caches.sort_by_key(|(changed, ..)| std::cmp::Reverse(*changed));
        for (nth, (changed, length, entry)) in caches.into_iter().enumerate() {
            if nth < CONTEXTS && changed.elapsed().is_ok_and(|age| age < CONTEXT_AGE) {
                continue;
            }
            report.contexts += 1;
            report.bytes += length;
            if !options.dry_run {
                ignore_missing(fs::remove_file(entry.path())).doing("removing", entry.path())?;
            }
        }
        Ok(())
    }

    /// Images and link trees of trees that are not kept; then copies that no link tree uses.
    fn collect_derived(
        &self,
        kept: &HashSet<Digest>,
        options: &GcOptions,
        report: &mut GcReport,
    ) -> Result<()> {
        for dir in ["images", "links/trees"] {
            let dir = self.root().join(dir);
            for entry in fs::read_dir(&dir).doing("reading", &dir)? {
                let path = entry.doing("reading", &dir)?.path();
                let tree = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
                if tree.is_some_and(|tree: Digest| kept.contains(&tree)) {
                    continue;
                }
                report.images += 1;
                report.bytes += fs::metadata(&path).map_or(0, |meta| meta.len());
                if !options.dry_run {
                    remove_tree(&path).doing("removing", &path)?;
                }
            }
        }
        let copies = self.root().join("links/objects");
        if !copies.is_dir() {
            return Ok(());
        }
        for shard in fs::read_dir(&copies).doing("reading", &copies)? {
            let shard = shard.doing("reading", &copies)?.path();
            collect_copies(&shard, options, report)?;
        }
        Ok(())
    }
}

enum Sniffed {
    Tree,
    Release,
    Other,
}

/// Removes copies in `dir` that have no other name.
fn collect_copies(dir: &Path, options: &GcOptions, report: &mut GcReport) -> Result<()> {
    for entry in fs::read_dir(dir).doing("reading", dir)? {
        let entry = entry.doing("reading", dir)?;
        let meta = entry.metadata().doing("looking at", dir)?;
        if meta.nlink() > 1 {
            continue;
        }
        report.bytes += meta.len();
        if !options.dry_run {
            ignore_missing(fs::remove_file(entry.path())).doing("removing", entry.path())?;
        }
    }
    Ok(())
}
