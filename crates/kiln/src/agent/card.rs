//! The card of an instance: what its folder says it is. It is written before anything of the instance
//! runs, so an agent that finds no run file, or one that it cannot read, still knows what runs there.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::stage::{Instance, StageId};
use super::summed;
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
        summed::write(&path(dir), self).because(doing)
    }

    /// That of the instance in `dir`; `None`: it has none.
    ///
    /// # Errors
    /// When it cannot be read, makes no sense, or is another instance's.
    pub(crate) fn read(dir: &Path) -> std::io::Result<Option<Self>> {
        let card: Option<Self> = summed::read(&path(dir))?;
        let own = |card: &Self| dir.file_name().is_some_and(|id| id == card.instance.id.as_str());
        match card {
            Some(card) if !own(&card) => {
                Err(std::io::Error::other(format!("it is that of {}", card.instance.id)))
            }
            card => Ok(card),
        }
    }
}
