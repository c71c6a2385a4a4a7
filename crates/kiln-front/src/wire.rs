//! What goes over `front.sock`: each line one JSON object, a [`Request`] one way and its
//! [`Reply`] the other, in order.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::table::{Protocol, Route, Table};

/// Longest line that is read, in bytes.
pub const LINE_LIMIT: usize = 16 << 20;

/// What the agent asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Put a table in force.
    Apply {
        /// The whole table.
        table: Table,
        /// Serve what can be served although some address cannot be bound. Without it nothing
        /// changes when a new address fails.
        #[serde(default)]
        partial: bool,
    },
    /// Put the table in force that a change makes of the one in force.
    Change(Change),
    /// The table in force.
    Get,
    /// Wait until upstreams are idle, then cut.
    Drain(Drain),
    /// Hold or release routes without a new generation.
    Hold {
        /// Route ids.
        routes: Vec<String>,
        /// Hold, or let go.
        hold: bool,
        /// Bound of the wait in milliseconds; the route's own if absent.
        #[serde(default)]
        ms: Option<u64>,
    },
    /// Which of these addresses could not be bound now.
    CheckBind {
        /// What will be asked for.
        addrs: Vec<Bind>,
    },
    /// Counters.
    Stats,
    /// What is still under way where no new work goes.
    Behind,
    /// Is anybody there.
    Ping,
    /// Hand listeners to a fresh worker of the minder's program, and leave when the last connection
    /// has ended, or after `grace_ms`.
    Upgrade {
        /// Milliseconds.
        grace_ms: u64,
    },
    /// End worker and minder, after at most `grace_ms` for what is under way.
    Stop {
        /// Milliseconds.
        #[serde(default)]
        grace_ms: u64,
    },
}

/// What the front answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To `apply`.
    Applied(Applied),
    /// To `get`.
    Table {
        /// The table in force; generation 0 and empty before the first.
        table: Table,
        /// Where it listens.
        listeners: Vec<Bound>,
    },
    /// To `drain`.
    Drained(Drained),
    /// To `check_bind`.
    Taken {
        /// Those that could not be bound; empty when all are free or the front's own.
        taken: Vec<BindFailure>,
    },
    /// To `stats`.
    Stats(Stats),
    /// To `behind`.
    Behind {
        /// Only those on which something is under way.
        upstreams: Vec<Behind>,
        /// Addresses that somebody else has, and that are tried again.
        waiting: Vec<BindFailure>,
    },
    /// To `ping`.
    Pong {
        /// Process id of the worker.
        pid: u32,
        /// Whether a minder watches it.
        minder: bool,
        /// Generation in force.
        generation: u64,
        /// Which build of Kiln the worker is; empty before there was such a thing.
        #[serde(default)]
        build: String,
    },
    /// To `hold`, `stop` and `upgrade`.
    Done,
    /// A table not newer than the one in force.
    Stale {
        /// What was asked.
        asked: u64,
        /// What is in force.
        current: u64,
    },
    /// Anything else that was wrong.
    Error {
        /// A sentence.
        message: String,
    },
}

/// What is different from the table in force: the rest of it need not travel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The generation that it is a change of; with any other in force it is refused as stale.
    pub base: u64,
    /// The new generation.
    pub generation: u64,
    /// Routes that are new or different.
    #[serde(default)]
    pub put: Vec<Route>,
    /// Ids of routes that go.
    #[serde(default)]
    pub drop: Vec<String>,
    /// As of `apply`.
    #[serde(default)]
    pub partial: bool,
}

/// Outcome of `apply` and `change`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Applied {
    /// Generation in force now.
    pub generation: u64,
    /// Whether that is the one that was sent. When `false`, nothing was changed and `errors` says
    /// why.
    pub applied: bool,
    /// Every open listener; after `change`, those of the routes that it put.
    pub listeners: Vec<Bound>,
    /// Addresses that could not be bound.
    pub errors: Vec<BindFailure>,
    /// Addresses that an earlier table could not get either. They stop nobody, and are tried
    /// again every second.
    #[serde(default)]
    pub waiting: Vec<BindFailure>,
}

/// An open listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Route id.
    pub route: String,
    /// The address of the table.
    pub asked: SocketAddr,
    /// The address in use: differs where port 0 was asked.
    pub bound: SocketAddr,
    /// Transport.
    pub protocol: Protocol,
}

/// An address that a deploy will want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Address and port.
    pub addr: SocketAddr,
    /// Transport.
    #[serde(default)]
    pub protocol: Protocol,
}

/// An address that could not be bound, and by whom it is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindFailure {
    /// Route id; empty in answers to `check_bind`, unless a route of this front has the address.
    pub route: String,
    /// The address.
    pub addr: SocketAddr,
    /// Transport.
    pub protocol: Protocol,
    /// The kernel's words.
    pub error: String,
    /// The process that has it, where /proc tells.
    pub holder: Option<Holder>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id, in the front's namespace.
    pub pid: u32,
    /// Its name: `/proc/PID/comm`.
    pub comm: String,
}

impl fmt::Display for BindFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}/{}", self.addr, self.protocol)?;
        if !self.route.is_empty() {
            write!(f, " for {}", self.route)?;
        }
        match &self.holder {
            Some(Holder { pid, comm }) => write!(f, ": taken by {comm} (process {pid})"),
            None => write!(f, ": {}", self.error),
        }
    }
}

/// What to drain: every upstream that is listed or was reached by `slot`, and that no route of the
/// table in force sends new work to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Drain {
    /// Upstreams whose last route was of this slot.
    #[serde(default)]
    pub slot: Option<String>,
    /// Upstreams by address.
    #[serde(default)]
    pub upstreams: Vec<SocketAddr>,
    /// Longest wait in milliseconds.
    pub deadline_ms: u64,
    /// What happens to what goes on.
    #[serde(default)]
    pub policy: DrainPolicy,
}

/// What a drain does with requests and connections that do not end by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainPolicy {
    /// Everything may go on until the deadline, then it is cut.
    #[default]
    Deadline,
    /// TCP and upgraded connections are cut at once; requests have until the deadline.
    CutPinned,
    /// WebSockets and streams of events are cut at once: they do not end by themselves, and their
    /// clients come again. Everything else has until the deadline.
    CutStreams,
    /// Nothing is cut, not even at the deadline.
    UntilClosed,
    /// Everything may go on for as long as the routes said that led there, counted from the
    /// switch; the deadline holds where they said nothing.
    AsRouted,
}

/// Outcome of a drain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Upstreams that it was about and that were known.
    pub upstreams: usize,
    /// Upstreams left out because new work still goes there.
    pub live: Vec<SocketAddr>,
    /// Requests that were cut.
    pub cut_requests: usize,
    /// TCP and upgraded connections that were cut.
    pub cut_connections: usize,
    /// Requests and connections that go on: only under `until_closed`.
    pub remaining: usize,
    /// How long it took, in milliseconds.
    pub waited_ms: u64,
}

/// Counters since the worker's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Generation in force.
    pub generation: u64,
    /// Client connections open.
    pub connections: usize,
    /// By route id.
    pub routes: BTreeMap<String, RouteStats>,
    /// By address: every upstream in use, those that only finish old work among them.
    pub upstreams: BTreeMap<SocketAddr, UpstreamStats>,
    /// Addresses that somebody else has, and that are tried again.
    #[serde(default)]
    pub waiting: Vec<BindFailure>,
}

/// What a switch left behind at one upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Its address.
    pub upstream: SocketAddr,
    /// Slot of the last route that led there.
    pub slot: String,
    /// HTTP requests under way: downloads and event streams among them.
    pub requests: usize,
    /// TCP and upgraded connections, clients of UDP.
    pub connections: usize,
    /// When they will be cut, in milliseconds from now; `None`: when somebody asks for it.
    pub cut_in_ms: Option<u64>,
}

impl Behind {
    /// Takes in what another worker has left at the same upstream.
    pub(crate) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.connections += other.connections;
        self.cut_in_ms = self.cut_in_ms.max(other.cut_in_ms);
    }
}

impl Drained {
    /// Takes in what another worker has drained of the same.
    pub(crate) fn add(&mut self, other: &Self) {
        self.cut_requests += other.cut_requests;
        self.cut_connections += other.cut_connections;
        self.remaining += other.remaining;
        self.waited_ms = self.waited_ms.max(other.waited_ms);
    }
}

/// Counters of a route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStats {
    /// Requests and pinned connections under way.
    pub active: usize,
    /// Requests and TCP connections so far.
    pub requests: u64,
    /// Those that the front had to answer with an error itself, or close.
    pub errors: u64,
}

/// Activity on an upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStats {
    /// Slot of the last route that led there.
    pub slot: String,
    /// Whether a route of the table in force leads there.
    pub live: bool,
    /// HTTP requests under way.
    pub requests: usize,
    /// TCP and upgraded connections.
    pub pinned: usize,
    /// When what is still there will be cut, in milliseconds from now; only of an upstream that
    /// gets no new work.
    #[serde(default)]
    pub cut_in_ms: Option<u64>,
}
