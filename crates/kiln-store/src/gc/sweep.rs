//! What goes, one kind after the other.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use kiln_core::{Digest, ImageId};

use super::{
    BATCH, BATCH_BYTES, CONTEXT_AGE, CONTEXTS, Candidate, Collector, PARTIAL_AGE, entries, look,
    shard_number,
};
use crate::error::{Context as _, Result};

impl Collector<'_> {
    /// Objects, one folder of them after the other.
    pub(super) fn collect_objects(&mut self) -> Result<()> {
        let top = self.store.root().join("objects");
        let mut batch = Vec::new();
        let mut bytes = 0;
        for shard in entries(&top)? {
            let shard = shard?;
            let Some(number) = shard_number(&shard) else {
                let bytes = shard.metadata().map_or(0, |meta| meta.len());
                batch.push(Candidate { path: shard.path(), digest: None, bytes, file: false });
                continue;
            };
            let kept = self.kept.load(number)?;
            for entry in entries(&shard.path())? {
                let entry = entry?;
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
                batch.push(Candidate { path, digest, bytes: gain, file: meta.is_file() });
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
    pub(super) fn collect_steps(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        for entry in entries(&self.store.root().join("cache/steps"))? {
            let entry = entry?;
            let path = entry.path();
            if self.step_stays(&path)? {
                continue;
            }
            batch.push(Candidate { path, digest: None, bytes: 0, file: false });
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
    pub(super) fn drop_fresh_steps(&mut self) -> Result<()> {
        let since = self.began - Duration::from_secs(2);
        for entry in entries(&self.store.root().join("cache/steps"))? {
            let entry = entry?;
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
    pub(super) fn collect_derived(&mut self) -> Result<()> {
        for dir in ["images", "links/trees"] {
            let mut batch = Vec::new();
            for entry in entries(&self.store.root().join(dir))? {
                let entry = entry?;
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
                    self.remove(&mut vec![Candidate { path, digest: tree, bytes, file: false }])?;
                    continue;
                }
                batch.push(Candidate { path, digest: tree, bytes, file: false });
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
    pub(super) fn collect_spares(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        for entry in entries(&self.store.root().join("spare"))? {
            let entry = entry?;
            let path = entry.path();
            let release = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(release) = release
                && self.is_kept(&release)?
            {
                continue;
            }
            batch.push(Candidate { path, digest: release, bytes: 0, file: false });
        }
        self.remove(&mut batch)?;
        Ok(())
    }

    /// Copies that no link tree uses any more.
    pub(super) fn collect_copies(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        for shard in entries(&self.store.root().join("links/objects"))? {
            let shard = shard?;
            for entry in entries(&shard.path())? {
                let entry = entry?;
                let path = entry.path();
                let Some(meta) = look(&path)? else { continue };
                if meta.nlink() > 1 {
                    continue;
                }
                batch.push(Candidate { path, digest: None, bytes: meta.len(), file: false });
                if batch.len() >= BATCH {
                    self.remove(&mut batch)?;
                }
            }
        }
        self.remove(&mut batch)?;
        Ok(())
    }

    /// Folders of contexts that were fetched and that no bake used for a while. What they are made
    /// of is kept by what pins it.
    fn collect_checkouts(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        for entry in entries(&self.store.root().join("cache/checkouts"))? {
            let path = entry?.path();
            let Some(meta) = look(&path)? else { continue };
            let used = meta.modified().doing("looking at", &path)?;
            if used.elapsed().is_ok_and(|age| age < CONTEXT_AGE) {
                continue;
            }
            batch.push(Candidate { path, digest: None, bytes: 0, file: false });
        }
        self.report.contexts += self.remove(&mut batch)?;
        Ok(())
    }

    /// What is known of build contexts, where that is old: nothing says whether a context still
    /// exists. One that is missed is read once more.
    pub(super) fn collect_contexts(&mut self) -> Result<()> {
        let mut caches = Vec::new();
        for entry in entries(&self.store.root().join("cache/contexts"))? {
            let entry = entry?;
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
            batch.push(Candidate { path, digest: None, bytes, file: false });
        }
        self.report.contexts += self.remove(&mut batch)?;
        self.collect_checkouts()?;
        self.collect_partials()
    }

    /// What has come of contents whose transfer nobody has gone on with for a while.
    fn collect_partials(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        for entry in entries(&self.store.root().join("cache/partial"))? {
            let path = entry?.path();
            let Some(meta) = look(&path)? else { continue };
            let changed = meta.modified().doing("looking at", &path)?;
            if changed.elapsed().is_ok_and(|age| age < PARTIAL_AGE) {
                continue;
            }
            batch.push(Candidate { path, digest: None, bytes: meta.len(), file: false });
        }
        self.remove(&mut batch)?;
        Ok(())
    }
}
