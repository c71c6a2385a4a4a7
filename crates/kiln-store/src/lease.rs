//! Use against collection: whoever puts objects that nothing names yet holds a lease, and
//! collection waits until nobody does.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::error::{Context as _, Error, Result};
use crate::store::Store;

/// Keeps collection away while it lives. Take it before the first byte is put.
#[derive(Debug)]
pub struct Lease {
    // The lock ends with its descriptor, also when the process is killed.
    _lock: File,
}

impl Store {
    /// Takes a lease; waits while a collection runs.
    ///
    /// # Errors
    /// I/O errors.
    pub fn lease(&self) -> Result<Lease> {
        let lock = self.lock_file("lease.lock")?;
        let path = self.inner.root.join("lease.lock");
        loop {
            match rustix::fs::flock(&lock, FlockOperation::LockShared) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result.doing("locking", &path)?,
            }
        }
        // So that a collection under way sees that somebody was there. Losing it in a power cut
        // does no harm: there is no collection under way then.
        let stamp = format!("{:<100}", crate::owner::unique("lease"));
        lock.write_all_at(stamp.as_bytes(), 0).doing("writing", path)?;
        Ok(Lease { _lock: lock })
    }

    /// What the last one to take a lease left.
    pub(crate) fn lease_stamp(&self) -> Result<Vec<u8>> {
        let path = self.inner.root.join("lease.lock");
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            stamp => stamp.doing("reading", path),
        }
    }

    /// A lock for oneself alone, or [`Error::Busy`] after `wait`.
    pub(crate) fn lock_alone(&self, name: &str, wait: Duration) -> Result<Lease> {
        let lock = self.lock_file(name)?;
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lease { _lock: lock }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).doing("locking", name),
            }
            if started.elapsed() >= wait {
                return Err(Error::Busy(wait.as_millis()));
            }
            // flock(2) has no deadline, so the condition is looked at again and again.
            thread::sleep(pause.min(wait.saturating_sub(started.elapsed())));
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.inner.root.join(name);
        let mut options = File::options();
        let options = options.create(true).truncate(false).write(true).mode(0o600);
        options.open(&path).doing("opening", &path)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use crate::{GcOptions, Roots, Store};

    #[test]
    fn what_is_named_under_a_lease_that_was_there_before_the_collection_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let lease = RefCell::new(Some(store.lease().unwrap()));
        let (kept, gone) = (store.put(b"kept").unwrap(), store.put(b"gone").unwrap());
        // The collection has looked at the references by the time it asks for these.
        let roots = || {
            if lease.borrow().is_some() {
                store.set_ref("locks", "shop", &BTreeSet::from([kept])).unwrap();
            }
            // The delivery ends: nothing keeps the collection from its first batch any more.
            lease.take();
            Roots::default()
        };
        let report = store.gc_with(&roots, &GcOptions::default()).unwrap();
        assert!(store.contains(&kept), "{report:?}");
        assert!(!store.contains(&gone), "{report:?}");
    }
}
