//! What a person sees of a document that a script would read as JSON.

mod verify;

mod carrier;
mod diff;
mod release;

use std::fmt::Write as _;

use serde_json::Value;

use super::live::duration;
use crate::protocol::Verb;

/// The end of a verb, in words.
pub(crate) fn done(verb: &Verb, data: &Value) -> String {
    match verb {
        Verb::Up { .. } | Verb::Rollback { .. } => up(data),
        Verb::Plan { .. } => plan(data),
        Verb::Lock { .. } => lock(data),
        Verb::Bake { .. } => bake(data),
        Verb::Release { .. } => release::release(data),
        Verb::Diff { files, all, .. } => diff::diff(data, diff::Style::new(*files, *all)),
        Verb::Verify { .. } => verify::verify(data),
        Verb::Export { .. } => carrier::export(data),
        Verb::Import { .. } | Verb::Forget { .. } => carrier::import(data),
        Verb::Ps { .. } => ps(data),
        Verb::Status { .. } => status(data),
        Verb::Releases { .. } => releases(data),
        Verb::Images => images(data),
        Verb::Fsck { .. } => fsck(data),
        Verb::Gc { .. } => gc(data),
        Verb::Down { .. } => down(data),
        Verb::Shutdown => shutdown(data),
        Verb::Ping => text(&data["agent"]).to_owned(),
        Verb::Replace | Verb::Logs { .. } | Verb::Exec { .. } | Verb::History { .. } => {
            String::new()
        }
    }
}

/// One object of a stream, in words.
pub(crate) fn item(verb: &Verb, item: &Value) -> String {
    match verb {
        Verb::Logs { .. } => format!("{:<10} | {}", text(&item["service"]), text(&item["text"])),
        _ => history(item),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The first twelve digits of a digest.
fn short(value: &Value) -> &str {
    let hex = text(value).trim_start_matches("sha256:");
    hex.get(..12).unwrap_or(hex)
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

fn up(data: &Value) -> String {
    let time = duration(number(&data["ms"]));
    let place = format!("{}/{}", text(&data["project"]), text(&data["stage"]));
    let release = short(&data["release"]);
    let mut out = if data["switched"].as_bool() == Some(true) {
        format!("{place} serves release {release} ({time})\n")
    } else {
        format!("{place} serves release {release} already: nothing to do ({time})\n")
    };
    out.push_str(&release::source_line(data));
    out.push_str(&addresses(&data["ports"]));
    out.push_str(&front(data));
    out
}

/// What is still with an older release, and which ports somebody else has.
fn front(data: &Value) -> String {
    list(&data["front"]).map(|line| format!("{}\n", text(line))).collect()
}

fn addresses(ports: &Value) -> String {
    let mut out = String::new();
    for port in list(ports) {
        let address = text(&port["address"]);
        let service = text(&port["service"]);
        let _ = match text(&port["protocol"]) {
            "tcp" => writeln!(out, "  {service:<12} http://{address}/"),
            other => writeln!(out, "  {service:<12} {address}/{other}"),
        };
    }
    out
}

fn plan(data: &Value) -> String {
    let plan = &data["plan"];
    let mut out = format!(
        "release {} in {}/{}:\n",
        short(&data["release"]),
        text(&data["project"]),
        text(&data["stage"])
    );
    let mut say = |services: Vec<&str>, what: &str| {
        if !services.is_empty() {
            let _ = writeln!(out, "  {what}: {}", services.join(", "));
        }
    };
    let names = |value: &'static str| list(&plan[value]).map(text).collect::<Vec<_>>();
    say(plan["share"].as_object().into_iter().flatten().map(|(n, _)| n.as_str()).collect(), "keep");
    say(names("beside"), "start beside what serves");
    say(names("workers"), "start after the switch");
    for paused in list(&plan["paused"]) {
        let _ = writeln!(
            out,
            "  replace under a pause: {} ({})",
            text(&paused["service"]),
            text(&paused["why"])
        );
    }
    if data["pause"].as_bool() == Some(true) {
        out.push_str("  requests wait while it is replaced; a rollback pauses likewise\n");
    } else {
        out.push_str("  no pause: clients notice nothing\n");
    }
    out
}

fn lock(data: &Value) -> String {
    let changed = if data["changed"].as_bool() == Some(true) { "wrote" } else { "unchanged:" };
    let mut out = format!("{changed} {}\n", text(&data["lock"]));
    for (name, base) in data["bases"].as_object().into_iter().flatten() {
        let _ = writeln!(out, "  {name:<12} {} packages", number(&base["packages"]));
    }
    out
}

fn bake(data: &Value) -> String {
    let mut rows = vec![row(["SERVICE", "TREE", "CONFIG", "DONE"])];
    for (name, image) in data["images"].as_object().into_iter().flatten() {
        let done = steps_done(number(&image["steps"]), number(&image["cached"]));
        rows.push(row([name, text(&image["tree"]), short(&image["config"]), &done]));
    }
    table(&rows)
}

/// What a bake had to do.
fn steps_done(steps: u64, cached: u64) -> String {
    match (steps, steps - cached.min(steps)) {
        (0, _) => "the base as it is".into(),
        (_, 0) => "nothing: unchanged".into(),
        (steps, done) => format!("{done} of {steps} steps"),
    }
}

fn slots(instance: &Value) -> String {
    let words: Vec<String> = list(&instance["slots"])
        .map(|slot| format!("{} {}", text(&slot["role"]), short(&slot["release"])))
        .collect();
    words.join(", ")
}

fn age(started: &Value) -> String {
    match number(started) {
        0 => String::new(),
        started => duration(crate::agent::now_ms().saturating_sub(started)),
    }
}

fn instance_row(instance: &Value) -> Vec<String> {
    let mut state = text(&instance["state"]).to_owned();
    if let Some(how) = instance["how"].as_str() {
        let _ = write!(state, " ({how})");
    }
    let verdict = match instance["tainted"].as_str() {
        Some(why) => format!("{}: {why}", text(&instance["verdict"])),
        None => text(&instance["verdict"]).to_owned(),
    };
    let restarts = number(&instance["restarts"]).to_string();
    vec![
        text(&instance["service"]).to_owned(),
        state,
        verdict,
        slots(instance),
        restarts,
        age(&instance["started"]),
    ]
}

const INSTANCE_HEAD: [&str; 6] = ["SERVICE", "STATE", "VERDICT", "SLOTS", "RESTARTS", "AGE"];

fn ps(data: &Value) -> String {
    let mut stages: Vec<(&str, &str)> = list(&data["instances"])
        .map(|instance| (text(&instance["project"]), text(&instance["stage"])))
        .collect();
    stages.sort_unstable();
    stages.dedup();
    if stages.is_empty() {
        return "nothing runs\n".into();
    }
    let mut out = String::new();
    for stage in stages {
        let _ = writeln!(out, "{}/{}", stage.0, stage.1);
        let mut rows = vec![row(INSTANCE_HEAD)];
        for instance in list(&data["instances"]) {
            if (text(&instance["project"]), text(&instance["stage"])) == stage {
                rows.push(instance_row(instance));
            }
        }
        out.push_str(&table(&rows));
    }
    out
}

/// `status` outside of any project.
fn overview(data: &Value) -> String {
    let mut out = format!(
        "root {}: images by {}, addresses {}\n",
        text(&data["root"]),
        text(&data["backing"]),
        text(&data["network"])
    );
    let mut rows = vec![row(["STAGE", "ACTIVE", "STANDBY", "INSTANCES"])];
    for stage in list(&data["stages"]) {
        rows.push(vec![
            format!("{}/{}", text(&stage["project"]), text(&stage["stage"])),
            short(&stage["active"]).to_owned(),
            short(&stage["standby"]).to_owned(),
            number(&stage["instances"]).to_string(),
        ]);
    }
    out.push_str(&damage(data));
    if rows.len() > 1 {
        out.push_str(&table(&rows));
    }
    for stage in list(&data["stages"]).filter(|stage| !stage["trouble"].is_null()) {
        let name = format!("{}/{} ", text(&stage["project"]), text(&stage["stage"]));
        out.push_str(&name);
        out.push_str(&trouble(&stage["trouble"]));
    }
    out
}

/// What of the root is damaged, as far as was noticed on the way.
fn damage(data: &Value) -> String {
    let mut out = String::new();
    for what in list(&data["ledger"]).chain(data["broken"].is_string().then_some(&data["broken"])) {
        let _ = writeln!(out, "damaged: {} (kiln fsck)", text(what));
    }
    out
}

fn status(data: &Value) -> String {
    if data["stages"].is_array() {
        return overview(data);
    }
    let source = match release::source(&data["source"]) {
        words if words.is_empty() => words,
        words => format!(" from {words}"),
    };
    let mut out = format!(
        "{}/{} serves release {}{source}\n",
        text(&data["project"]),
        text(&data["stage"]),
        short(&data["active"])
    );
    out.push_str(&trouble(&data["trouble"]));
    match data["standby"].as_str() {
        Some(_) => {
            let _ = writeln!(out, "standby: {} (kiln rollback)", short(&data["standby"]));
        }
        None => out.push_str("standby: none\n"),
    }
    out.push_str(&damage(data));
    let mut rows = vec![row(INSTANCE_HEAD)];
    rows.extend(list(&data["services"]).map(instance_row));
    out.push_str(&table(&rows));
    out.push_str(&addresses(&data["ports"]));
    out.push_str(&front(data));
    out
}

/// Why a stage does not run as it should, if it does not.
fn trouble(trouble: &Value) -> String {
    let Some(why) = trouble["why"].as_str() else { return String::new() };
    let again = match trouble["again_ms"].as_u64() {
        Some(0) | None => "just now".to_owned(),
        Some(ms) => format!("in {}", duration(ms)),
    };
    format!(
        "could not be built up again: {why}\n  tried {} times, again {again}\n",
        number(&trouble["tries"])
    )
}

fn releases(data: &Value) -> String {
    let mut rows = vec![row(["RELEASE", "ROLE", "SERVICES", "SOURCE"])];
    for release in list(&data["releases"]) {
        let mut role = text(&release["role"]).to_owned();
        if release["quarantined"].as_bool() == Some(true) {
            role.push_str(", quarantined");
        }
        let source = match release["broken"].as_str() {
            Some(why) => format!("broken: {why}"),
            None => release::source(&release["source"]),
        };
        let services = number(&release["services"]).to_string();
        rows.push(vec![short(&release["release"]).to_owned(), role, services, source]);
    }
    if rows.len() == 1 { "no releases yet\n".into() } else { table(&rows) }
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

fn images(data: &Value) -> String {
    let mut rows = vec![row(["TREE", "FILES", "SIZE", "USED BY"])];
    let (mut others, mut bytes) = (0_u64, 0_u64);
    for image in list(&data["images"]) {
        let users: Vec<&str> = list(&image["used_by"]).map(text).collect();
        if users.is_empty() {
            others += 1;
            bytes += number(&image["bytes"]);
            continue;
        }
        rows.push(vec![
            short(&image["tree"]).to_owned(),
            number(&image["files"]).to_string(),
            size(number(&image["bytes"])),
            users.join(", "),
        ]);
    }
    let mut out = table(&rows);
    for what in list(&data["broken"]) {
        let _ = writeln!(out, "damaged: {} (kiln fsck)", text(what));
    }
    if others > 0 {
        let _ = writeln!(
            out,
            "and {others} trees of bases, packages and bake steps, {} before sharing (--json lists them)",
            size(bytes)
        );
    }
    out
}

fn fsck(data: &Value) -> String {
    let mut out = String::new();
    for damage in list(&data["damage"]) {
        let _ = writeln!(out, "{}: {}", text(&damage["path"]), text(&damage["what"]));
        let needed: Vec<&str> = list(&damage["needed_by"]).map(text).collect();
        if !needed.is_empty() {
            let _ = writeln!(out, "  needed by {}", needed.join(", "));
        }
        for (word, of) in [("healed", &damage["healed"]), ("cure", &damage["cure"])] {
            if of.is_string() {
                let _ = writeln!(out, "  {word}: {}", text(of));
            }
        }
    }
    let _ = writeln!(
        out,
        "{} objects ({}), {} images and {} entries of the ledger were read: {}",
        number(&data["objects"]),
        size(number(&data["bytes"])),
        number(&data["images"]),
        number(&data["entries"]),
        match list(&data["damage"]).count() {
            0 => "all as it was written".to_owned(),
            count => format!("{count} damaged"),
        }
    );
    out
}

fn gc(data: &Value) -> String {
    let what = if data["dry_run"].as_bool() == Some(true) { "would collect" } else { "collected" };
    let mut out = format!("{what}:\n");
    for (name, value) in data["collected"].as_object().into_iter().flatten() {
        let shown = match value.as_u64() {
            Some(bytes) if name.contains("bytes") => size(bytes),
            _ => value.to_string(),
        };
        let _ = writeln!(out, "  {:<16} {shown}", name.replace('_', " "));
    }
    out
}

fn down(data: &Value) -> String {
    let place = format!("{}/{}", text(&data["project"]), text(&data["stage"]));
    let count = list(&data["stopped"]).count();
    let names = |key: &str| list(&data[key]).map(text).collect::<Vec<_>>().join(", ");
    let volumes = match (names("removed"), names("left")) {
        (removed, left) if removed.is_empty() && left.is_empty() => {
            "records, artifacts and volumes stay".to_owned()
        }
        (removed, left) if left.is_empty() => format!("removed {removed}"),
        (removed, left) if removed.is_empty() => format!("left {left}"),
        (removed, left) => format!("removed {removed}; left {left}"),
    };
    match count {
        0 => format!("{place}: nothing ran; {volumes}\n"),
        1 => format!("{place}: stopped 1 instance; {volumes}\n"),
        _ => format!("{place}: stopped {count} instances; {volumes}\n"),
    }
}

fn shutdown(data: &Value) -> String {
    if data["agent"].as_bool() == Some(true) {
        format!("stopped {} instances, front and agent\n", list(&data["stopped"]).count())
    } else if data["collected"].as_bool() == Some(true) {
        "no agent ran; what one had left is cleared away\n".into()
    } else {
        "no agent ran\n".into()
    }
}

fn history(entry: &Value) -> String {
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
    what.extend(Some(release::source(&data["source"])).filter(|words| !words.is_empty()));
    let time = time(number(&entry["time"]));
    let line = format!("{time}  {place:<14} {:<17} {}", text(&entry["kind"]), what.join(" "));
    line.trim_end().to_owned()
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
    use serde_json::json;

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
        let data = json!({ "project": "shop", "stage": "dev", "release": format!("sha256:{}",
            "a".repeat(64)), "switched": false, "ms": 4, "ports": [] });
        assert_eq!(
            up(&data),
            "shop/dev serves release aaaaaaaaaaaa already: nothing to do (4 ms)\n"
        );
    }
}
