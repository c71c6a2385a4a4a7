//! Which condition makes the difference: a step that diverged runs again under one at a time. What
//! a run shows is worth more than what bytes look like.

use std::collections::BTreeSet;

use kiln_core::Tree;
use kiln_core::tree::Path;
use kiln_core::tree_diff;

use super::attempt::{Attempt, Ended, Outcome};
use super::cause::{Cause, Finding};
use super::conditions::{Condition, Conditions};
use super::report::Difference;
use super::{Subject, Verifier, second};
use crate::bake::{Act, RecordedStep};
use crate::error::BakeError;
use crate::paths;

/// A step that takes longer, in milliseconds, is not run again and again.
const LONGEST: u64 = 20_000;

/// Finds for each path the condition that makes the difference, and lets it correct the cause.
pub(super) fn refine(
    verifier: &Verifier<'_>,
    subject: &Subject,
    first: &Ended,
    difference: &mut Difference,
    memory: u64,
) -> Result<(), BakeError> {
    let Some(attempt) = Attempt::of(verifier, subject, memory) else { return Ok(()) };
    let Outcome::Tree(tree) = &first.outcome else { return Ok(()) };
    if first.run.ended - first.run.began > LONGEST
        || difference.between[1] != super::judge::SIDES[1]
    {
        return Ok(());
    }
    let store = verifier.store;
    let base = store.get_tree(tree).map_err(BakeError::store)?;
    let plain = &first.run.conditions;
    let varied = Conditions::varied(&verifier.cores, 0);
    let found = |which: Condition| -> Result<Shown, BakeError> {
        let ended = attempt.run(varied.only(which, plain))?;
        let Outcome::Tree(other) = &ended.outcome else { return Ok(Shown::All) };
        let other = store.get_tree(other).map_err(BakeError::store)?;
        let paths = tree_diff::diff(&base, &other).map(|one| one.path.to_vec());
        Ok(Shown::Paths(paths.collect()))
    };
    let mut open: Vec<usize> = (0..difference.findings.len()).collect();
    for which in [Condition::Nothing].into_iter().chain(Condition::ALL) {
        if open.is_empty() {
            break;
        }
        if which != Condition::Nothing && varied.only(which, plain) == *plain {
            continue;
        }
        let shown = found(which)?;
        open.retain(|at| {
            if !shown.explains(&base, &difference.all[*at]) {
                return true;
            }
            if *at == 0 {
                difference.condition = Some(which);
            }
            correct(&mut difference.findings[*at], which);
            false
        });
    }
    for at in open {
        let finding = &mut difference.findings[at];
        if matches!(finding.cause, Cause::Unknown | Cause::Order | Cause::DirectoryOrder) {
            let evidence =
                "no condition alone makes the difference, and the same ones did not again";
            *finding = Finding::new(Cause::Race, evidence);
        }
    }
    second::refine(verifier, &attempt, first, &base, difference)?;
    difference.settle();
    Ok(())
}

/// What differed in a further run.
enum Shown {
    /// It failed.
    All,
    /// These paths.
    Paths(BTreeSet<Path>),
}

impl Shown {
    /// Whether it shows why `path` differs. A name that each run makes anew is none of the first
    /// run's: another one beside it stands for it.
    fn explains(&self, base: &Tree, path: &Path) -> bool {
        let Self::Paths(paths) = self else { return true };
        let fresh = |path: &Path| base.get(path).is_none();
        paths.contains(path)
            || fresh(path)
                && paths
                    .iter()
                    .any(|other| fresh(other) && paths::parent(other) == paths::parent(path))
    }
}

/// What a run has shown is worth more than what the bytes look like: a guess that it refutes goes.
fn correct(finding: &mut Finding, which: Condition) {
    if matches!(finding.cause, Cause::Log | Cause::Cache | Cause::Key) {
        return;
    }
    let of_order = matches!(finding.cause, Cause::Order | Cause::DirectoryOrder);
    let (cause, words) = match which {
        Condition::Nothing => return by_itself(finding),
        Condition::Lower if of_order => {
            (Cause::DirectoryOrder, "it differs when only the way the tree is mounted does")
        }
        Condition::Lower => (
            Cause::FileSystem,
            "it differs when only the way the tree is mounted does: the order of names in a \
             folder, its size, inode numbers, or the time of a last change (ctime)",
        ),
        Condition::Upper if of_order => (
            Cause::DirectoryOrder,
            "it differs when only the file system differs that it writes to",
        ),
        Condition::Upper => (
            Cause::FileSystem,
            "it differs when only the file system differs that it writes to: the order of names \
             in a folder, its size, inode numbers, or the room that is left",
        ),
        Condition::Cores => (Cause::Cores, "it differs when only the number of processors does"),
        Condition::Pids => (Cause::Pid, "it differs when only process ids do"),
        Condition::Uptime => (Cause::Time, "it differs when only the clocks since boot do"),
        Condition::Machine => {
            (Cause::Machine, "it differs when only the machine does that /proc tells of")
        }
        Condition::Load => (Cause::Race, "it differs when only the load of the machine does"),
    };
    let evidence = match finding.cause == cause || of_order && cause == Cause::DirectoryOrder {
        true => format!("{}; {words}", finding.evidence),
        false => words.to_owned(),
    };
    *finding = Finding::new(cause, evidence);
}

/// It differs although nothing was varied: what names a varied condition was mistaken.
fn by_itself(finding: &mut Finding) {
    const WORDS: &str = "it differs with nothing varied";
    *finding = match finding.cause {
        Cause::DirectoryOrder => Finding::new(Cause::Order, format!("another order; {WORDS}")),
        Cause::Cores | Cause::Pid => Finding::new(Cause::Random, format!("numbers; {WORDS}")),
        Cause::FileSystem | Cause::Machine | Cause::Locale => Finding::new(Cause::Unknown, WORDS),
        _ => return,
    };
}

/// Whether a step that has the network fails without it: then what differs came from there.
pub(super) fn needs_network(
    verifier: &Verifier<'_>,
    subject: &Subject,
    memory: u64,
) -> Result<bool, BakeError> {
    let Subject::Step(step) = subject else { return Ok(false) };
    let Act::Run(command) = &step.act else { return Ok(false) };
    let mut offline = command.clone();
    offline.network = false;
    let subject = Subject::Step(RecordedStep { act: Act::Run(offline), ..step.clone() });
    let Some(attempt) = Attempt::of(verifier, &subject, memory) else { return Ok(false) };
    let ended = attempt.run(Conditions::plain(&verifier.cores))?;
    Ok(matches!(ended.outcome, Outcome::Failed { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_shows_replaces_a_guess() {
        for (guess, which, cause, kept) in [
            (Cause::Random, Condition::Pids, Cause::Pid, false),
            (Cause::Random, Condition::Lower, Cause::FileSystem, false),
            (Cause::Unknown, Condition::Upper, Cause::FileSystem, false),
            (Cause::Order, Condition::Lower, Cause::DirectoryOrder, true),
            (Cause::DirectoryOrder, Condition::Upper, Cause::DirectoryOrder, true),
            (Cause::Cores, Condition::Cores, Cause::Cores, true),
            (Cause::Cores, Condition::Nothing, Cause::Random, false),
            (Cause::DirectoryOrder, Condition::Nothing, Cause::Order, false),
            (Cause::Time, Condition::Nothing, Cause::Time, true),
            (Cause::Log, Condition::Lower, Cause::Log, true),
            (Cause::Random, Condition::Machine, Cause::Machine, false),
        ] {
            let mut finding = Finding::new(guess, "the guess");
            correct(&mut finding, which);
            assert_eq!(finding.cause, cause, "{guess:?} {which:?}");
            assert_eq!(finding.evidence.contains("the guess"), kept, "{guess:?} {which:?}");
        }
    }
}
