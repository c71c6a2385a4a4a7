//! Datagrams: each client gets a socket of its own towards the upstream, so that answers find
//! their way back. A client stays with its upstream while it speaks, over a switch too: half a
//! conversation is of no use to the next release. It moves on when it was silent, when the old
//! upstream is cut, or when nobody listens there any more.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use crate::generation::Front;
use crate::upstream::Active;

/// A client that neither asks nor is answered for so long is forgotten.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// The same where new work goes elsewhere by now.
const RETIRED_LIMIT: Duration = Duration::from_secs(5);
/// Clients remembered on one listener; more are dropped, as a full queue would.
const FLOW_LIMIT: usize = 4096;
const DATAGRAM: usize = 64 << 10;

struct Flow {
    /// Ends, and closes its end of the channel, when the flow has been idle.
    task: tokio::task::AbortHandle,
    socket: Arc<UdpSocket>,
}

/// Serves a bound socket until aborted.
pub(crate) async fn serve(front: Arc<Front>, socket: Arc<OwnedFd>, listener: u64) {
    let bound = socket.try_clone().map(std::net::UdpSocket::from);
    let socket = match bound.and_then(UdpSocket::from_std) {
        Ok(socket) => Arc::new(socket),
        Err(error) => return say!("front: listener {listener}: {error}"),
    };
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // Errors here are answers of the network to earlier datagrams.
        let Ok((count, client)) = socket.recv_from(&mut buffer).await else { continue };
        front.count_request(listener);
        if forward(&front, listener, &socket, &mut flows, client, &buffer[..count]).await.is_err() {
            front.count_error(listener);
        }
    }
}

async fn forward(
    front: &Arc<Front>,
    listener: u64,
    socket: &Arc<UdpSocket>,
    flows: &mut HashMap<SocketAddr, Flow>,
    client: SocketAddr,
    datagram: &[u8],
) -> io::Result<()> {
    let route = front.route(listener);
    // Datagrams are not held: a client repeats them anyway.
    let open = route.filter(|route| route.hold.is_none()).and_then(|route| {
        let upstream = route.upstream.clone()?;
        Some((upstream, route.counters.clone()))
    });
    let Some((upstream, counters)) = open else {
        return Err(io::ErrorKind::NotConnected.into());
    };
    if flows.get(&client).is_none_or(|flow| flow.task.is_finished()) {
        if flows.len() >= FLOW_LIMIT {
            flows.retain(|_, flow| !flow.task.is_finished());
        }
        if flows.len() >= FLOW_LIMIT {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let any = match upstream.addr {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let towards = Arc::new(UdpSocket::bind((any, 0)).await?);
        towards.connect(upstream.addr).await?;
        let mut active = Active::new(upstream.clone(), counters);
        active.pin();
        let task = tokio::spawn(answers(towards.clone(), socket.clone(), client, active));
        let flow = Flow { task: task.abort_handle(), socket: towards };
        flows.insert(client, flow);
    }
    if let Some(flow) = flows.get(&client) {
        flow.socket.send(datagram).await?;
    }
    Ok(())
}

async fn answers(from: Arc<UdpSocket>, to: Arc<UdpSocket>, client: SocketAddr, active: Active) {
    let mut cut = active.upstream().when_cut();
    let mut buffer = vec![0; DATAGRAM];
    let mut heard = Instant::now();
    loop {
        let received = tokio::select! {
            received = timeout(RETIRED_LIMIT, from.recv(&mut buffer)) => received,
            _ = cut.pinned() => return,
        };
        match received {
            Ok(Ok(count)) => {
                heard = Instant::now();
                if to.send_to(&buffer[..count], client).await.is_err() {
                    return;
                }
            }
            // Nobody listens there just now; where new work goes elsewhere, not any more.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                if active.upstream().retired() {
                    return;
                }
            }
            Err(_) if !active.upstream().retired() && heard.elapsed() < IDLE_LIMIT => {}
            _ => return,
        }
    }
}
