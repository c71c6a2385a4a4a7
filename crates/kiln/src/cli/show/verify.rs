//! `kiln verify` for a person: a table of the steps, and all about the first one that differs.

use std::fmt::Write as _;

use serde_json::Value;

use super::{list, number, row, short, table, text};
use crate::cli::live::duration;

/// Width of a step's instruction in the table.
const INSTRUCTION: usize = 64;

/// Bytes that are shown in hexadecimal.
const HEX: usize = 16;

/// The end of the verb.
pub(super) fn verify(data: &Value) -> String {
    if data["against"].is_object() {
        return against(data);
    }
    let deep = data["deep"].as_bool() == Some(true);
    let mut out = String::new();
    let mut worst = Vec::new();
    let bases = data["bases"].as_object().into_iter().flatten();
    let bases: Vec<(&String, &Value)> = bases.collect();
    if !bases.is_empty() {
        let mut rows = vec![row(["BASE", "VERDICT", "RUNS"])];
        for (name, base) in &bases {
            rows.push(vec![(*name).clone(), verdict(base), times(base, deep)]);
            worst.push((format!("base {name}"), *base));
        }
        out.push_str(&table(&rows));
        out.push('\n');
    }
    for (name, service) in data["services"].as_object().into_iter().flatten() {
        let _ = writeln!(out, "{name}  {}", short(&service["image"]["tree"]));
        let steps: Vec<&Value> = list(&service["steps"]).collect();
        if steps.is_empty() {
            out.push_str("  a base as it is\n");
        }
        let rows: Vec<Vec<String>> = steps.iter().map(|step| step_row(step, deep)).collect();
        for line in table(&rows).lines() {
            let _ = writeln!(out, "  {line}");
        }
        for step in &steps {
            for note in list(&step["notes"]) {
                let _ = writeln!(out, "  step {}: {}", number(&step["number"]), text(note));
            }
        }
        let worse = |step: &&&Value| differs(step) && text(&step["verdict"]) != "left-behind";
        if let Some(first) = steps.iter().find(worse).or(steps.iter().find(|step| differs(step))) {
            worst.push((name.clone(), first));
        }
    }
    for (name, step) in worst.iter().filter(|(_, step)| differs(step)) {
        out.push('\n');
        out.push_str(&found(name, step));
    }
    out.push('\n');
    out.push_str(&sum(data));
    out
}

fn differs(step: &Value) -> bool {
    matches!(text(&step["verdict"]), "diverged" | "inputs" | "left-behind")
}

fn verdict(step: &Value) -> String {
    match text(&step["verdict"]) {
        "same" => "same".to_owned(),
        "diverged" => "DIVERGED".to_owned(),
        "inputs" => "OTHER INPUTS".to_owned(),
        "not-run" => "not run".to_owned(),
        "left-behind" => "left behind".to_owned(),
        other => other.to_owned(),
    }
}

/// How long each of the runs took; two whole bakes say nothing of a step.
fn times(step: &Value, deep: bool) -> String {
    if deep {
        return String::new();
    }
    let times = list(&step["runs"])
        .map(|run| duration(number(&run["ended"]).saturating_sub(number(&run["began"]))));
    times.collect::<Vec<_>>().join(" / ")
}

fn step_row(step: &Value, deep: bool) -> Vec<String> {
    let mut instruction: String = text(&step["text"]).chars().take(INSTRUCTION).collect();
    if text(&step["text"]).chars().count() > INSTRUCTION {
        instruction.pop();
        instruction.push('…');
    }
    vec![number(&step["number"]).to_string(), verdict(step), instruction, times(step, deep)]
}

/// All about one step.
fn found(name: &str, step: &Value) -> String {
    let mut out = String::new();
    match number(&step["number"]) {
        0 => {
            let _ = writeln!(out, "{name}");
        }
        at => {
            let place = format!("{}:{}", text(&step["file"]), number(&step["line"]));
            let _ = writeln!(out, "{name}: step {at} at {place}\n  {}", text(&step["text"]));
        }
    }
    if let Some(why) = step["why"].as_str() {
        let _ = writeln!(out, "  {why}");
    }
    let failure = &step["failure"];
    if failure.is_object() {
        let _ =
            writeln!(out, "  run {} ended with {}", number(&failure["run"]), text(&failure["how"]));
        for line in list(&failure["output"]) {
            let _ = writeln!(out, "  | {}", text(line));
        }
    }
    if step["difference"].is_object() {
        out.push_str(&difference(&step["difference"]));
    }
    out
}

fn difference(difference: &Value) -> String {
    let first = &difference["first"];
    let mut out = String::new();
    let what = match text(&first["kind"]) {
        "content" => format!("differs from byte {} on", number(&first["offset"])),
        "only-first" => format!("is left by {} only", text(&difference["between"][0])),
        "only-second" => format!("is left by {} only", text(&difference["between"][1])),
        kind => format!("differs in its {kind}"),
    };
    let _ = writeln!(out, "\n  {} {what}", text(&first["path"]));
    let names = [text(&difference["between"][0]), text(&difference["between"][1])];
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    for (name, value) in names.iter().zip([&first["first"], &first["second"]]) {
        let size = match value["size"].as_u64() {
            Some(size) => format!("  ({size} bytes)"),
            None => String::new(),
        };
        let _ = writeln!(out, "    {name:<width$}  {}{size}", text(&value["text"]));
    }
    let at = number(&first["first"]["at"]);
    if first["offset"].is_u64() {
        let at = caret(first, at);
        let _ = writeln!(out, "    {:<width$}  {}^", "", " ".repeat(at));
        for (name, value) in names.iter().zip([&first["first"], &first["second"]]) {
            let _ = writeln!(out, "    {name:<width$}  {}", hex(text(&value["hex"]), at));
        }
    }
    let _ = writeln!(out, "\n  cause  {}: {}", text(&first["words"]), text(&first["evidence"]));
    for (at, line) in folded(text(&first["cure"]), 84).iter().enumerate() {
        let _ = writeln!(out, "  {:<5}  {line}", if at == 0 { "cure" } else { "" });
    }
    let more = number(&difference["count"]).saturating_sub(1);
    if more > 0 {
        let causes: Vec<String> = difference["causes"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(cause, count)| format!("{} {cause}", number(count)))
            .collect();
        let paths = if more == 1 { "path differs" } else { "paths differ" };
        let _ = writeln!(out, "  more   {more} more {paths}; by cause: {}", causes.join(", "));
    }
    out
}

/// Where the first differing byte is in the text that is shown.
fn caret(first: &Value, at: u64) -> usize {
    usize::try_from(number(&first["offset"]).saturating_sub(at)).unwrap_or(0)
}

/// Hexadecimal digits of the bytes around the one at `at`, which is marked.
fn hex(digits: &str, at: usize) -> String {
    let from = at.saturating_sub(HEX / 2);
    let bytes = (0..digits.len() / 2).filter_map(|at| Some((at, digits.get(at * 2..at * 2 + 2)?)));
    let mut out = String::new();
    for (number, byte) in bytes.skip(from).take(HEX) {
        out.push_str(if number == at { "[" } else { " " });
        out.push_str(byte);
        if number == at {
            out.push(']');
        }
    }
    out.replace("] ", "]")
}

/// Words in lines of at most `width` characters.
fn folded(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The last line.
fn sum(data: &Value) -> String {
    let how = match data["deep"].as_bool() {
        Some(true) => "baked twice from nothing",
        _ => "each step run twice",
    };
    let time = duration(number(&data["ms"]));
    let verdict = match text(&data["verdict"]) {
        "same" => "the same bits",
        "diverged" => "not the same bits",
        "inputs" => "inputs differ that nothing pins",
        "left-behind" => "the same bits; what differs stays behind in a stage",
        _ => "not all was run",
    };
    let mut out = format!("{}: {verdict}; {how}, {time}\n", text(&data["project"]));
    for missing in list(&data["conditions"]["not_varied"]) {
        let _ = writeln!(out, "  {}", text(missing));
    }
    out
}

fn against(data: &Value) -> String {
    let found = &data["against"];
    let mut out = format!(
        "{}: tree {} here, {} in {}\n",
        text(&found["service"]),
        short(&found["here"]["tree"]),
        short(&found["there"]["tree"]),
        text(&data["path"])
    );
    if found["difference"].is_object() {
        out.push_str(&difference(&found["difference"]));
    }
    for change in list(&found["config"]) {
        let _ = writeln!(
            out,
            "  configuration: {} is {} here and {} there",
            text(&change[0]),
            change[1],
            change[2]
        );
    }
    out.push_str(match text(&found["verdict"]) {
        "same" => "the same bits\n",
        _ => "not the same bits\n",
    });
    out
}
