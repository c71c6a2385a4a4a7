//! What a person sees of a document that a script would read as JSON.

mod verify;

mod carrier;
mod diff;
mod fingers;
mod images;
mod layer;
mod release;

use std::fmt::Write as _;

use kiln_core::Digest;
use kiln_core::compose::Protocol;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::live::duration;
use crate::agent::stage::Role;
use crate::answers::{self, stored};
use crate::protocol::Verb;
use crate::words::{count, count_of};

/// The end of a verb, in words.
pub(crate) fn done(verb: &Verb, data: &Value) -> String {
    match verb {
        Verb::Up { .. } | Verb::Rollback { .. } | Verb::Restart { .. } => told(data, up),
        Verb::Port { target, .. } => told(data, |it| fingers::port(it, target.is_none())),
        Verb::Ls { quiet, .. } => told(data, |it| fingers::projects(it, *quiet)),
        Verb::Copy { .. } | Verb::Run { .. } => String::new(),
        Verb::Wait { .. } => told(data, fingers::waited),
        Verb::Stats { .. } if data.is_null() => String::new(),
        Verb::Stats { .. } => told(data, fingers::stats),
        Verb::Learn { .. } => told(data, layer::learnt),
        Verb::Plan { .. } => told(data, plan),
        Verb::Lock { .. } => told(data, images::lock),
        Verb::Pull { .. } => told(data, images::pull),
        Verb::Bake { .. } => told(data, bake),
        Verb::Release { .. } => told(data, release::release),
        Verb::Diff { files, all, .. } => {
            told(data, |found| diff::diff(found, diff::Style::new(*files, *all)))
        }
        Verb::Verify { .. } => told(data, verify::verify),
        Verb::Export { .. } => told(data, carrier::export),
        Verb::Import { .. } | Verb::Forget { .. } => told(data, carrier::import),
        Verb::Ps { .. } => told(data, ps),
        Verb::Status { .. } => told(data, status),
        Verb::Releases { .. } => told(data, releases),
        Verb::Images => told(data, images),
        Verb::Fsck { .. } => told(data, fsck),
        Verb::Gc { .. } => told(data, gc),
        Verb::Down { .. } => told(data, down),
        Verb::Shutdown => told(data, shutdown),
        Verb::Ping => told(data, |pong: &answers::Pong| pong.agent.clone()),
        Verb::Replace | Verb::Logs { .. } | Verb::Exec { .. } | Verb::History { .. } => {
            String::new()
        }
    }
}

/// Where a list has nothing in it: that there is none, and what makes one. For standard error.
pub(crate) fn none(verb: &Verb, data: &Value, items: u64) -> Option<&'static str> {
    let is_empty = |key: &str| data[key].as_array().is_none_or(Vec::is_empty);
    match verb {
        Verb::Ps { .. } if is_empty("instances") => Some("nothing runs; to start it: kiln up"),
        Verb::Stats { stream: false, .. } if is_empty("instances") => {
            Some("nothing runs; to start it: kiln up")
        }
        Verb::Ls { all: false, .. } if is_empty("projects") => {
            Some("no project of this root runs; `kiln ls -a` lists those that are down, too")
        }
        Verb::Ls { .. } if is_empty("projects") => {
            Some("no project was deployed to this root yet; to deploy one: kiln up")
        }
        Verb::Releases { .. } if is_empty("releases") => {
            Some("no releases yet; `kiln up` and `kiln release` make them")
        }
        Verb::Images if is_empty("images") && is_empty("broken") => {
            Some("no images yet; `kiln bake`, `kiln pull` and `kiln import` bring them here")
        }
        Verb::History { limit, .. } if items == 0 && *limit != Some(0) => {
            Some("nothing is recorded yet; what `kiln up` and others do will be")
        }
        _ => None,
    }
}

/// One object of a stream, in words.
pub(crate) fn item(verb: &Verb, item: &Value) -> String {
    match verb {
        Verb::Logs { timestamps, .. } => {
            let when = timestamps.then(|| format!("{} ", time_ns(number(&item["time"]))));
            let (service, when) = (text(&item["service"]), when.unwrap_or_default());
            format!("{service:<10} | {when}{}", text(&item["text"]))
        }
        Verb::Stats { .. } => match told(item, fingers::stats) {
            empty if empty.is_empty() => "nothing runs".to_owned(),
            table => table,
        },
        _ => history(item),
    }
}

/// The words for an answer. One of another form is shown as it is: agent and command line are of one
/// build, so that is a bug, but what was done is done and its answer worth reading.
fn told<T: DeserializeOwned>(data: &Value, words: impl FnOnce(&T) -> String) -> String {
    match T::deserialize(data) {
        Ok(answer) => words(&answer),
        Err(error) => format!("{data}\n(a bug in Kiln: this answer cannot be read: {error})\n"),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// The first twelve digits of a digest.
fn short(value: &Value) -> &str {
    let hex = text(value).trim_start_matches("sha256:");
    hex.get(..12).unwrap_or(hex)
}

/// As [`short`], of a digest that is known to be one.
fn digits(digest: &Digest) -> String {
    digest.hex().get(..12).unwrap_or_default().to_owned()
}

/// Rows with their columns aligned, without trailing blanks.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  "));
        let line: String = cells.collect();
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn up(done: &answers::Up) -> String {
    let time = duration(done.ms);
    let place = format!("{}/{}", done.project, done.stage);
    let release = digits(&done.release);
    let mut out = if done.switched {
        format!("{place} serves release {release} ({time})\n")
    } else {
        format!("{place} serves release {release} already: nothing to do ({time})\n")
    };
    out.push_str(&release::source_line(&done.source, &done.differences));
    out.push_str(&addresses(&done.ports));
    out.push_str(&lines(done.front.as_deref().unwrap_or_default()));
    for (service, written) in &done.written {
        out.push_str(&layer::written(service, written));
    }
    out
}

/// Each on a line of its own.
fn lines(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn addresses(ports: &[answers::Port]) -> String {
    let mut out = String::new();
    for answers::Port { service, address, protocol, bound, target } in ports {
        let later = match bound.is_empty() {
            true => format!(" (not open: nothing accepts on {target} yet)"),
            false => String::new(),
        };
        let _ = match protocol {
            Protocol::Tcp => writeln!(out, "  {service:<12} http://{address}/{later}"),
            Protocol::Udp => writeln!(out, "  {service:<12} {address}/udp{later}"),
        };
    }
    out
}

fn plan(planned: &answers::Planned) -> String {
    let plan = &planned.plan;
    let release = digits(&planned.release);
    let place = format!("{}/{}", planned.project, planned.stage);
    let serving = planned.active.filter(|active| *active != planned.release);
    let mut out = match (&planned.active, planned.changes) {
        (Some(_), false) => {
            return format!("{place} serves release {release} already: nothing to do\n");
        }
        (None, _) => format!("release {release} in {place}, where nothing serves:\n"),
        (Some(active), _) if *active == planned.release => {
            format!("release {release} in {place}, which serves it now:\n")
        }
        (Some(active), _) => {
            format!("release {release} in {place}, which serves {} now:\n", digits(active))
        }
    };
    if planned.quarantined {
        out.push_str("  it was rolled back from; `up` brings it back all the same\n");
    }
    let beside = match planned.active {
        Some(_) => "start beside what serves",
        None => "start",
    };
    let mut say = |services: Vec<&String>, what: &str| {
        if !services.is_empty() {
            let names: Vec<&str> = services.into_iter().map(String::as_str).collect();
            let _ = writeln!(out, "  {what}: {}", names.join(", "));
        }
    };
    say(plan.share.keys().collect(), "keep");
    say(plan.beside.iter().collect(), beside);
    say(plan.workers.iter().collect(), "start after the switch");
    for paused in &plan.paused {
        let _ = writeln!(out, "  replace under a pause: {} ({})", paused.service, paused.why);
    }
    if planned.pause {
        let what = if plan.paused.len() == 1 { "it is" } else { "they are" };
        let _ = writeln!(out, "  requests wait while {what} replaced; a rollback pauses likewise");
    } else if planned.active.is_some() {
        out.push_str("  no pause: no client has to wait, and no request is lost\n");
    }
    if let Some(serving) = serving {
        let _ = writeln!(out, "  all clients move from {} to {release} at once", digits(&serving));
    }
    out
}

fn bake(baked: &answers::Baked) -> String {
    let mut rows = vec![row(["SERVICE", "TREE", "CONFIG", "DONE"])];
    for (name, bake) in &baked.images {
        let done = steps_done(bake.steps, bake.cached);
        rows.push(row([name, &bake.image.tree.to_string(), &digits(&bake.image.config), &done]));
    }
    table(&rows)
}

/// What a bake had to do.
fn steps_done(steps: usize, cached: usize) -> String {
    match (steps, steps - cached.min(steps)) {
        (0, _) => "the image as it is".into(),
        (_, 0) => "nothing: unchanged".into(),
        (steps, done) => format!("{done} of {}", count(steps, "step")),
    }
}

fn slots(instance: &answers::Instance) -> String {
    let word = |role: Role| match role {
        Role::Active => "active",
        Role::Standby => "standby",
        Role::Candidate => "candidate",
        Role::Names => "names",
    };
    let words: Vec<String> = instance
        .slots
        .iter()
        .map(|slot| format!("{} {}", word(slot.role), digits(&slot.release)))
        .collect();
    words.join(", ")
}

fn age(started: u64) -> String {
    match started {
        0 => String::new(),
        started => duration(crate::agent::now_ms().saturating_sub(started)),
    }
}

fn instance_row(instance: &answers::Instance) -> Vec<String> {
    vec![
        instance.service.clone(),
        instance.state.clone(),
        instance.verdict.word().to_owned(),
        slots(instance),
        instance.restarts.to_string(),
        age(instance.started),
    ]
}

fn member_row(member: &answers::Member) -> Vec<String> {
    match member {
        answers::Member::There(instance) => instance_row(instance),
        answers::Member::Missing { service, .. } => row([service, "missing", "", "", "0", ""]),
    }
}

/// What there is to say of instances beside their rows, each once.
fn remarks<'a>(instances: impl Iterator<Item = &'a answers::Instance>) -> String {
    let mut said: Vec<String> = Vec::new();
    for answers::Instance { service, state, how, verdict, tainted, .. } in instances {
        let how = how.as_ref().map(|how| format!("  {service} is {state}: {how}\n"));
        let why = tainted.as_ref().map(|why| format!("  {service} is {}: {why}\n", verdict.word()));
        for line in how.into_iter().chain(why) {
            if !said.contains(&line) {
                said.push(line);
            }
        }
    }
    said.concat()
}

const INSTANCE_HEAD: [&str; 6] = ["SERVICE", "STATE", "VERDICT", "SLOTS", "RESTARTS", "AGE"];

fn ps(found: &answers::Ps) -> String {
    let mut stages: Vec<(&str, &str)> = found
        .instances
        .iter()
        .map(|placed| (placed.project.as_str(), placed.stage.as_str()))
        .collect();
    stages.sort_unstable();
    stages.dedup();
    let mut out = String::new();
    for (project, stage) in stages {
        let _ = writeln!(out, "{project}/{stage}");
        let mut rows = vec![row(INSTANCE_HEAD)];
        let here = found.instances.iter().filter(|it| it.project == project && it.stage == stage);
        let here: Vec<&answers::Instance> = here.map(|placed| &placed.instance).collect();
        rows.extend(here.iter().copied().map(instance_row));
        out.push_str(&table(&rows));
        out.push_str(&remarks(here.into_iter()));
        let here = found.ports.iter().filter(|it| it.project == project && it.stage == stage);
        let ports: Vec<answers::Port> = here.map(|it| it.port.clone()).collect();
        out.push_str(&addresses(&ports));
    }
    out
}

/// `status` outside of any project.
fn overview(root: &answers::Overview) -> String {
    let mut out = format!(
        "root {}: images by {}, addresses {}\n",
        root.root.display(),
        root.backing,
        root.network
    );
    let mut rows = vec![row(["STAGE", "ACTIVE", "STANDBY", "INSTANCES"])];
    let shown = |digest: &Option<Digest>| digest.as_ref().map(digits).unwrap_or_default();
    for stage in &root.stages {
        rows.push(vec![
            format!("{}/{}", stage.project, stage.stage),
            shown(&stage.active),
            shown(&stage.standby),
            stage.instances.to_string(),
        ]);
    }
    out.push_str(&damage(&root.ledger, None));
    if rows.len() > 1 {
        out.push_str(&table(&rows));
    }
    for stage in &root.stages {
        if let Some(trouble) = &stage.trouble {
            let _ = write!(out, "{}/{} {}", stage.project, stage.stage, told_of(trouble));
        }
    }
    out
}

/// Why a stage does not run as it should.
fn told_of(trouble: &answers::Trouble) -> String {
    let again = match trouble.again_ms {
        Some(0) | None => "just now".to_owned(),
        Some(ms) => format!("in {}", duration(ms)),
    };
    format!(
        "could not be built up again: {}\n  tried {}, again {again}\n",
        trouble.why,
        count(trouble.tries, "time")
    )
}

/// What of the root is damaged, as far as was noticed on the way.
fn damage(ledger: &[String], broken: Option<&String>) -> String {
    let mut out = String::new();
    for what in ledger.iter().chain(broken) {
        let _ = writeln!(out, "damaged: {what} (kiln fsck)");
    }
    out
}

fn status(status: &answers::Status) -> String {
    let status = match status {
        answers::Status::Root(root) => return overview(root),
        answers::Status::Stage(status) => status,
    };
    let source = match status.source.as_ref().map(release::words).unwrap_or_default() {
        words if words.is_empty() => words,
        words => format!(" from {words}"),
    };
    let mut out = format!(
        "{}/{} serves release {}{source}\n",
        status.project,
        status.stage,
        digits(&status.active)
    );
    out.push_str(&status.trouble.as_ref().map(told_of).unwrap_or_default());
    match &status.standby {
        Some(standby) if status.rollback == Some(*standby) => {
            let _ = writeln!(out, "standby: {} (kiln rollback)", digits(standby));
        }
        // A rollback takes it by name alone.
        Some(standby) if status.standby_quarantined => {
            let (stage, standby) = (&status.stage, digits(standby));
            let back = format!("rolled back from (kiln rollback {stage} {standby})");
            let _ = writeln!(out, "standby: {standby}, {back}");
        }
        Some(standby) => {
            let _ = writeln!(out, "standby: {}", digits(standby));
        }
        None => out.push_str("standby: none\n"),
    }
    out.push_str(&damage(&status.ledger, status.broken.as_ref()));
    let mut rows = vec![row(INSTANCE_HEAD)];
    rows.extend(status.services.iter().map(member_row));
    out.push_str(&table(&rows));
    out.push_str(&remarks(status.services.iter().filter_map(|member| match member {
        answers::Member::There(instance) => Some(instance.as_ref()),
        answers::Member::Missing { .. } => None,
    })));
    out.push_str(&addresses(&status.ports));
    out.push_str(&lines(&status.front));
    for member in &status.services {
        let answers::Member::There(instance) = member else { continue };
        for what in &instance.lacks {
            let _ = writeln!(out, "{} runs without all that it asks for: {what}", instance.service);
        }
        if let Some(written) = &instance.written {
            out.push_str(&layer::written(&instance.service, written));
        }
    }
    out
}

fn releases(found: &answers::Releases) -> String {
    let mut rows = vec![row(["RELEASE", "ROLE", "SERVICES", "SOURCE"])];
    for release in &found.releases {
        let mut role = release.role.clone();
        if release.quarantined {
            role.push_str(", quarantined");
        }
        let source = match (&release.broken, &release.source) {
            (Some(why), _) => format!("broken: {why}"),
            (None, source) => source.as_ref().map(release::words).unwrap_or_default(),
        };
        let services = release.services.unwrap_or(0).to_string();
        rows.push(vec![digits(&release.release), role, services, source]);
    }
    if rows.len() == 1 { String::new() } else { table(&rows) }
}

/// Bytes as a person reads them.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{}.{} kB", bytes / 1_000, bytes % 1_000 / 100),
        1_000_000..1_000_000_000 => {
            format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
        }
        _ => format!("{}.{} GB", bytes / 1_000_000_000, bytes % 1_000_000_000 / 100_000_000),
    }
}

fn images(found: &stored::Images) -> String {
    let mut rows = vec![row(["TREE", "FILES", "SIZE", "USED BY"])];
    let (mut others, mut bytes) = (0_u64, 0_u64);
    for image in &found.images {
        let users: Vec<&str> = image.used_by.iter().map(String::as_str).collect();
        if users.is_empty() {
            others += 1;
            bytes += image.bytes;
            continue;
        }
        rows.push(vec![
            digits(&image.tree),
            image.files.to_string(),
            size(image.bytes),
            users.join(", "),
        ]);
    }
    let mut out = if rows.len() == 1 { String::new() } else { table(&rows) };
    for what in &found.broken {
        let _ = writeln!(out, "damaged: {what} (kiln fsck)");
    }
    if others > 0 {
        let _ = writeln!(
            out,
            "and {} of bases, packages and bake steps, {} before sharing (--json lists them)",
            count(others, "tree"),
            size(bytes)
        );
    }
    out
}

fn fsck(found: &stored::Findings) -> String {
    let mut out = String::new();
    for damage in &found.damage {
        let _ = writeln!(out, "{}: {}", damage.path, damage.what);
        if !damage.needed_by.is_empty() {
            let _ = writeln!(out, "  needed by {}", damage.needed_by.join(", "));
        }
        for (word, of) in [("healed", &damage.healed), ("cure", &damage.cure)] {
            if let Some(of) = of {
                let _ = writeln!(out, "  {word}: {of}");
            }
        }
    }
    let _ = writeln!(
        out,
        "{} ({}), {} and {} of the ledger were read: {}",
        count(found.objects, "object"),
        size(found.bytes),
        count(found.images, "image"),
        count_of(found.entries, "entry", "entries"),
        match found.damage.len() {
            0 => "all as it was written".to_owned(),
            count => format!("{count} damaged"),
        }
    );
    out
}

fn gc(done: &stored::Gc) -> String {
    let what = if done.dry_run { "would collect" } else { "collected" };
    let stored::Collected { store, step_caches, step_cache_bytes, package_lists } = &done.collected;
    let wide = |caches: usize| u64::try_from(caches).unwrap_or(u64::MAX);
    let went = [
        (store.objects, "object", "objects"),
        (store.references, "reference", "references"),
        (store.images, "mountable image", "mountable images"),
        (store.steps, "result of a step", "results of steps"),
        (store.contexts, "cache of a build context", "caches of build contexts"),
        (wide(*step_caches), "cache of a step", "caches of steps"),
        (wide(*package_lists), "list of packages", "lists of packages"),
    ];
    let rows = went.into_iter().filter(|(number, ..)| *number > 0);
    let rows: Vec<String> = rows.map(|(number, one, many)| count_of(number, one, many)).collect();
    let what = match rows.is_empty() {
        true => "nothing to collect".to_owned(),
        false => format!("{what} {}: {}", size(store.bytes + step_cache_bytes), rows.join(", ")),
    };
    let rest = match store.interrupted {
        true => "; bakes were under way, so it stopped before its end: run it again later",
        false => "",
    };
    format!("{what}; {} stay{rest}\n", size(store.kept_bytes))
}

fn down(done: &answers::Down) -> String {
    let place = format!("{}/{}", done.project, done.stage);
    let named = |volumes: &[answers::Volume]| {
        volumes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let volumes = match (named(&done.removed), named(&done.left)) {
        (removed, left) if removed.is_empty() && left.is_empty() => {
            "records, artifacts and volumes stay".to_owned()
        }
        (removed, left) if left.is_empty() => format!("removed {removed}"),
        (removed, left) if removed.is_empty() => format!("left {left}"),
        (removed, left) => format!("removed {removed}; left {left}"),
    };
    match done.stopped.len() {
        0 => format!("{place}: nothing ran; {volumes}\n"),
        number => format!("{place}: stopped {}; {volumes}\n", count(number, "instance")),
    }
}

fn shutdown(done: &answers::Shutdown) -> String {
    match done {
        answers::Shutdown::Ended { stopped, .. } => {
            format!("stopped {}, front and agent\n", count(stopped.len(), "instance"))
        }
        answers::Shutdown::NoAgent { collected: true, .. } => {
            "no agent ran; what one had left is cleared away\n".into()
        }
        answers::Shutdown::NoAgent { .. } => "no agent ran\n".into(),
    }
}

fn history(entry: &Value) -> String {
    if let Some(broken) = entry["broken"].as_str() {
        return format!("{:<20} broken: {broken} (kiln fsck)\n", format!("line {}", entry["line"]));
    }
    let place = match (entry["project"].as_str(), entry["stage"].as_str()) {
        (Some(project), Some(stage)) => format!("{project}/{stage}"),
        (Some(project), None) => project.to_owned(),
        _ => String::new(),
    };
    let data = &entry["data"];
    let mut what: Vec<String> = Vec::new();
    for key in ["reason", "outcome", "instance", "how", "what", "message", "old", "new"] {
        if let Some(value) = data[key].as_str() {
            what.push(value.to_owned());
        }
    }
    for key in ["release", "active"] {
        if data[key].is_string() {
            what.push(short(&data[key]).to_owned());
        }
    }
    if text(&entry["kind"]) == "pointer" && data["active"].is_null() {
        what.push("nothing serves".to_owned());
    }
    what.extend(Some(release::source(&data["source"])).filter(|words| !words.is_empty()));
    let time = time(number(&entry["time"]));
    let line = format!("{time}  {place:<14} {:<17} {}", text(&entry["kind"]), what.join(" "));
    line.trim_end().to_owned()
}

/// Unix nanoseconds as RFC 3339 in UTC, as `docker logs -t` has them.
fn time_ns(ns: u64) -> String {
    let whole = time(ns / 1_000_000 / 1000 * 1000);
    format!("{}.{:09}Z", whole.trim_end_matches(".000Z"), ns % 1_000_000_000)
}

/// Unix milliseconds as RFC 3339 in UTC.
fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    let days = i64::try_from(seconds / 86_400).unwrap_or(0);
    let of_day = seconds % 86_400;
    // Civil from days, by Howard Hinnant's algorithm.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day % 3600 / 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(1_582_934_400_123), "2020-02-29T00:00:00.123Z");
        assert_eq!(time(1_795_376_703_000), "2026-11-22T19:45:03.000Z");
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1_530), "1.5 kB");
        assert_eq!(size(2_000_000_000), "2.0 GB");
    }

    #[test]
    fn nothing_to_do_is_said() {
        let data = answers::Up {
            project: "shop".into(),
            stage: "dev".into(),
            release: Digest::from_bytes([0xaa; 32]),
            switched: false,
            fresh: false,
            source: Default::default(),
            differences: Vec::new(),
            services: Default::default(),
            ports: Vec::new(),
            paused: Vec::new(),
            written: Default::default(),
            front: None,
            ms: 4,
        };
        assert_eq!(
            up(&data),
            "shop/dev serves release aaaaaaaaaaaa already: nothing to do (4 ms)\n"
        );
    }
}
