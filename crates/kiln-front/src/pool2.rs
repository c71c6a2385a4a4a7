//! Upstream connections of one core that speak HTTP/2: each carries many requests at once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use tokio::net::TcpStream;

use crate::upstream::Upstream;

/// What may be on its way to the front on one stream, and on all of a connection.
const STREAM_WINDOW: u32 = 256 << 10;
const WINDOW: u32 = 64 << 20;
/// Requests on a connection, whatever the upstream would take.
const STREAMS: usize = 256;
// Clients that read nothing hold their streams' windows, never the connection's of all others.
const _: () = assert!(STREAMS as u64 * STREAM_WINDOW as u64 <= WINDOW as u64);
/// Longest list of fields in bytes.
const FIELDS_LIMIT: u32 = 256 << 10;
/// How long after a cut a connection stands, for streams to be ended one by one.
const AFTER_CUT: Duration = Duration::from_secs(1);

thread_local! {
    static POOL: RefCell<HashMap<u64, Vec<Sender>>> = RefCell::default();
}

/// A handle to a connection; those that carry a request are counted.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) requests: SendRequest<Bytes>,
    open: Arc<AtomicUsize>,
}

impl Sender {
    fn lend(&self) -> Self {
        self.open.fetch_add(1, Relaxed);
        Self { requests: self.requests.clone(), open: self.open.clone() }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
    }
}

/// A connection to `upstream` that has room for a request.
pub(crate) fn take(upstream: &Upstream) -> Option<Sender> {
    POOL.with_borrow_mut(|pool| {
        // One handle is the pool's own.
        let has_room = |it: &&Sender| {
            it.open.load(Relaxed) <= it.requests.current_max_send_streams().min(STREAMS)
        };
        pool.get(&upstream.id)?.iter().find(has_room).map(Sender::lend)
    })
}

/// Speaks HTTP/2 on a fresh connection. It is driven by a task of its own until it ends or the
/// upstream is cut, and kept until then.
pub(crate) async fn speak(
    upstream: &Arc<Upstream>,
    stream: TcpStream,
) -> Result<Sender, h2::Error> {
    let mut cut = upstream.when_cut();
    let (requests, connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(FIELDS_LIMIT)
        .handshake::<_, Bytes>(stream)
        .await?;
    let id = upstream.id;
    let sender = Sender { requests, open: Arc::new(AtomicUsize::new(1)) };
    if !upstream.retired() {
        let own = sender.lend();
        POOL.with_borrow_mut(|pool| pool.entry(id).or_default().push(own));
    }
    tokio::spawn(async move {
        tokio::select! {
            // Errors reach the requests that they belong to.
            _ = connection => {}
            // The streams are told first, and tell their clients.
            () = async { cut.all().await; tokio::time::sleep(AFTER_CUT).await } => {}
        }
        forget(id);
    });
    Ok(sender)
}

/// Drops connections that have ended: they take no request any more.
fn forget(id: u64) {
    POOL.with_borrow_mut(|pool| {
        let Some(connections) = pool.get_mut(&id) else { return };
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        connections.retain_mut(|it| {
            let ready = it.requests.poll_ready(&mut cx);
            !matches!(ready, std::task::Poll::Ready(Err(_)))
        });
        if connections.is_empty() {
            pool.remove(&id);
        }
    });
}

/// Drops all connections to an upstream that gets no new work; requests under way go on.
pub(crate) fn retire(upstream: u64) {
    POOL.with_borrow_mut(|pool| pool.remove(&upstream));
}
