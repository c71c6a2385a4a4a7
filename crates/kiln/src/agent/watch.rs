//! One thread for each instance: probes it until it is ready and from then on at its interval,
//! notices its end, and replaces it by a fresh one where the service's `restart` says so.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_core::Digest;
use kiln_core::compose::{Expose, Protocol, Restart};
use kiln_core::exit::Exit;
use kiln_core::image::Healthcheck;
use kiln_core::plan;
use kiln_core::release::Settings;
use kiln_run::{ExecSpec, InstanceState, Running};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::json;

use super::stage::{Instance, Life, Role, Stage};
use super::{Agent, instances, record};
use crate::report::Report;

/// How long a service without a health check may take until its ports accept.
pub(crate) const PORTS_PATIENCE: Duration = Duration::from_secs(60);

/// A service with neither ports nor a health check is ready when it has lived so long.
const SETTLE: Duration = Duration::from_millis(200);

/// Until first healthy, probes come at once and then back off between these.
const PROBE_FIRST: Duration = Duration::from_millis(2);
const PROBE_LAST: Duration = Duration::from_millis(200);

/// Pauses before the first and the last fresh instance of one that keeps ending.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_LAST: Duration = Duration::from_secs(30);

/// An instance that lived so long has not failed to start: back-off begins anew.
const LIVED: Duration = Duration::from_secs(10);

/// Failed probes whose answers are kept for messages.
const ANSWERS: usize = 3;

fn nanos(value: Option<u64>, default: Duration) -> Duration {
    value.filter(|value| *value > 0).map_or(default, Duration::from_nanos)
}

/// How long a service with this check may take to get healthy: what Docker would take to call it
/// unhealthy.
pub(crate) fn patience(check: &Healthcheck) -> Duration {
    let interval = nanos(check.interval, Duration::from_secs(30));
    let timeout = nanos(check.timeout, Duration::from_secs(30));
    let retries = check.retries.unwrap_or(3).max(1);
    nanos(check.start_period, Duration::ZERO)
        .saturating_add(interval.saturating_mul(retries))
        .saturating_add(timeout.min(interval))
}

fn success(ended: &InstanceState) -> bool {
    matches!(ended, InstanceState::Exited(exit) if exit.code == 0)
}

/// How it ended, as a person says it.
fn words(ended: &InstanceState) -> String {
    match ended {
        InstanceState::Exited(exit) if exit.oom => "ran out of its memory limit".into(),
        InstanceState::Exited(exit) => match exit.signal {
            Some(signal) => format!("was ended by signal {signal}"),
            None => format!("exited with status {}", exit.code),
        },
        InstanceState::Running { .. } => "still runs".into(),
        InstanceState::Lost => "lost its shim".into(),
    }
}

/// What is watched.
struct Watch {
    agent: Arc<Agent>,
    stage: Arc<Stage>,
    id: String,
    release: Digest,
    service: String,
    settings: Settings,
    job: bool,
    address: std::net::Ipv4Addr,
    running: Arc<Running>,
}

/// Watches instance `id` from now on.
pub(crate) fn begin(agent: &Arc<Agent>, stage: &Arc<Stage>, id: &str) {
    let found = {
        let state = stage.state();
        state.instances.get(id).and_then(|instance| {
            let release = state.releases.get(&instance.born)?;
            let released = release.services.get(&instance.service)?;
            Some(Watch {
                agent: Arc::clone(agent),
                stage: Arc::clone(stage),
                id: id.to_owned(),
                release: instance.born,
                service: instance.service.clone(),
                settings: released.settings.clone(),
                job: plan::is_job(release, &instance.service),
                address: instance.address,
                running: Arc::clone(instance.running.as_ref()?),
            })
        })
    };
    if let Some(watch) = found {
        std::thread::spawn(move || watch.run());
    }
}

impl Watch {
    fn run(self) {
        let began = Instant::now();
        let ended = self.until_ready().or_else(|| self.while_ready());
        self.ended(&ended.unwrap_or(InstanceState::Lost), began.elapsed());
    }

    /// Changes how the instance stands, unless it is being stopped. Routes follow.
    fn set(&self, life: Life) {
        let serves = self.stage.update(|state| {
            let active = state.with_role(Role::Active).is_some_and(|slot| {
                slot.members.get(&self.service).is_some_and(|member| *member == self.id)
            });
            match state.instances.get_mut(&self.id) {
                Some(instance) if instance.life != Life::Stopping => {
                    instance.life = life;
                    active
                }
                _ => false,
            }
        });
        if serves {
            self.agent.routes_changed();
            self.agent.save(&self.stage);
        }
    }

    fn answer(&self, answer: String) {
        self.stage.update(|state| {
            if let Some(instance) = state.instances.get_mut(&self.id) {
                instance.probes.push(answer);
                let too_many = instance.probes.len().saturating_sub(ANSWERS);
                instance.probes.drain(..too_many);
            }
        });
    }

    /// Waits for the end, at most for `limit`.
    fn wait(&self, limit: Option<Duration>) -> Option<InstanceState> {
        let Some(limit) = limit else { return self.running.wait().ok() };
        match self.running.wait_fd() {
            Ok(Some(fd)) => {
                let mut fds = [PollFd::new(&fd, PollFlags::IN)];
                let limit = Timespec::try_from(limit).ok();
                match rustix::event::poll(&mut fds, limit.as_ref()) {
                    Ok(0) | Err(_) => None,
                    Ok(_) => Some(self.running.status().unwrap_or(InstanceState::Lost)),
                }
            }
            Ok(None) => Some(self.running.status().unwrap_or(InstanceState::Lost)),
            Err(_) => Some(InstanceState::Lost),
        }
    }

    /// Probes until ready. Gives how it ended, if it did before.
    fn until_ready(&self) -> Option<InstanceState> {
        if self.job {
            return None;
        }
        let mut pause = PROBE_FIRST;
        let began = Instant::now();
        loop {
            let ready = match self.probe() {
                Ok(()) if self.nothing_to_ask() => began.elapsed() >= SETTLE,
                Ok(()) => true,
                Err(answer) => {
                    self.answer(answer);
                    false
                }
            };
            if ready {
                self.stage.update(|state| {
                    if let Some(instance) = state.instances.get_mut(&self.id) {
                        instance.probes.clear();
                    }
                });
                self.set(Life::Ready);
                return None;
            }
            if let Some(ended) = self.wait(Some(pause)) {
                return Some(ended);
            }
            pause = (pause * 2).min(PROBE_LAST);
        }
    }

    /// Probes at the interval, until it ends.
    fn while_ready(&self) -> Option<InstanceState> {
        let Some(check) = &self.settings.healthcheck else { return self.wait(None) };
        let interval = nanos(check.interval, Duration::from_secs(30));
        let retries = check.retries.unwrap_or(3).max(1);
        let mut failures = 0;
        loop {
            if let Some(ended) = self.wait(Some(interval)) {
                return Some(ended);
            }
            match self.probe() {
                Ok(()) if failures >= retries => {
                    failures = 0;
                    self.finding("instance.healthy", "answers again");
                    self.set(Life::Ready);
                }
                Ok(()) => failures = 0,
                Err(answer) => {
                    failures += 1;
                    self.answer(answer.clone());
                    if failures == retries {
                        self.finding("instance.unhealthy", &answer);
                        self.set(Life::Unhealthy);
                    }
                }
            }
        }
    }

    fn nothing_to_ask(&self) -> bool {
        let tcp = |expose: &Expose| expose.protocol == Protocol::Tcp;
        self.settings.healthcheck.is_none() && !self.settings.expose.iter().any(tcp)
    }

    /// One probe: the health check, else whether every callable TCP port accepts.
    fn probe(&self) -> Result<(), String> {
        let Some(check) = &self.settings.healthcheck else { return self.ports_accept() };
        let argv = match check.test.split_first() {
            Some((kind, rest)) if kind == "CMD" => rest.to_vec(),
            Some((kind, rest)) if kind == "CMD-SHELL" => {
                vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.join(" ")]
            }
            _ => return Ok(()),
        };
        let timeout = nanos(check.timeout, Duration::from_secs(30));
        let spec = ExecSpec { argv, ..ExecSpec::default() };
        let outcome = self
            .agent
            .runtime
            .exec_capture(&self.running, &spec, timeout)
            .map_err(|error| Report::from_error(Exit::Failed, &error).to_string())?;
        if outcome.timed_out {
            return Err(format!("no answer within {:.1} s", timeout.as_secs_f64()));
        }
        if outcome.code == 0 {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&outcome.output);
        Err(format!("exit {}: {}", outcome.code, output.trim()).trim_end_matches(": ").to_owned())
    }

    fn ports_accept(&self) -> Result<(), String> {
        for expose in &self.settings.expose {
            if expose.protocol == Protocol::Tcp {
                let at = SocketAddr::from((self.address, expose.target));
                TcpStream::connect_timeout(&at, Duration::from_secs(1))
                    .map_err(|error| format!("port {}: {error}", expose.target))?;
            }
        }
        Ok(())
    }

    fn finding(&self, kind: &str, what: &str) {
        record::note(&self.agent, &self.stage, kind, json!({ "instance": self.id, "what": what }));
    }

    /// It has ended: what follows depends on whether that was meant.
    fn ended(&self, ended: &InstanceState, lived: Duration) {
        let restarts = {
            let state = self.stage.state();
            match state.instances.get(&self.id) {
                Some(instance) if instance.life != Life::Stopping => instance.restarts,
                // Whoever is stopping it takes it out of the state.
                _ => return,
            }
        };
        let how = words(ended);
        let log = instances::last_lines(&self.id, Some(&self.running), 5);
        let data = json!({ "instance": self.id, "how": how, "log": log });
        record::note(&self.agent, &self.stage, "instance.exit", data);
        let again = match self.settings.restart() {
            _ if self.job && success(ended) => false,
            Restart::No => false,
            Restart::OnFailure { max } => !success(ended) && max.is_none_or(|max| restarts < max),
            Restart::Always => true,
        };
        if !again {
            self.set(if success(ended) { Life::Completed } else { Life::Failed { how } });
            return;
        }
        self.set(Life::BackOff { how });
        let restarts = if lived >= LIVED { 0 } else { restarts };
        // The first fresh one comes at once, so that clients who wait hardly notice.
        let pause = match restarts {
            0 => Duration::ZERO,
            n => (BACK_OFF_FIRST * 2_u32.saturating_pow(n - 1)).min(BACK_OFF_LAST),
        };
        if self.pause(pause) {
            self.replace(restarts + 1);
        }
    }

    /// Waits; false when meanwhile the instance is no longer wanted.
    fn pause(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        let mut state = self.stage.state();
        loop {
            let wanted = state
                .instances
                .get(&self.id)
                .is_some_and(|instance| instance.life != Life::Stopping);
            if !wanted || self.agent.leaving() {
                return false;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            state = self.stage.wait(state, left);
        }
    }

    /// A fresh instance takes this one's place in every slot. Who stops this one meanwhile waits
    /// until it is clear which of the two is there, so that data never has two writers.
    fn replace(&self, restarts: u32) {
        let claimed = self.stage.update(|state| match state.instances.get_mut(&self.id) {
            Some(old) if old.life != Life::Stopping => {
                old.replacing = true;
                true
            }
            _ => false,
        });
        if !claimed {
            return;
        }
        let (agent, stage) = (&self.agent, &self.stage);
        match instances::launch(agent, stage, self.release, &self.service, restarts) {
            Ok(fresh) => self.hand_over(fresh),
            Err(report) => {
                self.finding("instance.failed", &report.message);
                self.set(Life::Failed { how: report.message });
            }
        }
        stage.update(|state| {
            if let Some(old) = state.instances.get_mut(&self.id) {
                old.replacing = false;
            }
        });
    }

    fn hand_over(&self, fresh: Instance) {
        let (agent, stage) = (&self.agent, &self.stage);
        let id = fresh.id.clone();
        if !stage.update(|state| state.inherit(&self.id, fresh)) {
            return instances::stop(agent, stage, &[id]);
        }
        instances::forget(agent, stage, &self.id);
        if let Err(report) = agent.translate(stage) {
            agent.log(&format!("{}: {report}", stage.id));
        }
        begin(agent, stage, &id);
        agent.save(stage);
        let data = json!({ "old": self.id, "new": id });
        record::note(agent, stage, "instance.replaced", data);
    }
}
