//! One run of one step, and how it ended.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kiln_core::tree::Kind;
use kiln_core::{Digest, Tree};

use super::conditions::{Conditions, Run, Varied};
use super::recognise::now;
use super::{Subject, Verifier};
use crate::bake::{Act, RecordedStep};
use crate::base;
use crate::error::BakeError;
use crate::mount::Caches;
use crate::step::{Command, Tail};

/// A step that can be run, any number of times.
pub(super) struct Attempt<'a, 'v> {
    verifier: &'a Verifier<'v>,
    what: What<'a>,
    /// Bytes that a layer in memory may have.
    memory: u64,
}

enum What<'a> {
    Command { command: &'a Command, input: Digest, output: Digest },
    Base { name: &'a str, locked: &'a base::LockedBase },
}

/// A run that has ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) run: Run,
    pub(super) outcome: Outcome,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// It left this tree.
    Tree(Digest),
    /// It failed.
    Failed {
        /// How, in words.
        how: String,
        /// Its last lines.
        output: Vec<String>,
    },
}

impl<'a, 'v> Attempt<'a, 'v> {
    /// `None` for what runs nothing.
    pub(super) fn of(
        verifier: &'a Verifier<'v>,
        subject: &'a Subject,
        memory: u64,
    ) -> Option<Self> {
        let what = match subject {
            Subject::Base { name, locked, .. } => What::Base { name, locked },
            Subject::Step(RecordedStep { act: Act::Run(command), input, output, .. }) => {
                What::Command { command, input: *input, output: *output }
            }
            Subject::Step(_) => return None,
        };
        Some(Self { verifier, what, memory })
    }

    /// [`Attempt::run`] with what it leaves in memory if that is likely to fit, and again on disk
    /// if it failed: it may not have fitted.
    pub(super) fn run_varied(&self, mut conditions: Conditions) -> Result<Ended, BakeError> {
        conditions.upper_in_memory &= self.fits()?;
        let ended = self.run(conditions.clone())?;
        if !conditions.upper_in_memory || matches!(ended.outcome, Outcome::Tree(_)) {
            return Ok(ended);
        }
        let again = self.run(Conditions { upper_in_memory: false, ..conditions })?;
        Ok(if matches!(again.outcome, Outcome::Tree(_)) { again } else { ended })
    }

    /// Runs the step.
    pub(super) fn run(&self, conditions: Conditions) -> Result<Ended, BakeError> {
        let verifier = self.verifier;
        verifier.check()?;
        let began = now();
        let outcome = {
            let varied =
                Varied::new(verifier.store, verifier.sandboxes, conditions.clone(), self.memory);
            self.carry_out(&varied)?
        };
        verifier.check()?;
        Ok(Ended { run: Run { conditions, began, ended: now() }, outcome })
    }

    fn carry_out(&self, runner: &Varied<'_>) -> Result<Outcome, BakeError> {
        let store = self.verifier.store;
        match &self.what {
            What::Command { command, input, .. } => {
                let mut tail = Tail::default();
                let stop = Arc::new(AtomicBool::new(false));
                let mut output = |bytes: &[u8]| tail.push(bytes);
                // What a cache holds is no input, and a run must not find what another one left.
                let command = Command { caches: Caches::Empty, ..(*command).clone() };
                Ok(match command.run(store, runner, input, &stop, &mut output)? {
                    Ok(tree) => Outcome::Tree(tree),
                    Err(exit) => Outcome::Failed {
                        how: match exit.signal {
                            Some(signal) => format!("signal {signal}"),
                            None => format!("exit status {}", exit.code),
                        },
                        output: tail.finish(),
                    },
                })
            }
            What::Base { name, locked } => {
                let progress = |_: &base::Progress| {};
                let watch = base::Watch { progress: &progress, cancel: self.verifier.cancel };
                Ok(match base::rebake_base(store, name, locked, runner, watch) {
                    Ok(image) => Outcome::Tree(image.tree),
                    Err(error) => Outcome::Failed { how: error.to_string(), output: Vec::new() },
                })
            }
        }
    }

    /// Whether what the step is known to leave takes no more than half of the memory. What it
    /// removes again is not known.
    fn fits(&self) -> Result<bool, BakeError> {
        let What::Command { input, output, .. } = &self.what else { return Ok(true) };
        let store = self.verifier.store;
        let before = store.get_tree(input).map_err(BakeError::store)?;
        let after = store.get_tree(output).map_err(BakeError::store)?;
        Ok(grown(&before, &after) < self.memory / 2)
    }
}

/// Bytes of what is new or changed.
fn grown(before: &Tree, after: &Tree) -> u64 {
    let fresh = after.entries.iter().filter(|(path, node)| {
        matches!(node.kind, Kind::File { .. }) && before.get(path) != Some(*node)
    });
    fresh.map(|(_, node)| node.size()).sum()
}
