//! What instances make the ledger say: their starts and ends, and the words that come with them.
//! They are strangers, and the ledger is kept for ever, so it takes a bounded amount of it: each
//! word is cut, and what goes beyond ten entries a minute and service is counted and told in one. What
//! a command started or ended is recorded in any case: commands are given by people.

use std::collections::BTreeMap;
use std::sync::Mutex;

use kiln_store::ledger::Record;
use serde_json::{Value, json};

use super::lock;

/// Entries about the instances of one service within [`WINDOW_MS`].
const ENTRIES: u32 = 10;
const WINDOW_MS: u64 = 60_000;

/// The longest text, in bytes, and the most elements of a list, that an entry takes.
const TEXT: usize = 400;
const LIST: usize = 10;

/// What was said lately, by service.
#[derive(Debug, Default)]
pub(super) struct Said(Mutex<BTreeMap<String, Window>>);

/// A minute of one service.
#[derive(Debug)]
struct Window {
    began: u64,
    entries: u32,
    folded: BTreeMap<String, u64>,
    project: Option<String>,
    stage: Option<String>,
}

impl Said {
    /// What of `record` goes into the ledger now: itself, cut; or nothing, if its service has said
    /// enough; before it what was folded in the minute before.
    pub(super) fn take(&self, mut record: Record) -> Vec<Record> {
        let Some(service) = service(&record) else { return vec![record] };
        cut(&mut record.data, 3);
        // What a command did is as much as somebody ordered.
        if record.data.get("by").is_some() {
            return vec![record];
        }
        let mut windows = lock(&self.0);
        let mut out = Vec::new();
        let over = windows.get(&service).is_some_and(|window| window.is_over(record.time));
        if over && let Some(window) = windows.remove(&service) {
            out.extend(window.folded(&service, record.time));
        }
        let window = windows.entry(service).or_insert_with(|| Window {
            began: record.time,
            entries: 0,
            folded: BTreeMap::new(),
            project: record.project.clone(),
            stage: record.stage.clone(),
        });
        window.entries += 1;
        if window.entries <= ENTRIES {
            out.push(record);
        } else {
            *window.folded.entry(record.kind).or_default() += 1;
        }
        out
    }

    /// What was folded in minutes that are over by `now`; in all of them with `u64::MAX`.
    pub(super) fn due(&self, now: u64) -> Vec<Record> {
        let mut windows = lock(&self.0);
        let mut out = Vec::new();
        windows.retain(|service, window| {
            let over = window.is_over(now);
            if over {
                out.extend(window.folded(service, now.min(window.began + WINDOW_MS)));
            }
            !over
        });
        out
    }
}

impl Window {
    fn is_over(&self, now: u64) -> bool {
        now >= self.began.saturating_add(WINDOW_MS) || now < self.began
    }

    /// One entry for all that was not written.
    fn folded(&self, service: &str, time: u64) -> Option<Record> {
        let count: u64 = self.folded.values().sum();
        (count > 0).then(|| Record {
            time,
            kind: "instance.folded".to_owned(),
            project: self.project.clone(),
            stage: self.stage.clone(),
            data: json!({
                "instances": service,
                "entries": count,
                "kinds": self.folded,
                "since": self.began,
                "what": format!("more than {ENTRIES} entries in a minute: {count} are only counted"),
            }),
        })
    }
}

/// The names of a service's instances without what tells them apart, if `record` is about one.
fn service(record: &Record) -> Option<String> {
    if !record.kind.starts_with("instance.") {
        return None;
    }
    let id = record.data.get("instance").or_else(|| record.data.get("old"))?.as_str()?;
    Some(id.rsplit_once('-').map_or(id, |(service, _)| service).to_owned())
}

/// Shortens all texts and lists, and says so where it did.
fn cut(value: &mut Value, depth: u32) {
    match value {
        Value::String(text) if text.len() > TEXT => {
            let cut = (0..=TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let left = text.len() - cut;
            text.truncate(cut);
            text.push_str(&format!("… ({left} bytes more)"));
        }
        Value::Array(list) => {
            let left = list.len().saturating_sub(LIST);
            list.truncate(LIST);
            list.iter_mut().for_each(|value| cut(value, depth.saturating_sub(1)));
            if left > 0 {
                list.push(json!(format!("… ({left} more)")));
            }
        }
        Value::Object(_) if depth == 0 => *value = json!("…"),
        Value::Object(members) => {
            members.values_mut().for_each(|value| cut(value, depth.saturating_sub(1)));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(time: u64, kind: &str, data: Value) -> Record {
        let (project, stage) = (Some("shop".to_owned()), Some("dev".to_owned()));
        Record { time, kind: kind.to_owned(), project, stage, data }
    }

    fn end(time: u64, id: &str) -> Record {
        record(time, "instance.exit", json!({ "instance": id, "how": "exited with status 1" }))
    }

    #[test]
    fn more_than_ten_a_minute_and_service_are_counted_and_told() {
        let said = Said::default();
        let mut written = Vec::new();
        for nth in 0..100 {
            written.extend(said.take(end(1000 + nth, &format!("shop-dev-web-{nth:08x}"))));
        }
        assert_eq!(written.len(), 10);
        // Another service is heard all the same, and so is what no instance says.
        assert_eq!(said.take(end(1200, "shop-dev-api-00000001")).len(), 1);
        for _ in 0..30 {
            assert_eq!(said.take(record(1300, "deploy.intent", json!({}))).len(), 1);
        }
        // What somebody ordered is told however much has been said.
        let ordered = json!({ "instance": "shop-dev-web-00000000", "by": { "uid": 0 } });
        assert_eq!(said.take(record(1300, "instance.start", ordered)).len(), 1);
        assert_eq!(said.due(1400), []);
        let due = said.due(1000 + WINDOW_MS);
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].kind, "instance.folded");
        assert_eq!(
            (&due[0].data["entries"], &due[0].data["instances"]),
            (&json!(90), &json!("shop-dev-web"))
        );
        assert_eq!(said.take(end(70_000, "shop-dev-web-ffffffff")).len(), 1, "a new minute");
    }

    #[test]
    fn a_busy_service_tells_the_minute_before_with_the_next_one() {
        let said = Said::default();
        for nth in 0..25 {
            said.take(end(nth, "shop-dev-web-00000000"));
        }
        let written = said.take(end(WINDOW_MS, "shop-dev-web-00000001"));
        let kinds: Vec<&str> = written.iter().map(|record| record.kind.as_str()).collect();
        assert_eq!(kinds, ["instance.folded", "instance.exit"]);
        assert_eq!(written[0].data["kinds"]["instance.exit"], 15);
    }

    #[test]
    fn words_are_cut_and_that_is_said() {
        let said = Said::default();
        let long = "ü".repeat(5000);
        let lines: Vec<&str> = (0..50).map(|_| long.as_str()).collect();
        let data = json!({ "instance": "shop-dev-web-00000000", "log": lines, "how": long });
        let written = said.take(record(1, "instance.exit", data));
        let text = written[0].data.to_string();
        assert!(text.len() < 6000, "{}", text.len());
        assert!(text.contains("bytes more)") && text.contains("… (40 more)"), "{text}");
    }
}
