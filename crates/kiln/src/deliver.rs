//! The flow, to be read top to bottom: source → image → release → running → switched → watched.
//!
//! [`publish`] turns source into a recorded release; [`converge`] turns a release into what runs.
//! What a step means in detail is in the module that it calls; what order they come in, and what
//! is undone when one fails, is here and nowhere else.
//!
//! Invariants: a candidate gets no traffic before all of it is ready; all services of a stage move
//! in one step; the pointer moves last; whatever fails before that leaves the stage as it was.

use std::sync::Arc;

use kiln_core::compose::Project;
use kiln_core::exit::Exit;
use kiln_core::plan::{Plan, plan};
use kiln_core::{Digest, Release};
use serde_json::json;

use crate::agent::Agent;
use crate::agent::bake::{self, Checkout};
use crate::agent::git::compare::Difference;
use crate::agent::provision::{self, Candidate};
use crate::agent::record;
use crate::agent::session::Session;
use crate::agent::stage::Stage;
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
}

impl Reason {
    /// One word for the ledger.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Rollback => "rollback",
            Self::Restore => "restore",
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
/// release, so that nothing of it is collected meanwhile.
pub(crate) fn publish(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    project: &Project,
) -> Result<Published, Report> {
    let published = assemble(agent, session, stage, project)?;
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
    let lock = bake::lock(agent, session, project)?;
    let images = bake::images(agent, session, project, &lock, &[])?;
    let mut release = bake::release(agent, project, &images)?;

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
    let Checkout { source, differences } = bake::source(agent, session, project);
    if let Some((digest, serving)) = same
        && !source.is_clean()
    {
        return Ok(Published::of(digest, serving));
    }
    release.source = source;
    let digest = release.digest();
    Ok(Published { digest, release: Arc::new(release), fresh: true, differences })
}

/// Target and observed → plan → create, start, await healthy, switch, keep, watch.
pub(crate) fn converge(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    target: &Published,
    reason: Reason,
    patience: provision::Patience,
) -> Result<Converged, Report> {
    let _delivery = stage.deliver();
    let data = volumes::data(agent, stage, &target.release)?;
    let plan = plan(&target.release, &stage.state().observe(), &data);
    let serving = stage.state().serves(&target.digest);
    if plan.is_empty() && serving {
        return Ok(Converged { plan, switched: false });
    }
    volumes::free(agent, stage, &target.digest, &plan, &data)?;
    provision::announce(session, stage, target, &plan);
    record::intent(agent, stage, target, reason, &plan);

    let candidate = Candidate::open(agent, stage, target, &plan)
        .map_err(|report| record::failed(agent, stage, target, reason, report))?;
    let attempt = Attempt { agent, session, stage, target, reason, plan, candidate, patience };
    if let Err(report) = attempt.run() {
        provision::undo(agent, session, stage, &attempt.candidate, patience);
        return Err(record::failed(agent, stage, target, reason, report));
    }

    // The old one stays warm as standby; the one before it is drained and stopped, behind us.
    provision::retire(agent, stage);
    Ok(Converged { plan: attempt.plan, switched: true })
}

/// One try to get a stage from what serves to its target. Whatever it leaves when it fails,
/// [`provision::undo`] clears away.
struct Attempt<'a> {
    agent: &'a Arc<Agent>,
    session: &'a Session,
    stage: &'a Arc<Stage>,
    target: &'a Published,
    reason: Reason,
    plan: Plan,
    candidate: Candidate,
    patience: provision::Patience,
}

impl Attempt<'_> {
    fn run(&self) -> Result<(), Report> {
        self.provision_beside()?;
        if self.plan.needs_pause() {
            self.replace_paused()?;
        }
        self.switch()
    }

    /// Instances, each after those it waits for; nothing of it serves yet. What the release names
    /// reaches the disk meanwhile: no pointer moves to it before.
    fn provision_beside(&self) -> Result<(), Report> {
        self.agent.ports_are_free(self.stage, self.target)?;
        self.agent.translate(self.stage)?;
        let (flushed, started) = std::thread::scope(|scope| {
            let flushing = scope.spawn(|| self.agent.flush_objects());
            let started = self.start(&self.plan.beside);
            let bug = |_| Err(Report::new(Exit::Bug, "the flush panicked"));
            (flushing.join().unwrap_or_else(bug), started)
        });
        started.and(flushed)
    }

    /// Data is never run twice: what cannot stand beside is replaced while clients wait. New
    /// requests are held, those under way end, then what holds data and all that depends on it
    /// is replaced.
    fn replace_paused(&self) -> Result<(), Report> {
        self.session.check()?;
        let node = self.session.begin("pause", &self.stage.id.to_string(), "requests wait");
        let services: Vec<String> =
            self.plan.paused.iter().map(|paused| paused.service.clone()).collect();
        let replaced = provision::pause(self.agent, self.stage, &self.plan.stop_first)
            .and_then(|()| provision::stop_all(self.agent, self.stage, &self.plan.stop_first))
            .and_then(|()| self.start(&services));
        node.end(&replaced, "replaced what holds data");
        let data = json!({ "services": services, "ok": replaced.is_ok() });
        record::note(self.agent, self.stage, "pause", data);
        replaced
    }

    /// One move for all services; workers follow, and if they cannot, it is taken back. The
    /// pointer moves last.
    fn switch(&self) -> Result<(), Report> {
        self.session.check()?;
        let (agent, stage) = (self.agent, self.stage);
        let node = self.session.begin("switch", &stage.id.to_string(), "");
        let moved = self.candidate.switch(agent, stage).and_then(|before| {
            provision::stop_all(agent, stage, &self.plan.stop_workers)
                .and_then(|()| self.start(&self.plan.workers))
                .and_then(|()| record::commit(agent, stage, self.target, self.reason, &self.plan))
                .inspect_err(|_| before.take_back(agent, stage))
        });
        node.end(&moved, &format!("{} serves", self.target.digest.short()));
        moved
    }

    fn start(&self, services: &[String]) -> Result<(), Report> {
        let Self { agent, session, stage, candidate, patience, .. } = self;
        provision::start(agent, session, stage, &candidate.release, services, *patience)
    }
}
