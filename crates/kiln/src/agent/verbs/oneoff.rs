//! `run`: a one-off instance of a service, in no slot and without traffic, attached to the client. It
//! finds its neighbours where they serve; it is gone when its command has ended.
//!
//! Its first process only waits; the command joins it as one of `exec` does, with the client's pipes or
//! a terminal. Volumes without a name are folders of its own. Named data is the service's: what another
//! instance of the same service writes now is refused.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_core::compose::MountSource;
use kiln_core::release::ReleasedService;
use kiln_run::ExecSpec;
use serde_json::json;

use super::learn::Lone;
use super::{Answer, exec, no_service, nothing_serves};
use crate::agent::Agent;
use crate::agent::session::Session;
use crate::agent::stage::Stage;
use crate::agent::{instances, record};
use crate::report::{Because, Report};

/// `kiln run`. Without a command of its own it is the service's.
pub(super) fn run(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    service: &str,
    mut spec: ExecSpec,
    fds: Vec<OwnedFd>,
) -> Result<Answer, Report> {
    let stdio = exec::pipes(fds)?;
    agent.ledger_is_whole("nothing is started")?;
    let active = stage.state().pointer.active.ok_or_else(|| nothing_serves(stage))?;
    let release = agent.release(&active)?;
    let Some(released) = release.services.get(service) else {
        return Err(no_service(&stage.id, service, release.services.keys()));
    };
    spec.argv = argv(agent, released, std::mem::take(&mut spec.argv))?;
    if !released.settings.post_start.is_empty() {
        session.notice(format!(
            "the `post_start` hooks of `{service}` are not run: what the command needs of them, it \
             does itself"
        ));
    }
    let odd = alone(released);
    let instance = instances::launch_odd(agent, stage, active, service, odd)?;
    let lone = Lone::of(agent, stage, instance)?;
    let mut data = json!({ "instance": lone.running().id(), "user": spec.user });
    record::command(agent, lone.running().id(), &spec.argv, &mut data);
    record::note(agent, stage, "run", data);
    exec::attached(agent, session, service, lone.running(), &spec, stdio)
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
