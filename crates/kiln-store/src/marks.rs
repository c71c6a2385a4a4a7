//! The digests that a collection keeps: on disk, so that their number costs no memory. Only one of
//! 256 parts, told by a digest's first byte, is ever held whole.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use kiln_core::Digest;

use crate::error::{Context as _, Result};

/// Bytes of a part that are kept back before they are written.
const BUFFER: usize = 32 * 128;
/// From this many bytes on, and then whenever it has doubled, a part is rid of what is in it twice.
const COMPACT: u64 = 256 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Marks {
    dir: tempfile::TempDir,
    parts: Vec<Part>,
}

#[derive(Debug, Default)]
struct Part {
    buffer: Vec<u8>,
    written: u64,
    compacted: u64,
}

/// A part, whole.
#[derive(Debug)]
pub(crate) struct Loaded(Vec<[u8; 32]>);

impl Loaded {
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.0.binary_search(digest.as_bytes()).is_ok()
    }
}

impl Marks {
    pub(crate) fn new(dir: tempfile::TempDir) -> Self {
        Self { dir, parts: (0..256).map(|_| Part::default()).collect() }
    }

    fn path(&self, part: u8) -> PathBuf {
        self.dir.path().join(format!("{part:02x}"))
    }

    pub(crate) fn add(&mut self, digest: &Digest) -> Result<()> {
        let number = digest.as_bytes()[0];
        let part = &mut self.parts[usize::from(number)];
        part.buffer.extend_from_slice(digest.as_bytes());
        if part.buffer.len() < BUFFER {
            return Ok(());
        }
        self.write(number)?;
        let part = &self.parts[usize::from(number)];
        if part.written > COMPACT.max(part.compacted * 2) {
            let all = self.load(number)?;
            let path = self.path(number);
            fs::write(&path, all.0.concat()).doing("writing", &path)?;
            let part = &mut self.parts[usize::from(number)];
            part.written = all.0.len() as u64 * 32;
            part.compacted = part.written;
        }
        Ok(())
    }

    fn write(&mut self, number: u8) -> Result<()> {
        let path = self.path(number);
        let part = &mut self.parts[usize::from(number)];
        let file = File::options().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(&part.buffer));
        written.doing("writing", &path)?;
        part.written += part.buffer.len() as u64;
        part.buffer.clear();
        Ok(())
    }

    /// The digests that begin with the byte `number`.
    pub(crate) fn load(&self, number: u8) -> Result<Loaded> {
        let path = self.path(number);
        let part = &self.parts[usize::from(number)];
        let mut bytes = match part.written {
            0 => Vec::new(),
            _ => fs::read(&path).doing("reading", &path)?,
        };
        bytes.extend_from_slice(&part.buffer);
        let (digests, _) = bytes.as_chunks::<32>();
        let mut digests = digests.to_vec();
        digests.sort_unstable();
        digests.dedup();
        Ok(Loaded(digests))
    }
}
