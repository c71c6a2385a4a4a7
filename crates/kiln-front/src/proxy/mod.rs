//! One accepted connection, from its first byte to its last.
//!
//! | module | noun |
//! |---|---|
//! | `detect` | which protocol the client's first bytes are |
//! | `auto` | who speaks first |
//! | `http` | one HTTP/1.1 connection, one request, its exchange |
//! | `head` | what is changed in heads on their way |
//! | `body` | bodies on their way |
//! | `relay` | bytes both ways, for TCP and upgraded connections |
//! | `rewound` | a stream of which something was read already |
//! | `udp` | datagrams |

mod auto;
mod body;
mod detect;
mod head;
mod http;
mod relay;
mod rewound;
pub(crate) mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

pub(crate) use body::RequestBody;
pub(crate) use rewound::Rewound;

use crate::core::Open;
use crate::generation::Front;
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
        App::Http => http::serve(conn, Rewound::new(stream)).await,
        App::Tcp => {
            conn.front.count_request(conn.listener);
            tcp(&conn, Rewound::new(stream), None).await;
        }
        App::Auto => auto::serve(conn, stream).await,
    }
}

/// Pins a client to the upstream in force. `early` is a connection that was made before, of use
/// only if it leads there.
async fn tcp(conn: &Conn, client: Rewound, early: Option<auto::Early>) {
    let relayed = async {
        let target = conn.front.target(conn.listener).await;
        let mut active = target.map_err(|_| Failure::Unavailable)?;
        let upstream = match early {
            Some(early) if early.upstream.id == active.upstream().id => early.stream,
            _ => connect(conn, &mut active).await?,
        };
        active.pin();
        relay::run(client, Rewound::new(upstream), active).await;
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
