//! Which release a stage points to.
//!
//! The ledger is the truth: a move is one batch of entries that ends with one of kind `pointer`,
//! which carries the whole new pointer. `stages/<project>/<stage>.json` is a copy for people and
//! other programs, written afterwards without a sync and put right when the store is opened.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub use kiln_core::stage::Pointer;

use crate::durable::write_atomic;
use crate::error::{Context as _, Error, Result, component};
use crate::ledger::{Durability, Record};
use crate::store::Store;

/// All pointers, by project and stage.
pub type Pointers = BTreeMap<(String, String), Pointer>;

impl Store {
    /// The pointer of a stage; `None` if it was never moved, which counts as generation 0.
    ///
    /// # Errors
    /// I/O errors.
    pub fn pointer(&self, project: &str, stage: &str) -> Result<Option<Pointer>> {
        let known = self.ledger().followed()?;
        let key = (project.to_owned(), stage.to_owned());
        Ok(known.pointers.get(&key).cloned())
    }

    /// All pointers of the root.
    ///
    /// # Errors
    /// I/O errors.
    pub fn pointers(&self) -> Result<Pointers> {
        Ok(self.ledger().followed()?.pointers.clone())
    }

    /// Moves a stage's pointer: appends `records` and the new pointer to the ledger, with one sync,
    /// then writes the pointer's file. The pointer's own `generation` is ignored; what
    /// is recorded, and returned, has `expected_generation` + 1. The time of the move is that of the last record, or
    /// the clock's if there are none.
    ///
    /// # Errors
    /// [`Error::Stale`] if somebody else moved it since `expected_generation`; [`Error::Name`];
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
        let key = (project.to_owned(), stage.to_owned());
        let found = log.known.pointers.get(&key).map_or(0, |pointer| pointer.generation);
        if found != expected_generation {
            let (project, stage) = key;
            return Err(Error::Stale { project, stage, expected: expected_generation, found });
        }
        let pointer = Pointer { generation: found + 1, ..pointer.clone() };
        let mut batch = records.to_vec();
        batch.push(Record {
            time: records.last().map_or_else(crate::ledger::now, |record| record.time),
            kind: "pointer".to_owned(),
            project: Some(project.to_owned()),
            stage: Some(stage.to_owned()),
            data: serde_json::to_value(&pointer).unwrap_or_default(),
        });
        log.append(&batch, Durability::Now)?;
        // Still under the log's lock, so files cannot overtake one another.
        let _ = write_file(self.root(), project, stage, &pointer);
        Ok(pointer)
    }
}

/// Makes the files say what the ledger says.
pub(crate) fn repair(root: &Path, pointers: &Pointers) -> Result<()> {
    for ((project, stage), pointer) in pointers {
        let path = path(root, project, stage);
        let there = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if there.as_ref() != Some(pointer) {
            write_file(root, project, stage, pointer)?;
        }
    }
    Ok(())
}

fn path(root: &Path, project: &str, stage: &str) -> PathBuf {
    root.join("stages").join(project).join(format!("{stage}.json"))
}

fn write_file(root: &Path, project: &str, stage: &str, pointer: &Pointer) -> Result<()> {
    let path = path(root, project, stage);
    let dir = path.parent().unwrap_or(root);
    fs::create_dir_all(dir).doing("creating", dir)?;
    let text = serde_json::to_vec_pretty(pointer).unwrap_or_default();
    write_atomic(&path, &text).doing("writing", &path)
}
