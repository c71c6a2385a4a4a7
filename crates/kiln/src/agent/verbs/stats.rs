//! `stats`: what instances use of the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_run::Running;
use kiln_run::usage::Usage;

use super::{Answer, no_service};
use crate::agent::Agent;
use crate::agent::session::Session;
use crate::answers;
use crate::report::Report;

/// Between two lines of a stream.
const PULSE: Duration = Duration::from_secs(1);
/// What processor use is measured over when only one line is wanted.
const ONCE: Duration = Duration::from_millis(500);
/// How often it is looked meanwhile whether the client is still there.
const LOOK: Duration = Duration::from_millis(50);

/// Whose stats are wanted.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// Of one project.
    pub project: Option<&'a str>,
    /// Of these services; all, if there are none.
    pub services: &'a [String],
}

/// `kiln stats`: once, or a table each second until the client goes.
pub(super) fn stats(
    agent: &Agent,
    session: &Session,
    wanted: &Wanted<'_>,
    stream: bool,
) -> Result<Answer, Report> {
    known(agent, wanted)?;
    let mut before = look(agent, wanted);
    loop {
        let pause = if stream { PULSE } else { ONCE };
        let until = Instant::now() + pause;
        while Instant::now() < until {
            session.check()?;
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
        let now = look(agent, wanted);
        let table = answers::Stats { instances: rows(&before, &now) };
        if !stream {
            return Ok(Answer::of(&table));
        }
        session.item(Answer::of(&table).data);
        before = now;
    }
}

/// Refuses a service that there is not: its table would stay empty for ever.
fn known(agent: &Agent, wanted: &Wanted<'_>) -> Result<(), Report> {
    let mut known = BTreeSet::new();
    for stage in agent.stages() {
        if wanted.project.is_some_and(|project| project != stage.id.project) {
            continue;
        }
        let active = {
            let state = stage.state();
            known.extend(state.instances.values().map(|instance| instance.service.clone()));
            state.pointer.active
        };
        match active.map(|active| agent.release_in(&stage.id, &active)) {
            Some(Ok(release)) => known.extend(release.services.keys().cloned()),
            // What it holds is unknown.
            Some(Err(_)) => return Ok(()),
            None => {}
        }
    }
    let Some(name) = wanted.services.iter().find(|name| !known.contains(*name)) else {
        return Ok(());
    };
    let place = wanted.project.unwrap_or("this root");
    Err(no_service(&place, name, known))
}

/// One instance as it was looked at.
struct Look {
    place: (String, String, String),
    usage: Usage,
}

/// All that run and can be looked at. What the kernel tells is read with no state held.
fn look(agent: &Agent, wanted: &Wanted<'_>) -> BTreeMap<String, Look> {
    let mut all: Vec<((String, String, String), Arc<Running>)> = Vec::new();
    for stage in agent.stages() {
        if wanted.project.is_some_and(|project| project != stage.id.project) {
            continue;
        }
        let state = stage.state();
        let named =
            |service: &String| wanted.services.is_empty() || wanted.services.contains(service);
        let instances = state.instances.values().filter(|instance| named(&instance.service));
        all.extend(instances.filter_map(|instance| {
            let (project, name) = (stage.id.project.clone(), stage.id.stage.clone());
            Some(((project, name, instance.service.clone()), instance.running.clone()?))
        }));
    }
    let looked = all.into_iter().filter_map(|(place, running)| {
        let usage = running.usage().ok()?;
        Some((running.id().to_owned(), Look { place, usage }))
    });
    looked.collect()
}

fn rows(before: &BTreeMap<String, Look>, now: &BTreeMap<String, Look>) -> Vec<answers::Usage> {
    let row = |(id, look): (&String, &Look)| {
        let Look { place: (project, stage, service), usage } = look;
        let cpu = before.get(id).and_then(|before| {
            let passed = usage.at.checked_duration_since(before.usage.at)?.as_micros();
            let used = usage.cpu_us.saturating_sub(before.usage.cpu_us);
            (passed > 0).then(|| used as f64 / passed as f64 * 100.0)
        });
        answers::Usage {
            id: id.clone(),
            project: project.clone(),
            stage: stage.clone(),
            service: service.clone(),
            cpu_percent: cpu.map(|percent| (percent * 100.0).round() / 100.0),
            memory: usage.memory,
            memory_counted: usage.counted,
            memory_limit: usage.memory_limit,
            pids: usage.pids,
            received: usage.net.map(|net| net.0),
            sent: usage.net.map(|net| net.1),
        }
    };
    now.iter().map(row).collect()
}
