//! The agent's side: a blocking client, and the means to have a front at all.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::paths::{Paths, short};
use crate::table::{Route, Table};
use crate::wire::{
    Applied, Behind, Bind, BindFailure, Bound, Change, Drain, DrainPolicy, Drained, Reply, Request,
    Stats,
};

/// How long an answer may take that has nothing to wait for.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the answer to a drain is waited for whose length the routes say.
const LONGEST_DRAIN: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a front may take to start: on a machine that is busy, much longer than the few
/// milliseconds that it usually takes.
const START_LIMIT: Duration = Duration::from_secs(20);
const START_PAUSE: Duration = Duration::from_millis(1);

/// A connection to the front of one root.
#[derive(Debug)]
pub struct FrontClient {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    /// What this client put in force last: only what differs from it has to travel.
    sent: Option<Table>,
}

/// What can go wrong between agent and front.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// Nobody listens.
    #[error("the front does not answer at {path}")]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The conversation broke: the front died, or took too long.
    #[error("the front at {path} broke off")]
    Broken {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A newer table is in force: somebody else wrote it. Read it, and decide anew.
    #[error("the front serves generation {current}; {asked} is not newer")]
    Stale {
        /// What was asked.
        asked: u64,
        /// What is in force.
        current: u64,
    },
    /// The front says no.
    #[error("the front refuses: {0}")]
    Refused(String),
    /// The front could not be started.
    #[error("the front could not be started: {what}; see {log}")]
    Start {
        /// What happened.
        what: String,
        /// Where it tells more.
        log: PathBuf,
    },
}

/// What `ping` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pong {
    /// Process id of the worker.
    pub pid: u32,
    /// Whether a minder watches it.
    pub minder: bool,
    /// Generation in force.
    pub generation: u64,
    /// Which build of Kiln the worker is.
    pub build: String,
}

/// Connects to the socket at `path`, or fails: where its queue is full, whoever listens has been
/// stopped, and would be waited for without end.
pub(crate) fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

impl FrontError {
    /// Whether it is there and says nothing: it may be stopped, and may go on any moment.
    pub fn is_silence(&self) -> bool {
        use io::ErrorKind::{TimedOut, WouldBlock};
        match self {
            Self::Connect { source, .. } | Self::Broken { source, .. } => {
                matches!(source.kind(), TimedOut | WouldBlock)
            }
            _ => false,
        }
    }
}

impl FrontClient {
    /// Connects to the front of `root`.
    ///
    /// # Errors
    /// [`FrontError::Connect`] when none runs.
    pub fn connect(root: &Path) -> Result<Self, FrontError> {
        let path = Paths::new(root).control();
        match short(&path, connect_at_once) {
            Ok(stream) => Ok(Self { stream: BufReader::new(stream), path, sent: None }),
            Err(source) => Err(FrontError::Connect { path, source }),
        }
    }

    /// Puts `table` in force: the switch. When a *new* address cannot be bound nothing changes,
    /// and [`Applied::errors`] says who has it.
    ///
    /// # Errors
    /// [`FrontError::Stale`] when a newer table is in force, [`FrontError::Refused`] for a table
    /// that contradicts itself.
    pub fn apply(&mut self, table: &Table) -> Result<Applied, FrontError> {
        self.apply_with(table, false)
    }

    /// Like [`FrontClient::apply`], but serves what can be served although an address fails: for
    /// coming back after a reboot.
    ///
    /// # Errors
    /// As [`FrontClient::apply`].
    pub fn apply_partial(&mut self, table: &Table) -> Result<Applied, FrontError> {
        self.apply_with(table, true)
    }

    fn apply_with(&mut self, table: &Table, partial: bool) -> Result<Applied, FrontError> {
        let reply = match self.difference(table, partial) {
            Some(change) => self.ask(&Request::Change(change), ANSWER_LIMIT)?,
            None => Reply::Stale { asked: table.generation, current: 0 },
        };
        let reply = match reply {
            // Somebody else was there meanwhile: the whole table tells whether that matters.
            Reply::Stale { .. } => {
                self.ask(&Request::Apply { table: table.clone(), partial }, ANSWER_LIMIT)?
            }
            reply => reply,
        };
        match reply {
            Reply::Applied(applied) => {
                if applied.applied {
                    self.remember(table);
                }
                Ok(applied)
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// What `table` changes of what this client applied last, if it did.
    fn difference(&self, table: &Table, partial: bool) -> Option<Change> {
        let sent = self.sent.as_ref().filter(|sent| table.generation > sent.generation)?;
        let (base, generation) = (sent.generation, table.generation);
        if sent.routes.len() == table.routes.len()
            && pairs(sent, table).all(|(was, is)| was.id == is.id)
        {
            let put = pairs(sent, table).filter(|(was, is)| was != is).map(|(_, is)| is.clone());
            return Some(Change {
                base,
                generation,
                put: put.collect(),
                drop: Vec::new(),
                partial,
            });
        }
        let there: HashSet<&str> = table.routes.iter().map(|it| it.id.as_str()).collect();
        if there.len() < table.routes.len() {
            // It contradicts itself: the front will say so of the whole.
            return None;
        }
        let known: HashMap<&str, &Route> =
            sent.routes.iter().map(|it| (it.id.as_str(), it)).collect();
        let is_known = |it: &&Route| known.get(it.id.as_str()) == Some(it);
        let put = table.routes.iter().filter(|it| !is_known(it)).cloned().collect();
        let gone = known.into_keys().filter(|id| !there.contains(id));
        let drop = gone.map(str::to_owned).collect();
        Some(Change { base, generation, put, drop, partial })
    }

    /// Most routes are as they were, in their places: nothing is made anew of those.
    fn remember(&mut self, table: &Table) {
        let sent = self.sent.get_or_insert_default();
        sent.generation = table.generation;
        sent.routes.truncate(table.routes.len());
        let (there, new) = table.routes.split_at(sent.routes.len());
        for (was, is) in sent.routes.iter_mut().zip(there) {
            if was != is {
                was.clone_from(is);
            }
        }
        sent.routes.extend_from_slice(new);
    }

    /// The table in force and its listeners.
    ///
    /// # Errors
    /// When the front breaks off.
    pub fn table(&mut self) -> Result<(Table, Vec<Bound>), FrontError> {
        match self.ask(&Request::Get, ANSWER_LIMIT)? {
            Reply::Table { table, listeners } => Ok((table, listeners)),
            other => Err(self.unexpected(other)),
        }
    }

    /// Waits until nothing is under way on the upstreams, at most until the deadline. Blocks for
    /// that long; use a connection of its own to go on meanwhile.
    ///
    /// # Errors
    /// When the front breaks off.
    pub fn drain(&mut self, drain: &Drain) -> Result<Drained, FrontError> {
        let limit = match drain.policy {
            // The routes say, and the front keeps the clock.
            DrainPolicy::AsRouted => LONGEST_DRAIN,
            _ => Duration::from_millis(drain.deadline_ms),
        };
        let limit = limit.saturating_add(ANSWER_LIMIT);
        match self.ask(&Request::Drain(drain.clone()), limit)? {
            Reply::Drained(drained) => Ok(drained),
            other => Err(self.unexpected(other)),
        }
    }

    /// Holds (or, with `hold` false, releases) routes by id: new requests and connections wait, at
    /// most `ms` milliseconds or else the route's own bound.
    ///
    /// # Errors
    /// [`FrontError::Refused`] when a route is not in the table.
    pub fn hold(
        &mut self,
        routes: &[String],
        hold: bool,
        ms: Option<u64>,
    ) -> Result<(), FrontError> {
        let request = Request::Hold { routes: routes.to_vec(), hold, ms };
        self.ask_done(&request)
    }

    /// Those of `addrs` that could not be bound now, and by whom they are held.
    ///
    /// # Errors
    /// When the front breaks off.
    pub fn check_bind(&mut self, addrs: &[Bind]) -> Result<Vec<BindFailure>, FrontError> {
        match self.ask(&Request::CheckBind { addrs: addrs.to_vec() }, ANSWER_LIMIT)? {
            Reply::Taken { taken } => Ok(taken),
            other => Err(self.unexpected(other)),
        }
    }

    /// Counters.
    ///
    /// # Errors
    /// When the front breaks off.
    pub fn stats(&mut self) -> Result<Stats, FrontError> {
        match self.ask(&Request::Stats, ANSWER_LIMIT)? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(self.unexpected(other)),
        }
    }

    /// What is still under way where no new work goes, and the addresses that somebody else has.
    ///
    /// # Errors
    /// When the front breaks off.
    pub fn behind(&mut self) -> Result<(Vec<Behind>, Vec<BindFailure>), FrontError> {
        match self.ask(&Request::Behind, ANSWER_LIMIT)? {
            Reply::Behind { upstreams, waiting } => Ok((upstreams, waiting)),
            other => Err(self.unexpected(other)),
        }
    }

    /// Who answers.
    ///
    /// # Errors
    /// When the front breaks off.
    pub fn ping(&mut self) -> Result<Pong, FrontError> {
        match self.ask(&Request::Ping, ANSWER_LIMIT)? {
            Reply::Pong { pid, minder, generation, build } => {
                Ok(Pong { pid, minder, generation, build })
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// Has a fresh worker of the minder's program take over; the old one leaves after its last
    /// connection or `grace`. No listener is closed.
    ///
    /// # Errors
    /// [`FrontError::Refused`] without a minder.
    pub fn upgrade(&mut self, grace: Duration) -> Result<(), FrontError> {
        self.ask_done(&Request::Upgrade { grace_ms: millis(grace) })
    }

    /// Ends the front, minder and all, and returns when the worker has ended. What is under way has
    /// `grace` to end.
    ///
    /// # Errors
    /// When the front breaks off before it agreed; [`FrontError::is_silence`] when it has agreed, and
    /// is still there long after.
    pub fn stop(mut self, grace: Duration) -> Result<(), FrontError> {
        self.ask_done(&Request::Stop { grace_ms: millis(grace) })?;
        let ended = wait_for_end(&mut self.stream, grace.saturating_add(ANSWER_LIMIT));
        ended.map_err(|source| FrontError::Broken { path: self.path, source })
    }

    fn ask_done(&mut self, request: &Request) -> Result<(), FrontError> {
        match self.ask(request, ANSWER_LIMIT)? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Reply, FrontError> {
        self.converse(request, limit)
            .map_err(|source| FrontError::Broken { path: self.path.clone(), source })
    }

    fn converse(&mut self, request: &Request, limit: Duration) -> io::Result<Reply> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        // A front that was stopped takes what its socket's buffer takes, and then no more.
        self.stream.get_ref().set_write_timeout(Some(limit))?;
        self.stream.get_ref().set_read_timeout(Some(limit))?;
        self.stream.get_mut().write_all(&line)?;
        line.clear();
        self.stream.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }

    fn unexpected(&self, reply: Reply) -> FrontError {
        match reply {
            Reply::Stale { asked, current } => FrontError::Stale { asked, current },
            Reply::Error { message } => FrontError::Refused(message),
            other => FrontError::Refused(format!("an answer to another question: {other:?}")),
        }
    }
}

/// The routes of two tables, by their places.
fn pairs<'a>(one: &'a Table, two: &'a Table) -> impl Iterator<Item = (&'a Route, &'a Route)> {
    one.routes.iter().zip(&two.routes)
}

/// Waits until the process at the other end has ended: then the line breaks.
fn wait_for_end(line: &mut BufReader<UnixStream>, limit: Duration) -> io::Result<()> {
    line.get_ref().set_read_timeout(Some(limit))?;
    match io::copy(line, &mut io::sink()) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        ended => ended.map(drop),
    }
}

/// A front for `root`: the one that answers, with a minder beside it, else a new one of the
/// program `exe`, in a session of its own so that it outlives the caller.
///
/// # Errors
/// [`FrontError::Start`] when its process fails, or none answers within twenty seconds;
/// [`FrontError::is_silence`] when there is one that does not answer.
pub fn ensure_running(root: &Path, exe: &Path) -> Result<FrontClient, FrontError> {
    if let Some(client) = minded(root)? {
        return Ok(client);
    }
    let paths = Paths::new(root);
    let log = root.join("front/log");
    let start = |what: String| FrontError::Start { what, log: log.clone() };
    let spawned = paths.create().and_then(|()| {
        Command::new(exe)
            .arg("front")
            .arg(root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(paths.open_log()?)
            .spawn()
    });
    let mut child = spawned.map_err(|error| start(format!("{}: {error}", exe.display())))?;
    let pid = child.id();
    // Reaps the minder should it end while the caller lives.
    let reaper = std::thread::Builder::new().name("front-reaper".into());
    let (tell, ended) = mpsc::channel();
    let reap = move || tell.send(child.wait());
    reaper.spawn(reap).map_err(|error| start(error.to_string()))?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(client) = minded(root)? {
            return Ok(client);
        }
        // One that ends well has found another minder there, whose front is on its way.
        if let Ok(Ok(status)) = ended.try_recv()
            && !status.success()
        {
            let what = format!("process {pid} of {} has ended with {status}", exe.display());
            return Err(start(what));
        }
        if Instant::now() > deadline {
            return Err(start(format!("process {pid} of {} does not answer", exe.display())));
        }
        std::thread::sleep(START_PAUSE);
    }
}

/// Replaces a front of another build by one of the program `exe`, minder and worker, without
/// closing a port: the old worker goes on with what it has, for at most `grace`. Says whether
/// there was anything to replace.
///
/// # Errors
/// When there is no front, or the new one does not come up; the old one then serves on.
pub fn renew(root: &Path, exe: &Path, grace: Duration) -> Result<bool, FrontError> {
    let before = FrontClient::connect(root)?.ping()?;
    if before.build == crate::build_id() {
        return Ok(false);
    }
    // The new minder first: it finds the worker, gets its sockets, and starts what is newer.
    let paths = Paths::new(root);
    if let Some(minder) = paths.holder_of("minder.lock") {
        paths.end(minder, "minder.lock");
    }
    let mut front = ensure_running(root, exe)?;
    front.upgrade(grace)?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let pong = FrontClient::connect(root).and_then(|mut front| front.ping());
        if pong.is_ok_and(|pong| pong.pid != before.pid) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            let what = format!("process {} was not replaced", before.pid);
            return Err(FrontError::Start { what, log: root.join("front/log") });
        }
        std::thread::sleep(START_PAUSE);
    }
}

/// The front that answers, with a minder beside it.
fn minded(root: &Path) -> Result<Option<FrontClient>, FrontError> {
    let asked = FrontClient::connect(root).and_then(|mut client| {
        let minder = client.ping()?.minder;
        Ok(minder.then_some(client))
    });
    match asked {
        Err(error) if error.is_silence() => Err(error),
        asked => Ok(asked.ok().flatten()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Drain {
    /// Everything may go on for as long as the routes said, counted from the switch.
    pub fn as_routed(mut self) -> Self {
        self.policy = DrainPolicy::AsRouted;
        self
    }

    /// What led to `upstreams`, cut at the deadline.
    pub fn of(upstreams: impl IntoIterator<Item = SocketAddr>, deadline: Duration) -> Self {
        Self {
            upstreams: upstreams.into_iter().collect(),
            deadline_ms: millis(deadline),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_still_there_has_not_ended() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut here = BufReader::new(here);
        let source = wait_for_end(&mut here, Duration::from_millis(20)).unwrap_err();
        assert!(FrontError::Broken { path: PathBuf::new(), source }.is_silence());
        drop(there);
        wait_for_end(&mut here, Duration::from_secs(30)).unwrap();
    }
}
