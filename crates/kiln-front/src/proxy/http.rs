//! HTTP/1: a client's connection, each of its requests on the generation then in force.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::consume_budget;
use tokio::time::Instant;

use super::exchange::{Carried, Told, carry};
use super::head::{self, Client, Framing, Request};
use super::page::page;
use super::relay::{self, Kind};
use super::stream::{Progress, Stop, abort, gone, linger, read_head, read_more, write_all};
use super::{Conn, Failure, Rewound, connect};
use crate::generation::Closing;
use crate::limits::Limits;
use crate::pool::{self, Connection};
use crate::upstream::Active;

/// Longest head of a request in bytes; as many fields as fit.
const HEAD_LIMIT: usize = 64 << 10;
/// Bytes of empty lines before a request: some clients send one after a body, none sends many.
const BLANKS: usize = 4 << 10;
/// What is read at once while a client may be idle.
const IDLE_READ: usize = 8 << 10;
/// How long a client may take over a page of the front's own.
const PAGE_PATIENCE: Duration = Duration::from_secs(10);
/// Fresh connections that are tried for a request that was never sent.
const TRIES: usize = 3;

/// What becomes of the client's connection.
enum After {
    Next,
    Close,
    /// Close it so that the answer is not taken for whole.
    Abort,
    /// Answer with a page of the front's own; then go on only if nothing is left of the request.
    Page(u16),
    Switch {
        head: Vec<u8>,
        upstream: Connection,
        active: Active,
        websocket: bool,
    },
}

/// Serves a client that sent `buf` until it, or the front, closes.
pub(super) async fn serve(conn: Arc<Conn>, stream: TcpStream, mut buf: BytesMut) {
    let who = Client::new(conn.peer.ip());
    let mut closing = conn.front.closing.subscribe();
    loop {
        // Who sends one request behind the other has no more than its share of the core.
        consume_budget().await;
        let length = match next_head(&conn, &stream, &mut buf, &mut closing).await {
            Ok(length) => length,
            Err(Some(status)) => return refuse(&conn, &stream, status).await,
            Err(None) => return,
        };
        let request = head::request(&buf[..length], &who);
        buf.advance(length);
        conn.front.count_request(conn.listener);
        let request = match request {
            Ok(request) => request,
            Err(refused) => return refuse(&conn, &stream, refused.0).await,
        };
        match exchange(&conn, &stream, &mut buf, &request, &closing).await {
            After::Next => {}
            After::Close => return linger(&stream).await,
            After::Abort => return abort(&stream),
            After::Page(status) => {
                conn.front.count_error(conn.listener);
                let keep = request.body == Framing::None
                    && request.keep_alive
                    && *closing.borrow() == Closing::No;
                let page = page(status, request.is_head, !keep);
                let told = write_all(&stream, &page, PAGE_PATIENCE, &Progress::default()).await;
                if told.is_err() || !keep {
                    return linger(&stream).await;
                }
            }
            After::Switch { mut head, upstream, active, websocket } => {
                head.extend_from_slice(b"\r\n");
                let told = write_all(&stream, &head, PAGE_PATIENCE, &Progress::default()).await;
                if told.is_ok() {
                    let kind = if websocket { Kind::WebSocket } else { Kind::Upgraded };
                    let client = Rewound { bytes: buf.freeze(), stream };
                    let upstream =
                        Rewound { bytes: upstream.buf.freeze(), stream: upstream.stream };
                    relay::run(client, upstream, &active, kind, &conn.front.limits).await;
                }
                return;
            }
        }
        if buf.is_empty() {
            // An idle connection holds no buffer.
            buf = BytesMut::new();
        }
    }
}

/// Waits for a head, and gives its length; else the status that refuses it, if there is anybody
/// to tell.
async fn next_head(
    conn: &Conn,
    stream: &TcpStream,
    buf: &mut BytesMut,
    closing: &mut watch::Receiver<Closing>,
) -> Result<usize, Option<u16>> {
    let Limits { idle, head, .. } = conn.front.limits;
    let until = Instant::now() + idle;
    let mut blanks = 0;
    loop {
        // Empty lines before a request are nobody's (RFC 9112 2.2), and no sign of life.
        let blank = buf.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        buf.advance(blank);
        blanks += blank;
        if blanks > BLANKS {
            return Err(Some(400));
        }
        if !buf.is_empty() {
            break;
        }
        let read = tokio::select! {
            biased;
            read = read_more(stream, buf, IDLE_READ, until) => read,
            _ = closing.wait_for(|closing| *closing == Closing::Now) => return Err(None),
        };
        read.map_err(|_| None)?;
        if Instant::now() >= until {
            return Err(None);
        }
    }
    read_head(stream, buf, HEAD_LIMIT, head, head).await.map_err(|stop| match stop {
        Stop::TooLong => Some(431),
        Stop::Silent => Some(408),
        _ => None,
    })
}

/// What follows cannot be trusted to begin where it seems to.
async fn refuse(conn: &Conn, stream: &TcpStream, status: u16) {
    conn.front.count_error(conn.listener);
    let page = page(status, false, true);
    if write_all(stream, &page, PAGE_PATIENCE, &Progress::default()).await.is_ok() {
        linger(stream).await;
    }
}

/// Refuses a client that speaks something else where HTTP is spoken.
pub(super) async fn refuse_other(conn: &Conn, stream: &TcpStream) {
    conn.front.count_request(conn.listener);
    refuse(conn, stream, 400).await;
}

/// Sends a request and its answer on their ways. It is sent again only if it was never sent, or if
/// it died on a connection that had been idle and repeating it does no harm.
async fn exchange(
    conn: &Conn,
    client: &TcpStream,
    buf: &mut BytesMut,
    request: &Request,
    closing: &watch::Receiver<Closing>,
) -> After {
    let harmless = request.idempotent && request.body == Framing::None;
    let mut fresh_only = false;
    for _ in 0..TRIES {
        let waiting = Progress::default();
        let reached = tokio::select! {
            biased;
            reached = reach(conn, fresh_only, !harmless) => reached,
            () = gone(client, &waiting) => return After::Abort,
        };
        let (mut upstream, active, reused) = match reached {
            Ok(reached) => reached,
            Err(Failure::Unavailable) => return After::Page(503),
            Err(Failure::Broken) => return After::Page(502),
        };
        let ending = || *closing.borrow() != Closing::No;
        let heard = || {
            if active.upstream().learn_http() {
                conn.front.learnt.store(true, Relaxed);
                conn.front.tell_change();
            }
        };
        let limits = &conn.front.limits;
        let told = Told { release: active.release().cloned(), closing: ending, heard, limits };
        match carry(client, buf, request, &mut upstream, &active, &told).await {
            Carried::Answered { reusable, close } => {
                if reusable {
                    pool::put(active.upstream(), upstream);
                }
                return if close { After::Close } else { After::Next };
            }
            Carried::Switch(head) => {
                let mut active = active;
                active.pin();
                let websocket = request.websocket;
                return After::Switch { head, upstream, active, websocket };
            }
            Carried::Unanswered { unsent } if unsent || (reused && harmless) => fresh_only = true,
            Carried::Unanswered { .. } | Carried::NoAnswer => return After::Page(502),
            Carried::Silent => return After::Page(504),
            Carried::Fault(status) => return After::Page(status),
            Carried::BrokenOff | Carried::Gone => return After::Abort,
        }
    }
    After::Page(502)
}

/// A connection to the upstream in force, and whether it was used before. `sure`: it has to be
/// known that it still stands.
async fn reach(
    conn: &Conn,
    fresh_only: bool,
    sure: bool,
) -> Result<(Connection, Active, bool), Failure> {
    let target = conn.front.target(conn.listener).await;
    let mut active = target.map_err(|_| Failure::Unavailable)?;
    if !fresh_only && let Some(idle) = pool::take(active.upstream(), sure) {
        return Ok((idle, active, true));
    }
    let stream = connect(conn, &mut active).await?;
    Ok((Connection::new(stream), active, false))
}
