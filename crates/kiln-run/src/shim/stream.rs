//! One output pipe of the program, cut into lines.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::logfile::{LONGEST, LogFile};

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
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::spec::LogLimits;

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
