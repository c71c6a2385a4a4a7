//! Time-outs, all of them, with limits that a test can wait for. How long something took is looked
//! at from below only: from above, it is enough that it ends.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_front::App;

use crate::backend::Backend;
use crate::raw::{Raw, Then, status};
use crate::root::{Root, wait_for};

/// Of the limit under test; what is not under test stays far away.
const LIMIT: Duration = Duration::from_millis(400);
/// The same where somebody goes on speaking all the time: a machine that is busy lets nobody wait so
/// long between two words.
const LONG: Duration = Duration::from_millis(1500);
const WORDS: usize = 25;
/// What a clock that ticks in milliseconds may be early.
const NEARLY: Duration = Duration::from_millis(390);
/// A test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn only(name: &str) -> Root {
    Root::with_limits(&format!("{{\"{name}\": {}}}", LIMIT.as_millis()))
}

fn only_long(name: &str) -> Root {
    Root::with_limits(&format!("{{\"{name}\": {}}}", LONG.as_millis()))
}

/// Says something again and again, for longer than `LONG`.
fn drip(stream: &mut TcpStream, word: &[u8]) {
    for _ in 0..WORDS {
        std::thread::sleep(LONG / 15);
        stream.write_all(word).unwrap();
    }
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything until the other side ends, and whether it ended well.
fn to_the_end(stream: &mut TcpStream) -> (String, bool) {
    let mut heard = Vec::new();
    let begun = Instant::now();
    let ended = stream.read_to_end(&mut heard);
    assert!(begun.elapsed() < PATIENCE, "it never ended");
    (String::from_utf8_lossy(&heard).into_owned(), ended.is_ok())
}

/// An upstream that takes connections and says nothing; `reads`: it takes what comes.
fn silent(reads: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let kept = Mutex::new(Vec::new());
        for mut stream in listener.incoming().flatten() {
            if reads {
                std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
            } else {
                kept.lock().unwrap().push(stream);
            }
        }
    });
    addr
}

#[test]
fn a_file_that_cannot_be_understood_changes_nothing_and_is_told() {
    let mut root = Root::with_limits(r#"{"hed": 1}"#);
    let backend = Backend::start("a");
    let mut stream = connect(root.serve(App::Http, backend.addr));
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(status(&to_the_end(&mut stream).0), 200);
    assert!(root.log().contains("limits.json") && root.log().contains("hed"), "{}", root.log());
}

#[test]
fn an_idle_client_is_closed_and_empty_lines_keep_nobody() {
    for (app, asks) in [(App::Http, true), (App::Http, false), (App::Auto, true)] {
        let (mut root, raw) = (only("idle"), Raw::start(OK, Then::Keep));
        let addr = root.serve(app, raw.addr);
        for blank in [false, true] {
            let mut stream = connect(addr);
            let begun = Instant::now();
            if asks {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                let mut first = [0; 12];
                stream.read_exact(&mut first).unwrap();
            }
            let over = Arc::new(AtomicBool::new(false));
            let mut writer = stream.try_clone().unwrap();
            let (done, blanks) = (over.clone(), blank);
            let writing = std::thread::spawn(move || {
                while blanks && !done.load(SeqCst) && writer.write_all(b"\r\n").is_ok() {
                    std::thread::sleep(LIMIT / 10);
                }
            });
            let (heard, _) = to_the_end(&mut stream);
            over.store(true, SeqCst);
            writing.join().unwrap();
            assert!(begun.elapsed() >= NEARLY, "{app:?} {asks} {blank}: {:?}", begun.elapsed());
            assert!(
                !heard.contains("408"),
                "{app:?} {asks} {blank}: it had begun nothing: {heard}"
            );
        }
    }
}

#[test]
fn a_head_that_is_not_finished_is_408_however_it_drips() {
    for app in [App::Http, App::Auto] {
        let (mut root, raw) = (only("head"), Raw::start(OK, Then::Keep));
        let addr = root.serve(app, raw.addr);
        for drips in [false, true] {
            let mut stream = connect(addr);
            let begun = Instant::now();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").unwrap();
            let mut writer = stream.try_clone().unwrap();
            let over = Arc::new(AtomicBool::new(!drips));
            let done = over.clone();
            let dripping = std::thread::spawn(move || {
                while !done.load(SeqCst) && writer.write_all(b"x").is_ok() {
                    std::thread::sleep(LIMIT / 10);
                }
            });
            let mut first = [0; 12];
            stream.read_exact(&mut first).unwrap();
            assert_eq!(&first, b"HTTP/1.1 408", "{app:?}, drips: {drips}");
            assert!(begun.elapsed() >= NEARLY, "{:?}", begun.elapsed());
            over.store(true, SeqCst);
            dripping.join().unwrap();
        }
        assert_eq!(raw.seen(), "", "nothing of it went on");
    }
}

#[test]
fn a_body_that_stops_is_408_and_lets_go_of_the_upstream() {
    for body in [
        "Content-Length: 100\r\n\r\nhalf",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "Transfer-Encoding: chunked\r\n\r\n40\r\nhalf",
    ] {
        let (mut root, raw) = (only("body"), Raw::start("", Then::Hold));
        let mut stream = connect(root.serve(App::Http, raw.addr));
        let begun = Instant::now();
        stream.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}").as_bytes()).unwrap();
        let (heard, _) = to_the_end(&mut stream);
        assert_eq!(status(&heard), 408, "{body:?}: {heard}");
        assert!(begun.elapsed() >= NEARLY, "{body:?}: {:?}", begun.elapsed());
        wait_for("the upstream to be let go of", || raw.ended() == raw.opened());
        wait_for("nothing under way", || root.front.stats().unwrap().routes["web"].active == 0);
    }
}

#[test]
fn a_body_that_stops_while_the_answer_is_under_way_breaks_it_off() {
    let says = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let (mut root, raw) = (only("body"), Raw::start(says, Then::Hold));
    let mut stream = connect(root.serve(App::Http, raw.addr));
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").unwrap();
    let (heard, whole) = to_the_end(&mut stream);
    assert!(!heard.contains("\r\n0\r\n") && !heard.contains("408"), "{whole}: {heard}");
    wait_for("the upstream to be let go of", || raw.ended() == raw.opened());
}

#[test]
fn an_upstream_that_says_nothing_is_504_and_is_not_asked_again_on_that_line() {
    for (reads, body) in [(true, 0), (true, 3), (false, 8 << 20)] {
        let (mut root, upstream) = (only("answer"), silent(reads));
        let mut stream = connect(root.serve(App::Http, upstream));
        let begun = Instant::now();
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {body}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut writer = stream.try_clone().unwrap();
        // One that takes nothing of a body keeps the client waiting at it.
        let writing = std::thread::spawn(move || {
            let _ = writer.write_all(&vec![b'x'; body]);
        });
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 504", "{reads} {body}");
        assert!(begun.elapsed() >= NEARLY, "{reads} {body}: {:?}", begun.elapsed());
        wait_for("nothing under way", || root.front.stats().unwrap().routes["web"].active == 0);
        drop(stream);
        writing.join().unwrap();
    }
}

#[test]
fn an_upload_may_take_longer_than_an_answer() {
    let length = format!("Content-Length: {WORDS}");
    let rows: [(&str, &[u8], &[u8]); 2] =
        [(&length, b"x", b""), ("Transfer-Encoding: chunked", b"1\r\nx\r\n", b"0\r\n\r\n")];
    for (framing, word, end) in rows {
        let (mut root, backend) = (only_long("answer"), Backend::start("a"));
        let mut stream = connect(root.serve(App::Http, backend.addr));
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        drip(&mut stream, word);
        stream.write_all(end).unwrap();
        let (heard, _) = to_the_end(&mut stream);
        assert_eq!(status(&heard), 200, "{framing}: {heard}");
    }
}

#[test]
fn an_answer_that_stops_breaks_off_and_never_looks_whole() {
    let head = "HTTP/1.1 200 OK\r\n";
    for says in [
        format!("{head}Content-Length: 10\r\n\r\nhalf"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n40\r\nhalf"),
        format!("{head}\r\nhalf"),
    ] {
        let (mut root, raw) = (only("quiet"), Raw::start(says.clone(), Then::Hold));
        let mut stream = connect(root.serve(App::Http, raw.addr));
        let begun = Instant::now();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let (heard, _) = to_the_end(&mut stream);
        assert!(heard.contains("half") && !heard.contains("\r\n0\r\n"), "{says:?}: {heard}");
        assert!(begun.elapsed() >= NEARLY, "{says:?}: {:?}", begun.elapsed());
        wait_for("the upstream to be let go of", || raw.ended() == raw.opened());
    }
}

#[test]
fn a_client_that_takes_nothing_is_broken_off_and_one_that_is_slow_is_not() {
    let (mut root, backend) = (only("stall"), Backend::start("a"));
    let addr = root.serve(App::Http, backend.addr);
    let ask = b"GET /big?50000000 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
    let mut stuck = connect(addr);
    stuck.write_all(ask).unwrap();
    let mut slow = connect(addr);
    slow.write_all(ask).unwrap();
    // It takes something within every limit, for longer than one.
    let begun = Instant::now();
    let mut block = vec![0; 8 << 20];
    let mut read = 0;
    while begun.elapsed() < LIMIT * 3 {
        read += slow.read(&mut block).unwrap();
        std::thread::sleep(LIMIT / 20);
    }
    wait_for("the one that is stuck to be let go of", || {
        read += slow.read(&mut block).unwrap();
        root.front.stats().unwrap().routes["web"].active <= 1
    });
    read += slow.read_to_end(&mut Vec::new()).unwrap();
    assert!(read > 50_000_000, "{read}");
    assert!(to_the_end(&mut stuck).0.len() < 50_000_000);
}

#[test]
fn what_one_side_of_tcp_leaves_behind_is_closed() {
    // The client has said all, and the server says nothing and closes nothing.
    let mut root = only("after_client");
    let mut stream = connect(root.serve(App::Tcp, silent(false)));
    let begun = Instant::now();
    stream.write_all(b"a question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to_the_end(&mut stream).0, "");
    assert!(begun.elapsed() >= NEARLY, "{:?}", begun.elapsed());
    // The server has said all, and the client closes nothing.
    let mut root = only("after_upstream");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = root.serve(App::Tcp, listener.local_addr().unwrap());
    let mut stream = connect(addr);
    let begun = Instant::now();
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"550 good-bye").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to_the_end(&mut stream).0, "550 good-bye");
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(server.read(&mut [0; 9]).unwrap(), 0, "its half is closed in the end");
    assert!(begun.elapsed() >= NEARLY, "{:?}", begun.elapsed());
    wait_for("nothing under way", || root.front.stats().unwrap().routes["web"].active == 0);
}

#[test]
fn what_one_side_of_tcp_still_says_is_heard_for_as_long_as_it_speaks() {
    for name in ["after_client", "after_upstream"] {
        let mut root = only_long(name);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = connect(root.serve(App::Tcp, listener.local_addr().unwrap()));
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let (silent, speaks) = match name {
            "after_client" => (&mut client, &mut server),
            _ => (&mut server, &mut client),
        };
        silent.shutdown(Shutdown::Write).unwrap();
        drip(speaks, b"x");
        speaks.shutdown(Shutdown::Write).unwrap();
        assert_eq!(to_the_end(silent).0, "x".repeat(WORDS), "{name}");
    }
}
