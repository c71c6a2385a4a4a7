//! What each request does.

mod build;
mod down;
mod exec;
mod logs;
mod look;
mod serve;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_core::compose::{self, LoadRequest, Project};
use kiln_core::exit::Exit;
use serde_json::{Value, json};

use super::Agent;
use super::session::Session;
use super::stage::{Stage, StageId};
use crate::protocol::{ProjectArgs, Verb};
use crate::report::Report;

/// How a request ended well.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Exit code.
    pub exit: Exit,
    /// The document that `--json` prints.
    pub data: Value,
}

impl From<Value> for Answer {
    fn from(data: Value) -> Self {
        Self { exit: Exit::Done, data }
    }
}

/// Carries out `verb`.
pub(crate) fn run(
    agent: &Arc<Agent>,
    session: &Session,
    verb: Verb,
    fds: Vec<OwnedFd>,
) -> Result<Answer, Report> {
    match verb {
        Verb::Ping | Verb::Replace => Ok(json!({ "agent": super::build_id() }).into()),
        Verb::Lock { project, update } => build::lock(agent, session, &project, update),
        Verb::Bake { project, services } => build::bake(agent, session, &project, &services),
        Verb::Up { project, timeout } => serve::up(agent, session, &project, timeout),
        Verb::Plan { project, stage } => serve::plan(agent, session, &project, &stage),
        Verb::Rollback { project, stage, release, timeout } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            serve::rollback(agent, session, &stage, release.as_deref(), timeout)
        }
        Verb::Releases { project, stage } => {
            look::releases(agent, &*find_stage(agent, session, &project, &stage)?)
        }
        Verb::Ps { project, all } => {
            let only = match all || anywhere(session, &project) {
                true => None,
                false => Some(project_name(session, &project)?),
            };
            Ok(look::ps(agent, only.as_deref()))
        }
        Verb::Status { project, stage } => match anywhere(session, &project) {
            true => look::overview(agent),
            false => look::status(agent, &*find_stage(agent, session, &project, &stage)?),
        },
        Verb::Logs { project, stage, services, follow, tail } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            logs::logs(agent, session, &stage, &services, follow, tail)
        }
        Verb::Exec { project, stage, service, argv, user, tty } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            exec::exec(agent, session, &stage, &exec::Command { service, argv, user, tty }, fds)
        }
        Verb::History { project, stage, limit, all } => {
            let only = match all || anywhere(session, &project) {
                true => None,
                false => Some(project_name(session, &project)?),
            };
            look::history(agent, session, only.as_deref(), stage.as_deref(), limit)
        }
        Verb::Down { project, stage, volumes } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            down::down(agent, session, &stage, volumes)
        }
        Verb::Images => look::images(agent),
        Verb::Gc { dry_run } => look::gc(agent, dry_run),
        Verb::Shutdown => down::shutdown(agent, session),
    }
}

/// Reads the project that the client means.
fn load(session: &Session, args: &ProjectArgs) -> Result<Project, Report> {
    let files = args.file.iter().map(|file| session.cwd.join(file)).collect();
    let request = LoadRequest {
        files,
        dir: session.cwd.clone(),
        env: session.env.clone(),
        profiles: args.profile.clone(),
        project_name: args.project_name.clone(),
        read: &|path| std::fs::read(path),
    };
    let project = compose::load(&request).map_err(|error| {
        let mut report = Report::usage(error.to_string());
        report.hint = error.hint;
        report
    })?;
    for warning in &project.warnings {
        session.notice(warning.clone());
    }
    Ok(project)
}

/// As [`load`], and says which keys mean nothing here.
fn load_and_tell(
    agent: &Agent,
    session: &Session,
    args: &ProjectArgs,
) -> Result<Project, Report> {
    let project = load(session, args)?;
    if !project.ignored.is_empty() {
        session.notice(format!("these mean nothing to Kiln: {}", project.ignored.join(", ")));
    }
    agent.configure(&project);
    Ok(project)
}

/// Whether the client names no project and stands in none: verbs that only look then show all.
fn anywhere(session: &Session, args: &ProjectArgs) -> bool {
    const NAMES: [&str; 4] =
        ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];
    args.file.is_empty()
        && args.project_name.is_none()
        && !session.env.contains_key("COMPOSE_FILE")
        && !NAMES.iter().any(|name| session.cwd.join(name).exists())
}

fn project_name(session: &Session, args: &ProjectArgs) -> Result<String, Report> {
    match &args.project_name {
        Some(name) => Ok(name.clone()),
        None => Ok(load(session, args)?.name),
    }
}

/// The stage that the client means; it need not have anything in it.
fn find_stage(
    agent: &Agent,
    session: &Session,
    args: &ProjectArgs,
    stage: &str,
) -> Result<Arc<Stage>, Report> {
    let id = StageId { project: project_name(session, args)?, stage: stage.to_owned() };
    Ok(agent.stage(&id))
}

/// What a verb says of a stage in which nothing serves.
fn nothing_serves(stage: &Stage) -> Report {
    Report::failed(format!("nothing serves in {}", stage.id)).hint("kiln up")
}
