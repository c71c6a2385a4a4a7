//! What is known of a context's files, so that an unchanged file is only stat'ed.
//!
//! One file per context under the store's `cache/contexts/`. It is a cache: it is written without
//! waiting for the disk, carries its own checksum, and whatever is wrong with it makes it empty.
//!
//! A file whose times are too close to the moment at which it was hashed could change again within
//! the same tick of the clock and look the same. As Git does with such *racily clean* entries, it
//! is not remembered at all.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_core::Digest;

const MAGIC: &[u8; 8] = b"kilnst01";
/// Length of an entry without its path.
const FIXED: usize = 2 + 6 * 8 + 32;

/// What `stat` says of a file, as far as it tells whether the content changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    mtime: i64,
    ctime: i64,
    size: u64,
    ino: u64,
    dev: u64,
    mode: u64,
}

impl Stamp {
    /// From a file's metadata.
    pub fn of(meta: &std::fs::Metadata) -> Self {
        let time = |seconds: i64, nanoseconds: i64| {
            seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
        };
        Self {
            mtime: time(meta.mtime(), meta.mtime_nsec()),
            ctime: time(meta.ctime(), meta.ctime_nsec()),
            size: meta.size(),
            ino: meta.ino(),
            dev: meta.dev(),
            mode: u64::from(meta.mode()),
        }
    }

    /// Whether a later change must show in the times, given when hashing began.
    pub fn settled(&self, hashed_at: SystemTime) -> bool {
        let Ok(now) = hashed_at.duration_since(UNIX_EPOCH) else { return false };
        // Coarse clocks tick every 10 ms at most; file systems without nanoseconds every 2 s.
        let coarse = self.mtime % 1_000_000_000 == 0 && self.ctime % 1_000_000_000 == 0;
        let tick = Duration::from_millis(if coarse { 2_000 } else { 20 });
        let Some(limit) = now.checked_sub(tick) else { return false };
        i128::from(self.mtime.max(self.ctime)) < limit.as_nanos() as i128
    }

    fn words(&self) -> [u64; 6] {
        [self.mtime as u64, self.ctime as u64, self.size, self.ino, self.dev, self.mode]
    }
}

/// The known files of one context, by path.
#[derive(Debug, Default)]
pub struct StatCache {
    entries: HashMap<Vec<u8>, (Stamp, Digest)>,
}

impl StatCache {
    /// Reads the cache at `path`; a missing or broken one is empty.
    pub fn load(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_default();
        Self::decode(&bytes).unwrap_or_default()
    }

    /// The digest of the file at `path`, if it is unchanged.
    pub fn get(&self, path: &[u8], stamp: &Stamp) -> Option<Digest> {
        self.entries.get(path).filter(|(known, _)| known == stamp).map(|(_, digest)| *digest)
    }

    /// The digest that is remembered for `path`.
    pub fn digest(&self, path: &[u8]) -> Option<Digest> {
        self.entries.get(path).map(|(_, digest)| *digest)
    }

    /// Number of files that are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Remembers a file.
    pub fn insert(&mut self, path: Vec<u8>, stamp: Stamp, digest: Digest) {
        self.entries.insert(path, (stamp, digest));
    }

    /// Replaces the cache at `path`; `scratch` is a folder on the same file system. Not being able
    /// to is no error: the files are hashed again then.
    pub fn save(&self, path: &Path, scratch: &Path) {
        let new = scratch.join("stat");
        let written = path.parent().is_some_and(|parent| std::fs::create_dir_all(parent).is_ok())
            && std::fs::write(&new, self.encode()).is_ok();
        if !written || std::fs::rename(&new, path).is_err() {
            let _ = std::fs::remove_file(&new);
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (path, (stamp, digest)) in &self.entries {
            let Ok(length) = u16::try_from(path.len()) else { continue };
            out.extend(length.to_le_bytes());
            stamp.words().iter().for_each(|word| out.extend(word.to_le_bytes()));
            out.extend(digest.as_bytes());
            out.extend(path);
        }
        let sum = Digest::of(&out);
        out.extend(sum.as_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Digest::of(body).as_bytes() != sum {
            return None;
        }
        let mut rest = body.strip_prefix(MAGIC)?;
        let mut entries = HashMap::with_capacity(rest.len() / (FIXED + 32));
        while !rest.is_empty() {
            let (fixed, tail) = rest.split_at_checked(FIXED)?;
            let length = u16::from_le_bytes(fixed[..2].try_into().ok()?);
            let word = |at: usize| {
                let bytes = fixed[2 + 8 * at..10 + 8 * at].try_into().ok()?;
                Some(u64::from_le_bytes(bytes))
            };
            let stamp = Stamp {
                mtime: word(0)? as i64,
                ctime: word(1)? as i64,
                size: word(2)?,
                ino: word(3)?,
                dev: word(4)?,
                mode: word(5)?,
            };
            let digest = Digest::from_bytes(fixed[FIXED - 32..].try_into().ok()?);
            let (path, tail) = tail.split_at_checked(usize::from(length))?;
            entries.insert(path.to_vec(), (stamp, digest));
            rest = tail;
        }
        Some(Self { entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(mtime: i64) -> Stamp {
        Stamp { mtime, ctime: mtime, size: 3, ino: 4, dev: 5, mode: 6 }
    }

    #[test]
    fn round_trips_and_refuses_torn_files() {
        let mut cache = StatCache::default();
        cache.insert(b"a".to_vec(), stamp(1), Digest::of("a"));
        cache.insert(b"b/c".to_vec(), stamp(-2), Digest::of("b"));
        let bytes = cache.encode();
        let read = StatCache::decode(&bytes).unwrap();
        assert_eq!(read.get(b"b/c", &stamp(-2)), Some(Digest::of("b")));
        assert_eq!(read.get(b"b/c", &stamp(2)), None);
        for cut in [0, 7, 31, bytes.len() - 1] {
            assert!(StatCache::decode(&bytes[..cut]).is_none());
        }
        let mut flipped = bytes;
        flipped[20] ^= 1;
        assert!(StatCache::decode(&flipped).is_none());
    }

    #[test]
    fn fresh_files_are_not_settled() {
        let at = |nanoseconds: u64| UNIX_EPOCH + Duration::from_nanos(nanoseconds);
        let second = 1_000_000_000;
        assert!(!stamp(10 * second + 1).settled(at(10 * second as u64 + 5_000_000)));
        assert!(stamp(10 * second + 1).settled(at(10 * second as u64 + 50_000_000)));
        assert!(!stamp(10 * second).settled(at(11 * second as u64)));
        assert!(stamp(10 * second).settled(at(13 * second as u64)));
        assert!(!stamp(20 * second).settled(at(13 * second as u64)));
    }
}
