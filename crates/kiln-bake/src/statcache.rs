//! What is known of a context's files, so that an unchanged file is only stat'ed.
//!
//! One file per context under the store's `cache/contexts/`. It is a cache: it is written without
//! waiting for the disk, carries its own checksum, and whatever is wrong with it makes it empty.
//!
//! A file whose times are too close to the moment at which it was hashed could change again within
//! the same tick of the clock and look the same. As Git does with such *racily clean* entries, it
//! is not remembered at all.

use std::cmp::Ordering;
use std::ops::Range;
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

    /// From what `statx` said.
    pub(crate) fn of_statx(stat: &rustix::fs::Statx) -> Self {
        let time = |time: rustix::fs::StatxTimestamp| {
            time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec))
        };
        Self {
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
            size: stat.stx_size,
            ino: stat.stx_ino,
            dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            mode: u64::from(stat.stx_mode),
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

/// The known files of one context, in order of their paths.
#[derive(Debug, Default)]
pub struct StatCache {
    /// The file as it was read; entries point into it.
    bytes: Vec<u8>,
    entries: Vec<(Range<usize>, Stamp, Digest)>,
}

/// Looks paths up that come in ascending order.
#[derive(Debug)]
pub struct Cursor<'a> {
    cache: &'a StatCache,
    at: usize,
}

impl Cursor<'_> {
    /// The digest of the file at `path`, if it is unchanged. Paths must ascend from call to call.
    pub fn get(&mut self, path: &[u8], stamp: &Stamp) -> Option<Digest> {
        while let Some((range, known, digest)) = self.cache.entries.get(self.at) {
            match self.cache.bytes[range.clone()].cmp(path) {
                Ordering::Less => self.at += 1,
                Ordering::Equal => return (known == stamp).then_some(*digest),
                Ordering::Greater => return None,
            }
        }
        None
    }
}

impl StatCache {
    /// Reads the cache at `path`; a missing or broken one is empty.
    pub fn load(path: &Path) -> Self {
        Self::decode(std::fs::read(path).unwrap_or_default()).unwrap_or_default()
    }

    /// Begins to look up.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { cache: self, at: 0 }
    }

    /// Number of files that are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Replaces the cache at `path` by `files`, which ascend. Not being able to is no error: the
    /// files are hashed again then.
    pub fn save<'a>(path: &Path, files: impl Iterator<Item = (&'a [u8], Stamp, Digest)>) {
        if let Some(Ok(())) = path.parent().map(std::fs::create_dir_all) {
            let _ = kiln_store::write_atomic(path, &encode(files));
        }
    }

    fn decode(bytes: Vec<u8>) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Digest::of(body).as_bytes() != sum || !body.starts_with(MAGIC) {
            return None;
        }
        let mut entries = Vec::with_capacity(body.len() / (FIXED + 32));
        let mut at = MAGIC.len();
        while at < body.len() {
            let fixed = body.get(at..at + FIXED)?;
            let length = usize::from(u16::from_le_bytes(fixed[..2].try_into().ok()?));
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
            let path = at + FIXED..at + FIXED + length;
            body.get(path.clone())?;
            at = path.end;
            entries.push((path, stamp, digest));
        }
        Some(Self { bytes, entries })
    }
}

fn encode<'a>(files: impl Iterator<Item = (&'a [u8], Stamp, Digest)>) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for (path, stamp, digest) in files {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(mtime: i64) -> Stamp {
        Stamp { mtime, ctime: mtime, size: 3, ino: 4, dev: 5, mode: 6 }
    }

    #[test]
    fn round_trips_and_refuses_torn_files() {
        let (a, c) = (Digest::of("a"), Digest::of("c"));
        let files = [(b"a".as_slice(), stamp(1), a), (b"b/c".as_slice(), stamp(-2), c)];
        let bytes = encode(files.into_iter());
        let read = StatCache::decode(bytes.clone()).unwrap();
        assert_eq!(read.len(), 2);
        let mut cursor = read.cursor();
        assert_eq!(cursor.get(b"Z", &stamp(1)), None);
        assert_eq!(cursor.get(b"a", &stamp(2)), None);
        assert_eq!(cursor.get(b"a", &stamp(1)), Some(a));
        assert_eq!(cursor.get(b"b", &stamp(1)), None);
        assert_eq!(cursor.get(b"b/c", &stamp(-2)), Some(c));
        assert_eq!(cursor.get(b"z", &stamp(1)), None);
        for cut in [0, 7, 31, bytes.len() - 1] {
            assert!(StatCache::decode(bytes[..cut].to_vec()).is_none());
        }
        let mut flipped = bytes;
        flipped[20] ^= 1;
        assert!(StatCache::decode(flipped).is_none());
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
