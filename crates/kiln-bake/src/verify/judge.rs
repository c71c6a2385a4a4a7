//! Two runs and a record → a verdict.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_core::tree::Kind;
use kiln_core::{Digest, Tree, digest::Hasher};

use super::attempt::{Ended, Outcome};
use super::cause::{Cause, Finding};
use super::compare::{self, Side};
use super::report::{Difference, Failure, StepReport, Verdict};
use super::{Subject, Verifier, experiment, telling};
use crate::bake::{Act, RecordedStep};
use crate::edit::{Edit, EditError, Editor, Op, Origin};
use crate::error::BakeError;
use crate::mount::Mount;
use crate::paths;

/// Names of what is compared.
pub(super) const SIDES: [&str; 3] = ["the first run", "the second run", "the recorded result"];

/// The report of a subject whose runs, if it has any, have ended.
pub(super) fn judge(
    verifier: &Verifier<'_>,
    subject: &Subject,
    runs: Option<(&Ended, &Ended)>,
    memory: u64,
) -> Result<StepReport, BakeError> {
    let mut report = StepReport::same();
    match (subject, runs) {
        (Subject::Step(step), None) => {
            if let Act::Edits(edits) = &step.act {
                of_edits(verifier, step, edits, &mut report)?;
            }
        }
        (Subject::Base { .. }, None) => report.verdict = Verdict::NotRun,
        (_, Some(runs)) => {
            report.runs = vec![runs.0.run.clone(), runs.1.run.clone()];
            of_runs(verifier, subject, runs, memory, &mut report)?;
        }
    }
    Ok(report)
}

fn of_runs(
    verifier: &Verifier<'_>,
    subject: &Subject,
    runs: (&Ended, &Ended),
    memory: u64,
    report: &mut StepReport,
) -> Result<(), BakeError> {
    let trees = match (&runs.0.outcome, &runs.1.outcome) {
        (Outcome::Tree(first), Outcome::Tree(second)) => [*first, *second, subject.recorded()],
        (Outcome::Failed { .. }, _) | (_, Outcome::Failed { .. }) => {
            of_failure(subject, runs, report);
            return Ok(());
        }
    };
    report.difference = difference(verifier, trees, runs)?;
    if report.difference.is_none() {
        if let (Subject::Step(step), Outcome::Tree(tree)) = (subject, &runs.0.outcome) {
            report.notes = telling::notes(verifier.store, &step.input, tree, &runs.0.run)?;
            if has_cache(subject) {
                report.notes.push("it was run with empty caches".to_owned());
            }
        }
        return Ok(());
    }
    report.verdict = Verdict::Diverged;
    let recorded_differs = trees[0] == trees[1];
    if recorded_differs && has_cache(subject) {
        report.verdict = Verdict::Inputs;
        report.why = Some(
            "both runs began with empty caches and agree; the recorded result was made with what \
             a cache held"
                .to_owned(),
        );
        return Ok(());
    }
    if let Subject::Step(RecordedStep { act: Act::Run(command), .. }) = subject
        && command.network
        && experiment::needs_network(verifier, subject, memory)?
    {
        report.verdict = Verdict::Inputs;
        report.why = Some(
            "it has the network, and what it fetched differs or carries its own time: that is an \
             input that nothing pins"
                .to_owned(),
        );
        return Ok(());
    }
    if let Some(difference) = &mut report.difference {
        experiment::refine(verifier, subject, runs.0, difference, memory)?;
    }
    Ok(())
}

/// Whether the step has a cache mounted.
fn has_cache(subject: &Subject) -> bool {
    let Subject::Step(RecordedStep { act: Act::Run(command), .. }) = subject else { return false };
    command.mounts.iter().any(|mount| matches!(mount, Mount::Cache(_)))
}

/// The first pair that differs: the two runs, else the first run and what was recorded.
fn difference(
    verifier: &Verifier<'_>,
    digests: [Digest; 3],
    runs: (&Ended, &Ended),
) -> Result<Option<Difference>, BakeError> {
    let pair = if digests[0] != digests[1] {
        [0, 1]
    } else if digests[0] != digests[2] {
        [2, 0]
    } else {
        return Ok(None);
    };
    let store = verifier.store;
    let known = [Some(&runs.0.run), Some(&runs.1.run), None];
    let trees = pair.map(|at| store.get_tree(&digests[at]).map_err(BakeError::store));
    let [first, second] = trees;
    let (first, second) = (first?, second?);
    let side = |at: usize, tree| Side { name: SIDES[at], tree, store, run: known[at] };
    compare::compare([side(pair[0], &first), side(pair[1], &second)])
}

fn of_failure(subject: &Subject, runs: (&Ended, &Ended), report: &mut StepReport) {
    let failures = [&runs.0.outcome, &runs.1.outcome];
    let both = failures.iter().all(|outcome| matches!(outcome, Outcome::Failed { .. }));
    let found = failures.iter().enumerate().find_map(|(at, outcome)| match outcome {
        Outcome::Failed { how, output } => {
            Some(Failure { run: at + 1, how: how.clone(), output: output.clone() })
        }
        Outcome::Tree(_) => None,
    });
    report.failure = found;
    let network = matches!(
        subject,
        Subject::Step(RecordedStep { act: Act::Run(command), .. }) if command.network
    );
    (report.verdict, report.why) = match (network, both) {
        (true, _) => (
            Verdict::Inputs,
            Some("it has the network, and what it fetched once is not there now".to_owned()),
        ),
        (false, true) => (
            Verdict::Diverged,
            Some("it succeeded when it was baked and fails in both runs".to_owned()),
        ),
        (false, false) => {
            (Verdict::Diverged, Some("one run succeeded and the other failed".to_owned()))
        }
    };
}

/// COPY, ADD and WORKDIR are computed again, their sources read again.
fn of_edits(
    verifier: &Verifier<'_>,
    step: &RecordedStep,
    edits: &[Edit],
    report: &mut StepReport,
) -> Result<(), BakeError> {
    if let Some(changed) = edits.iter().find_map(changed_source) {
        report.verdict = Verdict::Inputs;
        report.why = Some(format!("{} is no longer what was baked", changed.display()));
        return Ok(());
    }
    let store = verifier.store;
    let before = store.get_tree(&step.input).map_err(BakeError::store)?;
    let mut editor = Editor::new((*before).clone());
    for edit in edits {
        match edit.apply(store, &mut editor) {
            Ok(()) => {}
            Err(EditError::Failed(error)) => return Err(error),
            Err(EditError::User(what)) => {
                report.verdict = Verdict::Diverged;
                report.why = Some(what);
                return Ok(());
            }
        }
    }
    let after: Arc<Tree> = Arc::new(editor.finish());
    let digest = store.keep_tree(Arc::clone(&after)).map_err(BakeError::store)?;
    if digest != step.output {
        let recorded = store.get_tree(&step.output).map_err(BakeError::store)?;
        let side = |name, tree| Side { name, tree, store, run: None };
        let found = compare::compare([side(SIDES[2], &recorded), side("a new one", &after)])?;
        report.verdict = Verdict::Diverged;
        report.difference = found.map(|mut found| {
            let evidence = "an edit of a tree depends on nothing but its sources";
            found.findings.fill(Finding::new(Cause::Kiln, evidence));
            found.settle();
            found
        });
    }
    Ok(())
}

/// A file of the context that has another content than when the snapshot was taken.
fn changed_source(edit: &Edit) -> Option<PathBuf> {
    let Op::Copy(copy) = &edit.op else { return None };
    copy.sources.iter().find_map(|source| {
        let Origin::Host(root, at) = &source.origin else { return None };
        source.entries.iter().find_map(|(relative, node)| {
            let Kind::File { digest, .. } = &node.kind else { return None };
            let path = paths::join(at, relative);
            let file = root.join(std::ffi::OsStr::from_bytes(&path));
            (hash(&file).ok().as_ref() != Some(digest)).then_some(file)
        })
    })
}

fn hash(path: &PathBuf) -> std::io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}
