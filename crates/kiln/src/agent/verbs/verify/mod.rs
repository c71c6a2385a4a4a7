//! `kiln verify`: the proof that the same source gives the same bits.
//!
//! | module | noun |
//! |---|---|
//! | [`recorded`] | a bake whose steps were written down |
//! | [`against`] | an image that was baked elsewhere |
//! | [`deep`] | everything baked twice from nothing |

mod against;
mod deep;
mod recorded;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kiln_bake::verify::{
    Conditions, NOT_VARIED, StepReport, Subject, Verdict, Verifier, available_cores,
    mark_left_behind,
};
use kiln_bake::{BakeError, StepRunner};
use kiln_core::Digest;
use kiln_core::compose::Project;
use kiln_core::exit::Exit;

use self::recorded::Recorded;
use super::{Answer, carrier, load_and_tell};
use crate::agent::Agent;
use crate::agent::bake::{self, VariedSteps};
use crate::agent::session::Session;
use crate::answers::verified::{AgainstImage, Service, Steps, Varied, Verified};
use crate::protocol::ProjectArgs;
use crate::report::{Because, Report};
use crate::words::count_of;

/// What the user asks for.
#[derive(Debug)]
pub(super) struct Asked {
    /// Only these services; all if there are none.
    pub services: Vec<String>,
    /// Bake twice from nothing.
    pub deep: bool,
    /// Compare with the image that is open; the path is for messages.
    pub against: Option<PathBuf>,
    /// What stays behind in a stage counts as well.
    pub strict: bool,
}

/// `kiln verify`.
pub(super) fn verify(
    agent: &Arc<Agent>,
    session: &Session,
    args: &ProjectArgs,
    asked: &Asked,
    fds: Vec<OwnedFd>,
) -> Result<Answer, Report> {
    let began = Instant::now();
    let project = load_and_tell(session, args)?;
    super::build::known_services(&project, &asked.services)?;
    let _lease = agent.lease()?;
    let lock = bake::lock(agent, session, &project)?;
    if asked.deep {
        return deep::deep(agent, session, &project, &lock, asked);
    }
    let one = match &asked.against {
        None => None,
        Some(path) => Some((path, one_service(&project, &asked.services)?)),
    };
    let recorded = Recorded::bake(agent, session, &project, &lock, &asked.services)?;
    agent.flush_objects()?;
    whole(agent, session, recorded.trees())?;
    if let Some((path, service)) = one {
        let Some(here) = recorded.images.get(&service) else {
            return Err(Report::new(Exit::Bug, format!("`{service}` was baked to no image")));
        };
        let standard = path.as_os_str() == "-";
        let path = if standard { path.clone() } else { session.cwd.join(path) };
        let there = carrier::Opened::of(agent, session, &path, fds)?;
        let found = against::against(&agent.store, &service, *here, &there)?;
        let verdict = found.verdict;
        let project = project.name;
        let answer = AgainstImage { project, verdict, path, against: found };
        let answer = Answer::of(&Verified::Against(Box::new(answer)));
        return Ok(Answer { exit: exit(verdict, asked.strict), ..answer });
    }
    let cores = available_cores();
    let node = session.begin("verify", &project.name, "");
    let told = |words: &str| node.update(words);
    let sandboxes = |conditions: &Conditions| -> Box<dyn StepRunner + '_> {
        Box::new(VariedSteps::new(agent, session.cancelled(), conditions))
    };
    let verifier = Verifier {
        store: &agent.store,
        sandboxes: &sandboxes,
        cancel: session.cancelled(),
        told: &told,
        cores: cores.clone(),
    };
    let subjects = recorded.subjects(&lock);
    let images: Vec<Digest> = recorded.images.values().map(|image| image.tree).collect();
    let reports = verifier.verify(&subjects).and_then(|mut reports| {
        mark_left_behind(&agent.store, &subjects, &images, &mut reports)?;
        Ok(reports)
    });
    let reports = reports.map_err(|error| failed(&error));
    node.end(&reports, &reports.as_ref().map(|reports| words(reports)).unwrap_or_default());
    let found = recorded.assemble(&subjects, reports?);
    let verdict = found.verdict();
    let second = Conditions::varied(&cores, 0);
    let steps = Steps {
        project: project.name,
        deep: false,
        verdict,
        conditions: Varied {
            first: Conditions::plain(&cores),
            not_varied: not_varied(&second),
            second,
        },
        images: None,
        bases: found.bases,
        services: found.services,
        ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    let answer = Answer::of(&Verified::Steps(Box::new(steps)));
    Ok(Answer { exit: exit(verdict, asked.strict), ..answer })
}

/// That the contents of `trees` are what their listings say: a step that is run again reads them, and
/// "the same" is said of bytes that are there.
fn whole(agent: &Agent, session: &Session, trees: BTreeSet<Digest>) -> Result<(), Report> {
    let doing = || "reading the recorded images".to_owned();
    let node = session.begin("verify", "store", "reading what is recorded");
    let mut objects = trees.clone();
    for tree in &trees {
        objects.extend(agent.store.get_tree(tree).because(doing)?.objects());
    }
    let damaged = agent.store.check_these(&objects);
    let result = match damaged.as_slice() {
        [] => Ok(()),
        some => {
            const SHOWN: usize = 5;
            let what = format!(
                "{} of {} contents of the recorded images are damaged or gone: nothing can be said \
                 of what is made from them",
                some.len(),
                objects.len()
            );
            let log = some.iter().take(SHOWN).map(|one| format!("object {}", one.digest)).collect();
            Err(Report::failed(what).log(log).hint("kiln fsck --repair, then bake again"))
        }
    };
    node.end(&result, &count_of(objects.len(), "content is whole", "contents are whole"));
    result
}

/// What of `conditions` this machine cannot vary, and what none can.
fn not_varied(conditions: &Conditions) -> Vec<String> {
    let always = NOT_VARIED.iter().map(|text| (*text).to_owned());
    VariedSteps::missing(conditions).into_iter().chain(always).collect()
}

/// The one service that is to be compared with an image.
fn one_service(project: &Project, asked: &[String]) -> Result<String, Report> {
    let built = |name: &&String| project.services[*name].build.is_some();
    let names: Vec<&String> = match asked {
        [] => project.services.keys().filter(built).collect(),
        asked => asked.iter().collect(),
    };
    match names.as_slice() {
        [one] => Ok((*one).clone()),
        several => Err(Report::usage(format!(
            "`--against` compares one service's image, and {} are meant",
            several.len()
        ))
        .hint("name one: kiln verify SERVICE --against PATH")),
    }
}

/// All that was found.
struct Found {
    bases: BTreeMap<String, StepReport>,
    services: BTreeMap<String, Service>,
}

impl Found {
    fn verdict(&self) -> Verdict {
        let bases = self.bases.values().map(|base| base.verdict);
        let services = self.services.values().map(|service| service.verdict);
        bases.chain(services).max().unwrap_or(Verdict::Same)
    }
}

/// Where the same bits cannot be promised, that is said by the exit code: it diverged, or it took
/// something from outside that differs. What no image has is said only, unless one is `strict`.
const fn exit(verdict: Verdict, strict: bool) -> Exit {
    match verdict {
        Verdict::Same | Verdict::NotRun => Exit::Done,
        Verdict::LeftBehind if !strict => Exit::Done,
        Verdict::LeftBehind | Verdict::Inputs | Verdict::Diverged => Exit::Difference,
    }
}

fn words(reports: &[StepReport]) -> String {
    let count = |verdict| reports.iter().filter(|report| report.verdict == verdict).count();
    let mut words = format!("{} the same", count(Verdict::Same));
    for (verdict, word) in [
        (Verdict::Diverged, "diverged"),
        (Verdict::Inputs, "with other inputs"),
        (Verdict::LeftBehind, "left something behind that differs"),
    ] {
        if count(verdict) > 0 {
            words.push_str(&format!(", {} {word}", count(verdict)));
        }
    }
    words
}

fn failed(error: &BakeError) -> Report {
    Report::from_error(if error.is_usage() { Exit::Usage } else { Exit::Failed }, error)
}

/// The subjects of a verification: bases by name, then steps.
type Subjects = Vec<Subject>;
