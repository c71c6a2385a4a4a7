//! Whether an instance is ready, and from then on healthy: one thread for each that has something
//! to be asked. What it finds goes to the instance's supervisor; it decides nothing.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use kiln_core::compose::{Expose, Protocol};
use kiln_core::exit::Exit;
use kiln_core::image::Healthcheck;
use kiln_core::release::Settings;
use kiln_run::{ExecSpec, Running};

use super::Agent;
use super::stage::Life;
use super::supervise::Word;
use crate::report::Report;

/// How long a service without a health check may take until its ports accept.
pub(crate) const PORTS_PATIENCE: Duration = Duration::from_secs(60);

/// A service with neither ports nor a health check is ready when it has lived so long.
const SETTLE: Duration = Duration::from_millis(200);

/// Until first healthy, probes come at once and then back off between these.
const PROBE_FIRST: Duration = Duration::from_millis(2);
const PROBE_LAST: Duration = Duration::from_millis(200);

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

/// What a prober looks at.
pub(super) struct Prober {
    pub(super) agent: Arc<Agent>,
    pub(super) running: Arc<Running>,
    pub(super) settings: Settings,
    pub(super) address: Ipv4Addr,
    /// Where its findings go.
    pub(super) to: Sender<Word>,
    /// Closed when nobody wants them any more.
    pub(super) wanted: Receiver<()>,
}

impl Prober {
    /// Probes from how the instance stood: one that an agent before this one saw ready is not new.
    pub(super) fn run(self, stood: &Life) {
        let retries = self.retries();
        let failures = match stood {
            Life::Ready => Some(0),
            Life::Unhealthy => Some(retries),
            _ => self.until_ready().then_some(0),
        };
        if let (Some(failures), Some(check)) = (failures, &self.settings.healthcheck) {
            self.while_ready(check, retries, failures);
        }
    }

    fn retries(&self) -> u32 {
        let check = self.settings.healthcheck.as_ref();
        check.and_then(|check| check.retries).unwrap_or(3).max(1)
    }

    /// Waits. False: nobody wants to know any more.
    fn rest(&self, pause: Duration) -> bool {
        self.wanted.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
    }

    fn say(&self, word: Word) {
        // A supervisor that has gone needs no answer.
        let _ = self.to.send(word);
    }

    /// Probes until ready. False: nobody wants to know any more.
    fn until_ready(&self) -> bool {
        let mut pause = PROBE_FIRST;
        let began = Instant::now();
        loop {
            let ready = match self.probe() {
                Ok(()) if self.nothing_to_ask() => began.elapsed() >= SETTLE,
                Ok(()) => true,
                Err(answer) => {
                    self.say(Word::Answered(answer));
                    false
                }
            };
            if ready {
                self.say(Word::Ready);
                return true;
            }
            if !self.rest(pause) {
                return false;
            }
            pause = (pause * 2).min(PROBE_LAST);
        }
    }

    /// Probes at the interval.
    fn while_ready(&self, check: &Healthcheck, retries: u32, mut failures: u32) {
        let interval = nanos(check.interval, Duration::from_secs(30));
        while self.rest(interval) {
            match self.probe() {
                Ok(()) if failures >= retries => {
                    failures = 0;
                    self.say(Word::Healthy);
                }
                Ok(()) => failures = 0,
                Err(answer) => {
                    failures = failures.saturating_add(1);
                    self.say(Word::Answered(answer.clone()));
                    if failures == retries {
                        self.say(Word::Unhealthy(answer));
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
}
