//! One instance's port, as the front sees it: what is under way there, and the means to cut it.

use std::net::SocketAddr;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst,
};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::wire;

/// An upstream. The same object serves every generation that names its address.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Never used twice in a process: what pools are kept by.
    pub(crate) id: u64,
    pub(crate) addr: SocketAddr,
    slot: Mutex<String>,
    requests: AtomicUsize,
    pinned: AtomicUsize,
    /// No route of the current generation leads here.
    retired: AtomicBool,
    /// When what is still under way here will be cut.
    deadline: Mutex<Option<Instant>>,
    draining: AtomicUsize,
    ended: Notify,
    /// The last thing that was cut.
    cut: watch::Sender<Cut>,
    /// Once it spoke HTTP, connecting before the client has spoken is of no more use, and what a
    /// client says is taken for HTTP.
    http: AtomicU8,
}

const UNKNOWN: u8 = 0;
const EXPECTED: u8 = 1;
const SEEN: u8 = 2;

impl Upstream {
    pub(crate) fn new(id: u64, addr: SocketAddr) -> Self {
        Self {
            id,
            addr,
            slot: Mutex::default(),
            requests: AtomicUsize::new(0),
            pinned: AtomicUsize::new(0),
            retired: AtomicBool::new(true),
            deadline: Mutex::default(),
            draining: AtomicUsize::new(0),
            ended: Notify::new(),
            cut: watch::Sender::new(Cut::Streams),
            http: AtomicU8::new(UNKNOWN),
        }
    }

    pub(crate) fn slot(&self) -> String {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_slot(&self, slot: &str) {
        slot.clone_into(&mut self.slot.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn retired(&self) -> bool {
        self.retired.load(Relaxed)
    }

    /// A route leads here.
    pub(crate) fn set_live(&self) {
        self.retired.store(false, Relaxed);
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// No route leads here any more. What is under way may go on until `deadline`, if there is one.
    pub(crate) fn set_retired(&self, deadline: Option<Instant>) {
        self.retired.store(true, Relaxed);
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    /// When what is still under way here will be cut.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether connections are read as HTTP, whatever they begin with.
    pub(crate) fn speaks_http(&self) -> bool {
        self.http.load(Relaxed) != UNKNOWN
    }

    /// Whether it has been seen to speak HTTP.
    pub(crate) fn is_sure(&self) -> bool {
        self.http.load(Relaxed) == SEEN
    }

    /// What stood behind the same route before spoke HTTP.
    pub(crate) fn expect_http(&self) {
        let _ = self.http.compare_exchange(UNKNOWN, EXPECTED, Relaxed, Relaxed);
    }

    /// It spoke HTTP. Says whether that is news.
    pub(crate) fn learn_http(&self) -> bool {
        self.http.load(Relaxed) != SEEN && self.http.swap(SEEN, Relaxed) != SEEN
    }

    /// It spoke first, and no HTTP.
    pub(crate) fn unlearn_http(&self) {
        self.http.store(UNKNOWN, Relaxed);
    }

    /// Requests and pinned connections under way.
    pub(crate) fn active(&self) -> (usize, usize) {
        (self.requests.load(SeqCst), self.pinned.load(SeqCst))
    }

    /// Waits until nothing is under way.
    pub(crate) async fn idle(&self) {
        // Announced before counting, as `Active::drop` counts before looking: one of the two sees
        // the other.
        self.draining.fetch_add(1, SeqCst);
        let _leave = Leave(&self.draining);
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.active() == (0, 0) {
                return;
            }
            ended.await;
        }
    }

    /// To wait with, for the next cut that concerns a connection.
    pub(crate) fn when_cut(&self) -> WhenCut {
        WhenCut(self.cut.subscribe())
    }

    /// Ends WebSockets and streams of events: they end by themselves only with their service, and
    /// their clients come again.
    pub(crate) fn cut_streams(&self) {
        self.cut.send_replace(Cut::Streams);
    }

    /// Closes the TCP and upgraded connections to this upstream, and the clients' with them.
    pub(crate) fn cut_pinned(&self) {
        self.cut.send_replace(Cut::Pinned);
    }

    /// Closes every connection there is to this upstream, and with it the clients' that are in
    /// the middle of something.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(Cut::All);
    }

    fn count(&self, pinned: bool) -> &AtomicUsize {
        if pinned { &self.pinned } else { &self.requests }
    }
}

struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cut {
    Streams,
    Pinned,
    All,
}

/// Waits for a cut that comes after its making.
#[derive(Debug)]
pub(crate) struct WhenCut(watch::Receiver<Cut>);

impl WhenCut {
    /// Ends when what goes on without end has to, as far as `is_stream` says that this does.
    pub(crate) async fn stream(&mut self, is_stream: impl Fn() -> bool) {
        self.from(|cut| cut == Cut::All || is_stream()).await;
    }

    /// Ends when a pinned connection has to.
    pub(crate) async fn pinned(&mut self) {
        self.from(|cut| cut >= Cut::Pinned).await;
    }

    /// Ends when every connection has to, or when nobody has a use for the upstream any more.
    pub(crate) async fn all(&mut self) {
        self.from(|cut| cut == Cut::All).await;
    }

    async fn from(&mut self, concerns: impl Fn(Cut) -> bool) {
        // The sender lives in the upstream: where it is gone, so is all use for it.
        while self.0.changed().await.is_ok() {
            let cut = *self.0.borrow_and_update();
            if concerns(cut) {
                return;
            }
        }
    }
}

/// Counters of one route; they outlive generations.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) active: AtomicUsize,
    pub(crate) requests: AtomicU64,
    pub(crate) errors: AtomicU64,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> wire::RouteStats {
        wire::RouteStats {
            active: self.active.load(Relaxed),
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
        }
    }
}

/// One request or pinned connection under way; a drain waits for its drop.
#[derive(Debug)]
pub(crate) struct Active {
    upstream: Arc<Upstream>,
    counters: Arc<Counters>,
    pinned: bool,
    release: Option<Bytes>,
}

impl Active {
    pub(crate) fn new(upstream: Arc<Upstream>, counters: Arc<Counters>) -> Self {
        upstream.requests.fetch_add(1, SeqCst);
        counters.active.fetch_add(1, Relaxed);
        Self { upstream, counters, pinned: false, release: None }
    }

    /// Remembers what the answer is to say of its release.
    pub(crate) fn of_release(mut self, release: Option<Bytes>) -> Self {
        self.release = release;
        self
    }

    /// What the answer says of its release.
    pub(crate) fn release(&self) -> Option<&Bytes> {
        self.release.as_ref()
    }

    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// From now on a connection that belongs to this upstream for good.
    pub(crate) fn pin(&mut self) {
        if !self.pinned {
            self.upstream.pinned.fetch_add(1, SeqCst);
            self.upstream.requests.fetch_sub(1, SeqCst);
            self.pinned = true;
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.counters.active.fetch_sub(1, Relaxed);
        self.upstream.count(self.pinned).fetch_sub(1, SeqCst);
        if self.upstream.draining.load(SeqCst) > 0 {
            self.upstream.ended.notify_waiters();
        }
    }
}
