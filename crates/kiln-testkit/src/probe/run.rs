//! The loop: schedule, send, receive, expire.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;

use super::Probe;
use super::connection::{Connection, Progress};
use super::report::{Answer, Loss, Report};

/// Connections at once; requests beyond them wait, and their clocks run.
const MOST_CONNECTIONS: usize = 512;
/// The longest wait for events: the reaction time to `stop`.
const TICK: Duration = Duration::from_millis(20);

pub(super) fn run(probe: &Probe, stop: &AtomicBool) -> Result<Report> {
    let mut run = Run::new(probe)?;
    loop {
        if !stop.load(Ordering::Relaxed) {
            run.schedule();
        } else if run.requests.iter().all(Option::is_some) {
            return Ok(run.report());
        }
        run.dispatch()?;
        run.expire();
        run.wait()?;
    }
}

/// How a request ended.
type Outcome = Result<(Duration, String), String>;

struct Run<'a> {
    probe: &'a Probe,
    bytes: Vec<u8>,
    epoll: OwnedFd,
    start: Instant,
    interval: Duration,
    /// Outcomes by request; `None` while it is open.
    requests: Vec<Option<Outcome>>,
    /// All requests before this one have their outcome.
    oldest_open: usize,
    /// Requests that wait for a connection.
    pending: VecDeque<usize>,
    connections: HashMap<u64, Connection>,
    idle: Vec<u64>,
    opened: u64,
}

impl<'a> Run<'a> {
    fn new(probe: &'a Probe) -> Result<Self> {
        let Probe { address, path, rate, .. } = probe;
        Ok(Self {
            probe,
            bytes: format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").into_bytes(),
            epoll: epoll::create(CreateFlags::CLOEXEC).context("epoll")?,
            start: Instant::now(),
            interval: Duration::from_secs(1) / *rate,
            requests: Vec::new(),
            oldest_open: 0,
            pending: VecDeque::new(),
            connections: HashMap::new(),
            idle: Vec::new(),
            opened: 0,
        })
    }

    /// When a request is due, from the start.
    fn due(&self, request: usize) -> Duration {
        self.interval * u32::try_from(request).unwrap_or(u32::MAX)
    }

    fn schedule(&mut self) {
        let now = self.start.elapsed();
        while self.due(self.requests.len()) <= now {
            self.pending.push_back(self.requests.len());
            self.requests.push(None);
        }
    }

    fn dispatch(&mut self) -> Result<()> {
        while let Some(&request) = self.pending.front() {
            if self.requests[request].is_some() {
                self.pending.pop_front(); // expired while it waited
                continue;
            }
            let id = match self.take_idle() {
                Some(id) => id,
                None if self.connections.len() >= MOST_CONNECTIONS => return Ok(()),
                None => match self.open()? {
                    Ok(id) => id,
                    Err(why) => {
                        self.pending.pop_front();
                        self.requests[request] = Some(Err(why));
                        continue;
                    }
                },
            };
            self.pending.pop_front();
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.ask(request, &self.bytes);
                self.advance(id);
            }
        }
        Ok(())
    }

    /// An idle connection, the latest used first: so the pool shrinks to what is needed. Those that
    /// the server has closed meanwhile are dropped.
    fn take_idle(&mut self) -> Option<u64> {
        while let Some(id) = self.idle.pop() {
            let connection = self.connections.get_mut(&id)?;
            if matches!(connection.advance(), Progress::Idle) {
                return Some(id);
            }
            self.connections.remove(&id);
        }
        None
    }

    /// Opens a connection; the inner error is the server's doing, the outer our own trouble.
    fn open(&mut self) -> Result<Result<u64, String>> {
        let connection = match Connection::open(self.probe.address) {
            Ok(connection) => connection,
            Err(error) => return Ok(Err(format!("connecting: {}", error.kind()))),
        };
        let id = self.opened;
        self.opened += 1;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, connection.stream(), EventData::new_u64(id), flags)
            .context("epoll")?;
        self.connections.insert(id, connection);
        Ok(Ok(id))
    }

    fn advance(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let request = connection.request;
        match (connection.advance(), request) {
            (Progress::Waiting | Progress::Idle, _) => {}
            (Progress::Answered(response, reusable), Some(request)) => {
                let judged = (self.probe.judge)(&response);
                let complete = self.start.elapsed();
                self.requests[request] = Some(judged.map(|label| (complete, label)));
                if reusable {
                    self.idle.push(id);
                } else {
                    self.connections.remove(&id);
                }
            }
            (Progress::Failed(why), Some(request)) => {
                self.requests[request] = Some(Err(why));
                self.connections.remove(&id);
            }
            (Progress::Closed | Progress::Answered(..) | Progress::Failed(_), _) => {
                self.connections.remove(&id);
                self.idle.retain(|other| *other != id);
            }
        }
    }

    fn expire(&mut self) {
        let now = self.start.elapsed();
        while let Some(outcome) = self.requests.get_mut(self.oldest_open) {
            if outcome.is_none() {
                if self.interval * self.oldest_open as u32 + self.probe.patience > now {
                    return;
                }
                *outcome = Some(Err(format!("no answer within {:?}", self.probe.patience)));
                let request = Some(self.oldest_open);
                self.connections.retain(|_, connection| connection.request != request);
            }
            self.oldest_open += 1;
        }
    }

    fn wait(&mut self) -> Result<()> {
        let next = self.due(self.requests.len()).saturating_sub(self.start.elapsed());
        let timeout = Timespec::try_from(next.min(TICK))?;
        let mut events = Vec::with_capacity(256);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))
        {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll"),
        }
        for event in events {
            self.advance(event.data.u64());
        }
        Ok(())
    }

    fn report(self) -> Report {
        let mut report = Report { connections: self.opened as usize, ..Report::default() };
        for (index, outcome) in self.requests.into_iter().enumerate() {
            let scheduled = self.interval * index as u32;
            match outcome {
                Some(Ok((complete, label))) => {
                    report.answers.push(Answer { scheduled, complete, label });
                }
                Some(Err(why)) => report.losses.push(Loss { scheduled, why }),
                None => {}
            }
        }
        report
    }
}
