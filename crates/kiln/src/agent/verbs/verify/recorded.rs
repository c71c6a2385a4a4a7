//! A bake whose steps were written down, and what was found of them put back in their places.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use kiln_bake::base::Lock;
use kiln_bake::verify::{StepReport, Subject, Verdict};
use kiln_bake::{Act, Progress, RecordedStep};
use kiln_core::compose::Project;
use kiln_core::{Digest, ImageId};

use super::{Found, Service, Subjects};
use crate::agent::bake::{self, Oven, VariedSteps};
use crate::agent::session::Session;
use crate::agent::{Agent, lock as locked};
use crate::report::Report;

/// Instructions of one service by number: text and line.
type Instructions = BTreeMap<usize, (String, usize)>;

/// What a bake did.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    pub(super) images: BTreeMap<String, ImageId>,
    /// Bases that were used.
    pub(super) bases: BTreeMap<String, ImageId>,
    /// By service.
    pub(super) instructions: BTreeMap<String, Instructions>,
    pub(super) steps: Vec<RecordedStep>,
}

impl Recorded {
    /// Bakes in the agent's own store; what is known is not run.
    pub(super) fn bake(
        agent: &Agent,
        session: &Session,
        project: &Project,
        lock: &Lock,
        only: &[String],
    ) -> Result<Self, Report> {
        let plain = kiln_bake::verify::Conditions::default();
        let runner = VariedSteps::new(agent, session.cancelled(), &plain);
        Self::bake_in(Oven::new(&agent.store, &runner), agent, session, project, lock, only)
    }

    /// Bakes in `oven`.
    pub(super) fn bake_in(
        oven: Oven<'_>,
        agent: &Agent,
        session: &Session,
        project: &Project,
        lock: &Lock,
        only: &[String],
    ) -> Result<Self, Report> {
        let recorded = Mutex::new(Self::default());
        let record = |step: RecordedStep| locked(&recorded).steps.push(step);
        let told = |progress: &Progress| {
            if let Progress::Step { service, number, text, line, .. } = progress {
                let mut recorded = locked(&recorded);
                let of_service = recorded.instructions.entry(service.clone()).or_default();
                of_service.insert(*number, (text.clone(), *line));
            }
        };
        let base = |name: &str, image: ImageId| {
            locked(&recorded).bases.insert(name.to_owned(), image);
        };
        let oven = Oven { record: Some(&record), told: Some(&told), base: Some(&base), ..oven };
        let bakes = bake::bakes_in(oven, agent, session, project, lock, only)?;
        let mut recorded = recorded.into_inner().unwrap_or_else(|poison| poison.into_inner());
        // A service that another one builds on is baked twice at once.
        recorded.steps.sort_by(|a, b| (&a.service, a.number).cmp(&(&b.service, b.number)));
        recorded.images = bakes.into_iter().map(|(name, bake)| (name, bake.image)).collect();
        Ok(recorded)
    }

    /// Every tree that something began from or led to.
    pub(super) fn trees(&self) -> BTreeSet<Digest> {
        let images = self.images.values().chain(self.bases.values()).map(|image| image.tree);
        let steps = self.steps.iter().flat_map(|step| [step.input, step.output]);
        images.chain(steps).collect()
    }

    /// What is to be verified.
    pub(super) fn subjects(&self, lock: &Lock) -> Subjects {
        let bases = self.bases.iter().filter_map(|(name, image)| {
            let locked = Box::new(lock.bases.get(name)?.clone());
            Some(Subject::Base { name: name.clone(), locked, image: *image })
        });
        bases.chain(self.steps.iter().cloned().map(Subject::Step)).collect()
    }

    /// Every instruction of every service with its report. An instruction that does nothing to the
    /// tree depends on its own text alone.
    pub(super) fn assemble(&self, subjects: &[Subject], reports: Vec<StepReport>) -> Found {
        let mut bases = BTreeMap::new();
        let mut found: BTreeMap<(&str, usize), StepReport> = BTreeMap::new();
        let mut files: BTreeMap<&str, &str> = BTreeMap::new();
        for (subject, report) in subjects.iter().zip(reports) {
            match subject {
                Subject::Base { name, .. } => {
                    bases.insert(name.clone(), report);
                }
                Subject::Step(step) => {
                    files.insert(&step.service, &step.file);
                    for number in numbers(step) {
                        found.insert((&step.service, number), report.clone());
                    }
                }
            }
        }
        let mut services = BTreeMap::new();
        let names = self.instructions.keys().chain(self.images.keys());
        for name in names {
            let none = Instructions::new();
            let instructions = self.instructions.get(name).unwrap_or(&none);
            let steps: Vec<StepReport> = instructions
                .iter()
                .map(|(number, (text, line))| {
                    let known = found.remove(&(name.as_str(), *number));
                    let file = files.get(name.as_str()).copied().unwrap_or_default().to_owned();
                    let step = known.unwrap_or_else(StepReport::same);
                    StepReport { number: *number, text: text.clone(), line: *line, file, ..step }
                })
                .collect();
            let Some(image) = self.images.get(name) else { continue };
            let verdict = steps.iter().map(|step| step.verdict).max().unwrap_or(Verdict::Same);
            let first = steps.iter().find(|step| step.verdict > Verdict::LeftBehind);
            let first = first.map(|step| step.number);
            services.entry(name.clone()).or_insert(Service {
                image: *image,
                verdict,
                first,
                steps,
            });
        }
        Found { bases, services }
    }
}

/// The numbers of the instructions that a recorded step stands for.
fn numbers(step: &RecordedStep) -> Vec<usize> {
    match &step.act {
        Act::Run(_) => vec![step.number],
        Act::Edits(edits) => edits.iter().map(|edit| edit.number).collect(),
    }
}
