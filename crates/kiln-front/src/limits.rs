//! How long silence is borne, on both sides: the defaults, and what a root's own file says instead.
//!
//! `<root>/front/limits.json` is read when a worker starts: one object with milliseconds by name,
//! such as `{"head": 10000}`. What it does not name keeps its default.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use serde::Deserialize;

/// Longest file that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// The limits of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of a client between two requests, or before the first. Above the 90 s of the most patient
    /// common clients (Go, reqwest), so that they close first and lose nothing.
    pub(crate) idle: Duration,
    /// Of a client in a head, from its first byte on.
    pub(crate) head: Duration,
    /// Of a client in the body of a request.
    pub(crate) body: Duration,
    /// Of an upstream before it begins to answer, from when its request moved last. Long polls and
    /// reports take minutes.
    pub(crate) answer: Duration,
    /// Of an upstream in the middle of an answer: event streams are quiet for long. That the client
    /// has gone shows in a moment, whatever the upstream says. Over HTTP/2 of both sides.
    pub(crate) quiet: Duration,
    /// Of either side that takes nothing of what is for it. A player that was paused reads on.
    pub(crate) stall: Duration,
    /// Of a server over TCP, as long as it is silent, whose client has said all.
    pub(crate) after_client: Duration,
    /// Of a client over TCP, as long as it is silent, whose server has said all.
    pub(crate) after_upstream: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(120),
            head: Duration::from_secs(60),
            body: Duration::from_secs(60),
            answer: Duration::from_secs(600),
            quiet: Duration::from_secs(3600),
            stall: Duration::from_secs(300),
            after_client: Duration::from_secs(300),
            after_upstream: Duration::from_secs(60),
        }
    }
}

/// Milliseconds, as far as they are stated.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Stated {
    idle: Option<u64>,
    head: Option<u64>,
    body: Option<u64>,
    answer: Option<u64>,
    quiet: Option<u64>,
    stall: Option<u64>,
    after_client: Option<u64>,
    after_upstream: Option<u64>,
}

impl Limits {
    /// What the file at `path` says; the defaults where there is none.
    ///
    /// # Errors
    /// When it is there and cannot be understood: then nothing of it counts.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let text = match text(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let stated: Stated = serde_json::from_slice(&text)?;
        let default = Self::default();
        let or = |stated: Option<u64>, default: Duration| match stated {
            Some(0) => Err(io::Error::other("a limit of 0 would end everything at once")),
            Some(ms) => Ok(Duration::from_millis(ms)),
            None => Ok(default),
        };
        Ok(Self {
            idle: or(stated.idle, default.idle)?,
            head: or(stated.head, default.head)?,
            body: or(stated.body, default.body)?,
            answer: or(stated.answer, default.answer)?,
            quiet: or(stated.quiet, default.quiet)?,
            stall: or(stated.stall, default.stall)?,
            after_client: or(stated.after_client, default.after_client)?,
            after_upstream: or(stated.after_upstream, default.after_upstream)?,
        })
    }
}

/// A pipe is not waited for, and nothing is read without end.
fn text(path: &Path) -> io::Result<Vec<u8>> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other("it is longer than 64 KiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_stated_keeps_its_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("limits.json");
        assert_eq!(Limits::read(&path).unwrap(), Limits::default());
        std::fs::write(&path, r#"{"head": 250}"#).unwrap();
        let head = Duration::from_millis(250);
        assert_eq!(Limits::read(&path).unwrap(), Limits { head, ..Limits::default() });
        for wrong in [r#"{"haed": 250}"#, r#"{"head": "1s"}"#, r#"{"head": 0}"#, "{", ""] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Limits::read(&path).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let text = |length| format!("{{\"head\": 250}}{:length$}", "");
        std::fs::write(at("fits"), text((64 << 10) - 13)).unwrap();
        assert_eq!(Limits::read(&at("fits")).unwrap().head, Duration::from_millis(250));
        std::fs::write(at("long"), text((64 << 10) - 12)).unwrap();
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), kind, mode, 0).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("endless")).unwrap();
        let rows = [
            ("long", "longer than 64 KiB"),
            ("pipe", "no regular file"),
            ("endless", "no regular file"),
            (".", "no regular file"),
        ];
        for (name, why) in rows {
            let said = Limits::read(&at(name)).unwrap_err().to_string();
            assert!(said.contains(why), "{name}: {said}");
        }
    }
}
