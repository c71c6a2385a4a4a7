//! Clients that leave, or say nothing; servers that take one connection at a time; last words.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kiln_front::App;

use crate::backend::Backend;
use crate::client::Client;
use crate::raw::{Raw, Then, hear, say, status};
use crate::root::{Root, wait_for};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_client_that_has_gone_is_noticed() {
    let quiet = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nid: 1\n\r\n";
    let long = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf";
    for (what, says) in [("while it waits", ""), ("in a quiet stream", quiet), ("half-way", long)] {
        let (mut root, raw) = (Root::new(), Raw::start(says, Then::Hold));
        let addr = root.serve(App::Auto, raw.addr);
        let mut client = TcpStream::connect(addr).unwrap();
        client.write_all(GET).unwrap();
        wait_for("the request", || raw.seen().contains("GET /"));
        if !says.is_empty() {
            client.read_exact(&mut [0; 12]).unwrap();
        }
        drop(client);
        let start = Instant::now();
        wait_for(what, || raw.ended() == raw.opened());
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: {:?}", start.elapsed());
        wait_for("nothing under way", || root.front.stats().unwrap().routes["web"].active == 0);
    }
}

#[test]
fn a_client_that_leaves_while_it_sends_is_noticed() {
    let (mut root, raw) = (Root::new(), Raw::start("", Then::Hold));
    let addr = root.serve(App::Http, raw.addr);
    let mut client = TcpStream::connect(addr).unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf").unwrap();
    wait_for("the request", || raw.seen().contains("half"));
    drop(client);
    wait_for("its end", || raw.ended() == 1);
}

#[test]
fn a_client_that_only_shut_its_half_hears_all() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let mut client = Client::connect(root.serve(App::Http, backend.addr));
    client.send("GET /ticks?200 HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    client.read_head().unwrap();
    let mut count = 0;
    while client.chunk().unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 200, "a second of events after its last word");
}

#[test]
fn a_silent_client_holds_no_server_that_serves_one_at_a_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut block = [0; 4096];
            if matches!(stream.read(&mut block), Ok(1..)) {
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
    let mut root = Root::new();
    let addr = root.serve(App::Auto, upstream);
    // While it is not known what is spoken here, each client has a connection upstream, in case the
    // server speaks first. This server serves one at a time, so the second client waits for the end
    // of the first.
    let first = TcpStream::connect(addr).unwrap();
    wait_for("the spare connection", || root.front.stats().unwrap().connections == 1);
    let start = Instant::now();
    let asking = std::thread::spawn(move || say(addr, GET));
    wait_for("both", || root.front.stats().unwrap().connections == 2);
    drop(first);
    assert_eq!(status(&asking.join().unwrap()), 200);
    let _silent: Vec<_> = (0..3).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let mut half = TcpStream::connect(addr).unwrap();
    half.write_all(b"GET / HT").unwrap();
    // Longer than the second after which words may be taken for bytes, and go upstream.
    std::thread::sleep(Duration::from_millis(1500));
    for _ in 0..3 {
        assert_eq!(status(&say(addr, GET)), 200);
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[test]
fn an_answer_that_came_early_is_heard_while_the_client_still_sends() {
    let says = "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!";
    let (mut root, raw) = (Root::new(), Raw::start(says, Then::Close));
    let addr = root.serve(App::Http, raw.addr);
    for body in ["Content-Length: 50000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"] {
        let mut client = TcpStream::connect(addr).unwrap();
        client.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}").as_bytes()).unwrap();
        let mut writer = client.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            let chunk = [b"10000\r\n".as_slice(), &[b'x'; 65536], b"\r\n"].concat();
            for _ in 0..200 {
                if writer.write_all(&chunk).is_err() {
                    return;
                }
            }
        });
        let heard = hear(&mut client);
        assert!(status(&heard) == 413 && heard.ends_with("no!"), "{body:?}: {heard}");
        writing.join().unwrap();
    }
}

#[test]
fn expect_goes_to_the_service_and_its_word_comes_back() {
    let ask = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let no = "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n";
    let (mut root, raw) = (Root::new(), Raw::start(no, Then::Keep));
    let heard = say(root.serve(App::Http, raw.addr), ask);
    assert_eq!(status(&heard), 417, "{heard}");
    assert!(heard.contains("Connection: close"), "the body was never sent: {heard}");
    assert!(raw.seen().contains("Expect: 100-continue"), "{}", raw.seen());
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let mut client = Client::connect(root.serve(App::Http, backend.addr));
    client.stream.get_mut().write_all(ask).unwrap();
    assert_eq!(client.read_head().unwrap().0, 100);
    assert_eq!(client.ask("abc").text(), "a  3 294");
}

#[test]
fn the_last_words_of_a_tcp_server_arrive() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // It reads a little, says why it goes, and goes without reading the rest.
            let _ = stream.read(&mut [0; 10]);
            let _ = stream.write_all(b"550 too much, good-bye");
        }
    });
    let mut root = Root::new();
    let addr = root.serve(App::Tcp, upstream);
    for _ in 0..20 {
        let mut client = TcpStream::connect(addr).unwrap();
        let mut writer = client.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            for _ in 0..100 {
                if writer.write_all(&[b'x'; 10_000]).is_err() {
                    return;
                }
            }
        });
        assert_eq!(hear(&mut client), "550 too much, good-bye");
        drop(client);
        writing.join().unwrap();
    }
}

#[test]
fn a_websocket_is_told_before_it_is_cut() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\u{1}\u{2}hi";
    let (mut root, raw) = (Root::new(), Raw::start(switch, Then::Hold));
    let next = Backend::start("next");
    let addr = root.serve(App::Http, raw.addr);
    let mut client = TcpStream::connect(addr).unwrap();
    client
        .write_all(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"\x01\x02hi") {
        let mut byte = [0; 1];
        client.read_exact(&mut byte).unwrap();
        heard.push(byte[0]);
    }
    root.serve(App::Http, next.addr);
    root.front.drain(&kiln_front::Drain::of([raw.addr], Duration::ZERO)).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [0x88, 2, 0x03, 0xf4], "1012: service restart");
}
