//! `logs`: what instances have written, oldest first, and what they go on writing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_run::logs::{Follow, LogEntry, LogStream, Watch};
use serde_json::{Value, json};

use super::{Answer, nothing_serves};
use crate::agent::session::Session;
use crate::agent::stage::Stage;
use crate::agent::{Agent, instances};
use crate::report::{Because, Report};

/// Between looks for fresh instances, and for a client that has gone.
const PULSE: Duration = Duration::from_millis(100);
/// Lines of one instance in a row while others have some too.
const TURN: usize = 500;

/// One instance's log, as far as it was shown.
struct Reader {
    service: String,
    log: Follow,
}

/// What of it is wanted.
pub(super) struct Wanted<'a> {
    /// Of these services; of all, if there are none.
    pub services: &'a [String],
    /// Go on as more is written.
    pub follow: bool,
    /// Only the last lines of each service.
    pub tail: Option<usize>,
    /// Nothing from before, and nothing from after: nanoseconds since the Unix epoch.
    pub since: Option<u64>,
    pub until: Option<u64>,
}

impl Wanted<'_> {
    fn has(&self, entry: &LogEntry) -> bool {
        self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time <= until)
    }

    /// How many lines from the end of each log are enough.
    fn lines_from_the_end(&self) -> Option<usize> {
        self.tail.filter(|_| self.until.is_none())
    }
}

/// `kiln logs`.
pub(super) fn logs(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    wanted: &Wanted<'_>,
) -> Result<Answer, Report> {
    let Wanted { services, follow, tail, .. } = *wanted;
    known(agent, session, stage, services)?;
    let mut watch = follow.then(Watch::new);
    let mut readers: BTreeMap<PathBuf, Reader> = BTreeMap::new();
    let mut old: Vec<(String, PathBuf)> = Vec::new();
    if !follow || tail.is_some() || wanted.since.is_some() {
        old = ended(agent, stage, services);
    }
    old.extend(living(agent, stage, services));
    for (service, dir) in old {
        open(session, &mut readers, watch.as_mut(), service, &dir, wanted.lines_from_the_end());
    }
    show_what_is_there(session, &mut readers, wanted)?;
    let Some(mut watch) = watch else { return Ok(Value::Null.into()) };
    let mut hurried = false;
    while session.check().is_ok() {
        let limit = if hurried { Duration::ZERO } else { PULSE };
        let changed = watch.wait(limit).because(|| "waiting for logs".into())?;
        for (service, dir) in living(agent, stage, services) {
            if !readers.contains_key(&dir) {
                open(session, &mut readers, Some(&mut watch), service, &dir, None);
            }
        }
        hurried = show_more(session, &mut readers, wanted, changed.filter(|_| !hurried))?;
        readers.retain(|dir, _| hurried || dir.exists());
    }
    Ok(Value::Null.into())
}

/// A log that cannot be read is said, and the others go on.
fn open(
    session: &Session,
    readers: &mut BTreeMap<PathBuf, Reader>,
    watch: Option<&mut Watch>,
    service: String,
    dir: &Path,
    tail: Option<usize>,
) {
    if let Some(watch) = watch {
        watch.add(dir);
    }
    match Follow::begin(dir, tail) {
        Ok(log) => drop(readers.insert(dir.to_owned(), Reader { service, log })),
        Err(error) => session.notice(format!("a log of `{service}` cannot be read: {error}")),
    }
}

/// All lines of all logs in the order of their times, no more of them in memory at once than there
/// are logs, or than the last ones of each service that are wanted.
fn show_what_is_there(
    session: &Session,
    readers: &mut BTreeMap<PathBuf, Reader>,
    wanted: &Wanted<'_>,
) -> Result<(), Report> {
    let doing = || "reading a log".to_owned();
    let mut logs: Vec<&mut Reader> = readers.values_mut().collect();
    let mut heads: Vec<Option<LogEntry>> = Vec::new();
    let mut next = BinaryHeap::new();
    for (number, reader) in logs.iter_mut().enumerate() {
        let head = reader.log.next().because(doing)?;
        next.extend(head.as_ref().map(|entry| Reverse((entry.time, number))));
        heads.push(head);
    }
    // The last lines of each service, with how many came before them.
    let mut last: BTreeMap<String, VecDeque<(u64, LogEntry)>> = BTreeMap::new();
    let mut count = 0_u64;
    while let Some(Reverse((_, number))) = next.pop() {
        let Some(entry) = heads[number].take() else { continue };
        heads[number] = logs[number].log.next().because(doing)?;
        next.extend(heads[number].as_ref().map(|entry| Reverse((entry.time, number))));
        if !wanted.has(&entry) {
            if session.check().is_err() {
                return Ok(());
            }
            continue;
        }
        let Some(lines) = wanted.tail else {
            session.item(item(&logs[number].service, &entry));
            if session.check().is_err() {
                return Ok(());
            }
            continue;
        };
        let own = last.entry(logs[number].service.clone()).or_default();
        own.push_back((count, entry));
        count += 1;
        if own.len() > lines {
            own.pop_front();
        }
    }
    let each = |(service, lines): (String, VecDeque<(u64, LogEntry)>)| {
        lines.into_iter().map(move |(count, entry)| (count, service.clone(), entry))
    };
    let mut shown: Vec<(u64, String, LogEntry)> = last.into_iter().flat_map(each).collect();
    shown.sort_by_key(|(count, ..)| *count);
    for (_, service, entry) in shown {
        session.item(item(&service, &entry));
    }
    Ok(())
}

/// What came since, of the folders that changed or of all. True: there is more already.
fn show_more(
    session: &Session,
    readers: &mut BTreeMap<PathBuf, Reader>,
    wanted: &Wanted<'_>,
    changed: Option<BTreeSet<PathBuf>>,
) -> Result<bool, Report> {
    let mut entries: Vec<(&str, LogEntry)> = Vec::new();
    let mut more = false;
    for (dir, Reader { service, log }) in readers {
        if changed.as_ref().is_some_and(|changed| !changed.contains(dir)) {
            continue;
        }
        for turn in 1..=TURN {
            let Some(entry) = log.next().because(|| "reading a log".into())? else { break };
            if wanted.has(&entry) {
                entries.push((service, entry));
            }
            more |= turn == TURN;
        }
    }
    entries.sort_by_key(|(_, entry)| entry.time);
    for (service, entry) in entries {
        session.item(item(service, &entry));
    }
    Ok(more)
}

/// Refuses the name of a service that neither runs nor has ever written anything.
fn known(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    services: &[String],
) -> Result<(), Report> {
    let there = living(agent, stage, &[]).into_iter().chain(ended(agent, stage, &[]));
    let there: BTreeSet<String> = there.map(|(service, _)| service).collect();
    let place = stage.id.to_string();
    match services.iter().find(|service| !there.contains(*service)) {
        Some(_) if there.is_empty() => Err(nothing_serves(stage)),
        Some(service) => {
            Err(Report::unknown(&place, "service", service, there.iter().map(String::as_str)))
        }
        None if there.is_empty() => {
            session.notice(format!("nothing has run in {place} yet, so there is no log: kiln up"));
            Ok(())
        }
        None => Ok(()),
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
