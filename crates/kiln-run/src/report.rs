//! What a new process tells its starter before exec: JSON lines through a pipe that exec closes.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::cgroup::timespec;
use crate::error::Fault;
use crate::process::ProcessId;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// Who reports: a shim, before it starts anything.
    Shim(ProcessId),
    /// Something was left out that the program can do without.
    Warning(String),
    /// The process that joins an instance goes on as this one, which is the reader's child.
    Inside {
        /// Its pid on the host.
        pid: i32,
    },
    /// The program will not run.
    Failed(Fault),
    /// The program was executed.
    Started {
        /// Its pid on the host; with `init`, that of the init.
        pid: i32,
        /// Field 22 of `/proc/PID/stat`: with the pid, it names the process for good.
        start_time: u64,
    },
}

/// The end that reports.
#[derive(Debug)]
pub(crate) struct Reporter(File);

impl Reporter {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Writes one line. A reader that has gone is nobody to tell.
    pub(crate) fn send(&mut self, report: &Report) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            let _ = self.0.write_all(&line);
        }
    }
}

/// Bytes of all reports of one process: somebody who traces it may have it write what they want.
const MOST: u64 = 1 << 20;

/// Reads until every writer is gone.
pub(crate) fn read_all(fd: OwnedFd) -> io::Result<Vec<Report>> {
    parse(File::from(fd).take(MOST))
}

fn parse(text: impl io::Read) -> io::Result<Vec<Report>> {
    let mut out = Vec::new();
    for line in BufReader::new(text).lines() {
        let line = line?;
        out.push(serde_json::from_str(&line).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("`{line}`: {error}"))
        })?);
    }
    Ok(out)
}

/// As [`read_all`], at most for `limit`. False: who writes is still there, or writes nonsense.
pub(crate) fn read_within(fd: &OwnedFd, limit: Duration) -> (Vec<Report>, bool) {
    let deadline = Instant::now() + limit;
    let mut text = Vec::new();
    let whole = loop {
        if text.len() as u64 > MOST {
            break false;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timespec(left))) {
            Ok(0) => break false,
            Err(Errno::INTR) => continue,
            Err(_) => break false,
            Ok(_) => {}
        }
        let mut buffer = [0; 4 << 10];
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => break true,
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(Errno::INTR) => {}
            Err(_) => break false,
        }
    };
    let lines: Vec<_> = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let reports: Vec<Report> =
        lines.iter().map_while(|line| serde_json::from_slice(line).ok()).collect();
    let whole = whole && reports.len() == lines.len();
    (reports, whole)
}

/// The warnings, and pid and start time if the program was executed.
pub(crate) type Sum = (Vec<String>, Option<(i32, u64)>);

/// What a list of reports comes to, unless that is a fault.
pub(crate) fn sum_up(reports: Vec<Report>) -> Result<Sum, Fault> {
    let mut warnings = Vec::new();
    let mut started = None;
    for report in reports {
        match report {
            Report::Shim(_) => {}
            Report::Warning(text) => warnings.push(text),
            Report::Failed(fault) => return Err(fault),
            Report::Inside { .. } => {}
            Report::Started { pid, start_time } => started = Some((pid, start_time)),
        }
    }
    Ok((warnings, started))
}

/// Field 22 of `/proc/PID/stat`, in clock ticks since boot; `None` if there is no such process.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    ProcessId::of(pid).ok().flatten().map(|process| process.start_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_travel() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut reporter = Reporter::new(write);
        reporter.send(&Report::Warning("nofile".to_owned()));
        reporter.send(&Report::Started { pid: 7, start_time: 9 });
        drop(reporter);
        let sum = sum_up(read_all(read).unwrap()).unwrap();
        assert_eq!(sum, (vec!["nofile".to_owned()], Some((7, 9))));
    }

    #[test]
    fn own_start_time_is_read() {
        assert!(start_time(std::process::id() as i32).unwrap() > 0);
        assert_eq!(start_time(i32::MAX), None);
    }

    #[test]
    fn a_reporter_that_says_nothing_is_not_waited_for() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut reporter = Reporter::new(write);
        let shim = ProcessId { pid: 7, start_time: 9 };
        reporter.send(&Report::Shim(shim));
        let (reports, whole) = read_within(&read, Duration::from_millis(10));
        assert_eq!((reports, whole), (vec![Report::Shim(shim)], false));
        reporter.send(&Report::Started { pid: 8, start_time: 9 });
        drop(reporter);
        let (reports, whole) = read_within(&read, Duration::from_secs(20));
        assert!(whole && matches!(reports[..], [Report::Started { .. }]), "{reports:?}");
    }
}
