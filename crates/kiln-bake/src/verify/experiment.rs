//! Which condition makes the difference: a step that diverged runs again under one at a time. What
//! a run shows is worth more than what bytes look like.

use super::attempt::{Attempt, Ended, Outcome};
use super::cause::{Cause, Finding};
use super::conditions::{Condition, Conditions};
use super::report::{Difference, Value};
use super::{Subject, Verifier};
use crate::bake::{Act, RecordedStep};
use crate::error::BakeError;

/// A step that takes longer, in milliseconds, is not run again and again.
const LONGEST: u64 = 20_000;

/// Finds the condition that makes the difference, and lets it correct the cause.
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
    let plain = &first.run.conditions;
    let varied = Conditions::varied(&verifier.cores, 0);
    let differs = |which: Condition| -> Result<bool, BakeError> {
        let ended = attempt.run(varied.only(which, plain))?;
        Ok(!matches!(&ended.outcome, Outcome::Tree(other) if other == tree))
    };
    if differs(Condition::Nothing)? {
        difference.condition = Some(Condition::Nothing);
        by_itself(difference);
        return Ok(());
    }
    for which in Condition::ALL {
        if varied.only(which, plain) != *plain && differs(which)? {
            difference.condition = Some(which);
            by_condition(difference, which);
            return Ok(());
        }
    }
    if matches!(difference.first.cause(), Cause::Unknown | Cause::Order | Cause::DirectoryOrder) {
        let evidence = "no condition alone makes the difference, and the same ones did not again";
        difference.first.set(Finding::new(Cause::Race, evidence));
    }
    Ok(())
}

/// It differs although nothing was varied: what names a varied condition was mistaken.
fn by_itself(difference: &mut Difference) {
    let finding = &difference.first.finding;
    let other = match finding.cause {
        Cause::Cores | Cause::Pid => Cause::Random,
        Cause::DirectoryOrder => Cause::Order,
        _ => return,
    };
    let evidence = format!("{}; it differs with nothing varied", finding.evidence);
    difference.first.set(Finding::new(other, evidence));
}

fn by_condition(difference: &mut Difference, which: Condition) {
    let (cause, words) = match which {
        Condition::Lower => (
            Cause::DirectoryOrder,
            "it differs when only the way the tree is mounted does: the order of names in a \
             folder, its size, or inode numbers",
        ),
        Condition::Upper => (
            Cause::DirectoryOrder,
            "it differs when only the file system differs that it writes to: the order of names \
             in a folder",
        ),
        Condition::Cores => (Cause::Cores, "it differs when only the number of processors does"),
        Condition::Pids => (Cause::Pid, "it differs when only process ids do"),
        Condition::Uptime => (Cause::Time, "it differs when only the clocks since boot do"),
        Condition::Load => (Cause::Race, "it differs when only the load of the machine does"),
        Condition::Nothing => return,
    };
    let (cause, words) = match which {
        Condition::Lower if counts(difference) => (
            Cause::FileSystem,
            "it differs when only the way the tree is mounted does, in a number",
        ),
        _ => (cause, words),
    };
    let finding = &difference.first.finding;
    if finding.cause == cause || matches!(finding.cause, Cause::Log | Cause::Cache | Cause::Key) {
        return;
    }
    let evidence = match finding.cause {
        Cause::Unknown => words.to_owned(),
        _ => format!("{}; {words}", finding.evidence),
    };
    difference.first.set(Finding::new(cause, evidence));
}

/// Whether two numbers differ whose origin is not known.
fn counts(difference: &Difference) -> bool {
    let first = &difference.first;
    let at = |value: &Value| {
        let at = first.offset?.checked_sub(value.at?)?;
        value.text.as_bytes().get(usize::try_from(at).ok()?).map(u8::is_ascii_digit)
    };
    let open = matches!(first.cause(), Cause::Unknown | Cause::Random);
    open && [&first.first, &first.second].map(at) == [Some(true); 2]
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
