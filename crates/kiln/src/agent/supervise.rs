//! One supervisor for each instance. It alone acts on the instance, and it does so one word of its
//! inbox at a time: so a fresh one never starts while another is being stopped, and nobody acts on
//! what is not certain.
//!
//! ```text
//! shim ── Lookout ──▶ Ended, Unknown, Known ─┐
//! hooks ── Starting ▶ Hooked, HookFailed     ├─▶ inbox ─▶ Supervisor: life, ledger, fresh one
//! probes ─ Prober ──▶ Ready, Answered,       │
//!                     Unhealthy, Healthy     │
//! stop() ───────────▶ Stop ──────────────────┘
//! ```

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use kiln_core::Digest;
use kiln_core::compose::Expose;
use kiln_core::plan;
use kiln_core::release::Settings;
use kiln_run::{End, Known, Running};
use serde_json::json;

use super::hooks::{self, Failed, Starting};
use super::network::{self, Net};
use super::stage::{Instance, Life, Role, Stage, StageState};
use super::watch::Prober;
use super::{Agent, instances, record};

/// Pauses before the first and the last fresh instance of one that keeps ending.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_LAST: Duration = Duration::from_secs(30);

/// An instance that lived so long has not failed to start: back-off begins anew.
const LIVED: Duration = Duration::from_secs(10);

/// Failed probes whose answers are kept for messages.
const ANSWERS: usize = 3;

/// How often a shim that said nothing is asked whether it is still there.
const PULSE: Duration = Duration::from_secs(10);

/// Pauses before a shim that did not answer is asked again.
const ASK_FIRST: Duration = Duration::from_millis(20);
const ASK_LAST: Duration = Duration::from_secs(5);

/// Pause before a stop is tried again of which it is not known whether it worked.
const STOP_AGAIN: Duration = Duration::from_secs(1);

/// What a supervisor is told.
#[derive(Debug)]
pub(crate) enum Word {
    /// The instance has certainly ended.
    Ended(End),
    /// Whether it runs is not known; why.
    Unknown(String),
    /// It is known again, and runs.
    Known,
    /// It has written more than it may; in words.
    TooMuch(String),
    /// Its `post_start` hooks are done.
    Hooked,
    /// One of them failed.
    HookFailed(Failed),
    /// It has got ready, with these ports that accept.
    Ready(BTreeSet<Expose>),
    /// These ports accept by now.
    Opened(BTreeSet<Expose>),
    /// A probe failed, with this answer.
    Answered(String),
    /// So many probes failed that it counts as unhealthy; the last answer.
    Unhealthy(String),
    /// It answers again.
    Healthy,
    /// It is to be stopped, and not to be replaced.
    Stop(Order),
}

/// The order to stop an instance.
#[derive(Debug)]
pub(crate) struct Order {
    /// Which one is meant.
    pub id: String,
    /// The signal that asks its program to end.
    pub signal: i32,
    /// How long it may take.
    pub grace: Duration,
    /// Where it is said what came of it.
    pub done: Sender<(String, Known)>,
}

/// Supervises instance `id` from now on.
pub(crate) fn begin(agent: &Arc<Agent>, stage: &Arc<Stage>, id: &str) {
    let (post, inbox) = channel();
    let found = stage.update(|state| {
        let instance = state.instances.get_mut(id)?;
        let release = state.releases.get(&instance.born)?;
        let released = release.services.get(&instance.service)?;
        let running = Arc::clone(instance.running.as_ref()?);
        instance.inbox = Some(post.clone());
        Some(Supervisor {
            agent: Arc::clone(agent),
            stage: Arc::clone(stage),
            id: id.to_owned(),
            release: instance.born,
            service: instance.service.clone(),
            settings: released.settings.clone(),
            job: plan::is_job(release, &instance.service),
            address: match instance.net {
                Net::Host => Ipv4Addr::LOCALHOST,
                _ => instance.address,
            },
            // One that is silent is still waited for.
            stood: if instance.silent { Life::Starting } else { instance.life.clone() },
            open: instance.open.clone(),
            before: instance.before.clone(),
            doubt: instance.unknown.clone(),
            running,
            inbox,
            began: Instant::now(),
            hooks: match (std::mem::take(&mut instance.fresh), instance.hooked) {
                _ if released.settings.post_start.is_empty() => Hooks::Done,
                (true, false) => Hooks::Due,
                (false, false) if instance.life == Life::Starting => Hooks::Unknown,
                _ => Hooks::Done,
            },
            misbegun: false,
            probing: None,
            unconfirmed: None,
            ended_for: None,
        })
    });
    let Some(supervisor) = found else { return };
    let started =
        std::thread::Builder::new().name("supervisor".into()).spawn(move || supervisor.run(post));
    if let Err(error) = started {
        unsupervised(agent, stage, id, &error.to_string());
    }
}

/// Without its supervisor nothing is done about an instance, and that is said.
fn unsupervised(agent: &Agent, stage: &Stage, id: &str, why: &str) {
    agent.log(&format!("{id}: nobody looks after it: {why}"));
    stage.update(|state| {
        if let Some(instance) = state.instances.get_mut(id) {
            instance.inbox = None;
            instance.unknown = Some(format!("nobody looks after it: {why}"));
        }
    });
}

fn success(end: &End) -> bool {
    matches!(end, End::Exited(exit) if exit.code == 0)
}

/// How it ended, as a person says it.
fn words(end: &End) -> String {
    match end {
        End::Exited(exit) if exit.oom => "ran out of its memory limit".into(),
        End::Exited(exit) => match exit.signal {
            Some(signal) => format!("was ended by signal {signal}"),
            None => format!("exited with status {}", exit.code),
        },
        End::Lost => "lost its shim".into(),
    }
}

/// Looks on until the instance has certainly ended. A shim that does not answer is asked again,
/// backed off. `said` is why it is not known from the beginning, if it is not.
fn look_on(running: &Running, to: &Sender<Word>, mut said: Option<String>) {
    let mut pause = ASK_FIRST;
    loop {
        let limit = if said.is_some() { Duration::ZERO } else { PULSE };
        let word = match running.wait_for(limit) {
            Known::Ended(end) => {
                let _ = to.send(Word::Ended(end));
                return;
            }
            Known::Runs(_) => {
                pause = ASK_FIRST;
                said.take().map(|_| Word::Known)
            }
            Known::Unknown(why) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(ASK_LAST);
                let news = said.as_ref() != Some(&why);
                news.then(|| Word::Unknown(said.insert(why).clone()))
            }
        };
        if word.is_some_and(|word| to.send(word).is_err()) {
            return;
        }
    }
}

/// What follows a word.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The next word.
    Listen,
    /// Nothing: the instance is gone, or stays as it is for good.
    Done,
}

/// How it stands with the hooks of its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hooks {
    /// There are none, or they are done.
    Done,
    /// They are to be run.
    Due,
    /// An agent that has gone ran them, and took them along.
    Unknown,
}

struct Supervisor {
    agent: Arc<Agent>,
    stage: Arc<Stage>,
    id: String,
    release: Digest,
    service: String,
    settings: Settings,
    job: bool,
    address: Ipv4Addr,
    /// How the instance stood when this began.
    stood: Life,
    /// Its ports that accepted then.
    open: Option<BTreeSet<Expose>>,
    /// The ports of its service that accepted before it.
    before: BTreeSet<Expose>,
    /// Why it was not known then whether it ran, if it was not.
    doubt: Option<String>,
    running: Arc<Running>,
    inbox: Receiver<Word>,
    began: Instant,
    hooks: Hooks,
    /// A hook of its start failed.
    misbegun: bool,
    /// The prober goes on as long as this is there.
    probing: Option<Sender<()>>,
    /// It was to be stopped, and whether it has ended is not known.
    unconfirmed: Option<Unconfirmed>,
    /// Why it was ended, if it was.
    ended_for: Option<String>,
}

/// A stop that is tried again.
struct Unconfirmed {
    signal: i32,
    grace: Duration,
    /// How long until the next try.
    pause: Duration,
}

impl Supervisor {
    fn run(mut self, post: Sender<Word>) {
        let set_out = self.set_out(&post);
        // What others hold keeps the inbox open: an instance that is forgotten needs nobody.
        drop(post);
        if let Err(error) = set_out {
            return unsupervised(&self.agent, &self.stage, &self.id, &error.to_string());
        }
        let (agent, stage) = (Arc::clone(&self.agent), Arc::clone(&self.stage));
        let id = self.id.clone();
        let heeding = std::panic::AssertUnwindSafe(move || while self.listen() == Next::Listen {});
        // A bug must not leave an instance that looks as if somebody cared.
        if std::panic::catch_unwind(heeding).is_err() {
            unsupervised(
                &agent,
                &stage,
                &id,
                "its supervisor met a bug, which is in the agent's log",
            );
        }
    }

    /// Begins to look on and to probe.
    fn set_out(&mut self, post: &Sender<Word>) -> std::io::Result<()> {
        let (running, to) = (Arc::clone(&self.running), post.clone());
        let doubt = self.doubt.take();
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        thread("lookout").spawn(move || look_on(&running, &to, doubt))?;
        if self.stood == Life::Stopping {
            return Ok(());
        }
        if self.hooks == Hooks::Unknown {
            // To run them again might do twice what is to be done once.
            self.end_for("was starting when its agent ended, and so did its hooks".to_owned());
            return Ok(());
        }
        let hooks = (self.hooks == Hooks::Due).then(|| Starting {
            agent: Arc::clone(&self.agent),
            running: Arc::clone(&self.running),
            hooks: self.settings.post_start.clone(),
            to: post.clone(),
        });
        if self.job {
            if let Some(hooks) = hooks {
                thread("hooks").spawn(move || hooks.run())?;
            }
            return Ok(());
        }
        let (probing, wanted) = channel();
        let prober = Prober {
            agent: Arc::clone(&self.agent),
            running: Arc::clone(&self.running),
            settings: self.settings.clone(),
            stage: self.stage.id.stage.clone(),
            before: self.before.clone(),
            address: self.address,
            to: post.clone(),
            wanted,
        };
        let (stood, open) = (self.stood.clone(), self.open.take());
        thread("prober").spawn(move || {
            if hooks.is_none_or(Starting::run) {
                prober.run(&stood, open);
            }
        })?;
        self.probing = Some(probing);
        Ok(())
    }

    /// Takes the next word; a stop that is not certain is tried again meanwhile.
    fn listen(&mut self) -> Next {
        let Some(Unconfirmed { signal, grace, pause }) = self.unconfirmed else {
            return self.inbox.recv().map_or(Next::Done, |word| self.heed(word));
        };
        match self.inbox.recv_timeout(pause) {
            Ok(word) => self.heed(word),
            Err(RecvTimeoutError::Disconnected) => Next::Done,
            Err(RecvTimeoutError::Timeout) => {
                if let Known::Ended(_) = self.running.stop(signal, grace) {
                    return self.gone();
                }
                let pause = (pause * 2).min(BACK_OFF_LAST);
                self.unconfirmed = Some(Unconfirmed { signal, grace, pause });
                Next::Listen
            }
        }
    }

    /// Whoever stopped it has been told that this is not certain; now it is.
    fn gone(&self) -> Next {
        instances::forget(&self.agent, &self.stage, &self.id);
        if let Err(report) = self.agent.translate(&self.stage) {
            self.agent.log(&format!("{}: {report}", self.stage.id));
        }
        self.agent.save(&self.stage);
        Next::Done
    }

    fn heed(&mut self, word: Word) -> Next {
        match word {
            Word::Ended(end) => return self.ended(&end),
            Word::Stop(order) => return self.stop(&order),
            Word::TooMuch(why) => self.end_for(why),
            Word::Unknown(why) => self.unknown(Some(why)),
            Word::Known => self.unknown(None),
            Word::Answered(answer) => self.answered(answer),
            Word::Hooked => {
                self.update(|instance| instance.hooked = true);
                self.agent.save(&self.stage);
            }
            Word::HookFailed(Failed { how, said }) => {
                self.update(|instance| instance.hook_said = said);
                self.misbegun = true;
                self.end_for(how);
            }
            Word::Ready(open) => {
                self.update(|instance| {
                    instance.probes.clear();
                    // By these the one that may take its place is measured: what somebody opened
                    // later, a debugger say, need not be there again.
                    instance.before.clone_from(&open);
                    (instance.silent, instance.open) = (false, Some(open));
                });
                self.set(Life::Ready);
            }
            Word::Opened(open) => {
                let life = self.update(|instance| {
                    instance.open = Some(open);
                    instance.life.clone()
                });
                // It stands as it did; the front opens what is new.
                if let Some(life) = life {
                    self.set(life);
                    self.stage.remember_ports();
                }
            }
            Word::Unhealthy(answer) => {
                self.finding("instance.unhealthy", &answer);
                self.set(Life::Unhealthy);
            }
            Word::Healthy => {
                self.finding("instance.healthy", "answers again");
                self.set(Life::Ready);
            }
        }
        Next::Listen
    }

    fn update<T>(&self, change: impl FnOnce(&mut Instance) -> T) -> Option<T> {
        self.stage.update(|state| state.instances.get_mut(&self.id).map(change))
    }

    /// Changes how the instance stands, unless it is being stopped. Routes follow.
    fn set(&self, life: Life) {
        let serves = self.stage.update(|state| {
            let active = self.serves(state);
            // Who is being stopped stays so.
            state.turn(&self.id, life).is_ok() && active
        });
        if serves {
            self.agent.routes_changed();
            self.agent.save(&self.stage);
        }
    }

    /// Whether it is in the slot that serves.
    fn serves(&self, state: &StageState) -> bool {
        state.with_role(Role::Active).is_some_and(|slot| slot.has(&self.service, &self.id))
    }

    fn is_active(&self) -> bool {
        self.serves(&self.stage.state())
    }

    fn answered(&self, answer: String) {
        self.update(|instance| {
            instance.probes.push(answer);
            let too_many = instance.probes.len().saturating_sub(ANSWERS);
            instance.probes.drain(..too_many);
        });
    }

    /// Nothing follows from not knowing but that it is said.
    fn unknown(&self, why: Option<String>) {
        let before = self.update(|instance| std::mem::replace(&mut instance.unknown, why.clone()));
        match (why, before.flatten()) {
            (Some(why), _) => self.finding("instance.unknown", &why),
            (None, Some(_)) => self.finding("instance.known", "its shim answers again"),
            (None, None) => {}
        }
    }

    fn finding(&self, kind: &str, what: &str) {
        record::note(&self.agent, &self.stage, kind, json!({ "instance": self.id, "what": what }));
    }

    /// Ends it; what follows is what follows its end.
    fn end_for(&mut self, why: String) {
        if self.ended_for.is_none() {
            self.ended_for = Some(why);
            let _ = self.running.kill();
        }
    }

    /// Stops it for whoever ordered that. What has not certainly ended keeps its place.
    fn stop(&mut self, order: &Order) -> Next {
        self.probing = None;
        let hooks = if self.ended_for.is_some() { &[] } else { &self.settings.pre_stop[..] };
        let (grace, hooked) = hooks::before_stop(&self.agent, &self.running, hooks, order.grace);
        if let Err(Failed { how, said }) = hooked {
            let data = json!({ "instance": self.id, "what": how, "log": said });
            record::note(&self.agent, &self.stage, "instance.pre_stop", data);
        }
        let known = self.running.stop(order.signal, grace);
        let next = match &known {
            Known::Unknown(why) => {
                let (signal, grace, pause) = (order.signal, order.grace, STOP_AGAIN);
                self.unconfirmed = Some(Unconfirmed { signal, grace, pause });
                self.unknown(Some(why.clone()));
                Next::Listen
            }
            _ => Next::Done,
        };
        let _ = order.done.send((order.id.clone(), known));
        next
    }

    /// It has ended: what follows depends on whether that was meant.
    fn ended(&mut self, end: &End) -> Next {
        self.probing = None;
        let lived = self.began.elapsed();
        let found = self.update(|instance| {
            instance.unknown = None;
            (instance.life != Life::Stopping).then_some((instance.restarts, instance.streak))
        });
        let (restarts, streak) = match found {
            None => return Next::Done,
            Some(None) if self.unconfirmed.is_some() => return self.gone(),
            // Whoever is about to stop it takes it out of the state.
            Some(None) => return Next::Listen,
            Some(Some(counted)) => counted,
        };
        self.end_guests();
        let how = self.ended_for.take().unwrap_or_else(|| words(end));
        let log = instances::last_lines(&self.id, Some(&self.running), 5);
        let data = json!({ "instance": self.id, "how": how, "log": log });
        record::note(&self.agent, &self.stage, "instance.exit", data);
        // Its start is refused at once: what a hook does may not be for doing four times.
        let refused = std::mem::take(&mut self.misbegun) && !self.is_active();
        if refused || !self.settings.restarts_after(success(end), self.job, restarts) {
            self.agent.claims.give_back(&self.id);
            self.set(if success(end) { Life::Completed } else { Life::Failed { how } });
            return Next::Done;
        }
        self.start_again(end, how, restarts, if lived >= LIVED { 0 } else { streak })
    }

    /// Those that have their network by this one have none any more: they end, and start again in
    /// that of the one that takes its place.
    fn end_guests(&self) {
        let guests = network::guests(&self.stage.state(), &self.id);
        for id in guests {
            let running = self.stage.state().instances.get(&id).and_then(|it| it.running.clone());
            if let Some(running) = running {
                self.agent.background(move || drop(running.kill()));
            }
        }
    }

    /// Tries, backed off, to have a fresh one in its place, until that works or nobody wants it.
    fn start_again(
        &mut self,
        end: &End,
        mut how: String,
        mut restarts: u32,
        mut streak: u32,
    ) -> Next {
        loop {
            self.set(Life::BackOff { how });
            // The first fresh one comes at once, so that clients who wait hardly notice.
            let pause = match streak {
                0 => Duration::ZERO,
                n => (BACK_OFF_FIRST * 2_u32.saturating_pow(n - 1)).min(BACK_OFF_LAST),
            };
            if let Some(order) = self.rest(pause) {
                let _ = order.done.send((order.id.clone(), Known::Ended(*end)));
                return Next::Done;
            }
            if self.agent.leaving() {
                return Next::Done;
            }
            if self.update(|instance| instance.life == Life::Stopping) != Some(false) {
                return Next::Listen;
            }
            (restarts, streak) = (restarts.saturating_add(1), streak.saturating_add(1));
            let (agent, stage) = (&self.agent, &self.stage);
            let (release, service) = (self.release, &self.service);
            match instances::launch(agent, stage, release, service, restarts, Some(&self.id)) {
                Ok(fresh) => return self.hand_over(Instance { streak, ..fresh }),
                // The machine may be short of something: that passes.
                Err(report) => {
                    how = report.line();
                    self.finding("instance.failed", &how);
                    self.update(|instance| {
                        (instance.restarts, instance.streak) = (restarts, streak);
                    });
                }
            }
        }
    }

    /// Waits; gives the order to stop it, should that come meanwhile.
    fn rest(&self, pause: Duration) -> Option<Order> {
        let deadline = Instant::now() + pause;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Word::Stop(order)) => return Some(order),
                // Late words of prober and lookout.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return None,
                // Nobody can send any more: wait as long all the same.
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(left);
                    return None;
                }
            }
        }
    }

    /// The fresh one takes this one's place in every slot. Who stops this one meanwhile hears so
    /// once both are gone, so that data never has two writers.
    fn hand_over(&mut self, fresh: Instance) -> Next {
        let (agent, stage) = (&self.agent, &self.stage);
        let id = fresh.id.clone();
        if !stage.update(|state| state.inherit(&self.id, fresh)) {
            begin(agent, stage, &id);
            if let Err(report) = instances::stop(agent, stage, &[id]) {
                agent.log(&format!("{}: {report}", stage.id));
            }
            return Next::Listen;
        }
        let old = instances::take_out(agent, stage, &self.id);
        if let Err(report) = agent.translate(stage) {
            agent.log(&format!("{}: {report}", stage.id));
        }
        begin(agent, stage, &id);
        agent.save(stage);
        let data = json!({ "old": self.id, "new": id });
        record::note(agent, stage, "instance.replaced", data);
        // Last: whoever calls the service waits for all that is before it.
        if let Some(old) = old {
            instances::bury(agent, stage, &old);
        }
        Next::Done
    }
}
