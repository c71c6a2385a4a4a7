//! A layout or archive that anybody wrote → an image in the store.
//!
//! Every content is checked against the digest that names it, from the manifest down, and what is
//! unpacked is bounded. Contents that were put before a layer turned out to be wrong are named by
//! nothing, and collected.

use std::cell::Cell;

use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_archive::{ArchiveError, Reader};
use kiln_core::digest::Hasher;
use kiln_core::{Digest, ImageConfig, ImageId};
use kiln_store::Store;
use serde::Deserialize;

use crate::apply::operations;
use crate::document::{Config, Descriptor, Manifest, layer_form};
use crate::error::{Error, Result};
use crate::rootfs::Rootfs;
use crate::select;
pub use crate::source::Source;

/// Layers of one image. Docker stops at 128.
pub(crate) const MAX_LAYERS: usize = 512;

/// Which image of several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Selector {
    /// The only one.
    #[default]
    Any,
    /// The one of this name or `repository:tag`.
    Name(String),
    /// The one whose manifest has this digest.
    Digest(Digest),
}

/// What is taken from anybody.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Bytes that an image may unpack to, all layers together.
    pub unpacked: u64,
    /// Ends the reading when it is set.
    pub cancel: &'a AtomicBool,
}

impl Default for Limits<'_> {
    /// 64 GiB, and nobody who interrupts.
    fn default() -> Self {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Self { unpacked: 64 << 30, cancel: &NEVER }
    }
}

/// Bytes that come of one packed byte, beyond the first gigabyte: more than gzip can do (1,032).
const RATIO: u64 = 1_100;

impl Limits<'_> {
    /// What one archive may unpack to.
    pub(crate) fn archive(&self, bytes: u64) -> kiln_archive::Limits {
        let ratio = Some(RATIO);
        kiln_archive::Limits { bytes, ratio, ..kiln_archive::Limits::default() }
    }
}

/// An image that was read into the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// What it is here.
    pub image: ImageId,
    /// What it was there: the digest of its manifest; in an archive by Docker before 25, which has
    /// none, that of its configuration.
    pub manifest: Digest,
    /// Its name there.
    pub name: Option<String>,
    /// The architecture that its configuration states.
    pub architecture: String,
    /// How many layers it had.
    pub layers: usize,
}

/// Reads the image that `selector` means from the layout folder or archive at `path`.
///
/// # Errors
/// [`Error::Select`] if it is not there or not the only one; [`Error::Mismatch`],
/// [`Error::Malformed`] and [`Error::TooMuch`] for what is damaged or hostile; store and I/O errors.
pub fn read(path: &Path, selector: &Selector, store: &Store) -> Result<ImageId> {
    let limits = Limits::default();
    let source = Source::open(path, store, &limits)?;
    Ok(source.find(selector)?.load(store, &limits)?.image)
}

/// An image that was found, but not read.
#[derive(Debug)]
pub struct Found<'a> {
    source: &'a Source,
    /// As [`Imported::manifest`]: what the result follows from.
    pub manifest: Digest,
    name: Option<String>,
    config: Config,
    layers: Vec<Layer>,
}

/// Where a layer is, and what is known of its compressed form.
#[derive(Debug)]
struct Layer {
    path: String,
    packed: Option<Descriptor>,
}

impl Source {
    /// Finds the image that `selector` means; reads manifest and configuration only.
    ///
    /// # Errors
    /// As [`read`](fn@read).
    pub fn find(&self, selector: &Selector) -> Result<Found<'_>> {
        if self.has("index.json") {
            let (digest, manifest, name) = select::in_layout(self, selector)?;
            return self.found(digest, manifest, name);
        }
        if self.has("manifest.json") {
            return self.find_docker(selector);
        }
        let why = match self.has("repositories") {
            true => "it is of Docker before 1.10; `docker load` and `docker save` it",
            false => "it is no OCI image layout and no archive of `docker save`",
        };
        Err(Error::malformed(&self.name, why))
    }

    fn found(&self, digest: Digest, manifest: Manifest, name: Option<String>) -> Result<Found<'_>> {
        let config = Config::parse(&select::blob(self, &manifest.config)?)?;
        manifest.layers.iter().try_for_each(layer_form)?;
        let layer = |packed: Descriptor| {
            let path = crate::write::blob_path(&packed.digest);
            Layer { path, packed: Some(packed) }
        };
        let layers = manifest.layers.into_iter().map(layer).collect();
        Ok(Found { source: self, manifest: digest, name, config, layers })
    }

    /// An archive of `docker save` before Docker 25. It has no digests but those of the
    /// uncompressed layers.
    fn find_docker(&self, selector: &Selector) -> Result<Found<'_>> {
        let bytes = self.document("manifest.json")?;
        let images: Vec<DockerImage> = serde_json::from_slice(&bytes)
            .map_err(|error| Error::malformed("manifest.json", error))?;
        let called = |image: &DockerImage, name: &str| {
            let same = |tag: &String| tag == name || tag.strip_suffix(":latest") == Some(name);
            image.repo_tags.iter().flatten().any(same)
        };
        let mut meant = Vec::new();
        for image in &images {
            let bytes = self.document(&image.config)?;
            let digest = Digest::of(&bytes);
            let wanted = match selector {
                Selector::Any => true,
                Selector::Name(name) => called(image, name),
                Selector::Digest(wanted) => *wanted == digest,
            };
            if wanted {
                meant.push((image, bytes, digest));
            }
        }
        let known: Vec<&String> =
            images.iter().flat_map(|i| i.repo_tags.iter().flatten()).collect();
        let (image, bytes, digest) = match (meant.pop(), meant.is_empty()) {
            (Some(one), true) => one,
            (none, _) => {
                let count = if none.is_some() { "several images" } else { "no such image" };
                let why = format!("{} has {count}; it has: {known:?}", self.name);
                return Err(Error::Select(why));
            }
        };
        // The file's name is the digest of what should be in it.
        let stem = image.config.trim_end_matches(".json").rsplit('/').next().unwrap_or_default();
        if let Ok(expected) = stem.parse::<Digest>()
            && expected != digest
        {
            let what = format!("`{}` of {}", image.config, self.name);
            return Err(Error::Mismatch { what, expected, found: digest });
        }
        let layers = image.layers.iter().map(|path| Layer { path: path.clone(), packed: None });
        Ok(Found {
            source: self,
            manifest: digest,
            name: image.repo_tags.iter().flatten().next().cloned(),
            config: Config::parse(&bytes)?,
            layers: layers.collect(),
        })
    }
}

/// An image in Docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Found<'_> {
    /// Reads the image into the store, layer by layer. Take a lease first, and flush the store
    /// before anything durable names what comes back.
    ///
    /// # Errors
    /// As [`read`](fn@read).
    pub fn load(self, store: &Store, limits: &Limits<'_>) -> Result<Imported> {
        let diff_ids = self.config.diff_ids(self.layers.len(), MAX_LAYERS)?;
        let mut rootfs = Rootfs::new();
        let budget = Budget { left: Cell::new(limits.unpacked), exceeded: Cell::new(false) };
        for (layer, diff_id) in self.layers.iter().zip(&diff_ids) {
            self.layer(store, &mut rootfs, layer, diff_id, &budget, limits)?;
        }
        let architecture = self.config.architecture.clone();
        let image = ImageId {
            tree: store.put_tree(&rootfs.into_tree()?)?,
            config: store.put_config(&ImageConfig::from(self.config))?,
        };
        Ok(Imported {
            image,
            manifest: self.manifest,
            name: self.name,
            architecture,
            layers: diff_ids.len(),
        })
    }

    fn layer(
        &self,
        store: &Store,
        rootfs: &mut Rootfs,
        layer: &Layer,
        diff_id: &Digest,
        budget: &Budget,
        limits: &Limits<'_>,
    ) -> Result<()> {
        let packed = Tally::default();
        let plain = Tally::default();
        // A size beyond the promised one is a mismatch; no need to read on.
        let promised = layer.packed.as_ref().map_or(u64::MAX - 1, |packed| packed.size);
        let from = self.source.stream(&layer.path)?.take(promised.saturating_add(1));
        let cancel = limits.cancel;
        let mut from = Watched { from, tally: &packed, budget: None, cancel };
        // The budget is of all layers together; here it is for the packing's ratio, and for holes.
        let bounds = limits.archive(budget.left.get());
        let unbounded = kiln_archive::Limits { bytes: u64::MAX, ..bounds };
        let mut applied = match kiln_archive::open(&mut from, unbounded) {
            Ok(from) => {
                let mut from = Watched { from, tally: &plain, budget: Some(budget), cancel };
                rootfs.begin_layer();
                let reader = Reader::new(kiln_archive::plain(&mut from, bounds));
                operations(store, reader, &mut |op| rootfs.apply(op))
            }
            Err(error) => Err(unreadable(&layer.path, error.into())),
        };
        if applied.is_ok() {
            // What follows the compressed stream is part of the blob.
            let rest = io::copy(&mut from, &mut io::sink());
            applied = rest.map(drop).map_err(|source| reading(&layer.path, source));
        }
        if limits.cancel.load(Ordering::Acquire) {
            return Err(Error::Interrupted);
        }
        if budget.exceeded.get() {
            let what = format!("what {} unpacks to", self.source.name);
            return Err(Error::too_much(what, format!("{} bytes", limits.unpacked)));
        }
        match (&applied, &layer.packed) {
            (Ok(()), _) => applied = self.proved(layer, diff_id, &packed, &plain),
            // What was damaged on the way breaks somewhere first: say the cause.
            (Err(_), Some(promised)) => self.whole(&layer.path, promised)?,
            (Err(_), None) => {}
        }
        applied
    }

    /// An error if the blob at `path` is another one than was promised.
    fn whole(&self, path: &str, promised: &Descriptor) -> Result<()> {
        let mut blob = self.source.stream(path)?.take(promised.size.saturating_add(1));
        let mut hashed = Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match blob.read(&mut buffer).map_err(|source| reading(path, source))? {
                0 => break,
                read => hashed.update(&buffer[..read]),
            }
        }
        let (found, expected) = (hashed.finish(), promised.digest);
        let what = format!("layer `{path}` of {}", self.source.name);
        if found == expected { Ok(()) } else { Err(Error::Mismatch { what, expected, found }) }
    }

    fn proved(&self, layer: &Layer, diff_id: &Digest, packed: &Tally, plain: &Tally) -> Result<()> {
        let what = || format!("layer `{}` of {}", layer.path, self.source.name);
        if let Some(promised) = &layer.packed {
            let (found, size) = packed.result();
            if found != promised.digest {
                let expected = promised.digest;
                return Err(Error::Mismatch { what: what(), expected, found });
            }
            if size != promised.size {
                let why = format!("it has {size} bytes, its descriptor says {}", promised.size);
                return Err(Error::malformed(what(), why));
            }
        }
        let (found, _) = plain.result();
        if found != *diff_id {
            let what = format!("{}, uncompressed,", what());
            return Err(Error::Mismatch { what, expected: *diff_id, found });
        }
        Ok(())
    }
}

fn unreadable(path: &str, error: ArchiveError) -> Error {
    match error {
        ArchiveError::Read(source) => reading(path, source),
        other => Error::malformed(format!("layer `{path}`"), other),
    }
}

fn reading(path: &str, source: io::Error) -> Error {
    Error::Io { doing: format!("reading `{path}`"), source }
}

/// What has passed.
#[derive(Default)]
struct Tally {
    hasher: std::cell::RefCell<Hasher>,
    size: Cell<u64>,
}

impl Tally {
    fn result(&self) -> (Digest, u64) {
        (self.hasher.borrow().clone().finish(), self.size.get())
    }
}

/// What may still be unpacked.
struct Budget {
    left: Cell<u64>,
    exceeded: Cell<bool>,
}

/// Hashes, counts and bounds what is read.
struct Watched<'a, R> {
    from: R,
    tally: &'a Tally,
    budget: Option<&'a Budget>,
    cancel: &'a AtomicBool,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        let read = self.from.read(buffer)?;
        if let Some(budget) = self.budget {
            match budget.left.get().checked_sub(read as u64) {
                Some(left) => budget.left.set(left),
                None => {
                    budget.exceeded.set(true);
                    return Err(io::Error::other("it unpacks to too much"));
                }
            }
        }
        self.tally.hasher.borrow_mut().update(&buffer[..read]);
        self.tally.size.set(self.tally.size.get() + read as u64);
        Ok(read)
    }
}
