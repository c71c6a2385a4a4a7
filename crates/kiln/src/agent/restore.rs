//! After a restart of the agent everything that runs is found again; after a reboot the active
//! releases are built up again from their metafiles.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_run::Known;
use kiln_run::known::boot_id;
use kiln_run::net::Host;
use kiln_run::runtime::{Found, QUICK, Runtime};
use kiln_store::Store;
use serde_json::json;

use super::claims::Claim;
use super::provision::{Patience, missing_services, retire};
use super::session::Session;
use super::stage::{Instance, Life, Role, RunFile, Stage, StageId};
use super::{Agent, record, supervise};
use crate::deliver::{Published, Reason, converge};
use crate::report::{Because, Report};

/// Where the state of a stage's instances is written.
pub(crate) fn run_path(root: &Path, id: &StageId) -> PathBuf {
    root.join("run").join(&id.project).join(format!("{}.json", id.stage))
}

/// Writes it whole or not at all. Not flushed: it is of no use after a power cut.
pub(crate) fn write_run_file(path: &Path, file: &RunFile) -> std::io::Result<()> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent)?;
    let part = tempfile::NamedTempFile::new_in(parent)?;
    // In one piece: a file takes a system call for each write.
    std::io::Write::write_all(&mut &part, &serde_json::to_vec(file)?)?;
    part.persist(path)?;
    Ok(())
}

/// What is written at `path`; nothing, if that was under another boot: then nothing of it lives.
fn read_run_file(path: &Path) -> RunFile {
    let file: RunFile = std::fs::read(path)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let before = !file.boot.is_empty() && boot_id().is_ok_and(|boot| boot != file.boot);
    if before { RunFile::default() } else { file }
}

/// All run files of `root`.
fn run_files(root: &Path) -> Vec<(StageId, RunFile)> {
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut all = Vec::new();
    for project in entries(root.join("run")) {
        for file in entries(project.path()) {
            let Some(stage) =
                file.file_name().to_str().and_then(|n| n.strip_suffix(".json")).map(str::to_owned)
            else {
                continue;
            };
            let project = project.file_name().to_string_lossy().into_owned();
            all.push((StageId { project, stage }, read_run_file(&file.path())));
        }
    }
    all
}

/// Addresses that were in use when the agent ended.
pub(crate) fn addresses(root: &Path) -> BTreeSet<Ipv4Addr> {
    let mut taken = BTreeSet::new();
    for (_, file) in run_files(root) {
        taken.extend(file.instances.iter().map(|instance| instance.address));
        taken.extend(file.slots.iter().flat_map(|slot| slot.addresses.values().copied()));
    }
    taken
}

/// Finds stages and instances again, clears away what nobody knows, and brings the active release
/// of each stage back to full strength.
pub(crate) fn restore(agent: &Arc<Agent>) {
    let files = run_files(&agent.root);
    let ids: Vec<String> = files
        .iter()
        .flat_map(|(_, file)| file.instances.iter().map(|instance| instance.id.clone()))
        .collect();
    // All at once: a shim that does not answer keeps no other project waiting.
    let answers = agent.runtime.attach_all(&ids, QUICK);
    let mut found: BTreeMap<String, Found> = ids.into_iter().zip(answers).collect();
    let mut known: BTreeSet<String> = BTreeSet::new();
    // Nobody knows what should run then, so nothing is stopped and nothing started.
    let held = match agent.ledger_is_whole("nothing is started and nothing stopped") {
        Ok(()) => false,
        Err(report) => {
            agent.log(&report.to_string());
            true
        }
    };
    for (id, file) in files {
        let stage = agent.stage(&id);
        known.extend(take_over(agent, &stage, file, &mut found, held));
    }
    for (project, stage) in agent.store.pointers().unwrap_or_default().into_keys() {
        agent.stage(&StageId { project, stage });
    }
    match clear_unknown(agent, &known) {
        Ok(()) => agent.claims.keep(&known),
        Err(report) => agent.log(&report.to_string()),
    }
    remap(agent);
    for stage in agent.stages() {
        begin_watching(agent, &stage);
        if !held && !stage.state().active_is_unreadable() {
            retire(agent, &stage);
            rebuild(agent, &stage);
        }
    }
    agent.routes_changed();
}

/// Ends what a deploy that was under way had started, and removes what killed shims left.
fn clear_unknown(agent: &Agent, known: &BTreeSet<String>) -> Result<(), Report> {
    let doing = || "clearing away what nobody knows".to_owned();
    kill_all_but(&agent.runtime, known)?;
    agent.runtime.sweep(known).because(doing)?;
    let alive: Vec<_> = agent
        .stages()
        .iter()
        .flat_map(|stage| stage.state().instances.values().map(|i| i.address).collect::<Vec<_>>())
        .filter_map(|at| agent.host.net_spec(agent.host.range().number_of(at)?))
        .collect();
    agent.host.sweep(&alive).because(doing)?;
    Ok(())
}

/// Kills every instance of the root that is not in `known`, all at once.
fn kill_all_but(runtime: &Runtime, known: &BTreeSet<String>) -> Result<(), Report> {
    let ids = runtime.list().because(|| "listing instances".to_owned())?;
    let strays: Vec<String> = ids.difference(known).cloned().collect();
    let found = runtime.attach_all(&strays, QUICK);
    let doubts: Vec<String> = std::thread::scope(|scope| {
        let killing: Vec<_> = found
            .iter()
            .filter(|one| !matches!(one.known, Known::Ended(_)))
            .map(|one| (one.running.id(), scope.spawn(|| one.running.kill())))
            .collect();
        let doubt = |(id, killing): (&str, std::thread::ScopedJoinHandle<'_, Known>)| match killing
            .join()
        {
            Ok(Known::Ended(_)) => None,
            Ok(Known::Unknown(why)) => Some(format!("{id}: {why}")),
            _ => Some(id.to_owned()),
        };
        killing.into_iter().filter_map(doubt).collect()
    });
    match doubts.is_empty() {
        true => Ok(()),
        false => Err(Report::failed("instances that nobody knows have not all ended").log(doubts)),
    }
}

/// Takes over the slots, those instances that have not certainly ended, and those that have ended
/// for good. Gives the names of those.
fn take_over(
    agent: &Arc<Agent>,
    stage: &Stage,
    file: RunFile,
    found: &mut BTreeMap<String, Found>,
    held: bool,
) -> Vec<String> {
    let mut living = Vec::new();
    let pointer = stage.state().pointer.clone();
    let mut lost = Vec::new();
    stage.update(|state| {
        for mut slot in file.slots {
            slot.role = match Some(slot.release) {
                digest if digest == pointer.active => Role::Active,
                digest if digest == pointer.standby => Role::Standby,
                // What served before the ledger was damaged goes on serving.
                _ if held && slot.role != Role::Candidate => slot.role,
                // A deploy that was under way has never happened.
                _ => Role::Names,
            };
            // One that cannot be read keeps its slot, and all that runs in it.
            match agent.release(&slot.release) {
                Ok(release) => drop(state.releases.insert(slot.release, release)),
                Err(report) => agent.log(&format!("{}: {report}", stage.id)),
            }
            state.slots.push(slot);
        }
        for mut instance in file.instances {
            let settled = matches!(instance.life, Life::Completed | Life::Failed { .. });
            let found = found.remove(&instance.id);
            match found.map(|one| (one.known, one.running)) {
                // One that was being stopped is ended with what nobody knows.
                Some((known, running))
                    if !matches!(known, Known::Ended(_)) && instance.life != Life::Stopping =>
                {
                    instance.running = Some(Arc::new(running));
                    if let Known::Unknown(why) = known {
                        instance.unknown = Some(why);
                    }
                }
                _ if settled => {}
                doubt => {
                    // It writes until it has certainly ended, wanted or not.
                    if doubt.is_some_and(|(known, _)| !matches!(known, Known::Ended(_))) {
                        agent.claims.found(&instance.id, claim(stage, &instance));
                    }
                    lost.push(instance);
                    continue;
                }
            }
            living.push(instance.id.clone());
            state.instances.insert(instance.id.clone(), instance);
        }
        for instance in state.instances.values() {
            if !matches!(instance.life, Life::Completed | Life::Failed { .. }) {
                agent.claims.found(&instance.id, claim(stage, instance));
            }
        }
        let there: BTreeSet<String> = state.instances.keys().cloned().collect();
        for slot in &mut state.slots {
            slot.members.retain(|_, id| there.contains(id));
        }
    });
    for instance in lost {
        agent.addresses.give_back(instance.address);
        let data = json!({ "instance": instance.id, "what": "gone while no agent looked" });
        record::note(agent, stage, "instance.lost", data);
    }
    living
}

fn claim(stage: &Stage, instance: &Instance) -> Claim {
    let (service, data) = (instance.service.clone(), instance.data.clone());
    Claim { stage: stage.id.clone(), service, born: instance.born, data }
}

/// Makes the kernel's translation equal to the states, whatever it was.
fn remap(agent: &Agent) {
    let mut all = Vec::new();
    for stage in agent.stages() {
        all.extend(stage.state().translation());
    }
    let mapped: Vec<(Ipv4Addr, Ipv4Addr)> =
        all.iter().filter_map(|(address, instance)| Some((*address, (*instance)?))).collect();
    match agent.host.translate_all(&mapped) {
        Ok(()) => *super::lock(&agent.mapped) = mapped.into_iter().collect(),
        Err(error) => agent.log(&format!("restoring stable addresses: {error}")),
    }
}

fn begin_watching(agent: &Arc<Agent>, stage: &Arc<Stage>) {
    let all: Vec<String> = stage.state().instances.keys().cloned().collect();
    for id in all {
        supervise::begin(agent, stage, &id);
    }
}

/// Starts what the active release lacks. After a reboot that is all of it.
fn rebuild(agent: &Arc<Agent>, stage: &Arc<Stage>) {
    let Some(active) = stage.state().pointer.active else { return };
    let release = match agent.release(&active) {
        Ok(release) => release,
        Err(report) => return agent.log(&format!("{}: {report}", stage.id)),
    };
    let lacking = match missing_services(&stage.state()) {
        Some((_, missing)) => !missing.is_empty(),
        None => true,
    };
    if !lacking {
        return;
    }
    let (agent, stage) = (Arc::clone(agent), Arc::clone(stage));
    agent.clone().background(move || {
        let _turn = stage.turn();
        let target = Published::of(active, release);
        let session = Session::own();
        let patience = Patience { limit: None };
        let result = converge(&agent, &session, &stage, &target, Reason::Restore, patience);
        match result {
            Ok(_) => agent.log(&format!("{}: {} serves again", stage.id, active.short())),
            Err(report) => agent.log(&format!("{}: building up again: {report}", stage.id)),
        }
    });
}

/// `kiln shutdown` when no agent runs: clears away what a killed one may have left.
pub(crate) fn collect_remains(root: &Path) -> Result<bool, Report> {
    if !root.join("format").exists() {
        return Ok(false);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Report::failed(format!(
            "no agent runs for {}, and clearing away what one may have left needs root",
            root.display()
        ))
        .hint("sudo kiln shutdown"));
    }
    let doing = || format!("clearing away what runs for {}", root.display());
    let store = Store::open(root).because(doing)?;
    let exe = std::env::current_exe().because(doing)?;
    let mut ids = Vec::new();
    for (id, file) in run_files(store.root()) {
        ids.extend(file.instances.into_iter().map(|instance| instance.id));
        let _ = std::fs::remove_file(run_path(store.root(), &id));
    }
    if let Ok(front) = kiln_front::FrontClient::connect(store.root()) {
        front.stop(Duration::ZERO).because(doing)?;
    }
    let host = Host::setup(store.root()).because(doing)?;
    let runtime = Runtime::new(store.root(), exe, host.range().scope()).because(doing)?;
    kill_all_but(&runtime, &BTreeSet::new())?;
    runtime.sweep(&BTreeSet::new()).because(doing)?;
    runtime.close(Duration::from_secs(5));
    host.teardown().because(doing)?;
    Ok(!ids.is_empty())
}
