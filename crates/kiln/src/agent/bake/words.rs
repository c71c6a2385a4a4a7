//! A bake in words, while it goes on: one line for each stage that is under way.

use std::collections::BTreeMap;
use std::sync::Mutex;

use kiln_bake::Progress;

use crate::agent::lock as locked;
use crate::agent::session::Node;

/// The steps that one service's bake is at.
pub(super) struct Words<'a> {
    node: &'a Node<'a>,
    /// By the stage's place in the Dockerfile.
    running: Mutex<BTreeMap<usize, Step>>,
}

struct Step {
    number: usize,
    total: usize,
    /// The instruction, or what it wrote last.
    text: String,
}

impl<'a> Words<'a> {
    pub(super) fn new(node: &'a Node<'a>) -> Self {
        Self { node, running: Mutex::default() }
    }

    /// Takes in one moment.
    pub(super) fn tell(&self, progress: Progress) {
        let mut running = locked(&self.running);
        if take_in(&mut running, progress) {
            self.node.update(&lines(&running));
        }
    }
}

/// Whether anything is to be said.
fn take_in(running: &mut BTreeMap<usize, Step>, progress: Progress) -> bool {
    match progress {
        Progress::Step { stage, number, total, text, .. } => {
            running.insert(stage, Step { number, total, text });
            true
        }
        Progress::Output { number, bytes, .. } => {
            let text = String::from_utf8_lossy(&bytes);
            let line = text.lines().rev().find(|line| !line.trim().is_empty());
            let step = running.values_mut().find(|step| step.number == number);
            let (Some(line), Some(step)) = (line, step) else { return false };
            line.trim().clone_into(&mut step.text);
            true
        }
        Progress::StageDone { stage, .. } => {
            running.remove(&stage);
            !running.is_empty()
        }
        Progress::Notice { .. } | Progress::Cached { .. } | Progress::Done { .. } => false,
    }
}

fn lines(running: &BTreeMap<usize, Step>) -> String {
    let line = |step: &Step| format!("{}/{} {}", step.number, step.total, step.text);
    running.values().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_stage_under_way() {
        let mut running = BTreeMap::new();
        let step = |stage, number, text: &str| Progress::Step {
            service: "web".into(),
            stage,
            number,
            total: 9,
            text: text.into(),
            line: 1,
        };
        let output = |number, text: &str| Progress::Output {
            service: "web".into(),
            number,
            bytes: text.into(),
        };
        assert!(take_in(&mut running, step(0, 2, "RUN make")));
        assert!(take_in(&mut running, step(1, 6, "RUN npm ci")));
        assert_eq!(lines(&running), "2/9 RUN make\n6/9 RUN npm ci");
        assert!(take_in(&mut running, output(2, "cc a.c\n cc b.c \n\n")));
        assert!(!take_in(&mut running, output(6, "\n")));
        assert_eq!(lines(&running), "2/9 cc b.c\n6/9 RUN npm ci");
        assert!(take_in(&mut running, step(0, 3, "RUN make install")));
        assert!(take_in(&mut running, Progress::StageDone { service: "web".into(), stage: 1 }));
        assert_eq!(lines(&running), "3/9 RUN make install");
        assert!(!take_in(&mut running, Progress::StageDone { service: "web".into(), stage: 0 }));
    }
}
