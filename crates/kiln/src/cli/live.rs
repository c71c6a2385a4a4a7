//! Progress for people: a tree that is redrawn in place on a terminal, plain lines elsewhere.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::protocol::{Progress, State};
use crate::terminal;

const SPINNER: [&str; 8] = ["⣾", "⣽", "⣻", "⢿", "⡿", "⣟", "⣯", "⣷"];

/// Plain lines say of what takes long, so often, how it stands.
const TELL: Duration = Duration::from_secs(10);

/// Columns of a phase, and at least and at most of a name, in plain lines.
const PHASE: usize = 7;
const NAME: usize = 12;
const LONG_NAME: usize = 40;

/// What is shown of a request under way, on standard error.
pub(crate) struct Live {
    terminal: bool,
    shown: bool,
    paint: Paint,
    nodes: Vec<Shown>,
    drawn: usize,
    began: Instant,
    /// Columns of a name in plain lines so far.
    column: usize,
}

/// A node, and when it was told last.
struct Shown {
    node: Progress,
    told: Instant,
}

impl Live {
    /// `terminal` redraws in place; `shown` false says nothing at all.
    pub(crate) fn new(terminal: bool, shown: bool) -> Self {
        let terminal = terminal && !terminal::is_dumb();
        let paint = Paint(terminal && terminal::may_colour());
        let (nodes, began) = (Vec::new(), Instant::now());
        Self { terminal, shown, paint, nodes, drawn: 0, began, column: NAME }
    }

    /// Takes in one node.
    pub(crate) fn progress(&mut self, node: &Progress) {
        if !self.shown {
            return;
        }
        let now = Instant::now();
        let same = |old: &&mut Shown| old.node.phase == node.phase && old.node.name == node.name;
        let news = match self.nodes.iter_mut().find(same) {
            Some(old) => {
                let long = now.duration_since(old.told) >= TELL;
                let changed = old.node.state != node.state;
                old.node = node.clone();
                match node.state {
                    State::Running => long,
                    _ => changed,
                }
            }
            None => {
                self.nodes.push(Shown { node: node.clone(), told: now });
                node.state != State::Running
            }
        };
        if self.terminal {
            self.draw();
        } else if news {
            if let Some(shown) = self.nodes.iter_mut().find(same) {
                shown.told = now;
            }
            // What comes later stands below what was said before, as far as that can be known.
            self.column = self.column.max(terminal::clean(&node.name).chars().count());
            self.column = self.column.min(LONG_NAME);
            say(&terminal::clean(&plain(node, self.column)));
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
        for Shown { node, .. } in &self.nodes {
            if !phases.contains(&node.phase.as_str()) {
                phases.push(&node.phase);
            }
        }
        let turn = usize::try_from(self.began.elapsed().as_millis() / 80).unwrap_or(0);
        for phase in phases {
            lines.push(self.paint.on("1", phase));
            let nodes = || self.nodes.iter().map(|shown| &shown.node);
            let nodes: Vec<&Progress> = nodes().filter(|node| node.phase == phase).collect();
            let column = column(&nodes, width);
            for node in nodes {
                lines.push(line(node, column, width, turn, self.paint));
                // A bake says one line for each step that runs.
                if node.state == State::Running {
                    let more = node.detail.lines().skip(1);
                    let indent = MARK + column + 1;
                    let room = width.saturating_sub(indent + 1);
                    lines.extend(
                        more.map(|detail| format!("{:indent$}{}", "", fitting(detail, room))),
                    );
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
}

/// Columns before a name: two blanks, a mark, a blank.
const MARK: usize = 4;

/// Columns of the names of a phase: the longest has room, as long as half of the line is left for
/// what is said of it.
fn column(nodes: &[&Progress], width: usize) -> usize {
    let longest = nodes.iter().map(|node| terminal::clean(&node.name).chars().count()).max();
    longest.unwrap_or(0).max(NAME).min(width.saturating_sub(MARK) / 2)
}

/// Colours and weights, or none of them.
#[derive(Debug, Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn on(self, code: &str, text: &str) -> String {
        match self.0 {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// A node as one line that does not reach the edge: one that a terminal breaks could not be redrawn.
fn line(node: &Progress, column: usize, width: usize, turn: usize, paint: Paint) -> String {
    let mark = match node.state {
        State::Running => paint.on("36", SPINNER[turn % SPINNER.len()]),
        State::Done => paint.on("32", "✓"),
        State::Kept => paint.on("90", "·"),
        State::Failed => paint.on("31", "✗"),
    };
    let time = node.ms.map(|ms| format!(" {}", duration(ms))).unwrap_or_default();
    let room = width.saturating_sub(MARK + column + 1 + 1);
    let time = fitting(&time, room);
    let room = room.saturating_sub(time.chars().count());
    let detail = fitting(node.detail.lines().next().unwrap_or_default(), room);
    let name = fitting(&node.name, column);
    format!("  {mark} {name:<column$} {detail}{}", paint.on("90", &time))
}

/// As much of a text as there is room for; what was cut shows as such.
fn fitting(text: &str, room: usize) -> String {
    let whole = terminal::clean(text).chars().filter(|c| !c.is_control()).collect::<Vec<_>>();
    match whole.len() <= room {
        true => whole.into_iter().collect(),
        false if room == 0 => String::new(),
        false => whole[..room - 1].iter().chain(['…'].iter()).collect(),
    }
}

fn plain(node: &Progress, column: usize) -> String {
    let mark = match node.state {
        State::Running => "…",
        State::Done => "done",
        State::Kept => "kept",
        State::Failed => "FAILED",
    };
    let time = node.ms.map(|ms| format!(" ({})", duration(ms))).unwrap_or_default();
    let Progress { phase, name, detail, .. } = node;
    let detail = match node.state {
        State::Running => detail.lines().next().unwrap_or_default(),
        _ => detail,
    };
    format!("{phase:<PHASE$} {name:<column$} {mark:<6} {detail}{time}").trim_end().to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, state: State, detail: &str) -> Progress {
        let (phase, name, detail) = ("pull".to_owned(), name.to_owned(), detail.to_owned());
        Progress { phase, name, state, detail, ms: (state == State::Done).then_some(1_234) }
    }

    #[test]
    fn rows_stand_below_one_another_and_never_reach_the_edge() {
        let long = "registry.example.org/team/postgres:16.4-alpine3.20";
        let nodes = [
            node("nginx:1.27", State::Done, "0123456789ab, 7 layers, 70.1 MB"),
            node(long, State::Running, "████████ 1.0 MB of 2.0 MB"),
            node("db", State::Failed, "no\ttabs"),
        ];
        let nodes: Vec<&Progress> = nodes.iter().collect();
        for width in [1, 2, 5, 9, 20, 24, 40, 80, 120, 300] {
            let column = column(&nodes, width);
            for node in &nodes {
                let line = line(node, column, width, 0, Paint(false));
                assert!(line.chars().count() < width.max(7 + column), "{width}: {line}");
            }
        }
        let at = |width: usize| {
            let column = column(&nodes, width);
            let lines = nodes.iter().map(|node| line(node, column, width, 3, Paint(false)));
            lines.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(
            at(120),
            "  ✓ nginx:1.27                                         0123456789ab, 7 layers, 70.1 MB 1.2 s\n  \
             ⢿ registry.example.org/team/postgres:16.4-alpine3.20 ████████ 1.0 MB of 2.0 MB\n  \
             ✗ db                                                 notabs"
        );
        assert_eq!(
            at(80),
            "  ✓ nginx:1.27                             0123456789ab, 7 layers, 70.1 … 1.2 s\n  \
             ⢿ registry.example.org/team/postgres:16… ████████ 1.0 MB of 2.0 MB\n  \
             ✗ db                                     notabs"
        );
        assert_eq!(at(40).lines().next().unwrap(), "  ✓ nginx:1.27         012345678… 1.2 s");
    }

    #[test]
    fn plain_lines_stand_below_one_another() {
        let line = |name, state| plain(&node(name, state, "x"), NAME);
        assert_eq!(line("web", State::Done), "pull    web          done   x (1.2 s)");
        assert_eq!(line("web", State::Failed), "pull    web          FAILED x");
        let wide = plain(&node("nginx:1.27-alpine", State::Kept, "x"), 17);
        assert_eq!(wide, "pull    nginx:1.27-alpine kept   x");
    }
}
