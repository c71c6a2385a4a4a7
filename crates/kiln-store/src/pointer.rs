//! Which release a stage points to.
//!
//! The ledger is the truth: a move is one batch of entries that ends with one of kind `pointer`,
//! which carries the whole new pointer. `stages/<project>/<stage>.json` is a copy for people and
//! other programs, written afterwards without a sync. A copy that lags behind is put right when the
//! store is opened; one that is ahead, or says something else, shows that the ledger was damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use kiln_core::Digest;
pub use kiln_core::stage::Pointer;
use serde::{Deserialize, Serialize};

use crate::disk;
use crate::durable::write_atomic;
use crate::error::{Context as _, Error, Result, component};
use crate::ledger::{Appending, Durability, Fault, Placed, Record};
use crate::store::Store;

/// All pointers, by project and stage.
pub type Pointers = BTreeMap<(String, String), Pointer>;

impl Store {
    /// The pointer of a stage; `None` if it was never moved, which counts as generation 0.
    ///
    /// # Errors
    /// I/O errors.
    pub fn pointer(&self, project: &str, stage: &str) -> Result<Option<Pointer>> {
        Ok(self.ledger().pointers()?.remove(&(project.to_owned(), stage.to_owned())))
    }

    /// All pointers of the root.
    ///
    /// # Errors
    /// I/O errors.
    pub fn pointers(&self) -> Result<Pointers> {
        self.ledger().pointers()
    }

    /// Moves a stage's pointer: appends `records` and the new pointer to the ledger, with one sync,
    /// then writes the pointer's file. The pointer's own `generation` is ignored; what
    /// is recorded, and returned, has `expected_generation` + 1. The time of the move is that of the last record, or
    /// the clock's if there are none.
    ///
    /// # Errors
    /// [`Error::Stale`] if somebody else moved it since `expected_generation`; [`Error::Held`] while
    /// something is wrong with the ledger; [`Error::Name`];
    /// I/O errors. The pointer is where it was then, except after an error in writing its file,
    /// which is not reported: the move is recorded, and the file is put right at the next open.
    pub fn move_pointer(
        &self,
        project: &str,
        stage: &str,
        pointer: &Pointer,
        records: &[Record],
        expected_generation: u64,
    ) -> Result<Pointer> {
        component("project", project)?;
        component("stage", stage)?;
        let mut log = self.ledger().appending()?;
        if !log.known.faults.is_empty() {
            return Err(Error::Held { faults: log.known.faults.clone() });
        }
        let key = (project.to_owned(), stage.to_owned());
        let found = log.known.pointers.get(&key).map_or(0, |placed| placed.pointer.generation);
        if found != expected_generation {
            let (project, stage) = key;
            return Err(Error::Stale { project, stage, expected: expected_generation, found });
        }
        let pointer = Pointer { generation: found + 1, ..pointer.clone() };
        record(&mut log, project, stage, &pointer, records)?;
        Ok(pointer)
    }

    /// That nothing is wrong with the ledger: only then is anything delivered or collected.
    ///
    /// # Errors
    /// [`Error::Held`]; I/O errors.
    pub fn ledger_is_whole(&self) -> Result<()> {
        match self.ledger().faults()? {
            faults if faults.is_empty() => Ok(()),
            faults => Err(Error::Held { faults }),
        }
    }
}

/// Appends `records` and the pointer, in one batch and durably, then writes its copy.
pub(crate) fn record(
    log: &mut Appending<'_>,
    project: &str,
    stage: &str,
    pointer: &Pointer,
    records: &[Record],
) -> Result<()> {
    let mut batch = records.to_vec();
    batch.push(Record {
        time: records.last().map_or_else(crate::ledger::now, |record| record.time),
        kind: "pointer".to_owned(),
        project: Some(project.to_owned()),
        stage: Some(stage.to_owned()),
        data: serde_json::to_value(pointer).unwrap_or_default(),
    });
    log.append(&batch, Durability::Now)?;
    // Still under the log's lock, so files cannot overtake one another.
    if let Some(placed) = log.known.pointers.get(&(project.to_owned(), stage.to_owned())) {
        let _ = write_copy(log.root(), project, stage, placed);
    }
    Ok(())
}

/// The file `stages/<project>/<stage>.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Copy {
    #[serde(flatten)]
    pointer: Pointer,
    /// sha256 of the line that has it.
    #[serde(default)]
    line: Option<Digest>,
    /// sha256 of all that, so that a damaged copy is told from one that is right.
    #[serde(default)]
    sum: Option<Digest>,
}

impl Copy {
    fn sum(pointer: &Pointer, line: &Digest) -> Digest {
        Digest::of(serde_json::to_vec(&(pointer, line)).unwrap_or_default())
    }

    /// `None` for one that nobody wrote so.
    fn read(text: &[u8]) -> Option<Self> {
        let copy: Self = serde_json::from_slice(text).ok()?;
        match (copy.line, copy.sum) {
            (Some(line), Some(sum)) => (Self::sum(&copy.pointer, &line) == sum).then_some(copy),
            // As an earlier version wrote it.
            (None, None) => Some(copy),
            _ => None,
        }
    }
}

/// What the copies have that the ledger has not.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) faults: Vec<Fault>,
    /// Of those the log has no line, or another one.
    pub(crate) ahead: Pointers,
    /// These are to be written again.
    pub(crate) behind: Vec<(String, String)>,
}

/// Compares the copies with what the ledger says.
pub(crate) fn compare(root: &Path, known: &BTreeMap<(String, String), Placed>) -> Result<Compared> {
    let mut compared = Compared::default();
    let mut keys: BTreeSet<(String, String)> = known.keys().cloned().collect();
    keys.extend(copies(root)?);
    for key in keys {
        let placed = known.get(&key);
        let copy = fs::read(path(root, &key.0, &key.1)).ok();
        let copy = copy.and_then(|text| Copy::read(&text));
        let Some(Copy { pointer, line, .. }) = copy else {
            compared.behind.extend(placed.map(|_| key));
            continue;
        };
        let ledger = placed.map_or(0, |placed| placed.pointer.generation);
        let agrees = placed.is_some_and(|placed| {
            placed.pointer == pointer && line.is_none_or(|line| line == placed.line)
        });
        if pointer.generation < ledger || agrees && line.is_none() {
            compared.behind.push(key);
        } else if !agrees {
            let (project, stage) = key.clone();
            let copy = pointer.generation;
            compared.faults.push(Fault::Copy { project, stage, ledger, copy });
            // One without a sum may itself be what was changed.
            if line.is_some() || placed.is_none() {
                compared.ahead.insert(key, pointer);
            }
        }
    }
    Ok(compared)
}

/// The stages of which there is a copy.
fn copies(root: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let top = root.join("stages");
    for project in fs::read_dir(&top).doing("reading", &top)? {
        let project = project.doing("reading", &top)?;
        let Ok(entries) = fs::read_dir(project.path()) else { continue };
        for entry in entries {
            let name = entry.doing("reading", project.path())?.file_name();
            if let (Some(project), Some(stage)) =
                (project.file_name().to_str(), name.to_str().and_then(|n| n.strip_suffix(".json")))
                && !stage.starts_with('.')
            {
                found.push((project.to_owned(), stage.to_owned()));
            }
        }
    }
    Ok(found)
}

/// Makes copies say what the ledger says.
pub(crate) fn repair(
    root: &Path,
    known: &BTreeMap<(String, String), Placed>,
    behind: &[(String, String)],
) -> Result<()> {
    for key in behind {
        if let Some(placed) = known.get(key) {
            write_copy(root, &key.0, &key.1, placed)?;
        }
    }
    Ok(())
}

fn path(root: &Path, project: &str, stage: &str) -> PathBuf {
    root.join("stages").join(project).join(format!("{stage}.json"))
}

fn write_copy(root: &Path, project: &str, stage: &str, placed: &Placed) -> Result<()> {
    let path = path(root, project, stage);
    let dir = path.parent().unwrap_or(root);
    disk::create_dirs(dir).doing("creating", dir)?;
    let Placed { pointer, line } = placed;
    let sum = Some(Copy::sum(pointer, line));
    let copy = Copy { pointer: pointer.clone(), line: Some(*line), sum };
    let text = serde_json::to_vec_pretty(&copy).unwrap_or_default();
    write_atomic(&path, &text).doing("writing", &path)
}
