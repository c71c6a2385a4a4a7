//! What every request reads: the generation in force.
//!
//! One store of one pointer switches every service of every stage. A request counts itself on
//! its upstream and then checks that no switch came in between, so that a drain which starts
//! after the switch sees every request that chose before it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::limits::Limits;
use crate::table::App;
use crate::upstream::{Active, Counters, Upstream};

/// By ids that this process has given itself, one after the other: nobody can choose them so that
/// they meet in one place, so little is enough to spread them.
pub(crate) type Ids<V> = HashMap<u64, V, BuildHasherDefault<Spread>>;

#[derive(Debug, Default)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        // The golden ratio: Knuth, The Art of Computer Programming, 6.4. A table takes the place from
        // the low bits and a mark from the high ones.
        let spread = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}

/// The routes in force, by listener.
#[derive(Debug, Default)]
pub(crate) struct Generation {
    pub(crate) routes: Ids<Arc<LiveRoute>>,
}

impl Generation {
    /// With room for that many listeners.
    pub(crate) fn with_room(listeners: usize) -> Self {
        Self { routes: Ids::with_capacity_and_hasher(listeners, BuildHasherDefault::default()) }
    }
}

/// A route as requests need it.
#[derive(Debug)]
pub(crate) struct LiveRoute {
    pub(crate) app: App,
    pub(crate) upstream: Option<Arc<Upstream>>,
    /// Bound of the wait while held; `None`: not held.
    pub(crate) hold: Option<Duration>,
    pub(crate) counters: Arc<Counters>,
    /// What answers say of the release that gave them.
    pub(crate) release: Option<Bytes>,
}

/// There is nowhere to send a request: no route, no upstream, or held beyond the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unavailable;

/// What becomes of client connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    /// They stay.
    No,
    /// Each ends with its next answer, which says so: no request can be lost.
    AfterNext,
    /// Idle ones end now, the others after their answer.
    Now,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Front {
    generation: ArcSwap<Generation>,
    epoch: AtomicU64,
    changed: watch::Sender<()>,
    /// How long silence is borne.
    pub(crate) limits: Limits,
    /// How this worker is about to leave.
    pub(crate) closing: watch::Sender<Closing>,
    /// Told whenever a connection ends while closing.
    pub(crate) left: Notify,
    /// Something was learnt that the next worker should know, too.
    pub(crate) learnt: AtomicBool,
}

impl Front {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            generation: ArcSwap::default(),
            epoch: AtomicU64::new(0),
            changed: watch::Sender::new(()),
            closing: watch::Sender::new(Closing::No),
            left: Notify::new(),
            learnt: AtomicBool::new(false),
        }
    }

    /// The switch.
    pub(crate) fn switch(&self, generation: Generation) {
        self.generation.store(Arc::new(generation));
        self.epoch.fetch_add(1, SeqCst);
        self.changed.send_replace(());
    }

    /// Something else than the table has changed that connections wait for.
    pub(crate) fn tell_change(&self) {
        self.changed.send_replace(());
    }

    /// Ends with the next switch after the call.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The route behind a listener, now.
    pub(crate) fn route(&self, listener: u64) -> Option<Arc<LiveRoute>> {
        self.generation.load().routes.get(&listener).cloned()
    }

    /// Where a new request or connection goes; waits while the route is held.
    pub(crate) async fn target(&self, listener: u64) -> Result<Active, Unavailable> {
        match self.target_now(listener) {
            Ok(active) => Ok(active),
            Err(None) => Err(Unavailable),
            Err(Some(_)) => self.target_held(listener).await,
        }
    }

    async fn target_held(&self, listener: u64) -> Result<Active, Unavailable> {
        let start = Instant::now();
        let mut changes = self.changes();
        loop {
            match self.target_now(listener) {
                Ok(active) => return Ok(active),
                Err(None) => return Err(Unavailable),
                Err(Some(bound)) => {
                    let changed = timeout_at(start + bound, changes.changed()).await;
                    changed.map_err(|_| Unavailable)?.map_err(|_| Unavailable)?;
                }
            }
        }
    }

    /// `Err(Some)` says how long a held request may wait.
    fn target_now(&self, listener: u64) -> Result<Active, Option<Duration>> {
        loop {
            let epoch = self.epoch.load(SeqCst);
            let generation = self.generation.load();
            let route = generation.routes.get(&listener).ok_or(None)?;
            if let Some(bound) = route.hold {
                return Err(Some(bound));
            }
            let upstream = route.upstream.as_ref().ok_or(None)?;
            let active = Active::new(upstream.clone(), route.counters.clone())
                .of_release(route.release.clone());
            if self.epoch.load(SeqCst) == epoch {
                return Ok(active);
            }
        }
    }

    pub(crate) fn count_request(&self, listener: u64) {
        if let Some(route) = self.generation.load().routes.get(&listener) {
            route.counters.requests.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn count_error(&self, listener: u64) {
        if let Some(route) = self.generation.load().routes.get(&listener) {
            route.counters.errors.fetch_add(1, Relaxed);
        }
    }
}
