//! The worker's listening sockets: those that are open, and the addresses that could not be had.
//!
//! A table's sockets are [prepared](Listeners::prepare) first and kept only when the table comes
//! into force: one that is refused leaves every open port as it was.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::task::AbortHandle;

use crate::holder;
use crate::listener::{self, Key};
use crate::routes::{Entry, Routes};
use crate::table::{Protocol, Route};
use crate::wire::{Bind, BindFailure, Bound};

/// An open one.
#[derive(Debug)]
pub(crate) struct Listener {
    /// What connections are routed by; never used twice in a process.
    pub(crate) id: u64,
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) bound: SocketAddr,
    pub(crate) task: Option<AbortHandle>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    open: HashMap<Key, Listener>,
    /// Addresses that could not be had, and why. They stop no later table, and are tried again.
    failed: BTreeMap<Key, BindFailure>,
    /// Changes whenever one is opened or closed.
    version: u64,
}

/// Sockets for a table that is not in force. Dropped, it leaves everything as it was.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Prepared {
    sockets: BTreeMap<Key, OwnedFd>,
    failures: BTreeMap<Key, BindFailure>,
    /// Open listeners that overlap with new ones and will go. Until then they share the port.
    giving_way: Vec<Arc<OwnedFd>>,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for socket in &self.giving_way {
            // It fails only on what is no socket.
            let _ = listener::share(socket, false);
        }
    }
}

impl Prepared {
    /// What could not be had and, by `known`, did not fail before already.
    pub(crate) fn news(&self, known: &Listeners) -> Vec<BindFailure> {
        let all = self.failures.iter();
        let new = all.filter(|(key, _)| !known.failed.contains_key(key));
        new.map(|(_, failure)| failure.clone()).collect()
    }

    /// Lets clients in. This is a step of its own, see [`listener::bind`]; it fails where somebody
    /// else bound the same port and listened first.
    pub(crate) fn open(&mut self, routes: &[Arc<Entry>]) {
        let failures = &mut self.failures;
        self.sockets.retain(|key, socket| match listener::open(key.protocol, socket) {
            Ok(()) => true,
            Err(error) => {
                let is_it = |route: &&Arc<Entry>| {
                    route.protocol == key.protocol && route.listen.contains(&key.addr)
                };
                let id = routes.iter().find(is_it).map_or("", |route| &route.id);
                failures.insert(key.clone(), failure(id, key.addr, key.protocol, &error));
                false
            }
        });
    }
}

impl Listeners {
    /// Binds what `routes` need and is not open. `table` is what they will be part of; `bound` and
    /// `kept` are what an earlier worker left. A port that nothing stands behind stays shut,
    /// unless it was open before and is only being held.
    pub(crate) fn prepare(
        &self,
        routes: &[Arc<Entry>],
        table: &Routes,
        bound: &BTreeMap<Key, SocketAddr>,
        kept: &mut BTreeMap<Key, OwnedFd>,
    ) -> Prepared {
        let mut prepared = Prepared::default();
        for route in routes {
            for addr in &route.listen {
                let key = Key::new(route, *addr);
                if self.open.contains_key(&key) {
                    continue;
                }
                if let Some(socket) = kept.remove(&key) {
                    prepared.sockets.insert(key, socket);
                    continue;
                }
                let before = bound.get(&key);
                if route.upstream.is_none() && before.is_none() {
                    continue;
                }
                let wish = before.map(SocketAddr::port).or_else(|| self.sibling(&key, &prepared));
                match self.bind(&key, wish, table, &mut prepared) {
                    Ok(socket) => {
                        prepared.sockets.insert(key, socket);
                    }
                    Err(error) if dispensable(&error, route, *addr) => {}
                    Err(error) => {
                        let failure = failure(&route.id, *addr, route.protocol, &error);
                        prepared.failures.insert(key, failure);
                    }
                }
            }
        }
        prepared
    }

    /// Binds, where port 0 was asked if possible to the port `wish`. What of our own is in the way
    /// and not wanted by `table` shares the port until that is in force: `0.0.0.0:80` gives way to
    /// `127.0.0.1:80`, and no client is turned away between the two.
    fn bind(
        &self,
        key: &Key,
        wish: Option<u16>,
        table: &Routes,
        prepared: &mut Prepared,
    ) -> io::Result<OwnedFd> {
        if let (0, Some(port)) = (key.addr.port(), wish) {
            let addr = SocketAddr::new(key.addr.ip(), port);
            if let Ok(socket) = listener::bind(key.protocol, addr) {
                return Ok(socket);
            }
        }
        let error = match listener::bind(key.protocol, key.addr) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
            other => return other,
        };
        let in_the_way: Vec<_> = self.in_the_way(key.protocol, key.addr).collect();
        if in_the_way.is_empty() {
            return Err(error);
        }
        let wanted: HashSet<Key> = keys(table);
        if in_the_way.iter().any(|(key, _)| wanted.contains(key)) {
            return Err(error);
        }
        for (_, listener) in in_the_way {
            listener::share(&listener.socket, true)?;
            prepared.giving_way.push(listener.socket.clone());
        }
        listener::bind_beside(key.protocol, key.addr, true)
    }

    /// Open listeners that overlap with an address.
    fn in_the_way(
        &self,
        protocol: Protocol,
        addr: SocketAddr,
    ) -> impl Iterator<Item = (&Key, &Listener)> {
        self.open.iter().filter(move |(key, listener)| {
            key.protocol == protocol
                && listener.bound.port() == addr.port()
                && listener.bound.is_ipv4() == addr.is_ipv4()
                && holder::overlap(listener.bound.ip(), addr.ip())
        })
    }

    /// The port that another address of the same route with port 0 has: they belong together.
    fn sibling(&self, key: &Key, prepared: &Prepared) -> Option<u16> {
        key.route.as_ref()?;
        let same = |other: &Key| other.route == key.route && other.protocol == key.protocol;
        let open = self.open.iter().find(|(other, _)| same(other));
        open.map(|(_, listener)| listener.bound.port()).or_else(|| {
            let (_, socket) = prepared.sockets.iter().find(|(other, _)| same(other))?;
            Some(listener::local_addr(socket).ok()?.port())
        })
    }

    /// Takes over what was prepared, and gives the keys of what is new.
    pub(crate) fn keep(
        &mut self,
        mut prepared: Prepared,
        mut id: impl FnMut() -> u64,
    ) -> Vec<(Key, Arc<OwnedFd>)> {
        let mut added = Vec::new();
        for (key, socket) in std::mem::take(&mut prepared.sockets) {
            let Ok(bound) = listener::local_addr(&socket) else { continue };
            let socket = Arc::new(socket);
            added.push((key.clone(), socket.clone()));
            self.failed.remove(&key);
            self.open.insert(key, Listener { id: id(), socket, bound, task: None });
        }
        self.version += u64::from(!added.is_empty());
        self.failed.append(&mut prepared.failures);
        if !std::mem::take(&mut prepared.giving_way).is_empty() {
            for (_, socket) in &added {
                let _ = listener::share(socket, false);
            }
        }
        added
    }

    /// Takes out what `table` does not want; forgets what failed and nobody asks for any more.
    pub(crate) fn take_unwanted(&mut self, table: &Routes) -> Vec<(Key, Listener)> {
        let wanted = keys(table);
        self.version += 1;
        self.failed.retain(|key, _| wanted.contains(key));
        self.open.extract_if(|key, _| !wanted.contains(key)).collect()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Listener> {
        self.open.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &Key) -> Option<&mut Listener> {
        self.open.get_mut(key)
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Listener)> {
        self.open.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Listener> {
        self.open.values_mut()
    }

    /// What could not be had, and is tried again.
    pub(crate) fn failed(&self) -> impl Iterator<Item = (&Key, &BindFailure)> {
        self.failed.iter()
    }

    /// Where `routes` listen.
    pub(crate) fn bound(&self, routes: &[Arc<Entry>]) -> Vec<Bound> {
        let all = routes.iter().flat_map(|route| {
            route.listen.iter().filter_map(|addr| {
                let listener = self.open.get(&Key::new(route, *addr))?;
                let (asked, bound) = (*addr, listener.bound);
                Some(Bound { route: route.id.clone(), asked, bound, protocol: route.protocol })
            })
        });
        all.collect()
    }

    /// Those of `addrs` that somebody else has. What is our own counts as free: whether a stage
    /// may have it is decided by the table.
    pub(crate) fn taken(&self, addrs: &[Bind], table: &Routes) -> Vec<BindFailure> {
        let taken = addrs.iter().filter_map(|wanted| {
            if wanted.addr.port() == 0 {
                return None;
            }
            let own: Vec<_> = self.in_the_way(wanted.protocol, wanted.addr).collect();
            if own.iter().any(|(_, listener)| listener.bound == wanted.addr) {
                return None;
            }
            let shared = |shared| {
                for (_, listener) in &own {
                    let _ = listener::share(&listener.socket, shared);
                }
            };
            shared(true);
            let tried = listener::bind_beside(wanted.protocol, wanted.addr, !own.is_empty());
            shared(false);
            let error = tried.err()?;
            let route = table.all.iter().find(|route| {
                let port = |addr: &SocketAddr| addr.port() == wanted.addr.port();
                route.protocol == wanted.protocol && route.listen.iter().any(port)
            });
            let id = route.map_or("", |route| &route.id);
            Some(failure(id, wanted.addr, wanted.protocol, &error))
        });
        taken.collect()
    }
}

fn keys(table: &Routes) -> HashSet<Key> {
    let all = table.all.iter();
    all.flat_map(|route| route.listen.iter().map(|addr| Key::new(route, *addr))).collect()
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
