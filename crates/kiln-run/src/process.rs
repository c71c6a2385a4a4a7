//! A process, named for good: its pid may be another's by now, its pid and start time may not.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::cgroup::timespec;

/// One process of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from boot to its start.
    pub(crate) start_time: u64,
}

impl ProcessId {
    /// Whoever has `pid` now; `None`: nobody has, or only what waits to be reaped.
    pub(crate) fn of(pid: i32) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            // It ended between opening and reading.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(parse(&text).map(|start_time| Self { pid, start_time }))
    }

    /// Whether it is there. An error is no answer.
    pub(crate) fn lives(self) -> io::Result<bool> {
        Ok(Self::of(self.pid)? == Some(self))
    }

    /// Sends `signal`.
    pub(crate) fn signal(self, signal: i32) -> io::Result<()> {
        match self.open()? {
            Some(pidfd) => crate::sys::pidfd_signal(pidfd.as_fd(), signal),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Waits for its end, at most for `limit`. False: it is there, or that cannot be told.
    pub(crate) fn ends_within(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let pidfd = match self.open() {
            Ok(Some(pidfd)) => pidfd,
            Ok(None) => return true,
            Err(_) => return false,
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(0) => return false,
                Err(Errno::INTR) => {}
                Err(_) => return false,
                Ok(_) => return true,
            }
        }
    }

    fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            pidfd => pidfd?,
        };
        // Looked up after the pidfd was opened: so the pidfd is of that process.
        Ok(self.lives()?.then_some(pidfd))
    }
}

/// Start time of a living process in the words of its `stat`.
fn parse(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(())?;
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_its_remains_and_from_the_next_with_its_pid() {
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let process = ProcessId::of(child.id().cast_signed()).unwrap().unwrap();
        assert!(process.lives().unwrap() && !process.ends_within(Duration::ZERO));
        let next = ProcessId { start_time: process.start_time + 1, ..process };
        assert!(!next.lives().unwrap() && next.signal(libc::SIGKILL).is_err());
        drop(child.stdin.take());
        assert!(process.ends_within(Duration::from_secs(20)), "it has nothing to read any more");
        assert!(!process.lives().unwrap(), "it waits to be reaped");
        child.wait().unwrap();
        assert!(!process.lives().unwrap() && process.ends_within(Duration::ZERO));
    }

    #[test]
    fn names_may_hold_anything() {
        let stat = "7 (a) Z (b)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        assert_eq!(parse(stat), Some(4711));
        assert_eq!(parse(&stat.replace(") S ", ") Z ")), None);
    }
}
