//! Following the log to its end, and checking its chain on the way. All of it is read whenever the
//! root is opened: what instances say is bounded, so it stays small.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use kiln_core::Digest;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::fault::{Break, Fault, MENDED, Mended};
use super::head::At;
use super::line::NONE;
use crate::error::{Context as _, Result};
use crate::pointer::Pointer;

/// So many faults are told one by one.
const TOLD: usize = 20;

/// What is known of the log up to its last whole line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Known {
    /// That line.
    pub(super) at: At,
    /// The number of that line in the file.
    lines: u64,
    /// sha256 of the last line as it stands there; not that of `at` if lines cannot be read.
    raw: Digest,
    /// The last pointer of each project and stage.
    pub(crate) pointers: BTreeMap<(String, String), Placed>,
    /// What is wrong, and nobody has taken note of.
    pub(crate) faults: Vec<Fault>,
    /// The file as it was when it was last looked at.
    stamp: Option<Stamp>,
}

/// A pointer and the hash of the line that has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placed {
    pub(crate) pointer: Pointer,
    pub(crate) line: Digest,
}

/// By this a file that somebody else wrote to is told from one that nobody did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(log: &File, path: &Path) -> Result<Self> {
        let meta = log.metadata().doing("looking at", path)?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Ok(Self { inode: meta.ino(), length: meta.len(), changed })
    }
}

/// A line as far as the chain needs it.
#[derive(Deserialize)]
struct Light<'a> {
    seq: u64,
    #[serde(rename = "time")]
    _time: u64,
    #[serde(borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(default)]
    project: Option<String>,
    #[serde(default)]
    stage: Option<String>,
    #[serde(default, rename = "data")]
    _data: IgnoredAny,
    prev: Digest,
}

#[derive(Deserialize)]
struct Data {
    data: Value,
}

/// Lines that could not be read, until a good one follows: before that they are a torn tail.
#[derive(Default)]
struct Passed {
    lines: u64,
    bytes: u64,
    raw: Option<Digest>,
    why: String,
}

impl Known {
    pub(super) fn nothing() -> Self {
        Self {
            at: At::START,
            lines: 0,
            raw: NONE,
            pointers: BTreeMap::new(),
            faults: Vec::new(),
            stamp: None,
        }
    }

    /// Reads all of the log, and finds out whether it has been at the places of `must_have`.
    pub(super) fn scan(log: &File, path: &Path, must_have: &[At]) -> Result<Self> {
        let mut known = Self::nothing();
        let mut lost: Vec<At> = must_have.to_vec();
        known.read_on(log, path, &mut |at| lost.retain(|place| place != at))?;
        // One of them is told: what follows from a cut at its end is the same.
        if let Some(at) = lost.iter().min_by_key(|at| at.seq) {
            let why = if known.at.seq < at.seq {
                format!("it ends with entry {}, but entry {} was recorded", known.at.seq, at.seq)
            } else {
                format!("entry {} is not the one that was recorded", at.seq)
            };
            known.fault(Fault::Lost { seq: at.seq, why });
        }
        known.stamp = Some(Stamp::of(log, path)?);
        Ok(known)
    }

    /// Takes note of a fault.
    pub(super) fn fault(&mut self, fault: Fault) {
        if self.faults.len() < TOLD && !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    /// Reads what was added to the log. If it was changed otherwise, all of it is read anew.
    pub(super) fn follow(&mut self, log: &File, path: &Path) -> Result<()> {
        let stamp = Stamp::of(log, path)?;
        if self.stamp == Some(stamp) {
            return Ok(());
        }
        if stamp.length > self.at.end {
            self.read_on(log, path, &mut |_| {})?;
            self.stamp = Some(stamp);
            return Ok(());
        }
        let mut found = Self::scan(log, path, &[self.at])?;
        let same = found.at == self.at && found.faults.is_empty();
        if !same {
            // What this process has seen counts more than what is there now.
            let faults = std::mem::take(&mut self.faults);
            found.faults.into_iter().chain(faults).for_each(|fault| self.fault(fault));
            found.faults = std::mem::take(&mut self.faults);
            found.pointers = std::mem::take(&mut self.pointers);
            found.at = At { end: found.at.end, ..self.at };
        } else {
            found.faults = std::mem::take(&mut self.faults);
        }
        *self = found;
        Ok(())
    }

    /// The file as this process has left it.
    pub(super) fn stamp(&mut self, log: &File, path: &Path) -> Result<()> {
        self.stamp = Some(Stamp::of(log, path)?);
        Ok(())
    }

    /// Lines that cannot be read are passed over if a good one follows, as a fault; if none does,
    /// they are a torn tail, and the end stays before them.
    fn read_on(&mut self, log: &File, path: &Path, reached: &mut dyn FnMut(&At)) -> Result<()> {
        let length = log.metadata().doing("looking at", path)?.len();
        let mut offset = self.at.end;
        let mut rest = Vec::new();
        let mut chunk = vec![0; length.saturating_sub(offset).clamp(1, 1 << 20) as usize];
        let mut passed = Passed::default();
        loop {
            let read = log.read_at(&mut chunk, offset).doing("reading", path)?;
            if read == 0 {
                return Ok(());
            }
            offset += read as u64;
            rest.extend_from_slice(&chunk[..read]);
            let mut start = 0;
            while let Some(length) = rest[start..].iter().position(|byte| *byte == b'\n') {
                self.take(&rest[start..start + length], &mut passed);
                reached(&self.at);
                start += length + 1;
            }
            rest.drain(..start);
        }
    }

    /// Takes over a line that this process appends.
    pub(super) fn take_own(&mut self, line: &[u8]) {
        self.raw = self.at.head;
        self.take(line, &mut Passed::default());
    }

    fn take(&mut self, line: &[u8], passed: &mut Passed) {
        let length = line.len() as u64 + 1;
        let hash = Digest::of(line);
        let entry: Light<'_> = match serde_json::from_slice(line) {
            Ok(entry) => entry,
            Err(error) => {
                if passed.lines == 0 {
                    passed.why = format!("it is no entry: {error}");
                }
                passed.lines += 1;
                passed.bytes += length;
                passed.raw = Some(hash);
                return;
            }
        };
        self.lines += passed.lines + 1;
        let line_number = self.lines;
        let why = if passed.lines > 0 {
            Some((line_number - passed.lines, std::mem::take(&mut passed.why)))
        } else if entry.seq != self.at.seq + 1 {
            let why = format!("its number is {}, {} should follow", entry.seq, self.at.seq + 1);
            Some((line_number, why))
        } else if entry.prev != self.raw {
            let why = "the line before it has another hash than it had when this one was added";
            Some((line_number, why.to_owned()))
        } else {
            None
        };
        if let Some((line, why)) = why {
            self.fault(Fault::Line { line, said: entry.prev, why });
        }
        let end = self.at.end + passed.bytes + length;
        *passed = Passed::default();
        self.at = At { seq: entry.seq, head: hash, end };
        self.raw = hash;
        match &*entry.kind {
            "pointer" => {
                if let (Some(project), Some(stage)) = (entry.project, entry.stage)
                    && let Ok(Data { data }) = serde_json::from_slice(line)
                    && let Ok(pointer) = serde_json::from_value(data)
                {
                    self.pointers.insert((project, stage), Placed { pointer, line: hash });
                }
            }
            MENDED => {
                if let Ok(Data { data }) = serde_json::from_slice(line)
                    && let Ok(mended) = serde_json::from_value(data)
                {
                    self.mended(&mended);
                }
            }
            _ => {}
        }
    }

    fn mended(&mut self, Mended { breaks }: &Mended) {
        self.faults.retain(|fault| match fault {
            Fault::Line { line, said, .. } => !breaks.contains(&Break { line: *line, said: *said }),
            _ => true,
        });
    }
}
