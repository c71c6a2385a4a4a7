//! What the worker owns: the table in force, its listeners and upstreams. [`State::apply`] is the
//! one place where they change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::header::HeaderValue;
use tokio::task::AbortHandle;

use crate::core::Cores;
use crate::generation::{Front, Generation, LiveRoute};
use crate::holder;
use crate::link::{self, Message};
use crate::listener::{self, Key};
use crate::proxy::udp;
use crate::saved::Saved;
use crate::table::{Protocol, Route, Table};
use crate::upstream::{Counters, Upstream};
use crate::wire::{Applied, Bind, BindFailure, Bound, Drain, Reply, Stats, UpstreamStats};

/// The worker's state; lives behind one lock on the control thread.
#[derive(Debug)]
pub(crate) struct State {
    front: Arc<Front>,
    cores: Cores,
    path: PathBuf,
    table: Table,
    listeners: BTreeMap<Key, Listener>,
    /// Addresses that an earlier table could not get: they do not stop a later one.
    failed: BTreeSet<Key>,
    upstreams: HashMap<SocketAddr, Weak<Upstream>>,
    /// Keeps the live ones.
    live: Vec<Arc<Upstream>>,
    counters: HashMap<String, Arc<Counters>>,
    minder: Option<Arc<OwnedFd>>,
    next_id: u64,
}

#[derive(Debug)]
struct Listener {
    id: u64,
    socket: Arc<OwnedFd>,
    bound: SocketAddr,
    task: Option<AbortHandle>,
}

/// Sockets got for a new table, and those that could not be.
#[derive(Debug, Default)]
struct Fresh {
    sockets: BTreeMap<Key, OwnedFd>,
    failures: Vec<(Key, BindFailure)>,
}

impl State {
    pub(crate) fn new(front: Arc<Front>, cores: Cores, path: PathBuf) -> Self {
        Self {
            front,
            cores,
            path,
            table: Table::default(),
            listeners: BTreeMap::new(),
            failed: BTreeSet::new(),
            upstreams: HashMap::new(),
            live: Vec::new(),
            counters: HashMap::new(),
            minder: None,
            next_id: 1,
        }
    }

    /// Serves what the last worker served, on the sockets that the minder kept.
    pub(crate) fn restore(&mut self, mut kept: BTreeMap<Key, OwnedFd>) {
        let saved = Saved::read(&self.path);
        let fresh = self.bind_missing(&saved.table, &saved.bound, &mut kept);
        for (_, failure) in &fresh.failures {
            eprintln!("front: {failure}");
        }
        for (key, socket) in kept {
            listener::close(key.protocol, &socket);
            self.tell(&Message::Drop(key), None);
        }
        self.failed = fresh.failures.into_iter().map(|(key, _)| key).collect();
        self.put_in_force(saved.table, fresh.sockets);
    }

    /// Puts `table` in force.
    pub(crate) fn apply(&mut self, table: Table, partial: bool) -> Reply {
        if table.generation <= self.table.generation && table != self.table {
            let (asked, current) = (table.generation, self.table.generation);
            return Reply::Stale { asked, current };
        }
        if let Err(message) = table.check() {
            return Reply::Error { message };
        }
        self.make_room(&table);
        let fresh = self.bind_missing(&table, &BTreeMap::new(), &mut BTreeMap::new());
        let errors: Vec<_> = fresh.failures.iter().map(|(_, failure)| failure.clone()).collect();
        let news = fresh.failures.iter().any(|(key, _)| !self.failed.contains(key));
        let applied = partial || !news;
        if applied {
            self.failed = fresh.failures.into_iter().map(|(key, _)| key).collect();
            self.put_in_force(table, fresh.sockets);
            self.save();
        }
        let generation = self.table.generation;
        Reply::Applied(Applied { generation, applied, listeners: self.bound(), errors })
    }

    fn put_in_force(&mut self, table: Table, fresh: BTreeMap<Key, OwnedFd>) {
        let mut added = Vec::new();
        for (key, socket) in fresh {
            let Ok(bound) = listener::local_addr(&socket) else { continue };
            let id = self.next_id();
            self.tell(&Message::Add(key.clone()), Some(&socket));
            added.push(key.clone());
            let socket = Arc::new(socket);
            self.listeners.insert(key, Listener { id, socket, bound, task: None });
        }
        let (generation, live) = self.generation(&table);
        for upstream in &live {
            upstream.set_retired(false);
        }
        self.front.switch(generation);
        for key in added {
            self.start(&key);
        }
        let old = std::mem::replace(&mut self.live, live);
        for upstream in old {
            if !self.live.iter().any(|live| live.id == upstream.id) {
                upstream.set_retired(true);
                self.cores.retire(upstream.id);
            }
        }
        self.upstreams.retain(|_, upstream| upstream.strong_count() > 0);
        self.counters.retain(|id, counters| {
            Arc::strong_count(counters) > 1 || table.routes.iter().any(|route| route.id == *id)
        });
        self.close_except(&table);
        self.table = table;
    }

    fn generation(&mut self, table: &Table) -> (Generation, Vec<Arc<Upstream>>) {
        let mut generation = Generation::default();
        let mut live: Vec<Arc<Upstream>> = Vec::new();
        for route in &table.routes {
            let upstream = route.upstream.map(|addr| self.upstream(addr));
            if let Some(upstream) = &upstream {
                upstream.set_slot(&route.slot);
                if self.spoke_http(&route.id) {
                    upstream.learn_http();
                }
                if !live.iter().any(|other| other.id == upstream.id) {
                    live.push(upstream.clone());
                }
            }
            let route_now = Arc::new(LiveRoute {
                app: route.app,
                upstream,
                hold: route.hold.then(|| Duration::from_millis(route.hold_ms)),
                counters: self.counters.entry(route.id.clone()).or_default().clone(),
                release: HeaderValue::from_str(&route.slot).ok().filter(|slot| !slot.is_empty()),
            });
            for addr in &route.listen {
                if let Some(listener) = self.listeners.get(&Key::new(route, *addr)) {
                    generation.routes.insert(listener.id, route_now.clone());
                }
            }
        }
        (generation, live)
    }

    /// The next instance most likely speaks what the last one spoke.
    fn spoke_http(&self, id: &str) -> bool {
        let before = self.table.routes.iter().find(|route| route.id == id);
        let before = before.and_then(|route| self.upstreams.get(&route.upstream?)?.upgrade());
        before.is_some_and(|upstream| upstream.speaks_http())
    }

    fn upstream(&mut self, addr: SocketAddr) -> Arc<Upstream> {
        if let Some(known) = self.upstreams.get(&addr).and_then(Weak::upgrade) {
            return known;
        }
        let new = Arc::new(Upstream::new(self.next_id(), addr));
        self.upstreams.insert(addr, Arc::downgrade(&new));
        new
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn start(&mut self, key: &Key) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let (socket, id) = (listener.socket.clone(), listener.id);
        let task = match key.protocol {
            Protocol::Tcp => tokio::spawn(self.cores.clone().accept(socket, id)),
            Protocol::Udp => tokio::spawn(udp::serve(self.front.clone(), socket, id)),
        };
        listener.task = Some(task.abort_handle());
    }

    /// Binds what `table` needs and is not open. A port that nothing stands behind stays shut,
    /// unless it was open before (`bound`) and is only being held.
    fn bind_missing(
        &self,
        table: &Table,
        bound: &BTreeMap<Key, SocketAddr>,
        kept: &mut BTreeMap<Key, OwnedFd>,
    ) -> Fresh {
        let mut fresh = Fresh::default();
        for route in &table.routes {
            for addr in &route.listen {
                let key = Key::new(route, *addr);
                let before = bound.get(&key);
                if self.listeners.contains_key(&key) {
                    continue;
                }
                if let Some(socket) = kept.remove(&key) {
                    fresh.sockets.insert(key, socket);
                    continue;
                }
                if route.upstream.is_none() && before.is_none() {
                    continue;
                }
                let wish = before.map(SocketAddr::port).or_else(|| self.sibling(&key, &fresh));
                match bind_wish(&key, wish) {
                    Ok(socket) => {
                        fresh.sockets.insert(key, socket);
                    }
                    Err(error) if dispensable(&error, route, *addr) => {}
                    Err(error) => {
                        let failure = failure(&route.id, *addr, route.protocol, &error);
                        fresh.failures.push((key, failure));
                    }
                }
            }
        }
        self.open_all(&mut fresh, table);
        fresh
    }

    /// Listening is a second step, see [`listener::bind`]; it fails where somebody else bound the
    /// same port and listened first.
    fn open_all(&self, fresh: &mut Fresh, table: &Table) {
        let mut failures = Vec::new();
        if fresh.failures.is_empty()
            || fresh.failures.iter().all(|(key, _)| self.failed.contains(key))
        {
            fresh.sockets.retain(|key, socket| match listener::open(key.protocol, socket) {
                Ok(()) => true,
                Err(error) => {
                    let is_it = |route: &&Route| route.listen.contains(&key.addr);
                    let id = table.routes.iter().find(is_it).map_or("", |route| &route.id);
                    let failure = failure(id, key.addr, key.protocol, &error);
                    failures.push((key.clone(), failure));
                    false
                }
            });
        }
        fresh.failures.extend(failures);
    }

    /// The port that another address of the same route with port 0 has: they belong together.
    fn sibling(&self, key: &Key, fresh: &Fresh) -> Option<u16> {
        key.route.as_ref()?;
        let same = |other: &Key| other.route == key.route && other.protocol == key.protocol;
        let open = self.listeners.iter().find(|(other, _)| same(other));
        open.map(|(_, listener)| listener.bound.port()).or_else(|| {
            let (_, socket) = fresh.sockets.iter().find(|(other, _)| same(other))?;
            Some(listener::local_addr(socket).ok()?.port())
        })
    }

    /// Closes listeners that `table` does not want and that overlap with one that it does:
    /// `0.0.0.0:80` has to go before `127.0.0.1:80` can come.
    fn make_room(&mut self, table: &Table) {
        let wanted = keys(table);
        let in_the_way = |(old, listener): &(&Key, &Listener)| {
            !wanted.contains(*old)
                && wanted.iter().any(|new| {
                    !self.listeners.contains_key(new)
                        && (new.protocol, new.addr.port()) == (old.protocol, listener.bound.port())
                })
        };
        let gone: Vec<Key> =
            self.listeners.iter().filter(in_the_way).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.close(&key);
        }
    }

    fn close_except(&mut self, table: &Table) {
        let wanted = keys(table);
        let gone: Vec<Key> =
            self.listeners.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        for key in gone {
            self.close(&key);
        }
    }

    fn close(&mut self, key: &Key) {
        let Some(listener) = self.listeners.remove(key) else { return };
        if let Some(task) = listener.task {
            task.abort();
        }
        listener::close(key.protocol, &listener.socket);
        self.tell(&Message::Drop(key.clone()), None);
    }

    /// Every open listener.
    pub(crate) fn bound(&self) -> Vec<Bound> {
        let all = self.table.routes.iter().flat_map(|route| {
            route.listen.iter().filter_map(|addr| {
                let listener = self.listeners.get(&Key::new(route, *addr))?;
                let (asked, bound) = (*addr, listener.bound);
                Some(Bound { route: route.id.clone(), asked, bound, protocol: route.protocol })
            })
        });
        all.collect()
    }

    fn save(&self) {
        let bound = self.listeners.iter().map(|(key, listener)| (key.clone(), listener.bound));
        let saved = Saved { table: self.table.clone(), bound: bound.collect() };
        if let Err(error) = saved.write(&self.path) {
            eprintln!("front: {}: {error}", self.path.display());
        }
    }

    /// Holds or releases routes.
    pub(crate) fn hold(&mut self, ids: &[String], hold: bool, ms: Option<u64>) -> Reply {
        let mut table = self.table.clone();
        for id in ids {
            let Some(route) = table.routes.iter_mut().find(|route| route.id == *id) else {
                return Reply::Error { message: format!("there is no route `{id}`") };
            };
            route.hold = hold;
            route.hold_ms = ms.unwrap_or(route.hold_ms);
        }
        self.put_in_force(table, BTreeMap::new());
        self.save();
        Reply::Done
    }

    /// The upstreams that a drain is about, and those it must leave alone.
    pub(crate) fn to_drain(&self, drain: &Drain) -> (Vec<Arc<Upstream>>, Vec<SocketAddr>) {
        let mut found = Vec::new();
        let mut live = Vec::new();
        for upstream in self.upstreams.values().filter_map(Weak::upgrade) {
            let listed = drain.upstreams.contains(&upstream.addr);
            let in_slot = drain.slot.as_ref().is_some_and(|slot| *slot == upstream.slot());
            if !listed && !in_slot {
                continue;
            }
            let takes_work = |route: &Route| route.upstream == Some(upstream.addr) && !route.hold;
            if self.table.routes.iter().any(takes_work) {
                live.push(upstream.addr);
            } else {
                found.push(upstream);
            }
        }
        live.sort_unstable();
        (found, live)
    }

    /// Those of `addrs` that could not be bound now. The front's own listeners count as free.
    pub(crate) fn check_bind(&self, addrs: &[Bind]) -> Vec<BindFailure> {
        let taken = addrs.iter().filter_map(|wanted| {
            let own = |(key, listener): (&Key, &Listener)| {
                key.protocol == wanted.protocol
                    && (key.addr == wanted.addr || listener.bound == wanted.addr)
            };
            if wanted.addr.port() == 0 || self.listeners.iter().any(own) {
                return None;
            }
            let error = listener::bind(wanted.protocol, wanted.addr).err()?;
            let route = self.table.routes.iter().find(|route| {
                let port = |addr: &SocketAddr| addr.port() == wanted.addr.port();
                route.protocol == wanted.protocol && route.listen.iter().any(port)
            });
            let id = route.map_or("", |route| &route.id);
            Some(failure(id, wanted.addr, wanted.protocol, &error))
        });
        taken.collect()
    }

    /// Counters.
    pub(crate) fn stats(&self) -> Stats {
        let upstreams = self.upstreams.values().filter_map(Weak::upgrade).map(|upstream| {
            let (requests, pinned) = upstream.active();
            let live = self.live.iter().any(|live| live.id == upstream.id);
            (upstream.addr, UpstreamStats { slot: upstream.slot(), live, requests, pinned })
        });
        Stats {
            generation: self.table.generation,
            connections: self.cores.open(),
            routes: self.counters.iter().map(|(id, it)| (id.clone(), it.snapshot())).collect(),
            upstreams: upstreams.collect(),
        }
    }

    /// The table in force.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Whether a minder watches this worker.
    pub(crate) fn minded(&self) -> bool {
        self.minder.is_some()
    }

    /// Gives a minder duplicates of all listening sockets.
    pub(crate) fn attach(&mut self, minder: Arc<OwnedFd>) {
        self.minder = Some(minder);
        for (key, listener) in &self.listeners {
            self.tell(&Message::Add(key.clone()), Some(&listener.socket));
        }
    }

    /// The minder is gone.
    pub(crate) fn detach(&mut self) {
        self.minder = None;
    }

    /// Tells the minder; a minder that died is noticed by the thread that reads from it.
    pub(crate) fn tell(&self, message: &Message, socket: Option<&OwnedFd>) {
        if let Some(minder) = &self.minder {
            let _ = link::send(minder.as_fd(), message, socket.map(AsFd::as_fd));
        }
    }

    /// Closes every listener for good.
    pub(crate) fn close_all(&mut self) {
        self.close_except(&Table::default());
    }

    /// Accepts no more; the sockets stay open with the minder.
    pub(crate) fn stop_accepting(&mut self) {
        for listener in self.listeners.values_mut() {
            if let Some(task) = listener.task.take() {
                task.abort();
            }
        }
    }
}

fn keys(table: &Table) -> BTreeSet<Key> {
    let all = table.routes.iter();
    all.flat_map(|route| route.listen.iter().map(|addr| Key::new(route, *addr))).collect()
}

/// Binds, where port 0 was asked if possible to the port `wish`.
fn bind_wish(key: &Key, wish: Option<u16>) -> io::Result<OwnedFd> {
    if let (0, Some(port)) = (key.addr.port(), wish) {
        let addr = SocketAddr::new(key.addr.ip(), port);
        if let Ok(socket) = listener::bind(key.protocol, addr) {
            return Ok(socket);
        }
    }
    listener::bind(key.protocol, key.addr)
}

/// A machine without IPv6 serves what listens everywhere on IPv4 alone.
fn dispensable(error: &io::Error, route: &Route, addr: SocketAddr) -> bool {
    let four = |other: &SocketAddr| other.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let no_family = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
        || error.kind() == io::ErrorKind::AddrNotAvailable;
    addr.is_ipv6() && addr.ip().is_unspecified() && no_family && route.listen.iter().any(four)
}

fn failure(route: &str, addr: SocketAddr, protocol: Protocol, error: &io::Error) -> BindFailure {
    let taken = error.kind() == io::ErrorKind::AddrInUse;
    let holder = taken.then(|| holder::find(addr, protocol)).flatten();
    BindFailure { route: route.to_owned(), addr, protocol, error: error.to_string(), holder }
}
