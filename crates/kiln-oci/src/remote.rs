//! An image of a registry → an image in the store: what a name names, and its layers, fetched side
//! by side and laid over one another in their order.
//!
//! How bytes come here is the caller's: [`Remote`]. A layer is read once, as it comes, and what it
//! does is kept as a listing; the next image that has it fetches nothing of it.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_archive::Reader;
use kiln_core::digest::Hasher;
use kiln_core::tree::Kind;
use kiln_core::{Digest, ImageConfig, ImageId, Tree};
use kiln_store::{Partial, Store};

use crate::apply::operations;
use crate::document::{Config, Descriptor, Document, Manifest, layer_form};
use crate::error::{Doing as _, Error, Result};
use crate::listing::{self, Listing};
use crate::platform::Platform;
use crate::read::{Limits, MAX_LAYERS};
use crate::rootfs::Rootfs;

/// Layers of one image that are fetched at once.
const AT_ONCE: usize = 4;

/// Indexes and manifests that are looked at for one name.
const MAX_DOCUMENTS: usize = 200;

/// How deep indexes may lie in one another.
const MAX_DEPTH: usize = 4;

/// Bytes that are read of a layer behind the end of what was unpacked, or behind what was wrong.
const REST: u64 = 64 << 20;

/// What a caller's means can fail with.
pub type RemoteError = Box<dyn std::error::Error + Send + Sync>;

/// Where documents and layers come from.
pub trait Remote: Sync {
    /// A document: exactly what has this digest, and has this size.
    ///
    /// # Errors
    /// It could not be had.
    fn document(&self, form: Form, digest: &Digest, size: u64) -> Result<Vec<u8>, RemoteError>;

    /// A layer as a stream, from where it was begun, which ends with an error if all of it was not
    /// what has this digest and size.
    ///
    /// # Errors
    /// It could not be had.
    fn blob(
        &self,
        digest: &Digest,
        size: u64,
        begun: Begun,
    ) -> Result<Box<dyn Read + Send + '_>, RemoteError>;
}

/// What is there of a layer already: its first bytes, fewer than it has.
#[derive(Debug, Clone, Default)]
pub struct Begun {
    /// How many.
    pub bytes: u64,
    /// It has seen them.
    pub hasher: Hasher,
}

/// What a document is; registries keep manifests apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A manifest or an index.
    Manifest,
    /// The configuration of an image.
    Config,
}

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It is known already.
    Known,
    /// So many of its packed bytes have come.
    Come(u64),
    /// All of it is in the store.
    Done,
    /// It failed.
    Failed,
}

/// A layer in what is told.
#[derive(Debug, Clone, Copy)]
pub struct LayerName {
    /// Of its packed form.
    pub digest: Digest,
    /// Packed bytes.
    pub size: u64,
}

/// Is told what happens, from several threads.
pub type Told<'a> = dyn Fn(&LayerName, Moment) + Sync + 'a;

/// One platform that a name has an image for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// For which machines.
    pub platform: Platform,
    /// The manifest's digest.
    pub manifest: Digest,
    /// The manifest's size in bytes.
    pub size: u64,
}

/// An image that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What it is here.
    pub image: ImageId,
    /// What else has to stay in the store, that the layers need not be fetched again.
    pub listings: BTreeSet<Digest>,
    /// Layers that came.
    pub fetched: usize,
    /// Layers that were there.
    pub known: usize,
    /// Packed bytes that came.
    pub bytes: u64,
}

/// Key of the step that makes an image of a manifest, whatever carried it.
pub fn image_key(manifest: &Digest) -> Digest {
    // Raise it when the same manifest would be read into another image.
    Digest::of(format!("oci image 2\n{manifest}"))
}

/// Key of the step that reads a layer. It leaves an empty tree, and in place of a configuration
/// what the layer does.
fn layer_key(packed: &Digest) -> Digest {
    Digest::of(format!("oci layer 1\n{packed}"))
}

/// The platforms that a document, a manifest or an index, has images for, without repeats: of two
/// for the same, the first counts. What is no image, or not for Linux, is left out.
///
/// # Errors
/// It cannot be read, or what it names cannot be had.
pub fn offers(remote: &dyn Remote, digest: &Digest, bytes: &[u8]) -> Result<Vec<Offered>> {
    let mut found = Offers { remote, seen: 0, offers: Vec::new() };
    found.of(digest, bytes, None, 0)?;
    Ok(found.offers)
}

struct Offers<'a> {
    remote: &'a dyn Remote,
    seen: usize,
    offers: Vec<Offered>,
}

impl Offers<'_> {
    fn of(
        &mut self,
        digest: &Digest,
        bytes: &[u8],
        said: Option<&Platform>,
        depth: usize,
    ) -> Result<()> {
        self.seen += 1;
        if self.seen > MAX_DOCUMENTS || depth > MAX_DEPTH {
            let limit = format!("{MAX_DEPTH} levels and {MAX_DOCUMENTS} documents");
            return Err(Error::too_much("the nesting of its indexes", limit));
        }
        match Document::parse(&format!("manifest {}", digest.short()), bytes)? {
            Document::Manifest(manifest) => {
                let platform = match said {
                    Some(platform) => platform.clone(),
                    None => config(self.remote, &manifest)?.platform(),
                };
                self.add(platform, *digest, bytes.len() as u64);
            }
            Document::Index(index) => {
                for entry in index.manifests.iter().filter(|entry| entry.may_be_image()) {
                    match &entry.platform {
                        Some(platform) if !entry.is_index() => {
                            self.add(platform.clone(), entry.digest, entry.size);
                        }
                        said => {
                            let bytes = document(self.remote, Form::Manifest, entry)?;
                            self.of(&entry.digest, &bytes, said.as_ref(), depth + 1)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, platform: Platform, manifest: Digest, size: u64) {
        let platform = platform.normalised();
        let known = self.offers.iter().any(|offer| offer.platform == platform);
        if platform.os == "linux" && !known {
            self.offers.push(Offered { platform, manifest, size });
        }
    }
}

fn document(remote: &dyn Remote, form: Form, entry: &Descriptor) -> Result<Vec<u8>> {
    let what = || format!("document {}", entry.digest.short());
    remote.document(form, &entry.digest, entry.size).map_err(|error| Error::remote(what(), error))
}

fn config(remote: &dyn Remote, manifest: &Manifest) -> Result<Config> {
    let bytes = document(remote, Form::Config, &manifest.config)?;
    Config::parse(&bytes)
}

/// Fetches the image whose manifest has this digest and size into the store. Take a lease first,
/// and flush the store before anything durable names what comes back.
///
/// # Errors
/// [`Error::Remote`] for what could not be had; [`Error::Malformed`], [`Error::Mismatch`] and
/// [`Error::TooMuch`] for what is damaged, hostile or not for this machine; store errors.
pub fn fetch(
    store: &Store,
    remote: &dyn Remote,
    manifest: &Digest,
    size: u64,
    limits: &Limits<'_>,
    told: &Told<'_>,
) -> Result<Fetched> {
    let entry = Descriptor::new("", *manifest, size);
    let bytes = document(remote, Form::Manifest, &entry)?;
    let what = format!("manifest {}", manifest.short());
    let Document::Manifest(document) = Document::parse(&what, &bytes)? else {
        return Err(Error::malformed(what, "it is an index"));
    };
    for layer in &document.layers {
        layer_form(layer)?;
    }
    let config = config(remote, &document)?;
    let diff_ids = config.diff_ids(document.layers.len(), MAX_LAYERS)?;
    let layers: Vec<(&Descriptor, Digest)> = document.layers.iter().zip(diff_ids).collect();
    let pull = Pull {
        store,
        remote,
        limits,
        told,
        left: AtomicU64::new(limits.unpacked),
        exceeded: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        came: AtomicUsize::new(0),
        bytes: AtomicU64::new(0),
        empty: store.put_tree(&Tree::new())?,
    };
    let mut listings = pull.layers(&layers, false)?;
    let believed = pull.came.load(Ordering::Relaxed) < layers.len();
    let mut laid = pull.laid(&listings);
    let anew = match &laid {
        // Something was collected that only the layer knows: it was hidden in all other images.
        Ok(tree) => believed && pull.lacks(tree)?,
        Err(error) => believed && is_damage(error),
    };
    if anew {
        listings = pull.layers(&layers, true)?;
        laid = pull.laid(&listings);
    }
    let tree = laid?;
    let fetched = pull.came.load(Ordering::Relaxed).min(layers.len());
    let bytes = pull.bytes.load(Ordering::Relaxed);
    let known = layers.len().saturating_sub(fetched);
    let config = ImageConfig::from(config);
    let image = ImageId { tree: store.keep_tree(tree.into())?, config: store.put_config(&config)? };
    let mut kept: BTreeSet<Digest> = listings.into_iter().collect();
    kept.insert(pull.empty);
    Ok(Fetched { image, listings: kept, fetched, known, bytes })
}

/// One image on its way.
struct Pull<'a> {
    store: &'a Store,
    remote: &'a dyn Remote,
    limits: &'a Limits<'a>,
    told: &'a Told<'a>,
    /// Bytes that may still be unpacked.
    left: AtomicU64,
    exceeded: AtomicBool,
    /// Another layer failed.
    stop: AtomicBool,
    came: AtomicUsize,
    bytes: AtomicU64,
    empty: Digest,
}

impl Pull<'_> {
    /// The listings of all layers, in their order. `anew`: what is known is not believed.
    fn layers(&self, layers: &[(&Descriptor, Digest)], anew: bool) -> Result<Vec<Digest>> {
        // All of them may have to be unpacked now, whatever was before.
        self.left.store(self.limits.unpacked, Ordering::Relaxed);
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<(usize, Result<Digest>)>> = Mutex::default();
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some((layer, diff_id)) = layers.get(at) else { return };
                if self.is_over() {
                    return;
                }
                let result = self.layer(layer, diff_id, anew);
                if result.is_err() {
                    self.stop.store(true, Ordering::Release);
                }
                results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
            }
        };
        std::thread::scope(|scope| {
            let threads = layers.len().min(AT_ONCE);
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            threads.into_iter().for_each(|thread| drop(thread.join()));
        });
        if self.limits.cancel.load(Ordering::Acquire) {
            return Err(Error::Interrupted);
        }
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(at, _)| *at);
        let mut listings = Vec::with_capacity(layers.len());
        let mut failed: Vec<Error> = Vec::new();
        for (_, result) in results {
            match result {
                Ok(listing) => listings.push(listing),
                Err(error) => failed.push(error),
            }
        }
        // Layers that were only stopped are no cause.
        let cause = failed.iter().position(|error| !matches!(error, Error::Interrupted));
        if !failed.is_empty() {
            return Err(failed.swap_remove(cause.unwrap_or(0)));
        }
        if listings.len() == layers.len() { Ok(listings) } else { Err(Error::Interrupted) }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.limits.cancel.load(Ordering::Acquire)
    }

    /// The listing of a layer. Whoever wants it at the same time gets the same one.
    fn layer(&self, layer: &Descriptor, diff_id: &Digest, anew: bool) -> Result<Digest> {
        let key = layer_key(&layer.digest);
        let turn = self.store.step_turn(&key, &|| self.is_over());
        let Some(_turn) = turn else { return Err(Error::Interrupted) };
        let name = LayerName { digest: layer.digest, size: layer.size };
        if !anew && let Some(known) = self.store.step_result(&key) {
            match listing::diff_id(self.store, &known.config, diff_id) {
                Ok(found) if found == *diff_id => {
                    (self.told)(&name, Moment::Known);
                    return Ok(known.config);
                }
                Ok(found) => return Err(mismatch(layer, *diff_id, found)),
                // As if it were not known: the layer has all that it said.
                Err(error) if is_damage(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let read = self.read(layer, diff_id, &name);
        (self.told)(&name, if read.is_ok() { Moment::Done } else { Moment::Failed });
        let config = read?.put(self.store)?;
        self.store.set_step_result(&key, &ImageId { tree: self.empty, config })?;
        self.came.fetch_add(1, Ordering::Relaxed);
        Ok(config)
    }

    /// Reads a layer as it comes, and goes on from where it was interrupted.
    fn read(&self, layer: &Descriptor, diff_id: &Digest, name: &LayerName) -> Result<Listing> {
        let kept = self.store.partial(&layer.digest, layer.size);
        let resumed = kept.as_ref().is_some_and(|kept| kept.length() > 0);
        let left = self.left.load(Ordering::Relaxed);
        match self.read_from(layer, diff_id, name, kept) {
            // What was kept may have been damaged since: that is not the registry's fault.
            Err((_, Fault::Content)) if resumed && !self.is_over() => {
                // Others unpack meanwhile; what they took in between is theirs again, once.
                self.left.fetch_max(left, Ordering::Relaxed);
                let kept = self.store.partial(&layer.digest, layer.size);
                self.read_from(layer, diff_id, name, kept).map_err(|(error, _)| error)
            }
            read => read.map_err(|(error, _)| error),
        }
    }

    /// The same from what is there. Only what is right so far is there afterwards.
    fn read_from(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        name: &LayerName,
        kept: Option<Partial>,
    ) -> Result<Listing, (Error, Fault)> {
        let transfer = |error| (error, Fault::Transfer);
        let (kept, begun) = match kept.map(|kept| (begun(&kept), kept)) {
            Some((Ok(begun), kept)) => (Some(kept), begun),
            // What cannot be read is of no use.
            Some((Err(_), kept)) => {
                kept.remove();
                (None, Begun::default())
            }
            None => (None, Begun::default()),
        };
        let had = begun.bytes;
        let packed = Packed::new(self, layer, name, kept, begun);
        let mut packed = packed.map_err(transfer)?;
        let read = self.take(layer, diff_id, &mut packed);
        self.bytes.fetch_add(packed.come.saturating_sub(had), Ordering::Relaxed);
        // All of it has come and is wrong, or what has come is: but not when only the line broke.
        let content = packed.failed.is_none() || packed.come >= layer.size;
        let fault = if content && !self.is_over() { Fault::Content } else { Fault::Transfer };
        if let Some(kept) = packed.kept.filter(|_| read.is_ok() || fault == Fault::Content) {
            kept.remove();
        }
        read.map_err(|error| (error, fault))
    }

    /// Takes in all of a layer.
    fn take(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        packed: &mut Packed<'_, '_>,
    ) -> Result<Listing> {
        let what = || format!("layer {}", layer.digest.short());
        let mut listing = Listing::new(self.store, diff_id)?;
        let mut hasher = Hasher::new();
        let unpacked = self.unpack(packed, &mut hasher, &mut listing);
        // What follows the compressed stream is part of the blob, and only at its end is it known
        // whether it was the right one: an error there is the cause of any other.
        let rest = io::copy(&mut packed.by_ref().take(REST + 1), &mut io::sink());
        if self.is_over() {
            return Err(Error::Interrupted);
        }
        let (rest, broken) = match rest {
            Ok(rest) => (rest, None),
            Err(error) => (0, Some(error)),
        };
        if let Some(error) = packed.failed.as_mut().map(take_error).or(broken) {
            return Err(Error::remote(what(), error.into()));
        }
        if self.exceeded.load(Ordering::Acquire) {
            let limit = format!("{} bytes", self.limits.unpacked);
            return Err(Error::too_much("what the image unpacks to", limit));
        }
        unpacked.map_err(|error| error.in_layer(&layer.digest))?;
        if rest > REST {
            let what = format!("what follows the archive in {}", what());
            return Err(Error::too_much(what, format!("{} MiB", REST >> 20)));
        }
        let found = hasher.finish();
        if found == *diff_id { Ok(listing) } else { Err(mismatch(layer, *diff_id, found)) }
    }

    fn unpack(
        &self,
        packed: &mut Packed<'_, '_>,
        hasher: &mut Hasher,
        listing: &mut Listing,
    ) -> Result<()> {
        // The budget is of all layers together; here it is for the packing's ratio, and for holes.
        let bounds = self.limits.archive(self.left.load(Ordering::Relaxed));
        let unbounded = kiln_archive::Limits { bytes: u64::MAX, ..bounds };
        let from = kiln_archive::open(packed, unbounded)
            .map_err(|error| crate::entry::failed(error.into()))?;
        let mut plain = Plain { from, pull: self, hasher };
        let reader = Reader::new(kiln_archive::plain(&mut plain, bounds));
        operations(self.store, reader, &mut |op| listing.push(&op))
    }

    /// All layers laid over one another.
    fn laid(&self, listings: &[Digest]) -> Result<Tree> {
        let mut rootfs = Rootfs::new();
        for listing in listings {
            listing::replay(self.store, listing, &mut rootfs)?;
        }
        rootfs.into_tree()
    }

    /// Whether the store lacks a content of `tree`, which can only be of a layer that was known.
    fn lacks(&self, tree: &Tree) -> Result<bool> {
        for node in tree.entries.values() {
            if let Kind::File { digest, .. } = &node.kind
                && !self.store.seems_whole(digest)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether what a layer is known by is gone, damaged, or of another version of Kiln: then the layer
/// is read again. What cannot be asked is not damaged.
fn is_damage(error: &Error) -> bool {
    use kiln_store::Error as Stored;
    let stored = matches!(error, Error::Store(Stored::Missing(_) | Stored::Corrupt { .. }));
    stored || matches!(error, Error::Malformed { what, .. } if what == listing::NAME)
}

fn mismatch(layer: &Descriptor, expected: Digest, found: Digest) -> Error {
    let what = format!("layer {}, uncompressed,", layer.digest.short());
    Error::Mismatch { what, expected, found }
}

/// Why a layer could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is not what it should be.
    Content,
    /// Not all of it has come.
    Transfer,
}

/// What is there, and a hasher that has seen it.
fn begun(kept: &Partial) -> io::Result<Begun> {
    let mut begun = Begun { bytes: kept.length(), hasher: Hasher::new() };
    let mut from = kept.reader()?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(begun),
            read => begun.hasher.update(&buffer[..read]),
        }
    }
}

/// An error for the caller; one of its kind stays.
fn take_error(error: &mut io::Error) -> io::Error {
    let kind = error.kind();
    std::mem::replace(error, kind.into())
}

/// A packed layer: what is there of it, and then what comes, which is kept until all is well. It is
/// counted, told of, and given up when nobody waits any more.
struct Packed<'a, 'b> {
    /// What was there; `None` when it has been read.
    before: Option<Box<dyn Read + Send + 'a>>,
    /// Asked for when what was there has been read: no connection has to wait for that.
    from: Option<Box<dyn Read + Send + 'a>>,
    /// What was there, until then.
    begun: Begun,
    kept: Option<Partial>,
    pull: &'a Pull<'b>,
    name: &'a LayerName,
    come: u64,
    /// What the sender failed with.
    failed: Option<io::Error>,
}

impl<'a, 'b> Packed<'a, 'b> {
    fn new(
        pull: &'a Pull<'b>,
        layer: &Descriptor,
        name: &'a LayerName,
        kept: Option<Partial>,
        begun: Begun,
    ) -> Result<Self> {
        let what = || format!("layer {}", layer.digest.short());
        let mut packed =
            Self { before: None, from: None, begun, kept, pull, name, come: 0, failed: None };
        if let Some(kept) = packed.kept.as_ref().filter(|_| packed.begun.bytes > 0) {
            packed.before = Some(Box::new(kept.reader().doing(what)?));
        } else {
            let from = packed.open().map_err(|error| Error::remote(what(), error))?;
            packed.from = Some(from);
        }
        Ok(packed)
    }

    /// What is still to come.
    fn open(&mut self) -> std::result::Result<Box<dyn Read + Send + 'a>, RemoteError> {
        let LayerName { digest, size } = *self.name;
        let begun = std::mem::take(&mut self.begun);
        if begun.bytes < size || begun.bytes == 0 {
            return self.pull.remote.blob(&digest, size, begun);
        }
        // All of it had come, and nothing more is asked for.
        Ok(Box::new(Proved(Some((digest, begun.hasher.finish())))))
    }

    fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(before) = &mut self.before {
            let read = before.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.before = None;
        }
        if self.from.is_none() {
            self.from = Some(self.open().map_err(io::Error::other)?);
        }
        let Some(from) = &mut self.from else { return Ok(0) };
        let read = from.read(buffer)?;
        if let Some(kept) = &mut self.kept {
            kept.add(&buffer[..read]);
        }
        Ok(read)
    }
}

/// The end of a content: an error if it was another one.
struct Proved(Option<(Digest, Digest)>);

impl Read for Proved {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match self.0.take() {
            Some((expected, found)) if expected != found => {
                Err(io::Error::other(format!("what has come of it is {found}, not {expected}")))
            }
            _ => Ok(0),
        }
    }
}

impl Read for Packed<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.pull.is_over() {
            return Err(io::Error::other("interrupted"));
        }
        // Nothing is asked for again behind what failed.
        if let Some(failed) = &self.failed {
            return Err(failed.kind().into());
        }
        match self.next(buffer) {
            Ok(read) => {
                self.come += read as u64;
                (self.pull.told)(self.name, Moment::Come(self.come));
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let again = io::Error::new(error.kind(), error.to_string());
                self.failed.get_or_insert(error);
                Err(again)
            }
        }
    }
}

/// The uncompressed layer: hashed and bounded.
struct Plain<'a, 'b, R> {
    from: R,
    pull: &'a Pull<'b>,
    hasher: &'a mut Hasher,
}

impl<R: Read> Read for Plain<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        let taken = self.pull.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(read as u64)
        });
        if taken.is_err() {
            self.pull.exceeded.store(true, Ordering::Release);
            return Err(io::Error::other("it unpacks to too much"));
        }
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
