//! Reading and writing with a bound on silence; noticing that a client has gone.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::BytesMut;
use rustix::net::{Shutdown, shutdown};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::consume_budget;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::fields::head_end;

/// What is read at once of a head.
const HEAD_READ: usize = 8 << 10;
/// What is moved at once of a body.
const BODY_READ: usize = 256 << 10;
/// How long a client whose half is shut may hear nothing before it is taken for gone: a client
/// that has closed and one that only says no more look the same until something is sent.
const GHOST_WAITING: Duration = Duration::from_secs(1);
/// The same once its answer has begun.
const GHOST_STREAMING: Duration = Duration::from_millis(300);
/// How long the rest of a request is read that nobody wants any more, so that the client gets to
/// read its answer before the connection breaks.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_SILENCE: Duration = Duration::from_secs(2);

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BODY_READ]);
}

/// Why a transfer ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The side that is read from closed.
    End,
    /// The side that is read from failed.
    From,
    /// The side that is written to failed.
    To,
    /// The side that is read from said nothing for too long.
    Silent,
    /// A head, or a line, is longer than anything useful.
    TooLong,
}

/// How far something is that goes on between a client and an upstream.
#[derive(Debug)]
pub(super) struct Progress {
    begun: Instant,
    /// Microseconds from then to when something moved last.
    moved: AtomicU64,
    moves: AtomicUsize,
    /// A write waits for the client to read: it is there, or the kernel will find out.
    writing: AtomicBool,
    answering: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            moved: AtomicU64::new(0),
            moves: AtomicUsize::new(0),
            writing: AtomicBool::new(false),
            answering: AtomicBool::new(false),
        }
    }
}

impl Progress {
    pub(super) fn moved(&self) {
        let now = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.moved.store(now, Relaxed);
        self.moves.fetch_add(1, Relaxed);
    }

    /// How long nothing has moved.
    pub(super) fn silent_for(&self) -> Duration {
        let moved = Duration::from_micros(self.moved.load(Relaxed));
        self.begun.elapsed().saturating_sub(moved)
    }

    /// Waits for `work`, and gives it up once nothing has moved for `limit`.
    pub(super) async fn unless_silent<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let left = limit.saturating_sub(self.silent_for());
            match timeout(left, work.as_mut()).await {
                Ok(done) => return Some(done),
                Err(_) if self.silent_for() < limit => {}
                Err(_) => return None,
            }
        }
    }

    /// Whether anything was written, a part of it at least.
    pub(super) fn has_moved(&self) -> bool {
        self.moves.load(Relaxed) > 0
    }

    pub(super) fn answering(&self) {
        self.answering.store(true, Relaxed);
    }
}

/// Ends when the client has gone.
pub(super) async fn gone(client: &TcpStream, progress: &Progress) {
    // Nobody sends urgent data here: this is ready when the client has shut its half, or broke.
    if client.ready(Interest::PRIORITY).await.is_err() {
        return;
    }
    loop {
        if !matches!(client.take_error(), Ok(None)) {
            return;
        }
        let before = progress.moves.load(Relaxed);
        let answering = progress.answering.load(Relaxed);
        sleep(if answering { GHOST_STREAMING } else { GHOST_WAITING }).await;
        if !progress.writing.load(Relaxed) && progress.moves.load(Relaxed) == before {
            return;
        }
    }
}

/// Reads until `buf` begins with a whole head, and gives its length. `limit` is for the first
/// byte, `rest` for all of it from then on.
pub(super) async fn read_head(
    from: &TcpStream,
    buf: &mut BytesMut,
    longest: usize,
    limit: Duration,
    rest: Duration,
) -> Result<usize, Stop> {
    let mut seen = 0;
    let mut deadline = (!buf.is_empty()).then(|| Instant::now() + rest);
    loop {
        if let Some(end) = head_end(buf, &mut seen).filter(|end| *end <= longest) {
            return Ok(end);
        }
        if buf.len() > longest {
            return Err(Stop::TooLong);
        }
        let until = deadline.unwrap_or_else(|| Instant::now() + limit);
        read_more(from, buf, HEAD_READ, until).await?;
        deadline.get_or_insert_with(|| Instant::now() + rest);
    }
}

/// Reads what there is.
pub(super) async fn read_more(
    from: &TcpStream,
    buf: &mut BytesMut,
    room: usize,
    until: Instant,
) -> Result<(), Stop> {
    loop {
        buf.reserve(room);
        match from.try_read_buf(buf) {
            Ok(0) => return Err(Stop::End),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Stop::From),
        }
        let ready = timeout_at(until, from.readable()).await;
        ready.map_err(|_| Stop::Silent)?.map_err(|_| Stop::From)?;
    }
}

/// Writes all; `limit` bounds how long the other side may take nothing.
pub(super) async fn write_all(
    to: &TcpStream,
    mut bytes: &[u8],
    limit: Duration,
    progress: &Progress,
) -> Result<(), Stop> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(count) => {
                bytes = &bytes[count..];
                progress.moved();
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Stop::To),
        }
        progress.writing.store(true, Relaxed);
        let ready = timeout(limit, to.writable()).await;
        progress.writing.store(false, Relaxed);
        ready.map_err(|_| Stop::To)?.map_err(|_| Stop::To)?;
    }
    Ok(())
}

/// Moves `left` bytes, or as many as there are before the end: gives what is missing.
pub(super) async fn copy(
    from: &TcpStream,
    to: &TcpStream,
    mut left: u64,
    silence: Duration,
    stall: Duration,
    progress: &Progress,
) -> Result<u64, Stop> {
    while left > 0 {
        match step(from, to, left)? {
            Step::End => break,
            Step::Moved(count) => {
                left -= count as u64;
                progress.moved();
            }
            Step::Left(count, rest) => {
                left -= count as u64;
                write_all(to, &rest, stall, progress).await?;
            }
            Step::Nothing => {
                let ready = timeout(silence, from.readable()).await;
                ready.map_err(|_| Stop::Silent)?.map_err(|_| Stop::From)?;
            }
        }
        consume_budget().await;
    }
    Ok(left)
}

enum Step {
    End,
    Nothing,
    Moved(usize),
    /// How much was read, and what of it the receiver did not take.
    Left(usize, Vec<u8>),
}

fn step(from: &TcpStream, to: &TcpStream, left: u64) -> Result<Step, Stop> {
    SHARED.with_borrow_mut(|buffer| {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = match from.try_read(&mut buffer[..room]) {
            Ok(0) => return Ok(Step::End),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Nothing),
            Err(_) => return Err(Stop::From),
        };
        let bytes = &buffer[..count];
        match to.try_write(bytes) {
            Ok(taken) if taken == count => Ok(Step::Moved(count)),
            Ok(taken) => Ok(Step::Left(count, bytes[taken..].to_vec())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(Step::Left(count, bytes.to_vec()))
            }
            Err(_) => Err(Stop::To),
        }
    })
}

/// Says that no more will come, and reads what the client still sends: closing at once would
/// destroy the answer on its way.
pub(super) async fn linger(client: &TcpStream) {
    if shutdown(client, Shutdown::Write).is_err() {
        return;
    }
    let deadline = Instant::now() + LINGER;
    while Instant::now() < deadline {
        let read = SHARED.with_borrow_mut(|buffer| client.try_read(buffer));
        match read {
            Ok(1..) => consume_budget().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let silence = deadline.min(Instant::now() + LINGER_SILENCE);
                if !matches!(timeout_at(silence, client.readable()).await, Ok(Ok(()))) {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// Breaks off so that nobody takes what was sent for all of it.
pub(super) fn abort(client: &TcpStream) {
    // It fails only on a connection that is broken already.
    let _ = rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO));
}
