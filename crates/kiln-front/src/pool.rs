//! Idle upstream connections of one core, kept by upstream: a switch leaves the old ones behind.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::net::{RecvFlags, recv};
use tokio::net::TcpStream;

use crate::upstream::Upstream;

/// Below the shortest common server's own limit (Node.js: 5 s), so that a connection is seldom
/// closed from there in the moment it is used here.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
/// Idle connections to one upstream from one core.
const IDLE_COUNT: usize = 256;

thread_local! {
    static POOL: RefCell<HashMap<u64, Vec<Idle>>> = RefCell::default();
}

/// A connection to an upstream, and what it said that nobody has used yet.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) buf: BytesMut,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buf: BytesMut::new() }
    }
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Idle {
    /// Neither closed nor heard from, which would be its good-bye.
    fn stands(&self) -> bool {
        let read = self.stream.try_read(&mut [0; 1]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Asks the kernel: what the runtime knows may be a moment old.
    fn surely_stands(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(recv(&self.stream, &mut [0; 1], flags), Err(rustix::io::Errno::AGAIN))
    }
}

/// The connection to `upstream` that was used last and still stands.
pub(crate) fn take(upstream: &Upstream, sure: bool) -> Option<Connection> {
    POOL.with_borrow_mut(|pool| {
        let idle = pool.get_mut(&upstream.id)?;
        while let Some(last) = idle.pop() {
            let fresh = last.since.elapsed() < IDLE_LIMIT;
            if fresh && last.stands() && (!sure || last.surely_stands()) {
                return Some(Connection::new(last.stream));
            }
        }
        None
    })
}

/// Keeps a connection for the next request.
pub(crate) fn put(upstream: &Upstream, connection: Connection) {
    if upstream.retired() || !connection.buf.is_empty() {
        return;
    }
    POOL.with_borrow_mut(|pool| {
        let idle = pool.entry(upstream.id).or_default();
        if idle.len() < IDLE_COUNT {
            idle.push(Idle { stream: connection.stream, since: Instant::now() });
        }
    });
}

/// Drops what is closed or has been idle too long.
pub(crate) fn sweep() {
    POOL.with_borrow_mut(|pool| {
        pool.retain(|_, idle| {
            idle.retain(|idle| idle.since.elapsed() < IDLE_LIMIT && idle.stands());
            !idle.is_empty()
        });
    });
}

/// Drops all connections to an upstream that gets no new work.
pub(crate) fn retire(upstream: u64) {
    POOL.with_borrow_mut(|pool| pool.remove(&upstream));
}
