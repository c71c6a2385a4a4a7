//! The card of an instance: what its folder says it is. It is written before anything of the instance
//! runs, so an agent that finds no run file, or one that it cannot read, still knows what runs there.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::stage::{Instance, StageId};
use crate::report::{Because, Report};

/// What is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Card {
    /// Where it belongs.
    pub stage: StageId,
    /// What it is, as of its start.
    pub instance: Instance,
    /// The addresses at which it finds the services of its slot.
    pub names: BTreeMap<String, Ipv4Addr>,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("instance.json")
}

impl Card {
    /// Writes it into the instance's folder `dir`, which is made if it is not there.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), Report> {
        let doing = || format!("writing {}", path(dir).display());
        DirBuilder::new().recursive(true).mode(0o700).create(dir).because(doing)?;
        let text = serde_json::to_vec(self).because(doing)?;
        std::fs::write(path(dir), text).because(doing)
    }

    /// That of the instance in `dir`; `None`: it has none.
    ///
    /// # Errors
    /// When it cannot be read, or makes no sense.
    pub(crate) fn read(dir: &Path) -> std::io::Result<Option<Self>> {
        match std::fs::read(path(dir)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
