//! `down` and `shutdown`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_core::compose::{MountSource, Project};
use kiln_core::exit::Exit;
use serde_json::json;

use super::{Answer, COMPOSE_FILES, load, name_of_broken, with_turn, with_turn_by};
use crate::agent::session::Session;
use crate::agent::stage::{Illegal, Seen, Stage, StageId, StageState};
use crate::agent::volumes::{Kind, Volume};
use crate::agent::{Agent, folder, instances, layer, record, volumes, who};
use crate::answers;
use crate::protocol::ProjectArgs;
use crate::report::Report;
use crate::words::count;

/// How long requests under way may take to end.
const DRAIN: Duration = Duration::from_secs(1);

/// How long `shutdown` waits for deliveries under way.
const WAIT: Duration = Duration::from_secs(60);

/// What the command line and the files at hand say.
struct Asked {
    project: String,
    /// `-p`: then it does not matter where the command is given.
    named: bool,
    files: Files,
}

/// The project's files.
enum Files {
    /// Read.
    Read(Project),
    /// There, and not to be read.
    Broken(Report),
    /// There are none: the project is only named.
    None,
}

/// `kiln down`: clients first, then instances; the pointer says so.
pub(super) fn down(
    agent: &Arc<Agent>,
    session: &Session,
    args: &ProjectArgs,
    stage: &str,
    volumes: bool,
) -> Result<Answer, Report> {
    let asked = read(session, args)?;
    let id = StageId { project: asked.project.clone(), stage: stage.to_owned() };
    let there = agent.is_known(&id)?;
    if !there && asked.named && stage == "dev" {
        super::known_project(agent, &asked.project)?;
    }
    let stage = match there {
        true => agent.stage(&id),
        false => super::find_stage(agent, session, args, stage)?,
    };
    with_turn(session, &stage, "kiln down", || {
        agent.ledger_is_whole("the stage is not taken down")?;
        stop_and_remove(agent, session, &stage, &asked, volumes)
    })
}

fn read(session: &Session, args: &ProjectArgs) -> Result<Asked, Report> {
    let named = args.project_name.is_some();
    let report = match load(session, args) {
        Ok(project) => {
            return Ok(Asked { project: project.name.clone(), named, files: Files::Read(project) });
        }
        Err(report) => report,
    };
    let file = args.file.first().map(|file| session.cwd.join(file));
    let project = match &args.project_name {
        Some(name) => Some(name.clone()),
        None => name_of_broken(session, file.as_deref()),
    };
    let Some(project) = project else { return Err(report) };
    let has_file = |dir: &Path| COMPOSE_FILES.iter().any(|name| dir.join(name).exists());
    let there = file.is_some()
        || session.env.contains_key("COMPOSE_FILE")
        || session.cwd.ancestors().any(has_file);
    if !there {
        return Ok(Asked { project, named, files: Files::None });
    }
    // A file that is broken by now must not keep anybody from taking its project down.
    super::say_going_on(session, &report, &project);
    Ok(Asked { project, named, files: Files::Broken(report) })
}

/// What of the stage's data the user calls part of the project.
#[derive(Debug, Default)]
struct Declared {
    volumes: BTreeSet<String>,
    services: BTreeSet<String>,
}

impl Declared {
    fn has(&self, volume: &Volume) -> bool {
        match &volume.kind {
            Kind::Named(name) => self.volumes.contains(name),
            Kind::Anonymous { service, .. } => {
                self.services.iter().any(|own| volumes::encoded(own) == *service)
            }
        }
    }
}

/// What `--volumes` is about: what the files declare. Where there are none, or those at hand are of
/// another folder, what the last release does.
fn declared(agent: &Agent, stage: &Stage, asked: &Asked) -> Result<Declared, Report> {
    match &asked.files {
        Files::Read(project) if folder::is_own(stage, &project.dir) => Ok(Declared {
            volumes: project.in_stage(&stage.id.stage).volumes.clone(),
            services: project.services.keys().cloned().collect(),
        }),
        Files::Broken(report) => Err(Report::usage(format!(
            "which volumes the project declares cannot be read, so nothing is stopped and none is \
             removed: {}",
            report.message
        ))
        .hint("mend the file, or leave `--volumes` out")),
        Files::Read(_) | Files::None => {
            let last = stage.state().last_served();
            let Some(last) = last else { return Ok(Declared::default()) };
            let release = agent.release_in(&stage.id, &last)?;
            let mounts = release.services.values().flat_map(|released| &released.settings.mounts);
            let named = mounts.filter_map(|mount| match &mount.source {
                MountSource::Volume(name) => Some(name.clone()),
                _ => None,
            });
            let volumes = named.collect();
            Ok(Declared { volumes, services: release.services.keys().cloned().collect() })
        }
    }
}

fn stop_and_remove(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    asked: &Asked,
    volumes: bool,
) -> Result<Answer, Report> {
    if let Files::Read(project) = &asked.files {
        let hint =
            format!("give the command there, or name the project: kiln down -p {}", project.name);
        let nothing = "nothing is stopped";
        let consent = folder::Consent { given: asked.named, nothing, hint: &hint };
        folder::check(agent, session, stage, &project.dir, &consent)?;
        if folder::is_own(stage, &project.dir) {
            name_strangers(session, stage, project);
        }
    }
    let (going, staying) = match volumes {
        true => {
            let declared = declared(agent, stage, asked)?;
            volumes::list(agent, &stage.id)?.into_iter().partition(|one| declared.has(one))
        }
        false => (Vec::new(), Vec::new()),
    };
    name_volumes(session, volumes, &going, &staying);
    let mut stopped = stop_stage(agent, session, stage, false)?;
    stopped.sort();
    let mut removed = Vec::new();
    let mut result = Ok(());
    for volume in &going {
        // Data of somebody who has changed their mind stays.
        result = session.check().and_then(|()| volumes::remove(agent, &stage.id, volume));
        if result.is_err() {
            break;
        }
        removed.push(volume.named());
    }
    let left: Vec<answers::Volume> = staying.iter().map(Volume::named).collect();
    if volumes {
        let entry = json!({ "removed": removed, "left": left });
        record::note(agent, stage, "volumes.removed", entry);
    }
    result?;
    Ok(Answer::of(&answers::Down {
        project: stage.id.project.clone(),
        stage: stage.id.stage.clone(),
        stopped,
        volumes_removed: !removed.is_empty(),
        removed,
        left,
    }))
}

/// A stage is taken down as a whole; what of it the files do not have is named before.
fn name_strangers(session: &Session, stage: &Stage, project: &Project) {
    let services: BTreeSet<String> =
        stage.state().instances.values().map(|instance| instance.service.clone()).collect();
    let strangers: Vec<String> = services
        .into_iter()
        .filter(|service| !project.services.contains_key(service))
        .map(|service| format!("`{service}`"))
        .collect();
    if !strangers.is_empty() {
        session.notice(format!(
            "not among the services of the project's files, and stopped with them: {}",
            strangers.join(", ")
        ));
    }
}

fn name_volumes(session: &Session, asked: bool, going: &[Volume], staying: &[Volume]) {
    let names = |volumes: &[Volume]| {
        volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    if !going.is_empty() {
        session.notice(format!("to be removed, with all data: {}", names(going)));
    }
    if asked && !staying.is_empty() {
        let staying = names(staying);
        session.notice(format!("not declared by the project's files, and left: {staying}"));
    }
}

/// Whole or not at all: that nothing serves is on the disk before anything ends. When it cannot be
/// written, everything goes on as before; unless the ledger is `held`, and nothing is written.
fn stop_stage(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    held: bool,
) -> Result<Vec<String>, Report> {
    let _delivery = stage.deliver()?;
    let (ids, upstreams) = stage.update(|state| {
        let ids = state.down()?;
        let upstreams = state.upstreams(&ids);
        Ok::<_, Illegal>((ids, upstreams))
    })?;
    let was_active = stage.state().pointer.active.is_some();
    if ids.is_empty() && !was_active {
        session.kept("stop", &stage.id.to_string(), "nothing runs");
        return Ok(Vec::new());
    }
    layer::tell_what_goes(agent, session, stage, &ids);
    let node = session.begin("stop", &stage.id.to_string(), &count(ids.len(), "instance"));
    let left = leave_service(agent, session, stage, &ids, &upstreams);
    if left.is_err() && held {
        stage.update(StageState::stay_down)?;
    } else if let Err(report) = left {
        stage.update(StageState::stay)?;
        agent.routes_changed();
        let result = Err(report.hint("nothing was stopped; mend that and run the same again"));
        node.end(&result, "");
        return result;
    }
    let ids: Vec<String> = stage.state().instances.keys().cloned().collect();
    let ended = instances::stop(agent, stage, &ids);
    let freed = stage.update(StageState::forget_slots);
    let translated = agent.translate(stage);
    agent.unmap(stage, &freed);
    agent.save(stage);
    let result = ended.and(translated);
    node.end(&result, &count(ids.len(), "instance"));
    result.map(|()| ids)
}

/// Clients are sent away, and meanwhile it is recorded that nothing serves. The two do not wait for
/// each other. A front that cannot be told sends nobody here either.
fn leave_service(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    ids: &[String],
    upstreams: &[SocketAddr],
) -> Result<(), Report> {
    let pointer = stage.state().pointer.down();
    let entry = json!({ "stopped": ids });
    std::thread::scope(|scope| {
        let who = who::current();
        let recording = scope.spawn(|| {
            let _acting = who::act_for(who);
            record::move_pointer(agent, stage, pointer, &[("down", entry)])
        });
        match agent.apply_routes(stage) {
            Ok(()) => agent.drain(upstreams, DRAIN),
            Err(report) => session.notice(report.to_string()),
        }
        let bug = |_| Err(Report::new(Exit::Bug, "recording `down` panicked"));
        recording.join().unwrap_or_else(bug)
    })
}

/// `kiln shutdown`: every stage down, then front, network and agent.
pub(super) fn shutdown(agent: &Arc<Agent>, session: &Session) -> Result<Answer, Report> {
    let mut stopped = Vec::new();
    // A ledger that takes nothing keeps nobody from ending all there is.
    let held = agent.ledger_is_whole("that all is stopped is not recorded");
    let held = held.map_err(|report| session.notice(report.to_string())).is_err();
    // What somebody delivers to just now is waited for last, so that no other stage waits with it.
    let (busy, free): (Vec<_>, Vec<_>) =
        agent.stages().into_iter().partition(|stage| stage.whose_turn().is_some());
    let deadline = Instant::now() + WAIT;
    for stage in free.into_iter().chain(busy) {
        let stop = || stop_stage(agent, session, &stage, held);
        stopped.extend(with_turn_by(session, &stage, "kiln shutdown", Some(deadline), stop)?);
    }
    // What was left alone, for nobody knew whose it is, is not left behind.
    crate::agent::end_all(&agent.runtime)?;
    agent.stop_front();
    agent.teardown_network();
    agent.leave_soon();
    Ok(Answer::of(&answers::Shutdown::Ended { stopped, agent: true }))
}
