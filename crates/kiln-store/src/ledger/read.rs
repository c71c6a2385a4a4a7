//! Reading the log, and checking its chain.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;

use super::line::Entry;
use super::{Fault, Known, Ledger};
use crate::error::{Context as _, Error, Result};

/// Which entries are wanted; the default is all of them.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this project.
    pub project: Option<String>,
    /// Only of this stage.
    pub stage: Option<String>,
    /// Only of these kinds; empty for all.
    pub kinds: Vec<String>,
    /// Only from this sequence number on.
    pub from: u64,
    /// Only from this time on, in ms since the Unix epoch.
    pub since: u64,
    /// Only up to this time, inclusive, in ms since the Unix epoch.
    pub until: Option<u64>,
}

impl Filter {
    fn wants(&self, entry: &Entry) -> bool {
        let Self { project, stage, kinds, from, since, until } = self;
        entry.seq >= *from
            && entry.time >= *since
            && until.is_none_or(|until| entry.time <= until)
            && (project.is_none() || *project == entry.project)
            && (stage.is_none() || *stage == entry.stage)
            && (kinds.is_empty() || kinds.contains(&entry.kind))
    }
}

/// Entries of the log, one after the other; ends at the last whole line.
#[derive(Debug)]
pub struct Entries {
    log: BufReader<File>,
    path: PathBuf,
    line: u64,
    filter: Filter,
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut text = Vec::new();
        loop {
            text.clear();
            match self.log.read_until(b'\n', &mut text).doing("reading", &self.path) {
                Err(error) => return Some(Err(error)),
                // Half a line is being written, or was torn.
                Ok(_) if text.pop() != Some(b'\n') => return None,
                Ok(_) => self.line += 1,
            }
            match serde_json::from_slice::<Entry>(&text) {
                Ok(entry) if self.filter.wants(&entry) => return Some(Ok(entry)),
                Ok(_) => {}
                Err(error) => {
                    let why = format!("it is no entry: {error}");
                    return Some(Err(self.fault(why)));
                }
            }
        }
    }
}

impl Entries {
    fn fault(&self, why: String) -> Error {
        Error::Ledger { path: self.path.clone(), line: self.line, why }
    }
}

impl Ledger {
    /// All entries; see [`Ledger::select`].
    ///
    /// # Errors
    /// I/O errors.
    pub fn read(&self) -> Result<Entries> {
        self.select(Filter::default())
    }

    /// The entries that `filter` wants, oldest first. A line that is no entry is an error of its
    /// own; the iterator goes on behind it.
    ///
    /// # Errors
    /// I/O errors.
    pub fn select(&self, filter: Filter) -> Result<Entries> {
        let file = File::open(&self.path).doing("opening", &self.path)?;
        let log = BufReader::with_capacity(256 << 10, file);
        Ok(Entries { log, path: self.path.clone(), line: 0, filter })
    }

    /// Checks that every line is an entry, numbered in order, and carries the hash of the one
    /// before, but for what somebody has taken note of; returns the number of the last.
    ///
    /// # Errors
    /// [`Error::Ledger`] for the first line that is not as it was written; where a hash does not
    /// match, that is this line or the one before. I/O errors.
    pub fn verify(&self) -> Result<u64> {
        let known = Known::scan(&self.file, &self.path, &[])?;
        match known.faults.into_iter().next() {
            Some(Fault::Line { line, why, .. }) => {
                Err(Error::Ledger { path: self.path.clone(), line, why })
            }
            _ => Ok(known.at.seq),
        }
    }
}
