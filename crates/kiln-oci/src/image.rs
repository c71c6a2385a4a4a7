//! One image of the store → layer, configuration and manifest.
//!
//! One layer for each image: it follows from the tree alone. Layers shared between images would
//! follow from which base was there when, and the manifest's digest with them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_core::digest::Hasher;
use kiln_core::{Digest, ImageId};
use kiln_store::Store;

use crate::compress::{Compression, Compressor};
use crate::document::{self, Config, Descriptor, History, Manifest, Rootfs, Run};
use crate::error::{Doing as _, Error, Result};
use crate::{layer, platform};

/// An image in the form in which it travels. The layer's bytes are in a file of the caller's.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    pub image: ImageId,
    pub layer: Descriptor,
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    pub config: Descriptor,
    pub config_bytes: Vec<u8>,
    pub manifest: Descriptor,
    pub manifest_bytes: Vec<u8>,
}

/// Encodes `image`; its layer goes into `spool`.
pub(crate) fn encode(
    store: &Store,
    image: &ImageId,
    compression: Compression,
    spool: &mut File,
    cancel: &AtomicBool,
) -> Result<Encoded> {
    let tree = store.get_tree(&image.tree)?;
    let config = store.get_config(&image.config)?;
    let architecture = platform::architecture(store, &tree)?;

    let packed = Hashing::new(spool);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut plain = Hashing::new(Compressor::new(packed, compression, workers));
    let written = layer::write(store, &tree, &mut Until { out: &mut plain, cancel });
    if cancel.load(Ordering::Acquire) {
        return Err(Error::Interrupted);
    }
    written?;
    let (diff_id, _, compressor) = plain.finish();
    let (digest, size, _) = compressor.finish().doing(|| "writing the layer".into())?.finish();
    let layer = Descriptor::new(compression.media_type(), digest, size);

    let config = Config {
        created: Some(document::CREATED.to_owned()),
        author: config.author.clone(),
        architecture: architecture.to_owned(),
        os: "linux".to_owned(),
        variant: None,
        config: Some(Run::from(config)),
        rootfs: Rootfs { kind: "layers".to_owned(), diff_ids: Some(vec![diff_id]) },
        history: Some(vec![History {
            created: Some(document::CREATED.to_owned()),
            created_by: Some("kiln".to_owned()),
        }]),
    };
    let config_bytes = document::bytes(&config);
    let config = Descriptor::of(document::CONFIG, &config_bytes);
    let annotations = BTreeMap::from([
        (document::CONFIG_DIGEST.to_owned(), image.config.to_string()),
        (document::TREE.to_owned(), image.tree.to_string()),
    ]);
    let manifest_bytes = document::bytes(&Manifest {
        schema_version: 2,
        media_type: document::MANIFEST.to_owned(),
        config: config.clone(),
        layers: vec![layer.clone()],
        annotations: Some(annotations),
    });
    let mut manifest = Descriptor::of(document::MANIFEST, &manifest_bytes);
    manifest.platform = Some(platform::Platform {
        architecture: architecture.to_owned(),
        os: "linux".to_owned(),
        variant: None,
    });
    Ok(Encoded { image: *image, layer, diff_id, config, config_bytes, manifest, manifest_bytes })
}

/// Hashes and counts what passes.
struct Hashing<W> {
    out: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(out: W) -> Self {
        Self { out, hasher: Hasher::new(), size: 0 }
    }

    fn finish(self) -> (Digest, u64, W) {
        (self.hasher.finish(), self.size, self.out)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes until the flag is set.
struct Until<'a> {
    out: &'a mut dyn Write,
    cancel: &'a AtomicBool,
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
