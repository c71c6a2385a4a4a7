//! Progress for people: a tree that is redrawn in place on a terminal, plain lines elsewhere.

use std::io::Write;
use std::time::Instant;

use crate::protocol::{Progress, State};
use crate::terminal;

const SPINNER: [&str; 8] = ["⣾", "⣽", "⣻", "⢿", "⡿", "⣟", "⣯", "⣷"];

/// What is shown of a request under way, on standard error.
pub(crate) struct Live {
    terminal: bool,
    shown: bool,
    nodes: Vec<Progress>,
    drawn: usize,
    began: Instant,
}

impl Live {
    /// `terminal` redraws in place; `shown` false says nothing at all.
    pub(crate) fn new(terminal: bool, shown: bool) -> Self {
        Self { terminal, shown, nodes: Vec::new(), drawn: 0, began: Instant::now() }
    }

    /// Takes in one node.
    pub(crate) fn progress(&mut self, node: &Progress) {
        if !self.shown {
            return;
        }
        let same = |old: &&mut Progress| old.phase == node.phase && old.name == node.name;
        let changed = match self.nodes.iter_mut().find(same) {
            Some(old) => {
                let changed = old.state != node.state;
                *old = node.clone();
                changed
            }
            None => {
                self.nodes.push(node.clone());
                true
            }
        };
        if self.terminal {
            self.draw();
        } else if changed && node.state != State::Running {
            say(&terminal::clean(&plain(node)));
        }
    }

    /// Shows a sentence above the tree.
    pub(crate) fn notice(&mut self, text: &str) {
        if !self.shown {
            return;
        }
        self.erase();
        say(&format!("note: {}", terminal::clean(text)));
        if self.terminal {
            self.draw();
        }
    }

    /// Leaves the tree as it is.
    pub(crate) fn finish(&mut self) {
        self.drawn = 0;
    }

    fn erase(&mut self) {
        if self.drawn > 0 {
            let _ = write!(std::io::stderr(), "\r\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }

    fn draw(&mut self) {
        let (width, height) = size();
        let mut lines: Vec<String> = Vec::new();
        let mut phases: Vec<&str> = Vec::new();
        for node in &self.nodes {
            if !phases.contains(&node.phase.as_str()) {
                phases.push(&node.phase);
            }
        }
        for phase in phases {
            lines.push(format!("\x1b[1m{phase}\x1b[0m"));
            for node in self.nodes.iter().filter(|node| node.phase == phase) {
                lines.push(self.line(node, width));
                // A bake says one line for each step that runs.
                if node.state == State::Running {
                    let more = node.detail.lines().skip(1);
                    lines.extend(more.map(|detail| continued(detail, width)));
                }
            }
        }
        // What scrolled away cannot be redrawn: keep to the last lines that fit.
        let skip = lines.len().saturating_sub(height.saturating_sub(1));
        let text: String = lines[skip..].iter().map(|line| format!("{line}\n")).collect();
        self.erase();
        self.drawn = lines.len() - skip;
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    fn line(&self, node: &Progress, width: usize) -> String {
        let turn = usize::try_from(self.began.elapsed().as_millis() / 80).unwrap_or(0);
        let mark = match node.state {
            State::Running => format!("\x1b[36m{}\x1b[0m", SPINNER[turn % SPINNER.len()]),
            State::Done => "\x1b[32m✓\x1b[0m".to_owned(),
            State::Kept => "\x1b[90m·\x1b[0m".to_owned(),
            State::Failed => "\x1b[31m✗\x1b[0m".to_owned(),
        };
        let time = node.ms.map(|ms| format!(" {}", duration(ms))).unwrap_or_default();
        let room = width.saturating_sub(6 + 12 + time.len()).max(8);
        let detail = fitting(node.detail.lines().next().unwrap_or_default(), room);
        let name = terminal::clean(&node.name);
        format!("  {mark} {name:<12} {detail}\x1b[90m{time}\x1b[0m")
    }
}

/// A further line of a node.
fn continued(detail: &str, width: usize) -> String {
    format!("{:17}{}", "", fitting(detail, width.saturating_sub(6 + 12).max(8)))
}

fn fitting(text: &str, room: usize) -> String {
    terminal::clean(text).chars().filter(|c| !c.is_control()).take(room).collect()
}

fn plain(node: &Progress) -> String {
    let mark = match node.state {
        State::Running => "…",
        State::Done => "done",
        State::Kept => "kept",
        State::Failed => "FAILED",
    };
    let time = node.ms.map(|ms| format!(" ({})", duration(ms))).unwrap_or_default();
    let Progress { phase, name, detail, .. } = node;
    format!("{phase:<7} {name:<12} {mark:<6} {detail}{time}").trim_end().to_owned()
}

/// Milliseconds as a person reads them.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(rustix::stdio::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            (usize::from(size.ws_col), usize::from(size.ws_row))
        }
        _ => (80, 24),
    }
}
