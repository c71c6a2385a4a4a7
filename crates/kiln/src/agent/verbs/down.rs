//! `down` and `shutdown`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kiln_core::exit::Exit;
use serde_json::json;

use super::{Answer, with_turn};
use crate::agent::session::Session;
use crate::agent::stage::{Illegal, Seen, Stage, StageState};
use crate::agent::{Agent, instances, record, who};
use crate::report::{Because, Report};

/// How long requests under way may take to end.
const DRAIN: Duration = Duration::from_secs(1);

/// `kiln down`: clients first, then instances; the pointer says so.
pub(super) fn down(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    volumes: bool,
) -> Result<Answer, Report> {
    with_turn(session, stage, || {
        agent.ledger_is_whole("the stage is not taken down")?;
        stop_and_remove(agent, session, stage, volumes)
    })
}

fn stop_and_remove(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    volumes: bool,
) -> Result<Answer, Report> {
    let mut stopped = stop_stage(agent, session, stage, false)?;
    stopped.sort();
    let mut removed = false;
    if volumes {
        // Data of somebody who has changed their mind stays.
        session.check()?;
        let dir = agent.volumes_dir(&stage.id);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).because(|| format!("removing {}", dir.display()))?;
            removed = true;
        }
        record::note(agent, stage, "volumes.removed", json!({ "volumes": removed }));
    }
    Ok(json!({
        "project": stage.id.project,
        "stage": stage.id.stage,
        "stopped": stopped,
        "volumes_removed": removed,
    })
    .into())
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
    let node = session.begin("stop", &stage.id.to_string(), &format!("{} instances", ids.len()));
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
    node.end(&result, &format!("{} instances", ids.len()));
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
        match agent.apply_routes() {
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
    for stage in agent.stages() {
        let stop = || stop_stage(agent, session, &stage, held);
        stopped.extend(with_turn(session, &stage, stop)?);
    }
    // What was left alone, for nobody knew whose it is, is not left behind.
    crate::agent::end_all(&agent.runtime)?;
    agent.stop_front();
    agent.teardown_network();
    agent.leave_soon();
    Ok(json!({ "stopped": stopped, "agent": true }).into())
}
