//! What the worker owns: the table in force, its listeners and upstreams. [`State::apply`] and
//! [`State::change`] are the two places where they change.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::core::Cores;
use crate::generation::{Front, Generation, Ids, LiveRoute};
use crate::link::Message;
use crate::listener::{self, Key};
use crate::listeners::{Listeners, Prepared};
use crate::minding::Minding;
use crate::routes::{Entry, Former, Routes};
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
    routes: Routes,
    /// Of each route, in the same places.
    placed: Vec<Placed>,
    listeners: Listeners,
    upstreams: HashMap<SocketAddr, Weak<Upstream>>,
    /// Keeps the live ones.
    live: Ids<Arc<Upstream>>,
    counters: HashMap<String, Arc<Counters>>,
    minding: Option<Minding>,
    next_id: u64,
    /// Another worker has the listeners by now: this one finishes what it has.
    finishing: bool,
}

/// A route in force.
#[derive(Debug)]
struct Placed {
    /// Those that lead to it.
    listeners: Vec<u64>,
    live: Arc<LiveRoute>,
}

impl State {
    pub(crate) fn new(front: Arc<Front>, cores: Cores, path: PathBuf) -> Self {
        Self {
            front,
            cores,
            saving: Saving::new(path),
            routes: Routes::default(),
            placed: Vec::new(),
            listeners: Listeners::default(),
            upstreams: HashMap::new(),
            live: Ids::default(),
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
        let routes = Routes::of(table, &self.routes);
        let mut prepared = self.listeners.prepare(&routes.all, &routes, &bound, &mut kept);
        prepared.open(&routes.all);
        for failure in prepared.news(&self.listeners) {
            say!("front: {failure}; it is tried again");
        }
        for (key, socket) in kept {
            listener::close(key.protocol, &socket);
            self.tell(Message::Drop(key), None);
        }
        self.put_in_force(routes, prepared);
        for (route, placed) in self.routes.all.iter().zip(&self.placed) {
            if let Some(upstream) = &placed.live.upstream
                && http.contains(&route.id)
            {
                upstream.expect_http();
            }
        }
    }

    /// Puts `table` in force.
    pub(crate) fn apply(&mut self, table: Table, partial: bool) -> Reply {
        if self.finishing {
            return self.follow(table);
        }
        let (asked, current) = (table.generation, self.routes.generation);
        if asked <= current && !self.routes.are(&table) {
            return Reply::Stale { asked, current };
        }
        if let Err(message) = table.check() {
            return Reply::Error { message };
        }
        self.bring_in(Routes::of(table, &self.routes), partial, None)
    }

    /// Puts the table in force that `change` makes of the one in force.
    pub(crate) fn change(&mut self, change: Change) -> Reply {
        let Change { base, generation, partial, .. } = change;
        if base != self.routes.generation || generation <= base {
            return Reply::Stale { asked: generation, current: self.routes.generation };
        }
        match self.routes.changed(change) {
            Ok((routes, places)) => self.bring_in(routes, partial, Some(places)),
            Err(message) => Reply::Error { message },
        }
    }

    /// Lets what is still here wait, go on and end by the table of the worker that serves now. That
    /// may hold routes without a new generation.
    fn follow(&mut self, table: Table) -> Reply {
        let (generation, current) = (table.generation, self.routes.generation);
        if generation < current {
            return Reply::Stale { asked: generation, current };
        }
        if !self.routes.are(&table) {
            self.put_in_force(Routes::of(table, &self.routes), Prepared::default());
        }
        let (listeners, errors, waiting) = Default::default();
        Reply::Applied(Applied { generation, applied: true, listeners, errors, waiting })
    }

    /// With `places`, no other routes than those differ from the table in force.
    fn bring_in(
        &mut self,
        routes: Routes,
        partial: bool,
        places: Option<BTreeSet<usize>>,
    ) -> Reply {
        let whole = places.is_none();
        let concerned = self.concerned(&routes, places);
        let none = (&BTreeMap::new(), &mut BTreeMap::new());
        let mut prepared = self.listeners.prepare(&concerned, &routes, none.0, none.1);
        let mut errors = prepared.news(&self.listeners);
        if partial || errors.is_empty() {
            prepared.open(&concerned);
            errors = prepared.news(&self.listeners);
        }
        let applied = partial || errors.is_empty();
        if applied {
            self.put_in_force(routes, prepared);
            self.save();
        }
        let told = if whole { &self.routes.all } else { &concerned };
        let listeners = self.listeners.bound(told);
        let is_new = |failure: &BindFailure| {
            errors.iter().any(|it| (it.addr, it.protocol) == (failure.addr, failure.protocol))
        };
        let waiting = self.waiting().into_iter().filter(|failure| !is_new(failure)).collect();
        let generation = self.routes.generation;
        Reply::Applied(Applied { generation, applied, listeners, errors, waiting })
    }

    /// The routes in these `places`, or all, and those that wait for an address.
    fn concerned(&self, routes: &Routes, places: Option<BTreeSet<usize>>) -> Vec<Arc<Entry>> {
        let Some(mut places) = places else { return routes.all.clone() };
        let waiting: Vec<&str> =
            self.listeners.failed().map(|(_, failure)| failure.route.as_str()).collect();
        if !waiting.is_empty() {
            let all = routes.all.iter().enumerate();
            places.extend(all.filter(|(_, it)| waiting.contains(&it.id.as_str())).map(|it| it.0));
        }
        places.into_iter().filter_map(|at| routes.all.get(at).cloned()).collect()
    }

    fn put_in_force(&mut self, routes: Routes, prepared: Prepared) {
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
        let old = std::mem::replace(&mut self.routes, routes);
        let (generation, live) = self.generation(&old, !added.is_empty());
        for (id, upstream) in &live {
            if !self.live.contains_key(id) {
                upstream.set_live();
            }
        }
        self.front.switch(generation);
        for (key, _) in &added {
            self.start(key);
        }
        let mut gone = std::mem::replace(&mut self.live, live);
        gone.retain(|id, _| !self.live.contains_key(id));
        if !gone.is_empty() {
            self.let_go(gone, &old);
        }
        if self.finishing || self.routes.listen_as(&old) {
            return;
        }
        for (key, listener) in self.listeners.take_unwanted(&self.routes) {
            if let Some(task) = listener.task {
                task.abort();
            }
            listener::close(key.protocol, &listener.socket);
            self.tell(Message::Drop(key), None);
        }
    }

    /// Sends no new work to the upstreams that are `gone`. The routes of the table `before` say how
    /// long what they have may go on.
    fn let_go(&mut self, gone: Ids<Arc<Upstream>>, before: &Routes) {
        let mut limits: BTreeMap<SocketAddr, Option<u64>> =
            gone.values().map(|upstream| (upstream.addr, None)).collect();
        for route in &before.all {
            if let Some(limit) = route.upstream.and_then(|addr| limits.get_mut(&addr)) {
                *limit = (*limit).max(route.drain_ms);
            }
        }
        for (id, upstream) in gone {
            let limit = limits.get(&upstream.addr).copied().flatten();
            // First: what a core has in use goes back into its pool unless the upstream is retired.
            run_down(upstream, limit.map(Duration::from_millis));
            self.cores.retire(id);
        }
        self.upstreams.retain(|_, upstream| upstream.strong_count() > 0);
    }

    /// What requests read of the table in force. A route that is as it was in the one before is not
    /// made anew: with a thousand of them that would be most of the work of a switch.
    fn generation(&mut self, before: &Routes, added: bool) -> (Generation, Ids<Arc<Upstream>>) {
        let routes = self.routes.all.clone();
        let mut generation = Generation::with_room(routes.len() * 2);
        let mut live = Ids::with_capacity_and_hasher(routes.len(), Default::default());
        let former = Former::new(before);
        let placed = std::mem::replace(&mut self.placed, Vec::with_capacity(routes.len()));
        let mut placed: Vec<Option<Placed>> = placed.into_iter().map(Some).collect();
        for (at, route) in routes.iter().enumerate() {
            let known = former.place(at, route).and_then(|place| placed.get_mut(place)?.take());
            let now = match known {
                Some(known) if !added => known,
                known => Placed {
                    listeners: self.leading_to(route),
                    live: match known {
                        Some(known) => known.live,
                        None => Arc::new(self.live_route(route, former.named(at, &route.id))),
                    },
                },
            };
            if let Some(upstream) = &now.live.upstream {
                live.entry(upstream.id).or_insert_with(|| upstream.clone());
            }
            for id in &now.listeners {
                generation.routes.insert(*id, Arc::clone(&now.live));
            }
            self.placed.push(now);
        }
        if self.counters.len() != routes.len() {
            let there: HashSet<&str> = routes.iter().map(|it| it.id.as_str()).collect();
            self.counters.retain(|id, _| there.contains(id.as_str()));
        }
        (generation, live)
    }

    fn leading_to(&self, route: &Route) -> Vec<u64> {
        let ids = route.listen.iter();
        ids.filter_map(|addr| Some(self.listeners.get(&Key::new(route, *addr))?.id)).collect()
    }

    /// `before` is what the route of that name was in the table before.
    fn live_route(&mut self, route: &Route, before: Option<&Entry>) -> LiveRoute {
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
            // The next instance most likely speaks what the last one spoke.
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
        let is_it = |route: &&Arc<Entry>| failed.iter().any(|(_, id)| *id == route.id);
        let routes: Vec<_> = self.routes.all.iter().filter(is_it).cloned().collect();
        let none = (&BTreeMap::new(), &mut BTreeMap::new());
        let mut prepared = self.listeners.prepare(&routes, &self.routes, none.0, none.1);
        prepared.open(&routes);
        self.put_in_force(self.routes.clone(), prepared);
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
        self.listeners.bound(&self.routes.all)
    }

    /// Writes down what the next worker needs.
    pub(crate) fn save(&mut self) {
        let bound = self.listeners.iter().map(|(key, listener)| (key, listener.bound));
        let bound = (self.listeners.version(), bound);
        let http = self.routes.all.iter().zip(&self.placed).filter_map(|(route, placed)| {
            let speaks = placed.live.upstream.as_ref()?.speaks_http();
            speaks.then_some(route.id.as_str())
        });
        if let Err(error) = self.saving.write(&self.routes, bound, http.collect()) {
            say!("front: {}: {error}", self.saving.path().display());
        }
    }

    /// Holds or releases routes.
    pub(crate) fn hold(&mut self, ids: &[String], hold: bool, ms: Option<u64>) -> Reply {
        let mut routes = self.routes.clone();
        for id in ids {
            let Some(route) = routes.all.iter_mut().find(|route| route.id == *id) else {
                return Reply::Error { message: format!("there is no route `{id}`") };
            };
            let hold_ms = ms.unwrap_or(route.hold_ms);
            *route = Entry::new(Route { hold, hold_ms, ..Route::clone(route) });
        }
        self.put_in_force(routes, Prepared::default());
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
            if self.routes.all.iter().any(|route| takes_work(route)) {
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
        self.listeners.taken(addrs, &self.routes)
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
            generation: self.routes.generation,
            connections: self.cores.open(),
            routes: self.counters.iter().map(|(id, it)| (id.clone(), it.snapshot())).collect(),
            upstreams: upstreams.collect(),
            waiting: self.waiting(),
        }
    }

    /// The table in force.
    pub(crate) fn table(&self) -> Table {
        self.routes.to_table()
    }

    /// The generation in force.
    pub(crate) fn in_force(&self) -> u64 {
        self.routes.generation
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
        for (key, listener) in self.listeners.take_unwanted(&Routes::default()) {
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

/// Starts the clock of an upstream that gets no new work: what is still there after `limit` is cut,
/// whether an agent lives or not.
fn run_down(upstream: Arc<Upstream>, limit: Option<Duration>) {
    let deadline = limit.map(|limit| Instant::now() + limit);
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
