//! After a restart of the agent everything that runs is found again; after a reboot the active
//! releases are built up again from their metafiles.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirEntry;
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_core::plan;
use kiln_run::known::boot_id;
use kiln_run::net::{Host, Networks, Range};
use kiln_run::runtime::{Found, QUICK, Runtime};
use kiln_run::{End, Known};
use kiln_store::Store;
use serde_json::json;

use super::addresses::Addresses;
use super::card::Card;
use super::claims::Claim;
use super::joined::{self, Joined};
use super::network::Net;
use super::provision::retire;
use super::stage::{Instance, Life, Role, RunFile, Seen, Stage, StageId, Written};
use super::strays::Strays;
use super::{Agent, mend, record, summed, supervise};
use crate::report::{Because, Report};

/// Where the state of a stage's instances is written.
pub(crate) fn run_path(root: &Path, id: &StageId) -> PathBuf {
    root.join("run").join(&id.project).join(format!("{}.json", id.stage))
}

/// Writes it whole or not at all.
pub(crate) fn write_run_file(path: &Path, file: &RunFile) -> io::Result<()> {
    summed::write(path, file)
}

/// What is written at `path`; nothing, if that was under another boot: then nothing of it lives.
pub(crate) fn read_run_file(path: &Path) -> io::Result<RunFile> {
    let Some(file) = summed::read::<RunFile>(path)? else { return Ok(RunFile::default()) };
    let before = !file.boot.is_empty() && boot_id()? != file.boot;
    Ok(if before { RunFile::default() } else { file })
}

/// All that is in a folder; nothing in one that is not there.
fn entries(path: &Path) -> io::Result<Vec<DirEntry>> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.collect(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// What an agent that has ended left in writing: read once, for everything that is found again.
pub(crate) struct Remains {
    files: Vec<(StageId, io::Result<RunFile>)>,
    /// By the names of their folders.
    cards: BTreeMap<String, io::Result<Option<Card>>>,
    /// What joined networks have.
    joined: joined::File,
    /// Whether all folders could be listed.
    complete: bool,
    /// Why it is not known which addresses are in use: then all may be.
    unread: Vec<String>,
}

impl Remains {
    /// Those of `root`.
    pub(crate) fn read(root: &Path) -> Self {
        let mut unread = Vec::new();
        let mut failed = |what: &Path, error: &io::Error| {
            unread.push(format!("{} cannot be read: {error}", what.display()));
        };
        let complete = Cell::new(true);
        let mut listed = |path: &Path| {
            let missed = |error: &io::Error| {
                complete.set(false);
                failed(path, error);
            };
            entries(path).inspect_err(missed).unwrap_or_default()
        };
        let mut files = Vec::new();
        for project in listed(&root.join("run")) {
            for file in listed(&project.path()) {
                let name = file.file_name();
                let Some(stage) = name.to_str().and_then(|name| name.strip_suffix(".json")) else {
                    continue;
                };
                let project = project.file_name().to_string_lossy().into_owned();
                let id = StageId { project, stage: stage.to_owned() };
                files.push((id, read_run_file(&file.path())));
            }
        }
        let mut cards = BTreeMap::new();
        for folder in listed(&root.join("instances")) {
            let name = folder.file_name().to_string_lossy().into_owned();
            cards.insert(name, Card::read(&folder.path()));
        }
        // What runs has a card; only an older Kiln's is in the run file alone.
        let carded = cards.values().all(|card| !matches!(card, Ok(None)));
        for (id, file) in &files {
            if let (Err(error), false) = (file, carded) {
                failed(&run_path(root, id), error);
            }
        }
        for (id, card) in &cards {
            if let Err(error) = card {
                failed(&root.join("instances").join(id).join("instance.json"), error);
            }
        }
        let joined = joined::File::read(root)
            .inspect_err(|error| failed(&root.join("run/joined.json"), error))
            .unwrap_or_default();
        Self { files, cards, joined, complete: complete.get(), unread }
    }

    fn readable_files(&self) -> impl Iterator<Item = (&StageId, &RunFile)> {
        self.files.iter().filter_map(|(id, file)| Some((id, file.as_ref().ok()?)))
    }

    fn readable_cards(&self) -> impl Iterator<Item = &Card> {
        self.cards.values().filter_map(|card| card.as_ref().ok()?.as_ref())
    }

    /// Addresses that were in use when the agent ended, as far as that could be read.
    fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        let mut taken = BTreeSet::new();
        for (_, file) in self.readable_files() {
            taken.extend(file.instances.iter().map(|instance| instance.address));
            let slots = file.slots.iter();
            taken.extend(slots.flat_map(|written| written.slot.addresses.values().copied()));
        }
        for card in self.readable_cards() {
            taken.insert(card.instance.address);
            taken.extend(card.names.values());
        }
        taken.extend(self.joined.addresses.values());
        taken
    }

    /// Addresses of the instances that ran when the agent ended, and the networks of each.
    pub(crate) fn places(&self) -> BTreeMap<Ipv4Addr, Networks> {
        let place = |stage: &StageId, instance: &Instance| {
            instance.net.networks(stage).map(|networks| (instance.address, networks))
        };
        let cards = self.readable_cards();
        let mut all: BTreeMap<_, _> =
            cards.filter_map(|card| place(&card.stage, &card.instance)).collect();
        for (id, file) in self.readable_files() {
            all.extend(file.instances.iter().filter_map(|instance| place(id, instance)));
        }
        all
    }

    /// The addresses of `range` that are free, and what is known of joined networks. Where it is not
    /// known which are in use, none of the blocks so far is free: none is given twice.
    pub(crate) fn settle(&mut self, root: &Path, range: &Range) -> (Addresses, Joined) {
        let taken = self.addresses();
        let mut joined = std::mem::take(&mut self.joined);
        if !self.unread.is_empty() {
            joined.withheld.extend(range.blocks().iter().map(|block| block.network()));
        }
        let addresses = Addresses::new(range, &taken, &joined.withheld);
        let joined = Joined::of(root, joined);
        if !self.unread.is_empty()
            && let Err(error) = joined.write_down()
        {
            self.unread.push(format!("nor can it be written down for the next agent: {error}"));
        }
        (addresses, joined)
    }
}

/// Finds stages and instances again, clears away what nobody knows, and brings the active release
/// of each stage back to full strength.
pub(crate) fn restore(agent: &Arc<Agent>, remains: Remains) {
    let Remains { files: read, cards, unread, complete, .. } = remains;
    for why in &unread {
        agent.log(why);
    }
    if !unread.is_empty() {
        agent.log("so any address may be in use: fresh ones come from a new block");
    }
    // Nobody knows what should run then, so nothing is stopped and nothing started.
    let held = match agent.ledger_is_whole("nothing is started and nothing stopped") {
        Ok(()) => false,
        Err(report) => {
            agent.log(&report.to_string());
            true
        }
    };
    let mut files = Vec::new();
    let mut whole = complete;
    for (id, file) in read {
        agent.stage(&id);
        match file {
            Ok(file) => files.push((id, file)),
            Err(error) => {
                whole = false;
                agent.log(&format!("{id}: its run file cannot be read: {error}"));
            }
        }
    }
    for (project, stage) in agent.store.pointers().unwrap_or_default().into_keys() {
        agent.stage(&StageId { project, stage });
    }
    let mut found = ask_all(agent, &files);
    for (id, file) in files {
        take_over(agent, &agent.stage(&id), file, &mut found, held);
    }
    let strays = Strays::find(agent, found, cards, whole, held);
    if let Err(report) = clear_unknown(agent, &strays) {
        agent.log(&report.to_string());
    }
    second_copies(agent);
    remap(agent);
    for stage in agent.stages() {
        begin_watching(agent, &stage);
        if !held && !stage.state().active_is_unreadable() {
            retire(agent, &stage);
            mend::mend(agent, &stage);
        }
    }
    agent.routes_changed();
}

/// Asks all instances that there may be, by run files and by folders: all at once, so that a shim
/// which does not answer keeps no other project waiting.
fn ask_all(agent: &Agent, files: &[(StageId, RunFile)]) -> BTreeMap<String, Found> {
    let listed = agent.runtime.list().unwrap_or_else(|error| {
        agent.log(&format!("listing instances: {error}"));
        BTreeSet::new()
    });
    let named = files.iter().flat_map(|(_, file)| &file.instances);
    let ids: BTreeSet<String> = named.map(|instance| instance.id.clone()).chain(listed).collect();
    let ids: Vec<String> = ids.into_iter().collect();
    let answers = agent.runtime.attach_all(&ids, QUICK);
    ids.into_iter().zip(answers).collect()
}

/// Ends what nobody knows, and removes what killed shims left.
fn clear_unknown(agent: &Agent, strays: &Strays) -> Result<(), Report> {
    let doing = || "clearing away what nobody knows".to_owned();
    let ended = kill_all(&strays.nobodys);
    let mut known = strays.left_alone.clone();
    let mut addresses = Vec::new();
    for stage in agent.stages() {
        for instance in stage.state().instances.values() {
            known.insert(instance.id.clone());
            addresses.push(instance.address);
        }
    }
    agent.runtime.sweep(&known).because(doing)?;
    // The interface of one that is left alone is not known.
    if strays.left_alone.is_empty() {
        let alive: Vec<_> = addresses
            .into_iter()
            .filter_map(|at| agent.host.net_spec(agent.host.range().number_of(at)?))
            .collect();
        agent.host.sweep(&alive).because(doing)?;
    }
    ended
}

/// Ends whatever of this root runs, in a stage or not.
pub(crate) fn end_all(runtime: &Runtime) -> Result<(), Report> {
    let all = runtime.list().because(|| "listing instances".to_owned())?;
    let all: Vec<String> = all.into_iter().collect();
    let found = runtime.attach_all(&all, QUICK);
    let alive = found.into_iter().filter(|one| !matches!(one.known, Known::Ended(_)));
    kill_all(&alive.collect::<Vec<_>>())
}

/// Kills instances, all at once.
fn kill_all(found: &[Found]) -> Result<(), Report> {
    let doubts: Vec<String> = std::thread::scope(|scope| {
        let killing: Vec<_> = found
            .iter()
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

/// What an instance that has not certainly ended is from now on.
pub(super) fn revive(instance: &mut Instance, found: Found) {
    instance.running = Some(Arc::new(found.running));
    if let Known::Unknown(why) = found.known {
        instance.unknown = Some(why);
    }
}

/// How one stands that ended while no agent looked, and that nothing follows.
fn for_good(agent: &Agent, stage: &StageId, instance: &Instance, found: &Found) -> Option<Life> {
    let Known::Ended(End::Exited(exit)) = found.known else { return None };
    let release = agent.release_in(stage, &instance.born).ok()?;
    let settings = &release.services.get(&instance.service)?.settings;
    let job = plan::is_job(&release, &instance.service);
    let success = exit.code == 0;
    if instance.life == Life::Stopping || settings.restarts_after(success, job, instance.restarts) {
        return None;
    }
    let how = || format!("exited with status {} while no agent looked", exit.code);
    Some(if success { Life::Completed } else { Life::Failed { how: how() } })
}

/// Takes over the slots, those instances that have not certainly ended, and those that have ended
/// for good; they are no strays then. One that was being stopped belongs to no slot any more.
fn take_over(
    agent: &Agent,
    stage: &Stage,
    file: RunFile,
    found: &mut BTreeMap<String, Found>,
    held: bool,
) {
    let mut lost = Vec::new();
    let mut doubts = Vec::new();
    stage.update(|state| {
        let mut slots = Vec::new();
        let mut roles = BTreeMap::new();
        for Written { role, slot } in file.slots {
            // One that cannot be read keeps its slot, and all that runs in it.
            let release = agent.release_in(&stage.id, &slot.release);
            if let Err(report) = &release {
                agent.log(&format!("{}: {report}", stage.id));
            }
            // What served before the ledger was damaged goes on serving.
            if held && role != Role::Candidate {
                roles.insert(slot.release, role);
            }
            slots.push((slot, release.ok()));
        }
        let mut there = Vec::new();
        for mut instance in file.instances {
            let settled = matches!(instance.life, Life::Completed | Life::Failed { .. });
            match found.remove(&instance.id) {
                Some(one) if !matches!(one.known, Known::Ended(_)) => revive(&mut instance, one),
                _ if settled => {}
                found => {
                    let life =
                        found.as_ref().and_then(|one| for_good(agent, &stage.id, &instance, one));
                    let (Some(one), Some(life)) = (found, life) else {
                        lost.push(instance);
                        continue;
                    };
                    revive(&mut instance, one);
                    instance.life = life;
                }
            }
            doubts.extend(instance.unknown.clone().map(|why| (instance.id.clone(), why)));
            // Its volumes were being renewed, and that has not come to its end.
            if instance.renewed.is_some_and(|since| since > state.pointer.renewed) {
                instance.life = Life::Stopping;
            }
            there.push(instance);
        }
        for instance in &there {
            if !matches!(instance.life, Life::Completed | Life::Failed { .. }) {
                agent.claims.found(&instance.id, Claim::of(&stage.id, instance));
            }
        }
        // A deploy that was under way has never happened.
        state.found(slots, there, &roles);
    });
    for instance in lost {
        if instance.net.has_address() {
            agent.addresses.give_back(instance.address);
        }
        let data = json!({ "instance": instance.id, "what": "gone while no agent looked" });
        record::note(agent, stage, "instance.lost", data);
    }
    for (id, why) in doubts {
        record::note(agent, stage, "instance.unknown", json!({ "instance": id, "what": why }));
    }
}

/// Makes the kernel's translation equal to the states, whatever it was.
fn remap(agent: &Agent) {
    let mut all = Vec::new();
    for stage in agent.stages() {
        all.extend(stage.state().translation());
        all.extend(agent.joined.translation(&stage.id, &stage.state()));
    }
    let mapped: Vec<(Ipv4Addr, Ipv4Addr)> =
        all.iter().filter_map(|(address, instance)| Some((*address, (*instance)?))).collect();
    match agent.host.translate_all(&mapped) {
        Ok(()) => *super::lock(&agent.mapped) = mapped.into_iter().collect(),
        Err(error) => agent.log(&format!("restoring stable addresses: {error}")),
    }
}

/// A root of an older Kiln has no second copies of the releases that it kept.
fn second_copies(agent: &Agent) {
    match agent.store.second_copies() {
        Ok(0) => {}
        Ok(made) => agent.log(&format!("{made} releases have a second copy now, and had none")),
        Err(error) => agent.log(&format!("making second copies of releases: {error}")),
    }
}

/// Ends those that have their network by an instance that is gone; fresh ones follow.
fn end_orphans(agent: &Arc<Agent>, stage: &Stage) {
    let orphans: Vec<_> = {
        let state = stage.state();
        let orphan = |found: &&Instance| match &found.net {
            Net::With(host) => !state.instances.contains_key(host),
            _ => false,
        };
        let orphans = state.instances.values().filter(orphan);
        orphans.filter_map(|found| found.running.clone()).collect()
    };
    for running in orphans {
        agent.background(move || drop(running.kill()));
    }
}

fn begin_watching(agent: &Arc<Agent>, stage: &Arc<Stage>) {
    let all: Vec<String> = stage.state().instances.keys().cloned().collect();
    for id in all {
        supervise::begin(agent, stage, &id);
    }
    end_orphans(agent, stage);
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
    for (id, file) in Remains::read(store.root()).files {
        let file = file.unwrap_or_default();
        ids.extend(file.instances.into_iter().map(|instance| instance.id));
        let _ = std::fs::remove_file(run_path(store.root(), &id));
    }
    // One that had to be killed has ended, too.
    let _ = kiln_front::end(store.root());
    let host = Host::setup(store.root()).because(doing)?;
    let runtime = Runtime::new(store.root(), exe, host.range().scope()).because(doing)?;
    end_all(&runtime)?;
    runtime.sweep(&BTreeSet::new()).because(doing)?;
    runtime.close(Duration::from_secs(5));
    host.teardown().because(doing)?;
    Ok(!ids.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::Digest;

    use crate::agent::stage::Slot;

    #[test]
    fn run_files_of_another_boot_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dev.json");
        let slot = |boot: &str| RunFile {
            boot: boot.to_owned(),
            slots: vec![Written {
                role: Role::Active,
                slot: Slot {
                    release: Digest::of("x"),
                    addresses: BTreeMap::new(),
                    members: BTreeMap::new(),
                },
            }],
            instances: Vec::new(),
        };
        for (boot, slots) in [(boot_id().unwrap().as_str(), 1), ("", 1), ("another", 0)] {
            write_run_file(&path, &slot(boot)).unwrap();
            assert_eq!(read_run_file(&path).unwrap().slots.len(), slots, "{boot}");
        }
        std::fs::write(&path, "{").unwrap();
        assert!(read_run_file(&path).is_err(), "what cannot be read is not the same as nothing");
    }
}
