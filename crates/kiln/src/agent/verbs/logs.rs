//! `logs`: what instances have written, oldest first, and what they go on writing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use kiln_run::logs::{Follow, LogEntry, LogQuery, LogStream, read};
use serde_json::{Value, json};

use super::Answer;
use crate::agent::session::Session;
use crate::agent::stage::Stage;
use crate::agent::{Agent, instances};
use crate::report::{Because, Report};

/// Between looks for more while following.
const PULSE: Duration = Duration::from_millis(50);

/// `kiln logs`.
pub(super) fn logs(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    services: &[String],
    follow: bool,
    tail: Option<usize>,
) -> Result<Answer, Report> {
    let mut readers: BTreeMap<PathBuf, (String, Follow)> = BTreeMap::new();
    let mut entries: Vec<(String, LogEntry)> = Vec::new();
    known(agent, stage, services)?;
    let mut last = tail;
    if !follow || tail.is_some() {
        for (service, dir) in ended(agent, stage, services) {
            let old =
                read(&dir, LogQuery::default()).because(|| format!("reading {}", dir.display()))?;
            entries.extend(old.into_iter().map(|entry| (service.clone(), entry)));
        }
    }
    loop {
        for (service, dir) in living(agent, stage, services) {
            if !readers.contains_key(&dir)
                && let Ok((reader, old)) = Follow::begin(&dir, LogQuery::default())
            {
                entries.extend(old.into_iter().map(|entry| (service.clone(), entry)));
                readers.insert(dir, (service, reader));
            }
        }
        for (service, reader) in readers.values_mut() {
            let fresh = reader.next(Duration::ZERO).because(|| "reading a log".into())?;
            entries.extend(fresh.into_iter().map(|entry| (service.clone(), entry)));
        }
        entries.sort_by_key(|(_, entry)| entry.time);
        if let Some(lines) = last.take() {
            entries.drain(..entries.len().saturating_sub(lines));
        }
        for (service, entry) in entries.drain(..) {
            session.item(item(&service, &entry));
        }
        if !follow || session.check().is_err() {
            return Ok(Value::Null.into());
        }
        readers.retain(|dir, _| dir.exists());
        std::thread::sleep(PULSE);
    }
}

/// Refuses the name of a service that neither runs nor has ever written anything.
fn known(agent: &Agent, stage: &Stage, services: &[String]) -> Result<(), Report> {
    let there = living(agent, stage, &[]).into_iter().chain(ended(agent, stage, &[]));
    let there: BTreeSet<String> = there.map(|(service, _)| service).collect();
    match services.iter().find(|service| !there.contains(*service)) {
        None => Ok(()),
        Some(service) => {
            let known: Vec<&str> = there.iter().map(String::as_str).collect();
            let report = Report::usage(format!("no log of `{service}` in {}", stage.id));
            Err(match known.is_empty() {
                true => report.hint("kiln up"),
                false => report.hint(format!("there are {}", known.join(", "))),
            })
        }
    }
}

fn item(service: &str, entry: &LogEntry) -> Value {
    let stream = match entry.stream {
        LogStream::Out => "stdout",
        LogStream::Err => "stderr",
        LogStream::Kiln => "kiln",
    };
    json!({ "service": service, "time": entry.time, "stream": stream, "text": entry.message })
}

/// Folders of instances that are there.
fn living(agent: &Agent, stage: &Stage, services: &[String]) -> Vec<(String, PathBuf)> {
    let wanted = |service: &String| services.is_empty() || services.contains(service);
    let state = stage.state();
    let all = state.instances.values().filter(|instance| wanted(&instance.service));
    all.map(|instance| (instance.service.clone(), agent.instance_dir(&instance.id))).collect()
}

/// Folders with the logs of instances that have ended.
fn ended(agent: &Agent, stage: &Stage, services: &[String]) -> Vec<(String, PathBuf)> {
    let base = instances::old_logs(agent, stage, "");
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut all = BTreeSet::new();
    for service in entries(base) {
        let name = service.file_name().to_string_lossy().into_owned();
        if services.is_empty() || services.contains(&name) {
            all.extend(entries(service.path()).map(|entry| (name.clone(), entry.path())));
        }
    }
    all.into_iter().collect()
}
