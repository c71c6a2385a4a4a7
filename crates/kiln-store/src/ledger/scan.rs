//! Following the log to its end. What was learnt is kept in memory and, now and then, in
//! `ledger/checkpoint`, so that a long log need not be read whole at every start. The checkpoint
//! is a cache: it counts only if the line it names is where it says and has the hash it says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use kiln_core::Digest;
use serde::{Deserialize, Serialize};

use super::line::{Entry, NONE};
use crate::durable::write_atomic;
use crate::error::{Context as _, Result};
use crate::pointer::Pointer;

/// Bytes that are read beyond a checkpoint before another one is worth its while.
const WORTH: u64 = 1 << 20;

/// What is known of the log up to its last whole line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Known {
    /// Sequence number of that line.
    pub(crate) seq: u64,
    /// Its sha256.
    pub(crate) head: Digest,
    /// Offset behind its newline.
    pub(crate) end: u64,
    /// Length of the line without its newline.
    last: u64,
    /// The last pointer of each project and stage.
    pub(crate) pointers: BTreeMap<(String, String), Pointer>,
    /// `end` of the checkpoint that this began with.
    checkpoint: u64,
}

/// The file `ledger/checkpoint`.
#[derive(Debug, Serialize, Deserialize)]
struct Checkpoint {
    seq: u64,
    head: Digest,
    end: u64,
    last: u64,
    pointers: Vec<(String, String, Pointer)>,
}

impl Known {
    fn nothing() -> Self {
        Self { seq: 0, head: NONE, end: 0, last: 0, pointers: BTreeMap::new(), checkpoint: 0 }
    }

    /// What the checkpoint knows, if it fits the log.
    pub(super) fn resume(root: &Path, log: &File, path: &Path) -> Result<Self> {
        let text = match fs::read(root.join("ledger/checkpoint")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::nothing()),
            text => text.doing("reading", path)?,
        };
        let Ok(found) = serde_json::from_slice::<Checkpoint>(&text) else {
            return Ok(Self::nothing());
        };
        let Checkpoint { seq, head, end, last, pointers } = found;
        let Some(start) = end.checked_sub(last).and_then(|start| start.checked_sub(1)) else {
            return Ok(Self::nothing());
        };
        let length = log.metadata().doing("looking at", path)?.len();
        if end > length {
            return Ok(Self::nothing());
        }
        let mut line = vec![0; usize::try_from(last + 1).unwrap_or(0)];
        if log.read_exact_at(&mut line, start).is_err() || line.pop() != Some(b'\n') {
            return Ok(Self::nothing());
        }
        let fits = Digest::of(&line) == head
            && serde_json::from_slice::<Entry>(&line).is_ok_and(|entry| entry.seq == seq);
        if !fits {
            return Ok(Self::nothing());
        }
        let pointers =
            pointers.into_iter().map(|(project, stage, at)| ((project, stage), at)).collect();
        Ok(Self { seq, head, end, last, pointers, checkpoint: end })
    }

    /// Writes a checkpoint if much was read since the last one.
    pub(super) fn checkpoint(&self, root: &Path) -> Result<()> {
        if self.end < self.checkpoint + WORTH {
            return Ok(());
        }
        let pointers = self.pointers.iter();
        let pointers =
            pointers.map(|((project, stage), at)| (project.clone(), stage.clone(), at.clone()));
        let Self { seq, head, end, last, .. } = *self;
        let checkpoint = Checkpoint { seq, head, end, last, pointers: pointers.collect() };
        let path = root.join("ledger/checkpoint");
        let text = serde_json::to_vec(&checkpoint).unwrap_or_default();
        write_atomic(&path, &text).doing("writing", &path)
    }

    /// Reads what was added to the log. Lines that cannot be read are passed over if a good one
    /// follows (that is for [`super::Ledger::verify`] to report); if none does, they are a torn
    /// tail, and `end` stays before them.
    pub(super) fn follow(&mut self, log: &File, path: &Path) -> Result<()> {
        let length = log.metadata().doing("looking at", path)?.len();
        if length < self.end {
            // Somebody cut the log, which nobody may: what is there now is what counts.
            *self = Self::nothing();
        }
        if length == self.end {
            return Ok(());
        }
        let mut at = self.end;
        let mut rest = Vec::new();
        let mut chunk = vec![0; (length - at).min(1 << 20) as usize];
        let mut passed = 0;
        loop {
            let read = log.read_at(&mut chunk, at).doing("reading", path)?;
            if read == 0 {
                return Ok(());
            }
            at += read as u64;
            rest.extend_from_slice(&chunk[..read]);
            let mut start = 0;
            while let Some(length) = rest[start..].iter().position(|byte| *byte == b'\n') {
                let line = &rest[start..start + length];
                // A bad line counts towards the end once a good one follows it.
                passed += length as u64 + 1;
                if self.take_after(line, passed) {
                    passed = 0;
                }
                start += length + 1;
            }
            rest.drain(..start);
        }
    }

    /// Takes over a line that this process appends.
    pub(super) fn take(&mut self, line: &[u8]) {
        self.take_after(line, line.len() as u64 + 1);
    }

    /// Takes over `line`, which ends `length` bytes behind `end`, if it is one.
    fn take_after(&mut self, line: &[u8], length: u64) -> bool {
        let Ok(entry) = serde_json::from_slice::<Entry>(line) else { return false };
        self.seq = entry.seq;
        self.head = Digest::of(line);
        self.end += length;
        self.last = line.len() as u64;
        if entry.kind == "pointer"
            && let (Some(project), Some(stage)) = (entry.project, entry.stage)
            && let Ok(pointer) = serde_json::from_value::<Pointer>(entry.data)
        {
            self.pointers.insert((project, stage), pointer);
        }
        true
    }
}
