//! Use against collection: whoever puts objects that nothing names yet holds a lease, and
//! collection waits until nobody does.

use std::fs::File;
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
        let lock = self.lock_file()?;
        let path = self.inner.root.join("lease.lock");
        loop {
            match rustix::fs::flock(&lock, FlockOperation::LockShared) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result.doing("locking", path)?,
            }
        }
        Ok(Lease { _lock: lock })
    }

    /// The store for oneself alone, or [`Error::Busy`] after `wait`.
    pub(crate) fn lease_alone(&self, wait: Duration) -> Result<Lease> {
        let lock = self.lock_file()?;
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lease { _lock: lock }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).doing("locking", "lease.lock"),
            }
            if started.elapsed() >= wait {
                return Err(Error::Busy(wait.as_millis()));
            }
            // flock(2) has no deadline, so the condition is looked at again and again.
            thread::sleep(pause.min(wait.saturating_sub(started.elapsed())));
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.inner.root.join("lease.lock");
        let mut options = File::options();
        options.create(true).truncate(false).write(true).open(&path).doing("opening", &path)
    }
}
