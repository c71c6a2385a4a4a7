//! The append-only log: `ledger/log.jsonl`, one JSON object a line.
//!
//! Every line carries the sha256 of the line before (`prev`), so nothing in it can be changed,
//! dropped or put in between without all later lines showing it. Lines are only ever added, under
//! an exclusive lock, one `write` a batch. A crash can leave half a line at the end; the next one
//! to open or append moves that to `ledger/torn-<seq>` and says so with a line of kind `torn`.
//!
//! What is wrong with it is known from the moment that the root is opened: see [`Fault`]. A log with
//! a fault is still appended to, but nothing of it is moved, shortened or copied from.
//!
//! | module | noun |
//! |---|---|
//! | here | appending |
//! | `line` | one line |
//! | `scan` | following the log to its end, and checking its chain: sequence, hash, pointers |
//! | `head` | how far it went, kept beside it |
//! | `fault` | what is wrong with it |
//! | `read` | entries for people and programs |

pub mod fault;
mod head;
mod line;
mod read;
mod scan;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde_json::Value;

pub use self::fault::Fault;
use self::fault::{Break, MENDED, Mended};
use self::head::{At, Head};
pub use self::line::Entry;
pub use self::read::{Entries, Filter};
pub(crate) use self::scan::{Known, Placed};
use crate::disk::{self, Site};
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
    /// `ledger/head`.
    head: File,
    known: Mutex<Known>,
    /// What was wrong when `known` was last given back.
    told: Mutex<Vec<Fault>>,
    /// What is durable.
    synced: Mutex<At>,
    /// Pointers that copies have and the log, which is damaged, has not.
    ahead: BTreeMap<(String, String), Pointer>,
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
    /// Opens the log and checks it. If all is well, a torn tail is moved aside, and what is kept
    /// beside the log is put right. If not, nothing is touched: see [`Ledger::faults`].
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let path = root.join("ledger/log.jsonl");
        let mut options = File::options();
        let file = options.create(true).append(true).read(true).mode(0o600).open(&path);
        let file = file.doing("opening", &path)?;
        disk::named(&path);
        if file.metadata().doing("looking at", &path)?.len() == 0 {
            // Syncing a file does not promise that its name lasts.
            for dir in [root, &root.join("ledger")] {
                disk::sync_dir(Site::LedgerFolder, dir).doing("syncing", dir)?;
            }
        }
        let beside = root.join("ledger/head");
        let mut options = File::options();
        let options = options.create(true).truncate(false).write(true).read(true).mode(0o600);
        let head = options.open(&beside).doing("opening", &beside)?;
        disk::named(&beside);
        let known = Mutex::new(Known::nothing());
        let (root, synced) = (root.to_owned(), Mutex::new(At::START));
        let (told, ahead) = (Mutex::default(), BTreeMap::new());
        let mut ledger = Self { root, path, file, head, known, told, synced, ahead };
        ledger.check()?;
        Ok(ledger)
    }

    /// Reads all of the log, and compares what is kept beside it.
    fn check(&mut self) -> Result<()> {
        let recorded = Head::read(&self.head);
        let must_have = recorded.as_ref().map(Head::must_have).unwrap_or_default();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = self.lock(FlockOperation::LockExclusive)?;
        *known = Known::scan(&self.file, &self.path, &must_have)?;
        let copies = crate::pointer::compare(&self.root, &known.pointers)?;
        copies.faults.into_iter().for_each(|fault| known.fault(fault));
        if known.faults.is_empty() {
            // What the log had when it was synced last, it has.
            let synced = recorded.map_or(At::START, |head| head.synced);
            *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = synced;
            crate::pointer::repair(&self.root, &known.pointers, &copies.behind)?;
            self.note_head(known.at, None)?;
        }
        // `appending` takes both again.
        drop((lock, known));
        self.ahead = copies.ahead;
        if self.faults()?.is_empty() {
            self.appending()?;
            let old = self.root.join("ledger/checkpoint");
            crate::store::ignore_missing(fs::remove_file(&old)).doing("removing", &old)?;
        }
        Ok(())
    }

    /// Compares the copies of pointers again; those that lag behind or are damaged are given, and
    /// with `repair` written again.
    pub(crate) fn copies(&self, repair: bool) -> Result<Vec<(String, String)>> {
        let mut known = self.followed()?;
        let compared = crate::pointer::compare(&self.root, &known.pointers)?;
        compared.faults.into_iter().for_each(|fault| known.fault(fault));
        if repair {
            crate::pointer::repair(&self.root, &known.pointers, &compared.behind)?;
        }
        Ok(compared.behind)
    }

    /// What is wrong with the log or the copies beside it; nothing, if all is well.
    ///
    /// # Errors
    /// I/O errors.
    pub fn faults(&self) -> Result<Vec<Fault>> {
        let faults = self.followed()?.faults.clone();
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&faults);
        Ok(faults)
    }

    /// As [`Ledger::faults`], for people who look: while somebody in this process appends, which
    /// may have to wait for the disk, it is what was wrong when that was last asked.
    ///
    /// # Errors
    /// I/O errors.
    pub fn faults_without_waiting(&self) -> Result<Vec<Fault>> {
        match self.known.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Ok(self.told.lock().unwrap_or_else(PoisonError::into_inner).clone())
            }
            free => {
                drop(free);
                self.faults()
            }
        }
    }

    /// Reads all of it again, and takes note, in an entry of its own, of what is wrong: what is
    /// damaged stays as it is and stays told, but no longer holds anything up. Says what was wrong.
    ///
    /// # Errors
    /// I/O errors.
    pub fn mend(&self) -> Result<Vec<Fault>> {
        let mut log = self.appending_to_any()?;
        let mut fresh = Known::scan(&self.file, &self.path, &[])?;
        let mut faults = std::mem::take(&mut log.known.faults);
        for fault in std::mem::take(&mut fresh.faults) {
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
        if faults.is_empty() {
            return Ok(faults);
        }
        let breaks = faults.iter().filter_map(|fault| match fault {
            Fault::Line { line, said, .. } => Some(Break { line: *line, said: *said }),
            _ => None,
        });
        let mended = Mended { breaks: breaks.collect() };
        let mut data = serde_json::to_value(&mended).unwrap_or_default();
        data["found"] = faults.iter().map(ToString::to_string).collect();
        let (time, kind) = (now(), MENDED.to_owned());
        // A line that was changed and not added to since is followed by this one as it is now.
        log.known.at = At { end: log.known.at.end.max(fresh.at.end), ..fresh.at };
        let torn = self.file.metadata().doing("looking at", &self.path)?.len();
        let torn = torn.saturating_sub(fresh.at.end);
        if torn > 0 {
            log.known.at.end = fresh.at.end;
            log.move_tail_aside(torn)?;
        }
        log.append(&[Record { time, kind, project: None, stage: None, data }], Durability::Now)?;
        let seen: BTreeMap<_, _> = self
            .ahead
            .iter()
            .map(|(key, pointer)| (key.clone(), pointer.clone()))
            .chain(log.known.pointers.iter().map(|(k, placed)| (k.clone(), placed.pointer.clone())))
            .fold(BTreeMap::new(), |mut all: BTreeMap<_, Pointer>, (key, pointer)| {
                match all.get(&key) {
                    Some(there) if there.generation >= pointer.generation => {}
                    _ => drop(all.insert(key, pointer)),
                }
                all
            });
        for ((project, stage), pointer) in seen {
            let pointer = Pointer { generation: pointer.generation + 1, ..pointer };
            crate::pointer::record(&mut log, &project, &stage, &pointer, &[])?;
        }
        Ok(faults)
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
        let at = self.followed()?.at;
        disk::sync(Site::Ledger, &self.file, &self.path).doing("syncing", &self.path)?;
        self.note_head(at, Some(at))
    }

    /// Writes down beside the log how far it goes, and how far it is durable.
    fn note_head(&self, latest: At, synced: Option<At>) -> Result<()> {
        let mut known = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(synced) = synced.filter(|synced| synced.seq > known.seq) {
            *known = synced;
        }
        let beside = || self.root.join("ledger/head");
        let written = Head::new(latest, *known).write(&self.head);
        disk::wrote(&self.head, &beside());
        written.doing_lazily("writing", beside)
    }

    /// Sequence number of the last line, 0 for an empty log.
    ///
    /// # Errors
    /// I/O errors.
    pub fn last_seq(&self) -> Result<u64> {
        Ok(self.followed()?.at.seq)
    }

    /// What is known of the log after reading what others added. Takes the lock for reading, so
    /// lines that somebody takes back because they could not be synced are never seen.
    pub(crate) fn followed(&self) -> Result<MutexGuard<'_, Known>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock(FlockOperation::LockShared)?;
        self.follow(&mut known)?;
        Ok(known)
    }

    /// Whose file the log is by now is looked at too: what goes to one that was removed is lost.
    fn follow(&self, known: &mut Known) -> Result<()> {
        let mine = self.file.metadata().doing("looking at", &self.path)?.ino();
        let there = match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // Whoever cannot look does not know; nothing is lost for that.
            there => Some(there.doing("looking at", &self.path)?.ino()),
        };
        if there != Some(mine) {
            let why = "the file was removed or put in another's place while it was in use";
            known.fault(Fault::Lost { seq: known.at.seq, why: why.to_owned() });
        }
        known.follow(&self.file, &self.path)
    }

    /// The pointers of all stages: the log's, or a copy's where the log has lost what it had.
    pub(crate) fn pointers(&self) -> Result<BTreeMap<(String, String), Pointer>> {
        let known = self.followed()?;
        let placed = known.pointers.iter();
        let mut all: BTreeMap<_, _> =
            placed.map(|(key, placed)| (key.clone(), placed.pointer.clone())).collect();
        for (key, pointer) in &self.ahead {
            // The log may have been mended since.
            if all.get(key).is_none_or(|known| known.generation <= pointer.generation) {
                all.insert(key.clone(), pointer.clone());
            }
        }
        Ok(all)
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

    /// Locks the log for appending; a torn tail is moved aside, if that is all that is wrong.
    pub(crate) fn appending(&self) -> Result<Appending<'_>> {
        let mut appending = self.appending_to_any()?;
        let length = self.file.metadata().doing("looking at", &self.path)?.len();
        let torn = length.saturating_sub(appending.known.at.end);
        if torn > 0 && appending.known.faults.is_empty() {
            appending.move_tail_aside(torn)?;
        }
        Ok(appending)
    }

    /// The same without moving anything.
    fn appending_to_any(&self) -> Result<Appending<'_>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = self.lock(FlockOperation::LockExclusive)?;
        self.follow(&mut known)?;
        Ok(Appending { ledger: self, _lock: lock, known })
    }
}

impl Appending<'_> {
    /// See [`Ledger::append`].
    pub(crate) fn append(&mut self, records: &[Record], durability: Durability) -> Result<u64> {
        let Ledger { path, file, .. } = self.ledger;
        let mut next = self.known.clone();
        let mut text = Vec::new();
        // Behind the rest of a damaged line, a line would be part of it.
        let length = file.metadata().doing("looking at", path)?.len();
        if length > next.at.end && !records.is_empty() {
            text.push(b'\n');
        }
        for record in records {
            let line = line::render(record, next.at.seq + 1, &next.at.head);
            next.take_own(&line);
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        next.at.end = length + text.len() as u64;
        let mut result = (&mut &*file).write_all(&text);
        disk::wrote(file, path);
        if durability == Durability::Now {
            result = result.and_then(|()| disk::sync(Site::Ledger, file, path));
        }
        if let Err(error) = result {
            // Nobody was told of these lines. If taking them back fails too, the next one to
            // append finds them whole, or moves a torn one aside.
            let _ = file.set_len(length);
            return Err(error).doing("appending to", path);
        }
        next.stamp(file, path)?;
        let synced = (durability == Durability::Now).then_some(next.at);
        self.ledger.note_head(next.at, synced)?;
        *self.known = next;
        Ok(self.known.at.seq)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.ledger.root
    }

    /// What stands behind the last whole line goes to a file of its own.
    fn move_tail_aside(&mut self, torn: u64) -> Result<()> {
        let Ledger { root, path, file, .. } = self.ledger;
        let mut tail = vec![0; usize::try_from(torn).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut tail, self.known.at.end).doing("reading", path)?;
        let name = format!("torn-{}", self.known.at.seq + 1);
        let aside = free_name(&root.join("ledger"), &name);
        crate::durable::write_durable(&aside, &tail).doing("writing", &aside)?;
        file.set_len(self.known.at.end).doing("shortening", path)?;
        disk::wrote(file, path);
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
