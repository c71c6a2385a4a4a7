//! `up`, `plan` and `rollback`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_core::compose::Project;
use kiln_core::written::Written;
use kiln_core::{Digest, Release};
use kiln_front::Bound;
use kiln_store::Pointer;

use super::build::known_services;
use super::{Answer, load_and_tell, no_service, no_stage, nothing_serves, with_turn};
use crate::agent::provision::Patience;
use crate::agent::routes::route_id;
use crate::agent::session::Session;
use crate::agent::silence::SILENT;
use crate::agent::stage::{Instance, Seen, Stage, StageId, Wish};
use crate::agent::{Agent, binds, folder, provision, released, volumes};
use crate::answers;
use crate::deliver::{Converged, Published, Reason, assemble, converge, publish};
use crate::protocol::ProjectArgs;
use crate::report::Report;

fn patience(timeout: Option<u64>) -> Patience {
    Patience { limit: timeout.map(Duration::from_secs) }
}

/// What `up` is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Up<'a> {
    /// Seconds that a service may take to get ready.
    pub timeout: Option<u64>,
    /// Volumes without a name begin anew.
    pub renew: bool,
    /// What another folder deployed may be replaced.
    pub take_over: bool,
    /// Root file systems are read-only where no service states otherwise.
    pub strict: bool,
    /// Only these services and what they depend on; all, if there are none.
    pub services: &'a [String],
}

/// `kiln up`.
pub(super) fn up(
    agent: &Arc<Agent>,
    session: &Session,
    args: &ProjectArgs,
    asked: &Up<'_>,
) -> Result<Answer, Report> {
    let began = Instant::now();
    let mut project = load_and_tell(session, args)?;
    project.kiln.read_only |= asked.strict;
    known_services(&project, asked.services)?;
    let only = with_dependencies(&project, asked.services);
    let id = StageId { project: project.name.clone(), stage: "dev".into() };
    let stage = agent.stage(&id);
    with_turn(session, &stage, "kiln up", || {
        agent.ledger_is_whole("nothing is delivered")?;
        let consent = folder::Consent {
            given: asked.take_over,
            nothing: "nothing of that is touched",
            hint: "give one of the two another name (`name:` in its file, or -p), or say that this \
                   folder is the project now: kiln up --take-over",
        };
        folder::check(agent, session, &stage, &project.dir, &consent)?;
        let _lease = agent.lease()?;
        let target = publish(agent, session, &stage, &project, &only)?;
        let target = target.for_stage(&stage.id.stage);
        let quarantined = stage.state().pointer.quarantined.contains(&target.digest);
        if quarantined {
            session.notice(format!(
                "{} was rolled back from; `up` lifts its quarantine",
                target.digest.short()
            ));
        }
        if asked.renew {
            // What a killed agent left half renewed.
            volumes::drop_renewed(agent, &stage)?;
            name_what_is_renewed(agent, session, &stage)?;
        }
        let folder = Some(folder::of(&project.dir).to_string_lossy().into_owned());
        let wishing = stage.wish(Wish { folder, renew: asked.renew, ..Wish::default() });
        binds::make(agent, session, &stage, &target.release)?;
        binds::tell_what_is_live(session, &target.release);
        let patience = patience(asked.timeout);
        let done = converge(agent, session, &stage, &target, Reason::Up, patience)?;
        folder::keep(agent, &stage)?;
        drop(wishing);
        if asked.renew {
            volumes::drop_renewed(agent, &stage)?;
        }
        say_unknown(session, &stage);
        say_lacking(session, &stage, &target, &done);
        say_joined(agent, session, &stage, &project);
        let front = agent.front_says(&stage);
        let written = agent.layers.news(agent, &stage, &target.digest);
        Ok(outcome(agent, &stage, &target, &done, Some(front), written, began))
    })
}

/// Names the volumes that begin anew and have something in them: before it goes.
fn name_what_is_renewed(agent: &Agent, session: &Session, stage: &Stage) -> Result<(), Report> {
    let all = volumes::list(agent, &stage.id)?;
    let going: Vec<String> = all
        .into_iter()
        .filter(|volume| matches!(volume.kind, volumes::Kind::Anonymous { .. }))
        .filter(volumes::Volume::has_something)
        .map(|volume| volume.name)
        .collect();
    if !going.is_empty() {
        session.notice(format!(
            "these volumes without a name begin anew (`-V`), and what is in them goes: {}",
            going.join(", ")
        ));
    }
    Ok(())
}

/// `services` and all that they depend on.
pub(super) fn with_dependencies(project: &Project, services: &[String]) -> Vec<String> {
    let mut found: BTreeSet<String> = BTreeSet::new();
    let mut next: Vec<&String> = services.iter().collect();
    while let Some(name) = next.pop() {
        if let Some(service) = project.services.get(name)
            && found.insert(name.clone())
        {
            next.extend(service.depends_on.keys());
        }
    }
    found.into_iter().collect()
}

/// Nothing is done to what cannot be asked, and that is said.
fn say_unknown(session: &Session, stage: &Stage) {
    let unknown = |instance: &Instance| {
        let (name, why) = (&instance.service, instance.unknown.as_ref()?);
        Some(format!("`{name}` is left as it is: whether it runs is unknown: {why}"))
    };
    // The client may be slow to read: the state is let go of first.
    let said: Vec<String> = stage.state().instances.values().filter_map(unknown).collect();
    said.into_iter().for_each(|line| session.notice(line));
}

/// What the host could not give to those that were started.
fn say_lacking(session: &Session, stage: &Stage, target: &Published, done: &Converged) {
    let mut said = Vec::new();
    let state = stage.state();
    for service in
        target.release.services.keys().filter(|name| !done.plan.share.contains_key(*name))
    {
        for what in state.member(&target.digest, service).iter().flat_map(|it| &it.lacks) {
            said.push(format!("`{service}` runs without all that it asks for: {what}"));
        }
    }
    drop(state);
    said.into_iter().for_each(|line| session.notice(line));
}

/// A network from elsewhere that nobody has is no error: who has it may come later.
fn say_joined(agent: &Agent, session: &Session, stage: &Stage, project: &Project) {
    let external = project.networks.iter().filter(|(_, network)| network.external);
    for (key, network) in external {
        let name = network.joined.as_ref().unwrap_or(key);
        if !agent.is_joined(&stage.id, name) {
            session.notice(format!(
                "network `{key}`: no other project of this root has a part in `{name}` now; what \
                 comes later is found by instances that start after it"
            ));
        }
    }
    for (key, network) in &project.networks {
        let Some(name) = network.joined.as_ref().or(network.external.then_some(key)) else {
            continue;
        };
        let blind = agent.do_not_find(stage, name);
        for other in blind.iter().map(|(project, _)| project).collect::<BTreeSet<_>>() {
            let services: Vec<&str> = blind
                .iter()
                .filter(|(project, _)| project == other)
                .map(|(_, service)| service.as_str())
                .collect();
            session.notice(format!(
                "network `{key}`: of `{other}` these started before and do not find all services of \
                 this project by name: {}; kiln -p {other} restart {}",
                services.join(", "),
                services.join(" ")
            ));
        }
    }
}

fn outcome(
    agent: &Agent,
    stage: &Stage,
    target: &Published,
    done: &Converged,
    front: Option<Vec<String>>,
    written: BTreeMap<String, Written>,
    began: Instant,
) -> Answer {
    let ports = ports(agent, &target.release, &stage.id);
    let state = stage.state();
    let services = target.release.services.keys().map(|name| {
        let did = if done.plan.share.contains_key(name) { "kept" } else { "started" };
        let word = |found: &Instance| if found.silent { SILENT } else { found.life.word() };
        let health = state.member(&target.digest, name).map(|found| word(found).to_owned());
        (name.clone(), answers::Did { did: did.to_owned(), health })
    });
    Answer::of(&answers::Up {
        project: stage.id.project.clone(),
        stage: stage.id.stage.clone(),
        release: target.digest,
        switched: done.switched,
        fresh: target.fresh,
        source: target.release.source.clone(),
        differences: target.differences.iter().map(ToString::to_string).collect(),
        services: services.collect(),
        ports,
        paused: done.plan.paused.clone(),
        written,
        front,
        ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Where clients find the release.
pub(super) fn ports(agent: &Agent, release: &Release, stage: &StageId) -> Vec<answers::Port> {
    ports_at(&agent.bound(), release, stage)
}

/// The same, where the front listens at `open`.
pub(super) fn ports_at(open: &[Bound], release: &Release, stage: &StageId) -> Vec<answers::Port> {
    let mut all = Vec::new();
    for (service, released) in &release.services {
        for port in released.settings.ports.get(&stage.stage).into_iter().flatten() {
            let host = port.host_ip.map_or("localhost".to_owned(), |ip| match ip {
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
                std::net::IpAddr::V4(ip) => ip.to_string(),
            });
            let id = route_id(stage, service, port);
            let asked = |at: &SocketAddr| port.host_ip.is_none_or(|ip| ip == at.ip());
            let bound = open.iter().filter(|it| it.route == id && asked(&it.asked));
            let bound: Vec<SocketAddr> = bound.map(|it| it.bound).collect();
            let chosen = bound.first().map_or(port.published, SocketAddr::port);
            all.push(answers::Port {
                service: service.clone(),
                address: format!("{host}:{chosen}"),
                bound,
                target: port.target,
                protocol: port.protocol,
            });
        }
    }
    all
}

/// `kiln plan`. Bakes, since a digest is known only then; what runs and the pointer stay.
pub(super) fn plan(
    agent: &Arc<Agent>,
    session: &Session,
    args: &ProjectArgs,
    stage: &str,
) -> Result<Answer, Report> {
    let project = load_and_tell(session, args)?;
    if stage != "dev" {
        return Err(no_stage(agent, &project.name, stage));
    }
    let stage = agent.stage(&StageId { project: project.name.clone(), stage: stage.into() });
    let _lease = agent.lease()?;
    let target = assemble(agent, session, &stage, &project)?.for_stage(&stage.id.stage);
    let folder = folder::of(&project.dir);
    let data = volumes::data(agent, &stage, &target.release, Some(&folder))?;
    let observed = stage.state().observe();
    let plan = kiln_core::plan::plan(&target.release, &observed, &data);
    provision::name_what_leaves(session, &stage, &target);
    volumes::free(agent, &stage, &target.digest, &plan, &data)?;
    let (active, serves, quarantined) = {
        let state = stage.state();
        let quarantined = state.pointer.quarantined.contains(&target.digest);
        (state.pointer.active, state.serves(&target.digest), quarantined)
    };
    Ok(Answer::of(&answers::Planned {
        project: stage.id.project.clone(),
        stage: stage.id.stage.clone(),
        release: target.digest,
        active,
        changes: !(plan.is_empty() && serves),
        quarantined,
        pause: plan.needs_pause(),
        steps: plan.steps(target.digest),
        plan,
    }))
}

/// `kiln rollback`.
pub(super) fn rollback(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    release: Option<&str>,
    timeout: Option<u64>,
) -> Result<Answer, Report> {
    let began = Instant::now();
    with_turn(session, stage, "kiln rollback", || {
        agent.ledger_is_whole("nothing is delivered")?;
        let digest = choose(agent, stage, release)?;
        let release = agent.release_in(&stage.id, &digest)?;
        let target = Published::of(digest, release);
        let done = converge(agent, session, stage, &target, Reason::Rollback, patience(timeout))?;
        Ok(outcome(agent, stage, &target, &done, None, BTreeMap::new(), began))
    })
}

/// `kiln restart`: what serves, with fresh instances of `services`, or of all that run.
pub(super) fn restart(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    services: &[String],
    timeout: Option<u64>,
) -> Result<Answer, Report> {
    let began = Instant::now();
    with_turn(session, stage, "kiln restart", || {
        agent.ledger_is_whole("nothing is delivered")?;
        let active = stage.state().pointer.active.ok_or_else(|| nothing_serves(stage))?;
        let release = agent.release_in(&stage.id, &active)?;
        if let Some(name) = services.iter().find(|name| !release.services.contains_key(*name)) {
            return Err(no_service(&stage.id, name, release.services.keys()));
        }
        let jobs = release.jobs();
        let fresh = match services {
            // What has done its work is not done again unless somebody says so.
            [] => release.services.keys().filter(|name| !jobs.contains(*name)).cloned().collect(),
            named => named.iter().cloned().collect(),
        };
        let target = Published::of(active, release);
        let wishing = stage.wish(Wish { fresh, ..Wish::default() });
        let patience = patience(timeout);
        let done = converge(agent, session, stage, &target, Reason::Restart, patience)?;
        drop(wishing);
        Ok(outcome(agent, stage, &target, &done, None, BTreeMap::new(), began))
    })
}

/// The newest release before that nobody rolled back from.
pub(super) fn before(pointer: &Pointer) -> Option<Digest> {
    pointer.previous.iter().find(|digest| !pointer.quarantined.contains(*digest)).copied()
}

/// The release that is meant: the newest before that nobody rolled back from, or the one named.
fn choose(agent: &Agent, stage: &Stage, named: Option<&str>) -> Result<Digest, Report> {
    let pointer = stage.state().pointer.clone();
    if pointer.active.is_none() && named.is_none() {
        return Err(nothing_serves(stage));
    }
    let Some(named) = named else {
        return before(&pointer).ok_or_else(|| {
            Report::failed(format!("{} has no release before this one", stage.id))
                .hint("`kiln releases` lists what can be restored: kiln rollback dev DIGEST")
        });
    };
    let wanted = named.trim_start_matches("sha256:");
    let cuts: Vec<Digest> =
        released::of(agent, &stage.id.project)?.into_iter().map(|cut| cut.release).collect();
    let all = pointer.active.iter().chain(&pointer.previous).chain(&cuts);
    let found: BTreeSet<Digest> =
        all.filter(|digest| digest.hex().starts_with(wanted)).copied().collect();
    let found: Vec<Digest> = found.into_iter().collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(Report::usage(format!("{} has no release `{named}`", stage.id))
            .hint("`kiln releases` lists them")),
        _ => Err(Report::usage(format!("`{named}` could be several releases of {}", stage.id))
            .hint("give more digits; see `kiln releases`")),
    }
}
