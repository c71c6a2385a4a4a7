//! `port`, `ls`, `wait` and `stats` for people.

use std::fmt::Write as _;

use super::{digits, row, size, table};
use crate::answers;

pub(super) fn port(found: &answers::Ports, all: bool) -> String {
    let mut out = String::new();
    for answers::Published { host, port, target, protocol } in &found.ports {
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let protocol = answers::protocol_word(*protocol);
        let _ = match all {
            true => writeln!(out, "{target}/{protocol} -> {host}:{port}"),
            false => writeln!(out, "{host}:{port}"),
        };
    }
    out
}

pub(super) fn projects(found: &answers::Projects, quiet: bool) -> String {
    if quiet {
        let mut names: Vec<&str> = found.projects.iter().map(|it| it.project.as_str()).collect();
        names.dedup();
        return names.iter().map(|name| format!("{name}\n")).collect();
    }
    if found.projects.is_empty() {
        return String::new();
    }
    let mut rows = vec![row(["PROJECT", "STAGE", "STATUS", "RELEASE", "FOLDER"])];
    for project in &found.projects {
        let states: Vec<String> =
            project.states.iter().map(|(word, count)| format!("{word}({count})")).collect();
        let status = if states.is_empty() { "down".to_owned() } else { states.join(", ") };
        let release = project.active.as_ref().map(digits).unwrap_or_default();
        let folder = project.folder.clone().unwrap_or_default();
        rows.push(vec![project.project.clone(), project.stage.clone(), status, release, folder]);
    }
    table(&rows)
}

pub(super) fn waited(found: &answers::Waited) -> String {
    let line = |ended: &answers::Ended| match (ended.oom, ended.signal) {
        (true, _) => format!("{} ran out of its memory limit\n", ended.service),
        (false, Some(signal)) => format!("{} was ended by signal {signal}\n", ended.service),
        (false, None) => format!("{} exited with status {}\n", ended.service, ended.code),
    };
    found.services.iter().map(line).collect()
}

/// Nothing if nothing runs.
pub(super) fn stats(found: &answers::Stats) -> String {
    if found.instances.is_empty() {
        return String::new();
    }
    let mut rows = vec![row(["INSTANCE", "CPU", "MEMORY", "LIMIT", "PIDS", "RECEIVED", "SENT"])];
    for usage in &found.instances {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        // What the kernel does not count for the group is a sum of parts.
        let about = if usage.memory_counted { "" } else { "~" };
        rows.push(vec![
            format!("{}/{} {}", usage.project, usage.stage, usage.service),
            or_dash(usage.cpu_percent.map(|percent| format!("{percent:.1} %"))),
            format!("{about}{}", size(usage.memory)),
            or_dash(usage.memory_limit.map(size)),
            usage.pids.to_string(),
            or_dash(usage.received.map(size)),
            or_dash(usage.sent.map(size)),
        ]);
    }
    table(&rows)
}
