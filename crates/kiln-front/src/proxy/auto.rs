//! Who speaks first: MySQL, SMTP and SSH servers do, HTTP clients do. So the upstream is connected
//! at once, and the first bytes from either side decide. Until then nothing is pinned: when the
//! route switches, the early connection is made anew.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::detect::{Guess, guess};
use super::{Conn, Failure, connect, http, rewound, tcp};
use crate::pool;
use crate::upstream::Upstream;

/// How long a client may take over its request line before it is not taken for HTTP.
const LINE_PATIENCE: Duration = Duration::from_secs(5);
/// Before connecting early to an upstream that is known to speak HTTP: a server that takes one
/// connection at a time would be blocked by a browser's spare one.
const HTTP_PATIENCE: Duration = Duration::from_secs(1);
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
    ClientHttp,
    ClientOther,
    Upstream,
    /// The upstream cannot.
    Nobody,
    /// The client is gone.
    Gone,
}

pub(super) async fn serve(conn: Arc<Conn>, mut stream: TcpStream) {
    let mut bytes = BytesMut::with_capacity(FIRST_READ);
    let mut early = None;
    let first = tokio::select! {
        // The client first: what it said decides even when the upstream said something too, for
        // HTTP servers only speak unasked to say good-bye.
        biased;
        first = client_speaks(&mut stream, &mut bytes) => first,
        first = upstream_speaks(&conn, &mut early) => first,
    };
    let first = match first {
        First::Nobody => {
            let deadline = Instant::now() + BROKEN_PATIENCE;
            let last = timeout_at(deadline, client_speaks(&mut stream, &mut bytes)).await;
            last.unwrap_or(First::Nobody)
        }
        first => first,
    };
    let client = rewound(bytes.freeze(), stream);
    match first {
        First::ClientHttp => {
            keep(&conn, early).await;
            http::serve(conn, client).await;
        }
        First::ClientOther | First::Upstream => {
            conn.front.count_request(conn.listener);
            tcp(&conn, client, early).await;
        }
        First::Nobody => conn.front.count_error(conn.listener),
        First::Gone => {}
    }
}

/// The upstream is known to speak HTTP; the early connection serves the first request, if it
/// leads where that will go.
async fn keep(conn: &Conn, early: Option<Early>) {
    let Some(route) = conn.front.route(conn.listener) else { return };
    let Some(upstream) = &route.upstream else { return };
    if upstream.learn_http() {
        conn.front.learnt.store(true, Relaxed);
    }
    let Some(early) = early.filter(|early| early.upstream.id == upstream.id) else { return };
    if let Ok(mut sender) = pool::speak(upstream, early.stream).await {
        // Until its task has run once it would not be taken from the pool.
        if sender.ready().await.is_ok() {
            pool::put(upstream, sender);
        }
    }
}

/// Reads until it is clear what the client speaks. Loses nothing when dropped.
async fn client_speaks(stream: &mut TcpStream, bytes: &mut BytesMut) -> First {
    let mut deadline = None;
    loop {
        let read = stream.read_buf(bytes);
        let read = match deadline {
            None => read.await,
            Some(deadline) => match timeout_at(deadline, read).await {
                Ok(read) => read,
                Err(_) => return First::ClientOther,
            },
        };
        match (read, guess(bytes)) {
            (Err(_), _) => return First::Gone,
            (Ok(0), _) | (_, Guess::Other) => return First::ClientOther,
            (_, Guess::Http) => return First::ClientHttp,
            (_, Guess::Unknown) => {
                deadline.get_or_insert_with(|| Instant::now() + LINE_PATIENCE);
            }
        }
    }
}

/// Ends when the upstream has spoken, or cannot. Loses nothing when dropped: the connection stays
/// in `early`.
async fn upstream_speaks(conn: &Conn, early: &mut Option<Early>) -> First {
    loop {
        let mut changes = conn.front.changes();
        if early.is_none() {
            match connect_early(conn).await {
                Ok(made) => *early = Some(made),
                Err(_) => return First::Nobody,
            }
        }
        let Some(made) = early.as_ref() else { continue };
        let mut byte = [0; 1];
        tokio::select! {
            spoken = made.stream.peek(&mut byte) => match spoken {
                Ok(1..) => return First::Upstream,
                // Closed without a word: so will be the client's.
                _ => {
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

async fn connect_early(conn: &Conn) -> Result<Early, Failure> {
    let target =
        || async { conn.front.target(conn.listener).await.map_err(|_| Failure::Unavailable) };
    let mut active = target().await?;
    if active.upstream().speaks_http() {
        // Not counted as under way meanwhile.
        drop(active);
        sleep(HTTP_PATIENCE).await;
        active = target().await?;
    }
    let stream = connect(conn, &mut active).await?;
    Ok(Early { upstream: active.upstream().clone(), stream })
}
