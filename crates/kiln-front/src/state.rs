//! What the worker owns: the table in force, its listeners and upstreams. [`State::apply`] and
//! [`State::change`] are the two places where they change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::core::Cores;
use crate::generation::{Front, Generation, LiveRoute};
use crate::link::Message;
use crate::listener::{self, Key};
use crate::listeners::{Listeners, Prepared};
use crate::minding::Minding;
use crate::saved::{Saved, Saving};
use crate::table::{Protocol, Route, Table};
use crate::upstream::{Counters, Upstream};
use crate::wire::{
    Applied, Behind, Bind, BindFailure, Bound, Change, Drain, Reply, Stats, UpstreamStats,
};

/// The worker's state; lives behind one lock on the control thread.
#[derive(Debug)]
pub(crate) struct State {
    front: Arc<Front>,
    cores: Cores,
    saving: Saving,
    table: Table,
    listeners: Listeners,
    upstreams: HashMap<SocketAddr, Weak<Upstream>>,
    /// Keeps the live ones.
    live: HashMap<u64, Arc<Upstream>>,
    counters: HashMap<String, Arc<Counters>>,
    minding: Option<Minding>,
    next_id: u64,
    /// Another worker has the listeners by now: this one finishes what it has.
    finishing: bool,
}

impl State {
    pub(crate) fn new(front: Arc<Front>, cores: Cores, path: PathBuf) -> Self {
        Self {
            front,
            cores,
            saving: Saving::new(path),
            table: Table::default(),
            listeners: Listeners::default(),
            upstreams: HashMap::new(),
            live: HashMap::new(),
            counters: HashMap::new(),
            minding: None,
            next_id: 1,
            finishing: false,
        }
    }

    /// Serves what the last worker served, on the sockets that the minder kept. An address that
    /// somebody else took meanwhile costs only itself.
    pub(crate) fn restore(&mut self, mut kept: BTreeMap<Key, OwnedFd>) {
        let Saved { table, bound, http } = Saved::read(self.saving.path());
        let routes: Vec<&Route> = table.routes.iter().collect();
        let mut prepared = self.listeners.prepare(&routes, &table, &bound, &mut kept);
        prepared.open(&routes);
        for failure in prepared.news(&self.listeners) {
            say!("front: {failure}; it is tried again");
        }
        for (key, socket) in kept {
            listener::close(key.protocol, &socket);
            self.tell(Message::Drop(key), None);
        }
        drop(routes);
        self.put_in_force(table, prepared);
        for route in self.table.routes.iter().filter(|route| http.contains(&route.id)) {
            if let Some(upstream) = route.upstream.and_then(|addr| self.known(addr)) {
                upstream.expect_http();
            }
        }
    }

    /// Puts `table` in force.
    pub(crate) fn apply(&mut self, table: Table, partial: bool) -> Reply {
        if self.finishing {
            return self.follow(table);
        }
        if table.generation <= self.table.generation && table != self.table {
            let (asked, current) = (table.generation, self.table.generation);
            return Reply::Stale { asked, current };
        }
        self.bring_in(table, partial, None)
    }

    /// Puts the table in force that `change` makes of the one in force.
    pub(crate) fn change(&mut self, change: Change) -> Reply {
        let Change { base, generation, put, drop, partial } = change;
        if base != self.table.generation || generation <= base {
            return Reply::Stale { asked: generation, current: self.table.generation };
        }
        let mut table = self.table.clone();
        table.generation = generation;
        if !drop.is_empty() {
            table.routes.retain(|route| !drop.contains(&route.id));
        }
        let ids: Vec<String> = put.iter().map(|route| route.id.clone()).collect();
        let places: Vec<Option<usize>> = {
            let all = table.routes.iter().enumerate();
            let places: HashMap<&str, usize> = all.map(|(at, it)| (it.id.as_str(), at)).collect();
            put.iter().map(|route| places.get(route.id.as_str()).copied()).collect()
        };
        for (route, place) in put.into_iter().zip(places) {
            match place {
                Some(at) => table.routes[at] = route,
                None => table.routes.push(route),
            }
        }
        self.bring_in(table, partial, Some(&ids))
    }

    /// Lets what is still here wait, go on and end by the table of the worker that serves now. That
    /// may hold routes without a new generation.
    fn follow(&mut self, table: Table) -> Reply {
        let (generation, current) = (table.generation, self.table.generation);
        if generation < current {
            return Reply::Stale { asked: generation, current };
        }
        if table != self.table {
            self.put_in_force(table, Prepared::default());
        }
        let (listeners, errors, waiting) = Default::default();
        Reply::Applied(Applied { generation, applied: true, listeners, errors, waiting })
    }

    /// With `only`, no other routes than those named differ from the table in force.
    fn bring_in(&mut self, table: Table, partial: bool, only: Option<&[String]>) -> Reply {
        if let Err(message) = table.check() {
            return Reply::Error { message };
        }
        let waiting: Vec<String> =
            self.listeners.failed().map(|(_, failure)| failure.route.clone()).collect();
        let concerned = |route: &&Route| {
            only.is_none_or(|ids| ids.contains(&route.id) || waiting.contains(&route.id))
        };
        let routes: Vec<&Route> = table.routes.iter().filter(concerned).collect();
        let none = (&BTreeMap::new(), &mut BTreeMap::new());
        let mut prepared = self.listeners.prepare(&routes, &table, none.0, none.1);
        let mut errors = prepared.news(&self.listeners);
        if partial || errors.is_empty() {
            prepared.open(&routes);
            errors = prepared.news(&self.listeners);
        }
        drop(routes);
        let applied = partial || errors.is_empty();
        if applied {
            self.put_in_force(table, prepared);
            self.save();
        }
        let routes = self.table.routes.iter().filter(concerned);
        let listeners = self.listeners.bound(routes);
        let is_new = |failure: &BindFailure| {
            errors.iter().any(|it| (it.addr, it.protocol) == (failure.addr, failure.protocol))
        };
        let waiting = self.waiting().into_iter().filter(|failure| !is_new(failure)).collect();
        let generation = self.table.generation;
        Reply::Applied(Applied { generation, applied, listeners, errors, waiting })
    }

    fn put_in_force(&mut self, table: Table, prepared: Prepared) {
        let added = {
            let next_id = &mut self.next_id;
            self.listeners.keep(prepared, || {
                *next_id += 1;
                *next_id
            })
        };
        for (key, socket) in &added {
            self.tell(Message::Add(key.clone()), Some(socket));
        }
        let (generation, live) = self.generation(&table);
        for upstream in live.values() {
            upstream.set_live();
        }
        self.front.switch(generation);
        for (key, _) in &added {
            self.start(key);
        }
        let mut gone = std::mem::replace(&mut self.live, live);
        gone.retain(|id, _| !self.live.contains_key(id));
        let old = std::mem::replace(&mut self.table, table);
        for upstream in gone.into_values() {
            // First: what a core has in use goes back into its pool unless the upstream is retired.
            let id = upstream.id;
            run_down(upstream, &old);
            self.cores.retire(id);
        }
        self.upstreams.retain(|_, upstream| upstream.strong_count() > 0);
        if self.finishing {
            return;
        }
        for (key, listener) in self.listeners.take_unwanted(&self.table) {
            if let Some(task) = listener.task {
                task.abort();
            }
            listener::close(key.protocol, &listener.socket);
            self.tell(Message::Drop(key), None);
        }
    }

    /// What requests read of `table`. A route that is as it was, in its place, is not made anew: with
    /// a thousand of them that would be most of the work of a switch.
    fn generation(&mut self, table: &Table) -> (Generation, HashMap<u64, Arc<Upstream>>) {
        let in_force = self.front.in_force();
        let mut generation = Generation::with_room(table.routes.len() * 2);
        let mut live: HashMap<u64, Arc<Upstream>> = HashMap::with_capacity(table.routes.len());
        let mut places = None;
        for (at, route) in table.routes.iter().enumerate() {
            let same = self.table.routes.get(at).is_some_and(|before| before == route);
            let ids: Vec<u64> = route
                .listen
                .iter()
                .filter_map(|addr| Some(self.listeners.get(&Key::new(route, *addr))?.id))
                .collect();
            let known = ids.first().and_then(|id| in_force.routes.get(id)).filter(|_| same);
            let route_now = match known {
                Some(known) => Arc::clone(known),
                None => Arc::new(self.live_route(route, &mut places)),
            };
            if let Some(upstream) = &route_now.upstream {
                live.entry(upstream.id).or_insert_with(|| upstream.clone());
            }
            for id in ids {
                generation.routes.insert(id, Arc::clone(&route_now));
            }
        }
        let changed = self.counters.len() != table.routes.len();
        if changed {
            let there: HashSet<&str> = table.routes.iter().map(|it| it.id.as_str()).collect();
            self.counters.retain(|id, _| there.contains(id.as_str()));
        }
        (generation, live)
    }

    /// `places`, once it was needed: where each route is in the table in force.
    fn live_route(
        &mut self,
        route: &Route,
        places: &mut Option<HashMap<String, usize>>,
    ) -> LiveRoute {
        let upstream = route.upstream.map(|addr| {
            self.known(addr).unwrap_or_else(|| {
                self.next_id += 1;
                let new = Arc::new(Upstream::new(self.next_id, addr));
                self.upstreams.insert(addr, Arc::downgrade(&new));
                new
            })
        });
        if let Some(upstream) = &upstream {
            upstream.set_slot(&route.slot);
            let places = places.get_or_insert_with(|| {
                let all = self.table.routes.iter().enumerate();
                all.map(|(at, route)| (route.id.clone(), at)).collect()
            });
            // The next instance most likely speaks what the last one spoke.
            let before = places.get(&route.id).and_then(|at| self.table.routes.get(*at));
            let before = before.and_then(|before| self.known(before.upstream?));
            if before.is_some_and(|before| before.speaks_http()) {
                upstream.expect_http();
            }
        }
        LiveRoute {
            app: route.app,
            upstream,
            hold: route.hold.then(|| Duration::from_millis(route.hold_ms)),
            counters: self.counters.entry(route.id.clone()).or_default().clone(),
            release: release(&route.slot),
        }
    }

    fn known(&self, addr: SocketAddr) -> Option<Arc<Upstream>> {
        self.upstreams.get(&addr)?.upgrade()
    }

    fn start(&mut self, key: &Key) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let (socket, id) = (listener.socket.clone(), listener.id);
        let task = match key.protocol {
            Protocol::Tcp => self.cores.accept(socket, id),
            Protocol::Udp => self.cores.datagrams(socket, id),
        };
        listener.task = Some(task);
    }

    /// Tries again to get the addresses that somebody else had.
    pub(crate) fn try_again(&mut self) {
        let failed: Vec<(Key, String)> = self
            .listeners
            .failed()
            .filter(|(key, _)| listener::bind(key.protocol, key.addr).is_ok())
            .map(|(key, failure)| (key.clone(), failure.route.clone()))
            .collect();
        if failed.is_empty() {
            return;
        }
        let is_it = |route: &&Route| failed.iter().any(|(_, id)| *id == route.id);
        let routes: Vec<&Route> = self.table.routes.iter().filter(is_it).collect();
        let none = (&BTreeMap::new(), &mut BTreeMap::new());
        let mut prepared = self.listeners.prepare(&routes, &self.table, none.0, none.1);
        prepared.open(&routes);
        let table = self.table.clone();
        self.put_in_force(table, prepared);
        for (key, id) in failed {
            if self.listeners.get(&key).is_some() {
                say!("front: {}/{} is free again: {id} listens there", key.addr, key.protocol);
            }
        }
        self.save();
    }

    /// What could not be had, and is tried again.
    pub(crate) fn waiting(&self) -> Vec<BindFailure> {
        self.listeners.failed().map(|(_, failure)| failure.clone()).collect()
    }

    /// Where every route listens.
    pub(crate) fn bound(&self) -> Vec<Bound> {
        self.listeners.bound(&self.table.routes)
    }

    /// Writes down what the next worker needs.
    pub(crate) fn save(&mut self) {
        let bound = self.listeners.iter().map(|(key, listener)| (key, listener.bound));
        let http = |route: &Route| {
            let upstream = route.upstream.and_then(|addr| self.upstreams.get(&addr)?.upgrade());
            upstream.is_some_and(|upstream| upstream.speaks_http())
        };
        if let Err(error) = self.saving.write(&self.table, bound, http) {
            say!("front: {}: {error}", self.saving.path().display());
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
        self.put_in_force(table, Prepared::default());
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
        self.listeners.taken(addrs, &self.table)
    }

    /// What is still under way where no new work goes.
    pub(crate) fn behind(&self) -> Vec<Behind> {
        let left = self.upstreams.values().filter_map(Weak::upgrade).filter_map(|upstream| {
            let (requests, connections) = upstream.active();
            let busy = (requests, connections) != (0, 0) && upstream.retired();
            busy.then(|| Behind {
                upstream: upstream.addr,
                slot: upstream.slot(),
                requests,
                connections,
                cut_in_ms: cut_in_ms(&upstream),
            })
        });
        left.collect()
    }

    /// Counters.
    pub(crate) fn stats(&self) -> Stats {
        let upstreams = self.upstreams.values().filter_map(Weak::upgrade).map(|upstream| {
            let (requests, pinned) = upstream.active();
            let live = self.live.contains_key(&upstream.id);
            let stats = UpstreamStats {
                slot: upstream.slot(),
                live,
                requests,
                pinned,
                cut_in_ms: cut_in_ms(&upstream),
            };
            (upstream.addr, stats)
        });
        Stats {
            generation: self.table.generation,
            connections: self.cores.open(),
            routes: self.counters.iter().map(|(id, it)| (id.clone(), it.snapshot())).collect(),
            upstreams: upstreams.collect(),
            waiting: self.waiting(),
        }
    }

    /// The table in force.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Whether a minder watches this worker and has every socket.
    pub(crate) fn minded(&self) -> bool {
        self.minding.as_ref().is_some_and(|it| it.is_there() && it.knows_all())
    }

    /// Whether a minder watches this worker.
    pub(crate) fn has_minder(&self) -> bool {
        self.minding.as_ref().is_some_and(Minding::is_there)
    }

    /// Gives a minder duplicates of all listening sockets.
    pub(crate) fn attach(&mut self, minder: Arc<OwnedFd>) {
        self.minding =
            Minding::start(minder).inspect_err(|error| say!("front: no minder: {error}")).ok();
        for (key, listener) in self.listeners.iter() {
            self.tell(Message::Add(key.clone()), Some(&listener.socket));
        }
    }

    /// The minder is gone.
    pub(crate) fn detach(&mut self) {
        self.minding = None;
    }

    /// Tells the minder; a minder that died is noticed by the thread that reads from it.
    pub(crate) fn tell(&self, message: Message, socket: Option<&Arc<OwnedFd>>) {
        if let Some(minding) = &self.minding {
            minding.tell(message, socket.cloned());
        }
    }

    /// Waits until the minder was told everything.
    pub(crate) fn all_told(&mut self) {
        if let Some(minding) = self.minding.take() {
            minding.finish();
        }
    }

    /// Closes every listener for good.
    pub(crate) fn close_all(&mut self) {
        let nothing = Table { generation: self.table.generation, routes: Vec::new() };
        for (key, listener) in self.listeners.take_unwanted(&nothing) {
            if let Some(task) = listener.task {
                task.abort();
            }
            listener::close(key.protocol, &listener.socket);
            self.tell(Message::Drop(key), None);
        }
    }

    /// Cuts all that is still under way.
    pub(crate) fn cut_all(&self) {
        self.upstreams.values().filter_map(Weak::upgrade).for_each(|upstream| upstream.cut());
    }

    /// Accepts no more; the sockets stay open with the minder.
    pub(crate) fn stop_accepting(&mut self) {
        self.finishing = true;
        for listener in self.listeners.iter_mut() {
            if let Some(task) = listener.task.take() {
                task.abort();
            }
        }
    }
}

/// What answers say of the release that gave them.
fn release(slot: &str) -> Option<Bytes> {
    let fit = !slot.is_empty() && slot.bytes().all(|byte| matches!(byte, 0x21..=0x7e));
    fit.then(|| Bytes::copy_from_slice(slot.as_bytes()))
}

/// How long what is still under way there may go on.
fn cut_in_ms(upstream: &Upstream) -> Option<u64> {
    let left = upstream.deadline()?.saturating_duration_since(Instant::now());
    Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
}

/// Starts the clock of an upstream that gets no new work: what is still there when it has run out
/// is cut, whether an agent lives or not. The routes of the table before say how long that is.
fn run_down(upstream: Arc<Upstream>, before: &Table) {
    let routes = before.routes.iter().filter(|route| route.upstream == Some(upstream.addr));
    let limit = routes.filter_map(|route| route.drain_ms).max();
    let deadline = limit.map(|limit| Instant::now() + Duration::from_millis(limit));
    upstream.set_retired(deadline);
    let Some(deadline) = deadline else { return };
    if upstream.active() == (0, 0) {
        return;
    }
    tokio::spawn(async move {
        let idle = timeout_at(deadline, upstream.idle()).await.is_ok();
        // It may serve again by now, or have been given another clock.
        if !idle && upstream.deadline() == Some(deadline) {
            upstream.cut();
        }
    });
}
