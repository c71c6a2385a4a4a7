//! One client's request under way: where its progress goes, and whether it is still wanted.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use crate::protocol::{Event, Order, Progress, Question, Reply, State};
use crate::report::Report;

/// Bytes of what a client says during its request that are kept until somebody asks for them.
const MOST_SAID: usize = 4 << 10;
/// The same while an answer is awaited: the certificates of a host may be in it.
const MOST_ANSWERED: usize = 32 << 20;

/// How often it is looked whether a client that is asked has gone.
const LOOK: Duration = Duration::from_millis(100);

/// One request under way.
#[derive(Debug)]
pub(crate) struct Session {
    out: Option<Mutex<UnixStream>>,
    cancelled: Arc<AtomicBool>,
    /// Whether a client that is gone ends the work.
    stoppable: bool,
    said: Arc<Said>,
    /// The number of the next question; held while one is open.
    questions: Mutex<u64>,
    /// Environment of the client.
    pub env: BTreeMap<String, String>,
    /// Working directory of the client.
    pub cwd: PathBuf,
}

/// Lines that a client has said since its request, not yet taken.
#[derive(Debug, Default)]
struct Said {
    bytes: Mutex<Vec<u8>>,
    /// Told when there are more, and when there will be none.
    more: Condvar,
    /// Whether somebody waits for an answer.
    awaited: AtomicBool,
}

impl Said {
    fn add(&self, bytes: &[u8]) {
        let most = if self.awaited.load(Ordering::Acquire) { MOST_ANSWERED } else { MOST_SAID };
        let mut said = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        // Of what nobody takes, the newest is enough.
        if said.len() > most {
            said.clear();
        }
        said.extend_from_slice(bytes);
        if bytes.contains(&b'\n') {
            self.more.notify_all();
        }
    }

    /// Whole lines. What is no order is nothing.
    fn take(said: &mut Vec<u8>) -> Vec<Order> {
        let whole = said.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = said.drain(..whole).collect();
        let lines = lines.split(|byte| *byte == b'\n');
        lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

impl Session {
    /// For `stream`, which from now on is watched: when the client hangs up the session counts as
    /// cancelled.
    ///
    /// # Errors
    /// When there is neither a descriptor nor a thread to watch it by.
    pub(crate) fn new(
        stream: &UnixStream,
        env: BTreeMap<String, String>,
        cwd: PathBuf,
    ) -> io::Result<Self> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let said: Arc<Said> = Arc::default();
        let mut watched = stream.try_clone()?;
        let out = Some(Mutex::new(stream.try_clone()?));
        let (gone, heard) = (Arc::clone(&cancelled), Arc::clone(&said));
        std::thread::Builder::new().spawn(move || {
            let mut bytes = [0; 4 << 10];
            while let Ok(length @ 1..) = watched.read(&mut bytes) {
                heard.add(&bytes[..length]);
            }
            gone.store(true, Ordering::Release);
            heard.more.notify_all();
        })?;
        let questions = Mutex::default();
        Ok(Self { out, cancelled, stoppable: true, said, questions, env, cwd })
    }

    /// For what the agent does by itself: nobody listens, nobody cancels.
    pub(crate) fn own() -> Self {
        let cancelled = Arc::new(AtomicBool::new(false));
        Self {
            out: None,
            cancelled,
            stoppable: false,
            said: Arc::default(),
            questions: Mutex::default(),
            env: BTreeMap::new(),
            cwd: PathBuf::from("/"),
        }
    }

    /// Whether this is what the agent does by itself.
    pub(crate) fn is_own(&self) -> bool {
        self.out.is_none()
    }

    /// The same listener for work that has to be done whether or not it is still there.
    pub(crate) fn unstoppable(&self) -> Self {
        let out = self
            .out
            .as_ref()
            .and_then(|out| out.lock().unwrap_or_else(PoisonError::into_inner).try_clone().ok());
        let cancelled = Arc::new(AtomicBool::new(false));
        let (env, cwd) = (self.env.clone(), self.cwd.clone());
        let (said, questions) = (Arc::default(), Mutex::default());
        Self { out: out.map(Mutex::new), cancelled, stoppable: false, said, questions, env, cwd }
    }

    /// Set when the client has gone.
    pub(crate) fn cancelled(&self) -> &AtomicBool {
        &self.cancelled
    }

    /// What the client has said since the last look.
    pub(crate) fn orders(&self) -> Vec<Order> {
        Said::take(&mut self.said.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks the client, and waits for its answer; `None` if there is none within `patience`, or the
    /// client has gone.
    pub(super) fn question(&self, question: Question, patience: Duration) -> Option<Reply> {
        self.out.as_ref()?;
        let mut next = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        let own = *next;
        self.said.awaited.store(true, Ordering::Release);
        self.event(&Event::Ask { number: own, question });
        let deadline = Instant::now() + patience;
        let mut said = self.said.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = loop {
            let replies = Said::take(&mut said).into_iter().find_map(|order| match order {
                Order::Reply { number, reply } if number == own => Some(*reply),
                _ => None,
            });
            let left = deadline.saturating_duration_since(Instant::now());
            let gone = self.cancelled.load(Ordering::Acquire);
            if replies.is_some() || gone || left.is_zero() {
                break replies;
            }
            let waited = self.said.more.wait_timeout(said, left.min(LOOK));
            said = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(said);
        self.said.awaited.store(false, Ordering::Release);
        reply
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
            Err(report) => self.failed(&report.line()),
        }
    }
}
