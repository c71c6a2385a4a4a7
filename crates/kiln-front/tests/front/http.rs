//! HTTP/1.1 through the front.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::time::Duration;

use kiln_front::App;

use crate::backend::Backend;
use crate::client::Client;
use crate::root::{Root, route, wait_for};

#[test]
fn one_connection_many_requests() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let mut client = Client::connect(addr);
    for at in 0..20 {
        let answer = client.get("/", &at.to_string()).unwrap();
        assert_eq!((answer.status, answer.text()), (200, format!("a {at} 0 0")));
    }
    // The early connection is used, unless the request came while it was being made.
    assert!(backend.connections() <= 2, "{}", backend.connections());
    let head = backend.last_head().to_lowercase();
    for line in [
        "host: test",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: test",
    ] {
        assert!(head.contains(&format!("{line}\r\n")), "{line} in {head}");
    }
    assert_eq!(root.front.stats().unwrap().routes["web"].requests, 20);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let mut client = Client::connect(root.serve(App::Auto, backend.addr));
    let one = |id| format!("GET / HTTP/1.1\r\nHost: t\r\nX-Id: {id}\r\n\r\n");
    client.send(&[one(1), one(2), one(3)].concat()).unwrap();
    for id in 1..4 {
        assert_eq!(client.read_answer().unwrap().text(), format!("a {id} 0 0"));
    }
}

#[test]
fn bodies_of_every_framing() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Http, backend.addr);
    let mut client = Client::connect(addr);
    let head = "POST /x HTTP/1.1\r\nHost: t\r\n";
    let sized = client.ask(&format!("{head}Content-Length: 3\r\n\r\nabc"));
    assert_eq!(sized.text(), "a  3 294");
    let chunked = "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n";
    assert_eq!(client.ask(&format!("{head}{chunked}")).text(), "a  3 294");
    let get = format!("GET /x HTTP/1.1\r\nHost: t\r\n{chunked}");
    assert_eq!(client.ask(&get).text(), "a  3 294", "a GET may have a body");
    client.send(&format!("{head}Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")).unwrap();
    assert_eq!(client.read_head().unwrap().0, 100);
    assert_eq!(client.ask("abc").text(), "a  3 294");
    client.send("HEAD / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    let (status, fields) = client.read_head().unwrap();
    assert_eq!((status, fields["content-length"].as_str()), (200, "6"));
    assert_eq!(client.get("/", "after").unwrap().text(), "a after 0 0");
    assert_eq!(client.get("/until-close", "").unwrap().text(), "all of it");
    assert_eq!(client.get("/http10", "").unwrap().text(), "old");
    let mut old = Client::connect(addr);
    old.send("GET /until-close HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    old.stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("\r\n\r\nall of it"), "{text}");
}

#[test]
fn hop_by_hop_fields_of_answers_go() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let mut client = Client::connect(root.serve(App::Http, backend.addr));
    let answer = client.get("/hop", "").unwrap();
    assert_eq!(answer.fields["x-by"], "a");
    for name in ["x-own", "keep-alive", "connection"] {
        assert!(!answer.fields.contains_key(name), "{name}");
    }
}

#[test]
fn malformed_and_ambiguous_requests_get_400() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Http, backend.addr);
    let long = "a".repeat(100 << 10);
    let rows = [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nNo Colon\r\n\r\n".to_owned(), 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
                .to_owned(),
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".to_owned(), 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(), 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            501,
        ),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nA: {long}\r\n\r\n"), 431),
    ];
    for (request, status) in rows {
        let mut client = Client::connect(addr);
        // The front may have answered and closed before the last byte was sent.
        let _ = client.send(&request);
        let shown = &request[..request.len().min(90)];
        match client.read_answer() {
            Ok(answer) => assert_eq!(answer.status, status, "{shown:?}"),
            Err(error) => panic!("{shown:?}: {error}"),
        }
        assert!(client.is_closed(), "{shown:?}: what follows cannot be trusted");
    }
    assert_eq!(backend.served().len(), 0);
}

#[test]
fn two_framings_at_once_smuggle_nothing() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let inner = "GET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n";
    let cl = format!("Content-Length: {}\r\n", 5 + inner.len());
    let te = "Transfer-Encoding: chunked\r\n";
    for fields in [format!("{cl}{te}"), format!("{te}{cl}")] {
        let mut client = Client::connect(addr);
        let request = format!("POST / HTTP/1.1\r\nHost: t\r\n{fields}\r\n0\r\n\r\n{inner}");
        let _ = client.ask(&request);
        assert!(client.is_closed(), "one answer, then the end");
    }
    let heads = backend.shared.heads.lock().unwrap().join("");
    assert!(!heads.contains("smuggled"), "{heads}");
    assert!(!heads.to_lowercase().contains("content-length"), "{heads}");
}

#[test]
fn a_dead_upstream_gives_a_short_502() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let mut client = Client::connect(addr);
    assert_eq!(client.get("/", "1").unwrap().status, 200);
    backend.kill();
    let answer = client.get("/", "2").unwrap();
    assert_eq!(answer.status, 502);
    assert!(!answer.text().contains(&backend.addr.port().to_string()), "{}", answer.text());
    assert_eq!(Client::connect(addr).get("/", "3").unwrap().status, 502);
    assert!(root.front.stats().unwrap().routes["web"].errors >= 2);
}

#[test]
fn an_upstream_that_comes_back_in_a_moment_is_waited_for() {
    let mut root = Root::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = socket.local_addr().unwrap();
    let addr = root.serve(App::Http, upstream);
    drop(socket);
    let asking = std::thread::spawn(move || Client::connect(addr).get("/", "1").unwrap());
    wait_for("the request", || root.front.stats().unwrap().routes["web"].active == 1);
    let _backend = Backend::listen("b", TcpListener::bind(upstream).unwrap());
    assert_eq!(asking.join().unwrap().text(), "b 1 0 0");
}

#[test]
fn idle_connections_that_died_cost_no_request() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let mut client = Client::connect(root.serve(App::Http, backend.addr));
    for at in 0..50 {
        assert_eq!(client.get("/", &at.to_string()).unwrap().status, 200);
        backend.close_connections();
        // Not repeatable, but seen to be unsent: the end of an idle connection shows first.
        let post = "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(client.ask(post).text(), "a  3 294");
        backend.close_connections();
    }
    assert_eq!(backend.served().len(), 100);
}

#[test]
fn a_request_that_reached_the_upstream_is_not_repeated_unless_harmless() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let mut client = Client::connect(root.serve(App::Http, backend.addr));
    client.get("/", "warm").unwrap();
    let post = "POST /die HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(client.ask(post).status, 502);
    let heads = backend.shared.heads.lock().unwrap().join("");
    assert_eq!(heads.matches("POST /die").count(), 1);
    client.get("/", "warm").unwrap();
    assert_eq!(client.get("/die", "").unwrap().status, 502);
    let heads = backend.shared.heads.lock().unwrap().join("");
    assert_eq!(heads.matches("GET /die").count(), 2, "once on the idle one, once on a fresh one");
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_break_off() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let mut client = Client::connect(root.serve(App::Http, backend.addr));
    assert!(client.get("/die-mid", "").is_err());
}

#[test]
fn an_early_answer_arrives_before_the_body_is_sent() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let mut client = Client::connect(root.serve(App::Http, backend.addr));
    client.send("POST /early HTTP/1.1\r\nHost: t\r\nContent-Length: 100000000\r\n\r\n").unwrap();
    assert_eq!(client.read_head().unwrap().0, 413);
}

#[test]
fn a_client_that_closed_its_half_is_answered() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let mut client = Client::connect(root.serve(App::Auto, backend.addr));
    client.send("GET /slow?50 HTTP/1.1\r\nHost: t\r\nX-Id: 1\r\n\r\n").unwrap();
    client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read_answer().unwrap().text(), "a 1 0 0");
}

#[test]
fn large_bodies_stream_in_bounded_memory() {
    const SIZE: u64 = 100 << 20;
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let mut client = Client::connect(addr);
    client.send(&format!("GET /big?{SIZE} HTTP/1.1\r\nHost: t\r\n\r\n")).unwrap();
    client.read_head().unwrap();
    // A reader that does nothing must stop the writer: what is under way fits into the buffers.
    std::thread::sleep(Duration::from_millis(100));
    let mut read = 0;
    let mut block = vec![0; 1 << 20];
    while read < SIZE {
        let now = client.stream.read(&mut block).unwrap() as u64;
        assert!(now > 0);
        read += now;
    }
    let head = format!("POST /sum HTTP/1.1\r\nHost: t\r\nContent-Length: {SIZE}\r\n\r\n");
    client.send(&head).unwrap();
    block.fill(1);
    for _ in 0..100 {
        client.stream.get_mut().write_all(&block).unwrap();
    }
    assert_eq!(client.read_answer().unwrap().text(), format!("a  {SIZE} {SIZE}"));
    let pid = root.front.ping().unwrap().pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 40 << 10, "peak of {peak} kB");
}

#[test]
fn slow_clients_and_trailers() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let mut client = Client::connect(root.serve(App::Auto, backend.addr));
    for byte in "GET /ticks?3 HTTP/1.1\r\nHost: t\r\nTE: trailers\r\n\r\n".split_inclusive('/') {
        client.send(byte).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let (status, fields) = client.read_head().unwrap();
    assert_eq!((status, fields["content-type"].as_str()), (200, "text/event-stream"));
    for at in 0..3 {
        let event = client.chunk().unwrap().unwrap();
        assert_eq!(String::from_utf8(event).unwrap(), format!("data: a {at}\n\n"));
    }
    assert_eq!(client.line().unwrap(), "0");
    assert_eq!(client.line().unwrap(), "x-end: yes");
}

#[test]
fn a_route_that_is_gone_answers_503_on_old_connections() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Http, backend.addr);
    let mut client = Client::connect(addr);
    client.get("/", "1").unwrap();
    root.apply(vec![route("other", App::Http, backend.addr)]);
    assert_eq!(client.get("/", "2").unwrap().status, 503);
    assert!(std::net::TcpStream::connect(addr).is_err(), "the port is shut");
}
