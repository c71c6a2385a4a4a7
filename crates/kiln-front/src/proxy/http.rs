//! HTTP/1.1: a client's connection, each of its requests on the generation then in force.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::body::{Lease, RequestBody, ResponseBody};
use super::head::{self, Client};
use super::{Conn, Failure, Rewound, connect, relay};
use crate::generation::Closing;
use crate::pool::{self, Sender};
use crate::upstream::Active;

/// Longest head of a request in bytes.
const HEAD_LIMIT: usize = 64 << 10;
/// What is read of a body at once, in bytes.
const READ_LIMIT: usize = 256 << 10;
/// Fields in a head.
const FIELD_LIMIT: usize = 128;
/// How long a client may take over a head, or stay idle between two requests. Above the 90 s of
/// the most patient common clients (Go, reqwest), so that they close first and lose nothing.
const HEAD_PATIENCE: Duration = Duration::from_secs(120);
/// Says which release answered.
const RELEASE: HeaderName = HeaderName::from_static("x-kiln-release");
/// Fresh connections that are tried for a request that was never sent.
const TRIES: usize = 3;

pub(super) async fn serve(conn: Arc<Conn>, io: Rewound) {
    let client = Arc::new(Client::new(conn.peer.ip()));
    let mut closing = conn.front.closing.subscribe();
    let service = service_fn(move |request| answer(conn.clone(), client.clone(), request));
    let connection = Builder::new()
        .half_close(true)
        .max_header_size(HEAD_LIMIT)
        .max_buf_size(READ_LIMIT)
        .max_headers(FIELD_LIMIT)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // What goes wrong here is the client's affair: it is gone, or was told by hyper.
        _ = connection.as_mut() => return,
        _ = closing.wait_for(|closing| *closing == Closing::Now) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn answer(
    conn: Arc<Conn>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    conn.front.count_request(conn.listener);
    let answered = forward(&conn, &client, request).await;
    let mut response = match answered {
        Ok(response) => response,
        Err(status) => {
            conn.front.count_error(conn.listener);
            page(status)
        }
    };
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if *conn.front.closing.borrow() != Closing::No && !switched {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn forward(
    conn: &Arc<Conn>,
    client: &Client,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, StatusCode> {
    let on_client = OnClient::of(&mut request);
    let (mut head, body) = request.into_parts();
    let upgrade = head::forward(&mut head, client)?;
    let replayable = body.is_end_stream() && is_idempotent(&head.method);
    let request = Request::from_parts(head, RequestBody::Streamed(body));
    let exchanged = exchange(conn, request, replayable).await;
    let (response, sender, active) = exchanged.map_err(|failure| match failure {
        Failure::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Failure::Broken => StatusCode::BAD_GATEWAY,
    })?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let on_client = on_client.0.filter(|_| upgrade).ok_or(StatusCode::BAD_GATEWAY)?;
        return Ok(switch_protocols(conn, response, on_client, active));
    }
    let (mut head, body) = response.into_parts();
    head::backward(&mut head);
    let release = active.release().and_then(|it| HeaderValue::from_maybe_shared(it.clone()).ok());
    if let Some(release) = release {
        head.headers.insert(RELEASE, release);
    }
    let lease = Lease { sender, active, _conn: conn.clone() };
    Ok(Response::from_parts(head, ResponseBody::Streamed(body, Some(lease))))
}

/// The client's side of a protocol switch, if it asked for one.
struct OnClient(Option<OnUpgrade>);

impl OnClient {
    fn of(request: &mut Request<Incoming>) -> Self {
        let asked = request.headers().contains_key(hyper::header::UPGRADE);
        Self(asked.then(|| hyper::upgrade::on(request)))
    }
}

/// Sends a request and waits for the head of its answer. It is sent again only if it was never
/// sent, or if it died on a connection that had been idle and repeating it does no harm.
async fn exchange(
    conn: &Conn,
    mut request: Request<RequestBody>,
    replayable: bool,
) -> Result<(Response<Incoming>, Sender, Active), Failure> {
    let mut fresh_only = false;
    for _ in 0..TRIES {
        let target = conn.front.target(conn.listener).await;
        let mut active = target.map_err(|_| Failure::Unavailable)?;
        let idle = if fresh_only { None } else { pool::take(active.upstream()) };
        let reused = idle.is_some();
        let mut sender = match idle {
            Some(sender) => sender,
            None => {
                let stream = connect(conn, &mut active).await?;
                let spoken = pool::speak(active.upstream(), stream).await;
                spoken.map_err(|_| Failure::Broken)?
            }
        };
        let spare = (reused && replayable).then(|| copy(&request));
        let mut error = match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, sender, active)),
            Err(error) => error,
        };
        request = match (error.take_message(), spare) {
            (Some(unsent), _) => unsent,
            (None, Some(spare)) => spare,
            (None, None) => return Err(Failure::Broken),
        };
        fresh_only = true;
    }
    Err(Failure::Broken)
}

fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// RFC 9110 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// Passes 101 on; from then on it is bytes both ways, pinned to this upstream.
fn switch_protocols(
    conn: &Arc<Conn>,
    mut response: Response<Incoming>,
    on_client: OnUpgrade,
    mut active: Active,
) -> Response<ResponseBody> {
    let on_upstream = hyper::upgrade::on(&mut response);
    active.pin();
    let conn = conn.clone();
    tokio::spawn(async move {
        if let Ok((client, upstream)) = tokio::try_join!(on_client, on_upstream)
            && let (Some(client), Some(upstream)) = (raw(client), raw(upstream))
        {
            relay::run(client, upstream, active).await;
        }
        drop(conn);
    });
    let (mut head, _) = response.into_parts();
    head::backward(&mut head);
    Response::from_parts(head, ResponseBody::Page(None))
}

fn raw(upgraded: Upgraded) -> Option<Rewound> {
    let parts = upgraded.downcast::<TokioIo<Rewound>>().ok()?;
    Some(parts.io.into_inner().followed_by(parts.read_buf))
}

/// A short answer of the front's own. It names nothing of what is inside.
fn page(status: StatusCode) -> Response<ResponseBody> {
    let text = match status {
        StatusCode::BAD_GATEWAY => "502 Bad Gateway: the service did not answer.\n",
        StatusCode::SERVICE_UNAVAILABLE => {
            "503 Service Unavailable: the service is not ready. Try again in a moment.\n"
        }
        StatusCode::METHOD_NOT_ALLOWED => "405 Method Not Allowed: this is not a forward proxy.\n",
        StatusCode::NOT_IMPLEMENTED => "501 Not Implemented: this transfer coding is not known.\n",
        _ => "400 Bad Request: the request can be read in two ways.\n",
    };
    let mut response = Response::new(ResponseBody::Page(Some(text)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED {
        // What follows on this connection cannot be trusted to begin where it seems to.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}
