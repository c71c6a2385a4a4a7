//! What the front answers: the ports of all active slots, as one table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use kiln_core::compose::{Expose, Port, Protocol};
use kiln_front::{
    App, Applied, Behind, Bind, BindFailure, Bound, Drain, DrainPolicy, FrontError, Route,
};

use super::Agent;
use super::line::By;
use super::stage::{Life, Role, Seen, Stage, StageId, StageState};
use crate::deliver::Published;
use crate::report::Report;

/// How long a request may wait for an instance that is being replaced, in milliseconds.
const HOLD_MS: u64 = 30_000;

/// How long the front of an older build may go on with the connections that it has.
const OLD_WORKER: Duration = Duration::from_secs(600);

/// How long a stage waits for another one to take back what it cannot have, and how often it looks.
const OTHERS: Duration = Duration::from_secs(10);
const OTHERS_LOOK: Duration = Duration::from_millis(20);

const FREE_THE_PORT: &str = "end what holds the port, or publish another one";

impl Agent {
    /// Applies the table that the states of all stages make, as one generation. When a new address
    /// of `stage` cannot be bound, nothing of it is in force.
    pub(crate) fn apply_routes(&self, stage: &Stage) -> Result<(), Report> {
        let own = format!("{}/", stage.id);
        let deadline = Instant::now() + OTHERS;
        loop {
            let errors = self.apply(By::Whole)?.errors;
            let Some(first) = errors.first() else { return Ok(()) };
            let mine = errors.iter().find(|failure| failure.route.starts_with(&own));
            // Another stage asked for what it cannot have, and takes that back when it hears so.
            if mine.is_none() && Instant::now() < deadline {
                self.routes.wait_for_another(OTHERS_LOOK);
                continue;
            }
            let failure = mine.unwrap_or(first);
            return Err(Report::failed(failure.to_string()).hint(FREE_THE_PORT));
        }
    }

    fn apply(&self, by: By) -> Result<Applied, Report> {
        let stages = self.stages();
        // What the front serves now is right; a table without this stage would not be.
        if let Some(stage) = stages.iter().find(|stage| stage.state().active_is_unreadable()) {
            let what = format!(
                "{}: the release that serves cannot be read; the front goes on as it is",
                stage.id
            );
            return Err(Report::failed(what).hint("kiln fsck"));
        }
        // Of those that came meanwhile, too: whoever has the turn applies for all who wait.
        self.routes.apply(by, &|| self.stages().iter().flat_map(|stage| table(stage)).collect())
    }

    /// As [`Agent::apply_routes`], when nobody waits for the result: an address that cannot be
    /// bound is logged, and the rest is in force all the same.
    pub(crate) fn routes_changed(&self) {
        let failure = match self.apply(By::Part) {
            Ok(applied) => applied.errors.first().map(ToString::to_string),
            Err(report) => Some(report.to_string()),
        };
        if let Some(failure) = failure {
            self.log(&format!("routes: {failure}"));
        }
    }

    /// Refuses a release whose ports others hold, before anything is started.
    pub(crate) fn ports_are_free(&self, stage: &Stage, target: &Published) -> Result<(), Report> {
        let wanted: Vec<Bind> = target
            .release
            .services
            .values()
            .flat_map(|released| released.settings.ports.get(&stage.id.stage))
            .flatten()
            .filter(|port| port.published != 0)
            .flat_map(|port| {
                let protocol = protocol(port);
                listen(port).into_iter().map(move |addr| Bind { addr, protocol })
            })
            .collect();
        if let Some(report) = self.held_by_other_stages(stage, &wanted) {
            return Err(report);
        }
        // What the stage itself holds, at whichever addresses, makes room at the switch.
        let own = table(stage);
        let foreign: Vec<Bind> = wanted
            .into_iter()
            .filter(|bind| !own.iter().any(|route| holds_port(route, bind)))
            .collect();
        if foreign.is_empty() {
            return Ok(());
        }
        let taken = self.routes.check_bind(&foreign)?;
        match taken.first() {
            None => Ok(()),
            Some(taken) => {
                Err(Report::failed(format!("{}: {taken}", stage.id)).hint(FREE_THE_PORT))
            }
        }
    }

    fn held_by_other_stages(&self, stage: &Stage, wanted: &[Bind]) -> Option<Report> {
        for other in self.stages().iter().filter(|other| other.id != stage.id) {
            for route in table(other) {
                let clash = route.listen.iter().find(|at| {
                    wanted
                        .iter()
                        .any(|bind| bind.protocol == route.protocol && overlap(bind.addr, **at))
                });
                if let Some(at) = clash {
                    let text =
                        format!("{}: port {at} is taken by {} of this root", stage.id, route.id);
                    return Some(Report::failed(text).hint("publish another port"));
                }
            }
        }
        None
    }

    /// As [`Agent::drain`], while requests are held: WebSockets and streams of events, which would
    /// not end by themselves, are ended at once. Their clients come again, and are held.
    pub(crate) fn drain_for_pause(&self, upstreams: &[SocketAddr], limit: Duration) {
        if upstreams.is_empty() {
            return;
        }
        let drain = Drain::of(upstreams.iter().copied(), limit);
        let drain = Drain { policy: DrainPolicy::CutStreams, ..drain };
        if let Err(error) = self.routes.aside(|mut front| front.drain(&drain)) {
            self.log(&format!("draining: {error}"));
        }
    }

    /// Waits until nothing is under way on `upstreams`, up to `limit`, then cuts what is.
    pub(crate) fn drain(&self, upstreams: &[SocketAddr], limit: Duration) {
        if upstreams.is_empty() {
            return;
        }
        let drain = Drain::of(upstreams.iter().copied(), limit);
        let drained = self.routes.aside(|mut front| front.drain(&drain));
        if let Err(error) = drained {
            self.log(&format!("draining: {error}"));
        }
    }

    /// Waits until nothing is under way on `upstreams`, for as long as their routes said, counted
    /// from the switch, then cuts what is; the front keeps the clock, so that it runs on whatever
    /// becomes of the agent. `limit` is for those that the front knows no clock of.
    pub(crate) fn drain_as_routed(&self, upstreams: &[SocketAddr], limit: Duration) {
        if upstreams.is_empty() {
            return;
        }
        let drain = Drain::of(upstreams.iter().copied(), limit).as_routed();
        let drained = self.routes.aside(|mut front| front.drain(&drain));
        if let Err(error) = drained {
            self.log(&format!("draining: {error}"));
        }
    }

    /// What is still under way at releases that serve no more, and the addresses that could not be
    /// had, on all stages.
    fn behind(&self) -> Result<(Vec<Behind>, Vec<BindFailure>), Report> {
        self.routes.aside(|mut front| front.behind())
    }

    /// Where the front listens; nowhere when it cannot be asked.
    pub(crate) fn bound(&self) -> Vec<Bound> {
        let asked = self.routes.aside(|mut front| front.table());
        asked.map(|(_, bound)| bound).unwrap_or_default()
    }

    /// What a user of a stage should know of its front, as sentences: what is still with which
    /// release, and until when; which ports somebody else has.
    pub(crate) fn front_says(&self, stage: &Stage) -> Vec<String> {
        let (behind, waiting) = match self.behind() {
            Ok(said) => said,
            // Without ports there is none, and nothing to be said.
            Err(_) if table(stage).is_empty() => return Vec::new(),
            Err(report) => return vec![report.message],
        };
        let instances: BTreeSet<IpAddr> =
            stage.state().instances.values().map(|it| IpAddr::V4(it.address)).collect();
        let mut by_release: BTreeMap<String, Left> = BTreeMap::new();
        for left in behind.iter().filter(|it| instances.contains(&it.upstream.ip())) {
            by_release.entry(left.slot.clone()).or_default().add(left);
        }
        let own = format!("{}/", stage.id);
        let taken = waiting.iter().filter(|failure| failure.route.starts_with(&own));
        let left = by_release.iter().map(|(release, left)| left.sentence(release));
        left.chain(taken.map(|failure| format!("{failure}; it is tried again"))).collect()
    }

    /// The port that the kernel has chosen for a published port 0, if the front tells.
    pub(crate) fn bound_port(&self, stage: &Stage, service: &str, port: &Port) -> Option<u16> {
        let id = route_id(&stage.id, service, port);
        let (_, bound) = self.routes.aside(|mut front| front.table()).ok()?;
        bound.into_iter().find(|bound| bound.route == id).map(|bound| bound.bound.port())
    }

    /// Looks after the front: the minder starts a worker that was killed, this starts a minder.
    pub(crate) fn mind_front(&self) {
        match self.routes.renew(OLD_WORKER) {
            Ok(false) | Err(FrontError::Connect { .. }) => {}
            Ok(true) => {
                self.log("the front is of this build now; the old one finishes what it has")
            }
            Err(error) => self.log(&format!("replacing the front by one of this build: {error}")),
        }
        let needed = self.stages().iter().any(|stage| !table(stage).is_empty());
        let silent = self.routes.is_silent();
        let broken = (needed || silent) && !self.leaving() && self.routes.is_broken();
        match (silent, self.routes.is_silent()) {
            (false, true) => self.log("the front is there and does not answer"),
            (true, false) => self.log("the front answers again"),
            _ => {}
        }
        if needed && broken {
            self.log("the front is not whole: starting what is missing");
            self.routes_changed();
        }
    }

    /// Ends the front of this root.
    pub(crate) fn stop_front(&self) {
        self.routes.stop();
    }
}

/// What is still with a release that serves no more.
#[derive(Debug, Default)]
struct Left {
    requests: usize,
    connections: usize,
    cut_in_ms: Option<u64>,
}

impl Left {
    fn add(&mut self, more: &Behind) {
        self.requests += more.requests;
        self.connections += more.connections;
        self.cut_in_ms = self.cut_in_ms.max(more.cut_in_ms);
    }

    /// `3 requests and 1 connection are still with release abc, for 9 s at most`.
    fn sentence(&self, release: &str) -> String {
        let count = |count: usize, word: &str| match count {
            0 => None,
            1 => Some(format!("1 {word}")),
            more => Some(format!("{more} {word}s")),
        };
        let counts = [count(self.requests, "request"), count(self.connections, "connection")];
        let what: Vec<String> = counts.into_iter().flatten().collect();
        let is = if self.requests + self.connections == 1 { "is" } else { "are" };
        let until = match self.cut_in_ms {
            Some(ms) => format!("for {} s at most", ms.div_ceil(1000)),
            None => "until they end".to_owned(),
        };
        format!("{} {is} still with release {release}, {until}", what.join(" and "))
    }
}

/// The routes of one stage.
fn table(stage: &Stage) -> Vec<Route> {
    let state = stage.state();
    let Some(slot) = state.with_role(Role::Active) else { return Vec::new() };
    let Some(release) = state.releases.get(&slot.release) else { return Vec::new() };
    let mut routes = Vec::new();
    for (service, released) in &release.services {
        let ports = released.settings.ports.get(&stage.id.stage).map_or(&[][..], Vec::as_slice);
        for (port, listen) in listened(ports) {
            routes.push(route(stage, &state, &slot.release.short(), service, port, listen));
        }
    }
    routes
}

/// Ports as routes have them: one that is published at several addresses of the host is one, which
/// listens at all of them. Those that the system chooses are apart, as each has a number of its own.
fn listened(ports: &[Port]) -> Vec<(&Port, Vec<SocketAddr>)> {
    let mut all: Vec<(&Port, Vec<SocketAddr>)> = Vec::new();
    for port in ports {
        let same = |(other, _): &&mut (&Port, Vec<SocketAddr>)| {
            port.published != 0
                && (other.published, other.target, other.protocol)
                    == (port.published, port.target, port.protocol)
        };
        match all.iter_mut().find(same) {
            Some((_, listens)) => {
                let more: Vec<_> =
                    listen(port).into_iter().filter(|at| !listens.contains(at)).collect();
                listens.extend(more);
            }
            None => all.push((port, listen(port))),
        }
    }
    all
}

/// What a route is called: the same over all releases that publish it.
pub(crate) fn route_id(stage: &StageId, service: &str, port: &Port) -> String {
    let Port { host_ip, published, target, .. } = port;
    let name = protocol(port);
    match host_ip {
        Some(ip) if *published == 0 => {
            let at = SocketAddr::new(*ip, 0);
            format!("{stage}/{service}:{at}:{target}/{name}")
        }
        _ => format!("{stage}/{service}:{published}:{target}/{name}"),
    }
}

fn route(
    stage: &Stage,
    state: &StageState,
    slot: &str,
    service: &str,
    port: &Port,
    listen: Vec<SocketAddr>,
) -> Route {
    let active = state.with_role(Role::Active);
    // One route leads to one instance: the newest.
    let instance =
        active.and_then(|slot| slot.of(service).last()).and_then(|id| state.instances.get(id));
    // Nobody waits for what will not come by itself.
    let given_up =
        instance.is_some_and(|found| matches!(found.life, Life::Completed | Life::Failed { .. }));
    let lives = instance
        .filter(|instance| matches!(instance.life, Life::Ready | Life::Unhealthy))
        .filter(|_| !state.is_held());
    // A port is opened when the instance accepts there.
    let own = Expose { target: port.target, protocol: port.protocol };
    let upstream = lives
        .filter(|instance| instance.open.as_ref().is_none_or(|open| open.contains(&own)))
        .map(|instance| SocketAddr::from((instance.address, port.target)));
    let drain = state.pointer.policy.drain(&stage.id.stage);
    let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
    Route {
        id: route_id(&stage.id, service, port),
        listen,
        protocol: protocol(port),
        app: match port.app_protocol.as_deref() {
            Some("http" | "ws" | "http2" | "h2c" | "grpc") => App::Http,
            Some("dns") if port.protocol == Protocol::Udp => App::Dns,
            Some(_) => App::Tcp,
            None => App::Auto,
        },
        slot: slot.to_owned(),
        upstream,
        hold: upstream.is_none() && lives.is_none() && (state.is_held() || !given_up),
        hold_ms: HOLD_MS,
        drain_ms: Some(drain_ms),
    }
}

fn holds_port(route: &Route, bind: &Bind) -> bool {
    let same = |at: &SocketAddr| at.port() == bind.addr.port();
    route.protocol == bind.protocol && route.listen.iter().any(same)
}

/// Whether both cannot be listened on: IPv6 sockets of the front never take IPv4.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let all = |at: SocketAddr| at.ip().is_unspecified();
    a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && (a.ip() == b.ip() || all(a) || all(b))
}

fn listen(port: &Port) -> Vec<SocketAddr> {
    match port.host_ip {
        Some(ip) => vec![SocketAddr::new(ip, port.published)],
        None => Route::everywhere(port.published),
    }
}

fn protocol(port: &Port) -> kiln_front::Protocol {
    match port.protocol {
        Protocol::Tcp => kiln_front::Protocol::Tcp,
        Protocol::Udp => kiln_front::Protocol::Udp,
    }
}

#[cfg(test)]
mod tests {
    use super::{Left, overlap};

    #[test]
    fn what_stays_behind_is_told_in_a_sentence() {
        let said = |requests, connections, cut_in_ms| {
            Left { requests, connections, cut_in_ms }.sentence("abc")
        };
        let both = "3 requests and 1 connection are still with release abc, for 10 s at most";
        assert_eq!(said(3, 1, Some(9001)), both);
        assert_eq!(said(0, 1, None), "1 connection is still with release abc, until they end");
    }

    #[test]
    fn an_address_and_all_addresses_cannot_be_had_together() {
        for (a, b, together) in [
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "0.0.0.0:81", false),
            ("[::]:80", "[::1]:80", true),
            ("[::]:80", "127.0.0.1:80", false),
        ] {
            assert_eq!(overlap(a.parse().unwrap(), b.parse().unwrap()), together, "{a} {b}");
        }
    }
}
