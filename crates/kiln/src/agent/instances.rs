//! Instances: from a released service to a running sandbox, and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use kiln_core::compose::{Content, Expose, Mount};
use kiln_core::data::Data;
use kiln_core::defaults::{Root, learns};
use kiln_core::exit::Exit;
use kiln_core::release::{KEY_FORMAT, ReleasedService, Settings};
use kiln_core::{Digest, Release};
use kiln_run::logs::LogQuery;
use kiln_run::runtime::QUICK;
use kiln_run::spec::signal_number;
use kiln_run::{
    End, FileMount, ImageMount, InstanceSpec, Known, LogLimits, RunError, Running, Sandbox,
};
use serde_json::json;

use super::card::Card;
use super::claims::Claim;
use super::stage::{Instance, Life, Role, Stage};
use super::supervise::{Order, Word, begin};
use super::{Agent, layer, network, now_ms, policy, record, volumes};
use crate::report::{Because, Report};

/// How long an instance that may have started is tried to be ended, before it is left as it is.
const STRAY: Duration = Duration::from_secs(30);

/// Starts a fresh instance of `service` in the slot of `release` and has it watched. It is a
/// member of the slot from then on, and its name leads to it.
pub(crate) fn start(
    agent: &Arc<Agent>,
    stage: &Arc<Stage>,
    release: Digest,
    service: &str,
) -> Result<String, Report> {
    let instance = launch(agent, stage, release, service, 0, None)?;
    let id = instance.id.clone();
    let known = instance.clone();
    if let Err(illegal) = stage.update(|state| state.join(instance)) {
        // Its slot is gone: nobody knows it, so it may not stay. If it does, its data, its address and
        // its card stay its own, and the next agent finds it by the card.
        if known.running.as_deref().is_none_or(ends) {
            agent.claims.give_back(&id);
            leave_network(agent, &known);
            remove_folder(agent, &id);
        } else {
            agent.log(&format!("{id} is in no slot, and whether it has ended is not known"));
        }
        return Err(illegal.into());
    }
    agent.translate(stage)?;
    begin(agent, stage, &id);
    Ok(id)
}

/// Runs a fresh instance that is in no state or slot yet. `instead_of` has ended and has its place.
pub(crate) fn launch(
    agent: &Agent,
    stage: &Stage,
    release: Digest,
    service: &str,
    restarts: u32,
    instead_of: Option<&str>,
) -> Result<Instance, Report> {
    launch_as(agent, stage, release, (service, None), restarts, instead_of)
}

/// Runs one that will never be in a slot, beside what serves: `odd` says what it is in place of the
/// release. Its first process waits for commands to join it. It has no card, so that an agent that
/// comes back ends it.
pub(crate) fn launch_odd(
    agent: &Agent,
    stage: &Stage,
    release: Digest,
    service: &str,
    odd: ReleasedService,
) -> Result<Instance, Report> {
    launch_as(agent, stage, release, (service, Some(&odd)), 0, None)
}

fn launch_as(
    agent: &Agent,
    stage: &Stage,
    release: Digest,
    (service, odd): (&str, Option<&ReleasedService>),
    restarts: u32,
    instead_of: Option<&str>,
) -> Result<Instance, Report> {
    let began = Instant::now();
    let pinned = agent.release_in(&stage.id, &release)?;
    let missing = || Report::failed(format!("release {} has no `{service}`", release.short()));
    let released = odd.or_else(|| pinned.services.get(service)).ok_or_else(missing)?;
    let key = agent.instance_key(&stage.id, &release, service)?.ok_or_else(missing)?;
    let id = fresh_id(stage, service);
    let (net, address) = network::place(agent, stage, &pinned, &release, service)?;
    let old = instead_of.and_then(|id| stage.state().instances.get(id)?.renewed);
    let folder = stage.folder();
    let renewal = old.unwrap_or_else(|| stage.renewal());
    let of = volumes::Of { stage, service, renewal, folder: folder.as_deref() };
    let mut instance = Instance {
        id: id.clone(),
        service: service.to_owned(),
        key,
        keyed: KEY_FORMAT,
        born: release,
        address,
        net,
        life: Life::Starting,
        restarts,
        streak: 0,
        lacks: Vec::new(),
        tainted: None,
        started: now_ms(),
        open: None,
        before: before(stage, &release, service, instead_of),
        silent: false,
        probes: Vec::new(),
        hooked: false,
        hook_said: Vec::new(),
        unknown: None,
        fresh: true,
        inbox: None,
        data: Data::default(),
        renewed: volumes::has_anonymous(&released.settings).then_some(of.renewal),
        running: None,
    };
    let (mut stays, mut lacks) = (false, Vec::new());
    let mut exec = |instance: &mut Instance| -> Result<Running, Report> {
        let sources = volumes::prepare(agent, of, released, &agent.instance_dir(&id))?;
        instance.data = sources.data;
        instance.data.0.extend(network::held(&stage.id, service, &released.settings));
        let mut beside = companions(stage, &release, instead_of);
        if odd.is_some() {
            let state = stage.state();
            let same =
                |id: &String| state.instances.get(id).is_some_and(|it| it.service == service);
            beside.retain(|id| !same(id));
        }
        agent.claims.take(&id, Claim::of(&stage.id, instance), &beside)?;
        let slot = stage.state().slot(&release).cloned();
        let found = slot.is_some();
        let names = slot.map(|slot| slot.addresses).unwrap_or_default();
        if odd.is_none() {
            let names = names.clone();
            let card = Card { stage: stage.id.clone(), instance: instance.clone(), names };
            card.write(&agent.instance_dir(&id))?;
        }
        // One that is in no slot finds those that serve.
        let serving = || Some(stage.state().with_role(Role::Active)?.addresses.clone());
        let names = if found { names } else { serving().unwrap_or_default() };
        let mut spec = spec(agent, stage, &pinned, released, instance, &names)?;
        let (devices, missing) = policy::devices(service, &released.settings)?;
        (spec.sandbox.devices, lacks) = (devices, missing);
        spec.sandbox.mounts = sources.mounts;
        spec.sandbox.hold = odd.is_some();
        run(agent, service, &spec, &mut stays)
    };
    let started = exec(&mut instance);
    instance.running = match started {
        Ok(running) => {
            instance.lacks = running.warnings().to_vec();
            instance.lacks.extend(lacks);
            Some(Arc::new(running))
        }
        // It may still run: its data, its address and its card stay its own, and the next agent
        // finds it by the card.
        Err(report) if stays => return Err(report),
        Err(report) => {
            agent.claims.give_back(&id);
            leave_network(agent, &instance);
            remove_folder(agent, &id);
            return Err(report);
        }
    };
    let exec_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    // From the request to the program's exec, which `cargo xtask bench` reads.
    let entry = json!({ "instance": id, "release": release, "exec_us": exec_us });
    record::note(agent, stage, "instance.start", entry);
    Ok(instance)
}

/// The ports by which a fresh instance of `service` is measured: those of the one in whose place it
/// starts, else those of what serves. A release that has served before is none that has to prove
/// itself: there is always a way back to it.
fn before(
    stage: &Stage,
    release: &Digest,
    service: &str,
    instead_of: Option<&str>,
) -> BTreeSet<Expose> {
    let old = instead_of.and_then(|id| {
        let state = stage.state();
        let old = state.instances.get(id)?;
        Some(old.before.clone())
    });
    old.unwrap_or_else(|| {
        // Asked first: what served is asked of the state too.
        let went_back = stage.state().pointer.previous.contains(release);
        if went_back { BTreeSet::new() } else { stage.served(service) }
    })
}

/// Starts it. One of which it is not known whether it started is ended first: there may be another
/// in its place only then. `stays`: that did not work either.
fn run(
    agent: &Agent,
    service: &str,
    spec: &InstanceSpec,
    stays: &mut bool,
) -> Result<Running, Report> {
    let started = agent.runtime.start(spec);
    if let Err(error @ RunError::Unknown { .. }) = &started {
        agent.log(&format!("{error}"));
        let stray = agent.runtime.attach(&spec.id, QUICK).running;
        *stays = !ends(&stray);
    }
    started.map_err(|error| cannot_run(service, &error))
}

/// Kills it; whether it has certainly ended then.
fn ends(running: &Running) -> bool {
    let deadline = Instant::now() + STRAY;
    loop {
        match running.kill() {
            Known::Ended(_) => return true,
            _ if Instant::now() > deadline => return false,
            _ => std::thread::sleep(Duration::from_secs(1)),
        }
    }
}

/// Instances beside which one of `release` runs: those of its slot, and of every slot that the one
/// before it is in. Services of one release share data as the Compose file says.
fn companions(stage: &Stage, release: &Digest, instead_of: Option<&str>) -> BTreeSet<String> {
    let state = stage.state();
    let slots = state.slots.iter().filter(|slot| {
        let of_old = |id: &str| slot.all().any(|member| member == id);
        slot.release == *release || instead_of.is_some_and(of_old)
    });
    let members = slots.flat_map(|slot| slot.all().cloned());
    members.chain(instead_of.map(str::to_owned)).collect()
}

/// Nobody has its address any more, if that was its own.
fn leave_network(agent: &Agent, instance: &Instance) {
    let address = instance.address;
    if !instance.net.has_address() {
        return;
    }
    if let Err(error) = agent.host.expel(address) {
        agent.log(&format!("taking {address} out of its network: {error}"));
    }
    agent.addresses.give_back(address);
}

/// A program that cannot even be executed is the user's to mend: a gate refuses.
fn cannot_run(service: &str, error: &kiln_run::RunError) -> Report {
    let mut report = Report::from_error(Exit::Refused, error);
    report.message = format!("service `{service}` cannot be started: {}", report.message);
    report
}

fn fresh_id(stage: &Stage, service: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let seed = format!("{} {service} {} {count} {}", stage.id, now_ms(), std::process::id());
    format!("{}-{}-{service}-{}", stage.id.project, stage.id.stage, &Digest::of(seed).hex()[..8])
}

fn spec(
    agent: &Agent,
    stage: &Stage,
    release: &Release,
    released: &ReleasedService,
    instance: &Instance,
    names: &BTreeMap<String, Ipv4Addr>,
) -> Result<InstanceSpec, Report> {
    let settings = &released.settings;
    let Instance { id, service, .. } = instance;
    let dir = agent.instance_dir(id);
    let lower = agent
        .store
        .lower(&released.image.tree)
        .because(|| format!("preparing the file tree of `{service}`"))?;
    let mut sandbox = Sandbox::new(lower, settings.argv.clone());
    sandbox.upper = match settings.root(&stage.id.stage) {
        Root::ReadOnly => None,
        Root::Layer { .. } => Some(layer::dir(agent, id)),
    };
    sandbox.names_only = true;
    if !learns(&stage.id.stage) {
        sandbox.images = content(agent, settings)?;
    }
    sandbox.env = settings.environment();
    sandbox.cwd = settings.working_dir().to_owned();
    sandbox.user.clone_from(&settings.user);
    sandbox.hostname.clone_from(&settings.hostname);
    sandbox.tmpfs = settings.all_tmpfs();
    sandbox.files = files(agent, settings);
    sandbox.shm_size = settings.shm_size();
    sandbox.init = settings.init;
    sandbox.ulimits.clone_from(&settings.ulimits);
    sandbox.capabilities = settings.capabilities();
    sandbox.limits = settings.limits.clone();
    let joined = agent.joined_names(stage, &instance.net)?;
    sandbox.hosts = network::hosts(&stage.id, release, service, instance, names, &joined);
    sandbox.resolv_conf =
        kiln_run::net::with_dns(&network::resolv_conf(agent, &instance.net), &settings.dns);
    sandbox.network = network::of_sandbox(agent, stage, instance)?;
    sandbox.groups = settings.groups.iter().cloned().collect();
    sandbox.sysctls.clone_from(&settings.sysctls);
    sandbox.unconfined = settings.unconfined;
    let mut spec = InstanceSpec::new(id, dir, sandbox);
    spec.stop_signal = settings.stop_signal().to_owned();
    spec.stop_grace = settings.stop_grace();
    spec.log = LogLimits::default();
    Ok(spec)
}

/// What was mounted from the project's folder, as the release pins it.
fn content(agent: &Agent, settings: &Settings) -> Result<Vec<ImageMount>, Report> {
    let pinned = settings.mounts.iter().filter_map(|mount| Some((mount, mount.content.as_ref()?)));
    let mount = |(mount, content): (&Mount, &Content)| {
        let doing = || format!("preparing what is mounted at `{}`", mount.target);
        Ok(ImageMount {
            lower: agent.store.lower(&content.tree).because(doing)?,
            upper: None,
            path: if content.file { Content::FILE.into() } else { PathBuf::new() },
            dir: !content.file,
            target: mount.target.clone(),
            read_only: true,
        })
    };
    pinned.map(mount).collect()
}

fn files(agent: &Agent, settings: &Settings) -> Vec<FileMount> {
    let mount = |file: &kiln_core::release::PinnedFile| FileMount {
        source: agent.store.object_path(&file.digest),
        target: file.target.clone(),
        uid: file.uid,
        gid: file.gid,
        mode: file.mode,
    };
    settings.files.iter().map(mount).collect()
}

/// What it takes to stop one instance.
struct Stopping {
    id: String,
    running: Option<Arc<Running>>,
    inbox: Option<Sender<Word>>,
    signal: i32,
    grace: Duration,
}

/// Stops instances in parallel: stop signal, grace, kill. They are gone from the state afterwards,
/// their logs stay for a while, their addresses are free. So are fresh ones that took the place of
/// one of them since the delivery under way was planned.
///
/// # Errors
/// When one has not certainly ended: then it stays where it is, and nothing may take its place.
pub(crate) fn stop(agent: &Agent, stage: &Stage, ids: &[String]) -> Result<(), Report> {
    let stopping = stage.update(|state| {
        let mut all: Vec<Stopping> = Vec::new();
        for id in ids.iter().map(|id| state.current(id)).collect::<Vec<_>>() {
            let Some(instance) = state.instances.get_mut(&id) else { continue };
            instance.life = Life::Stopping;
            let (born, service) = (instance.born, instance.service.clone());
            let (running, inbox) = (instance.running.clone(), instance.inbox.clone());
            let settings = state
                .releases
                .get(&born)
                .and_then(|release| release.services.get(&service))
                .map(|released| &released.settings);
            let signal = settings
                .and_then(|settings| signal_number(settings.stop_signal()))
                .unwrap_or(libc::SIGTERM);
            let grace = settings.map_or(10_000_000_000, Settings::stop_grace);
            let grace = Duration::from_nanos(grace);
            all.push(Stopping { id, running, inbox, signal, grace });
        }
        all
    });
    let mut doubts = Vec::new();
    for (id, known) in end_all(stopping) {
        match known {
            Known::Ended(_) => forget(agent, stage, &id),
            Known::Unknown(why) => doubts.push(format!("{id}: {why}")),
            Known::Runs(alive) => doubts.push(format!("{id}: it runs as pid {}", alive.pid)),
        }
    }
    if doubts.is_empty() {
        return Ok(());
    }
    let message = format!("it is not known whether all that was stopped has ended in {}", stage.id);
    Err(Report::failed(message).log(doubts).hint("kiln ps; nothing is started in its place"))
}

/// Has each one's supervisor stop it, and waits for all of them. Those that have none are stopped
/// here: they ended for good, or a supervisor is just leaving.
fn end_all(stopping: Vec<Stopping>) -> Vec<(String, Known)> {
    let (done, results) = channel();
    let mut left: BTreeMap<String, Stopping> = BTreeMap::new();
    for one in stopping {
        let Stopping { ref id, ref inbox, signal, grace, .. } = one;
        if let Some(inbox) = inbox {
            let order = Order { id: id.clone(), signal, grace, done: done.clone() };
            let _ = inbox.send(Word::Stop(order));
        }
        left.insert(id.clone(), one);
    }
    drop(done);
    // An order that nobody takes is dropped, and with it its way to answer.
    let mut ended: Vec<(String, Known)> = Vec::new();
    for (id, known) in results {
        left.remove(&id);
        ended.push((id, known));
    }
    std::thread::scope(|scope| {
        let stop = |one: &Stopping| match &one.running {
            Some(running) => running.stop(one.signal, one.grace),
            None => Known::Ended(End::Lost),
        };
        let stopping: Vec<_> =
            left.values().map(|one| (one, scope.spawn(move || stop(one)))).collect();
        for (one, stopping) in stopping {
            let bug = |_| Known::Unknown("stopping it panicked".into());
            ended.push((one.id.clone(), stopping.join().unwrap_or_else(bug)));
        }
    });
    ended
}

/// Takes an instance that has ended out of the state.
pub(crate) fn forget(agent: &Agent, stage: &Stage, id: &str) {
    if let Some(instance) = take_out(agent, stage, id) {
        bury(agent, stage, &instance);
    }
}

/// Takes one that has ended out of the state: what it could write is free from then on.
pub(crate) fn take_out(agent: &Agent, stage: &Stage, id: &str) -> Option<Instance> {
    let instance = stage.update(|state| state.forget(id))?;
    agent.claims.give_back(id);
    Some(instance)
}

/// Clears away what one leaves that was taken out. Its layer may be large, so this may take a while.
pub(crate) fn bury(agent: &Agent, stage: &Stage, instance: &Instance) {
    leave_network(agent, instance);
    layer::note_what_goes(agent, stage, instance);
    keep_log(agent, stage, instance);
    remove_folder(agent, &instance.id);
}

/// Gives back what one had that has ended and was in no slot.
pub(crate) fn clear_away(agent: &Agent, stage: &Stage, instance: &Instance) {
    agent.claims.give_back(&instance.id);
    leave_network(agent, instance);
    keep_log(agent, stage, instance);
    remove_folder(agent, &instance.id);
}

/// Logs of ended instances that are kept for each service.
const OLD_LOGS: usize = 5;

/// Where logs of ended instances of a stage are.
pub(crate) fn old_logs(agent: &Agent, stage: &Stage, service: &str) -> PathBuf {
    agent.root.join("logs").join(&stage.id.project).join(&stage.id.stage).join(service)
}

fn keep_log(agent: &Agent, stage: &Stage, instance: &Instance) {
    let dir = old_logs(agent, stage, &instance.service);
    let to = dir.join(format!("{:013}-{}", instance.started, instance.id));
    let from = agent.instance_dir(&instance.id);
    if std::fs::create_dir_all(&to).is_err() {
        return;
    }
    let entries = std::fs::read_dir(&from).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("log")) {
        let _ = std::fs::rename(entry.path(), to.join(entry.file_name()));
    }
    let mut old: Vec<PathBuf> =
        std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    old.sort();
    for path in old.iter().rev().skip(OLD_LOGS) {
        let _ = std::fs::remove_dir_all(path);
    }
}

/// An instance's folder may hold a layer as large as its program made it: that is removed behind
/// everybody's back, and by the next agent if this one ends before it is done.
fn remove_folder(agent: &Agent, id: &str) {
    let dir = agent.instance_dir(id);
    match agent.store.scratch_dir() {
        Ok(aside) if std::fs::rename(&dir, aside.path().join("gone")).is_ok() => {
            agent.background(move || drop(aside));
        }
        _ => agent.background(move || drop(std::fs::remove_dir_all(dir))),
    }
}

/// The last lines that an instance has written.
pub(crate) fn last_lines(id: &str, running: Option<&Running>, lines: usize) -> Vec<String> {
    let Some(running) = running else { return Vec::new() };
    kiln_run::logs::read(running.dir(), LogQuery { tail: Some(lines), since: None })
        .map(|entries| entries.into_iter().map(|entry| entry.message).collect())
        .unwrap_or_else(|error| vec![format!("(the log of {id} cannot be read: {error})")])
}
