//! HTTP/2 with prior knowledge, as gRPC speaks it: each request of a connection goes to the release
//! in force when it comes, over HTTP/2 as well. Trailers, interim answers and resets pass both ways.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response, StatusCode, Version};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::head::{Client, believed, trailer_passes};
use super::stream::Progress;
use super::{Conn, Failure, Rewound, connect, fields};
use crate::generation::Closing;
use crate::limits::Limits;
use crate::pool2;
use crate::upstream::{Active, WhenCut};

/// Streams that a client may have open at once on one connection.
const STREAMS: u32 = 256;
/// Longest list of fields in bytes, as RFC 9113 6.5.2 counts them.
const FIELDS_LIMIT: u32 = 64 << 10;
/// What may be on its way to the front on one stream, and on all of a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const WINDOW: u32 = 4 << 20;
/// How long the preface may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection without requests is kept.
const IDLE_PATIENCE: Duration = Duration::from_secs(3600);
/// How long a client that was told that its connection ends may still open streams, and how long it
/// then sees them refused before it is closed, unless others are still under way.
const GOODBYE: Duration = Duration::from_secs(3);
/// Between the word that a connection ends and the cut of what is still under way on it.
const FAREWELL: Duration = Duration::from_millis(100);
/// Connections that are tried for a request that was never sent.
const TRIES: usize = 3;

const RELEASE: HeaderName = HeaderName::from_static("x-kiln-release");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Serves a client until it, or the front, is done.
pub(super) async fn serve(conn: Arc<Conn>, io: Rewound) {
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(FIELDS_LIMIT)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(io);
    let Ok(Ok(mut connection)) = timeout(HANDSHAKE, handshake).await else { return };
    let who = Arc::new(Client::new(conn.peer.ip()));
    let farewell = Arc::new(Notify::new());
    let mut closing = conn.front.closing.subscribe();
    let (mut told, mut late) = (false, false);
    let mut look = Instant::now() + IDLE_PATIENCE;
    loop {
        let ends = tokio::select! {
            accepted = connection.accept() => match accepted {
                // It can ask again elsewhere: nothing of this was sent on.
                Some(Ok((_, mut respond))) if late => {
                    respond.send_reset(Reason::REFUSED_STREAM);
                    false
                }
                Some(Ok((request, respond))) => {
                    if !told {
                        look = Instant::now() + IDLE_PATIENCE;
                    }
                    conn.front.count_request(conn.listener);
                    let stream = Stream { conn: conn.clone(), farewell: farewell.clone() };
                    tokio::spawn(stream.serve(who.clone(), request, respond));
                    false
                }
                _ => return,
            },
            () = farewell.notified() => true,
            _ = closing.wait_for(|closing| *closing != Closing::No), if !told => true,
            () = sleep_until(look) => {
                let idle = !connection.has_streams();
                if late && idle {
                    return;
                }
                late = told;
                look = Instant::now() + if told { GOODBYE } else { IDLE_PATIENCE };
                idle
            }
        };
        if ends && !told {
            told = true;
            look = Instant::now() + GOODBYE;
            // GOAWAY: the client sends what comes next on a new connection. One that has heard it
            // is done with its last stream; one that has not is held to it.
            connection.graceful_shutdown();
        }
    }
}

/// One request.
struct Stream {
    conn: Arc<Conn>,
    farewell: Arc<Notify>,
}

/// Why a stream does not get its answer.
enum Failed {
    /// The status that says so: nothing was answered yet.
    Status(StatusCode),
    Reset(Reason),
    /// One side says, or takes, nothing.
    Silent,
}

impl From<h2::Error> for Failed {
    fn from(error: h2::Error) -> Self {
        // What one side says is passed on to the other.
        Self::Reset(error.reason().unwrap_or(Reason::CANCEL))
    }
}

impl Stream {
    async fn serve(
        self,
        who: Arc<Client>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        match self.forward(&who, request, &mut respond).await {
            Ok(()) => {}
            Err(Failed::Reset(reason)) => respond.send_reset(reason),
            Err(Failed::Silent) => respond.send_reset(Reason::CANCEL),
            Err(Failed::Status(status)) => {
                self.conn.front.count_error(self.conn.listener);
                let mut answer = Response::new(());
                *answer.status_mut() = status;
                // It fails when the client is gone.
                let _ = respond.send_response(answer, true);
            }
        }
    }

    async fn forward(
        &self,
        who: &Client,
        request: Request<RecvStream>,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), Failed> {
        let (mut head, body) = request.into_parts();
        rewrite(&mut head, who)?;
        let bodiless = body.is_end_stream();
        let mut gone = respond_gone(respond);
        let reached = tokio::select! {
            reached = self.reach() => reached?,
            reason = &mut gone => return Err(Failed::Reset(reason)),
        };
        drop(gone);
        let (mut sender, active) = reached;
        let requests = &mut sender.requests;
        let mut cut = active.upstream().when_cut();
        let (answer, sending) = requests.send_request(Request::from_parts(head, ()), bodiless)?;
        let progress = Progress::default();
        let upload = async {
            if !bodiless {
                pipe(body, sending, &self.conn.front.limits, &progress).await?;
            }
            Ok::<_, Failed>(())
        };
        let answered = self.answer(answer, &active, respond, upload, &progress);
        self.until_cut(&mut cut, answered).await
    }

    /// What runs until the upstream is cut. Then the client is told first that its connection
    /// ends.
    async fn until_cut(
        &self,
        cut: &mut WhenCut,
        work: impl Future<Output = Result<(), Failed>>,
    ) -> Result<(), Failed> {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = cut.all() => self.farewell.notify_one(),
        }
        tokio::select! {
            done = &mut work => done,
            () = sleep(FAREWELL) => Err(Failed::Reset(Reason::CANCEL)),
        }
    }

    /// A connection to the upstream in force that takes a request.
    async fn reach(&self) -> Result<(pool2::Sender, Active), Failed> {
        for _ in 0..TRIES {
            let target = self.conn.front.target(self.conn.listener).await;
            let unavailable = |_| Failed::Status(StatusCode::SERVICE_UNAVAILABLE);
            let mut active = target.map_err(unavailable)?;
            let mut sender = match pool2::take(active.upstream()) {
                Some(sender) => sender,
                None => {
                    let stream = connect(&self.conn, &mut active).await;
                    let stream = stream.map_err(|failure| match failure {
                        Failure::Unavailable => Failed::Status(StatusCode::SERVICE_UNAVAILABLE),
                        Failure::Broken => Failed::Status(StatusCode::BAD_GATEWAY),
                    })?;
                    let spoken = pool2::speak(active.upstream(), stream).await;
                    spoken.map_err(|_| Failed::Status(StatusCode::BAD_GATEWAY))?
                }
            };
            let ready = poll_fn(|cx| sender.requests.poll_ready(cx));
            match timeout(self.conn.front.limits.answer, ready).await {
                Ok(Ok(())) => return Ok((sender, active)),
                // It ended while it was idle: nothing was sent.
                Ok(Err(_)) => {}
                Err(_) => return Err(Failed::Status(StatusCode::GATEWAY_TIMEOUT)),
            }
        }
        Err(Failed::Status(StatusCode::BAD_GATEWAY))
    }

    /// Brings the answer back while the request may still be on its way; `progress` is of both.
    async fn answer(
        &self,
        answer: h2::client::ResponseFuture,
        active: &Active,
        respond: &mut SendResponse<Bytes>,
        upload: impl Future<Output = Result<(), Failed>>,
        progress: &Progress,
    ) -> Result<(), Failed> {
        let patience = self.conn.front.limits.answer;
        let mut upload = std::pin::pin!(upload);
        let mut uploading = true;
        let mut answer = std::pin::pin!(answer);
        let response = loop {
            // While the request moves, whoever takes it in need not answer yet.
            let left = patience.saturating_sub(progress.silent_for());
            let step = tokio::select! {
                biased;
                step = next(answer.as_mut(), respond) => step,
                done = &mut upload, if uploading => {
                    uploading = false;
                    unless_silent(done)?;
                    continue;
                }
                () = sleep(left) => {
                    if progress.silent_for() < patience {
                        continue;
                    }
                    return Err(Failed::Status(StatusCode::GATEWAY_TIMEOUT));
                }
            };
            progress.moved();
            match step {
                Step::Interim(interim) => respond.send_informational(interim)?,
                Step::Answer(Ok(response)) => break response,
                Step::Answer(Err(error)) if error.is_reset() => return Err(error.into()),
                Step::Answer(Err(_)) => return Err(Failed::Status(StatusCode::BAD_GATEWAY)),
                Step::Gone(reason) => return Err(Failed::Reset(reason)),
            }
        };
        if active.upstream().learn_http() {
            self.conn.front.learnt.store(true, Relaxed);
            self.conn.front.tell_change();
        }
        let (mut head, body) = response.into_parts();
        head.headers.remove(RELEASE);
        let release = active.release();
        let release = release.and_then(|it| HeaderValue::from_maybe_shared(it.clone()).ok());
        if let Some(release) = release {
            head.headers.insert(RELEASE, release);
        }
        let bodiless = body.is_end_stream();
        let sending = respond.send_response(Response::from_parts(head, ()), bodiless)?;
        if bodiless {
            return Ok(());
        }
        let download = pipe(body, sending, &self.conn.front.limits, progress);
        let mut download = std::pin::pin!(download);
        loop {
            tokio::select! {
                done = &mut download => return done,
                done = &mut upload, if uploading => {
                    uploading = false;
                    unless_silent(done)?;
                }
            }
        }
    }
}

/// Of an upload that failed: the upstream may answer although it reads no more, but where one of
/// the two has fallen silent, what they still say would be lost.
fn unless_silent(upload: Result<(), Failed>) -> Result<(), Failed> {
    if matches!(upload, Err(Failed::Silent)) { upload } else { Ok(()) }
}

enum Step {
    Interim(Response<()>),
    Answer(Result<Response<RecvStream>, h2::Error>),
    /// The client wants it no more.
    Gone(Reason),
}

/// What the upstream says next, or that the client has gone.
async fn next(
    mut answer: Pin<&mut h2::client::ResponseFuture>,
    respond: &mut SendResponse<Bytes>,
) -> Step {
    poll_fn(|cx| {
        if let Poll::Ready(reason) = respond.poll_reset(cx) {
            return Poll::Ready(Step::Gone(reason.unwrap_or(Reason::CANCEL)));
        }
        if let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(cx) {
            return Poll::Ready(Step::Interim(interim));
        }
        answer.as_mut().poll(cx).map(Step::Answer)
    })
    .await
}

/// Ends when the client wants no answer any more.
fn respond_gone(
    respond: &mut SendResponse<Bytes>,
) -> Pin<Box<dyn Future<Output = Reason> + Send + '_>> {
    Box::pin(async { poll_fn(|cx| respond.poll_reset(cx)).await.unwrap_or(Reason::CANCEL) })
}

/// Moves a body and its trailers; a slow reader slows its writer. Whoever says one word and then
/// only listens is not silent while the other side speaks.
async fn pipe(
    mut from: RecvStream,
    mut to: SendStream<Bytes>,
    limits: &Limits,
    progress: &Progress,
) -> Result<(), Failed> {
    let Limits { quiet, stall, .. } = *limits;
    loop {
        let data = tokio::select! {
            biased;
            data = progress.unless_silent(quiet, from.data()) => data.ok_or(Failed::Silent)?,
            reason = poll_fn(|cx| to.poll_reset(cx)) => return Err(Failed::Reset(reason?)),
        };
        let Some(data) = data else { break };
        let mut data = data?;
        let taken = data.len();
        while !data.is_empty() {
            to.reserve_capacity(data.len());
            let room = timeout(stall, poll_fn(|cx| to.poll_capacity(cx))).await;
            let room = room.map_err(|_| Failed::Silent)?;
            let room = room.ok_or(Failed::Reset(Reason::CANCEL))??;
            let part = data.split_to(room.min(data.len()));
            to.send_data(part, false)?;
            progress.moved();
        }
        from.flow_control().release_capacity(taken)?;
    }
    match from.trailers().await? {
        Some(mut trailers) => {
            let names: Vec<HeaderName> = trailers.keys().cloned().collect();
            for name in names.iter().filter(|name| !trailer_passes(name.as_str().as_bytes())) {
                trailers.remove(name);
            }
            to.send_trailers(trailers)?;
        }
        None => to.send_data(Bytes::new(), true)?,
    }
    Ok(())
}

/// Makes a request fit to be sent on. What concerns one connection only HTTP/2 does not have.
fn rewrite(head: &mut http::request::Parts, who: &Client) -> Result<(), Failed> {
    let bad = || Failed::Status(StatusCode::BAD_REQUEST);
    if head.method == Method::CONNECT {
        return Err(Failed::Status(StatusCode::METHOD_NOT_ALLOWED));
    }
    let authority = match head.uri.authority() {
        Some(authority) => authority.clone(),
        None => {
            let host = head.headers.get(HOST).ok_or_else(bad)?;
            Authority::try_from(host.as_bytes()).map_err(|_| bad())?
        }
    };
    if authority.as_str().contains('@') {
        return Err(bad());
    }
    head.headers.remove(HOST);
    let path = head.uri.path_and_query().cloned();
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.clone());
    parts.path_and_query = Some(path.unwrap_or(PathAndQuery::from_static("/")));
    head.uri = Uri::from_parts(parts).map_err(|_| bad())?;
    head.version = Version::HTTP_2;
    tell_client(&mut head.headers, who, &authority);
    Ok(())
}

fn tell_client(headers: &mut HeaderMap, who: &Client, host: &Authority) {
    let before: Vec<HeaderValue> = match who.trusted {
        true => headers.get_all(FORWARDED_FOR).iter().cloned().collect(),
        false => Vec::new(),
    };
    let names: Vec<HeaderName> = headers.keys().cloned().collect();
    for name in names {
        let bytes = name.as_str().as_bytes();
        if fields::is_forwarded(bytes) && !believed(bytes, who) {
            headers.remove(name);
        }
    }
    let mut chain: Vec<&[u8]> = before.iter().map(HeaderValue::as_bytes).collect();
    chain.push(who.address.as_bytes());
    if let Ok(chain) = HeaderValue::from_bytes(&chain.join(&b", "[..])) {
        headers.insert(FORWARDED_FOR, chain);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if let Ok(host) = HeaderValue::from_str(host.as_str()) {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
}
