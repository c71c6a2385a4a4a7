//! `kiln verify` for a person: a table of the steps, and all about the first one that differs.

use std::fmt::Write as _;

use kiln_bake::verify::{Difference, StepReport, Verdict};

use super::{digits, row, table};
use crate::answers::verified::{AgainstImage, Steps, Verified};
use crate::cli::live::duration;
use crate::words::{count, count_of};

/// Width of a step's instruction in the table.
const INSTRUCTION: usize = 64;

/// Bytes that are shown in hexadecimal.
const HEX: usize = 16;

/// The end of the verb.
pub(super) fn verify(found: &Verified) -> String {
    match found {
        Verified::Against(found) => against(found),
        Verified::Steps(found) => of_steps(found),
    }
}

fn of_steps(all: &Steps) -> String {
    let mut out = String::new();
    let mut worst = Vec::new();
    if !all.bases.is_empty() {
        let mut rows = vec![row(["BASE", "VERDICT", "RUNS"])];
        for (name, base) in &all.bases {
            rows.push(vec![name.clone(), verdict(base).to_owned(), times(base, all.deep)]);
            worst.push((format!("base {name}"), base));
        }
        out.push_str(&table(&rows));
        out.push('\n');
    }
    for (name, service) in &all.services {
        let _ = writeln!(out, "{name}  {}", digits(&service.image.tree));
        let steps = &service.steps;
        if steps.is_empty() {
            out.push_str("  the image as it is: no step of its own\n");
        }
        let rows: Vec<Vec<String>> = steps.iter().map(|step| step_row(step, all.deep)).collect();
        for line in table(&rows).lines() {
            let _ = writeln!(out, "  {line}");
        }
        for step in steps {
            for note in &step.notes {
                let _ = writeln!(out, "  step {}: {note}", step.number);
            }
        }
        let worse = |step: &&StepReport| differs(step) && step.verdict != Verdict::LeftBehind;
        if let Some(first) = steps.iter().find(worse).or(steps.iter().find(|step| differs(step))) {
            worst.push((name.clone(), first));
        }
    }
    for (name, step) in worst.iter().filter(|(_, step)| differs(step)) {
        out.push('\n');
        out.push_str(&found(name, step));
    }
    out.push('\n');
    out.push_str(&sum(all));
    out
}

const fn differs(step: &StepReport) -> bool {
    matches!(step.verdict, Verdict::Diverged | Verdict::Inputs | Verdict::LeftBehind)
}

const fn verdict(step: &StepReport) -> &'static str {
    match step.verdict {
        Verdict::Same => "same",
        Verdict::Diverged => "DIVERGED",
        Verdict::Inputs => "OTHER INPUTS",
        Verdict::NotRun => "not run",
        Verdict::LeftBehind => "left behind",
    }
}

/// How long each of the runs took; two whole bakes say nothing of a step.
fn times(step: &StepReport, deep: bool) -> String {
    if deep {
        return String::new();
    }
    let times = step.runs.iter().map(|run| duration(run.ended.saturating_sub(run.began)));
    times.collect::<Vec<_>>().join(" / ")
}

fn step_row(step: &StepReport, deep: bool) -> Vec<String> {
    let mut instruction: String = step.text.chars().take(INSTRUCTION).collect();
    if step.text.chars().count() > INSTRUCTION {
        instruction.pop();
        instruction.push('…');
    }
    vec![step.number.to_string(), verdict(step).to_owned(), instruction, times(step, deep)]
}

/// All about one step.
fn found(name: &str, step: &StepReport) -> String {
    let mut out = String::new();
    match step.number {
        0 => {
            let _ = writeln!(out, "{name}");
        }
        at => {
            let place = format!("{}:{}", step.file, step.line);
            let _ = writeln!(out, "{name}: step {at} at {place}\n  {}", step.text);
        }
    }
    if let Some(why) = &step.why {
        let _ = writeln!(out, "  {why}");
    }
    if let Some(failure) = &step.failure {
        let _ = writeln!(out, "  run {} ended with {}", failure.run, failure.how);
        for line in &failure.output {
            let _ = writeln!(out, "  | {line}");
        }
    }
    if let Some(found) = &step.difference {
        out.push_str(&difference(found));
    }
    out
}

fn difference(difference: &Difference) -> String {
    let first = &difference.first;
    let names = &difference.between;
    let mut out = String::new();
    let what = match &*first.kind {
        "content" => format!("differs from byte {} on", first.offset.unwrap_or(0)),
        "only-first" => format!("is left by {} only", names[0]),
        "only-second" => format!("is left by {} only", names[1]),
        kind => format!("differs in its {kind}"),
    };
    let _ = writeln!(out, "\n  {} {what}", first.path);
    let width = names.iter().map(String::len).max().unwrap_or(0);
    for (name, value) in names.iter().zip([&first.first, &first.second]) {
        let size = match value.size {
            Some(size) => format!("  ({})", count(size, "byte")),
            None => String::new(),
        };
        let _ = writeln!(out, "    {name:<width$}  {}{size}", value.text);
    }
    if let Some(offset) = first.offset {
        let at = caret(offset, first.first.at.unwrap_or(0));
        let _ = writeln!(out, "    {:<width$}  {}^", "", " ".repeat(at));
        for (name, value) in names.iter().zip([&first.first, &first.second]) {
            let _ = writeln!(out, "    {name:<width$}  {}", hex(&value.hex, at));
        }
    }
    let _ = writeln!(out, "\n  cause  {}: {}", first.words, first.finding.evidence);
    for (at, line) in folded(&first.cure, 84).iter().enumerate() {
        let _ = writeln!(out, "  {:<5}  {line}", if at == 0 { "cure" } else { "" });
    }
    let more = difference.count.saturating_sub(1);
    if more > 0 {
        let causes = difference.causes.iter().map(|(cause, count)| format!("{count} {cause}"));
        let causes: Vec<String> = causes.collect();
        let paths = count_of(more, "more path differs", "more paths differ");
        let _ = writeln!(out, "  more   {paths}; by cause: {}", causes.join(", "));
    }
    out
}

/// Where the first differing byte is in the text that is shown, which begins at `at`.
fn caret(offset: u64, at: u64) -> usize {
    usize::try_from(offset.saturating_sub(at)).unwrap_or(0)
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
fn sum(all: &Steps) -> String {
    let how = if all.deep { "baked twice from nothing" } else { "each step run twice" };
    let time = duration(all.ms);
    let verdict = match all.verdict {
        Verdict::Same => "the same bits",
        Verdict::Diverged => "not the same bits",
        Verdict::Inputs => "inputs differ that nothing pins",
        Verdict::LeftBehind => "the same bits; what differs stays behind in a stage",
        Verdict::NotRun => "not all was run",
    };
    let mut out = format!("{}: {verdict}; {how}, {time}\n", all.project);
    for missing in &all.conditions.not_varied {
        let _ = writeln!(out, "  {missing}");
    }
    out
}

fn against(answer: &AgainstImage) -> String {
    let found = &answer.against;
    let mut out = format!(
        "{}: tree {} here, {} in {}\n",
        found.service,
        digits(&found.here.tree),
        digits(&found.there.tree),
        answer.path.display()
    );
    if let Some(found) = &found.difference {
        out.push_str(&difference(found));
    }
    for (key, here, there) in &found.config {
        let _ = writeln!(out, "  configuration: {key} is {here} here and {there} there");
    }
    out.push_str(match found.verdict {
        Verdict::Same => "the same bits\n",
        _ => "not the same bits\n",
    });
    out
}
