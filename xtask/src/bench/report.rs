//! What was measured, on what, against which versions.

use std::fmt::Write as _;
use std::fs;

use anyhow::Result;
use serde::Serialize;

use super::stats::Stats;
use super::works::Unit;

/// One row, with a column for each peer.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    work: &'static str,
    unit: Unit,
    aim: Option<f64>,
    /// By peer, in the order of [`Report::peers`]; empty where there is no such thing.
    columns: Vec<Stats>,
}

impl Row {
    pub(super) fn new(
        work: &'static str,
        unit: Unit,
        aim: Option<f64>,
        values: Vec<Vec<f64>>,
    ) -> Self {
        Self { work, unit, aim, columns: values.into_iter().map(Stats::of).collect() }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: String,
    rounds: usize,
    /// Names, as heads of the columns.
    peers: Vec<String>,
    versions: Vec<String>,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(
        peers: Vec<String>,
        versions: Vec<String>,
        rounds: usize,
        rows: Vec<Row>,
    ) -> Self {
        Self { machine: machine(), rounds, peers, versions, rows }
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// A table of medians with their spreads, and what they were measured on.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::from("| work |");
        for peer in &self.peers {
            _ = write!(text, " {peer} |");
        }
        text += " aim |\n|---|";
        text += &"---|".repeat(self.peers.len() + 1);
        text += "\n";
        for row in &self.rows {
            _ = write!(text, "| {} |", row.work);
            for at in 0..self.peers.len() {
                let cell = row.columns.get(at).map(|stats| cell(stats, row.unit));
                _ = write!(text, " {} |", cell.unwrap_or_else(|| "–".to_owned()));
            }
            let mark = if row.unit == Unit::Requests { "" } else { "≤ " };
            let aim =
                row.aim.map_or("–".to_owned(), |aim| format!("{mark}{}", number(aim, row.unit)));
            _ = writeln!(text, " {aim} |");
        }
        let Self { rounds, machine, versions, .. } = self;
        _ = writeln!(
            text,
            "\nMedian (least–most) of {rounds} rounds, in turns, caches warm. {}. {machine}.",
            versions.join(", ")
        );
        text
    }
}

fn cell(stats: &Stats, unit: Unit) -> String {
    if stats.values.is_empty() {
        return "–".to_owned();
    }
    let [median, min, max] =
        [stats.median(), stats.min(), stats.max()].map(|value| number(value, unit));
    format!("{median} ({min}–{max})")
}

fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Milliseconds if value < 100.0 => format!("{value:.1} ms"),
        Unit::Milliseconds => format!("{value:.0} ms"),
        Unit::Mebibytes => format!("{value:.1} MiB"),
        Unit::Requests => format!("{value:.0}"),
    }
}

/// Cores, memory, kernel, distribution.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let kib = memory.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    let release = read("/etc/os-release");
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    format!(
        "{cores} cores, {} GiB, kernel {}, {}",
        kib.unwrap_or(0).div_ceil(1 << 20),
        read("/proc/sys/kernel/osrelease").trim(),
        system.unwrap_or("an unknown system").trim_matches('"')
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_medians_spreads_and_gaps() {
        let rows = vec![
            Row::new(
                "up",
                Unit::Milliseconds,
                Some(60.0),
                vec![vec![40.0, 50.0, 45.0], vec![1_400.0]],
            ),
            Row::new("lost", Unit::Requests, Some(0.0), vec![vec![0.0], vec![]]),
            Row::new("disk", Unit::Mebibytes, None, vec![vec![8.25]]),
        ];
        let report = Report {
            machine: "a machine".to_owned(),
            rounds: 3,
            peers: vec!["Kiln".to_owned(), "Docker Compose".to_owned()],
            versions: vec!["kiln 1".to_owned(), "docker 2".to_owned()],
            rows,
        };
        let text = report.markdown();
        assert!(
            text.contains("| 45.0 ms (40.0 ms–50.0 ms) | 1400 ms (1400 ms–1400 ms) | ≤ 60.0 ms |"),
            "{text}"
        );
        assert!(text.contains("| lost | 0 (0–0) | – | 0 |"), "{text}");
        assert!(text.contains("| disk | 8.2 MiB (8.2 MiB–8.2 MiB) | – | – |"), "{text}");
        assert!(report.json().unwrap().contains("\"rounds\": 3"));
    }
}
