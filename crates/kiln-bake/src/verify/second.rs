//! Whether what looks random follows the clock: a digest over a date looks like any other digest.
//! No run can be given another time of day, but two can be given the same second.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kiln_core::Tree;
use kiln_core::tree::Path;
use kiln_core::tree_diff;

use super::Verifier;
use super::attempt::{Attempt, Ended, Outcome};
use super::cause::{Cause, Finding};
use super::conditions::Conditions;
use super::recognise::now;
use super::report::Difference;
use crate::error::BakeError;
use crate::paths;

/// A step that takes longer, in milliseconds, meets its clock at another second each time.
const LONGEST: u64 = 5_000;
/// Pairs of runs that have to agree: one pair may agree by chance.
const AGREE: usize = 2;
/// Pairs that are tried: on a busy machine the two of one do not always meet the same second.
const PAIRS: usize = 4;

/// Runs the step in pairs, both of a pair at the beginning of the same second. A path on which such
/// pairs agree, and the runs before did not, follows the clock.
pub(super) fn refine(
    verifier: &Verifier<'_>,
    attempt: &Attempt<'_, '_>,
    first: &Ended,
    base: &Tree,
    difference: &mut Difference,
) -> Result<(), BakeError> {
    let looks_random = |finding: &Finding| matches!(finding.cause, Cause::Random | Cause::Unknown);
    let mut open: Vec<usize> = (0..difference.findings.len())
        .filter(|at| looks_random(&difference.findings[*at]))
        .collect();
    if open.is_empty() || first.run.ended - first.run.began > LONGEST {
        return Ok(());
    }
    let mut agreed = vec![0; difference.findings.len()];
    let mut certain = false;
    for tried in 0..PAIRS {
        // What has never agreed by then will not.
        if tried == AGREE && certain {
            open.retain(|at| agreed[*at] > 0 || tell_apart(&mut difference.findings[*at]));
        }
        if open.is_empty() {
            break;
        }
        let Some(pair) = Pair::run(verifier, attempt, &first.run.conditions)? else {
            return Ok(());
        };
        certain |= pair.certain;
        open.iter().filter(|at| pair.agrees(base, &difference.all[**at])).for_each(|at| {
            agreed[*at] += 1;
        });
        open.retain(|at| {
            let follows = agreed[*at] == AGREE;
            if follows {
                let evidence = "two runs in the same second agree, again and again, and runs at other \
                                times do not: it is the time, or a digest or seed made of it";
                difference.findings[*at] = Finding::new(Cause::Time, evidence);
            }
            !follows
        });
    }
    Ok(())
}

/// Says that it is not the second. False: there is no more to find out.
fn tell_apart(finding: &mut Finding) -> bool {
    finding.evidence.push_str("; two runs in the same second differ as well");
    false
}

/// Two runs that began together with a second.
struct Pair {
    /// What the first of them made.
    one: Arc<Tree>,
    /// The paths on which they differ.
    differ: BTreeSet<Path>,
    /// Both were over before that second was.
    certain: bool,
}

impl Pair {
    /// Whether they agree on `path`, which the run before, `base`, has or not. Where a step makes a
    /// new name each time, neither has its name: those beside it that `base` lacks stand for it.
    fn agrees(&self, base: &Tree, path: &Path) -> bool {
        if base.get(path).is_some() && self.one.get(path).is_some() {
            return !self.differ.contains(path);
        }
        let dir = paths::parent(path);
        let is_fresh = |other: &Path| paths::parent(other) == dir && base.get(other).is_none();
        let made = self.one.children(dir).any(|(other, _)| is_fresh(&other.to_vec()));
        made && !self.differ.iter().any(is_fresh)
    }

    /// Nothing, if one of them failed.
    fn run(
        verifier: &Verifier<'_>,
        attempt: &Attempt<'_, '_>,
        conditions: &Conditions,
    ) -> Result<Option<Self>, BakeError> {
        verifier.wait_until(Instant::now() + Duration::from_millis(1000 - now() % 1000))?;
        let run = || attempt.run(conditions.clone());
        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(run);
            (run(), other.join())
        });
        let Ok(other) = other else { return Ok(None) };
        let (one, other) = (one?, other?);
        let times = [one.run.began, one.run.ended, other.run.began, other.run.ended];
        let certain = times.iter().all(|time| time / 1000 == times[0] / 1000);
        let (Outcome::Tree(one), Outcome::Tree(other)) = (one.outcome, other.outcome) else {
            return Ok(None);
        };
        let tree = |digest| verifier.store.get_tree(&digest).map_err(BakeError::store);
        let (one, other) = (tree(one)?, tree(other)?);
        let differ = tree_diff::diff(&one, &other).map(|it| it.path.to_vec()).collect();
        Ok(Some(Self { one, differ, certain }))
    }
}
