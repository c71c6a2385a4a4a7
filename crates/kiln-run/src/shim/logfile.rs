//! The log of one instance: JSON lines, rotated by size.
//!
//! One line is `{"t":NANOSECONDS,"s":"out","m":"text"}`: time since the Unix epoch, stream (`out`,
//! `err`, or `kiln` for the shim's own remarks), text without its newline. `"p":true` marks a
//! piece of a line that is longer than [`LONGEST`]. Bytes that are no UTF-8 become U+FFFD.
//!
//! The program is never blocked by its log: what cannot be written is dropped and counted, and
//! the count is written as soon as there is room again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::spec::LogLimits;

/// Bytes of a line that are kept together.
pub(crate) const LONGEST: usize = 16 << 10;

#[derive(Serialize)]
struct Line<'a> {
    t: u64,
    s: &'a str,
    m: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    p: bool,
}

/// Writes `log`, `log.1` …
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    limits: LogLimits,
    /// Lines that could not be written, ever.
    pub(crate) dropped: u64,
    /// Of them, those not yet told of in the log.
    untold: u64,
    batch: Vec<u8>,
    lines: u64,
}

impl LogFile {
    /// A log at `path`; the file is opened with the first line.
    pub(crate) fn new(path: &Path, limits: LogLimits) -> Self {
        let batch = Vec::new();
        let path = path.to_owned();
        Self { path, file: None, size: 0, limits, dropped: 0, untold: 0, batch, lines: 0 }
    }

    /// Adds one line of `stream`; it is written by [`LogFile::flush`].
    pub(crate) fn line(&mut self, stream: &str, text: &[u8], partial: bool) {
        let text = String::from_utf8_lossy(text);
        let line = Line { t: now(), s: stream, m: &text, p: partial };
        // Serialising to memory does not fail.
        let Ok(mut line) = serde_json::to_vec(&line) else { return };
        line.push(b'\n');
        let after = self.size + (self.batch.len() + line.len()) as u64;
        if after > self.limits.size {
            self.flush();
        }
        self.batch.append(&mut line);
        self.lines += 1;
    }

    /// Writes what was added.
    pub(crate) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        if self.untold > 0 {
            let text = format!("{} lines were dropped: the log could not be written", self.untold);
            let note = Line { t: now(), s: "kiln", m: &text, p: false };
            let mut batch = serde_json::to_vec(&note).unwrap_or_default();
            batch.push(b'\n');
            batch.append(&mut self.batch);
            self.batch = batch;
        }
        match self.write() {
            Ok(()) => self.untold = 0,
            Err(_) => {
                self.dropped += lines;
                self.untold += lines;
            }
        }
        self.batch.clear();
    }

    fn write(&mut self) -> io::Result<()> {
        let length = self.batch.len() as u64;
        if self.size > 0 && self.size + length > self.limits.size {
            self.rotate()?;
        }
        if self.file.is_none() {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let result = file.write_all(&self.batch);
        match result {
            Ok(()) => self.size += length,
            // No torn line stays behind.
            Err(_) => file.set_len(self.size)?,
        }
        result
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        self.size = 0;
        let kept = self.limits.count.max(1);
        if kept == 1 {
            return fs::remove_file(&self.path);
        }
        for number in (1..kept).rev() {
            let from =
                if number == 1 { self.path.clone() } else { numbered(&self.path, number - 1) };
            match fs::rename(from, numbered(&self.path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// `log` → `log.N`.
pub(crate) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::new(&path, LogLimits { size: 200, count: 3 });
        for number in 0..40 {
            log.line("out", format!("line {number}").as_bytes(), false);
            log.flush();
        }
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        assert!(fs::read_to_string(&path).unwrap().contains("line 39"));
        assert!(fs::metadata(&path).unwrap().len() <= 200);
        assert_eq!(log.dropped, 0);
    }

    #[test]
    fn a_full_disk_drops_and_counts() {
        // The link stands in for the disk: writing to it says ENOSPC.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut log = LogFile::new(&path, LogLimits::default());
        log.line("out", b"a", false);
        log.line("out", b"b", false);
        log.flush();
        assert_eq!(log.dropped, 2);
        fs::remove_file(&path).unwrap();
        log.file = None;
        log.line("err", b"c\xff", false);
        log.flush();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains("\"kiln\"") && lines[0].contains("2 lines were dropped"));
        assert!(lines[1].contains("\"err\"") && lines[1].contains("c\u{fffd}"));
        assert_eq!(log.untold, 0);
    }
}
