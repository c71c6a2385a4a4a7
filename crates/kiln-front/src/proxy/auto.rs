//! Who speaks first: MySQL, SMTP and SSH servers do, HTTP clients do. So the upstream is connected
//! at once, and the first bytes from either side decide. Until then nothing is pinned: when the
//! route switches, the early connection is made anew.
//!
//! Once a route is known to speak HTTP, nothing is connected before a request has come: a server
//! that takes one connection at a time would be blocked by a browser's spare one. And then whatever
//! a client says that is no preface of another protocol is HTTP, or refused.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::detect::{Guess, guess, is_foreign, looks_like_request};
use super::relay::Kind;
use super::stream::{Stop, read_more};
use super::{Conn, Failure, connect, http, http2, rewound, tcp};
use crate::generation::Closing;
use crate::pool::{self, Connection};
use crate::table::App;
use crate::upstream::Upstream;

/// How long a client may take over what it begins with, if it may become a request or not. Then it is bytes, and looked at as they go by.
const WORD_PATIENCE: Duration = Duration::from_secs(1);
/// How long a client has to be silent before an upstream is asked whether it speaks first although
/// the one before it spoke HTTP; how long it may take to do so; and how long it is then left alone.
const DOUBT: Duration = Duration::from_secs(5);
const DOUBT_PATIENCE: Duration = Duration::from_secs(1);
const DOUBT_PAUSE: Duration = Duration::from_secs(30);
/// How long a client may take to say something once it is clear that no upstream answers.
const BROKEN_PATIENCE: Duration = Duration::from_secs(1);
const FIRST_READ: usize = 4096;

/// A connection to the upstream made before it was clear what for.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) upstream: Arc<Upstream>,
    pub(super) stream: TcpStream,
}

enum First {
    Http,
    Http2,
    Other,
    Upstream,
    /// The upstream cannot.
    Nobody,
    /// The client is gone, or silent for too long.
    Gone,
}

/// Serves a client on a route that speaks HTTP, or of which it is not known what it speaks.
pub(super) async fn serve(conn: Arc<Conn>, stream: TcpStream) {
    let mut bytes = BytesMut::new();
    let mut early = None;
    let mut closing = conn.front.closing.subscribe();
    let first = tokio::select! {
        // The client first: what it said decides even when the upstream said something too, for
        // HTTP servers only speak unasked to say good-bye.
        biased;
        first = client_speaks(&conn, &stream, &mut bytes) => first,
        first = upstream_speaks(&conn, &mut early) => first,
        // Nothing has been said: nobody is served by a worker that leaves.
        _ = closing.wait_for(|closing| *closing == Closing::Now) => First::Gone,
    };
    let first = match first {
        First::Nobody => {
            let deadline = Instant::now() + BROKEN_PATIENCE;
            let last = timeout_at(deadline, client_speaks(&conn, &stream, &mut bytes)).await;
            last.unwrap_or(First::Nobody)
        }
        first => first,
    };
    match first {
        First::Http => {
            keep(&conn, early);
            http::serve(conn, stream, bytes).await;
        }
        First::Http2 => http2::serve(conn, rewound(bytes.freeze(), stream)).await,
        First::Other if is_http_only(&conn) => http::refuse_other(&conn, &stream).await,
        First::Other | First::Upstream => {
            conn.front.count_request(conn.listener);
            let kind = if is_foreign(&bytes) { Kind::Tcp } else { Kind::Guessed };
            tcp(&conn, rewound(bytes.freeze(), stream), early, kind).await;
        }
        First::Nobody => conn.front.count_error(conn.listener),
        First::Gone => {}
    }
}

fn is_http_only(conn: &Conn) -> bool {
    conn.front.route(conn.listener).is_some_and(|route| route.app == App::Http)
}

/// Whether the route is known to speak HTTP.
fn is_known(conn: &Conn) -> bool {
    conn.front.route(conn.listener).is_some_and(|route| {
        let speaks = |upstream: &Arc<Upstream>| upstream.speaks_http();
        route.app == App::Http || route.upstream.as_ref().is_some_and(speaks)
    })
}

/// The early connection serves the first request, if it leads where that will go.
fn keep(conn: &Conn, early: Option<Early>) {
    let Some(route) = conn.front.route(conn.listener) else { return };
    let Some(upstream) = &route.upstream else { return };
    if let Some(early) = early.filter(|early| early.upstream.id == upstream.id) {
        pool::put(upstream, Connection::new(early.stream));
    }
}

/// Reads until it is clear what the client speaks. Loses nothing when dropped.
async fn client_speaks(conn: &Conn, stream: &TcpStream, bytes: &mut BytesMut) -> First {
    let mut until = Instant::now() + conn.front.limits.idle;
    let mut begun = None;
    loop {
        match read_more(stream, bytes, FIRST_READ, until).await {
            Ok(()) => {}
            // What came may have been all: let those decide who are asked.
            Err(Stop::End) if !bytes.is_empty() => {
                let known = is_known(conn) || guess(bytes, false) == Guess::Http;
                return if known { First::Http } else { First::Other };
            }
            Err(Stop::Silent) if !bytes.is_empty() => {
                let http = is_known(conn) || looks_like_request(bytes);
                return if http { First::Http } else { First::Other };
            }
            // A client may half-close at once and only listen.
            Err(Stop::End) if !is_known(conn) => return First::Other,
            Err(_) => return First::Gone,
        }
        let begun = *begun.get_or_insert_with(Instant::now);
        match guess(bytes, is_known(conn)) {
            Guess::Http => return First::Http,
            Guess::Http2 => return First::Http2,
            Guess::Other => return First::Other,
            Guess::Unknown if is_known(conn) || looks_like_request(bytes) => {
                until = begun + conn.front.limits.head;
            }
            Guess::Unknown => until = begun + WORD_PATIENCE,
        }
    }
}

/// Ends when the upstream has spoken, or cannot. Loses nothing when dropped: the connection stays
/// in `early`.
async fn upstream_speaks(conn: &Conn, early: &mut Option<Early>) -> First {
    loop {
        let mut changes = conn.front.changes();
        if is_known(conn) {
            *early = None;
            tokio::select! {
                spoke = doubt(conn, early) => if spoke { return First::Upstream },
                _ = changes.changed() => {}
            }
            continue;
        }
        if early.is_none() {
            match connect_early(conn).await {
                Ok(made) => *early = Some(made),
                Err(_) => return First::Nobody,
            }
        }
        let Some(made) = early.as_ref() else { continue };
        tokio::select! {
            spoken = says_first(made) => match spoken {
                Some(false) => return First::Upstream,
                // It is one that says good-bye in HTTP to those who ask nothing.
                Some(true) => {
                    if made.upstream.learn_http() {
                        conn.front.learnt.store(true, Relaxed);
                    }
                }
                // Closed without a word: so will be the client's.
                None => {
                    *early = None;
                    return First::Nobody;
                }
            },
            _ = changes.changed() => {
                let route = conn.front.route(conn.listener);
                let now = route.and_then(|route| Some(route.upstream.as_ref()?.id));
                if now != Some(made.upstream.id) {
                    *early = None;
                }
            }
        }
    }
}

/// Whether what an upstream says before it was asked is HTTP; `None` when it closed.
async fn says_first(early: &Early) -> Option<bool> {
    let mut word = [0; 9];
    match early.stream.peek(&mut word).await {
        Ok(count @ 1..) => Some(is_http(&word[..count])),
        _ => None,
    }
}

/// A good-bye to those who ask nothing, or the settings with which servers of HTTP/2 begin:
/// RFC 9113 3.4, 6.5.
fn is_http(word: &[u8]) -> bool {
    let text = word.len().min(5);
    word[..text] == b"HTTP/"[..text] || matches!(word, [0, _, _, 4, 0, 0, 0, 0, 0])
}

/// What stood behind the route before spoke HTTP, but nobody knows it of this one: when a client
/// is silent for long it may be waiting for the server. Says whether that speaks.
async fn doubt(conn: &Conn, early: &mut Option<Early>) -> bool {
    loop {
        sleep(DOUBT).await;
        let route = conn.front.route(conn.listener);
        let sure = route.is_none_or(|route| {
            let sure = |upstream: &Arc<Upstream>| upstream.is_sure();
            route.app == App::Http || route.upstream.as_ref().is_none_or(sure)
        });
        if !sure
            && let Ok(made) = connect_early(conn).await
            && let Ok(Some(false)) = timeout(DOUBT_PATIENCE, says_first(&made)).await
        {
            made.upstream.unlearn_http();
            *early = Some(made);
            return true;
        }
        sleep(DOUBT_PAUSE).await;
    }
}

async fn connect_early(conn: &Conn) -> Result<Early, Failure> {
    let target = conn.front.target(conn.listener).await;
    let mut active = target.map_err(|_| Failure::Unavailable)?;
    let stream = connect(conn, &mut active).await?;
    Ok(Early { upstream: active.upstream().clone(), stream })
}
