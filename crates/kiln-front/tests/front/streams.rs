//! TCP, who speaks first, upgrades.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use kiln_front::App;

use crate::backend::{Backend, lines};
use crate::client::Client;
use crate::root::{Root, route, wait_for};

#[test]
fn a_server_may_speak_first() {
    let mut root = Root::new();
    let addr = root.serve(App::Auto, lines("smtp", true));
    let mut client = Client::connect(addr);
    assert_eq!(client.line().unwrap(), "220 smtp ready");
    client.send("EHLO\n").unwrap();
    assert_eq!(client.line().unwrap(), "smtp EHLO");
}

#[test]
fn a_client_that_speaks_no_http_gets_bytes() {
    let mut root = Root::new();
    let addr = root.serve(App::Auto, lines("redis", false));
    for first in ["PING\n", "GET key\n", "\u{1}\n", "{\"a\": 1}\n"] {
        let mut client = Client::connect(addr);
        client.send(first).unwrap();
        assert_eq!(client.line().unwrap(), format!("redis {}", first.trim_end()));
    }
}

#[test]
fn words_without_an_end_of_line_get_through() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut other = stream.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut stream, &mut other));
        }
    });
    let mut root = Root::new();
    let addr = root.serve(App::Auto, upstream);
    let mail = "later on, a line about GET / HTTP/1.1 is nobody's affair";
    for first in ["hello", "hello world", "PING", "x", "{}"] {
        let mut client = Client::connect(addr);
        for word in [first, mail] {
            client.send(word).unwrap();
            let mut back = vec![0; word.len()];
            client.stream.read_exact(&mut back).unwrap();
            assert_eq!(String::from_utf8(back).unwrap(), word);
        }
    }
}

#[test]
fn each_half_closes_for_itself() {
    for app in [App::Auto, App::Tcp] {
        let mut root = Root::new();
        let mut client = Client::connect(root.serve(app, lines("tcp", false)));
        client.send("one\n").unwrap();
        assert_eq!(client.line().unwrap(), "tcp one");
        client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.line().unwrap(), "tcp bye");
        assert!(client.is_closed());
        wait_for("nothing under way", || root.front.stats().unwrap().routes["web"].active == 0);
    }
}

#[test]
fn much_goes_both_ways_at_once() {
    const SIZE: usize = 32 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut other = stream.try_clone().unwrap();
        let copied = std::io::copy(&mut stream, &mut other).unwrap();
        assert_eq!(copied, SIZE as u64);
        other.shutdown(Shutdown::Write).unwrap();
    });
    let mut root = Root::new();
    let mut stream = TcpStream::connect(root.serve(App::Tcp, upstream)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sent: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
    let expected = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == expected, "{} of {SIZE} bytes", got.len());
}

#[test]
fn tcp_stays_with_its_upstream() {
    let mut root = Root::new();
    let addr = root.serve(App::Tcp, lines("old", false));
    let mut client = Client::connect(addr);
    client.send("a\n").unwrap();
    assert_eq!(client.line().unwrap(), "old a");
    assert_eq!(root.serve(App::Tcp, lines("new", false)), addr);
    client.send("b\n").unwrap();
    assert_eq!(client.line().unwrap(), "old b");
    let mut next = Client::connect(addr);
    next.send("c\n").unwrap();
    assert_eq!(next.line().unwrap(), "new c");
}

#[test]
fn a_silent_client_is_not_pinned() {
    let (mut root, old, new) = (Root::new(), Backend::start("old"), Backend::start("new"));
    let addr = root.serve(App::Auto, old.addr);
    let mut client = Client::connect(addr);
    wait_for("the early connection", || old.connections() == 1);
    root.serve(App::Auto, new.addr);
    wait_for("the early connection", || new.connections() == 1);
    assert_eq!(client.get("/", "1").unwrap().text(), "new 1 0 0");
}

#[test]
fn http_upstreams_get_no_spare_connections() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let mut client = Client::connect(addr);
    client.get("/", "1").unwrap();
    let before = backend.connections();
    let _silent: Vec<_> = (0..5).map(|_| Client::connect(addr)).collect();
    wait_for("connections", || root.front.stats().unwrap().connections == 6);
    client.get("/", "2").unwrap();
    assert_eq!(backend.connections(), before);
}

fn upgrade(client: &mut Client) {
    client
        .send(
            "GET /upgrade HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\nx\n",
        )
        .unwrap();
    let (status, fields) = client.read_head().unwrap();
    assert_eq!((status, fields["upgrade"].as_str()), (101, "lines"));
    assert_eq!(fields["connection"].to_lowercase(), "upgrade");
}

#[test]
fn upgraded_connections_pass_and_stay() {
    let (mut root, old, new) = (Root::new(), Backend::start("old"), Backend::start("new"));
    let addr = root.serve(App::Auto, old.addr);
    let mut client = Client::connect(addr);
    upgrade(&mut client);
    assert_eq!(client.line().unwrap(), "old hello");
    assert_eq!(client.line().unwrap(), "old x", "sent before the 101 came");
    root.serve(App::Auto, new.addr);
    client.send("after\n").unwrap();
    assert_eq!(client.line().unwrap(), "old after");
    let mut next = Client::connect(addr);
    upgrade(&mut next);
    assert_eq!(next.line().unwrap(), "new hello");
    client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.line().unwrap(), "old bye");
    assert!(client.is_closed());
}

#[test]
fn a_route_may_change_its_application() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Tcp, backend.addr);
    assert_eq!(Client::connect(addr).get("/", "1").unwrap().text(), "a 1 0 0");
    assert!(!backend.last_head().contains("X-Forwarded-For"));
    assert_eq!(root.apply(vec![route("web", App::Http, backend.addr)])[0], addr);
    assert_eq!(Client::connect(addr).get("/", "2").unwrap().text(), "a 2 0 0");
    assert!(backend.last_head().contains("X-Forwarded-For"));
}
