//! Bytes → blocks of a fixed size, each compressed by itself on whatever core is free, joined in
//! order.
//!
//! Both gzip (RFC 1952) and Zstandard (RFC 8878) define that members, or frames, one after another
//! are one stream, so the result does not depend on how many cores there were. The encoders are
//! pinned to exact versions in the workspace's `Cargo.toml`, and tests pin their bytes: another
//! version may write others.

use std::io::{self, Write};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use libdeflater::CompressionLvl;
use serde::{Deserialize, Serialize};

/// Bytes of input in one gzip member. The window is 32 KiB, so larger members gain little.
const GZIP_BLOCK: usize = 1 << 20;

/// Bytes of input in one Zstandard frame. The window of [`ZSTD_LEVEL`] is 2 MiB.
const ZSTD_BLOCK: usize = 4 << 20;

/// libdeflate's level 5 packs a little better than `gzip -6`, several times as fast as the encoders
/// in Rust (`docs/export.md` has the figures).
const GZIP_LEVEL: i32 = 5;

/// Zstandard's default level. Its match finder has no variants for different processors, unlike
/// those of levels 5 to 12.
const ZSTD_LEVEL: i32 = 3;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// What everything reads.
    #[default]
    Gzip,
    /// Smaller and faster; read by containerd, podman, and Docker since 23.
    Zstd,
    /// As it is.
    None,
}

impl Compression {
    /// The word for it on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::None => "none",
        }
    }

    /// The media type of a layer.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::None => "application/vnd.oci.image.layer.v1.tar",
        }
    }

    fn block(self) -> usize {
        match self {
            Self::Gzip | Self::None => GZIP_BLOCK,
            Self::Zstd => ZSTD_BLOCK,
        }
    }

    /// One whole member of the stream.
    fn member(self, block: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => gzip_member(&block),
            Self::Zstd => zstd::bulk::compress(&block, ZSTD_LEVEL),
            Self::None => Ok(block),
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Gzip, Self::Zstd, Self::None]
            .into_iter()
            .find(|compression| compression.word() == text)
            .ok_or_else(|| format!("`{text}` is none of gzip, zstd, none"))
    }
}

/// A gzip member without name and time, of an unknown system (255): nothing of the machine.
fn gzip_member(block: &[u8]) -> io::Result<Vec<u8>> {
    let level = CompressionLvl::new(GZIP_LEVEL).map_err(|_| io::Error::other("no such level"))?;
    let mut encoder = libdeflater::Compressor::new(level);
    let mut member = vec![0; encoder.gzip_compress_bound(block.len())];
    let size = encoder.gzip_compress(block, &mut member).map_err(io::Error::other)?;
    member.truncate(size);
    Ok(member)
}

type Job = (Vec<u8>, SyncSender<io::Result<Vec<u8>>>);

/// Compresses what is written to it into `out`. Ends with [`Compressor::finish`].
pub struct Compressor<W: Write> {
    out: W,
    compression: Compression,
    block: Vec<u8>,
    began: bool,
    jobs: Option<SyncSender<Job>>,
    waiting: std::collections::VecDeque<Receiver<io::Result<Vec<u8>>>>,
    workers: Vec<JoinHandle<()>>,
}

impl<W: Write> std::fmt::Debug for Compressor<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").field("compression", &self.compression).finish_non_exhaustive()
    }
}

impl<W: Write> Compressor<W> {
    /// Compresses with `workers` threads beside the caller's. The bytes are the same for any
    /// number; memory is some three blocks for each.
    pub fn new(out: W, compression: Compression, workers: usize) -> Self {
        let count = if compression == Compression::None { 0 } else { workers.max(1) };
        let (jobs, queue) = sync_channel::<Job>(count);
        let queue = Arc::new(Mutex::new(queue));
        let work = |queue: Arc<Mutex<Receiver<Job>>>| {
            move || {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((block, done)) = job else { return };
                    // Nobody waits any more when the writing has failed.
                    let _ = done.send(compression.member(block));
                }
            }
        };
        let workers = (0..count).map(|_| std::thread::spawn(work(Arc::clone(&queue)))).collect();
        Self {
            out,
            compression,
            block: Vec::new(),
            began: false,
            jobs: Some(jobs),
            waiting: Default::default(),
            workers,
        }
    }

    /// Compresses what is left and gives `out` back.
    ///
    /// # Errors
    /// Those of writing to `out`.
    pub fn finish(mut self) -> io::Result<W> {
        // An empty input still is one member: readers want a header.
        if !self.block.is_empty() || !self.began {
            self.submit()?;
        }
        while !self.waiting.is_empty() {
            self.take()?;
        }
        self.jobs = None;
        for worker in std::mem::take(&mut self.workers) {
            let _ = worker.join();
        }
        Ok(self.out)
    }

    fn submit(&mut self) -> io::Result<()> {
        self.began = true;
        let block = std::mem::take(&mut self.block);
        if self.workers.is_empty() {
            return self.out.write_all(&block);
        }
        if self.waiting.len() > 2 * self.workers.len() {
            self.take()?;
        }
        let (done, result) = sync_channel(1);
        let gone = || io::Error::other("a compressing thread ended");
        self.jobs.as_ref().ok_or_else(gone)?.send((block, done)).map_err(|_| gone())?;
        self.waiting.push_back(result);
        Ok(())
    }

    /// Writes the oldest block, waiting for it if need be.
    fn take(&mut self) -> io::Result<()> {
        let Some(result) = self.waiting.pop_front() else { return Ok(()) };
        let member =
            result.recv().map_err(|_| io::Error::other("a compressing thread ended"))??;
        self.out.write_all(&member)
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.capacity() == 0 {
            self.block.reserve_exact(self.compression.block());
        }
        let room = self.compression.block() - self.block.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.block.extend_from_slice(taken);
        if self.block.len() == self.compression.block() {
            self.submit()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // A block is whole or the bytes would depend on when somebody flushed.
        Ok(())
    }
}
