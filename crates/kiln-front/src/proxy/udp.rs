//! Datagrams: each client gets a socket of its own towards the upstream, so that answers find
//! their way back. A client stays with its upstream while it speaks, over a switch too: half a
//! conversation is of no use to the next release. It moves on when both were silent, when the old
//! upstream is cut, or when nobody listens there any more. Where each datagram stands for itself
//! (`App::Dns`), it moves on with the switch.
//!
//! Whoever sends a datagram may write any sender into it, so what one costs is bounded: there are
//! so many flows and no more, none has a buffer of its own, and a new one takes the place of one
//! that has never been a conversation.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use crate::asked::{self, Asked, Received};
use crate::generation::Front;
use crate::table::App;
use crate::upstream::Active;

/// How long a client that was never answered, or never came back, is remembered.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// The same of a conversation: what the kernel's connection tracking grants one.
const STREAM_LIMIT: Duration = Duration::from_secs(120);
/// The same where new work goes elsewhere by now.
const RETIRED_LIMIT: Duration = Duration::from_secs(5);
/// Clients remembered on one listener: each costs a descriptor and about a thousand bytes. By
/// listener, so that a flood of one keeps no other from its clients.
const FLOW_LIMIT: usize = 2048;
/// So many make room at once, so that a flood does not look through all of them for each datagram.
const ROOM: usize = FLOW_LIMIT / 8;
/// The longest datagram, and one byte.
const DATAGRAM: usize = 64 << 10;

thread_local! {
    /// Datagrams pass through here, one at a time: nothing waits while one is in it.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; DATAGRAM]);
}

/// One client with one upstream.
struct Flow {
    /// Ends when both have been silent.
    task: tokio::task::AbortHandle,
    upstream: u64,
    shared: Arc<Shared>,
}

/// What a flow's two directions share.
struct Shared {
    /// Towards the upstream.
    socket: UdpSocket,
    began: Instant,
    /// Milliseconds from then to when either side spoke last.
    spoke: AtomicU64,
    answered: AtomicBool,
    /// The client spoke again after an answer: its address is no invention.
    talks: AtomicBool,
}

impl Shared {
    fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.spoke.store(now, Relaxed);
    }

    fn silent_for(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.spoke.load(Relaxed)))
    }
}

/// By client, and by the address that it asked where the listener has several.
type Flows = HashMap<Ends, Flow>;
type Ends = (SocketAddr, Option<Asked>);

/// Serves a bound socket until aborted.
pub(crate) async fn serve(front: Arc<Front>, socket: Arc<OwnedFd>, listener: u64) {
    let bound = socket.try_clone().map(std::net::UdpSocket::from);
    let socket = match bound.and_then(UdpSocket::from_std) {
        Ok(socket) => Arc::new(socket),
        Err(error) => return say!("front: listener {listener}: {error}"),
    };
    let told = socket.local_addr().and_then(|bound| asked::tell(&socket, bound));
    if let Err(error) = told {
        say!("front: listener {listener}: which address is asked is not told: {error}");
    }
    let mut flows = Flows::new();
    while socket.readable().await.is_ok() {
        // A few in a row, then others have their turn.
        for _ in 0..32 {
            let received = BUFFER.with_borrow_mut(|buffer| {
                let take = || asked::receive(&socket, buffer);
                let Received { count, client, asked } = socket.try_io(Interest::READABLE, take)?;
                front.count_request(listener);
                let (ends, datagram) = ((client, asked), &buffer[..count]);
                let passed = forward(&front, listener, &socket, &mut flows, ends, datagram);
                if passed.is_err() {
                    front.count_error(listener);
                }
                Ok::<_, io::Error>(())
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Errors here are answers of the network to earlier datagrams.
                _ => {}
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Sends a client's datagram on. What the upstream's socket has no room for is lost, as in any
/// queue that is full.
fn forward(
    front: &Arc<Front>,
    listener: u64,
    socket: &Arc<UdpSocket>,
    flows: &mut Flows,
    ends: Ends,
    datagram: &[u8],
) -> io::Result<()> {
    let Some(route) = front.route(listener) else { return Err(io::ErrorKind::NotConnected.into()) };
    // Datagrams are not held: a client repeats them anyway.
    if route.hold.is_some() {
        return Err(io::ErrorKind::NotConnected.into());
    }
    let now = route.upstream.as_ref();
    let known = flows.get(&ends).filter(|flow| !flow.task.is_finished());
    let stays = known.is_some_and(|flow| {
        let moved = now.is_some_and(|upstream| upstream.id != flow.upstream);
        !(moved && route.app == App::Dns)
    });
    if !stays {
        let upstream = now.ok_or(io::ErrorKind::NotConnected)?.clone();
        make_room(flows)?;
        let any = match upstream.addr {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let towards = std::net::UdpSocket::bind((any, 0))?;
        towards.set_nonblocking(true)?;
        towards.connect(upstream.addr)?;
        let shared = Arc::new(Shared {
            socket: UdpSocket::from_std(towards)?,
            began: Instant::now(),
            spoke: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            talks: AtomicBool::new(false),
        });
        let id = upstream.id;
        let mut active = Active::new(upstream, route.counters.clone());
        active.pin();
        let answers = answers(shared.clone(), socket.clone(), ends, active);
        let task = tokio::spawn(answers).abort_handle();
        flows.insert(ends, Flow { task, upstream: id, shared });
    }
    let Some(flow) = flows.get(&ends) else { return Ok(()) };
    flow.shared.touch();
    if flow.shared.answered.load(Relaxed) {
        flow.shared.talks.store(true, Relaxed);
    }
    // By hand: a socket that is new has not been told yet that it may write.
    let send = || rustix::net::send(&flow.shared.socket, datagram, SendFlags::DONTWAIT);
    match send() {
        // That was the answer to an earlier one: nobody listened then. This one was not sent yet.
        Err(Errno::CONNREFUSED) => send()?,
        sent => sent?,
    };
    Ok(())
}

/// Room for one more flow: where there is none, those go that were silent longest, of those that
/// never were a conversation.
fn make_room(flows: &mut Flows) -> io::Result<()> {
    if flows.len() < FLOW_LIMIT {
        return Ok(());
    }
    flows.retain(|_, flow| !flow.task.is_finished());
    if flows.len() < FLOW_LIMIT {
        return Ok(());
    }
    let mut idle: Vec<(Duration, Ends)> = flows
        .iter()
        .filter(|(_, flow)| !flow.shared.talks.load(Relaxed))
        .map(|(ends, flow)| (flow.shared.silent_for(), *ends))
        .collect();
    if idle.is_empty() {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    idle.sort_unstable_by_key(|(silent, _)| std::cmp::Reverse(*silent));
    for (_, ends) in idle.into_iter().take(ROOM) {
        if let Some(flow) = flows.remove(&ends) {
            flow.task.abort();
        }
    }
    Ok(())
}

/// Brings answers back until both have been silent, or the upstream is cut.
async fn answers(flow: Arc<Shared>, to: Arc<UdpSocket>, ends: Ends, active: Active) {
    let (client, asked) = ends;
    let mut cut = active.upstream().when_cut();
    loop {
        let retired = active.upstream().retired();
        let limit = match flow.talks.load(Relaxed) {
            _ if retired => RETIRED_LIMIT,
            true => STREAM_LIMIT,
            false => IDLE_LIMIT,
        };
        let left = limit.saturating_sub(flow.silent_for());
        if left.is_zero() {
            return;
        }
        // A switch that comes meanwhile is noticed within its own limit.
        let ready = tokio::select! {
            ready = timeout(left.min(RETIRED_LIMIT), flow.socket.readable()) => ready,
            _ = cut.pinned() => return,
        };
        let Ok(ready) = ready else { continue };
        if ready.is_err() {
            return;
        }
        let passed = BUFFER.with_borrow_mut(|buffer| {
            let count = flow.socket.try_recv(buffer)?;
            flow.answered.store(true, Relaxed);
            flow.touch();
            // A client that cannot be reached just now may be again; it is forgotten when silent.
            let _ = asked::answer(&to, &buffer[..count], client, asked);
            Ok::<_, io::Error>(())
        });
        // Nobody listens there just now; where new work goes elsewhere, not any more.
        if passed.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            && active.upstream().retired()
        {
            return;
        }
    }
}
