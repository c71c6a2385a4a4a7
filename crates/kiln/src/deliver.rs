//! The flow, to be read top to bottom: source → image → release → running → switched → watched.
//!
//! [`publish`] turns source into a recorded release; [`converge`] turns a release into what runs. In
//! which order steps come is decided by [`kiln_core::steps`], and the way back too; here they are
//! taken. What a step means in detail is in the module that it calls.
//!
//! Invariants: a candidate gets no traffic before all of it is ready; all services of a stage move
//! in one step; the pointer moves last; whatever fails before that leaves the stage as it was.

use std::sync::Arc;

use kiln_core::compose::Project;
use kiln_core::exit::Exit;
use kiln_core::plan::{Plan, plan};
use kiln_core::steps::Act;
use kiln_core::{Digest, Release};
use serde_json::json;

use crate::agent::Agent;
use crate::agent::bake::{self, Checkout};
use crate::agent::git::compare::Difference;
use crate::agent::layer;
use crate::agent::policy;
use crate::agent::provision::{self, Candidate};
use crate::agent::record;
use crate::agent::session::{Node, Session};
use crate::agent::stage::{Seen, Stage};
use crate::agent::volumes;
use crate::report::Report;

/// A release that is recorded and can be deployed.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    /// Its digest.
    pub digest: Digest,
    /// What it pins.
    pub release: Arc<Release>,
    /// Whether it was cut now; else it is the one that serves already.
    pub fresh: bool,
    /// What of its source is not as in the commit; known only of one that was cut now.
    pub differences: Vec<Difference>,
}

impl Published {
    /// A release that was recorded before.
    pub(crate) fn of(digest: Digest, release: Arc<Release>) -> Self {
        Self { digest, release, fresh: false, differences: Vec::new() }
    }

    /// With the settings that it has in one stage.
    pub(crate) fn for_stage(self, stage: &str) -> Self {
        match self.release.for_stage(stage) {
            Some(there) => Self { release: Arc::new(there), ..self },
            None => self,
        }
    }
}

/// Why a release is deployed: what the ledger says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// `kiln up`.
    Up,
    /// `kiln rollback`.
    Rollback,
    /// The machine or the agent has started again.
    Restore,
    /// `kiln restart`.
    Restart,
}

impl Reason {
    /// One word for the ledger.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Rollback => "rollback",
            Self::Restore => "restore",
            Self::Restart => "restart",
        }
    }
}

/// How a deploy ended.
#[derive(Debug, Clone)]
pub(crate) struct Converged {
    /// What was done.
    pub plan: Plan,
    /// Whether traffic moved.
    pub switched: bool,
}

/// Source → image → release → recorded. The caller holds a lease until a slot or pointer names the
/// release, so that nothing of it is collected meanwhile. See [`assemble_part`] for `only`.
pub(crate) fn publish(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    project: &Project,
    only: &[String],
) -> Result<Published, Report> {
    let published = assemble_part(agent, session, stage, project, only)?;
    if published.fresh {
        agent.put_release(&published.release)?;
        record::cut(agent, stage, &published);
    }
    Ok(published)
}

/// Source → image → release. Nothing is recorded: a release that says the same as the one that
/// serves, or did before `down`, *is* that one. Of a clean checkout it is the commit's, which is the
/// same everywhere.
pub(crate) fn assemble(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    project: &Project,
) -> Result<Published, Report> {
    assemble_part(agent, session, stage, project, &[])
}

/// As [`assemble`], with `only` these services of the project, if there are any; of all others that
/// serve now, image and settings stay. No commit says what comes out of that.
pub(crate) fn assemble_part(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    project: &Project,
    only: &[String],
) -> Result<Published, Report> {
    let lock = bake::lock(agent, session, project)?;
    let images = bake::images(agent, session, project, &lock, only)?;
    let mut release = bake::release(agent, project, &images)?;
    if !only.is_empty() {
        add_what_serves(agent, stage, &mut release)?;
    }

    let before = stage.state().last_served();
    let same = before.and_then(|digest| match agent.release(&digest) {
        Ok(serving) => Some((digest, serving)),
        // It may be what is mended by this.
        Err(report) => {
            session.notice(format!("what served cannot be read: {report}"));
            None
        }
    });
    let same = same.filter(|(_, serving)| serving.runs_as(&release));
    if let Some((digest, serving)) = &same
        && !serving.source.dirty
        && serving.source.commit == bake::head(agent, session, project)
    {
        return Ok(Published::of(*digest, Arc::clone(serving)));
    }
    let Checkout { mut source, differences } = bake::source(agent, session, project);
    source.dirty |= !only.is_empty() && source.commit.is_some();
    if let Some((digest, serving)) = same
        && !source.is_clean()
    {
        return Ok(Published::of(digest, serving));
    }
    release.source = source;
    let digest = release.digest();
    Ok(Published { digest, release: Arc::new(release), fresh: true, differences })
}

/// The services that serve now and that `release` does not have.
fn add_what_serves(agent: &Agent, stage: &Stage, release: &mut Release) -> Result<(), Report> {
    let active = stage.state().pointer.active;
    let Some(active) = active else { return Ok(()) };
    let serving = agent.release(&active)?;
    let missing = |name: &&String| !release.services.contains_key(*name);
    let missing: Vec<String> = serving.services.keys().filter(missing).cloned().collect();
    for name in missing {
        for (stage, own) in &serving.stages {
            if let Some(settings) = own.get(&name) {
                let there = release.stages.entry(stage.clone()).or_default();
                there.insert(name.clone(), settings.clone());
            }
        }
        release.services.insert(name.clone(), serving.services[&name].clone());
    }
    Ok(())
}

/// Target and observed → plan → its steps, one after the other.
pub(crate) fn converge(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    target: &Published,
    reason: Reason,
    patience: provision::Patience,
) -> Result<Converged, Report> {
    let _delivery = stage.deliver()?;
    let target = &target.clone().for_stage(&stage.id.stage);
    let data = volumes::data(agent, stage, &target.release, stage.folder().as_deref())?;
    let observed = stage.state().observe();
    let observed = volumes::none_goes_on(stage, observed);
    let plan = plan(&target.release, &observed, &data);
    let serving = stage.state().serves(&target.digest);
    if plan.is_empty() && serving {
        return Ok(Converged { plan, switched: false });
    }
    policy::judge(agent, session, &stage.id, &target.release)?;
    volumes::free(agent, stage, &target.digest, &plan, &data)?;
    provision::announce(session, target, &plan);
    provision::name_what_leaves(session, stage, target);
    let leaving = layer::leaving(&stage.state(), &plan);
    layer::tell_what_goes(agent, session, stage, &leaving);
    record::intent(agent, stage, target, reason, &plan);

    let failed = |report| record::failed(agent, stage, target, reason, report);
    let candidate =
        Candidate::open(agent, session, stage, target, &plan, patience).map_err(failed)?;
    let attempt = Attempt { agent, session, stage, target, reason, plan: &plan, candidate };
    attempt.run().map_err(failed)?;
    Ok(Converged { plan, switched: true })
}

/// One try to get a stage from what serves to its target. When it fails, its candidate goes, and
/// with it all that was done.
struct Attempt<'a> {
    agent: &'a Arc<Agent>,
    session: &'a Session,
    stage: &'a Arc<Stage>,
    target: &'a Published,
    reason: Reason,
    plan: &'a Plan,
    candidate: Candidate<'a>,
}

impl Attempt<'_> {
    fn run(self) -> Result<(), Report> {
        let mut node = Under::nothing(self.session);
        for step in self.plan.steps(self.target.digest) {
            let taken = self.take(&step.act, &mut node);
            if let Err(report) = taken {
                node.failed(&report);
                if self.stage.state().is_held() {
                    self.note_pause(false);
                }
                return Err(report);
            }
        }
        self.candidate.serves();
        // The old one stays warm as standby; the one before it is drained and stopped, behind us.
        provision::retire(self.agent, self.stage);
        Ok(())
    }

    fn take<'s>(&'s self, act: &Act, node: &mut Under<'s>) -> Result<(), Report> {
        let (agent, stage) = (self.agent, self.stage);
        let name = stage.id.to_string();
        match act {
            Act::Provision { services } => self.provision(services),
            Act::Hold { instances } => {
                self.session.check()?;
                node.begin("pause", &name, "requests wait");
                provision::pause(agent, stage, instances)
            }
            Act::Stop { instances } => provision::stop_all(agent, stage, instances),
            Act::Start { services, .. } => self.candidate.start(services),
            Act::Weigh { traffic } => {
                if self.plan.needs_pause() {
                    node.done("replaced what holds data");
                    self.note_pause(true);
                }
                self.session.check()?;
                node.begin("switch", &name, "");
                provision::weigh(agent, stage, traffic)
            }
            Act::Commit => {
                record::commit(agent, stage, self.target, self.reason, self.plan)?;
                node.done(&format!("{} serves", self.target.digest.short()));
                Ok(())
            }
            // Behind the user's back, once the candidate stays.
            Act::Drain => Ok(()),
            Act::TakeBack { .. } | Act::Close => {
                Err(Report::new(Exit::Bug, format!("{act:?} leads nowhere on")))
            }
        }
    }

    /// Instances, each after those it waits for; nothing of it serves yet. What the release names
    /// reaches the disk meanwhile: no pointer moves to it before.
    fn provision(&self, services: &[String]) -> Result<(), Report> {
        self.agent.ports_are_free(self.stage, self.target)?;
        self.agent.translate(self.stage)?;
        let (flushed, started) = std::thread::scope(|scope| {
            let flushing = scope.spawn(|| self.agent.flush_objects());
            let started = self.candidate.start(services);
            let bug = |_| Err(Report::new(Exit::Bug, "the flush panicked"));
            (flushing.join().unwrap_or_else(bug), started)
        });
        started.and(flushed)
    }

    /// The ledger hears of a pause once it is over.
    fn note_pause(&self, ok: bool) {
        let paused = self.plan.paused.iter();
        let services: Vec<&String> = paused.map(|paused| &paused.service).collect();
        let data = json!({ "services": services, "ok": ok });
        record::note(self.agent, self.stage, "pause", data);
    }
}

/// The node of the tree that is under way, if one is.
struct Under<'a> {
    session: &'a Session,
    node: Option<Node<'a>>,
}

impl<'a> Under<'a> {
    fn nothing(session: &'a Session) -> Self {
        Self { session, node: None }
    }

    fn begin(&mut self, phase: &'static str, name: &str, detail: &str) {
        self.node = Some(self.session.begin(phase, name, detail));
    }

    fn done(&mut self, detail: &str) {
        if let Some(node) = self.node.take() {
            node.done(detail);
        }
    }

    fn failed(&mut self, report: &Report) {
        if let Some(node) = self.node.take() {
            node.failed(&report.line());
        }
    }
}
