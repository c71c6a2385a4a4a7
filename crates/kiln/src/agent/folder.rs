//! Which folder a stage was deployed from.
//!
//! Two folders that give the same project name mean the same stage, as with Compose: mostly by
//! accident, for a name that nobody wrote is that of the folder. So the pointer keeps the folder
//! whose project serves, and another one touches nothing of it unless that is said.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kiln_core::stage::Pointer;

use super::session::Session;
use super::stage::{Role, Stage};
use super::{Agent, record, volumes};
use crate::report::Report;

/// The folder of a project as it is recorded: links resolved, as far as that can be done.
pub(crate) fn of(dir: &Path) -> PathBuf {
    dir.canonicalize().unwrap_or_else(|_| dir.to_owned())
}

/// Whether the stage was deployed from `dir`; yes if nobody knows where from.
pub(crate) fn is_own(stage: &Stage, dir: &Path) -> bool {
    let Some(recorded) = stage.state().pointer.folder.clone() else { return true };
    let node = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    let recorded = PathBuf::from(recorded);
    recorded == of(dir) || node(&recorded).is_some_and(|found| node(dir) == Some(found))
}

/// Records the folder that a command wishes, if a delivery had nothing to do and so did not.
pub(crate) fn keep(agent: &Agent, stage: &Stage) -> Result<(), Report> {
    let pointer = Pointer::clone(&stage.state().pointer);
    let folder = stage.wished().folder;
    if folder.is_none() || folder == pointer.folder {
        return Ok(());
    }
    let entry = serde_json::json!({ "folder": folder, "before": pointer.folder });
    let _delivery = stage.deliver()?;
    let moved = Pointer { folder, ..pointer };
    record::move_pointer(agent, stage, moved, &[("stage.folder", entry)])
}

/// Refuses to touch what another folder deployed here, by name. `why` is what would happen, and
/// `hint` how to have it happen. A folder that is gone has nothing to say any more.
pub(crate) fn check(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    dir: &Path,
    consent: &Consent<'_>,
) -> Result<(), Report> {
    if is_own(stage, dir) {
        return Ok(());
    }
    let Some(other) = stage.state().pointer.folder.clone() else { return Ok(()) };
    let what = belongings(agent, stage)?;
    let Some(what) = what else { return Ok(()) };
    let said = format!(
        "project `{}` was deployed from {}, and this is {}: {}",
        stage.id.project,
        other,
        dir.display(),
        what
    );
    let gone = std::fs::symlink_metadata(Path::new(&other))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    if gone || consent.given {
        let gone = if gone { "; that folder is gone" } else { "" };
        session.notice(format!("{said}{gone}"));
        return Ok(());
    }
    Err(Report::refused(format!("{said}; {}", consent.nothing)).hint(consent.hint))
}

/// Whether the user wants what another folder deployed touched.
#[derive(Debug)]
pub(crate) struct Consent<'a> {
    /// They said so.
    pub given: bool,
    /// What was not done without it.
    pub nothing: &'a str,
    /// How to say so.
    pub hint: &'a str,
}

/// What is there of the stage, in words; `None` if nothing runs and no volume is left.
fn belongings(agent: &Agent, stage: &Stage) -> Result<Option<String>, Report> {
    let services: BTreeSet<String> = {
        let state = stage.state();
        let active = state.with_role(Role::Active);
        active.map(|slot| slot.members.keys().cloned().collect()).unwrap_or_default()
    };
    let volumes: Vec<String> =
        volumes::list(agent, &stage.id)?.into_iter().map(|volume| volume.name).collect();
    let mut words = Vec::new();
    if !services.is_empty() {
        let names: Vec<String> = services.iter().map(|name| format!("`{name}`")).collect();
        let run = if names.len() == 1 { "runs" } else { "run" };
        words.push(format!("{} {run} here", names.join(", ")));
    }
    if !volumes.is_empty() {
        let hold = if volumes.len() == 1 { "holds" } else { "hold" };
        words.push(format!("{} {hold} its data", volumes.join(", ")));
    }
    Ok((!words.is_empty()).then(|| words.join(", and ")))
}
