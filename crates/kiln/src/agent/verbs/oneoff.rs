//! `run`: a one-off instance of a service, in no slot and without traffic, attached to the client. It
//! finds its neighbours where they serve; it is gone when its command has ended. In `dev` it needs no
//! release that has the service: one is made for it, and what it depends on and does not serve is
//! brought up first, as Compose does.
//!
//! Its first process only waits; the command joins it as one of `exec` does, with the client's pipes or
//! a terminal. Volumes without a name are folders of its own. Named data is the service's: what another
//! instance of the same service writes now is refused.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_core::compose::{MountSource, Project};
use kiln_core::release::ReleasedService;
use kiln_core::{Digest, Release};
use kiln_run::{ExecSpec, ExecStdio};
use serde_json::json;

use super::build::known_services;
use super::learn::Lone;
use super::serve::{self, Up, with_dependencies};
use super::{Answer, exec, load_and_tell, no_service, nothing_serves, with_turn};
use crate::agent::Agent;
use crate::agent::session::Session;
use crate::agent::stage::{Instance, Stage, Wish};
use crate::agent::{binds, folder, instances, policy, record};
use crate::deliver::assemble_part;
use crate::protocol::ProjectArgs;
use crate::report::{Because, Report};

/// What `run` is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Where the project is; with the profiles of the service.
    pub project: &'a ProjectArgs,
    /// Which service.
    pub service: &'a str,
    /// Nothing is started that it depends on.
    pub no_deps: bool,
}

/// `kiln run`. Without a command of its own it is the service's.
pub(super) fn run(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    asked: &Asked<'_>,
    spec: ExecSpec,
    fds: Vec<OwnedFd>,
) -> Result<Answer, Report> {
    let stdio = exec::pipes(fds)?;
    agent.ledger_is_whole("nothing is started")?;
    let served = stage.state().pointer.active;
    let served = match served {
        Some(digest) => Some((digest, agent.release_in(&stage.id, &digest)?)),
        None => None,
    };
    let has_it = |release: &Release| release.services.contains_key(asked.service);
    if let Some((digest, release)) = served.filter(|(_, release)| has_it(release)) {
        let started = start(agent, session, stage, asked.service, (digest, &release), spec)?;
        return attached(agent, session, stage, asked.service, started, stdio);
    }
    if stage.id.stage != "dev" {
        let active = stage.state().pointer.active.ok_or_else(|| nothing_serves(stage))?;
        let release = agent.release_in(&stage.id, &active)?;
        return Err(no_service(&stage.id, asked.service, release.services.keys()));
    }
    let mut project = load_and_tell(session, asked.project)?;
    known_services(&project, &[asked.service.to_owned()])?;
    if asked.no_deps {
        project.in_stages.values_mut().for_each(|there| without_dependencies(there, asked.service));
        without_dependencies(&mut project, asked.service);
    }
    start_neighbours(agent, session, stage, asked, &project)?;
    beside(agent, session, stage, asked.service, &project, spec, stdio)
}

fn without_dependencies(project: &mut Project, service: &str) {
    if let Some(service) = project.services.get_mut(service) {
        service.depends_on.clear();
    }
}

/// Brings up what the service depends on and what does not serve yet.
fn start_neighbours(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Stage,
    asked: &Asked<'_>,
    project: &Project,
) -> Result<(), Report> {
    let mut needed = with_dependencies(project, &[asked.service.to_owned()]);
    needed.retain(|name| name != asked.service);
    let active = stage.state().pointer.active;
    let serving = active.map(|digest| agent.release_in(&stage.id, &digest)).transpose()?;
    let serves = |name: &String| serving.as_ref().is_some_and(|it| it.services.contains_key(name));
    if needed.iter().all(serves) {
        return Ok(());
    }
    let names: Vec<String> = needed.iter().map(|name| format!("`{name}`")).collect();
    session.notice(format!("brings up what `{}` depends on: {}", asked.service, names.join(", ")));
    let up = Up { timeout: None, renew: false, take_over: false, strict: false, services: &needed };
    serve::up(agent, session, asked.project, &up).map(drop)
}

/// Runs it by a release that nothing serves and nobody records, as the folder has it now.
fn beside(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    service: &str,
    project: &Project,
    spec: ExecSpec,
    stdio: ExecStdio,
) -> Result<Answer, Report> {
    // Nothing else names what is made here; it may be collected when this has ended.
    let _lease = agent.lease()?;
    // What is relative to the project's folder is found there, also where nothing was ever deployed.
    let folder = Some(folder::of(&project.dir).to_string_lossy().into_owned());
    let started = with_turn(session, stage, "kiln run", || {
        let consent = folder::Consent {
            given: false,
            nothing: "nothing of that is touched",
            hint: "give one of the two another name (`name:` in its file, or -p)",
        };
        folder::check(agent, session, stage, &project.dir, &consent)?;
        let _wishing = stage.wish(Wish { folder, ..Wish::default() });
        let only = with_dependencies(project, &[service.to_owned()]);
        let target = assemble_part(agent, session, stage, project, &only)?;
        let digest = agent.put_release(&target.release)?;
        let target = target.for_stage(&stage.id.stage);
        policy::judge(agent, session, &stage.id, &target.release)?;
        binds::make(agent, session, stage, &target.release)?;
        start(agent, session, stage, service, (digest, &target.release), spec)
    })?;
    attached(agent, session, stage, service, started, stdio)
}

/// What runs, and what is to be run in it.
type Started = (Instance, ExecSpec);

/// Starts the instance; its command is still to come.
fn start(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Stage,
    service: &str,
    (digest, release): (Digest, &Release),
    mut spec: ExecSpec,
) -> Result<Started, Report> {
    let Some(released) = release.services.get(service) else {
        return Err(Report::failed(format!("release {} has no `{service}`", digest.short())));
    };
    spec.argv = argv(agent, released, std::mem::take(&mut spec.argv))?;
    if !released.settings.post_start.is_empty() {
        session.notice(format!(
            "the `post_start` hooks of `{service}` are not run: what the command needs of them, it \
             does itself"
        ));
    }
    let odd = alone(released);
    Ok((instances::launch_odd(agent, stage, digest, service, odd)?, spec))
}

/// Runs the command in it, and ends it with that.
fn attached(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Stage,
    service: &str,
    (instance, spec): Started,
    stdio: ExecStdio,
) -> Result<Answer, Report> {
    let lone = Lone::of(agent, stage, instance)?;
    let mut data = json!({ "instance": lone.running().id(), "user": spec.user });
    record::command(agent, lone.running().id(), &spec.argv, &mut data);
    record::note(agent, stage, "run", data);
    Ok(exec::attached(agent, session, service, lone.running(), &spec, stdio)?.answer)
}

/// The image's entry point stays, as for `docker compose run`, if the service has it.
fn argv(
    agent: &Agent,
    released: &ReleasedService,
    command: Vec<String>,
) -> Result<Vec<String>, Report> {
    let whole = &released.settings.argv;
    if command.is_empty() {
        return Ok(whole.clone());
    }
    let config = agent.store.get_config(&released.image.config);
    let config = config.because(|| "reading the image's configuration".into())?;
    let entry = config.entrypoint.unwrap_or_default();
    let keeps = !entry.is_empty() && whole.starts_with(&entry);
    Ok(if keeps { entry.into_iter().chain(command).collect() } else { command })
}

/// The service with no volumes without a name but fresh ones, and no ports.
fn alone(released: &ReleasedService) -> ReleasedService {
    let mut odd = released.clone();
    odd.settings.ports.clear();
    for mount in &mut odd.settings.mounts {
        if mount.source == MountSource::Anonymous {
            mount.source = MountSource::Volatile;
        }
    }
    odd
}
