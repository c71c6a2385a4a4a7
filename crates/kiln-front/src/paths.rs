//! The files under `<root>/front/`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Longest path that fits a Unix socket address with its final zero.
const SOCKET_PATH_LIMIT: usize = 107;

/// What the names of such sockets begin with.
const FINISHING: &str = "finishing-";

/// The front's directory of one root.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    dir: PathBuf,
}

impl Paths {
    pub(crate) fn new(root: &Path) -> Self {
        Self { dir: root.join("front") }
    }

    /// Makes the directory, for its owner only.
    pub(crate) fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    /// Where the agent asks.
    pub(crate) fn control(&self) -> PathBuf {
        self.dir.join("front.sock")
    }

    /// Where a new minder finds a worker that lost its own.
    pub(crate) fn minder(&self) -> PathBuf {
        self.dir.join("minder.sock")
    }

    /// Where a worker can be asked that was replaced, while it finishes what it has.
    pub(crate) fn finishing(&self, pid: u32) -> PathBuf {
        self.dir.join(format!("{FINISHING}{pid}.sock"))
    }

    /// Where all of them can be asked; some may be gone.
    pub(crate) fn all_finishing(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let is_one = |name: &str| name.starts_with(FINISHING) && name.ends_with(".sock");
        let found = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_one));
        found.map(|entry| entry.path()).collect()
    }

    /// The last table.
    pub(crate) fn table(&self) -> PathBuf {
        self.dir.join("table.json")
    }

    /// What the root's owner says about time-outs.
    pub(crate) fn limits(&self) -> PathBuf {
        self.dir.join("limits.json")
    }

    /// Standard error of minder and worker.
    pub(crate) fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(self.dir.join("log"))
    }

    /// The lock named `name` (`worker.lock`, `minder.lock`), or `None` while another has it.
    pub(crate) fn try_lock(&self, name: &str) -> io::Result<Option<File>> {
        let path = self.dir.join(name);
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Paths {
    /// The process that has the lock named `name`: proc(5), `/proc/locks`.
    pub(crate) fn holder_of(&self, name: &str) -> Option<Pid> {
        let file = fs::metadata(self.dir.join(name)).ok()?;
        let inode = file.ino().to_string();
        let locks = fs::read_to_string("/proc/locks").ok()?;
        locks.lines().find_map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let at = words.iter().position(|word| *word == "FLOCK")?;
            let same = words.get(at + 4)?.rsplit(':').next()? == inode;
            let pid = same.then(|| words.get(at + 3)?.parse().ok()).flatten()?;
            // Inode numbers are a file system's own: a lock of that number may be elsewhere.
            Pid::from_raw(pid).filter(|pid| has_open(*pid, &file))
        })
    }

    /// Ends a process that has the lock named `name`, and returns when it has.
    pub(crate) fn end(&self, pid: Pid, name: &str) {
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        // Looked at again with the process in hand: its number may have become another's.
        if self.holder_of(name) != Some(pid) {
            return;
        }
        // It fails if it has ended by itself.
        let _ = pidfd_send_signal(&process, Signal::KILL);
        let limit = Timespec { tv_sec: 2, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit));
    }
}

/// Whether the process has `file` open.
fn has_open(pid: Pid, file: &fs::Metadata) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    // Follows to the file itself, whatever its name is by now.
    let mut open = open.filter_map(|entry| fs::metadata(entry.path()).ok());
    open.any(|it| (it.dev(), it.ino()) == (file.dev(), file.ino()))
}

/// Calls `with` with a name of the socket `path` that fits into a socket address: roots may be
/// longer than the 107 bytes of one.
pub(crate) fn short<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() <= SOCKET_PATH_LIMIT {
        return with(path);
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let dir = File::open(dir)?;
    with(&Path::new("/proc/self/fd").join(dir.as_fd().as_raw_fd().to_string()).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_the_lock_file_open_is_its_holder() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        paths.create().unwrap();
        assert_eq!(paths.holder_of("worker.lock"), None);
        let lock = paths.try_lock("worker.lock").unwrap().unwrap();
        let file = lock.metadata().unwrap();
        let own = rustix::process::getpid();
        assert!(has_open(own, &file));
        assert_eq!(paths.holder_of("worker.lock"), Some(own));
        // A child keeps the lock alive by a copy of it. Its parent, which `/proc/locks` names, has
        // none any more: as with a stranger's lock of the same inode number.
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(lock)
            .spawn()
            .unwrap();
        assert!(!has_open(own, &file));
        assert_eq!(paths.holder_of("worker.lock"), None);
        drop(child.stdin.take());
        child.wait().unwrap();
        drop(paths.try_lock("worker.lock").unwrap().unwrap());
    }
}
