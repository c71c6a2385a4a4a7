//! Bytes both ways until both sides have said all. An idle connection holds no buffer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use rustix::net::{Shutdown, shutdown};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Rewound;
use super::detect::Lookout;
use super::frames::{Frames, SERVICE_RESTART};
use super::stream::Progress;
use crate::limits::Limits;
use crate::upstream::{Active, WhenCut};

/// What is read at once.
const BUFFER: usize = 64 << 10;
/// How long the end of a frame is waited for when a WebSocket is cut.
const FAREWELL: Duration = Duration::from_secs(1);

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// What is relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes, on a route of which it is not known what it speaks.
    Guessed,
    Tcp,
    Upgraded,
    WebSocket,
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Over,
    /// What was taken for bytes is HTTP: the client says so after all, or the upstream answers in
    /// it.
    Http,
}

/// Relays until both directions have ended, one has failed, or the upstream is cut.
pub(super) async fn run(
    client: Rewound,
    upstream: Rewound,
    active: &Active,
    kind: Kind,
    limits: &Limits,
) -> (Ended, TcpStream) {
    let mut cut = active.upstream().when_cut();
    let frames = (kind == Kind::WebSocket).then(|| Mutex::new(Frames::default()));
    let lookout = (kind == Kind::Guessed).then(|| Mutex::new(Lookout::new(&client.bytes)));
    let progress = Progress::default();
    let ended = {
        let looks = Looks { frames: None, lookout: lookout.as_ref(), progress: &progress };
        let up = pump(&client.stream, &upstream.stream, client.bytes, looks);
        let down = async {
            if let Some(lookout) = &lookout {
                if speaks_http(&upstream.stream).await {
                    active.upstream().learn_http();
                    return Err(Broken::Http);
                }
                if let Ok(mut lookout) = lookout.lock() {
                    lookout.call_off();
                }
            }
            let looks = Looks { frames: frames.as_ref(), lookout: None, progress: &progress };
            pump(&upstream.stream, &client.stream, upstream.bytes, looks).await
        };
        let both = both(up, down, limits, &progress);
        let mut both = std::pin::pin!(both);
        tokio::select! {
            ended = &mut both => ended,
            () = cut_of(kind, &mut cut) => {
                if let Some(frames) = &frames {
                    say_good_bye(&client.stream, frames, both).await;
                }
                Ended::Over
            }
        }
    };
    (ended, client.stream)
}

/// Ends when a connection of that kind has to.
async fn cut_of(kind: Kind, cut: &mut WhenCut) {
    match kind {
        Kind::WebSocket => cut.stream(|| true).await,
        Kind::Guessed | Kind::Tcp | Kind::Upgraded => cut.pinned().await,
    }
}

/// Waits for both. A server that reads no more may still have something to say: its last words
/// reach the client. A client that reads no more ends both.
async fn both(
    up: impl Future<Output = Result<(), Broken>>,
    down: impl Future<Output = Result<(), Broken>>,
    limits: &Limits,
    progress: &Progress,
) -> Ended {
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    let ended = tokio::select! {
        ended = &mut up => match ended {
            Err(Broken::From) => return Ended::Over,
            Err(Broken::Http) => return Ended::Http,
            Ok(()) | Err(Broken::To) => rest(down, limits.after_client, progress).await,
        },
        ended = &mut down => match ended {
            Ok(()) => rest(up, limits.after_upstream, progress).await,
            broken => broken,
        },
    };
    if matches!(ended, Err(Broken::Http)) { Ended::Http } else { Ended::Over }
}

/// What the other side still says after one has ended, unless it falls silent.
async fn rest(
    work: impl Future<Output = Result<(), Broken>>,
    limit: Duration,
    progress: &Progress,
) -> Result<(), Broken> {
    // The clock begins with that end.
    progress.moved();
    progress.unless_silent(limit, work).await.unwrap_or(Ok(()))
}

/// Which side failed.
enum Broken {
    From,
    To,
    Http,
}

/// Whether the upstream's first words are an answer over HTTP.
async fn speaks_http(upstream: &TcpStream) -> bool {
    let mut first = [0; 7];
    matches!(upstream.peek(&mut first).await, Ok(count) if first[..count] == *b"HTTP/1.")
}

/// Who looks at what goes by.
#[derive(Clone, Copy)]
struct Looks<'a> {
    /// What has been written.
    frames: Option<&'a Mutex<Frames>>,
    /// What is about to be.
    lookout: Option<&'a Mutex<Lookout>>,
    /// When anything was written last.
    progress: &'a Progress,
}

impl Looks<'_> {
    fn before(self, bytes: &[u8]) -> Result<(), Broken> {
        match self.lookout.and_then(|lookout| lookout.lock().ok()) {
            Some(mut lookout) => match lookout.sees_http(bytes) {
                true => Err(Broken::Http),
                false => Ok(()),
            },
            None => Ok(()),
        }
    }

    fn after(self, bytes: &[u8]) {
        if let Some(mut frames) = self.frames.and_then(|frames| frames.lock().ok()) {
            frames.see(bytes);
        }
    }
}

async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    first: Bytes,
    looks: Looks<'_>,
) -> Result<(), Broken> {
    write_all(to, &first, looks.progress).await?;
    looks.after(&first);
    drop(first);
    loop {
        from.readable().await.map_err(|_| Broken::From)?;
        match step(from, to, looks)? {
            Step::End => break,
            Step::Moved | Step::Nothing => {}
            Step::Left(rest) => {
                write_all(to, &rest, looks.progress).await?;
                looks.after(&rest);
            }
        }
        tokio::task::consume_budget().await;
    }
    // Half-close: the other direction may go on. It fails if the other side is gone already.
    match shutdown(to, Shutdown::Write) {
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(_) => Err(Broken::To),
    }
}

enum Step {
    End,
    Nothing,
    Moved,
    /// What the receiver did not take.
    Left(Vec<u8>),
}

fn step(from: &TcpStream, to: &TcpStream, looks: Looks<'_>) -> Result<Step, Broken> {
    SHARED.with_borrow_mut(|buffer| {
        let count = match from.try_read(buffer) {
            Ok(0) => return Ok(Step::End),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Nothing),
            Err(_) => return Err(Broken::From),
        };
        let bytes = &buffer[..count];
        looks.before(bytes)?;
        let taken = match to.try_write(bytes) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return Err(Broken::To),
        };
        looks.after(&bytes[..taken]);
        looks.progress.moved();
        Ok(if taken == count { Step::Moved } else { Step::Left(bytes[taken..].to_vec()) })
    })
}

async fn write_all(to: &TcpStream, mut bytes: &[u8], progress: &Progress) -> Result<(), Broken> {
    while !bytes.is_empty() {
        to.writable().await.map_err(|_| Broken::To)?;
        match to.try_write(bytes) {
            Ok(count) => {
                bytes = &bytes[count..];
                progress.moved();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Broken::To),
        }
    }
    Ok(())
}

/// Tells a WebSocket's client that the service restarts, so that it comes again and finds the
/// release that serves now: after the frame that is on its way, if that ends soon.
async fn say_good_bye(
    client: &TcpStream,
    frames: &Mutex<Frames>,
    mut both: Pin<&mut impl Future<Output = Ended>>,
) {
    let between = || frames.lock().is_ok_and(|frames| frames.between());
    let whole = poll_fn(|cx| {
        if between() {
            return Poll::Ready(true);
        }
        match both.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(false),
            Poll::Pending if between() => Poll::Ready(true),
            Poll::Pending => Poll::Pending,
        }
    });
    if timeout(FAREWELL, whole).await == Ok(true) {
        // A client that takes nothing is cut without a word.
        let progress = Progress::default();
        let _ = timeout(FAREWELL, write_all(client, &SERVICE_RESTART, &progress)).await;
        let _ = shutdown(client, Shutdown::Write);
    }
}
