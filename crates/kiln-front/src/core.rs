//! A core: a thread with a runtime of its own. A connection lives on one core from its first byte
//! to its last, and so do the upstream connections that it uses: nothing is locked or moved.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::generation::{Closing, Front};
use crate::proxy::{self, Conn, udp};
use crate::{pool, pool2};

/// How often idle upstream connections are looked through.
const SWEEP: Duration = Duration::from_secs(2);
/// Pause after the process ran out of descriptors: trying again at once would only spin.
const EXHAUSTED: Duration = Duration::from_millis(20);

/// All cores.
#[derive(Debug, Clone)]
pub(crate) struct Cores {
    front: Arc<Front>,
    cores: Arc<[Core]>,
    /// A thread that does nothing else than accept: no table, however long, delays a client.
    accepting: Handle,
    /// A thread for all datagrams: a flood of them keeps no connection waiting.
    datagrams: Handle,
}

#[derive(Debug)]
struct Core {
    work: mpsc::UnboundedSender<Work>,
    open: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum Work {
    Serve { stream: TcpStream, peer: SocketAddr, listener: u64, open: Open },
    Retire(u64),
}

/// One open client connection.
#[derive(Debug)]
pub(crate) struct Open {
    count: Arc<AtomicUsize>,
    front: Arc<Front>,
}

impl Open {
    fn new(count: &Arc<AtomicUsize>, front: &Arc<Front>) -> Self {
        count.fetch_add(1, Relaxed);
        Self { count: count.clone(), front: front.clone() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
        if *self.front.closing.borrow() != Closing::No {
            self.front.left.notify_one();
        }
    }
}

impl Cores {
    /// Starts `count` cores.
    pub(crate) fn start(front: &Arc<Front>, count: usize) -> io::Result<Self> {
        let cores = (0..count).map(|at| Core::start(front, at)).collect::<io::Result<_>>()?;
        let (accepting, datagrams) = (thread("front-accepts")?, thread("front-datagrams")?);
        Ok(Self { front: front.clone(), cores, accepting, datagrams })
    }

    /// Client connections open.
    pub(crate) fn open(&self) -> usize {
        self.cores.iter().map(|core| core.open.load(Relaxed)).sum()
    }

    /// Lets go of the idle connections to an upstream.
    pub(crate) fn retire(&self, upstream: u64) {
        for core in self.cores.iter() {
            // A core that ended has no connections.
            let _ = core.work.send(Work::Retire(upstream));
        }
    }

    fn hand(&self, stream: TcpStream, peer: SocketAddr, listener: u64) {
        if let Some(core) = self.cores.iter().min_by_key(|core| core.open.load(Relaxed)) {
            let open = Open::new(&core.open, &self.front);
            let _ = core.work.send(Work::Serve { stream, peer, listener, open });
        }
    }

    /// Accepts on `socket` until it is closed.
    pub(crate) fn accept(&self, socket: Arc<OwnedFd>, listener: u64) -> AbortHandle {
        self.accepting.spawn(self.clone().accepting(socket, listener)).abort_handle()
    }

    /// Serves datagrams until the task is aborted.
    pub(crate) fn datagrams(&self, socket: Arc<OwnedFd>, listener: u64) -> AbortHandle {
        self.datagrams.spawn(udp::serve(self.front.clone(), socket, listener)).abort_handle()
    }

    async fn accepting(self, socket: Arc<OwnedFd>, listener: u64) {
        let socket = match watch(socket) {
            Ok(socket) => socket,
            Err(error) => return say!("front: listener {listener}: {error}"),
        };
        while let Ok(mut ready) = socket.readable().await {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match acceptfrom_with(socket.get_ref(), flags) {
                Ok((stream, peer)) => {
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    if let Some(peer) = peer {
                        self.hand(stream.into(), peer, listener);
                    }
                }
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::BADF) => return,
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                    say!("front: out of file descriptors (fd {})", socket.as_raw_fd());
                    tokio::time::sleep(EXHAUSTED).await;
                }
                // A connection that broke before it was accepted.
                Err(_) => {}
            }
        }
    }
}

/// A thread with a runtime of its own, for what is spawned there.
fn thread(name: &str) -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}

/// Readiness of a listening socket. Accepting by hand instead of through tokio's listener leaves
/// the connection free to be registered on the core that serves it, and only there.
#[allow(unsafe_code)]
fn watch(socket: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the `Arc` moves into the `AsyncFd`, so the descriptor is open, stays open and is the
    // same until that is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

impl Core {
    fn start(front: &Arc<Front>, at: usize) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (work, mut inbox) = mpsc::unbounded_channel();
        let front = front.clone();
        let run = async move {
            let mut sweep = tokio::time::interval(SWEEP);
            loop {
                tokio::select! {
                    work = inbox.recv() => match work {
                        Some(work) => begin(work, &front),
                        None => return,
                    },
                    _ = sweep.tick() => pool::sweep(),
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("front-{at}"))
            .spawn(move || runtime.block_on(run))?;
        Ok(Self { work, open: Arc::default() })
    }
}

fn begin(work: Work, front: &Arc<Front>) {
    match work {
        Work::Serve { stream, peer, listener, open } => {
            if let Ok(stream) = tokio::net::TcpStream::from_std(stream) {
                let conn = Conn { front: front.clone(), listener, peer, _open: open };
                tokio::spawn(proxy::serve(conn, stream));
            }
        }
        Work::Retire(upstream) => {
            pool::retire(upstream);
            pool2::retire(upstream);
        }
    }
}
