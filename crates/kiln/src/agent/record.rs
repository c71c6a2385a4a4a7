//! What the agent writes into the ledger, and when it reaches the disk.
//!
//! Intents and findings are appended at once and reach the disk with the next commit: they survive
//! a killed agent, and a power cut only if something was committed after them. A commit is the one
//! flush that a deploy waits for.

use kiln_core::Digest;
use kiln_core::Release;
use kiln_core::plan::Plan;
use kiln_store::ledger::{Durability, Pointer, Record};
use serde_json::{Value, json};

use super::stage::{Role, Stage};
use super::{Agent, now_ms};
use crate::deliver::{Published, Reason};
use crate::report::{Because, Report};

fn entry(stage: &Stage, kind: &str, data: Value) -> Record {
    Record {
        time: now_ms(),
        kind: kind.to_owned(),
        project: Some(stage.id.project.clone()),
        stage: Some(stage.id.stage.clone()),
        data,
    }
}

/// Appends an entry without waiting for the disk. A ledger that cannot be written is said in the
/// agent's log: what runs goes on.
pub(crate) fn note(agent: &Agent, stage: &Stage, kind: &str, data: Value) {
    append(agent, &[entry(stage, kind, data)]);
}

/// As [`note`], of something that is not about one stage.
pub(crate) fn root_note(agent: &Agent, kind: &str, data: Value) {
    let (time, kind) = (now_ms(), kind.to_owned());
    append(agent, &[Record { time, kind, project: None, stage: None, data }]);
}

fn append(agent: &Agent, records: &[Record]) {
    if let Err(error) = agent.store.ledger().append(records, Durability::Later) {
        agent.log(&format!("ledger: {error}"));
    }
}

/// A release was cut.
pub(crate) fn cut(agent: &Agent, stage: &Stage, digest: &Digest, release: &Release) {
    let services: Value = release
        .services
        .iter()
        .map(|(name, released)| (name.clone(), json!(released.image.tree)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let data = json!({ "release": digest, "source": release.source, "services": services });
    note(agent, stage, "release.cut", data);
}

/// A deploy begins.
pub(crate) fn intent(
    agent: &Agent,
    stage: &Stage,
    target: &Published,
    reason: Reason,
    plan: &Plan,
) {
    let data = json!({ "release": target.digest, "reason": reason.word(), "plan": plan });
    note(agent, stage, "deploy.intent", data);
}

/// A deploy ended without a commit, and was undone. Gives back the report to pass on.
pub(crate) fn failed(
    agent: &Agent,
    stage: &Stage,
    target: &Published,
    reason: Reason,
    report: Report,
) -> Report {
    let data = json!({
        "release": target.digest,
        "reason": reason.word(),
        "outcome": "failed",
        "message": report.message,
    });
    note(agent, stage, "deploy.outcome", data);
    report
}

/// Moves the pointer: the last step of a deploy, and the only one that a restart believes.
pub(crate) fn commit(
    agent: &Agent,
    stage: &Stage,
    target: &Published,
    reason: Reason,
    plan: &Plan,
) -> Result<(), Report> {
    let mut pointer = stage.state().pointer.clone();
    let before = pointer.active;
    if before != Some(target.digest) {
        // After `down` the release that served is in the list, and may serve again.
        pointer.previous.retain(|digest| Some(*digest) != before && *digest != target.digest);
        if let Some(left) = before {
            pointer.previous.insert(0, left);
            pointer.previous.truncate(agent.keep(&stage.id));
        }
        pointer.standby = before;
        pointer.active = Some(target.digest);
    }
    match (reason, before) {
        (Reason::Rollback, Some(left)) if left != target.digest => {
            pointer.quarantined.insert(left);
        }
        _ => {}
    }
    pointer.quarantined.remove(&target.digest);
    let done = json!({
        "release": target.digest,
        "reason": reason.word(),
        "outcome": "done",
        "before": before,
        "paused": plan.needs_pause(),
    });
    move_pointer(agent, stage, pointer, &[("deploy.outcome", done)])
}

/// Moves the pointer to `pointer` with a batch of entries, in one flush.
pub(crate) fn move_pointer(
    agent: &Agent,
    stage: &Stage,
    pointer: Pointer,
    entries: &[(&str, Value)],
) -> Result<(), Report> {
    let records: Vec<Record> =
        entries.iter().map(|(kind, data)| entry(stage, kind, data.clone())).collect();
    let expected = stage.state().pointer.generation;
    let moved = agent
        .store
        .move_pointer(&stage.id.project, &stage.id.stage, &pointer, &records, expected)
        .because(|| format!("recording the new release of {}", stage.id))?;
    stage.update(|state| {
        state.pointer = moved;
        let (active, standby) = (state.pointer.active, state.pointer.standby);
        for slot in &mut state.slots {
            slot.role = if Some(slot.release) == active {
                Role::Active
            } else if Some(slot.release) == standby {
                Role::Standby
            } else if slot.role == Role::Candidate {
                Role::Candidate
            } else {
                Role::Names
            };
        }
    });
    agent.save(stage);
    Ok(())
}
