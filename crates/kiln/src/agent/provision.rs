//! Candidate slots: opened beside what serves, filled, switched to, or cleared away again.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kiln_core::Release;
use kiln_core::complaint::{Complaint, complaint};
use kiln_core::compose::Condition;
use kiln_core::defaults::Root;
use kiln_core::exit::Exit;
use kiln_core::plan::{self, Plan};
use kiln_core::release::Settings;
use kiln_core::stage::Share;
use kiln_core::steps::{Act, way_back};

use super::instances;
use super::session::{Node, Session};
use super::silence::SILENT;
use super::stage::{Illegal, Instance, Life, Role, Seen, Stage, StageState};
use super::{Agent, hooks, silence, watch, who};
use crate::deliver::Published;
use crate::report::Report;

/// How long requests under way may take to end before data is replaced under a pause.
const PAUSE_DRAIN: Duration = Duration::from_secs(10);

/// Fresh instances that a candidate may use up before it counts as failed.
const TRIES: u32 = 3;

/// Cancelling sets a flag and wakes nobody, so who waits looks at it now and then.
const LOOK: Duration = Duration::from_millis(100);

/// How often it is said what is waited for.
const TELL: Duration = Duration::from_secs(1);

/// The rows of what is started for a candidate, and of what is started again when that one does not
/// stay: those of the first kind go on saying what failed.
const START: &str = "start";
const RESTORE: &str = "restore";

/// How long a service may take to get ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// What the user said; else each service's own health check decides.
    pub limit: Option<Duration>,
}

impl Patience {
    pub(crate) fn of(self, release: &Release, service: &str) -> Duration {
        let check = release
            .services
            .get(service)
            .and_then(|released| released.settings.healthcheck.as_ref());
        let own = check.map_or(watch::PORTS_PATIENCE, watch::patience);
        self.limit.unwrap_or(own)
    }
}

/// A candidate: the slot of a release that is being filled and tested. Whoever drops it before it
/// [`serves`](Candidate::serves), on whatever path (a panic included), has it cleared away, and the
/// stage is as it was.
#[must_use = "a candidate that is dropped is cleared away"]
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    agent: &'a Arc<Agent>,
    session: &'a Session,
    stage: &'a Arc<Stage>,
    /// What it is to run.
    pub release: Published,
    patience: Patience,
    serves: bool,
}

/// Tells the user what is going to happen that they might not expect.
pub(crate) fn announce(session: &Session, target: &Published, plan: &Plan) {
    for paused in &plan.paused {
        session.notice(format!(
            "`{}` is replaced under a pause, because {}: requests wait until it is ready; its data \
             is not copied, and a rollback pauses likewise",
            paused.service, paused.why
        ));
    }
    for warning in unseen_names(&target.release, plan) {
        session.notice(warning);
    }
    if !plan.share.is_empty() {
        let names: Vec<&str> = plan.share.keys().map(String::as_str).collect();
        session.kept("start", "unchanged", &names.join(", "));
    }
}

/// Names what serves now and is no part of the release that follows: before it is touched.
pub(crate) fn name_what_leaves(session: &Session, stage: &Stage, target: &Published) {
    let gone: Vec<String> = {
        let state = stage.state();
        let serving = state.with_role(Role::Active).map(|slot| slot.members.keys());
        let services = &target.release.services;
        let left = serving.into_iter().flatten().filter(|name| !services.contains_key(*name));
        left.map(|name| format!("`{name}`")).collect()
    };
    if !gone.is_empty() {
        session.notice(format!(
            "runs now and is not in the new release, so it is stopped with the release before: {}; \
             what it has written stays",
            gone.join(", ")
        ));
    }
}

/// Shared services that seem to call a service that is started anew without saying so in
/// `depends_on`: they go on calling the old one.
fn unseen_names(release: &Release, plan: &Plan) -> Vec<String> {
    let anew: BTreeSet<&String> =
        plan.beside.iter().chain(plan.paused.iter().map(|paused| &paused.service)).collect();
    let mut warnings = Vec::new();
    for service in plan.share.keys() {
        let Some(released) = release.services.get(service) else { continue };
        let text = released.settings.env.iter().chain(&released.settings.argv);
        let words: BTreeSet<&str> = text
            .flat_map(|text| {
                text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
            })
            .collect();
        let named: Vec<_> = anew.iter().filter(|name| words.contains(name.as_str())).collect();
        let reach = if named.is_empty() { BTreeSet::new() } else { release.reach(service) };
        for name in named {
            if !reach.contains(*name) {
                warnings.push(format!(
                    "`{service}` is shared with the release before and seems to call `{name}`, \
                     which is not in its `depends_on`: it goes on calling the `{name}` of its own \
                     release"
                ));
            }
        }
    }
    warnings
}

impl<'a> Candidate<'a> {
    /// Opens the slot of `target`: a stable address for each service, shared instances in place.
    pub(crate) fn open(
        agent: &'a Arc<Agent>,
        session: &'a Session,
        stage: &'a Arc<Stage>,
        target: &Published,
        plan: &Plan,
        patience: Patience,
    ) -> Result<Self, Report> {
        let services = target.release.services.keys().cloned();
        // Taken beforehand: the root may have to grow for it, and no lock is held across that.
        let addresses = agent.addresses.take_virtuals(&agent.host, services.len())?;
        let named: BTreeMap<_, _> = services.zip(addresses.iter().copied()).collect();
        let opened =
            stage.update(|state| state.open(target.digest, &target.release, named, &plan.share));
        let unused: Vec<Ipv4Addr> = match &opened {
            Ok(unused) => unused.values().copied().collect(),
            Err(_) => addresses,
        };
        unused.into_iter().for_each(|address| agent.addresses.give_back(address));
        opened?;
        Ok(Self { agent, session, stage, release: target.clone(), patience, serves: false })
    }

    /// Starts services of its slot and waits until they are ready.
    pub(crate) fn start(&self, services: &[String]) -> Result<(), Report> {
        let Self { agent, session, stage, release, patience, .. } = self;
        start(agent, session, stage, release, (START, services), *patience)
    }

    /// It serves, and that is recorded: it stays.
    pub(crate) fn serves(mut self) {
        self.serves = true;
    }

    /// Takes one step of the way back. What fails is said, and the next one is taken all the same.
    fn step_back(&self, session: &Session, act: &Act) -> Result<(), Report> {
        let Self { agent, stage, .. } = *self;
        match act {
            Act::TakeBack { hold } => {
                stage.update(|state| state.take_back(*hold))?;
                agent.save(stage);
                agent.routes_changed();
                Ok(())
            }
            Act::Stop { instances } => {
                let (upstreams, grace) = {
                    let state = stage.state();
                    let grace = instances.iter().filter_map(|id| state.stop_grace(id)).max();
                    (state.upstreams(instances), grace.unwrap_or_default())
                };
                // Of a switch that was taken back there may be requests under way.
                agent.drain(&upstreams, grace);
                instances::stop(agent, stage, instances).inspect_err(|report| {
                    session.notice(report.to_string());
                })
            }
            Act::Close => Ok(stage.update(|state| state.close())?),
            Act::Start { release, services } => {
                let serving = Published::of(*release, agent.release_in(&stage.id, release)?);
                let again = (RESTORE, services.as_slice());
                start(agent, session, stage, &serving, again, self.patience).map_err(|report| {
                    session.notice(format!("starting again what was stopped: {report}"));
                    report
                })
            }
            other => Err(Report::new(Exit::Bug, format!("{other:?} leads nowhere back"))),
        }
    }
}

impl Drop for Candidate<'_> {
    fn drop(&mut self) {
        if self.serves {
            return;
        }
        let Self { agent, stage, .. } = *self;
        stage.give_up_wish();
        let session = self.session.unstoppable();
        let steps = way_back(&stage.state());
        for step in steps {
            if let Err(report) = self.step_back(&session, &step.act) {
                agent.log(&format!("{}: on the way back ({}): {report}", stage.id, step.why));
            }
        }
        let freed = stage.update(|state| {
            if let Err(illegal) = state.resume() {
                agent.log(&format!("{}: {illegal}", stage.id));
            }
            state.forget_slots()
        });
        settle(agent, stage, freed);
        agent.routes_changed();
    }
}

/// The atomic move: from here on `traffic` says who answers every client of the stage.
pub(crate) fn weigh(agent: &Agent, stage: &Stage, traffic: &[Share]) -> Result<(), Report> {
    let held = stage.update(|state| {
        let held = state.is_held();
        state.weigh(traffic.to_vec()).map(|()| held)
    })?;
    agent.save(stage);
    agent.apply_routes(stage).inspect_err(|_| {
        if stage.update(|state| state.take_back(held)).is_ok() {
            agent.save(stage);
            agent.routes_changed();
        }
    })?;
    stage.remember_ports();
    // What other projects call follows the switch.
    if let Err(report) = agent.translate(stage) {
        agent.log(&format!("{}: {report}", stage.id));
    }
    Ok(())
}

/// Starts `services` of the slot of `target`, each as soon as what it waits for is there, and
/// waits until all are ready. The first failure ends the waiting of all. They are told of in `phase`.
fn start(
    agent: &Arc<Agent>,
    session: &Session,
    stage: &Arc<Stage>,
    target: &Published,
    (phase, services): (&'static str, &[String]),
    patience: Patience,
) -> Result<(), Report> {
    if services.is_empty() {
        return Ok(());
    }
    let given_up = AtomicBool::new(false);
    let start_one = |service: &String| {
        let waiting = Waiting { session, stage, target, given_up: &given_up, phase };
        let result = waiting.dependencies(service, patience).and_then(|()| {
            let node = session.begin(phase, service, "starting");
            let limit = patience.of(&target.release, service);
            let result = instances::start(agent, stage, target.digest, service)
                .and_then(|_| waiting.hooked(service, patience, &node))
                .and_then(|()| waiting.ready(service, limit, &node))
                .or_else(|report| waiting.done_without(service, report));
            end(node, &result, &words(stage, target, service));
            result
        });
        if result.is_err() {
            given_up.store(true, Ordering::Release);
            stage.update(|_| ());
        }
        result
    };
    let who = who::current();
    let as_part = |service: &String| {
        let _acting = who::act_for(who.clone());
        start_one(service)
    };
    let results: Vec<Result<(), Report>> = if let [only] = services {
        vec![start_one(only)]
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                services.iter().map(|service| scope.spawn(|| as_part(service))).collect();
            let bug = || Report::new(Exit::Bug, "a starting thread panicked");
            threads.into_iter().map(|thread| thread.join().map_err(|_| bug())?).collect()
        })
    };
    // Those that only gave up because another failed say so with an empty message.
    let mut failures: Vec<Report> = results.into_iter().filter_map(Result::err).collect();
    failures.sort_by_key(|report| report.message.is_empty());
    failures.into_iter().next().map_or(Ok(()), Err)
}

fn words(stage: &Stage, target: &Published, service: &str) -> String {
    let state = stage.state();
    match state.member(&target.digest, service) {
        Some(instance) if instance.silent => format!("{SILENT}: nothing accepts yet"),
        Some(instance) => instance.life.word().to_owned(),
        None => String::new(),
    }
}

/// Ends the row of a service. One without words only gave up with the others.
fn end(node: Node<'_>, result: &Result<(), Report>, words: &str) {
    match result {
        Err(report) if report.message.is_empty() => {
            node.failed("given up, for another one did not get ready");
        }
        result => node.end(result, words),
    }
}

/// One service's wait for others and for itself.
struct Waiting<'a> {
    session: &'a Session,
    stage: &'a Stage,
    target: &'a Published,
    given_up: &'a AtomicBool,
    phase: &'static str,
}

/// What is said of a wait under way, given how it stands and how long it has lasted.
type Saying<'a> = (&'a Node<'a>, &'a dyn Fn(&StageState, Duration) -> String);

impl Waiting<'_> {
    /// What a service fell short of that did not get ready.
    fn not_healthy(&self, instance: &Instance, service: &str, how: &str) -> Short {
        let settings = self.target.release.services.get(service).map(|it| &it.settings);
        let read_only =
            settings.is_some_and(|settings| settings.root(&self.stage.id.stage) == Root::ReadOnly);
        let what = format!("service `{service}` {how}; it gets no traffic");
        let instance = Some(Box::new(instance.clone()));
        Short { what, instance, read_only, silent: None, late: false }
    }

    /// Waits until `done` says so, or gives the reason why it will not. What there is to say of that
    /// is found out when the state is let go of: it may mean to read a log.
    fn until(
        &self,
        limit: Duration,
        mut done: impl FnMut(&StageState) -> Option<Result<(), Short>>,
        late: impl FnOnce(&StageState) -> Short,
        (node, saying): Saying<'_>,
    ) -> Result<(), Report> {
        let began = Instant::now();
        // A limit beyond what the clock can tell is none.
        let deadline = began.checked_add(limit);
        let mut told = began;
        let mut state = self.stage.state();
        loop {
            if let Some(result) = done(&state) {
                drop(state);
                return result.map_err(|short| short.told(self.stage));
            }
            self.session.check()?;
            if self.given_up.load(Ordering::Acquire) {
                return Err(Report::failed(""));
            }
            let now = Instant::now();
            let left = deadline.map_or(LOOK, |deadline| deadline.saturating_duration_since(now));
            if left.is_zero() {
                let short = late(&state);
                drop(state);
                return Err(short.told(self.stage));
            }
            if now.duration_since(told) >= TELL {
                told = now;
                let words = saying(&state, now.duration_since(began));
                // The client may be slow to read.
                drop(state);
                node.update(&words);
                state = self.stage.state();
                continue;
            }
            state = self.stage.wait(state, left.min(LOOK));
        }
    }

    fn dependencies(&self, service: &str, patience: Patience) -> Result<(), Report> {
        let release = &self.target.release;
        let Some(released) = release.services.get(service) else { return Ok(()) };
        for (dep, dependency) in &released.settings.depends_on {
            if !release.services.contains_key(dep) {
                continue;
            }
            let hooks = self.has_hooks(dep);
            // As in Compose, who waits for the start waits for its hooks.
            let hooked = |it: &Instance| !hooks || it.hooked || !matches!(it.life, Life::Starting);
            let met = |instance: &Instance| match dependency.condition {
                Condition::ServiceStarted => instance.running.is_some() && hooked(instance),
                Condition::ServiceHealthy => matches!(instance.life, Life::Ready),
                Condition::ServiceCompletedSuccessfully => instance.life == Life::Completed,
            };
            // The dependency's own wait has the better words for why it failed.
            let limit = patience.of(release, dep).saturating_mul(TRIES + 1);
            let limit = limit.saturating_add(Duration::from_secs(60));
            let limit = limit.saturating_add(if hooks { hooks::PATIENCE } else { Duration::ZERO });
            let stands = |state: &StageState| {
                let instance = state.member(&self.target.digest, dep)?;
                let without = !dependency.required && has_failed(instance);
                (met(instance) || without).then_some(Ok(()))
            };
            if stands(&self.stage.state()).is_some() {
                continue;
            }
            let waits = format!("waiting for `{dep}`");
            let node = self.session.begin(self.phase, service, &waits);
            let result = self.until(
                limit,
                stands,
                |_| Short::of(format!("`{service}` waited too long for `{dep}`")),
                (&node, &|_, passed| format!("{waits}, {} s", passed.as_secs())),
            );
            if result.is_err() {
                end(node, &result, "");
            }
            result?;
        }
        Ok(())
    }

    /// `required: false`: a service that has failed ends nothing when all that wait for it go on
    /// without it.
    fn done_without(&self, service: &str, report: Report) -> Result<(), Report> {
        let all = self.target.release.services.values();
        let mut waiting = all.filter_map(|other| other.settings.depends_on.get(service)).peekable();
        let optional = waiting.peek().is_some() && waiting.all(|dependency| !dependency.required);
        let failed =
            self.stage.state().member(&self.target.digest, service).is_some_and(has_failed);
        // Without words, it only gave up with the others.
        let gave_up = report.message.is_empty() || self.session.check().is_err();
        if !(optional && failed) || gave_up {
            return Err(report);
        }
        self.session.notice(format!(
            "{}; what waits for it goes on without it (`required: false`)",
            report.message
        ));
        Ok(())
    }

    fn has_hooks(&self, service: &str) -> bool {
        let released = self.target.release.services.get(service);
        released.is_some_and(|released| !released.settings.post_start.is_empty())
    }

    /// Waits for the hooks of a start, which may take longer than to get ready may.
    fn hooked(&self, service: &str, patience: Patience, node: &Node<'_>) -> Result<(), Report> {
        if !self.has_hooks(service) {
            return Ok(());
        }
        let limit = patience.limit.unwrap_or(hooks::PATIENCE + LOOK);
        let settled = |state: &StageState| {
            let instance = state.member(&self.target.digest, service)?;
            // What is wrong with one that no longer starts is said by who waits for it next.
            (instance.hooked || !matches!(instance.life, Life::Starting)).then_some(Ok(()))
        };
        let how =
            format!("has not ended its `post_start` hooks after {:.1} s", limit.as_secs_f64());
        self.until(
            limit,
            settled,
            |state| match state.member(&self.target.digest, service) {
                Some(instance) => self.not_healthy(instance, service, &how),
                None => Short::of(format!("service `{service}` was not there in time")),
            },
            (node, &|_, passed| {
                let (passed, limit) = (passed.as_secs(), limit.as_secs());
                format!("waiting, {passed} of {limit} s: for its `post_start` hooks")
            }),
        )
    }

    /// What a service that is not ready is waited for.
    fn waits_for(&self, state: &StageState, service: &str, job: bool) -> String {
        let Some(instance) = state.member(&self.target.digest, service) else {
            return "starting".to_owned();
        };
        let settings = self.target.release.services.get(service).map(|it| &it.settings);
        let check = settings.is_some_and(|settings| settings.healthcheck.is_some());
        let answer = instance.probes.last().and_then(|answer| answer.lines().next());
        match (&instance.life, answer) {
            (Life::BackOff { how }, _) => format!("{how}, and is started again"),
            _ if job => "until it has ended".to_owned(),
            (_, Some(answer)) if check => format!("its health check says: {answer}"),
            (_, Some(answer)) => answer.to_owned(),
            (_, None) if check => "for its health check".to_owned(),
            (_, None) => "until it is ready".to_owned(),
        }
    }

    fn ready(&self, service: &str, limit: Duration, node: &Node<'_>) -> Result<(), Report> {
        let job = plan::is_job(&self.target.release, service);
        let late = Cell::new(false);
        let result = self.until(
            limit,
            |state| {
                let instance = state.member(&self.target.digest, service)?;
                match &instance.life {
                    Life::Completed => Some(Ok(())),
                    Life::Ready if !job => Some(Ok(())),
                    Life::Failed { how } => Some(Err(self.not_healthy(instance, service, how))),
                    Life::BackOff { how } if instance.restarts >= TRIES => {
                        Some(Err(self.not_healthy(instance, service, how)))
                    }
                    _ => None,
                }
            },
            |state| match state.member(&self.target.digest, service) {
                Some(instance) => {
                    late.set(true);
                    let after = format!("after {:.1} s", limit.as_secs_f64());
                    let short =
                        self.not_healthy(instance, service, &format!("is not healthy {after}"));
                    let silent =
                        self.waits_for_ports(service).map(|it| Box::new((after, it.clone())));
                    Short { silent, late: true, ..short }
                }
                None => Short::of(format!("service `{service}` was not there in time")),
            },
            (node, &|state, passed| {
                let (passed, limit) = (passed.as_secs(), limit.as_secs());
                let what = self.waits_for(state, service, job);
                format!("waiting, {passed} of {limit} s: {what}")
            }),
        );
        match (result, self.waits_for_ports(service)) {
            (Err(_), Some(settings))
                if late.get() && self.serve_silent(service, settings, limit) =>
            {
                Ok(())
            }
            (result, _) => result,
        }
    }

    /// The settings of `service` if its ports alone say whether it is ready.
    fn waits_for_ports(&self, service: &str) -> Option<&Settings> {
        let settings = &self.target.release.services.get(service)?.settings;
        silence::by_ports(settings).then_some(settings)
    }

    /// In `dev`, where people try things, what opens none of its ports serves all the same, unless
    /// that takes something away that served before.
    fn serve_silent(&self, service: &str, settings: &Settings, limit: Duration) -> bool {
        if self.stage.id.stage != "dev" {
            return false;
        }
        let instance = self.stage.state().member(&self.target.digest, service).cloned();
        let Some(instance) = instance else { return false };
        if !silence::lost(&instance, settings).is_empty() {
            return false;
        }
        let said = silence::sentence(&instance, settings);
        let serves = self.stage.update(|state| {
            if state.instances.get(&instance.id)?.life != Life::Starting {
                return None;
            }
            state.turn(&instance.id, Life::Ready).ok()?;
            let instance = state.instances.get_mut(&instance.id)?;
            (instance.silent, instance.open) = (true, Some(BTreeSet::new()));
            Some(())
        });
        if serves.is_none() {
            return false;
        }
        self.session.notice(format!(
            "`{service}` is silent after {:.1} s: {said}; it serves all the same, as this is `dev`: \
             the front opens its ports when they accept",
            limit.as_secs_f64()
        ));
        true
    }
}

/// Whether an instance has ended for good, or so often that nobody waits for it any longer.
fn has_failed(instance: &Instance) -> bool {
    match &instance.life {
        Life::Failed { .. } => true,
        Life::BackOff { .. } => instance.restarts >= TRIES,
        _ => false,
    }
}

/// What is to be written so that it does, if its log says that it cannot write to its read-only root.
fn cure_of(log: &[String], service: &str) -> Option<String> {
    let Complaint { path, cure } = complaint(log)?;
    let learn = format!("`kiln up --learn {service}` shows all that it writes");
    Some(match (path, cure) {
        (Some(path), Some(cure)) => format!(
            "its root file system is read-only, and its log names {path}: write `{cure}` into the \
             service; {learn}"
        ),
        _ => format!(
            "its root file system is read-only, and its log says that it cannot write; {learn}"
        ),
    })
}

/// What a service that did not get ready fell short of.
struct Short {
    what: String,
    /// The instance as it was then, if there was one.
    instance: Option<Box<Instance>>,
    /// Its root file system is read-only.
    read_only: bool,
    /// Its ports did not accept: after how long, and its settings.
    silent: Option<Box<(String, Settings)>>,
    /// It took longer than it may.
    late: bool,
}

impl Short {
    fn of(what: String) -> Self {
        Self { what, instance: None, read_only: false, silent: None, late: false }
    }

    /// The gate's refusal: the service, the probe's answers and the last lines of its log.
    fn told(self, stage: &Stage) -> Report {
        let serves = match stage.state().pointer.active {
            Some(_) => "what served before goes on serving; ",
            None => "",
        };
        let longer = if self.late { "; --timeout SECONDS waits longer" } else { "" };
        let again = format!("{serves}mend the service and run the same command again{longer}");
        let Some(instance) = self.instance else { return Report::refused(self.what).hint(again) };
        let what = match &self.silent {
            Some(silent) => format!(
                "service `{}` is silent {}: {}; it gets no traffic",
                instance.service,
                silent.0,
                silence::sentence(&instance, &silent.1)
            ),
            None => self.what,
        };
        let mut log: Vec<String> =
            instance.probes.iter().map(|answer| format!("probe: {answer}")).collect();
        log.extend(
            instance.unknown.iter().map(|why| format!("it is not known whether it runs: {why}")),
        );
        log.extend(instance.hook_said.iter().map(|line| format!("post_start: {line}")));
        log.extend(instances::last_lines(&instance.id, instance.running.as_deref(), 10));
        let cure = if self.read_only { cure_of(&log, &instance.service) } else { None };
        Report::refused(what).log(log).hint(cure.unwrap_or(again))
    }
}

/// Holds new requests of the stage and lets those under way at the instances `ids`, which are to
/// be stopped, end.
pub(crate) fn pause(agent: &Agent, stage: &Stage, ids: &[String]) -> Result<(), Report> {
    let upstreams = stage.update(|state| {
        state.hold()?;
        let ids: Vec<String> = ids.iter().map(|id| state.current(id)).collect();
        Ok::<_, Illegal>(state.upstreams(&ids))
    })?;
    agent.apply_routes(stage)?;
    agent.drain_for_pause(&upstreams, PAUSE_DRAIN);
    Ok(())
}

/// Stops instances, in parallel, and takes them out of the state.
pub(crate) fn stop_all(agent: &Arc<Agent>, stage: &Stage, ids: &[String]) -> Result<(), Report> {
    if ids.is_empty() {
        return Ok(());
    }
    let stopped = instances::stop(agent, stage, ids);
    agent.translate(stage)?;
    agent.save(stage);
    stopped
}

/// After a switch: what neither serves nor is kept warm is drained and stopped, behind the user's
/// back.
pub(crate) fn retire(agent: &Arc<Agent>, stage: &Arc<Stage>) {
    let (ids, upstreams, limit) = stage.update(|state| {
        let ids = state.retire();
        let upstreams = state.upstreams(&ids);
        (ids, upstreams, state.pointer.policy.drain(&stage.id.stage))
    });
    let (worker, stage) = (Arc::clone(agent), Arc::clone(stage));
    agent.background(move || {
        if !ids.is_empty() {
            worker.drain_as_routed(&upstreams, limit);
            if let Err(report) = instances::stop(&worker, &stage, &ids) {
                worker.log(&report.to_string());
            }
        }
        let freed = stage.update(StageState::forget_slots);
        settle(&worker, &stage, freed);
    });
}

/// Writes down and makes true what the state says now.
fn settle(agent: &Agent, stage: &Stage, freed: Vec<Ipv4Addr>) {
    if let Err(report) = agent.translate(stage) {
        agent.log(&format!("{}: {report}", stage.id));
    }
    agent.unmap(stage, &freed);
    agent.save(stage);
}
