//! Ending a front, whatever it does: one that answers is asked, one that does not is killed.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::client::{FrontClient, FrontError, connect_at_once};
use crate::paths::{Paths, short};

/// Ends the front of `root`: minder, worker, and workers that were replaced and still have
/// connections. Those that do not answer within a while are killed; only processes that hold the
/// root's own locks and sockets are.
///
/// # Errors
/// What it said when it was asked, if it was there and had to be killed.
pub fn end(root: &Path) -> Result<(), FrontError> {
    let paths = Paths::new(root);
    let asked = FrontClient::connect(root).and_then(|front| front.stop(Duration::ZERO));
    // The minder first, else it starts another worker. A minder that has a worker ends with it.
    if asked.is_err() {
        for lock in ["minder.lock", "worker.lock"] {
            if let Some(pid) = paths.holder_of(lock) {
                paths.end(pid, lock);
            }
        }
    }
    for socket in paths.all_finishing() {
        kill_listener(&socket);
        // One that ended by itself has removed it.
        let _ = std::fs::remove_file(&socket);
    }
    match asked {
        Err(FrontError::Connect { .. }) | Ok(()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The process of the front's worker, if there is one.
pub fn worker(root: &Path) -> Option<i32> {
    Paths::new(root).holder_of("worker.lock").map(|pid| pid.as_raw_nonzero().get())
}

/// Kills the process that listens at `path`, if one does: the kernel says which it is.
fn kill_listener(path: &Path) {
    let Ok(stream) = short(path, connect_at_once) else { return };
    let Ok(peer) = socket_peercred(&stream) else { return };
    let Ok(process) = pidfd_open(peer.pid, PidfdFlags::empty()) else { return };
    // The line stands, so it is that process still, and no other with its number.
    if short(path, connect_at_once).is_err() {
        return;
    }
    let _ = pidfd_send_signal(process.as_fd(), Signal::KILL);
    let limit = Timespec { tv_sec: 2, tv_nsec: 0 };
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit));
}
