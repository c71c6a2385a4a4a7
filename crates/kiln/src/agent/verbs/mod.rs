//! What each request does.

mod build;
pub(crate) mod carrier;
mod copy;
pub(crate) mod diff;
mod down;
mod exec;
mod fingers;
mod fsck;
mod gc;
mod learn;
mod logs;
mod look;
mod oneoff;
mod pull;
mod release;
mod serve;
mod stats;
mod verify;

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_core::compose::{self, Project};
use kiln_core::exit::Exit;
use serde_json::Value;

use super::Agent;
use super::session::Session;
use super::stage::{Stage, StageId};
use crate::answers;
use crate::protocol::{ProjectArgs, Verb};
use crate::report::Report;

/// Names under which a Compose file is found.
const COMPOSE_FILES: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// How a request ended well.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Exit code.
    pub exit: Exit,
    /// The document that `--json` prints.
    pub data: Value,
}

impl Answer {
    /// One of the documents in [`crate::answers`].
    fn of(document: &impl serde::Serialize) -> Self {
        // Nothing in them cannot be JSON.
        serde_json::to_value(document).unwrap_or_default().into()
    }
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
        Verb::Ping | Verb::Replace => Ok(Answer::of(&answers::Pong { agent: super::build_id() })),
        Verb::Lock { project, update, names, fetch } => {
            let asked = build::Asked { update, names, fetch };
            build::lock(agent, session, &project, &asked)
        }
        Verb::Pull { project, services } => pull::pull(agent, session, &project, &services),
        Verb::Bake { project, services } => build::bake(agent, session, &project, &services),
        Verb::Export {
            project,
            services,
            image,
            release,
            name,
            format,
            compression,
            output,
            owner,
        } => {
            let wish = carrier::Export {
                project: &project,
                services: &services,
                image: image.as_deref(),
                release: release.as_deref(),
                name: name.as_deref(),
                format,
                compression,
                output,
                owner,
            };
            carrier::export(agent, session, &wish, fds)
        }
        Verb::Import { path, select, name } => {
            carrier::import(agent, session, &path, select.as_deref(), name.as_deref(), fds)
        }
        Verb::Forget { name } => carrier::forget(agent, &name),
        Verb::Verify { project, services, deep, against, strict } => {
            let asked = verify::Asked { services, deep, strict, against };
            verify::verify(agent, session, &project, &asked, fds)
        }
        Verb::Diff { project, names, text, .. } => {
            diff::diff(agent, session, &project, &names, text)
        }
        Verb::Release { project, commit, env } => {
            let wish = release::Wish { project: &project, commit: commit.as_deref(), env: &env };
            release::release(agent, session, &wish)
        }
        Verb::Up { project, timeout, renew, take_over, strict, services } => {
            let services = &services;
            let asked = serve::Up { timeout, renew, take_over, strict, services };
            serve::up(agent, session, &project, &asked)
        }
        Verb::Learn { project, service, timeout } => {
            learn::learn(agent, session, &project, &service, timeout)
        }
        Verb::Plan { project, stage } => serve::plan(agent, session, &project, &stage),
        Verb::Rollback { project, stage, release, timeout } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            serve::rollback(agent, session, &stage, release.as_deref(), timeout)
        }
        Verb::Releases { project, stage } => {
            look::releases(agent, &*find_stage(agent, session, &project, &stage)?)
        }
        Verb::Ps { project, all } => {
            let only = only(agent, session, &project, all)?;
            Ok(look::ps(agent, only.as_deref()))
        }
        Verb::Status { project, stage } => match anywhere(session, &project) {
            true => look::overview(agent),
            false => look::status(agent, &*find_stage(agent, session, &project, &stage)?),
        },
        Verb::Logs { project, stage, services, follow, tail, since, until, .. } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            let wanted = logs::Wanted { services: &services, follow, tail, since, until };
            logs::logs(agent, session, &stage, &wanted)
        }
        Verb::Copy { project, stage, service, path } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            copy::copy(session, &stage, &service, &path, fds)
        }
        Verb::Port { project, stage, service, target, protocol } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            fingers::port(agent, &stage, &service, target, protocol)
        }
        Verb::Ls { all, .. } => Ok(fingers::ls(agent, all)),
        Verb::Wait { project, stage, services } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            fingers::wait(agent, session, &stage, &services)
        }
        Verb::Stats { project, services, all, stream } => {
            let only = only(agent, session, &project, all)?;
            let wanted = stats::Wanted { project: only.as_deref(), services: &services };
            stats::stats(agent, session, &wanted, stream)
        }
        Verb::Restart { project, stage, services, timeout } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            serve::restart(agent, session, &stage, &services, timeout)
        }
        Verb::Exec { project, stage, service, argv, env, user, workdir, terminal } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            let spec = kiln_run::ExecSpec { argv, env, user, cwd: workdir, terminal };
            exec::exec(agent, session, &stage, &service, &spec, fds)
        }
        Verb::Run { project, no_deps, stage, service, argv, env, user, workdir, terminal } => {
            let stage = find_stage(agent, session, &project, &stage)?;
            let spec = kiln_run::ExecSpec { argv, env, user, cwd: workdir, terminal };
            let asked = oneoff::Asked { project: &project, service: &service, no_deps };
            oneoff::run(agent, session, &stage, &asked, spec, fds)
        }
        Verb::History { project, stage, limit, all } => {
            let only = only(agent, session, &project, all)?;
            if let Some(stage) = &stage {
                known_stage(agent, only.as_deref(), stage)?;
            }
            look::history(agent, session, only.as_deref(), stage.as_deref(), limit)
        }
        Verb::Down { project, stage, volumes } => {
            down::down(agent, session, &project, &stage, volumes)
        }
        Verb::Images => look::images(agent),
        Verb::Fsck { repair } => fsck::fsck(agent, session, repair),
        Verb::Gc { dry_run, unused } => gc::gc(agent, session, dry_run, unused),
        Verb::Shutdown => down::shutdown(agent, session),
    }
}

/// Reads the project that the client means.
fn load(session: &Session, args: &ProjectArgs) -> Result<Project, Report> {
    let read = |path: &Path| crate::compose::read(path, args.stdin.as_deref());
    let request = crate::compose::request(args, &session.cwd, session.env.clone(), &read);
    let project = compose::load(&request).map_err(|errors| Report::compose("", &errors))?;
    for warning in &project.warnings {
        session.notice(warning.clone());
    }
    Ok(project)
}

/// As [`load`], and says which keys mean nothing here.
fn load_and_tell(session: &Session, args: &ProjectArgs) -> Result<Project, Report> {
    let project = load(session, args)?;
    if !project.ignored.is_empty() {
        session.notice(format!("these mean nothing to Kiln: {}", project.ignored.join(", ")));
    }
    Ok(project)
}

/// Whether the client names no project and stands in none: verbs that only look then show all.
fn anywhere(session: &Session, args: &ProjectArgs) -> bool {
    args.file.is_empty()
        && args.project_name.is_none()
        && !session.env.contains_key("COMPOSE_FILE")
        && !COMPOSE_FILES.iter().any(|name| session.cwd.join(name).exists())
}

/// The project that a verb looks at; all, if that is said, or nothing else is.
fn only(
    agent: &Agent,
    session: &Session,
    args: &ProjectArgs,
    all: bool,
) -> Result<Option<String>, Report> {
    if all || anywhere(session, args) {
        return Ok(None);
    }
    let name = project_name(session, args)?;
    if args.project_name.is_some() {
        known_project(agent, &name)?;
    }
    Ok(Some(name))
}

fn project_name(session: &Session, args: &ProjectArgs) -> Result<String, Report> {
    if let Some(name) = &args.project_name {
        return Ok(name.clone());
    }
    let file = args.file.first().map(|file| session.cwd.join(file));
    match load(session, args) {
        Ok(project) => Ok(project.name),
        // A file that is broken by now must not keep anybody from taking its project down.
        Err(report) => match name_of_broken(session, file.as_deref()) {
            Some(name) => {
                say_going_on(session, &report, &name);
                Ok(name)
            }
            None => Err(report),
        },
    }
}

/// Files that are wrong keep nobody from what needs only the project's name.
fn say_going_on(session: &Session, report: &Report, project: &str) {
    let all = if report.refusals.is_empty() { "" } else { " (`kiln config` lists them)" };
    session.notice(format!("{}{all}; going on for project `{project}`", report.message));
}

/// The project's name as far as a file that cannot be read as a whole tells it: its `name:` line,
/// else its folder's name.
fn name_of_broken(session: &Session, file: Option<&Path>) -> Option<String> {
    if let Some(name) = session.env.get("COMPOSE_PROJECT_NAME") {
        return Some(name.clone());
    }
    let found = || COMPOSE_FILES.iter().map(|name| session.cwd.join(name)).find(|f| f.exists());
    let file = file.map(Path::to_owned).or_else(found)?;
    let text = crate::compose::read(&file, None).ok()?;
    let text = String::from_utf8_lossy(&text);
    let written = text.lines().find_map(|line| line.strip_prefix("name:"));
    let name = match written {
        Some(name) => name.trim().trim_matches(['"', '\'']).to_owned(),
        None => file.parent()?.file_name()?.to_string_lossy().to_lowercase(),
    };
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let name: String = name.chars().filter(|c| plain(*c)).collect();
    (!name.is_empty()).then_some(name)
}

/// The stage that the client means; `dev` need not have anything in it.
fn find_stage(
    agent: &Agent,
    session: &Session,
    args: &ProjectArgs,
    stage: &str,
) -> Result<Arc<Stage>, Report> {
    let id = StageId { project: project_name(session, args)?, stage: stage.to_owned() };
    if args.project_name.is_some() {
        known_project(agent, &id.project)?;
    }
    let there = agent.stages().iter().any(|known| known.id == id);
    if stage != "dev" && !there {
        return Err(no_stage(agent, &id.project, stage));
    }
    Ok(agent.stage(&id))
}

/// Stages in which something was once.
fn met(agent: &Agent) -> impl Iterator<Item = Arc<Stage>> {
    agent.stages().into_iter().filter(|stage| {
        let state = stage.state();
        state.pointer.generation > 0 || !state.instances.is_empty()
    })
}

/// Refuses the name of a project of which nothing was ever deployed.
fn known_project(agent: &Agent, name: &str) -> Result<(), Report> {
    let known: BTreeSet<String> = met(agent).map(|stage| stage.id.project.clone()).collect();
    let dev = StageId { project: name.to_owned(), stage: "dev".into() };
    if known.contains(name) || agent.is_known(&dev)? {
        return Ok(());
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let report = Report::unknown("this root", "project", name, known.iter().copied());
    let none = "nothing was deployed to this root yet: kiln up";
    Err(if known.is_empty() { report.hint(none) } else { report })
}

/// Refuses the name of a stage that is nowhere in these projects.
fn known_stage(agent: &Agent, project: Option<&str>, stage: &str) -> Result<(), Report> {
    let ids = met(agent).map(|stage| stage.id.clone());
    let mut ids = ids.filter(|id| project.is_none_or(|project| id.project == project));
    match stage == "dev" || ids.any(|id| id.stage == stage) {
        true => Ok(()),
        false => Err(no_stage(agent, project.unwrap_or("this root"), stage)),
    }
}

/// Refuses the name of a stage that the project does not have.
fn no_stage(agent: &Agent, project: &str, stage: &str) -> Report {
    let ids = met(agent).map(|stage| stage.id.clone()).filter(|id| id.project == project);
    let known: BTreeSet<String> = ids.map(|id| id.stage).chain(["dev".to_owned()]).collect();
    let report = Report::unknown(project, "stage", stage, known.iter().map(String::as_str));
    let release = stage.len() >= 4 && stage.bytes().all(|byte| byte.is_ascii_hexdigit());
    match release {
        true => report.hint(format!("to name a release, name the stage first: dev {stage}")),
        false => report,
    }
}

/// How often who waits for a turn looks whether it has come, and whether it is still wanted.
const TURN: Duration = Duration::from_millis(5);

/// Deliveries to one stage take turns; who has to wait hears of it. Whose client goes away before
/// its turn does nothing. `what`: this delivery, as others are told of it.
fn with_turn<T>(
    session: &Session,
    stage: &Stage,
    what: &'static str,
    work: impl FnOnce() -> Result<T, Report>,
) -> Result<T, Report> {
    with_turn_by(session, stage, what, None, work)
}

/// The same, and given up after `deadline`: then nothing was done.
fn with_turn_by<T>(
    session: &Session,
    stage: &Stage,
    what: &'static str,
    deadline: Option<Instant>,
    work: impl FnOnce() -> Result<T, Report>,
) -> Result<T, Report> {
    let mut told = false;
    loop {
        session.check()?;
        if let Some(_turn) = stage.try_turn(what) {
            session.check()?;
            return work();
        }
        // Nobody has it any more: the next try is as good.
        if let Some((other, long)) = stage.whose_turn() {
            let long = long.as_secs();
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return Err(Report::failed(format!(
                    "{what} was given up: {other} has been under way in {} for {long} s and does \
                     not end",
                    stage.id
                ))
                .hint(format!(
                    "end that command and run this again; if that does not help, `kill -9 {}` ends \
                     the agent, nothing that runs, and whatever it is at",
                    std::process::id()
                )));
            }
            if !told {
                session.notice(format!(
                    "another delivery to {} is under way ({other}, for {long} s): waiting",
                    stage.id
                ));
                told = true;
            }
        }
        std::thread::sleep(TURN);
    }
}

/// What a verb says of a service that `place` does not have.
fn no_service(
    place: &impl fmt::Display,
    service: &str,
    known: impl IntoIterator<Item = impl AsRef<str>>,
) -> Report {
    let known: Vec<String> = known.into_iter().map(|name| name.as_ref().to_owned()).collect();
    let names = known.iter().map(String::as_str);
    let report = Report::unknown(&place.to_string(), "service", service, names);
    if known.is_empty() { report.hint("it has none: kiln up") } else { report }
}

/// What a verb says of a stage in which nothing serves.
fn nothing_serves(stage: &Stage) -> Report {
    Report::failed(format!("nothing serves in {}", stage.id)).hint("kiln up")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_store::Pointer;

    #[test]
    fn who_does_not_get_its_turn_says_whose_it_is() {
        let id = StageId { project: "shop".into(), stage: "dev".into() };
        let stage = Stage::new(id, Pointer::default());
        let session = Session::own();
        let turn = stage.try_turn("kiln up").unwrap();
        let late = Some(Instant::now());
        let work = || -> Result<(), Report> { panic!("it is not its turn") };
        let refused = with_turn_by(&session, &stage, "kiln shutdown", late, work).unwrap_err();
        assert!(refused.message.contains("kiln up has been under way in shop/dev"), "{refused}");
        let cure = format!("kill -9 {}", std::process::id());
        assert!(refused.hint.unwrap().contains(&cure));
        drop(turn);
        assert_eq!(stage.whose_turn(), None);
        assert_eq!(with_turn_by(&session, &stage, "kiln shutdown", late, || Ok(7)), Ok(7));
    }
}
