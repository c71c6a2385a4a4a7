//! HTTP/2 with prior knowledge: as gRPC speaks it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response};
use kiln_front::{App, Drain};

use crate::raw::outside;
use crate::root::{Root, route, wait_for};

/// Answers `name path body`, with the request's trailers among its own; `/watch` says its name
/// every 20 ms until the client has enough. [`behave`] knows the paths that answer otherwise.
pub(crate) struct Grpc {
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<HeaderMap>>>,
    /// Streams that the client gave up.
    pub(crate) given_up: Arc<Mutex<usize>>,
}

impl Grpc {
    pub(crate) fn start(name: &'static str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (seen, given_up) = <(Arc<Mutex<Vec<HeaderMap>>>, Arc<Mutex<usize>>)>::default();
        let grpc = Self { addr, seen: seen.clone(), given_up: given_up.clone() };
        std::thread::spawn(move || {
            runtime().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let (seen, given_up) = (seen.clone(), given_up.clone());
                    tokio::spawn(async move {
                        let Ok(mut connection) = h2::server::handshake(stream).await else {
                            return;
                        };
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            seen.lock().unwrap().push(request.headers().clone());
                            let given_up = given_up.clone();
                            tokio::spawn(async move {
                                if answer(name, request, respond).await.is_err() {
                                    *given_up.lock().unwrap() += 1;
                                }
                            });
                        }
                    });
                }
            });
        });
        grpc
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn answer(
    name: &str,
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let path = request.uri().path().to_owned();
    if let Some(how) = path.strip_prefix("/behave/") {
        return behave(how, request.into_body(), respond).await;
    }
    let (body, trailers) = all(request.into_body()).await?;
    if path == "/hints" {
        let mut early = Response::new(());
        *early.status_mut() = http::StatusCode::EARLY_HINTS;
        respond.send_informational(early)?;
    }
    let mut sending = respond.send_response(Response::new(()), false)?;
    if let Some(reason) = path.strip_prefix("/reset/") {
        // After a first word, so that the answer is under way.
        sending.send_data(Bytes::from_static(b"half"), false)?;
        sending.send_reset(h2::Reason::from(reason.parse::<u32>().unwrap()));
        return Ok(());
    }
    if path == "/watch" {
        loop {
            sending.send_data(Bytes::copy_from_slice(name.as_bytes()), false)?;
            let pause = tokio::time::sleep(Duration::from_millis(20));
            tokio::select! {
                () = pause => {}
                _ = std::future::poll_fn(|cx| sending.poll_reset(cx)) => {
                    return Err(h2::Reason::CANCEL.into());
                }
            }
        }
    }
    sending.send_data(format!("{name} {path} {}", body.len()).into(), false)?;
    let mut out = trailers.unwrap_or_default();
    out.insert("grpc-status", HeaderValue::from_static("0"));
    sending.send_trailers(out)
}

/// What a well-behaved server does not do, and what goes on without end.
async fn behave(
    how: &str,
    mut body: RecvStream,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    if how == "deaf-and-dumb" {
        return Err(std::future::poll_fn(|cx| respond.poll_reset(cx)).await?.into());
    }
    if how == "dumb" {
        all(body).await?;
        return Err(std::future::poll_fn(|cx| respond.poll_reset(cx)).await?.into());
    }
    let mut sending = respond.send_response(Response::new(()), false)?;
    let word = Bytes::from_static(b"word");
    match how {
        // Says one word, and takes nothing.
        "deaf" => sending.send_data(word, false)?,
        // Says a word for each that it hears.
        "echo" => {
            while let Some(data) = body.data().await {
                body.flow_control().release_capacity(data?.len())?;
                sending.send_data(word.clone(), false)?;
            }
        }
        // Hears all before it says anything.
        "hear" => {
            let (heard, _) = all(body).await?;
            return sending.send_data(format!("{}", heard.len()).into(), true);
        }
        // Speaks until it has heard all.
        "talk" => {
            let mut hearing = std::pin::pin!(all(body));
            loop {
                tokio::select! {
                    heard = &mut hearing => {
                        return sending.send_data(format!(" {}", heard?.0.len()).into(), true);
                    }
                    () = tokio::time::sleep(Duration::from_millis(20)) => {
                        sending.send_data(word.clone(), false)?;
                    }
                }
            }
        }
        "flood" => loop {
            sending.reserve_capacity(16 << 10);
            let room = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await;
            let room = room.ok_or(h2::Reason::CANCEL)??;
            sending.send_data(vec![0; room].into(), false)?;
        },
        _ => panic!("{how}"),
    }
    Err(std::future::poll_fn(|cx| sending.poll_reset(cx)).await?.into())
}

pub(crate) async fn all(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, body.trailers().await?))
}

pub(crate) async fn connect(addr: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) fn post(path: &str) -> Request<()> {
    let uri = format!("http://shop{path}");
    Request::post(uri).header("x_forwarded_for", "6.6.6.6").body(()).unwrap()
}

/// Body as text and trailers of an answer to a request with `body` and a trailer.
async fn call(client: &SendRequest<Bytes>, path: &str, body: Vec<u8>) -> (String, HeaderMap) {
    let mut client = client.clone().ready().await.unwrap();
    let (answer, mut sending) = client.send_request(post(path), false).unwrap();
    let mut body = Bytes::from(body);
    while !body.is_empty() {
        sending.reserve_capacity(body.len());
        let room = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await.unwrap().unwrap();
        sending.send_data(body.split_to(room.min(body.len())), false).unwrap();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    trailers.insert("x-real-ip", HeaderValue::from_static("6.6.6.6"));
    sending.send_trailers(trailers).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let (body, trailers) = all(answer.into_body()).await.unwrap();
    (String::from_utf8(body).unwrap(), trailers.unwrap())
}

#[test]
fn each_request_goes_to_the_release_in_force() {
    for app in [App::Auto, App::Http] {
        let (mut root, old, new) = (Root::new(), Grpc::start("old"), Grpc::start("new"));
        let addr = root.serve(app, old.addr);
        runtime().block_on(async {
            let mut client = connect(addr).await;
            let (text, trailers) = call(&client, "/a", vec![1; 3]).await;
            assert_eq!(text, "old /a 3");
            assert_eq!(trailers["grpc-status"], "0");
            assert_eq!(trailers["x-sum"], "7");
            assert!(!trailers.contains_key("x-real-ip"));
            // A stream from before stays where it is.
            let (watch, _) = client.send_request(post("/watch"), true).unwrap();
            let mut watch = watch.await.unwrap().into_body();
            assert_eq!(watch.data().await.unwrap().unwrap(), "old");
            root.serve(app, new.addr);
            assert_eq!(call(&client, "/b", vec![]).await.0, "new /b 0");
            assert_eq!(watch.data().await.unwrap().unwrap(), "old");
            let stats = root.front.stats().unwrap();
            assert_eq!(stats.upstreams[&old.addr].requests, 1);
            // The cut at the end of the drain: it breaks off, and the connection says good-bye.
            let drained = root.front.drain(&Drain::of([old.addr], Duration::ZERO)).unwrap();
            assert_eq!(drained.cut_requests, 1);
            let error = loop {
                match watch.data().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error,
                    None => panic!("a stream that was cut looks whole"),
                }
            };
            assert!(error.is_reset() || error.is_go_away(), "{error}");
            let ready = client.clone().ready().await;
            let left = ready.and_then(|mut client| client.send_request(post("/c"), true));
            assert!(left.is_err(), "GOAWAY: what comes next wants a new connection");
            assert_eq!(call(&connect(addr).await, "/d", vec![]).await.0, "new /d 0");
        });
        let seen = old.seen.lock().unwrap();
        assert_eq!(seen[0]["x-forwarded-for"], "127.0.0.1");
        assert!(!seen[0].contains_key("x_forwarded_for"), "{:?}", seen[0]);
    }
}

#[test]
fn much_goes_through_and_hints_pass() {
    let (mut root, grpc) = (Root::new(), Grpc::start("a"));
    let listen = vec![SocketAddr::from(([0, 0, 0, 0], 0))];
    let wide = kiln_front::Route { listen, ..route("web", App::Auto, grpc.addr) };
    let port = root.apply(vec![wide])[0].port();
    runtime().block_on(async {
        let mut client = connect((outside(), port).into()).await;
        let size = 20 << 20;
        assert_eq!(call(&client, "/big", vec![7; size]).await.0, format!("a /big {size}"));
        let (mut answer, _) = client.send_request(post("/hints"), true).unwrap();
        let hint = std::future::poll_fn(|cx| answer.poll_informational(cx)).await;
        assert_eq!(hint.unwrap().unwrap().status(), 103);
        assert_eq!(answer.await.unwrap().status(), 200);
        // Many at once on one connection.
        let mut answers = Vec::new();
        for at in 0..50 {
            let mut client = client.clone().ready().await.unwrap();
            answers.push((at, client.send_request(post(&format!("/{at}")), true).unwrap().0));
        }
        for (at, answer) in answers {
            let (body, _) = all(answer.await.unwrap().into_body()).await.unwrap();
            assert_eq!(String::from_utf8(body).unwrap(), format!("a /{at} 0"));
        }
    });
    let seen = grpc.seen.lock().unwrap();
    assert_eq!(seen[0]["x-forwarded-for"], outside().to_string().as_str());
}

#[test]
fn a_client_that_wants_no_more_is_passed_on() {
    let (mut root, grpc) = (Root::new(), Grpc::start("a"));
    let addr = root.serve(App::Auto, grpc.addr);
    runtime().block_on(async {
        let mut client = connect(addr).await;
        let (watch, sending) = client.send_request(post("/watch"), true).unwrap();
        let mut watch = watch.await.unwrap().into_body();
        watch.data().await.unwrap().unwrap();
        drop((watch, sending));
        call(&client, "/a", vec![]).await;
        drop(client);
    });
    wait_for("the stream's end", || *grpc.given_up.lock().unwrap() == 1);
    wait_for("nothing under way", || root.front.stats().unwrap().routes["web"].active == 0);
}

#[test]
fn a_reset_concerns_one_stream_of_a_connection_that_others_share() {
    let (mut root, grpc) = (Root::new(), Grpc::start("a"));
    let addr = root.serve(App::Auto, grpc.addr);
    runtime().block_on(async {
        // Two clients, whose requests go over one connection where they meet on a core; and two
        // streams of one client, which do for certain.
        let (one, mut two) = (connect(addr).await, connect(addr).await);
        let mut client = one.clone().ready().await.unwrap();
        let (watch, _sending) = client.send_request(post("/watch"), true).unwrap();
        let mut kept = watch.await.unwrap().into_body();
        kept.data().await.unwrap().unwrap();
        let (given_up, _sending) = two.send_request(post("/watch"), true).unwrap();
        let mut given_up = given_up.await.unwrap().into_body();
        given_up.data().await.unwrap().unwrap();
        drop(given_up);
        for reason in [2_u32, 7, 8, 11] {
            let mut client = one.clone().ready().await.unwrap();
            let path = format!("/reset/{reason}");
            let (broken, _sending) = client.send_request(post(&path), true).unwrap();
            // What the upstream says is what the client hears, whether it heard the head before.
            let error = match broken.await {
                Ok(answer) => all(answer.into_body()).await.unwrap_err(),
                Err(error) => error,
            };
            assert_eq!(error.reason(), Some(h2::Reason::from(reason)), "{error}");
            kept.data().await.unwrap().expect("the other stream goes on");
            assert_eq!(call(&one, "/b", vec![]).await.0, "a /b 0");
        }
    });
    wait_for("the one that was given up", || *grpc.given_up.lock().unwrap() >= 1);
}

#[test]
fn a_server_that_begins_with_its_settings_is_no_reason_to_pass_bytes() {
    let (mut root, grpc) = (Root::new(), Grpc::start("a"));
    let addr = root.serve(App::Auto, grpc.addr);
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        // The front has connected upstream meanwhile, since the server might speak first. This one
        // does, by its settings; that is how a server of HTTP/2 begins, and no other protocol.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        assert_eq!(call(&client, "/a", vec![]).await.0, "a /a 0");
    });
    assert!(!grpc.seen.lock().unwrap()[0].contains_key("x_forwarded_for"));
}
