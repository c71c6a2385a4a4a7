//! One output pipe of the program, cut into lines.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::logfile::{LONGEST, LogFile};

/// Of one processor, or of the processors that the instance may use, what the copying of its
/// output may take: else a program that writes without end would cost others as much again as its
/// own limits allow.
const SHARE: f64 = 0.25;
/// Processor time that may be taken at once.
const BURST: Duration = Duration::from_millis(250);
/// The longest rest at a time: signals and stops are not to wait.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// Holds the copying to its share: meanwhile the program's pipe fills, and the program waits.
#[derive(Debug)]
pub(super) struct Pace {
    /// Processors.
    share: f64,
    /// Processor time that may still be taken, in seconds.
    credit: f64,
    /// When that was counted, by the clock and by the processor time used until then.
    counted: (Instant, Duration),
}

impl Pace {
    /// Of an instance that may use so many processors.
    pub(super) fn new(processors: Option<f64>) -> Self {
        let share = SHARE * processors.map_or(1.0, |limit| limit.clamp(0.01, 1.0));
        let counted = (Instant::now(), used());
        Self { share, credit: BURST.as_secs_f64(), counted }
    }

    /// How long nothing is to be copied, if so.
    pub(super) fn rest(&mut self) -> Option<Duration> {
        self.count(Instant::now(), used())
    }

    fn count(&mut self, now: Instant, used: Duration) -> Option<Duration> {
        let gained = now.duration_since(self.counted.0).as_secs_f64() * self.share;
        let spent = used.saturating_sub(self.counted.1).as_secs_f64();
        self.counted = (now, used);
        self.credit = (self.credit + gained - spent).min(BURST.as_secs_f64());
        let rest = || Duration::from_secs_f64(-self.credit / self.share).min(LONGEST_REST);
        (self.credit < 0.0).then(rest)
    }
}

/// Processor time of this thread, which is the shim's only one.
fn used() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The reading end, with the line that is not whole yet.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) fd: OwnedFd,
    name: &'static str,
    pending: Vec<u8>,
}

impl Stream {
    /// `name` is what the log calls it.
    pub(super) fn new(fd: OwnedFd, name: &'static str) -> Self {
        // A pipe that cannot be made non-blocking is still read only when poll says so.
        let _ = rustix::io::ioctl_fionbio(&fd, true);
        Self { fd, name, pending: Vec::new() }
    }

    /// Moves what is there into the log. False: there will be no more.
    pub(super) fn read(&mut self, buffer: &mut [u8], log: &mut LogFile) -> bool {
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(0) => {
                self.finish(log);
                false
            }
            Ok(length) => {
                self.take(&buffer[..length], log);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => {
                self.finish(log);
                false
            }
        }
    }

    /// Reads until there is no more for now: after the program's end, that is all.
    pub(super) fn drain(&mut self, buffer: &mut [u8], log: &mut LogFile) {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(length) if length > 0 => self.take(&buffer[..length], log),
                Err(Errno::INTR) => {}
                _ => break,
            }
        }
        self.finish(log);
    }

    fn take(&mut self, mut bytes: &[u8], log: &mut LogFile) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line = &bytes[..end];
            if self.pending.is_empty() {
                self.emit(line, log);
            } else {
                let mut whole = std::mem::take(&mut self.pending);
                whole.extend_from_slice(line);
                self.emit(&whole, log);
            }
            bytes = &bytes[end + 1..];
        }
        self.pending.extend_from_slice(bytes);
        while self.pending.len() > LONGEST {
            let rest = self.pending.split_off(LONGEST);
            log.line(self.name, &self.pending, true);
            self.pending = rest;
        }
        log.flush();
    }

    fn emit(&self, mut line: &[u8], log: &mut LogFile) {
        while line.len() > LONGEST {
            log.line(self.name, &line[..LONGEST], true);
            line = &line[LONGEST..];
        }
        log.line(self.name, line, false);
    }

    fn finish(&mut self, log: &mut LogFile) {
        if !self.pending.is_empty() {
            let line = std::mem::take(&mut self.pending);
            log.line(self.name, &line, false);
        }
        log.flush();
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::spec::LogLimits;

    #[test]
    fn copying_keeps_to_its_share() {
        let mut pace = Pace::new(None);
        let (begun, _) = pace.counted;
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let of = Duration::from_millis;
        pace.counted = (begun, Duration::ZERO);
        assert_eq!(pace.count(at(100), of(100)), None, "a burst is nothing");
        // As much as it is let, in pieces of any size: it has to stop for three times as long.
        let (mut wall, mut work) = (100, 100);
        for round in 0..1000 {
            match pace.count(at(wall), of(work)) {
                Some(rest) => wall += u64::try_from(rest.as_millis()).unwrap().max(1),
                None => (wall, work) = (wall + round % 60, work + round % 60),
            }
        }
        let share =
            f64::from(u32::try_from(work).unwrap()) / f64::from(u32::try_from(wall).unwrap());
        assert!((0.24..0.28).contains(&share), "{share}");
        // A tenth of a processor has a fortieth copied.
        assert!((Pace::new(Some(0.1)).share - 0.025).abs() < 1e-9);
    }

    #[test]
    fn lines_are_cut_and_long_ones_pieced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::new(&path, LogLimits::default());
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut stream = Stream::new(read, "out");
        let mut buffer = vec![0; 8 << 10];
        for part in ["one\ntw", "o\n\nend", &"x".repeat(LONGEST)] {
            let mut rest = part.as_bytes();
            while !rest.is_empty() {
                let length = rest.len().min(4096);
                assert_eq!(rustix::io::write(&write, &rest[..length]).unwrap(), length);
                assert!(stream.read(&mut buffer, &mut log));
                rest = &rest[length..];
            }
        }
        drop(write);
        // A child that another test is just starting may hold the pipe until it executes.
        let deadline = Instant::now() + Duration::from_secs(20);
        while stream.read(&mut buffer, &mut log) {
            assert!(Instant::now() < deadline, "the pipe never ended");
            let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
            poll(&mut [PollFd::new(&stream.fd, PollFlags::IN)], Some(&wait)).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0]["m"], "one");
        assert_eq!(lines[1]["m"], "two");
        assert_eq!(lines[2]["m"], "");
        assert_eq!(lines[3]["p"], true);
        assert_eq!(lines[3]["m"].as_str().unwrap().len(), LONGEST);
        assert_eq!(lines[4]["m"], "xxx");
    }
}
