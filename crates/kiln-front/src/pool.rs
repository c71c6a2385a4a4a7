//! Idle upstream connections of one core, kept by upstream: a switch leaves the old ones behind.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::proxy::{RequestBody, Rewound};
use crate::upstream::Upstream;

/// Below the shortest common server's own limit (Node.js: 5 s), so that a connection is seldom
/// closed from there in the moment it is used here.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
/// Idle connections to one upstream from one core.
const IDLE_COUNT: usize = 256;
/// Longest head of a response; also what is read at once.
const READ_LIMIT: usize = 256 << 10;

thread_local! {
    static POOL: RefCell<HashMap<u64, Vec<Idle>>> = RefCell::default();
}

/// A connection that can take a request.
pub(crate) type Sender = SendRequest<RequestBody>;

struct Idle {
    sender: Sender,
    since: Instant,
}

/// The connection to `upstream` that was used last, if one is ready.
pub(crate) fn take(upstream: &Upstream) -> Option<Sender> {
    POOL.with_borrow_mut(|pool| {
        let idle = pool.get_mut(&upstream.id)?;
        let at = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        let found = idle.remove(at);
        (found.since.elapsed() < IDLE_LIMIT).then_some(found.sender)
    })
}

/// Keeps a connection for the next request.
pub(crate) fn put(upstream: &Upstream, sender: Sender) {
    if upstream.retired() || sender.is_closed() {
        return;
    }
    POOL.with_borrow_mut(|pool| {
        let idle = pool.entry(upstream.id).or_default();
        if idle.len() < IDLE_COUNT {
            idle.push(Idle { sender, since: Instant::now() });
        }
    });
}

/// Drops what is closed or has been idle too long.
pub(crate) fn sweep() {
    POOL.with_borrow_mut(|pool| {
        pool.retain(|_, idle| {
            idle.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < IDLE_LIMIT);
            !idle.is_empty()
        });
    });
}

/// Drops all connections to an upstream that gets no new work.
pub(crate) fn retire(upstream: u64) {
    POOL.with_borrow_mut(|pool| pool.remove(&upstream));
}

/// Speaks HTTP on a fresh connection. It is driven by a task of its own until it ends or the
/// upstream is cut.
pub(crate) async fn speak(upstream: &Arc<Upstream>, stream: TcpStream) -> hyper::Result<Sender> {
    let mut cut = upstream.when_cut();
    let io = TokioIo::new(Rewound::new(stream));
    let (sender, connection) =
        Builder::new().max_buf_size(READ_LIMIT).handshake::<_, RequestBody>(io).await?;
    tokio::spawn(async move {
        tokio::select! {
            // Errors reach the request that they belong to.
            _ = connection.with_upgrades() => {}
            _ = cut.all() => {}
        }
    });
    Ok(sender)
}
