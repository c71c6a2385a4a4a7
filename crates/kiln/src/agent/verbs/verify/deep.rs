//! `--deep`: everything is baked twice from nothing, bases too, each time in a store of its own, so
//! that nothing that the root has seen can matter. The second time under varied conditions.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use kiln_bake::RecordedStep;
use kiln_bake::base::Lock;
use kiln_bake::verify::{
    APART, Conditions, Run, StepReport, Subject, Verdict, available_cores, compare_trees,
    mark_left_behind, now,
};
use kiln_core::Digest;
use kiln_core::compose::Project;
use kiln_store::{Backing, Store};

use super::recorded::Recorded;
use super::{Answer, Asked, exit, failed, not_varied};
use crate::agent::Agent;
use crate::agent::bake::{Oven, VariedSteps};
use crate::agent::session::Session;
use crate::answers::verified::{BakedTwice, Steps, Varied, Verified};
use crate::report::{Because, Report};

/// One bake from nothing.
struct Bake {
    store: Store,
    run: Run,
    recorded: Recorded,
}

pub(super) fn deep(
    agent: &Arc<Agent>,
    session: &Session,
    project: &Project,
    lock: &Lock,
    asked: &Asked,
) -> Result<Answer, Report> {
    let began = Instant::now();
    let scratch = agent.store.scratch_dir().because(|| "making room for two stores".into())?;
    let cores = available_cores();
    let other = match agent.store.backing() {
        Backing::Composefs => Backing::Links,
        Backing::Links => Backing::Composefs,
    };
    let mut second = Conditions::varied(&cores, 0);
    (second.upper_in_memory, second.load) = (false, false);
    let mut bakes = Vec::new();
    for (name, conditions, backing) in
        [("first", Conditions::plain(&cores), agent.store.backing()), ("second", second, other)]
    {
        session.notice(format!("the {name} bake from nothing, images by {backing}"));
        if let Some(before) = bakes.last() {
            apart(session, before)?;
        }
        let dir = scratch.path().join(name);
        // A kernel that cannot do the other backing bakes in the same one.
        let store = match Store::open_with(&dir, Some(backing)) {
            Err(_) if backing == other => Store::open_with(&dir, Some(agent.store.backing())),
            store => store,
        };
        let store = store.because(|| format!("making the {name} store"))?;
        seed(&agent.store, &store, lock)?;
        let runner = VariedSteps::new(agent, session.cancelled(), &conditions);
        let started = now();
        let oven = Oven { keeps: false, ..Oven::new(&store, &runner) };
        let recorded = Recorded::bake_in(oven, agent, session, project, lock, &asked.services)?;
        let run = Run { conditions, began: started, ended: now() };
        bakes.push(Bake { store, run, recorded });
    }
    let [first, second] = &bakes[..] else {
        return Err(Report::failed("two bakes were begun and not ended"));
    };
    let subjects = first.recorded.subjects(lock);
    let mut reports = subjects
        .iter()
        .map(|subject| report(subject, [first, second]))
        .collect::<Result<Vec<_>, Report>>()?;
    let images: Vec<Digest> = first.recorded.images.values().map(|image| image.tree).collect();
    mark_left_behind(&first.store, &subjects, &images, &mut reports)
        .map_err(|error| failed(&error))?;
    let found = first.recorded.assemble(&subjects, reports);
    let equal = first.recorded.images == second.recorded.images;
    let verdict = if equal { found.verdict() } else { Verdict::Diverged };
    let steps = Steps {
        project: project.name.clone(),
        deep: true,
        verdict,
        conditions: Varied {
            first: first.run.conditions.clone(),
            second: second.run.conditions.clone(),
            not_varied: not_varied(&second.run.conditions),
        },
        images: Some(BakedTwice {
            first: first.recorded.images.clone(),
            second: second.recorded.images.clone(),
        }),
        bases: found.bases,
        services: found.services,
        ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    let answer = Answer::of(&Verified::Steps(Box::new(steps)));
    Ok(Answer { exit: exit(verdict, asked.strict), ..answer })
}

/// Waits until a time stamp of the next bake cannot be one of the bake before.
fn apart(session: &Session, before: &Bake) -> Result<(), Report> {
    let due = before.run.ended + u64::try_from(APART.as_millis()).unwrap_or(0);
    while now() < due {
        session.check()?;
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

/// Package files are inputs: what the lock names need not be asked of a mirror again.
fn seed(from: &Store, to: &Store, lock: &Lock) -> Result<(), Report> {
    let packages = lock.bases.values().flat_map(|base| &base.unpack);
    for package in packages.filter(|package| from.contains(&package.sha256)) {
        let path = from.object_path(&package.sha256);
        let file = fs::File::open(&path).because(|| format!("opening {}", path.display()))?;
        to.put_open_file(&file).because(|| format!("copying {}", package.label()))?;
    }
    Ok(())
}

/// What a step made of its input in the two bakes.
fn report(subject: &Subject, bakes: [&Bake; 2]) -> Result<StepReport, Report> {
    let mut report = StepReport::same();
    report.runs = bakes.map(|bake| bake.run.clone()).to_vec();
    let outputs: [Digest; 2] = match subject {
        Subject::Base { name, image, .. } => {
            let other = bakes[1].recorded.bases.get(name).map(|other| other.tree);
            [image.tree, other.unwrap_or(image.tree)]
        }
        Subject::Step(step) => match twin(step, &bakes[1].recorded.steps) {
            None => {
                report.verdict = Verdict::Diverged;
                report.why = Some("the second bake has no such step".to_owned());
                return Ok(report);
            }
            Some(other) if other.input != step.input => {
                report.verdict = Verdict::NotRun;
                report.why = Some("it began from two trees, for a step before it diverged".into());
                return Ok(report);
            }
            Some(other) => [step.output, other.output],
        },
    };
    if outputs[0] == outputs[1] {
        return Ok(report);
    }
    report.verdict = Verdict::Diverged;
    let tree = |at: usize| {
        let bake: &Bake = bakes[at];
        bake.store.get_tree(&outputs[at]).because(|| "reading what a step left".into())
    };
    let trees = [tree(0)?, tree(1)?];
    report.difference = compare_trees(
        ["the first bake", "the second bake"],
        [&trees[0], &trees[1]],
        [&bakes[0].store, &bakes[1].store],
        [Some(&bakes[0].run), Some(&bakes[1].run)],
    )
    .map_err(|error| failed(&error))?;
    Ok(report)
}

/// The same step of another bake.
fn twin<'a>(step: &RecordedStep, others: &'a [RecordedStep]) -> Option<&'a RecordedStep> {
    others.iter().find(|other| {
        (&other.service, other.number, &other.text) == (&step.service, step.number, &step.text)
    })
}
