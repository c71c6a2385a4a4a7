//! The worker: from its start to its end.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{mpsc, watch};

use crate::control::{self, Control, Leave};
use crate::core::Cores;
use crate::generation::{Closing, Front};
use crate::limits::Limits;
use crate::link::{self, Message};
use crate::listener::Key;
use crate::paths::Paths;
use crate::state::State;

/// How long a worker that is being replaced may take to let go of its lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How long a worker that was replaced leaves idle connections open: it serves them by a table
/// that may be out of date soon.
const GENTLE: Duration = Duration::from_millis(500);
/// How often an address that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long connections may take to say good-bye when a worker that was replaced ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often the number of connections is looked at anew.
const LOOK: Duration = Duration::from_millis(100);
const LOCK_PAUSE: Duration = Duration::from_millis(2);
/// Pause before the next minder is waited for again after that failed.
const MINDER_PAUSE: Duration = Duration::from_millis(100);

/// Serves `root` until it is told to stop; returns the exit code. Its standard input is the line
/// to the minder, if a minder started it.
pub fn run_worker(root: &Path) -> u8 {
    match run(root) {
        Ok(()) => 0,
        Err(error) => {
            say!("front: {}: {error}", root.display());
            1
        }
    }
}

fn run(root: &Path) -> io::Result<()> {
    let paths = Paths::new(root);
    paths.create()?;
    let (minder, kept) = inherited()?;
    let lock = lock(&paths)?;
    raise_descriptor_limit();
    let limits = Limits::read(&paths.limits()).unwrap_or_else(|error| {
        say!("front: {}: {error}; the usual time-outs hold", paths.limits().display());
        Limits::default()
    });
    let front = Arc::new(Front::new(limits));
    let count = std::thread::available_parallelism().map_or(2, usize::from);
    let cores = Cores::start(&front, count)?;
    let state = State::new(front.clone(), cores.clone(), paths.table());
    let state = Arc::new(Mutex::new(state));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        {
            let mut state = lock_state(&state);
            if let Some(minder) = &minder {
                state.attach(minder.clone());
            }
            state.restore(kept);
        }
        watch_minder(&paths, &state, minder)?;
        let handed = watch::Sender::new(false);
        let (leave, mut told) = mpsc::unbounded_channel();
        let listener = control::listen_at(&paths.control())?;
        let serving = tokio::spawn(
            Control {
                state: state.clone(),
                leave: leave.clone(),
                handed: handed.clone(),
                paths: paths.clone(),
                alone: false,
            }
            .serve(listener),
        );
        let looking = tokio::spawn(look_after(state.clone(), front.clone()));
        let why = told.recv().await.unwrap_or(Leave::Stop { grace: Duration::ZERO });
        looking.abort();
        serving.abort();
        let _ = serving.await;
        let mut finishing = None;
        let grace = match why {
            Leave::Stop { grace } => {
                lock_state(&state).close_all();
                lock_state(&state).tell(Message::Bye, None);
                lock_state(&state).all_told();
                remove_sockets(&paths);
                grace
            }
            Leave::Upgrade { grace } => {
                lock_state(&state).stop_accepting();
                handed.send_replace(true);
                // Before the next worker begins, so that it finds this one.
                let control = Control {
                    state: state.clone(),
                    leave,
                    handed: watch::Sender::new(false),
                    paths: paths.clone(),
                    alone: true,
                };
                finishing = Some(Finishing::begin(&paths, control));
                drop(lock);
                lock_state(&state).tell(Message::Upgrade, None);
                lock_state(&state).all_told();
                grace
            }
        };
        let Some(_finishing) = finishing else {
            finish(&front, &cores, Duration::ZERO, grace).await;
            return Ok(());
        };
        finish_replaced(&state, &front, &cores, grace, told).await;
        Ok(())
    })
}

/// Waits for the last connection. At first busy connections only are closed, and told so by
/// their answers; those that are idle beyond `gentle` can be closed with little risk.
async fn finish(front: &Front, cores: &Cores, gentle: Duration, grace: Duration) {
    front.closing.send_replace(Closing::AfterNext);
    let gone = all_left(front, cores);
    let mut gone = std::pin::pin!(gone);
    if tokio::time::timeout(gentle.min(grace), gone.as_mut()).await.is_ok() {
        return;
    }
    front.closing.send_replace(Closing::Now);
    // Those that go on beyond the grace end with the process.
    let _ = tokio::time::timeout(grace, gone).await;
}

/// As [`finish`], of a worker that was replaced: whoever has its place may end it before.
async fn finish_replaced(
    state: &Mutex<State>,
    front: &Front,
    cores: &Cores,
    grace: Duration,
    mut told: mpsc::UnboundedReceiver<Leave>,
) {
    let over = async {
        finish(front, cores, GENTLE, grace).await;
        // WebSockets and streams are told that they end, not just broken off.
        lock_state(state).cut_all();
        let _ = tokio::time::timeout(FAREWELL, all_left(front, cores)).await;
    };
    let stopped = async {
        let grace = match told.recv().await {
            Some(Leave::Stop { grace } | Leave::Upgrade { grace }) => grace,
            None => std::future::pending().await,
        };
        let _ = tokio::time::timeout(grace, all_left(front, cores)).await;
    };
    tokio::select! {
        () = over => {}
        () = stopped => {}
    }
}

/// Ends with the last connection.
async fn all_left(front: &Front, cores: &Cores) {
    while cores.open() > 0 {
        // Nobody tells of one that ended just before.
        let _ = tokio::time::timeout(LOOK, front.left.notified()).await;
    }
}

/// The socket at which a worker can be asked that was replaced.
struct Finishing(PathBuf);

impl Finishing {
    fn begin(paths: &Paths, control: Control) -> Self {
        let path = paths.finishing(std::process::id());
        match control::listen_at(&path) {
            Ok(listener) => {
                tokio::spawn(control.serve(listener));
            }
            Err(error) => say!("front: {}: {error}", path.display()),
        }
        Self(path)
    }
}

impl Drop for Finishing {
    fn drop(&mut self) {
        // It is cleared away by whoever finds nobody there.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Tries again what could not be had, and writes down what was learnt.
async fn look_after(state: Arc<Mutex<State>>, front: Arc<Front>) {
    let mut tick = tokio::time::interval(RETRY);
    loop {
        tick.tick().await;
        let mut state = lock_state(&state);
        state.try_again();
        if front.learnt.swap(false, Ordering::Relaxed) {
            state.save();
        }
    }
}

fn remove_sockets(paths: &Paths) {
    for path in [paths.control(), paths.minder()] {
        // They are replaced by the next worker anyway.
        let _ = std::fs::remove_file(path);
    }
}

type Kept = BTreeMap<Key, OwnedFd>;

/// The line to the minder, and the sockets that it kept.
fn inherited() -> io::Result<(Option<Arc<OwnedFd>>, Kept)> {
    let mut kept = Kept::new();
    let stdin = io::stdin();
    if !matches!(sockopt::socket_type(&stdin), Ok(SocketType::SEQPACKET)) {
        return Ok((None, kept));
    }
    let line = stdin.as_fd().try_clone_to_owned()?;
    while let Some((message, socket)) = link::receive(line.as_fd())? {
        match (message, socket) {
            (Message::Add(key), Some(socket)) => {
                kept.insert(key, socket);
            }
            (Message::Go, _) => return Ok((Some(Arc::new(line)), kept)),
            _ => {}
        }
    }
    Ok((None, kept))
}

/// One worker a root.
fn lock(paths: &Paths) -> io::Result<std::fs::File> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        if let Some(lock) = paths.try_lock("worker.lock")? {
            return Ok(lock);
        }
        if Instant::now() > deadline {
            return Err(io::Error::other("another worker serves this root"));
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// Each proxied connection needs two descriptors, each port one in the minder; the usual soft
/// limit is 1024.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Never above the hard limit, so it needs no privilege.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// A thread that notices the minder's death and waits for the next one.
fn watch_minder(
    paths: &Paths,
    state: &Arc<Mutex<State>>,
    mut minder: Option<Arc<OwnedFd>>,
) -> io::Result<()> {
    let listener = link::listen_at(&paths.minder())?;
    let state = state.clone();
    std::thread::Builder::new().name("front-minder".into()).spawn(move || {
        let mut failing = false;
        loop {
            if let Some(line) = minder.take() {
                while let Ok(Some(_)) = link::receive(line.as_fd()) {}
                lock_state(&state).detach();
            }
            match rustix::net::accept_with(&listener, rustix::net::SocketFlags::CLOEXEC) {
                Ok(line) => {
                    failing = false;
                    let line = Arc::new(line);
                    lock_state(&state).attach(line.clone());
                    minder = Some(line);
                }
                Err(rustix::io::Errno::INTR) => {}
                // Out of descriptors, or of memory: some day there are some again.
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        say!("front: no minder can be let in for now: {error}");
                    }
                    std::thread::sleep(MINDER_PAUSE);
                }
            }
        }
    })?;
    Ok(())
}

fn lock_state(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
