//! The append-only log: `ledger/log.jsonl`, one JSON object a line.
//!
//! Every line carries the sha256 of the line before (`prev`), so nothing in it can be changed,
//! dropped or put in between without all later lines showing it. Lines are only ever added, under
//! an exclusive lock, one `write` a batch. A crash can leave half a line at the end; the next one
//! to open or append moves that to `ledger/torn-<seq>` and says so with a line of kind `torn`.
//!
//! | module | noun |
//! |---|---|
//! | here | appending |
//! | `line` | one line |
//! | `scan` | following the log to its end: sequence, hash, pointers |
//! | `read` | entries for people and programs; checking the chain |

mod line;
mod read;
mod scan;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde_json::Value;

pub use self::line::Entry;
pub use self::read::{Entries, Filter};
pub(crate) use self::scan::Known;
use crate::error::{Context as _, Result};
pub use crate::pointer::Pointer;

/// What is to be recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Milliseconds since the Unix epoch.
    pub time: u64,
    /// What kind of thing happened: `intent`, `outcome`, `finding` … The kinds `pointer` and `torn`
    /// are the ledger's own.
    pub kind: String,
    /// The project it belongs to, if any.
    pub project: Option<String>,
    /// The stage it belongs to, if any.
    pub stage: Option<String>,
    /// Anything else.
    pub data: Value,
}

/// When a record has to have reached the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before the call returns.
    Now,
    /// With the next one that is [`Durability::Now`], or when the system gets to it. Safe against
    /// crashes of the process all the same.
    Later,
}

/// The log of a root. Several threads and processes may append.
#[derive(Debug)]
pub struct Ledger {
    root: PathBuf,
    path: PathBuf,
    file: File,
    known: Mutex<Known>,
}

/// The log, locked for appending and followed to its end.
pub(crate) struct Appending<'a> {
    ledger: &'a Ledger,
    // Dropped in this order: threads of this process share the file's lock, so it must be given
    // back before the next one of them can come in and take it for held.
    _lock: Lock<'a>,
    pub(crate) known: MutexGuard<'a, Known>,
}

/// The lock of the log's file.
struct Lock<'a>(&'a File);

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // It would end with the descriptor at the latest.
        let _ = rustix::fs::flock(self.0, FlockOperation::Unlock);
    }
}

impl Ledger {
    /// Opens the log, moves a torn tail aside, and puts pointer files right.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let path = root.join("ledger/log.jsonl");
        let mut options = File::options();
        let file = options.create(true).append(true).read(true).open(&path);
        let file = file.doing("opening", &path)?;
        if file.metadata().doing("looking at", &path)?.len() == 0 {
            // Syncing a file does not promise that its name lasts.
            for dir in [root, &root.join("ledger")] {
                File::open(dir).and_then(|dir| dir.sync_all()).doing("syncing", dir)?;
            }
        }
        let known = Mutex::new(Known::resume(root, &file, &path)?);
        let ledger = Self { root: root.to_owned(), path, file, known };
        {
            let appending = ledger.appending()?;
            appending.known.checkpoint(root)?;
            crate::pointer::repair(root, &appending.known.pointers)?;
        }
        Ok(ledger)
    }

    /// The log's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `records` in one write, and syncs at most once; returns the sequence number of the
    /// last one. No records: nothing is written, and with [`Durability::Now`] all that was
    /// appended before is synced.
    ///
    /// # Errors
    /// I/O errors; nothing of the batch is in the log then.
    pub fn append(&self, records: &[Record], durability: Durability) -> Result<u64> {
        self.appending()?.append(records, durability)
    }

    /// Makes all that was appended durable.
    ///
    /// # Errors
    /// I/O errors.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().doing("syncing", &self.path)
    }

    /// Sequence number of the last line, 0 for an empty log.
    ///
    /// # Errors
    /// I/O errors.
    pub fn last_seq(&self) -> Result<u64> {
        Ok(self.followed()?.seq)
    }

    /// What is known of the log after reading what others added. Takes the lock for reading, so
    /// lines that somebody takes back because they could not be synced are never seen.
    pub(crate) fn followed(&self) -> Result<MutexGuard<'_, Known>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock(FlockOperation::LockShared)?;
        known.follow(&self.file, &self.path)?;
        Ok(known)
    }

    /// Locks the log's file. All threads share that lock, so only whoever has `known` may call it,
    /// and must give it back first.
    fn lock(&self, operation: FlockOperation) -> Result<Lock<'_>> {
        loop {
            match rustix::fs::flock(&self.file, operation) {
                Err(rustix::io::Errno::INTR) => {}
                result => {
                    result.doing("locking", &self.path)?;
                    return Ok(Lock(&self.file));
                }
            }
        }
    }

    /// Locks the log for appending.
    pub(crate) fn appending(&self) -> Result<Appending<'_>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = self.lock(FlockOperation::LockExclusive)?;
        known.follow(&self.file, &self.path)?;
        let length = self.file.metadata().doing("looking at", &self.path)?.len();
        let torn = length.saturating_sub(known.end);
        let mut appending = Appending { ledger: self, _lock: lock, known };
        if torn > 0 {
            appending.move_tail_aside(torn)?;
        }
        Ok(appending)
    }
}

impl Appending<'_> {
    /// See [`Ledger::append`].
    pub(crate) fn append(&mut self, records: &[Record], durability: Durability) -> Result<u64> {
        let path = &self.ledger.path;
        let file = &self.ledger.file;
        let mut next = self.known.clone();
        let mut text = Vec::new();
        for record in records {
            let line = line::render(record, next.seq + 1, &next.head);
            next.take(&line);
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        let mut result = (&mut &*file).write_all(&text);
        if durability == Durability::Now {
            result = result.and_then(|()| file.sync_data());
        }
        if let Err(error) = result {
            // Nobody was told of these lines. If taking them back fails too, the next one to
            // append finds them whole, or moves a torn one aside.
            let _ = file.set_len(self.known.end);
            return Err(error).doing("appending to", path);
        }
        *self.known = next;
        Ok(self.known.seq)
    }

    /// What stands behind the last whole line goes to a file of its own.
    fn move_tail_aside(&mut self, torn: u64) -> Result<()> {
        let Ledger { root, path, file, .. } = self.ledger;
        let mut tail = vec![0; usize::try_from(torn).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut tail, self.known.end).doing("reading", path)?;
        let name = format!("torn-{}", self.known.seq + 1);
        let aside = free_name(&root.join("ledger"), &name);
        crate::durable::write_durable(&aside, &tail).doing("writing", &aside)?;
        file.set_len(self.known.end).doing("shortening", path)?;
        let record = Record {
            time: now(),
            kind: "torn".to_owned(),
            project: None,
            stage: None,
            data: serde_json::json!({
                "bytes": torn,
                "file": aside.file_name().map(|name| name.to_string_lossy()),
            }),
        };
        self.append(&[record], Durability::Later)?;
        Ok(())
    }
}

/// The clock, in milliseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// `name` in `dir`, with a number behind it if that is taken.
fn free_name(dir: &Path, name: &str) -> PathBuf {
    let numbered = (1..).map(|nth: u32| dir.join(format!("{name}.{nth}")));
    let mut names = std::iter::once(dir.join(name)).chain(numbered);
    names.find(|path| !exists(path)).unwrap_or_else(|| dir.join(name))
}

fn exists(path: &Path) -> bool {
    !matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests;
