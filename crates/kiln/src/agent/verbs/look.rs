//! `ps`, `status`, `releases`, `history`, `images`, `gc`: what is there and what was.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_core::Digest;
use kiln_store::ledger::Filter;
use serde_json::{Value, json};

use super::serve::ports;
use super::{Answer, nothing_serves};
use crate::agent::session::Session;
use crate::agent::stage::{Instance, Life, Role, Stage, StageState};
use crate::agent::{Agent, record, released};
use crate::report::{Because, Report};

/// So long a cache of steps that nobody uses is kept.
const CACHE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// `kiln ps`: every instance, with its slots.
pub(super) fn ps(agent: &Agent, project: Option<&str>) -> Answer {
    let mut rows = Vec::new();
    for stage in agent.stages() {
        if project.is_some_and(|project| project != stage.id.project) {
            continue;
        }
        let state = stage.state();
        for instance in state.instances.values() {
            let mut row = describe(&state, instance);
            row["project"] = json!(stage.id.project);
            row["stage"] = json!(stage.id.stage);
            rows.push(row);
        }
    }
    json!({ "instances": rows }).into()
}

fn describe(state: &StageState, instance: &Instance) -> Value {
    let slots: Vec<Value> = state
        .slots
        .iter()
        .filter(|slot| slot.members.get(&instance.service) == Some(&instance.id))
        .filter(|slot| slot.role != Role::Names)
        .map(|slot| json!({ "role": slot.role, "release": slot.release }))
        .collect();
    json!({
        "id": instance.id,
        "service": instance.service,
        "slots": slots,
        "state": if instance.unknown.is_some() { "unknown" } else { instance.life.word() },
        "how": match (&instance.unknown, &instance.life) {
            (Some(why), _) => Some(why),
            (None, Life::BackOff { how } | Life::Failed { how }) => Some(how),
            _ => None,
        },
        "verdict": verdict(instance),
        "tainted": instance.tainted,
        "restarts": instance.restarts,
        "address": instance.address,
        "pid": instance.running.as_ref().map(|running| running.pid()),
        "started": instance.started,
    })
}

/// Nothing watches files and programs of instances yet, so congruence is never claimed.
fn verdict(instance: &Instance) -> &'static str {
    if instance.tainted.is_some() { "drifted" } else { "unknown" }
}

/// `kiln status`.
pub(super) fn status(agent: &Agent, stage: &Stage) -> Result<Answer, Report> {
    let state = stage.state();
    let Some(active) = state.pointer.active else { return Err(nothing_serves(stage)) };
    let release = agent.release(&active)?;
    let services: Vec<Value> = release
        .services
        .keys()
        .map(|name| match state.member(&active, name) {
            Some(instance) => describe(&state, instance),
            None => json!({ "service": name, "state": "missing" }),
        })
        .collect();
    Ok(json!({
        "project": stage.id.project,
        "stage": stage.id.stage,
        "active": active,
        "standby": state.pointer.standby,
        "source": release.source,
        "paused": state.paused,
        "services": services,
        "ports": ports(&release, &stage.id.stage),
        "scope": agent.host.range().scope(),
        "backing": agent.store.backing().to_string(),
    })
    .into())
}

/// `kiln status` outside of any project: the root at a glance.
pub(super) fn overview(agent: &Agent) -> Result<Answer, Report> {
    let mut stages = Vec::new();
    for stage in agent.stages() {
        let state = stage.state();
        // Asking for a stage makes it known; it is shown once something was in it.
        if state.instances.is_empty() && state.pointer.generation == 0 {
            continue;
        }
        stages.push(json!({
            "project": stage.id.project,
            "stage": stage.id.stage,
            "active": state.pointer.active,
            "standby": state.pointer.standby,
            "instances": state.instances.len(),
        }));
    }
    Ok(json!({
        "root": agent.root,
        "scope": agent.host.range().scope(),
        "network": agent.host.range().cidr(),
        "backing": agent.store.backing().to_string(),
        "notices": agent.host.notices(),
        "stages": stages,
    })
    .into())
}

/// `kiln releases`: the active one and those that can be restored.
pub(super) fn releases(agent: &Agent, stage: &Stage) -> Result<Answer, Report> {
    let pointer = stage.state().pointer.clone();
    let mut rows = Vec::new();
    let mut seen = BTreeSet::new();
    for digest in pointer.active.iter().chain(&pointer.previous) {
        if !seen.insert(*digest) {
            continue;
        }
        let release = agent.release(digest)?;
        let role = if Some(*digest) == pointer.active {
            "active"
        } else if Some(*digest) == pointer.standby {
            "standby"
        } else {
            "kept"
        };
        rows.push(json!({
            "release": digest,
            "role": role,
            "quarantined": pointer.quarantined.contains(digest),
            "source": release.source,
            "services": release.services.len(),
        }));
    }
    for cut in released::of(agent, &stage.id.project)? {
        if seen.insert(cut.release) {
            let release = agent.release(&cut.release)?;
            rows.push(json!({
                "release": cut.release,
                "role": "released",
                "time": cut.time,
                "quarantined": pointer.quarantined.contains(&cut.release),
                "source": release.source,
                "services": release.services.len(),
            }));
        }
    }
    Ok(json!({ "releases": rows }).into())
}

/// `kiln history`: the ledger, oldest first, an entry a line.
pub(super) fn history(
    agent: &Agent,
    session: &Session,
    project: Option<&str>,
    stage: Option<&str>,
    limit: Option<usize>,
) -> Result<Answer, Report> {
    let doing = || "reading the ledger".to_owned();
    let mut entries = Vec::new();
    let filter = Filter {
        project: project.map(str::to_owned),
        stage: stage.map(str::to_owned),
        ..Filter::default()
    };
    for entry in agent.store.ledger().select(filter).because(doing)? {
        entries.push(entry.because(doing)?);
    }
    let skip = limit.map_or(0, |limit| entries.len().saturating_sub(limit));
    for entry in entries.drain(skip..) {
        session.item(serde_json::to_value(&entry).because(doing)?);
    }
    Ok(Value::Null.into())
}

/// Everything that a release, slot or pointer of this root names.
struct Named {
    /// Releases and all that they pin.
    keep: BTreeSet<Digest>,
    /// Trees, each with a service that uses it.
    trees: Vec<(Digest, String)>,
}

fn named(agent: &Agent) -> Result<Named, Report> {
    let mut releases: BTreeSet<Digest> = BTreeSet::new();
    for stage in agent.stages() {
        let state = stage.state();
        let pointer = &state.pointer;
        releases.extend(pointer.active.iter().chain(&pointer.standby).chain(&pointer.previous));
        releases.extend(state.slots.iter().map(|slot| slot.release));
    }
    releases.extend(released::all(agent)?.into_iter().map(|cut| cut.release));
    let mut keep = releases.clone();
    let mut trees = Vec::new();
    for digest in releases {
        let release = agent.release(&digest)?;
        keep.extend(release.pins());
        for (name, released) in &release.services {
            trees.push((released.image.tree, format!("{}/{name}", release.project)));
        }
    }
    let refs = agent.store.refs().because(|| "listing images".into())?;
    for ((_, name), digests) in refs.into_iter().filter(|((kind, _), _)| kind == "imports") {
        // One of the two is the tree; the other matches none.
        trees.extend(digests.into_iter().map(|digest| (digest, format!("import {name}"))));
    }
    Ok(Named { keep, trees })
}

/// `kiln images`: every image in the store, how large it is and who names it.
pub(super) fn images(agent: &Agent) -> Result<Answer, Report> {
    let named = named(agent)?.trees;
    let mut rows = Vec::new();
    for image in agent.store.images().because(|| "listing images".into())? {
        let users: BTreeSet<&String> =
            named.iter().filter(|(tree, _)| *tree == image.tree).map(|(_, user)| user).collect();
        rows.push(json!({
            "tree": image.tree,
            "files": image.files,
            "bytes": image.bytes,
            "used_by": users,
        }));
    }
    Ok(json!({ "images": rows }).into())
}

/// `kiln gc`.
pub(super) fn gc(agent: &Agent, dry_run: bool) -> Result<Answer, Report> {
    let named = named(agent)?;
    let report = agent.store.gc(&named.keep, dry_run).because(|| "collecting".into())?;
    let mut data = serde_json::to_value(&report).because(|| "collecting".into())?;
    let room = kiln_bake::mount::caches::room(agent.store.root());
    let caches = kiln_bake::mount::caches::collect(&room, CACHE_AGE, dry_run)
        .because(|| "collecting the caches of steps".into())?;
    data["step_caches"] = json!(caches.caches);
    data["step_cache_bytes"] = json!(caches.bytes);
    if !dry_run {
        record::root_note(agent, "gc", data.clone());
    }
    Ok(json!({ "dry_run": dry_run, "collected": data }).into())
}
