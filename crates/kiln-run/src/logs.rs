//! Reading what an instance wrote: its log and the rotated ones, from the oldest on, and what is
//! still to come. The format is described with its writer, `shim::logfile`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
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
    let mut follow = Follow::begin(dir, query.tail)?;
    let mut entries = Vec::new();
    while let Some(entry) = follow.next()? {
        entries.push(entry);
    }
    if let Some(since) = query.since {
        entries.retain(|entry| entry.time >= since);
    }
    Ok(entries)
}

/// The log of one instance, as far as it was read.
#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    /// Youngest first: those to be read after the current one.
    younger: Vec<Opened>,
    /// The file that is being read, with what was read of a line that is not whole yet.
    current: Option<Current>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    inode: u64,
}

#[derive(Debug)]
struct Current {
    file: BufReader<File>,
    inode: u64,
    partial: Vec<u8>,
}

impl Follow {
    /// Begins with the oldest line, or with the last `tail` of those that are there: then no more
    /// is read than holds them.
    ///
    /// # Errors
    /// I/O errors.
    pub fn begin(dir: &Path, tail: Option<usize>) -> io::Result<Self> {
        let path = dir.join(LOG_FILE);
        let mut younger = opened(&path)?;
        if let Some(mut wanted) = tail {
            let mut needed = 0;
            for opened in &mut younger {
                needed += 1;
                wanted -= seek_last(&mut opened.file, wanted)?;
                if wanted == 0 {
                    break;
                }
            }
            younger.truncate(needed);
        }
        Ok(Self { path, younger, current: None })
    }

    /// The next line, over rotations; `None` when there is no more for now.
    ///
    /// # Errors
    /// I/O errors.
    #[allow(clippy::should_implement_trait)] // it goes on after `None`
    pub fn next(&mut self) -> io::Result<Option<LogEntry>> {
        loop {
            if let Some(entry) = self.current.as_mut().map_or(Ok(None), Current::next)? {
                return Ok(Some(entry));
            }
            if self.younger.is_empty() {
                self.look_for_younger()?;
            }
            let Some(Opened { file, inode }) = self.younger.pop() else { return Ok(None) };
            // The rest of the one before was read; the shim does not write to it any more.
            if let Some(entry) = self.current.as_mut().map_or(Ok(None), Current::next)? {
                self.younger.push(Opened { file, inode });
                return Ok(Some(entry));
            }
            self.current = Some(Current { file: BufReader::new(file), inode, partial: Vec::new() });
        }
    }

    /// After a rotation, whatever is younger than the file at hand is still to be read.
    fn look_for_younger(&mut self) -> io::Result<()> {
        let inode = self.current.as_ref().map(|current| current.inode);
        if fs::metadata(&self.path).ok().map(|meta| meta.ino()) == inode {
            return Ok(());
        }
        self.younger = opened(&self.path)?;
        if let Some(known) = self.younger.iter().position(|file| Some(file.inode) == inode) {
            self.younger.truncate(known);
        }
        Ok(())
    }
}

impl Current {
    fn next(&mut self) -> io::Result<Option<LogEntry>> {
        // The shim takes back a line that it could write only in part.
        let length = self.file.get_ref().metadata()?.len();
        if self.file.stream_position()? > length {
            self.file.seek(SeekFrom::Start(length))?;
            self.partial.clear();
        }
        loop {
            let got = self.file.by_ref().read_until(b'\n', &mut self.partial)?;
            if got == 0 || !self.partial.ends_with(b"\n") {
                return Ok(None);
            }
            let entry = serde_json::from_slice::<LogEntry>(&self.partial);
            self.partial.clear();
            // A line that is none of ours is left out.
            if let Ok(entry) = entry {
                return Ok(Some(entry));
            }
        }
    }
}

/// Opens all logs, the youngest first. A rotation meanwhile shows one twice or misses none, for
/// names only move up and they are opened from the youngest on.
fn opened(path: &Path) -> io::Result<Vec<Opened>> {
    let mut files: Vec<Opened> = Vec::new();
    let mut number = 0;
    loop {
        let path = if number == 0 { path.to_owned() } else { numbered(path, number) };
        match File::open(&path) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                if files.iter().all(|other| other.inode != inode) {
                    files.push(Opened { file, inode });
                }
            }
            // Between two renames the current one is missing.
            Err(error) if error.kind() == ErrorKind::NotFound && number == 0 => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(files),
            Err(error) => return Err(error),
        }
        number += 1;
    }
}

/// Leaves the file where its last `wanted` whole lines begin, or at its beginning if it has fewer.
/// Says how many it has of them.
fn seek_last(file: &mut File, wanted: usize) -> io::Result<usize> {
    const BLOCK: u64 = 16 << 10;
    let mut end = file.metadata()?.len();
    let mut buffer = Vec::new();
    // The end of a line before the first one that is wanted counts as well.
    let mut ends = 0;
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        buffer.clear();
        file.seek(SeekFrom::Start(begin))?;
        file.by_ref().take(end - begin).read_to_end(&mut buffer)?;
        for (at, _) in buffer.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if ends == wanted {
                file.seek(SeekFrom::Start(begin + at as u64 + 1))?;
                return Ok(wanted);
            }
            ends += 1;
        }
        end = begin;
    }
    file.rewind()?;
    Ok(ends)
}

/// Wakes when something is written in one of any number of folders. One watch for all: the kernel
/// gives each user a hundred or so.
#[derive(Debug)]
pub struct Watch {
    inotify: Option<OwnedFd>,
    folders: BTreeMap<i32, PathBuf>,
    /// Some folder could not be watched: all are looked at every now and then.
    blind: bool,
}

impl Watch {
    /// Between looks where nothing wakes us.
    const PULSE: Duration = Duration::from_millis(50);

    /// Watches nothing yet.
    #[allow(clippy::new_without_default)] // it takes a descriptor
    pub fn new() -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).ok();
        Self { blind: inotify.is_none(), inotify, folders: BTreeMap::new() }
    }

    /// Watches `dir` too: to be called before the first look at it, so that nothing is missed.
    pub fn add(&mut self, dir: &Path) {
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        let Some(watch) = &self.inotify else { return };
        match inotify::add_watch(watch, dir, events) {
            Ok(number) => drop(self.folders.insert(number, dir.to_owned())),
            Err(_) => self.blind = true,
        }
    }

    /// Waits at most for `limit`. The folders in which something changed; `None`: any may have.
    ///
    /// # Errors
    /// When the kernel's queue cannot be read.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Option<BTreeSet<PathBuf>>> {
        let limit = if self.blind { limit.min(Self::PULSE) } else { limit };
        let Some(watch) = &self.inotify else {
            std::thread::sleep(limit);
            return Ok(None);
        };
        match poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&timespec(limit))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut changed = BTreeSet::new();
        let mut all = self.blind;
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 << 10];
        let mut events = inotify::Reader::new(watch, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) => {
                    all = true
                }
                Ok(event) if event.events().contains(inotify::ReadFlags::IGNORED) => {
                    self.folders.remove(&event.wd());
                }
                Ok(event) => changed.extend(self.folders.get(&event.wd()).cloned()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok((!all).then_some(changed))
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

    fn rest(follow: &mut Follow) -> Vec<LogEntry> {
        std::iter::from_fn(|| follow.next().unwrap()).collect()
    }

    fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
        range.map(|number| number.to_string()).collect()
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
        assert_eq!(messages(&all), numbers(0..20));
        for tail in 0..25 {
            let query = LogQuery { tail: Some(tail), since: None };
            let first = 20_u32.saturating_sub(u32::try_from(tail).unwrap());
            assert_eq!(messages(&read(dir.path(), query).unwrap()), numbers(first..20), "{tail}");
        }
        let since = LogQuery { tail: None, since: Some(all[17].time) };
        assert_eq!(read(dir.path(), since).unwrap().len(), 3);
        let mut follow = Follow::begin(dir.path(), Some(2)).unwrap();
        assert_eq!(messages(&rest(&mut follow)), ["18", "19"]);
        assert!(follow.next().unwrap().is_none());
        (20..40).for_each(|number| write(&number.to_string()));
        assert_eq!(messages(&rest(&mut follow)), numbers(20..40));
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        // Lines that end at, before and after the edges of what is read at once.
        for length in [10, (16 << 10) - 1, 16 << 10, 40_000] {
            let line = "x".repeat(length - 1) + "\n";
            fs::write(&path, line.repeat(5) + "not whole").unwrap();
            for wanted in 0..7 {
                let mut file = File::open(&path).unwrap();
                assert_eq!(seek_last(&mut file, wanted).unwrap(), wanted.min(5));
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text.len(), wanted.min(5) * length + "not whole".len());
            }
        }
    }

    #[test]
    fn one_line_of_a_long_log_costs_one_block() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits { size: 1 << 30, count: 2 };
        let mut log = LogFile::new(&dir.path().join(LOG_FILE), limits);
        for number in 0..50_000 {
            log.line("out", number.to_string().as_bytes(), false);
        }
        log.flush();
        let mut follow = Follow::begin(dir.path(), Some(1)).unwrap();
        let at = follow.younger[0].file.stream_position().unwrap();
        let length = fs::metadata(dir.path().join(LOG_FILE)).unwrap().len();
        assert!(length > 2_000_000 && length - at < 100, "{at} of {length}");
        assert_eq!(messages(&rest(&mut follow)), ["49999"]);
    }

    #[test]
    fn any_number_of_folders_wakes_one_watch() {
        let home = tempfile::tempdir().unwrap();
        let mut watch = Watch::new();
        let dirs: Vec<PathBuf> =
            (0..300).map(|number| home.path().join(number.to_string())).collect();
        let mut follows = Vec::new();
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
            watch.add(dir);
            follows.push(Follow::begin(dir, None).unwrap());
        }
        assert!(!watch.blind);
        assert_eq!(watch.wait(Duration::ZERO).unwrap(), Some(BTreeSet::new()));
        let path = dirs[299].join(LOG_FILE);
        let writer = std::thread::spawn(move || {
            let mut log = LogFile::new(&path, LogLimits::default());
            log.line("err", b"late", false);
            log.flush();
        });
        let mut lines = Vec::new();
        while lines.is_empty() {
            let changed = watch.wait(Duration::from_secs(10)).unwrap().unwrap();
            assert_eq!(
                changed,
                BTreeSet::from([dirs[299].clone()]),
                "it is woken, and by that one"
            );
            lines = rest(&mut follows[299]);
        }
        writer.join().unwrap();
        assert_eq!((messages(&lines), lines[0].stream), (vec!["late"], LogStream::Err));
    }
}
