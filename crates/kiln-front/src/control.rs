//! The control socket: one task a connection, requests answered in order. Whoever may open
//! `front.sock` (its owner) may ask anything.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::finishing;
use crate::paths::{Paths, short};
use crate::state::State;
use crate::wire::{Applied, Drain, DrainPolicy, Drained, LINE_LIMIT, Reply, Request};

/// Why the worker shall leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leave {
    Stop { grace: Duration },
    Upgrade { grace: Duration },
}

/// What the control connections share.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) leave: mpsc::UnboundedSender<Leave>,
    /// Set once another worker answers: conversations end, so that they begin anew there.
    pub(crate) handed: watch::Sender<bool>,
    pub(crate) paths: Paths,
    /// Whether this worker is one that was replaced: nobody is to be asked but itself.
    pub(crate) alone: bool,
}

/// Listens at `path`, replacing what was there; the caller holds the worker's lock.
pub(crate) fn listen_at(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    short(path, |path| UnixListener::bind(path))
}

impl Control {
    /// Answers everybody who connects.
    pub(crate) async fn serve(self, listener: UnixListener) {
        let mut failing = false;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    failing = false;
                    tokio::spawn(self.clone().converse(stream));
                }
                Err(error) => {
                    // Once: it may go on for long.
                    if !std::mem::replace(&mut failing, true) {
                        say!("front: control socket: {error}");
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    async fn converse(self, stream: UnixStream) {
        let (from, mut to) = stream.into_split();
        let mut from = BufReader::new(from);
        let mut handed = self.handed.subscribe();
        loop {
            let mut line = Vec::new();
            let mut limited = (&mut from).take(LINE_LIMIT as u64);
            let read = tokio::select! {
                read = limited.read_until(b'\n', &mut line) => read,
                _ = handed.wait_for(|handed| *handed) => return,
            };
            match read {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let (reply, leave) = match serde_json::from_slice(&line) {
                Ok(request) => self.answer(request).await,
                Err(error) => (Reply::Error { message: format!("not a request: {error}") }, None),
            };
            let mut text = serde_json::to_vec(&reply).unwrap_or_default();
            text.push(b'\n');
            let written = to.write_all(&text).await;
            if let Some(leave) = leave {
                // Only fails when the worker is leaving already.
                let _ = self.leave.send(leave);
            }
            if written.is_err() {
                return;
            }
        }
    }

    async fn answer(&self, request: Request) -> (Reply, Option<Leave>) {
        let grace = Duration::from_millis;
        let reply = match request {
            Request::Apply { table, partial } => self.all_follow(|it| it.apply(table, partial)),
            Request::Change(change) => self.all_follow(|it| it.change(change)),
            Request::Get => {
                let state = self.state();
                Reply::Table { table: state.table(), listeners: state.bound() }
            }
            Request::Drain(drain) => Reply::Drained(self.drain_all(drain).await),
            Request::Hold { routes, hold, ms } => {
                self.all_follow(|state| state.hold(&routes, hold, ms))
            }
            Request::CheckBind { addrs } => Reply::Taken { taken: self.state().check_bind(&addrs) },
            Request::Stats => Reply::Stats(self.state().stats()),
            Request::Behind => self.behind().await,
            Request::Ping => {
                let state = self.state();
                let generation = state.in_force();
                let build = crate::build_id();
                Reply::Pong { pid: std::process::id(), minder: state.minded(), generation, build }
            }
            Request::Upgrade { .. } if !self.state().has_minder() => {
                Reply::Error { message: "there is no minder to start another worker".to_owned() }
            }
            Request::Upgrade { grace_ms } => {
                return (Reply::Done, Some(Leave::Upgrade { grace: grace(grace_ms) }));
            }
            Request::Stop { grace_ms } => {
                self.ask_finishing(&Request::Stop { grace_ms }, Some(Duration::ZERO)).await;
                return (Reply::Done, Some(Leave::Stop { grace: grace(grace_ms) }));
            }
        };
        (reply, None)
    }

    /// Changes the table in force, and has those that finish go by it too. Nobody waits for them.
    fn all_follow(&self, change: impl FnOnce(&mut State) -> Reply) -> Reply {
        let reply = change(&mut self.state());
        let changed = matches!(&reply, Reply::Done | Reply::Applied(Applied { applied: true, .. }));
        if changed && !self.alone && finishing::any(&self.paths) {
            let (paths, table) = (self.paths.clone(), self.state().table());
            tokio::spawn(async move { finishing::ask(&paths, &table, None, None).await });
        }
        reply
    }

    /// What those say that finish.
    async fn ask_finishing(&self, request: &Request, limit: Option<Duration>) -> Vec<Reply> {
        if self.alone || !finishing::any(&self.paths) {
            return Vec::new();
        }
        let table = self.state().table();
        finishing::ask(&self.paths, &table, Some(request), limit).await
    }

    async fn behind(&self) -> Reply {
        let (mut upstreams, waiting) = {
            let state = self.state();
            (state.behind(), state.waiting())
        };
        for reply in self.ask_finishing(&Request::Behind, Some(Duration::ZERO)).await {
            let Reply::Behind { upstreams: theirs, .. } = reply else { continue };
            for left in theirs {
                match upstreams.iter_mut().find(|own| own.upstream == left.upstream) {
                    Some(own) => own.add(&left),
                    None => upstreams.push(left),
                }
            }
        }
        Reply::Behind { upstreams, waiting }
    }

    async fn drain_all(&self, drain: Drain) -> Drained {
        let request = Request::Drain(drain.clone());
        // For as long as the routes said: that is theirs to know.
        let limit = match drain.policy {
            DrainPolicy::AsRouted => None,
            _ => Some(Duration::from_millis(drain.deadline_ms)),
        };
        let (mut all, others) =
            tokio::join!(self.drain(drain), self.ask_finishing(&request, limit));
        for reply in others {
            if let Reply::Drained(drained) = reply {
                all.add(&drained);
            }
        }
        all
    }

    async fn drain(&self, drain: Drain) -> Drained {
        let start = Instant::now();
        let deadline = start + Duration::from_millis(drain.deadline_ms);
        let (upstreams, live) = self.state().to_drain(&drain);
        let mut drained = Drained { upstreams: upstreams.len(), live, ..Drained::default() };
        if drain.policy == DrainPolicy::CutStreams {
            upstreams.iter().for_each(|upstream| upstream.cut_streams());
        }
        if drain.policy == DrainPolicy::CutPinned {
            for upstream in &upstreams {
                drained.cut_connections += upstream.active().1;
                upstream.cut_pinned();
            }
        }
        for upstream in &upstreams {
            let said = upstream.deadline().filter(|_| drain.policy == DrainPolicy::AsRouted);
            let idle = timeout_at(said.unwrap_or(deadline), upstream.idle()).await.is_ok();
            let (requests_left, pinned_left) = if idle { (0, 0) } else { upstream.active() };
            match drain.policy {
                DrainPolicy::UntilClosed => drained.remaining += requests_left + pinned_left,
                _ if !idle => {
                    drained.cut_requests += requests_left;
                    drained.cut_connections += pinned_left;
                    upstream.cut();
                }
                _ => {}
            }
        }
        drained.waited_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        drained
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
