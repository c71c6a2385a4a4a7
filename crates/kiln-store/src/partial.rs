//! What has come of a large content before its transfer was interrupted: `cache/partial/<64 hex>`,
//! so that the next command goes on from there.
//!
//! A cache that nothing promises: it is not synced, and what a power cut left of it may be anything.
//! Whoever goes on from it checks the whole content at its end. Collection removes what was not
//! added to for a day.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use kiln_core::Digest;
use rustix::fs::{FlockOperation, OFlags, flock};

use crate::error::{Context as _, Result};
use crate::store::{Store, ignore_missing};

/// Bytes from which on it is worth while, that are kept of one content, and of all together.
const LEAST: u64 = 1 << 20;
const MOST: u64 = 8 << 30;
const ALL: u64 = 16 << 30;

/// The beginning of a content, open for whoever fetches it: nobody else has it.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    length: u64,
    /// Whether what comes next is still kept.
    open: bool,
}

impl Store {
    /// What is there of the content of this digest and size, to be gone on with. `None` where that
    /// is not worth while, cannot be done, or somebody else is at it: then nothing is kept.
    pub fn partial(&self, digest: &Digest, size: u64) -> Option<Partial> {
        if size < LEAST {
            return None;
        }
        let folder = self.root().join("cache/partial");
        crate::disk::create_dirs(&folder).ok()?;
        // Another one may become whole meanwhile, and goes.
        let sizes = fs::read_dir(&folder).ok()?.map(|entry| match entry?.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            found => Ok(found?.len()),
        });
        if sizes.sum::<io::Result<u64>>().ok()? > ALL {
            return None;
        }
        Partial::open(folder.join(digest.hex()), size).ok().flatten()
    }

    /// Removes what is there of a content: it was none of it.
    ///
    /// # Errors
    /// I/O errors.
    pub fn forget_partial(&self, digest: &Digest) -> Result<()> {
        let path = self.root().join("cache/partial").join(digest.hex());
        ignore_missing(fs::remove_file(&path)).doing("removing", &path)
    }
}

impl Partial {
    fn open(path: PathBuf, size: u64) -> io::Result<Option<Self>> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut options = File::options();
        let options = options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let file = options.custom_flags(flags.bits().cast_signed()).open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        let meta = file.metadata()?;
        // Whoever had it may have removed it meanwhile.
        if !meta.is_file() || !fs::metadata(&path).is_ok_and(|there| there.ino() == meta.ino()) {
            return Ok(None);
        }
        let mut length = meta.len();
        if length > size {
            file.set_len(0)?;
            length = 0;
        }
        Ok(Some(Self { file, path, length, open: true }))
    }

    /// Bytes that are there.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads what is there now from its start.
    pub fn reader(&self) -> io::Result<impl Read + Send + use<>> {
        Ok(Start { file: self.file.try_clone()?, at: 0, end: self.length })
    }

    /// Adds what came next. When it cannot be kept, because the disk is full for instance, no more
    /// of it is.
    pub fn add(&mut self, bytes: &[u8]) {
        if !self.open {
            return;
        }
        self.open = self.length + bytes.len() as u64 <= MOST
            && self.file.write_all_at(bytes, self.length).is_ok();
        if self.open {
            self.length += bytes.len() as u64;
        } else {
            // A part of them may be there.
            let _ = self.file.set_len(self.length);
        }
    }

    /// Removes it: the content is whole, or was another one.
    pub fn remove(self) {
        // A left-over is collected.
        let _ = fs::remove_file(&self.path);
    }
}

struct Start {
    file: File,
    at: u64,
    end: u64,
}

impl Read for Start {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_is_there_for_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = Digest::of("x");
        assert!(store.partial(&digest, LEAST - 1).is_none());
        let mut first = store.partial(&digest, LEAST).unwrap();
        assert!(store.partial(&digest, LEAST).is_none(), "somebody has it");
        first.add(b"one");
        first.add(b"two");
        drop(first);
        let again = store.partial(&digest, LEAST).unwrap();
        let mut text = String::new();
        again.reader().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), again.length()), ("onetwo", 6));
        again.remove();
        assert_eq!(store.partial(&digest, LEAST).unwrap().length(), 0);
        // More than there can be is not of it; and what is no file of ours is left alone.
        let path = dir.path().join("cache/partial").join(digest.hex());
        fs::write(&path, vec![7; LEAST as usize + 1]).unwrap();
        assert_eq!(store.partial(&digest, LEAST).unwrap().length(), 0);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(store.partial(&digest, LEAST).is_none());
        store.forget_partial(&digest).unwrap();
        store.forget_partial(&digest).unwrap();
        assert!(store.partial(&digest, LEAST).is_some());
    }
}
