//! Reading what an instance wrote: its log and the rotated ones, from the oldest on, and what is
//! still to come. The format is described with its writer, `shim::logfile`.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use serde::{Deserialize, Serialize};

use crate::cgroup::timespec;
use crate::shim::logfile::numbered;

/// Name of the current log in an instance's folder.
pub const LOG_FILE: &str = "log";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Nanoseconds since the Unix epoch.
    #[serde(rename = "t")]
    pub time: u64,
    /// Where it came from.
    #[serde(rename = "s")]
    pub stream: LogStream,
    /// Its text, without the newline.
    #[serde(rename = "m")]
    pub message: String,
    /// The line goes on in the next entry of the same stream.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
    /// The shim's own remark.
    Kiln,
}

/// Which lines.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogQuery {
    /// Only the last so many.
    pub tail: Option<usize>,
    /// Only from this time on, in nanoseconds since the Unix epoch.
    pub since: Option<u64>,
}

/// Reads the logs in `dir`, an instance's folder, oldest line first.
///
/// # Errors
/// I/O errors. That there is no log yet is none.
pub fn read(dir: &Path, query: LogQuery) -> io::Result<Vec<LogEntry>> {
    let (mut follow, entries) = Follow::begin(dir, query)?;
    follow.watch = None;
    Ok(entries)
}

/// What is read so far and what comes after it.
#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    /// The file that is being read, with what was read of a line that is not whole yet.
    current: Option<Current>,
    watch: Option<OwnedFd>,
}

#[derive(Debug)]
struct Current {
    file: BufReader<File>,
    inode: u64,
    partial: Vec<u8>,
}

impl Follow {
    /// Begins with the lines that are there and match `query`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn begin(dir: &Path, query: LogQuery) -> io::Result<(Self, Vec<LogEntry>)> {
        let path = dir.join(LOG_FILE);
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        // Before the first look, so that nothing is missed between look and wait.
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, dir, events)?;
        let mut entries = Vec::new();
        let mut follow = Self { path, current: None, watch: Some(watch) };
        for file in follow.oldest_first()? {
            follow.current = Some(file);
            follow.drain(&mut entries)?;
        }
        if let Some(since) = query.since {
            entries.retain(|entry| entry.time >= since);
        }
        if let Some(tail) = query.tail {
            entries.drain(..entries.len().saturating_sub(tail));
        }
        Ok((follow, entries))
    }

    /// The lines that came since, waiting for the first of them at most for `limit`; none when
    /// there were none.
    ///
    /// # Errors
    /// I/O errors.
    pub fn next(&mut self, limit: Duration) -> io::Result<Vec<LogEntry>> {
        let deadline = Instant::now() + limit;
        let mut entries = Vec::new();
        loop {
            self.catch_up(&mut entries)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !entries.is_empty() || left.is_zero() {
                return Ok(entries);
            }
            let Some(watch) = &self.watch else { return Ok(entries) };
            let mut fds = [PollFd::new(watch, PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
            // Which file changed does not matter: all are looked at.
            while rustix::io::read(watch, &mut buffer).is_ok_and(|(got, _)| !got.is_empty()) {}
        }
    }

    /// Reads on, over rotations.
    fn catch_up(&mut self, entries: &mut Vec<LogEntry>) -> io::Result<()> {
        self.drain(entries)?;
        let inode = self.current.as_ref().map(|current| current.inode);
        if fs::metadata(&self.path).ok().map(|meta| meta.ino()) == inode {
            return Ok(());
        }
        // Rotated: whatever is younger than the file at hand is still to be read. The rest of
        // that one was read above; the shim does not write to it any more.
        let files = self.oldest_first()?;
        self.drain(entries)?;
        let known = files.iter().position(|file| Some(file.inode) == inode);
        for file in files.into_iter().skip(known.map_or(0, |at| at + 1)) {
            self.current = Some(file);
            self.drain(entries)?;
        }
        Ok(())
    }

    fn drain(&mut self, entries: &mut Vec<LogEntry>) -> io::Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        // The shim takes back a line that it could write only in part.
        let length = current.file.get_ref().metadata()?.len();
        let position = current.file.stream_position()?;
        if position > length {
            current.file.seek(SeekFrom::Start(length))?;
            current.partial.clear();
        }
        loop {
            let got = current.file.by_ref().read_until(b'\n', &mut current.partial)?;
            if got == 0 || !current.partial.ends_with(b"\n") {
                return Ok(());
            }
            // A line that is none of ours is left out.
            entries.extend(serde_json::from_slice::<LogEntry>(&current.partial).ok());
            current.partial.clear();
        }
    }

    /// Opens all logs. A rotation meanwhile shows one twice or misses none, for names only move
    /// up and they are opened from the youngest on.
    fn oldest_first(&self) -> io::Result<Vec<Current>> {
        let mut files: Vec<Current> = Vec::new();
        let mut number = 0;
        loop {
            let path = if number == 0 { self.path.clone() } else { numbered(&self.path, number) };
            match File::open(&path) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    if files.iter().all(|other| other.inode != inode) {
                        let file = BufReader::new(file);
                        files.push(Current { file, inode, partial: Vec::new() });
                    }
                }
                // Between two renames the current one is missing.
                Err(error) if error.kind() == ErrorKind::NotFound && number == 0 => {}
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
            number += 1;
        }
        files.reverse();
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::logfile::LogFile;
    use crate::spec::LogLimits;

    fn messages(entries: &[LogEntry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.message.as_str()).collect()
    }

    #[test]
    fn reads_over_rotations_and_follows() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits { size: 300, count: 10 };
        let mut log = LogFile::new(&dir.path().join(LOG_FILE), limits);
        let mut write = |text: &str| {
            log.line("out", text.as_bytes(), false);
            log.flush();
        };
        (0..20).for_each(|number| write(&number.to_string()));
        let all = read(dir.path(), LogQuery::default()).unwrap();
        let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        assert_eq!(messages(&all), expected);
        let query = LogQuery { tail: Some(2), since: None };
        let (mut follow, tail) = Follow::begin(dir.path(), query).unwrap();
        assert_eq!(messages(&tail), ["18", "19"]);
        let since = LogQuery { tail: None, since: Some(all[17].time) };
        assert_eq!(read(dir.path(), since).unwrap().len(), 3);
        assert!(follow.next(Duration::from_millis(1)).unwrap().is_empty());
        (20..40).for_each(|number| write(&number.to_string()));
        let mut more = Vec::new();
        while more.len() < 20 {
            let next = follow.next(Duration::from_secs(10)).unwrap();
            assert!(!next.is_empty(), "{more:?}");
            more.extend(next);
        }
        let expected: Vec<String> = (20..40).map(|number| number.to_string()).collect();
        assert_eq!(messages(&more), expected);
    }

    #[test]
    fn follow_wakes_for_a_log_that_was_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let (mut follow, none) = Follow::begin(dir.path(), LogQuery::default()).unwrap();
        assert!(none.is_empty());
        let path = dir.path().join(LOG_FILE);
        let writer = std::thread::spawn(move || {
            let mut log = LogFile::new(&path, LogLimits::default());
            log.line("err", b"late", false);
            log.flush();
        });
        let next = follow.next(Duration::from_secs(10)).unwrap();
        writer.join().unwrap();
        assert_eq!((messages(&next), next[0].stream), (vec!["late"], LogStream::Err));
    }
}
