//! The line to the front. Tables come into force one after the other, and nobody holds a lock while
//! the front is asked: who comes first asks for all who wait by then. So a hundred stages that
//! change at once cost a few tables, and a front that does not answer costs each of them one wait.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_front::{Applied, Bind, BindFailure, FrontClient, FrontError, Route, Table};

use super::lock;
use crate::report::{Because, Report};

/// How a table is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// As a whole: when a new address cannot be had, nothing of it.
    Whole,
    /// What can be had.
    Part,
}

/// The front of this root, as the agent sees it.
#[derive(Debug)]
pub(crate) struct Line {
    root: PathBuf,
    exe: PathBuf,
    turns: Mutex<Turns>,
    changed: Condvar,
    /// Whether this agent has looked if the front is of its build.
    renewed: AtomicBool,
    /// Since when it is there and does not answer. Nobody asks it then but the pulse.
    silent: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Turns {
    /// Not there while somebody asks by it.
    client: Option<FrontClient>,
    /// Somebody asks.
    busy: bool,
    last: u64,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    by: By,
    result: Option<Result<Applied, Report>>,
}

/// Ends a turn, on whatever path: those who got no result go on by themselves.
struct Turn<'a>(&'a Line);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.turns).busy = false;
        self.0.changed.notify_all();
    }
}

impl Line {
    /// To the front of `root`, which is started when first needed.
    pub(crate) fn new(root: PathBuf, exe: PathBuf) -> Self {
        Self {
            root,
            exe,
            turns: Mutex::default(),
            changed: Condvar::new(),
            renewed: AtomicBool::new(false),
            silent: Mutex::default(),
        }
    }

    /// Puts the routes in force that `routes` gives. They are asked for as late as can be: what
    /// anybody has changed by then is among them.
    pub(crate) fn apply(&self, by: By, routes: &dyn Fn() -> Vec<Route>) -> Result<Applied, Report> {
        let mut turns = lock(&self.turns);
        turns.last += 1;
        let own = turns.last;
        turns.waiting.insert(own, Waiting { by, result: None });
        loop {
            if let Some(result) = turns.take(own) {
                return result;
            }
            if !turns.busy {
                break;
            }
            turns = self.wait(turns);
        }
        turns.busy = true;
        let turn = Turn(self);
        // Each of them changed the state before it asked, so this table has it.
        let same = turns.waiting.iter().filter(|(_, it)| it.by == by && it.result.is_none());
        let all: Vec<u64> = same.map(|(id, _)| *id).collect();
        let mut client = turns.client.take();
        drop(turns);
        let result = self.with(&mut client, |front| {
            let table = Table { generation: front.ping()?.generation + 1, routes: routes() };
            match by {
                By::Whole => front.apply(&table),
                By::Part => front.apply_partial(&table),
            }
        });
        let mut turns = lock(&self.turns);
        turns.client = client;
        for id in all {
            if let Some(waiting) = turns.waiting.get_mut(&id) {
                waiting.result = Some(result.clone());
            }
        }
        turns.waiting.remove(&own);
        drop(turns);
        drop(turn);
        result
    }

    /// Waits until another table was applied, at most for `limit`.
    pub(crate) fn wait_for_another(&self, limit: Duration) {
        let turns = lock(&self.turns);
        drop(self.changed.wait_timeout(turns, limit));
    }

    /// Those of `addrs` that somebody else has. It has a connection of its own, and waits for no
    /// table.
    pub(crate) fn check_bind(&self, addrs: &[Bind]) -> Result<Vec<BindFailure>, Report> {
        let mut client = FrontClient::connect(&self.root).ok();
        self.with(&mut client, |front| front.check_bind(addrs))
    }

    /// Does `ask` with the front, which is started or found again if it has to be.
    fn with<T>(
        &self,
        client: &mut Option<FrontClient>,
        ask: impl Fn(&mut FrontClient) -> Result<T, FrontError>,
    ) -> Result<T, Report> {
        let doing = || "asking the front".to_owned();
        self.speaks()?;
        let begun = Instant::now();
        if let Some(there) = client.as_mut() {
            match ask(there) {
                Err(error) if error.is_silence() => {
                    *client = None;
                    return Err(self.falls_silent(begun));
                }
                Err(FrontError::Connect { .. } | FrontError::Broken { .. }) => *client = None,
                result => return result.because(doing),
            }
        }
        let started = kiln_front::ensure_running(&self.root, &self.exe);
        if started.as_ref().is_err_and(FrontError::is_silence) {
            return Err(self.falls_silent(begun));
        }
        ask(client.insert(started.because(|| "starting the front".into())?)).because(doing)
    }

    /// Asks on a connection of its own, for what takes its time, or must not wait for others.
    pub(crate) fn aside<T>(
        &self,
        ask: impl FnOnce(FrontClient) -> Result<T, FrontError>,
    ) -> Result<T, Report> {
        self.speaks()?;
        let begun = Instant::now();
        let asked = FrontClient::connect(&self.root).and_then(ask);
        if asked.as_ref().is_err_and(FrontError::is_silence) {
            return Err(self.falls_silent(begun));
        }
        asked.because(|| "asking the front".to_owned())
    }

    /// An error while the front is known to be silent: it costs ten seconds to find that out, and
    /// that is done once.
    fn speaks(&self) -> Result<(), Report> {
        match *lock(&self.silent) {
            Some(since) => Err(self.silence(since)),
            None => Ok(()),
        }
    }

    /// Nobody asks again but the pulse. `since`: when the question was asked that got no answer.
    fn falls_silent(&self, since: Instant) -> Report {
        self.silence(*lock(&self.silent).get_or_insert(since))
    }

    fn silence(&self, since: Instant) -> Report {
        let said = "what it serves may go on, and nothing of it can be changed";
        let pid = kiln_front::worker(&self.root).unwrap_or_default();
        let seconds = since.elapsed().as_secs();
        Report::failed(format!(
            "the front (process {pid}) is there and has not answered for {seconds} s: {said}"
        ))
        .hint(format!(
            "if it was stopped: `kill -CONT {pid}`; if it hangs: `kill -9 {pid}`, and another one \
             takes its ports at once"
        ))
    }

    /// Whether it is known to be there and not to answer.
    pub(crate) fn is_silent(&self) -> bool {
        lock(&self.silent).is_some()
    }

    /// Whether front and minder are certainly not both there. Then the next request starts what is
    /// missing. One that cannot be asked, for want of descriptors say, or that takes its time, may
    /// be there.
    pub(crate) fn is_broken(&self) -> bool {
        use std::io::ErrorKind;
        let begun = Instant::now();
        let pong = FrontClient::connect(&self.root).and_then(|mut front| front.ping());
        match &pong {
            Err(error) if error.is_silence() => {
                let _ = self.falls_silent(begun);
            }
            _ => *lock(&self.silent) = None,
        }
        let broken = match &pong {
            Ok(pong) => !pong.minder,
            Err(FrontError::Connect { source, .. }) => {
                matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
            }
            Err(FrontError::Broken { source, .. }) => {
                !matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
            }
            Err(_) => false,
        };
        if broken {
            lock(&self.turns).client = None;
        }
        broken
    }

    /// A front of another build than this one is replaced, without a lost request; looked at once.
    /// True: it was replaced. The old one may go on for `grace`.
    pub(crate) fn renew(&self, grace: Duration) -> Result<bool, FrontError> {
        if self.renewed.swap(true, Ordering::AcqRel) {
            return Ok(false);
        }
        kiln_front::renew(&self.root, &self.exe, grace)
    }

    /// Ends front and minder.
    pub(crate) fn stop(&self) {
        lock(&self.turns).client = None;
        // One that had to be killed has ended, too.
        let _ = kiln_front::end(&self.root);
    }

    fn wait<'a>(&self, turns: MutexGuard<'a, Turns>) -> MutexGuard<'a, Turns> {
        self.changed.wait(turns).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    /// What came of turn `id`, once it is there.
    fn take(&mut self, id: u64) -> Option<Result<Applied, Report>> {
        let result = self.waiting.get_mut(&id)?.result.take()?;
        self.waiting.remove(&id);
        Some(result)
    }
}
