//! One request and its answer, both under way at the same time between a client and an upstream.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::answer::answer;
use super::chunked::{self, Decoder};
use super::head::{Framing, Request, put, put_length, trailer_passes};
use super::stream::{Progress, Stop, copy, gone, read_head, read_more, write_all};
use crate::limits::Limits;
use crate::pool::Connection;
use crate::upstream::Active;

/// Longest head of an answer in bytes.
const HEAD_LIMIT: usize = 256 << 10;
/// What is read at once of a chunked body.
const CHUNK_READ: usize = 64 << 10;
/// Interim answers to one request.
const INTERIM_LIMIT: usize = 100;
/// How it ended.
#[derive(Debug)]
pub(super) enum Carried {
    Answered {
        /// The upstream's connection can serve another request.
        reusable: bool,
        /// The client was told that its connection ends.
        close: bool,
    },
    /// `101`: its head, without the empty line.
    Switch(Vec<u8>),
    /// The upstream closed or broke before it said anything. `unsent`: nothing of the request had
    /// got there.
    Unanswered { unsent: bool },
    /// What the upstream says is no answer.
    NoAnswer,
    /// The upstream says nothing.
    Silent,
    /// The client did something wrong: the status that tells it.
    Fault(u16),
    /// The answer broke off after it had begun.
    BrokenOff,
    /// The client has gone.
    Gone,
}

/// What the exchange is told, and tells, beside what it carries.
pub(super) struct Told<'a, C, H> {
    /// What the answer says of its release.
    pub(super) release: Option<Bytes>,
    /// Asks that the client's connection ends with this answer.
    pub(super) closing: C,
    /// Called when the upstream has said something in HTTP.
    pub(super) heard: H,
    pub(super) limits: &'a Limits,
}

/// Where the two halves of an exchange tell each other how far they are.
#[derive(Debug, Default)]
struct Shared {
    progress: Progress,
    /// All of it did.
    sent: AtomicBool,
    /// The client got the beginning of the answer.
    answering: AtomicBool,
    /// The answer is a stream of events.
    events: AtomicBool,
}

/// Carries a request to `upstream` and its answer back. `buf` is what the client sent beyond the
/// head.
pub(super) async fn carry(
    client: &TcpStream,
    buf: &mut BytesMut,
    request: &Request,
    upstream: &mut Connection,
    active: &Active,
    told: &Told<'_, impl Fn() -> bool, impl Fn()>,
) -> Carried {
    let shared = Shared::default();
    let mut cut = active.upstream().when_cut();
    let Connection { stream, buf: answered } = upstream;
    let sending = send(client, buf, request, stream, told.limits, &shared);
    let receiving = receive(client, request, stream, answered, told, &shared);
    let gone = gone(client, &shared.progress);
    let cut = cut.stream(|| shared.events.load(Relaxed));
    let (mut sending, mut receiving) = (std::pin::pin!(sending), std::pin::pin!(receiving));
    let (mut gone, mut cut) = (std::pin::pin!(gone), std::pin::pin!(cut));
    let mut sent = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut sending, if !sent => {
                sent = true;
                match ended {
                    Ok(()) => shared.sent.store(true, Relaxed),
                    // It does not read on: perhaps it has answered already.
                    Err(Sending::Upstream) => {}
                    Err(Sending::Gone) => return Carried::Gone,
                    Err(Sending::Fault(status)) => {
                        let late = shared.answering.load(Relaxed);
                        return if late { Carried::BrokenOff } else { Carried::Fault(status) };
                    }
                }
            }
            ended = &mut receiving => return ended,
            () = &mut gone => return Carried::Gone,
            () = &mut cut => {
                let late = shared.answering.load(Relaxed);
                return if late { Carried::BrokenOff } else { Carried::NoAnswer };
            }
        }
    }
}

/// Why the request did not get to the upstream.
enum Sending {
    Upstream,
    Gone,
    Fault(u16),
}

impl From<Stop> for Sending {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::To => Self::Upstream,
            Stop::End | Stop::From => Self::Gone,
            Stop::Silent => Self::Fault(408),
            Stop::TooLong => Self::Fault(400),
        }
    }
}

async fn send(
    client: &TcpStream,
    buf: &mut BytesMut,
    request: &Request,
    upstream: &TcpStream,
    limits: &Limits,
    shared: &Shared,
) -> Result<(), Sending> {
    let progress = &shared.progress;
    let Limits { body, stall, .. } = *limits;
    let write = async |bytes: &[u8]| write_all(upstream, bytes, stall, progress).await;
    match request.body {
        Framing::Length(length) => {
            let here = usize::try_from(length).unwrap_or(usize::MAX).min(buf.len());
            write(&[&request.head, &buf[..here]].concat()).await?;
            buf.advance(here);
            let left = length - here as u64;
            let missing = copy(client, upstream, left, body, stall, progress).await?;
            if missing > 0 { Err(Sending::Gone) } else { Ok(()) }
        }
        Framing::Chunked => {
            let mut out = request.head.clone();
            let mut decoder = Decoder::new();
            loop {
                let taken = decoder.take(buf, |data| chunked::put(&mut out, data));
                let taken = taken.map_err(|_| Sending::Fault(400))?;
                if decoder.is_done() {
                    let finished = chunked::finish(&mut out, decoder.trailers(), trailer_passes);
                    finished.map_err(|_| Sending::Fault(400))?;
                }
                write(&out).await?;
                // Not before: what was never sent is sent again from its beginning.
                buf.advance(taken);
                if decoder.is_done() {
                    return Ok(());
                }
                out.clear();
                read_more(client, buf, CHUNK_READ, Instant::now() + body).await?;
                progress.moved();
                tokio::task::consume_budget().await;
            }
        }
        Framing::None | Framing::UntilClose => Ok(write(&request.head).await?),
    }
}

async fn receive(
    client: &TcpStream,
    request: &Request,
    upstream: &TcpStream,
    buf: &mut BytesMut,
    told: &Told<'_, impl Fn() -> bool, impl Fn()>,
    shared: &Shared,
) -> Carried {
    let progress = &shared.progress;
    let Limits { answer: patience, quiet, stall, .. } = *told.limits;
    let mut interim = 0;
    let answer = loop {
        let length = match answer_head(upstream, buf, patience, progress).await {
            Ok(length) => length,
            Err(Stop::End | Stop::From) if buf.is_empty() && interim == 0 => {
                // The client was told nothing yet: what moved was of the request.
                return Carried::Unanswered { unsent: !progress.has_moved() };
            }
            Err(Stop::Silent) => return Carried::Silent,
            Err(_) => return Carried::NoAnswer,
        };
        let Ok(mut answer) = answer(&buf[..length], request.is_head, told.release.as_deref())
        else {
            return Carried::NoAnswer;
        };
        (told.heard)();
        buf.advance(length);
        match answer.status {
            101 if request.upgrade && shared.sent.load(Relaxed) => {
                return Carried::Switch(answer.head);
            }
            101 => return Carried::NoAnswer,
            100..=199 => {
                interim += 1;
                if interim > INTERIM_LIMIT {
                    return Carried::NoAnswer;
                }
                if !request.old {
                    answer.head.extend_from_slice(b"\r\n");
                    if write_all(client, &answer.head, stall, progress).await.is_err() {
                        return Carried::Gone;
                    }
                }
            }
            _ => break answer,
        }
    };

    // HTTP/1.0 knows no chunks: there the end of the connection is the end of the body.
    let open_ended = matches!(answer.body, Framing::Chunked | Framing::UntilClose);
    let chunks = open_ended && !request.old;
    let close = (told.closing)()
        || !request.keep_alive
        || !shared.sent.load(Relaxed)
        || (open_ended && request.old);
    let mut out = answer.head;
    match answer.body {
        Framing::Length(length) => put_length(&mut out, length),
        _ if chunks => put(&mut out, &[b"Transfer-Encoding: chunked\r\n"]),
        _ => {}
    }
    if close {
        put(&mut out, &[b"Connection: close\r\n"]);
    } else if request.old {
        put(&mut out, &[b"Connection: keep-alive\r\n"]);
    }
    put(&mut out, &[b"\r\n"]);
    shared.answering.store(true, Relaxed);
    shared.events.store(answer.events, Relaxed);
    progress.answering();

    let way = Way { client, upstream, quiet, stall, progress };
    let streamed = match answer.body {
        Framing::None => write_all(client, &out, stall, progress).await,
        Framing::Length(length) => way.measured(buf, out, length).await,
        Framing::Chunked => way.pieces(buf, out, chunks).await,
        Framing::UntilClose => way.rest(buf, out, chunks).await,
    };
    match streamed {
        Ok(()) => {
            // One that waits for the rest of this request would take the next one for it.
            let whole = shared.sent.load(Relaxed);
            Carried::Answered { reusable: answer.reusable && buf.is_empty() && whole, close }
        }
        Err(Stop::To) => Carried::Gone,
        Err(_) => Carried::BrokenOff,
    }
}

/// Reads the head of an answer. As long as its request moves, whoever takes that in need not
/// answer yet.
async fn answer_head(
    upstream: &TcpStream,
    buf: &mut BytesMut,
    patience: Duration,
    progress: &Progress,
) -> Result<usize, Stop> {
    loop {
        let left = patience.saturating_sub(progress.silent_for());
        match read_head(upstream, buf, HEAD_LIMIT, left, patience).await {
            Err(Stop::Silent) if buf.is_empty() && progress.silent_for() < patience => {}
            read => return read,
        }
    }
}

/// The way of an answer's body.
struct Way<'a> {
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    quiet: Duration,
    stall: Duration,
    progress: &'a Progress,
}

impl Way<'_> {
    /// A body of known length, after `out`.
    async fn measured(
        &self,
        buf: &mut BytesMut,
        mut out: Vec<u8>,
        length: u64,
    ) -> Result<(), Stop> {
        let Self { client, upstream, quiet, stall, progress } = *self;
        let here = usize::try_from(length).unwrap_or(usize::MAX).min(buf.len());
        out.extend_from_slice(&buf[..here]);
        buf.advance(here);
        write_all(client, &out, stall, progress).await?;
        drop(out);
        let left = length - here as u64;
        let missing = copy(upstream, client, left, quiet, stall, progress).await?;
        if missing > 0 { Err(Stop::End) } else { Ok(()) }
    }

    /// A chunked body, after `out`; as chunks or, for HTTP/1.0, without them.
    async fn pieces(&self, buf: &mut BytesMut, mut out: Vec<u8>, chunks: bool) -> Result<(), Stop> {
        let Self { client, upstream, quiet, stall, progress } = *self;
        let mut decoder = Decoder::new();
        loop {
            let taken = decoder.take(buf, |data| match chunks {
                true => chunked::put(&mut out, data),
                false => out.extend_from_slice(data),
            });
            buf.advance(taken.map_err(|_| Stop::From)?);
            if decoder.is_done() && chunks {
                let finished = chunked::finish(&mut out, decoder.trailers(), trailer_passes);
                finished.map_err(|_| Stop::From)?;
            }
            write_all(client, &out, stall, progress).await?;
            out.clear();
            if decoder.is_done() {
                return Ok(());
            }
            read_more(upstream, buf, CHUNK_READ, Instant::now() + quiet).await?;
            tokio::task::consume_budget().await;
        }
    }

    /// A body that ends with its connection, after `out`.
    async fn rest(&self, buf: &mut BytesMut, mut out: Vec<u8>, chunks: bool) -> Result<(), Stop> {
        let Self { client, upstream, quiet, stall, progress } = *self;
        loop {
            match chunks {
                true => chunked::put(&mut out, buf),
                false => out.extend_from_slice(buf),
            }
            buf.clear();
            write_all(client, &out, stall, progress).await?;
            out.clear();
            match read_more(upstream, buf, CHUNK_READ, Instant::now() + quiet).await {
                Ok(()) => {}
                Err(Stop::End) => break,
                Err(stop) => return Err(stop),
            }
            tokio::task::consume_budget().await;
        }
        let end: &[u8] = if chunks { b"0\r\n\r\n" } else { b"" };
        write_all(client, end, stall, progress).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::head::{Client, request};

    #[test]
    fn what_was_never_sent_is_still_there_to_be_sent_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rows = [
            ("Content-Length: 5", "hello"),
            ("Content-Length: 50", "hello"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n"),
        ];
        for (framing, body) in rows {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
            let who = Client::new("10.0.0.9".parse().unwrap());
            let request = request(head.as_bytes(), &who).unwrap();
            let mut buf = BytesMut::from(body);
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let addr = listener.local_addr().unwrap();
                let client = TcpStream::connect(addr).await.unwrap();
                let _client = listener.accept().await.unwrap();
                let upstream = TcpStream::connect(addr).await.unwrap();
                let (accepted, _) = listener.accept().await.unwrap();
                crate::proxy::stream::abort(&accepted);
                drop(accepted);
                // The reset has arrived once there is something to read.
                upstream.readable().await.unwrap();
                let (shared, limits) = (Shared::default(), Limits::default());
                let sent = send(&client, &mut buf, &request, &upstream, &limits, &shared).await;
                assert!(matches!(sent, Err(Sending::Upstream)), "{framing}, {body:?}");
                assert!(!shared.progress.has_moved(), "{framing}, {body:?}");
            });
            assert_eq!(&buf[..], body.as_bytes(), "{framing}");
        }
    }
}
