//! `down` and `shutdown`.

use std::sync::Arc;

use serde_json::json;

use super::{Answer, with_turn};
use crate::agent::session::Session;
use crate::agent::stage::{Life, Role, Stage};
use crate::agent::{Agent, instances, record};
use crate::report::{Because, Report};

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
    let mut stopped = stop_stage(agent, session, stage)?;
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

fn stop_stage(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
) -> Result<Vec<String>, Report> {
    let (ids, upstreams) = stage.update(|state| {
        for slot in &mut state.slots {
            slot.role = Role::Names;
        }
        let ids: Vec<String> = state.instances.keys().cloned().collect();
        // From here on nothing that ends is replaced.
        state.instances.values_mut().for_each(|instance| instance.life = Life::Stopping);
        let upstreams = state.upstreams(&ids);
        (ids, upstreams)
    });
    let was_active = stage.state().pointer.active.is_some();
    if ids.is_empty() && !was_active {
        session.kept("stop", &stage.id.to_string(), "nothing runs");
        return Ok(Vec::new());
    }
    let node = session.begin("stop", &stage.id.to_string(), &format!("{} instances", ids.len()));
    agent.apply_routes()?;
    if !upstreams.is_empty() {
        agent.drain(&upstreams, std::time::Duration::from_secs(1));
    }
    // The flush and the stopping do not wait for each other.
    let pointer = stage.state().pointer.down();
    let (ended, recorded) = std::thread::scope(|scope| {
        let entry = json!({ "stopped": &ids });
        let recording =
            scope.spawn(|| record::move_pointer(agent, stage, pointer, &[("down", entry)]));
        (instances::stop(agent, stage, &ids), recording.join())
    });
    let freed = stage.update(super::super::stage::StageState::forget_slots);
    agent.translate(stage)?;
    agent.unmap(stage, &freed);
    agent.save(stage);
    let result = match recorded {
        Ok(result) => result,
        Err(_) => Err(Report::new(kiln_core::exit::Exit::Bug, "recording `down` panicked")),
    };
    let result = result.and(ended);
    node.end(&result, &format!("{} instances", ids.len()));
    result.map(|()| ids)
}

/// `kiln shutdown`: every stage down, then front, network and agent.
pub(super) fn shutdown(agent: &Arc<Agent>, session: &Session) -> Result<Answer, Report> {
    let mut stopped = Vec::new();
    for stage in agent.stages() {
        stopped.extend(with_turn(session, &stage, || stop_stage(agent, session, &stage))?);
    }
    agent.stop_front();
    agent.teardown_network();
    agent.leave_soon();
    Ok(json!({ "stopped": stopped, "agent": true }).into())
}
