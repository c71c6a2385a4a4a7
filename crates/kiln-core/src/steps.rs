//! A plan as the list of steps that carry it out, each with its reason; and the way back from
//! wherever that stopped.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::plan::Plan;
use crate::stage::{Member, Share, Stage};

/// One thing that a delivery does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What.
    #[serde(flatten)]
    pub act: Act,
    /// Why, in words, for people and the ledger.
    pub why: String,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "act")]
pub enum Act {
    /// The candidate's slot is filled beside what serves: services are started, each after those it
    /// waits for, and awaited until they are ready. What the release names reaches the disk.
    Provision {
        /// The services.
        services: Vec<String>,
    },
    /// New requests wait from now on, and those under way at these instances end.
    Hold {
        /// Instances that will be stopped.
        instances: Vec<String>,
    },
    /// Instances are stopped.
    Stop {
        /// Which.
        instances: Vec<String>,
    },
    /// Services are started in the slot of a release, and awaited until they are ready.
    Start {
        /// The release.
        release: Digest,
        /// The services.
        services: Vec<String>,
    },
    /// Traffic moves, for all services at once, and nobody waits any more.
    Weigh {
        /// Where it goes from now on.
        traffic: Vec<Share>,
    },
    /// Traffic goes back to where it was.
    TakeBack {
        /// It waits there: what answers it has to be started again.
        hold: bool,
    },
    /// The pointer moves: what is so is recorded.
    Commit,
    /// The candidate's slot is closed; a slot that was there before is what it was.
    Close,
    /// What nobody needs any more is drained and stopped.
    Drain,
}

impl Plan {
    /// The steps that bring `target` in.
    pub fn steps(&self, target: Digest) -> Vec<Step> {
        let step = |act, why: &str| Step { act, why: why.to_owned() };
        let start = |services| Act::Start { release: target, services };
        let mut steps = Vec::new();
        let provision = Act::Provision { services: self.beside.clone() };
        steps.push(step(provision, "new or changed, and nothing that it writes is in use"));
        if self.needs_pause() {
            let instances = self.stop_first.clone();
            let hold = Act::Hold { instances: instances.clone() };
            steps.push(step(hold, "data is never written by two: requests wait meanwhile"));
            if !instances.is_empty() {
                let stop = Act::Stop { instances };
                steps.push(step(stop, "they hold the data, or depend on what does"));
            }
            let why: Vec<String> =
                self.paused.iter().map(|it| format!("{}: {}", it.service, it.why)).collect();
            let services = self.paused.iter().map(|paused| paused.service.clone()).collect();
            steps.push(step(start(services), &why.join("; ")));
        }
        let traffic = vec![Share::all(target)];
        steps.push(step(Act::Weigh { traffic }, "all of it is ready"));
        if !self.stop_workers.is_empty() {
            let stop = Act::Stop { instances: self.stop_workers.clone() };
            steps.push(step(stop, "a worker never runs twice"));
        }
        if !self.workers.is_empty() {
            steps.push(step(start(self.workers.clone()), "workers follow the switch"));
        }
        steps.push(step(Act::Commit, "it serves"));
        steps.push(step(Act::Drain, "nobody needs them any more"));
        steps
    }
}

/// The steps from what is there back to what was before the candidate under way; none if there is
/// none.
pub fn way_back<M: Member>(stage: &Stage<M>) -> Vec<Step> {
    let step = |act, why: &str| Step { act, why: why.to_owned() };
    let mut steps = Vec::new();
    let Some(before) = stage.before() else { return steps };
    if stage.is_switched() {
        let hold = before.missing.as_ref().is_some_and(|(_, missing)| !missing.is_empty());
        steps.push(step(Act::TakeBack { hold }, "what it was moved to does not stay"));
    }
    if !before.leftovers.is_empty() {
        let stop = Act::Stop { instances: before.leftovers };
        steps.push(step(stop, "the candidate's own"));
    }
    steps.push(step(Act::Close, "the slot is again what it was"));
    if let Some((release, services)) = before.missing.filter(|(_, missing)| !missing.is_empty()) {
        steps.push(step(Act::Start { release, services }, "stopped for the candidate"));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Paused;

    fn words(steps: &[Step]) -> String {
        let word = |step: &Step| {
            assert!(!step.why.is_empty(), "{step:?}");
            match &step.act {
                Act::Provision { services } => format!("provision {}", services.join("+")),
                Act::Hold { instances } => format!("hold {}", instances.join("+")),
                Act::Stop { instances } => format!("stop {}", instances.join("+")),
                Act::Start { services, .. } => format!("start {}", services.join("+")),
                Act::Weigh { traffic } => format!("weigh {}", traffic[0].percent),
                Act::TakeBack { hold } => format!("take back {hold}"),
                Act::Commit => "commit".into(),
                Act::Close => "close".into(),
                Act::Drain => "drain".into(),
            }
        };
        steps.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn data_is_replaced_under_a_pause_and_workers_follow_the_switch() {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let target = Digest::of("target");
        let mut plan = Plan { beside: list("web"), ..Plan::default() };
        assert_eq!(words(&plan.steps(target)), "provision web, weigh 100, commit, drain");
        plan.paused = vec![Paused { service: "db".into(), why: "it writes".into() }];
        plan.stop_first = list("api-old db-old");
        plan.workers = list("w");
        plan.stop_workers = list("w-old");
        assert_eq!(
            words(&plan.steps(target)),
            "provision web, hold api-old+db-old, stop api-old+db-old, start db, weigh 100, \
             stop w-old, start w, commit, drain"
        );
        let text = serde_json::to_value(&plan.steps(target)[1]).unwrap();
        assert_eq!((&text["act"], &text["instances"][1]), (&"hold".into(), &"db-old".into()));
    }
}
