//! One accepted connection, from its first byte to its last.
//!
//! | module | noun |
//! |---|---|
//! | `auto`, `detect` | who speaks first; which protocol a client's first bytes are |
//! | `http`, `exchange` | one HTTP/1 connection; one request and its answer |
//! | `http2` | one HTTP/2 connection, its requests |
//! | `fields`, `head`, `answer`, `chunked` | heads and bodies of HTTP/1, read and written anew |
//! | `page` | short answers of the front's own |
//! | `stream` | reading and writing with a bound on silence |
//! | `relay`, `frames` | bytes both ways, for TCP and upgraded connections; where they may be cut |
//! | `rewound` | a stream of which something was read already |
//! | `udp` | datagrams |

mod answer;
mod auto;
mod chunked;
mod detect;
mod exchange;
mod fields;
mod frames;
mod head;
mod http;
mod http2;
mod page;
mod relay;
mod rewound;
mod stream;
pub(crate) mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

pub(crate) use rewound::Rewound;

use crate::core::Open;
use crate::generation::Front;
use crate::listener;
use crate::table::App;
use crate::upstream::Active;

/// How long an upstream may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a refused connect is tried again: an instance that is just being replaced.
const PATIENCE: Duration = Duration::from_millis(250);
/// First pause between two tries; it doubles.
const RETRY: Duration = Duration::from_millis(4);

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) front: Arc<Front>,
    /// Id of the listener that it came in on.
    pub(crate) listener: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) _open: Open,
}

/// Why the upstream could not be reached.
#[derive(Debug)]
pub(crate) enum Failure {
    /// There is none now, or it is held beyond the bound.
    Unavailable,
    /// It did not accept, or broke off.
    Broken,
}

/// Serves a client until either side is done.
pub(crate) async fn serve(conn: Conn, stream: TcpStream) {
    let conn = Arc::new(conn);
    let Some(route) = conn.front.route(conn.listener) else { return };
    match route.app {
        App::Http | App::Auto => auto::serve(conn, stream).await,
        App::Tcp | App::Dns => {
            conn.front.count_request(conn.listener);
            tcp(&conn, Rewound::new(stream), None, relay::Kind::Tcp).await;
        }
    }
}

/// Pins a client to the upstream in force. `early` is a connection that was made before, of use
/// only if it leads there.
async fn tcp(conn: &Conn, client: Rewound, early: Option<auto::Early>, kind: relay::Kind) {
    let relayed = async {
        let target = conn.front.target(conn.listener).await;
        let mut active = target.map_err(|_| Failure::Unavailable)?;
        let upstream = match early {
            Some(early) if early.upstream.id == active.upstream().id => early.stream,
            _ => connect(conn, &mut active).await?,
        };
        active.pin();
        let relayed =
            relay::run(client, Rewound::new(upstream), &active, kind, &conn.front.limits).await;
        if let (relay::Ended::Http, mut client) = relayed {
            // It was read as bytes, so nobody looked at what it claims: it is not answered.
            conn.front.learnt.store(true, Relaxed);
            conn.front.tell_change();
            let _ = client.write_all(&page::page(400, false, true)).await;
            stream::linger(&client).await;
        }
        Ok::<_, Failure>(())
    };
    if relayed.await.is_err() {
        conn.front.count_error(conn.listener);
    }
}

/// Connects to `active`'s upstream. While that refuses, it is tried again for a moment, each time
/// at the upstream then in force, which `active` becomes.
async fn connect(conn: &Conn, active: &mut Active) -> Result<TcpStream, Failure> {
    let give_up = Instant::now() + PATIENCE;
    let mut pause = RETRY;
    loop {
        let mut changes = conn.front.changes();
        match timeout(CONNECT_LIMIT, TcpStream::connect(active.upstream().addr)).await {
            Ok(Ok(stream)) => {
                // It fails only on a connection that is gone, and that shows soon enough.
                let _ = stream.set_nodelay(true);
                let _ = listener::notice_the_dead(&stream);
                return Ok(stream);
            }
            Ok(Err(error)) if is_passing(&error) && Instant::now() < give_up => {
                let _ = timeout(pause, changes.changed()).await;
                pause *= 2;
                let target = conn.front.target(conn.listener).await;
                *active = target.map_err(|_| Failure::Unavailable)?;
            }
            _ => return Err(Failure::Broken),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable
    )
}

/// `bytes` then `stream`.
fn rewound(bytes: Bytes, stream: TcpStream) -> Rewound {
    Rewound { bytes, stream }
}
