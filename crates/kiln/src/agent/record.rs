//! What the agent writes into the ledger, and when it reaches the disk.
//!
//! Intents and findings are appended at once and reach the disk with the next commit: they survive
//! a killed agent, and a power cut only if something was committed after them. A commit is the one
//! flush that a deploy waits for.

use kiln_core::Digest;
use kiln_core::Release;
use kiln_core::plan::Plan;
use kiln_core::stage::Cause;
use kiln_store::ledger::{Durability, Pointer, Record};
use serde_json::{Value, json};

use super::stage::Stage;
use super::{Agent, commands, now_ms, released, who};
use crate::deliver::{Published, Reason};
use crate::report::{Because, Report};

fn entry(stage: &Stage, kind: &str, mut data: Value) -> Record {
    who::sign(&mut data);
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
    append(agent, &agent.said.take(entry(stage, kind, data)));
}

/// As [`note`], of something that is not about one stage.
pub(crate) fn root_note(agent: &Agent, kind: &str, mut data: Value) {
    who::sign(&mut data);
    let (time, kind) = (now_ms(), kind.to_owned());
    append(agent, &[Record { time, kind, project: None, stage: None, data }]);
}

/// Keeps a command line apart, and notes in `data` by what it can be found again.
pub(crate) fn command(agent: &Agent, instance: &str, argv: &[String], data: &mut Value) {
    match commands::keep(&agent.root, instance, argv) {
        Ok(digest) => data["command"] = json!(digest),
        Err(error) => agent.log(&format!("keeping a command line: {error}")),
    }
}

/// Writes what was folded in minutes that are over by `now`.
pub(crate) fn folded(agent: &Agent, now: u64) {
    append(agent, &agent.said.due(now));
}

fn append(agent: &Agent, records: &[Record]) {
    if records.is_empty() {
        return;
    }
    if let Err(error) = agent.store.ledger().append(records, Durability::Later) {
        agent.log(&format!("ledger: {error}"));
    }
}

/// A release was cut. What it came after is this root's history, so it stands here and not in the
/// release.
pub(crate) fn cut(agent: &Agent, stage: &Stage, published: &Published) {
    let mut data = cut_data(&published.digest, &published.release);
    data["parent"] = json!(stage.state().last_served());
    note(agent, stage, "release.cut", data);
}

/// What the ledger says of a release when it is cut.
pub(crate) fn cut_data(digest: &Digest, release: &Release) -> Value {
    let services: serde_json::Map<String, Value> = release
        .services
        .iter()
        .map(|(name, released)| (name.clone(), json!(released.image.tree)))
        .collect();
    json!({ "release": digest, "source": release.source, "services": services })
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
    let pointer = stage.state().pointer.clone();
    let before = pointer.active;
    let cause = match reason {
        Reason::Up => {
            let proposed = target.release.proposes.get(&stage.id.stage);
            Cause::Entered(proposed.copied().unwrap_or_default())
        }
        Reason::Rollback => Cause::RolledBack,
        Reason::Restore | Reason::Restart => Cause::Restored,
    };
    let mut pointer = pointer.moved(target.digest, cause);
    let wish = stage.wished();
    pointer.folder = wish.folder.or(pointer.folder);
    pointer.renewed += u64::from(wish.renew);
    if pointer.has_stray_quarantines() {
        let cuts = released::of(agent, &stage.id.project)?;
        pointer = pointer.forgetting(&cuts.into_iter().map(|cut| cut.release).collect());
    }
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
    let expected = {
        let state = stage.state();
        state.may_record(&pointer)?;
        state.pointer.generation
    };
    let moved = agent
        .store
        .move_pointer(&stage.id.project, &stage.id.stage, &pointer, &records, expected)
        .because(|| format!("recording the new release of {}", stage.id))?;
    stage.update(|state| state.record(moved))?;
    agent.save(stage);
    Ok(())
}
