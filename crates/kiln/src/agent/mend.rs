//! Stages that lack what they should have: after a reboot all of it, after a failure a part. What
//! could not be built up again is tried again, backed off, and shown until it is there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::provision::Patience;
use super::session::Session;
use super::stage::{Stage, StageId};
use super::{Agent, lock, serve};
use crate::answers;
use crate::deliver::{Published, Reason, converge};
use crate::report::Report;

/// How often stages are looked at.
const PULSE: Duration = Duration::from_millis(500);

/// Pauses before the second and the last try.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(60);

/// The stages that are not whole.
#[derive(Debug, Default)]
pub(crate) struct Troubles(Mutex<BTreeMap<StageId, Trouble>>);

/// One that is not.
#[derive(Debug, Clone, Default)]
struct Trouble {
    /// A try is under way.
    busy: bool,
    /// Tries that failed.
    tries: u32,
    /// Why the last one did.
    why: String,
    /// When the next one begins.
    next: Option<Instant>,
}

impl Troubles {
    /// What `status` shows of a stage that could not be built up again so far.
    pub(crate) fn of(&self, id: &StageId) -> Option<answers::Trouble> {
        let trouble = lock(&self.0).get(id).filter(|trouble| trouble.tries > 0).cloned()?;
        let left = trouble.next.map(|next| next.saturating_duration_since(Instant::now()));
        let again_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        Some(answers::Trouble { why: trouble.why, tries: trouble.tries, again_ms })
    }

    /// Whether a try may begin now; from then on it is under way.
    fn begin(&self, id: &StageId) -> bool {
        let mut all = lock(&self.0);
        let trouble = all.entry(id.clone()).or_default();
        let due = trouble.next.is_none_or(|next| next <= Instant::now());
        due && !std::mem::replace(&mut trouble.busy, true)
    }

    fn end(&self, id: &StageId, result: Result<(), Report>) {
        let mut all = lock(&self.0);
        let Err(report) = result else {
            all.remove(id);
            return;
        };
        let trouble = all.entry(id.clone()).or_default();
        trouble.busy = false;
        trouble.next = Some(Instant::now() + pause(trouble.tries));
        trouble.tries = trouble.tries.saturating_add(1);
        trouble.why = report.line();
    }

    /// The try that has begun. One that meets a bug has failed as others do: it is tried again.
    fn attempt(
        &self,
        id: &StageId,
        work: impl FnOnce() -> Result<(), Report>,
    ) -> Result<(), Report> {
        let result = serve::guarded(work);
        self.end(id, result.clone());
        result
    }

    /// Somebody else has made it whole, or does so just now.
    fn put_off(&self, id: &StageId) {
        if let Some(trouble) = lock(&self.0).get_mut(id) {
            trouble.busy = false;
        }
    }

    fn forget(&self, id: &StageId) {
        let mut all = lock(&self.0);
        if all.get(id).is_some_and(|trouble| !trouble.busy) {
            all.remove(id);
        }
    }
}

/// What this is called where others wait for it.
const OWN: &str = "the agent's building up again of what is missing";

/// How long after so many failures the next try begins.
fn pause(failures: u32) -> Duration {
    FIRST.saturating_mul(2_u32.saturating_pow(failures.min(16))).min(LAST)
}

/// Looks after all stages from now on.
pub(crate) fn keep_whole(agent: &Arc<Agent>) {
    let agent = Arc::clone(agent);
    std::thread::spawn(move || {
        while !agent.leaving() {
            for stage in agent.stages() {
                match lacks(&stage) {
                    true => mend(&agent, &stage),
                    false => agent.troubles.forget(&stage.id),
                }
            }
            std::thread::sleep(PULSE);
        }
    });
}

/// Whether the release that serves has services without an instance. After a reboot these are all.
fn lacks(stage: &Stage) -> bool {
    let state = stage.state();
    let whole = || state.missing().is_some_and(|(_, missing)| missing.is_empty());
    state.pointer.active.is_some() && !whole()
}

/// Starts what the active release lacks, behind everybody's back, unless that was tried just now.
pub(super) fn mend(agent: &Arc<Agent>, stage: &Arc<Stage>) {
    if agent.leaving() || !lacks(stage) || !agent.troubles.begin(&stage.id) {
        return;
    }
    let (agent, stage) = (Arc::clone(agent), Arc::clone(stage));
    agent.clone().background(move || {
        // Who delivers just now makes it whole, or leaves it as it is.
        let Some(_turn) = stage.try_turn(OWN) else {
            return agent.troubles.put_off(&stage.id);
        };
        if !lacks(&stage) {
            return agent.troubles.put_off(&stage.id);
        }
        let result = agent.troubles.attempt(&stage.id, || build_up(&agent, &stage));
        if let Err(report) = result {
            agent.log(&format!("{}: building up again: {report}", stage.id));
        }
    });
}

fn build_up(agent: &Arc<Agent>, stage: &Arc<Stage>) -> Result<(), Report> {
    agent.ledger_is_whole("nothing is started")?;
    let Some(active) = stage.state().pointer.active else { return Ok(()) };
    let target = Published::of(active, agent.release_in(&stage.id, &active)?);
    let (session, patience) = (Session::own(), Patience { limit: None });
    converge(agent, &session, stage, &target, Reason::Restore, patience)?;
    if lacks(stage) {
        return Err(Report::failed("nothing was left to do, and yet services are missing"));
    }
    agent.log(&format!("{}: {} serves again", stage.id, active.short()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_try_that_meets_a_bug_is_over_and_shown() {
        let troubles = Troubles::default();
        let id = StageId { project: "p".into(), stage: "dev".into() };
        assert!(troubles.begin(&id));
        assert!(troubles.attempt(&id, || panic!("seven")).is_err());
        assert!(troubles.of(&id).unwrap().why.contains("seven"));
        lock(&troubles.0).get_mut(&id).unwrap().next = Some(Instant::now());
        assert!(troubles.begin(&id), "and tried again");
    }

    #[test]
    fn tries_back_off_and_are_shown_until_one_works() {
        let troubles = Troubles::default();
        let id = StageId { project: "p".into(), stage: "dev".into() };
        assert!(troubles.begin(&id), "the first one comes at once");
        assert!(!troubles.begin(&id), "and only once");
        assert!(troubles.of(&id).is_none(), "nothing has failed so far");
        troubles.end(&id, Err(Report::failed("the port is taken")));
        let shown = troubles.of(&id).unwrap();
        assert_eq!((shown.why.as_str(), shown.tries), ("the port is taken", 1));
        assert!(!troubles.begin(&id), "not yet");
        lock(&troubles.0).get_mut(&id).unwrap().next = Some(Instant::now());
        assert!(troubles.begin(&id));
        troubles.forget(&id);
        assert!(troubles.of(&id).is_some(), "it is under way");
        troubles.end(&id, Ok(()));
        assert!(troubles.of(&id).is_none());
        let pauses: Vec<u64> = (0..8).map(|failures| pause(failures).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause(u32::MAX), LAST);
    }
}
