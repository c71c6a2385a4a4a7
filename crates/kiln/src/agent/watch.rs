//! Whether an instance is ready, and from then on healthy: one thread for each that has something
//! to be asked. What it finds goes to the instance's supervisor; it decides nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use kiln_core::compose::{Expose, Protocol};
use kiln_core::exit::Exit;
use kiln_core::image::Healthcheck;
use kiln_core::release::Settings;
use kiln_run::net::Listening;
use kiln_run::{ExecSpec, Running};

use super::stage::Life;
use super::supervise::Word;
use super::{Agent, silence};
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

/// A first release is ready when one of its ports accepts and nothing has begun to listen for so
/// long.
const QUIET: Duration = Duration::from_secs(1);

/// How often ports that do not accept yet are asked again.
const LATE: Duration = Duration::from_millis(500);

/// What a prober looks at.
pub(super) struct Prober {
    pub(super) agent: Arc<Agent>,
    pub(super) running: Arc<Running>,
    pub(super) settings: Settings,
    /// The stage's name.
    pub(super) stage: String,
    /// Ports that accepted before this instance.
    pub(super) before: BTreeSet<Expose>,
    pub(super) address: Ipv4Addr,
    /// Where its findings go.
    pub(super) to: Sender<Word>,
    /// Closed when nobody wants them any more.
    pub(super) wanted: Receiver<()>,
}

impl Prober {
    /// Probes from how the instance stood, and which of its ports accepted: one that an agent
    /// before this one saw ready is not new.
    pub(super) fn run(self, stood: &Life, open: Option<BTreeSet<Expose>>) {
        let retries = self.retries();
        let found = match stood {
            // Those of which nothing is known count as open.
            Life::Ready => Some((0, open.unwrap_or_else(|| self.published()))),
            Life::Unhealthy => Some((retries, open.unwrap_or_else(|| self.published()))),
            _ => self.until_ready().map(|open| (0, open)),
        };
        if let Some((failures, open)) = found {
            self.while_ready(retries, failures, open);
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

    /// Probes until ready, and gives the ports that accept. `None`: nobody wants to know any more.
    fn until_ready(&self) -> Option<BTreeSet<Expose>> {
        let mut pause = PROBE_FIRST;
        let began = Instant::now();
        let (mut quiet, mut seen) = (Quiet::default(), BTreeSet::new());
        loop {
            let ready = if self.settings.healthcheck.is_some() {
                self.check().map(|()| self.accepting(&self.settings.expose))
            } else if silence::by_ports(&self.settings) {
                self.ports(&mut quiet, &mut seen)
            } else if began.elapsed() >= SETTLE {
                Ok(BTreeSet::new())
            } else {
                Err(String::new())
            };
            match ready {
                Ok(open) => {
                    self.say(Word::Ready(open.clone()));
                    return Some(open);
                }
                Err(answer) if answer.is_empty() => {}
                Err(answer) => self.say(Word::Answered(answer)),
            }
            if !self.rest(pause) {
                return None;
            }
            pause = (pause * 2).min(PROBE_LAST);
        }
    }

    /// Whether its ports say that it is ready: all of them accept, or those that did before; where
    /// none did before, one of them does, and nothing new has begun to listen for a while.
    fn ports(
        &self,
        quiet: &mut Quiet,
        seen: &mut BTreeSet<Expose>,
    ) -> Result<BTreeSet<Expose>, String> {
        let wanted = &silence::counted(&self.settings);
        let open = self.accepting(wanted);
        if open != *seen {
            self.say(Word::Opened(open.clone()));
            seen.clone_from(&open);
        }
        let mut before = self.before.intersection(wanted).peekable();
        let first = before.peek().is_none();
        if open.is_superset(wanted) || !first && before.all(|port| open.contains(port)) {
            return Ok(open);
        }
        if first && !open.is_empty() {
            let listening = self.running.listening().unwrap_or_default();
            if quiet.since(listening) >= QUIET {
                return Ok(open);
            }
        }
        let missing = wanted.difference(&open).map(|port| port.target.to_string());
        Err(format!("nothing accepts on {}", missing.collect::<Vec<_>>().join(", ")))
    }

    /// The ports that the front publishes.
    fn published(&self) -> BTreeSet<Expose> {
        let ports = self.settings.ports.get(&self.stage).into_iter().flatten();
        ports.map(|port| Expose { target: port.target, protocol: port.protocol }).collect()
    }

    /// Probes at the interval, and looks for published ports that begin to accept.
    fn while_ready(&self, retries: u32, mut failures: u32, mut open: BTreeSet<Expose>) {
        let check = self.settings.healthcheck.as_ref();
        let interval = check.map(|check| nanos(check.interval, Duration::from_secs(30)));
        let mut shut: BTreeSet<Expose> = self.published().difference(&open).copied().collect();
        let mut due = Instant::now() + interval.unwrap_or_default();
        loop {
            let left = interval.map(|_| due.saturating_duration_since(Instant::now()));
            let late = (!shut.is_empty()).then_some(LATE);
            // Nothing is left to be asked.
            let Some(pause) = left.into_iter().chain(late).min() else { return };
            if !self.rest(pause) {
                return;
            }
            let more = if shut.is_empty() { BTreeSet::new() } else { self.accepting(&shut) };
            if !more.is_empty() {
                shut.retain(|port| !more.contains(port));
                open.extend(more);
                self.say(Word::Opened(open.clone()));
            }
            if let Some(interval) = interval
                && Instant::now() >= due
            {
                failures = self.judge(retries, failures);
                due = Instant::now() + interval;
            }
        }
    }

    /// One probe of an instance that got ready: how many have failed in a row now.
    fn judge(&self, retries: u32, failures: u32) -> u32 {
        match self.check() {
            Ok(()) if failures >= retries => self.say(Word::Healthy),
            Ok(()) => {}
            Err(answer) => {
                self.say(Word::Answered(answer.clone()));
                if failures.saturating_add(1) == retries {
                    self.say(Word::Unhealthy(answer));
                }
                return failures.saturating_add(1);
            }
        }
        0
    }

    /// The health check, once.
    fn check(&self) -> Result<(), String> {
        let Some(check) = &self.settings.healthcheck else { return Ok(()) };
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

    /// Those of `ports` that accept. Nobody can be asked whether a datagram is welcome, so of UDP
    /// it is whether somebody has the port.
    fn accepting(&self, ports: &BTreeSet<Expose>) -> BTreeSet<Expose> {
        let udp = ports.iter().any(|port| port.protocol == Protocol::Udp);
        let bound =
            if udp { self.running.listening().unwrap_or_default() } else { BTreeSet::new() };
        let has_it = |target: u16| {
            bound.iter().any(|(protocol, at)| {
                let reached = at.ip().is_unspecified() || at.ip() == IpAddr::V4(self.address);
                *protocol == Protocol::Udp && at.port() == target && reached
            })
        };
        let accepts = |port: &&Expose| match port.protocol {
            Protocol::Udp => has_it(port.target),
            Protocol::Tcp => {
                let at = SocketAddr::from((self.address, port.target));
                TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_ok()
            }
        };
        ports.iter().filter(accepts).copied().collect()
    }
}

/// Since when nothing new listens.
#[derive(Debug, Default)]
struct Quiet {
    known: BTreeSet<Listening>,
    since: Option<Instant>,
}

impl Quiet {
    /// How long `listening` has had nothing new.
    fn since(&mut self, listening: BTreeSet<Listening>) -> Duration {
        let news = listening.iter().any(|it| !self.known.contains(it));
        if news || self.since.is_none() {
            self.since = Some(Instant::now());
        }
        self.known = listening;
        self.since.map(|since| since.elapsed()).unwrap_or_default()
    }
}
