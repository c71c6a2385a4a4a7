//! Time-outs over HTTP/2: as in `limits.rs`, how long something took is looked at from below only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use kiln_front::{App, Drain};

use crate::h2c::{Grpc, all, connect, post, runtime};
use crate::root::{Root, wait_for};

const LIMIT: Duration = Duration::from_millis(400);
/// Where somebody goes on speaking all the time: a machine that is busy lets nobody wait so long
/// between two words.
const LONG: Duration = Duration::from_millis(1500);
/// What a clock that ticks in milliseconds may be early.
const NEARLY: Duration = Duration::from_millis(390);
/// A test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

fn only(name: &str, limit: Duration) -> Root {
    Root::with_limits(&format!("{{\"{name}\": {}}}", limit.as_millis()))
}

/// Runs `test` with a client of a front that has only that limit, before a server that is done with
/// every stream in the end.
fn with_limit(name: &str, limit: Duration, test: impl AsyncFnOnce(&SendRequest<Bytes>)) {
    let (mut root, grpc) = (only(name, limit), Grpc::start("a"));
    let addr = root.serve(App::Http, grpc.addr);
    runtime().block_on(async {
        let client = connect(addr).await.ready().await.unwrap();
        tokio::time::timeout(PATIENCE, test(&client)).await.expect("it never ended");
    });
    wait_for("nothing under way", || root.front.stats().unwrap().routes["web"].active == 0);
}

async fn begin(client: &SendRequest<Bytes>, how: &str) -> (ResponseFuture, SendStream<Bytes>) {
    let mut client = client.clone().ready().await.unwrap();
    client.send_request(post(&format!("/behave/{how}")), false).unwrap()
}

fn word() -> Bytes {
    Bytes::from_static(b"x")
}

/// Why a body broke off, after `heard` bytes at least.
async fn broken(mut body: RecvStream, heard: usize) -> Option<Reason> {
    let mut count = 0;
    loop {
        match body.data().await.expect("an answer that broke off looks whole") {
            Ok(data) => count += data.len(),
            Err(error) => {
                assert!(count >= heard, "{count}: {error}");
                return error.reason();
            }
        }
    }
}

#[test]
fn an_upstream_that_says_nothing_is_504() {
    for (how, size) in [("dumb", 0), ("dumb", 3), ("deaf-and-dumb", 4 << 20)] {
        with_limit("answer", LIMIT, async |client| {
            let begun = Instant::now();
            let (answer, mut sending) = begin(client, how).await;
            sending.send_data(vec![0; size].into(), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 504, "{how}, {size}");
            assert!(begun.elapsed() >= NEARLY, "{how}, {size}: {:?}", begun.elapsed());
        });
    }
}

#[test]
fn an_upload_may_take_longer_than_an_answer() {
    with_limit("answer", LONG, async |client| {
        let mut client = client.clone().ready().await.unwrap();
        let (answer, mut sending) = client.send_request(post("/up"), false).unwrap();
        for _ in 0..25 {
            tokio::time::sleep(LONG / 15).await;
            sending.send_data(word(), false).unwrap();
        }
        sending.send_data(word(), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(all(answer.into_body()).await.unwrap().0, b"a /up 26");
        // A body that stops, and an answer that needs all of it.
        let begun = Instant::now();
        let (answer, mut sending) = client.send_request(post("/up"), false).unwrap();
        sending.send_data(word(), false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 504);
        assert!(begun.elapsed() >= LONG - Duration::from_millis(10), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_stream_on_which_nobody_speaks_is_reset() {
    // With the client's side ended, and open.
    for ended in [true, false] {
        with_limit("quiet", LIMIT, async |client| {
            let begun = Instant::now();
            let (answer, mut sending) = begin(client, "echo").await;
            sending.send_data(word(), false).unwrap();
            let mut body = answer.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "word");
            if ended {
                sending.send_data(Bytes::new(), true).unwrap();
            }
            assert_eq!(broken(body, 0).await, Some(Reason::CANCEL), "ended: {ended}");
            assert!(begun.elapsed() >= NEARLY, "ended: {ended}: {:?}", begun.elapsed());
        });
    }
}

#[test]
fn whoever_only_listens_is_not_silent() {
    with_limit("quiet", LONG, async |client| {
        let (talking, mut last) = begin(client, "talk").await;
        let (hearing, mut speaking) = begin(client, "hear").await;
        let mut talk = talking.await.unwrap().into_body();
        let heard = hearing.await.unwrap().into_body();
        let begun = Instant::now();
        // One client says nothing, and one server.
        while begun.elapsed() < LONG * 5 / 3 {
            let data = talk.data().await.unwrap().unwrap();
            talk.flow_control().release_capacity(data.len()).unwrap();
            speaking.send_data(word(), false).unwrap();
        }
        last.send_data(word(), true).unwrap();
        speaking.send_data(Bytes::new(), true).unwrap();
        let (talk, heard) = (all(talk).await.unwrap().0, all(heard).await.unwrap().0);
        assert!(talk.ends_with(b" 1"), "what was said late is heard");
        let count: usize = String::from_utf8(heard).unwrap().parse().unwrap();
        assert!(count > 10, "{count}");
    });
}

#[test]
fn whoever_takes_nothing_is_reset() {
    with_limit("stall", LIMIT, async |client| {
        let begun = Instant::now();
        let (answer, _sending) = begin(client, "flood").await;
        // It lets nothing of it go, so no more is sent than fits.
        assert_eq!(broken(answer.await.unwrap().into_body(), 1).await, Some(Reason::CANCEL));
        assert!(begun.elapsed() >= NEARLY, "{:?}", begun.elapsed());
    });
    for how in ["deaf", "deaf-and-dumb"] {
        with_limit("stall", LIMIT, async |client| {
            let begun = Instant::now();
            let (answer, mut sending) = begin(client, how).await;
            sending.send_data(vec![0; 4 << 20].into(), false).unwrap();
            let reason = match answer.await {
                Ok(answer) => broken(answer.into_body(), 4).await,
                Err(error) => error.reason(),
            };
            assert_eq!(reason, Some(Reason::CANCEL), "{how}");
            assert!(begun.elapsed() >= NEARLY, "{how}: {:?}", begun.elapsed());
        });
    }
}

/// RFC 9113, 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request without a body: fields of RFC 7541's static table.
fn ask(stream: u32, path: &str) -> Vec<u8> {
    const POST: u8 = 0x83;
    const SCHEME_HTTP: u8 = 0x86;
    const PATH: u8 = 0x04;
    const AUTHORITY: u8 = 0x01;
    let length = u8::try_from(path.len()).unwrap();
    let fields = [&[POST, SCHEME_HTTP, AUTHORITY, 1, b'a', PATH, length], path.as_bytes()].concat();
    frame(1, 0x5, stream, &fields)
}

/// The frames in `heard`: kind, stream, payload.
fn frames(mut heard: &[u8]) -> Vec<(u8, u32, &[u8])> {
    let mut all = Vec::new();
    while let Some((head, rest)) = heard.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        all.push((head[3], stream, payload));
        heard = rest;
    }
    all
}

/// Asks for `/watch`, takes no notice of what it is told, and goes on asking if it `asks`: gives
/// what it was told until it was closed.
fn takes_no_notice(addr: SocketAddr, asks: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(4, 0, 0, &[])[..], &ask(1, "/watch")];
    stream.write_all(&begin.concat()).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let mut streams = (3..).step_by(2);
        while asks && writer.write_all(&ask(streams.next().unwrap(), "/again")).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let mut heard = Vec::new();
    if let Err(error) = stream.read_to_end(&mut heard) {
        // It was closed while it wrote.
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "asks: {asks}");
    }
    drop(stream);
    writing.join().unwrap();
    heard
}

#[test]
fn a_client_that_stays_although_it_was_told_to_go_is_closed() {
    let (mut root, old, new) = (Root::new(), Grpc::start("old"), Grpc::start("new"));
    let addr = root.serve(App::Http, old.addr);
    let clients = [false, true].map(|asks| std::thread::spawn(move || takes_no_notice(addr, asks)));
    wait_for("both", || {
        old.seen.lock().unwrap().len() >= 2 && root.front.stats().unwrap().connections == 2
    });
    root.serve(App::Http, new.addr);
    root.front.drain(&Drain::of([old.addr], Duration::ZERO)).unwrap();
    let [silent, asking] = clients.map(|client| client.join().unwrap());
    for heard in [&silent, &asking] {
        assert!(frames(heard).iter().any(|(kind, ..)| *kind == 7), "GOAWAY");
    }
    let refused = Reason::REFUSED_STREAM;
    let refused = u32::from(refused).to_be_bytes();
    let frames = frames(&asking);
    assert!(
        frames.iter().any(|(kind, _, why)| *kind == 3 && **why == refused),
        "it may ask elsewhere"
    );
    assert!(!frames.iter().any(|(kind, at, why)| *kind == 3 && *at > 1 && **why != refused));
    wait_for("nobody", || root.front.stats().unwrap().connections == 0);
}
