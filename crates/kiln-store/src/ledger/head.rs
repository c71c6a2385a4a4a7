//! `ledger/head`: how far the log went, kept beside it. The chain shows a change of every line that
//! has a successor; this shows a change of the last one, and lines that were cut off the end.
//!
//! One line, overwritten in place at each append, without a sync: the boot, then twice number,
//! hash and end (as of the last append, and of the last one that was synced), then a sum over all
//! that. After a power cut only the second counts, which was written after its line was durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use kiln_core::Digest;

use super::line::NONE;

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    /// Sequence number of the last line.
    pub(super) seq: u64,
    /// Its sha256.
    pub(super) head: Digest,
    /// Offset behind its newline.
    pub(super) end: u64,
}

impl At {
    pub(super) const START: Self = Self { seq: 0, head: NONE, end: 0 };
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    boot: String,
    pub(super) latest: At,
    pub(super) synced: At,
}

impl Head {
    pub(super) fn new(latest: At, synced: At) -> Self {
        Self { boot: crate::owner::boot().to_owned(), latest, synced }
    }

    /// Places that the log must have reached.
    pub(super) fn must_have(&self) -> Vec<At> {
        let mut places = vec![self.synced];
        if self.boot == crate::owner::boot() {
            places.push(self.latest);
        }
        places.retain(|at| *at != At::START);
        places
    }

    fn text(&self) -> String {
        let Self { boot, latest, synced } = self;
        let at = |at: &At| format!("{} {} {}", at.seq, at.head.hex(), at.end);
        format!("{boot} {} {}", at(latest), at(synced))
    }

    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        let text = self.text();
        let line = format!("{text} {}\n", Digest::of(&text).hex());
        file.write_all_at(line.as_bytes(), 0)
    }

    /// `None` for a file that holds nothing of use; it is written again at the next append.
    pub(super) fn read(file: &File) -> Option<Self> {
        let mut bytes = [0; 512];
        let length = file.read_at(&mut bytes, 0).ok()?;
        let line = bytes[..length].split(|byte| *byte == b'\n').next()?;
        let (text, sum) = std::str::from_utf8(line).ok()?.rsplit_once(' ')?;
        if Digest::of(text).hex() != sum {
            return None;
        }
        let words: Vec<&str> = text.split(' ').collect();
        let [boot, rest @ ..] = &words[..] else { return None };
        let at = |words: &[&str]| {
            let [seq, head, end] = words else { return None };
            Some(At { seq: seq.parse().ok()?, head: head.parse().ok()?, end: end.parse().ok()? })
        };
        let (latest, synced) = (at(rest.get(..3)?)?, at(rest.get(3..)?)?);
        Some(Self { boot: (*boot).to_owned(), latest, synced })
    }
}
