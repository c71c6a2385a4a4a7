//! `ps`, `status`, `releases`, `history`, `images`: what is there and what was.

use std::collections::BTreeSet;

use kiln_core::Digest;
use kiln_core::release::Settings;
use kiln_store::ledger::Filter;
use kiln_store::{Error, Pointer, Reference};
use serde_json::{Value, json};

use super::serve::{before, ports, ports_at};
use super::{Answer, nothing_serves};
use crate::agent::session::Session;
use crate::agent::silence::{self, SILENT};
use crate::agent::stage::{Instance, Life, Role, Seen as _, Stage, StageState};
use crate::agent::{Agent, layer, needs, released};
use crate::answers;
use crate::answers::stored::{Images, StoredImage};
use crate::report::{Because, Report};

/// `kiln ps`: every instance, with its slots.
pub(super) fn ps(agent: &Agent, project: Option<&str>) -> Answer {
    let mut instances = Vec::new();
    let mut published = Vec::new();
    let listening = agent.bound();
    for stage in agent.stages() {
        if project.is_some_and(|project| project != stage.id.project) {
            continue;
        }
        let serving = {
            let state = stage.state();
            let active = state.with_role(Role::Active);
            active.and_then(|slot| state.releases.get(&slot.release).cloned())
        };
        let open = serving.map(|release| ports_at(&listening, &release, &stage.id));
        published.extend(open.into_iter().flatten().map(|port| answers::StagePort {
            project: stage.id.project.clone(),
            stage: stage.id.stage.clone(),
            port,
        }));
        let described: Vec<Described> = {
            let state = stage.state();
            state.instances.values().map(|instance| describe(&state, instance)).collect()
        };
        instances.extend(described.into_iter().map(|described| answers::Placed {
            project: stage.id.project.clone(),
            stage: stage.id.stage.clone(),
            instance: described.told(),
        }));
    }
    Answer::of(&answers::Ps { instances, ports: published })
}

/// An instance as the state has it.
struct Described {
    instance: answers::Instance,
    /// One that is silent, with its settings: the kernel is asked where it listens.
    silent: Option<Box<(Instance, Settings)>>,
}

impl Described {
    /// With what there is to find out, for which nobody shall wait with the state.
    fn told(mut self) -> answers::Instance {
        if let Some(silent) = self.silent {
            self.instance.how = Some(silence::sentence(&silent.0, &silent.1));
        }
        self.instance
    }
}

fn describe(state: &StageState, instance: &Instance) -> Described {
    let slots = state
        .slots
        .iter()
        .filter(|slot| slot.has(&instance.service, &instance.id))
        .map(|slot| answers::Slot { role: state.role(&slot.release), release: slot.release })
        .filter(|slot| slot.role != Role::Names)
        .collect();
    let says = instance.silent && instance.unknown.is_none() && instance.life == Life::Ready;
    let silent = says.then(|| state.settings(instance)).flatten();
    let silent = silent.map(|settings| Box::new((instance.clone(), settings.clone())));
    let (word, how) = match (&instance.unknown, &instance.life) {
        (Some(why), _) => ("unknown", Some(why)),
        (None, Life::Ready) if silent.is_some() => (SILENT, None),
        (None, life @ (Life::BackOff { how } | Life::Failed { how })) => (life.word(), Some(how)),
        (None, life) => (life.word(), None),
    };
    let verdict = match instance.tainted {
        Some(_) => answers::Verdict::Drifted,
        None => answers::Verdict::Unknown,
    };
    let instance = answers::Instance {
        id: instance.id.clone(),
        service: instance.service.clone(),
        slots,
        state: word.to_owned(),
        how: how.cloned(),
        verdict,
        tainted: instance.tainted.clone(),
        restarts: instance.restarts,
        address: instance.address,
        pid: instance.running.as_ref().map(|running| running.pid()),
        lacks: instance.lacks.clone(),
        written: None,
        started: instance.started,
    };
    Described { instance, silent }
}

/// What of the ledger is damaged.
fn damaged(agent: &Agent) -> Result<Vec<String>, Report> {
    let faults =
        agent.store.ledger().faults_without_waiting().because(|| "looking at the ledger".into())?;
    Ok(faults.iter().map(ToString::to_string).collect())
}

/// `kiln status`.
pub(super) fn status(agent: &Agent, stage: &Stage) -> Result<Answer, Report> {
    let active = stage.state().pointer.active;
    let Some(active) = active else { return Err(nothing_serves(stage)) };
    // What may wait, for a disk, the front or the kernel, does so while the state is not held: before
    // it is looked at, or behind that.
    let release = agent.release_in(&stage.id, &active);
    let (front, ledger) = (agent.front_says(stage), damaged(agent)?);
    let served = release.as_ref().map(|release| ports(agent, release, &stage.id));
    let served = served.unwrap_or_default();
    let state = stage.state();
    let names: BTreeSet<String> = match &release {
        Ok(release) => release.services.keys().cloned().collect(),
        // What runs is known all the same.
        Err(_) => {
            state.slot(&active).map(|s| s.members.keys().cloned().collect()).unwrap_or_default()
        }
    };
    let services = names.into_iter().map(|name| match state.member(&active, &name) {
        Some(instance) => Ok(describe(&state, instance)),
        None => Err(name),
    });
    let services: Vec<Result<Described, String>> = services.collect();
    let (standby, paused) = (state.pointer.standby, state.is_held());
    let rollback = before(&state.pointer);
    let standby_quarantined = standby.is_some_and(|it| state.pointer.quarantined.contains(&it));
    drop(state);
    let services = services.into_iter().map(|service| match service {
        Ok(described) => {
            let mut instance = described.told();
            let written = layer::written(agent, &instance.id, &instance.service);
            instance.written = written.filter(|written| !written.is_empty());
            answers::Member::There(Box::new(instance))
        }
        Err(name) => answers::Member::missing(name),
    });
    let services = services.collect();
    let status = answers::StageStatus {
        front,
        broken: release.as_ref().err().map(|report| report.message.clone()),
        ledger,
        project: stage.id.project.clone(),
        stage: stage.id.stage.clone(),
        active,
        standby,
        rollback,
        standby_quarantined,
        source: release.as_ref().ok().map(|release| release.source.clone()),
        paused,
        trouble: agent.troubles.of(&stage.id),
        services,
        ports: served,
        scope: agent.host.range().scope().to_owned(),
        backing: agent.store.backing().to_string(),
    };
    Ok(Answer::of(&answers::Status::Stage(Box::new(status))))
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
        stages.push(answers::StageLine {
            project: stage.id.project.clone(),
            stage: stage.id.stage.clone(),
            active: state.pointer.active,
            standby: state.pointer.standby,
            instances: state.instances.len(),
            trouble: agent.troubles.of(&stage.id),
        });
    }
    let overview = answers::Overview {
        ledger: damaged(agent)?,
        root: agent.root.clone(),
        scope: agent.host.range().scope().to_owned(),
        network: agent.host.range().cidr(),
        backing: agent.store.backing().to_string(),
        notices: agent.host.notices().to_vec(),
        stages,
    };
    Ok(Answer::of(&answers::Status::Root(overview)))
}

/// `kiln releases`: the active one and those that can be restored.
pub(super) fn releases(agent: &Agent, stage: &Stage) -> Result<Answer, Report> {
    let pointer = stage.state().pointer.clone();
    let mut releases = Vec::new();
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
        releases.push(restorable(agent, &pointer, digest, role, None));
    }
    for cut in released::of(agent, &stage.id.project)? {
        if seen.insert(cut.release) {
            releases.push(restorable(agent, &pointer, &cut.release, "released", Some(cut.time)));
        }
    }
    Ok(Answer::of(&answers::Releases { releases }))
}

/// A line of `releases`. One that cannot be read is listed all the same, as broken.
fn restorable(
    agent: &Agent,
    pointer: &Pointer,
    digest: &Digest,
    role: &str,
    time: Option<u64>,
) -> answers::Restorable {
    let (source, services, broken) = match agent.release(digest) {
        Ok(release) => (Some(release.source.clone()), Some(release.services.len()), None),
        Err(report) => (None, None, Some(report.message)),
    };
    answers::Restorable {
        release: *digest,
        role: role.to_owned(),
        quarantined: pointer.quarantined.contains(digest),
        time,
        source,
        services,
        broken,
    }
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
        entries.push(match entry {
            Ok(entry) => serde_json::to_value(&entry).because(doing)?,
            // Whose it was cannot be told, so it stands in every list.
            Err(Error::Ledger { line, why, .. }) => json!({ "line": line, "broken": why }),
            Err(error) => return Err(error).because(doing),
        });
    }
    let skip = limit.map_or(0, |limit| entries.len().saturating_sub(limit));
    entries.drain(skip..).for_each(|entry| session.item(entry));
    Ok(Value::Null.into())
}

/// The releases that slots and pointers of this root name. Those that were cut and never served are
/// not among them: references keep them.
pub(super) fn named(agent: &Agent) -> BTreeSet<Digest> {
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
    let refs = agent.store.look_at_references().because(|| "listing images".into())?;
    let readable = refs.iter().filter_map(|(_, reference)| reference.as_ref().ok());
    let known = needs::names_of_images(readable);
    for ((kind, name), reference) in refs {
        let users: Vec<String> = match kind.as_str() {
            "imports" => vec![format!("import {name}")],
            "images" => match known.get(&name) {
                Some(references) => references.iter().cloned().collect(),
                // Whose lock named it is gone, or cannot be read.
                None => vec![format!("image sha256:{}", name.get(..12).unwrap_or(&name))],
            },
            _ => continue,
        };
        match reference {
            // One of them is the tree; the others match none.
            Ok(Reference { digests, .. }) => {
                let each = |digest| users.iter().map(move |user| (digest, user.clone()));
                trees.extend(digests.into_iter().flat_map(each));
            }
            Err(error) => broken.push(error.to_string()),
        }
    }
    Ok(Users { trees, broken })
}

/// `kiln images`: every image in the store, how large it is and who names it.
pub(super) fn images(agent: &Agent) -> Result<Answer, Report> {
    let Users { trees: named, mut broken } = users(agent)?;
    let mut rows = Vec::new();
    for image in agent.store.images().because(|| "listing images".into())? {
        let users = named.iter().filter(|(tree, _)| *tree == image.tree);
        let users: BTreeSet<String> = users.map(|(_, user)| user.clone()).collect();
        rows.push(StoredImage {
            tree: image.tree,
            files: image.files,
            bytes: image.bytes,
            used_by: users,
        });
    }
    broken.sort();
    Ok(Answer::of(&Images { images: rows, broken }))
}
