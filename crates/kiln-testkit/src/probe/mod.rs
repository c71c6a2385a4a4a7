//! An open-loop prober: requests are scheduled by the clock, not by the answers before them, so a
//! server that stands still is met by every request that real clients would have sent meanwhile.
//!
//! A request is *lost* if no complete, correct answer is there within the patience (5 s) after its
//! scheduled arrival. Nothing is sent twice: whatever fails on a connection is lost. Connections
//! are kept alive and shared; one that the server closed while it was idle costs nothing.
//!
//! One thread does it all, by epoll; 2,000 requests a second take a few per cent of a core.

mod connection;
mod report;
mod run;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::http::Response;

pub use report::{Answer, Loss, Report};

/// Judges an answer: a label if it is correct (for example the version that it shows), else why
/// it is not.
pub type Judge = Arc<dyn Fn(&Response) -> Result<String, String> + Send + Sync>;

/// What to ask, how often, and what a correct answer is.
#[derive(Clone)]
pub struct Probe {
    address: SocketAddr,
    path: String,
    rate: u32,
    patience: Duration,
    judge: Judge,
}

impl Probe {
    /// Asks `GET /` of a port on 127.0.0.1, `rate` times a second. Correct is every answer with
    /// status 200; its label is the body.
    ///
    /// # Panics
    /// If `rate` is 0.
    pub fn local(port: u16, rate: u32) -> Self {
        assert!(rate > 0, "a prober needs a rate");
        Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            path: "/".to_owned(),
            rate,
            patience: Duration::from_secs(5),
            judge: Arc::new(|response| match response.status {
                200 => Ok(response.text().trim_end().to_owned()),
                status => Err(format!("status {status}")),
            }),
        }
    }

    /// Asks for another path.
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Judges answers by other rules.
    pub fn judge(
        mut self,
        judge: impl Fn(&Response) -> Result<String, String> + Send + Sync + 'static,
    ) -> Self {
        self.judge = Arc::new(judge);
        self
    }

    /// Sets after what time a request is lost.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Begins.
    pub fn start(self) -> Probing {
        let stop = Arc::new(AtomicBool::new(false));
        let asked_to = Arc::clone(&stop);
        let thread = std::thread::spawn(move || run::run(&self, &asked_to));
        Probing { stop, thread: Some(thread) }
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, path, rate, .. } = self;
        write!(f, "Probe(http://{address}{path} at {rate}/s)")
    }
}

/// A prober at work. Dropped, it stops.
#[derive(Debug)]
pub struct Probing {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Report>>>,
}

impl Probing {
    /// Schedules no more requests, waits until each that was has its outcome, and reports.
    ///
    /// # Errors
    /// If the prober itself could not work, for want of file descriptors for example.
    pub fn stop(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("stopped twice"))?;
        thread.join().map_err(|_| anyhow!("the prober panicked"))?
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
