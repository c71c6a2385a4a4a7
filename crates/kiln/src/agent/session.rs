//! One client's request under way: where its progress goes, and whether it is still wanted.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use crate::protocol::{Event, Order, Progress, State};
use crate::report::Report;

/// Bytes of what a client says during its request that are kept until somebody asks for them.
const MOST_SAID: usize = 4 << 10;

/// One request under way.
#[derive(Debug)]
pub(crate) struct Session {
    out: Option<Mutex<UnixStream>>,
    cancelled: Arc<AtomicBool>,
    /// Whether a client that is gone ends the work.
    stoppable: bool,
    /// Lines that the client has said since its request, not yet taken.
    said: Arc<Mutex<Vec<u8>>>,
    /// Environment of the client.
    pub env: BTreeMap<String, String>,
    /// Working directory of the client.
    pub cwd: PathBuf,
}

impl Session {
    /// For `stream`, which from now on is watched: when the client hangs up the session counts as
    /// cancelled.
    pub(crate) fn new(stream: &UnixStream, env: BTreeMap<String, String>, cwd: PathBuf) -> Self {
        let cancelled = Arc::new(AtomicBool::new(false));
        let said: Arc<Mutex<Vec<u8>>> = Arc::default();
        if let Ok(mut watched) = stream.try_clone() {
            let (cancelled, said) = (Arc::clone(&cancelled), Arc::clone(&said));
            std::thread::spawn(move || {
                let mut bytes = [0; 512];
                while let Ok(length @ 1..) = watched.read(&mut bytes) {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    // Of what nobody takes, the newest is enough.
                    if said.len() > MOST_SAID {
                        said.clear();
                    }
                    said.extend_from_slice(&bytes[..length]);
                }
                cancelled.store(true, Ordering::Release);
            });
        }
        let out = stream.try_clone().ok().map(Mutex::new);
        Self { out, cancelled, stoppable: true, said, env, cwd }
    }

    /// For what the agent does by itself: nobody listens, nobody cancels.
    pub(crate) fn own() -> Self {
        let cancelled = Arc::new(AtomicBool::new(false));
        Self {
            out: None,
            cancelled,
            stoppable: false,
            said: Arc::default(),
            env: BTreeMap::new(),
            cwd: PathBuf::from("/"),
        }
    }

    /// The same listener for work that has to be done whether or not it is still there.
    pub(crate) fn unstoppable(&self) -> Self {
        let out = self
            .out
            .as_ref()
            .and_then(|out| out.lock().unwrap_or_else(PoisonError::into_inner).try_clone().ok());
        let cancelled = Arc::new(AtomicBool::new(false));
        let (env, cwd) = (self.env.clone(), self.cwd.clone());
        let said = Arc::default();
        Self { out: out.map(Mutex::new), cancelled, stoppable: false, said, env, cwd }
    }

    /// Set when the client has gone.
    pub(crate) fn cancelled(&self) -> &AtomicBool {
        &self.cancelled
    }

    /// What the client has said since the last look. What is no order is nothing.
    pub(crate) fn orders(&self) -> Vec<Order> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = said.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = said.drain(..whole).collect();
        let lines = lines.split(|byte| *byte == b'\n');
        lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    /// An error if the client has gone.
    pub(crate) fn check(&self) -> Result<(), Report> {
        if self.cancelled.load(Ordering::Acquire) || self.stoppable && self.hung_up() {
            return Err(Report::failed("interrupted: nothing was switched"));
        }
        Ok(())
    }

    /// Whether the client has hung up by now, whoever has noticed.
    fn hung_up(&self) -> bool {
        let Some(Ok(out)) = self.out.as_ref().map(Mutex::try_lock) else { return false };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&*out, gone)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&at_once)), Ok(1..)) && fds[0].revents().intersects(gone)
    }

    /// Sends one event. A client that is gone is no error: the work decides by [`Session::check`].
    pub(crate) fn event(&self, event: &Event) {
        let Some(out) = &self.out else { return };
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
        if out.write_all(&line).is_err() && self.stoppable {
            self.cancelled.store(true, Ordering::Release);
        }
    }

    /// One object of a stream.
    pub(crate) fn item(&self, item: Value) {
        self.event(&Event::Item { item });
    }

    /// A sentence for the user.
    pub(crate) fn notice(&self, text: impl Into<String>) {
        self.event(&Event::Notice { text: text.into() });
    }

    /// Begins a node of the tree.
    pub(crate) fn begin<'a>(&'a self, phase: &'a str, name: &str, detail: &str) -> Node<'a> {
        let node = Node { session: self, phase, name: name.to_owned(), began: Instant::now() };
        node.send(State::Running, detail, false);
        node
    }

    /// Says that there was nothing to do for a node.
    pub(crate) fn kept(&self, phase: &str, name: &str, detail: &str) {
        let node = Node { session: self, phase, name: name.to_owned(), began: Instant::now() };
        node.send(State::Kept, detail, false);
    }
}

/// One node of the tree under way.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    session: &'a Session,
    phase: &'a str,
    name: String,
    began: Instant,
}

impl Node<'_> {
    fn send(&self, state: State, detail: &str, timed: bool) {
        let ms = timed.then(|| u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.session.event(&Event::Progress(Progress {
            phase: self.phase.to_owned(),
            name: self.name.clone(),
            state,
            detail: detail.to_owned(),
            ms,
        }));
    }

    /// Goes on with other words.
    pub(crate) fn update(&self, detail: &str) {
        self.send(State::Running, detail, false);
    }

    /// Ends well.
    pub(crate) fn done(self, detail: &str) {
        self.send(State::Done, detail, true);
    }

    /// Ends badly.
    pub(crate) fn failed(self, detail: &str) {
        self.send(State::Failed, detail, true);
    }

    /// Ends by `result`.
    pub(crate) fn end<T>(self, result: &Result<T, Report>, detail: &str) {
        match result {
            Ok(_) => self.done(detail),
            Err(report) => self.failed(report.message.lines().next().unwrap_or_default()),
        }
    }
}
