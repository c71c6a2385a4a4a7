//! `ps`, `status`, `releases`, `history`, `images`, `gc`: what is there and what was.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_core::Digest;
use kiln_core::exit::Exit;
use kiln_store::ledger::Filter;
use kiln_store::{Error, GcOptions, Pointer};
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
        .filter(|slot| slot.has(&instance.service, &instance.id))
        .map(|slot| (state.role(&slot.release), slot.release))
        .filter(|(role, _)| *role != Role::Names)
        .map(|(role, release)| json!({ "role": role, "release": release }))
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
    let release = agent.release(&active);
    let names: BTreeSet<String> = match &release {
        Ok(release) => release.services.keys().cloned().collect(),
        // What runs is known all the same.
        Err(_) => {
            state.slot(&active).map(|s| s.members.keys().cloned().collect()).unwrap_or_default()
        }
    };
    let services: Vec<Value> = names
        .iter()
        .map(|name| match state.member(&active, name) {
            Some(instance) => describe(&state, instance),
            None => json!({ "service": name, "state": "missing" }),
        })
        .collect();
    drop(state);
    let ledger = agent.store.ledger().faults().because(|| "looking at the ledger".into())?;
    let front = agent.front_says(stage);
    let state = stage.state();
    Ok(json!({
        "front": front,
        "broken": release.as_ref().err().map(|report| &report.message),
        "ledger": ledger.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "project": stage.id.project,
        "stage": stage.id.stage,
        "active": active,
        "standby": state.pointer.standby,
        "source": release.as_ref().ok().map(|release| &release.source),
        "paused": state.is_held(),
        "trouble": agent.troubles.of(&stage.id),
        "services": services,
        "ports": release.map(|release| ports(&release, &stage.id.stage)).unwrap_or_default(),
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
            "trouble": agent.troubles.of(&stage.id),
        }));
    }
    let ledger = agent.store.ledger().faults().because(|| "looking at the ledger".into())?;
    Ok(json!({
        "ledger": ledger.iter().map(ToString::to_string).collect::<Vec<_>>(),
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
        let role = if Some(*digest) == pointer.active {
            "active"
        } else if Some(*digest) == pointer.standby {
            "standby"
        } else {
            "kept"
        };
        rows.push(restorable(agent, &pointer, digest, role, None));
    }
    for cut in released::of(agent, &stage.id.project)? {
        if seen.insert(cut.release) {
            rows.push(restorable(agent, &pointer, &cut.release, "released", Some(cut.time)));
        }
    }
    Ok(json!({ "releases": rows }).into())
}

/// A line of `releases`. One that cannot be read is listed all the same, as broken.
fn restorable(
    agent: &Agent,
    pointer: &Pointer,
    digest: &Digest,
    role: &str,
    time: Option<u64>,
) -> Value {
    let mut row = json!({
        "release": digest,
        "role": role,
        "quarantined": pointer.quarantined.contains(digest),
    });
    if let Some(time) = time {
        row["time"] = json!(time);
    }
    match agent.release(digest) {
        Ok(release) => {
            row["source"] = json!(release.source);
            row["services"] = json!(release.services.len());
        }
        Err(report) => row["broken"] = json!(report.message),
    }
    row
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

/// The releases that slots and pointers of this root name, and those that were cut.
fn named(agent: &Agent) -> BTreeSet<Digest> {
    let mut releases: BTreeSet<Digest> = BTreeSet::new();
    for stage in agent.stages() {
        let state = stage.state();
        let pointer = &state.pointer;
        releases.extend(pointer.active.iter().chain(&pointer.standby).chain(&pointer.previous));
        releases.extend(state.slots.iter().map(|slot| slot.release));
    }
    releases
}

/// Who uses what.
struct Users {
    /// Trees, each with a service that uses it.
    trees: Vec<(Digest, String)>,
    /// What could not be read on the way.
    broken: Vec<String>,
}

fn users(agent: &Agent) -> Result<Users, Report> {
    let (mut trees, mut broken) = (Vec::new(), Vec::new());
    let mut releases = named(agent);
    releases.extend(released::all(agent)?.into_iter().map(|cut| cut.release));
    for digest in releases {
        match agent.release(&digest) {
            Ok(release) => trees.extend(release.services.iter().map(|(name, released)| {
                (released.image.tree, format!("{}/{name}", release.project))
            })),
            Err(report) => broken.push(report.message),
        }
    }
    let refs = agent.store.refs().because(|| "listing images".into())?;
    for ((_, name), digests) in refs.into_iter().filter(|((kind, _), _)| kind == "imports") {
        // One of the two is the tree; the other matches none.
        trees.extend(digests.into_iter().map(|digest| (digest, format!("import {name}"))));
    }
    Ok(Users { trees, broken })
}

/// `kiln images`: every image in the store, how large it is and who names it.
pub(super) fn images(agent: &Agent) -> Result<Answer, Report> {
    let Users { trees: named, mut broken } = users(agent)?;
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
    broken.sort();
    Ok(json!({ "images": rows, "broken": broken }).into())
}

/// `kiln gc`.
pub(super) fn gc(agent: &Agent, dry_run: bool) -> Result<Answer, Report> {
    agent.ledger_is_whole("nothing is collected")?;
    let options = GcOptions { dry_run, ..GcOptions::default() };
    let report = agent.store.gc_with(&|| named(agent), &options).map_err(|error| {
        let report = Report::from_error(Exit::Failed, &error);
        match error {
            Error::Stops { .. } | Error::Held { .. } => {
                Report { exit: Exit::Refused, ..report }.hint("kiln fsck")
            }
            _ => report,
        }
    })?;
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
