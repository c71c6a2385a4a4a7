//! Requests and answers of strangers, byte for byte: what is refused, and what the other side got
//! to see.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use kiln_front::{App, Route};

use crate::raw::{Raw, Then, hear, outside, say, status};
use crate::root::{Root, route, wait_for};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

fn everywhere(id: &str, app: App, upstream: SocketAddr) -> Route {
    let listen = vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))];
    Route { listen, ..route(id, app, upstream) }
}

#[test]
fn requests_that_two_could_read_differently_reach_nobody() {
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    let long = "a".repeat(70 << 10);
    let rows: Vec<(&str, String, u16)> = vec![
        (
            "length, then coding",
            format!("{post}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX"),
            400,
        ),
        (
            "coding, then length",
            format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\n{NEXT}"),
            400,
        ),
        (
            "two codings",
            format!(
                "{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"
            ),
            400,
        ),
        (
            "a coding nobody knows",
            format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{NEXT}"),
            400,
        ),
        (
            "chunked not last",
            format!("{post}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
            400,
        ),
        ("other codings", format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 501),
        (
            "coding by tab",
            format!("{post}Transfer-Encoding:\tchunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"),
            400,
        ),
        ("coding, folded", format!("{post}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"), 400),
        (
            "coding before the colon",
            format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        ("coding, underscored", format!("{post}Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        (
            "coding in HTTP/1.0",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            400,
        ),
        ("two lengths", format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 400),
        ("length with a sign", format!("{post}Content-Length: +1\r\n\r\na"), 400),
        ("length of no number", format!("{post}Content-Length: 1a\r\n\r\na"), 400),
        ("length beyond all", format!("{post}Content-Length: 99999999999999999999\r\n\r\na"), 400),
        (
            "giant chunk",
            format!("{post}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"),
            400,
        ),
        (
            "chunk size by LF",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n"),
            400,
        ),
        (
            "chunk without an end",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n"),
            400,
        ),
        (
            "chunk extension with LF",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n"),
            400,
        ),
        (
            "chunk size 0x",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n"),
            400,
        ),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), 400),
        ("a list of hosts", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".into(), 400),
        ("obs-fold", "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n".into(), 400),
        ("fold first", "GET / HTTP/1.1\r\n Host: a\r\n\r\n".into(), 400),
        ("bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n".into(), 400),
        ("bare CR for an end", "GET / HTTP/1.1\rHost: a\r\n\r\n".into(), 400),
        ("NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: b\0\r\n\r\n".into(), 400),
        ("NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n".into(), 400),
        ("no name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n".into(), 400),
        ("no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n".into(), 400),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("a word too many", "GET / b HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("no version", "GET /\r\nHost: a\r\n\r\n".into(), 400),
        ("another version", "GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), 400),
        ("absolute, other scheme", "GET gopher://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("absolute with a user", "GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("CONNECT", "CONNECT a:25 HTTP/1.1\r\nHost: a:25\r\n\r\n".into(), 405),
        ("a long head", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), 431),
        ("nonsense", "\u{1}\u{2}nonsense\r\n\r\n".into(), 400),
        (
            "a PROXY line",
            "PROXY TCP4 6.6.6.6 1.1.1.1 1 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            400,
        ),
    ];
    for app in [App::Http, App::Auto] {
        let (mut root, raw) = (Root::new(), Raw::start(OK, Then::Keep));
        let addr = root.serve(app, raw.addr);
        assert_eq!(status(&say(addr, b"GET /known HTTP/1.1\r\nHost: a\r\n\r\n")), 200);
        for (name, text, expected) in &rows {
            let heard = say(addr, format!("{text}{NEXT}").as_bytes());
            assert_eq!(status(&heard), *expected, "{name}: {heard}");
            assert_eq!(heard.matches("HTTP/1.1 ").count(), 1, "{name}: one answer, then the end");
            assert!(heard.contains("\r\nConnection: close\r\n"), "{name}: {heard}");
        }
        let seen = raw.seen();
        assert!(!seen.contains("smuggled"), "{seen}");
        // Bodies that went wrong half-way had begun; nothing else got there.
        let begun =
            rows.iter().filter(|(name, ..)| name.contains("chunk ") || *name == "giant chunk");
        assert!(seen.matches(" HTTP/1.1\r\n").count() <= 1 + begun.count(), "{seen}");
    }
}

#[test]
fn what_is_unusual_and_clear_gets_there_once_and_clean() {
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let rows = [
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "GET / HTTP/1.1\r\nHost: a\r\n"),
        ("GET / HTTP/1.1\nHost: a\n\n".into(), "GET / HTTP/1.1\r\nHost: a\r\n"),
        ("GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n".into(), "GET /x HTTP/1.1\r\nHost: b\r\n"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".into(), "OPTIONS * HTTP/1.1\r\n"),
        ("get / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "get / HTTP/1.1\r\n"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nhi".into(), "Content-Length: 2\r\n"),
        (format!("{chunked}1;x=y\r\na\r\n001\r\nb\r\n0;z\r\nX-Sum: 9\r\nX_Forwarded_For: 6.6.6.6\r\n\r\n"),
            "\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\nX-Sum: 9\r\n\r\n"),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n".into(),
            "X-Forwarded-Host: a\r\n\r\n"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(2000)), "A: b\r\n"),
    ];
    for (text, expected) in rows {
        let (mut root, raw) = (Root::new(), Raw::start(OK, Then::Keep));
        let addr = root.serve(App::Http, raw.addr);
        let heard = say(addr, text.as_bytes());
        let seen = raw.seen();
        assert_eq!(status(&heard), 200, "{text:?}: {heard}");
        assert!(seen.contains(expected), "{text:?}: {seen}");
        assert!(!seen.contains("h2c") && !seen.contains("6.6.6.6"), "{seen}");
        assert_eq!(seen.matches(" HTTP/1.1\r\n").count(), 1, "{seen}");
    }
}

#[test]
fn nobody_says_who_he_is_however_he_begins() {
    let claims = "X-Forwarded-For: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nx-FORWARDED_proto: 6.6.6.6\r\n\
                  X.Forwarded.Host: 6.6.6.6\r\nX-Forwarded-Port: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
                  X-Real-IP: 6.6.6.6\r\nx_real_ip: 6.6.6.6\r\n";
    let openings = [
        "GET / HTTP/1.1\r\n",
        "\r\nGET / HTTP/1.1\r\n",
        "\n\nGET / HTTP/1.1\r\n",
        "get / HTTP/1.1\r\n",
        "GET  / HTTP/1.1\r\n",
        " GET / HTTP/1.1\r\n",
        "GET\t/ HTTP/1.1\r\n",
        "GET / HTTP/1.1 \r\n",
        "GET / http/1.1\r\n",
        "GET / HTTP/1.9\r\n",
        "GET / HTTP/2.0\r\n",
        "\0GET / HTTP/1.1\r\n",
        "XYZ\r\nGET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\n",
        "PRI * HTTP/2.0\r\n",
        "POST / HTTP/1.0\r\n",
    ];
    let host = outside();
    for known in [true, false] {
        for opening in openings {
            let (mut root, raw) = (Root::new(), Raw::start(OK, Then::Keep));
            let port = root.apply(vec![everywhere("web", App::Auto, raw.addr)])[0].port();
            let addr = SocketAddr::from((host, port));
            if known {
                assert_eq!(status(&say(addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")), 200);
            }
            let heard = say(addr, format!("{opening}Host: a\r\n{claims}\r\n").as_bytes());
            let seen = raw.seen();
            assert!(matches!(status(&heard), 200 | 400), "{opening:?} {known}: {heard}");
            assert!(!seen.contains("6.6.6.6"), "{opening:?}, known: {known}: {seen}");
        }
    }
}

#[test]
fn a_request_line_that_comes_late_is_no_way_around() {
    let host = outside();
    for known in [true, false] {
        let (mut root, raw) = (Root::new(), Raw::start(OK, Then::Keep));
        let port = root.apply(vec![everywhere("web", App::Auto, raw.addr)])[0].port();
        let addr = SocketAddr::from((host, port));
        if known {
            assert_eq!(status(&say(addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")), 200);
        }
        let late: Vec<_> = ["GET / HT", "G", "GET", "\r\n"]
            .into_iter()
            .map(|begin| {
                let mut stream = TcpStream::connect(addr).unwrap();
                stream.write_all(begin.as_bytes()).unwrap();
                (begin, stream)
            })
            .collect();
        // Longer than words of which it is not clear what they are wait to be taken for bytes.
        std::thread::sleep(Duration::from_millis(1500));
        for (begin, mut stream) in late {
            let rest = "\r\nGET / HTTP/1.1\r\n"
                .strip_prefix(begin)
                .or_else(|| "GET / HTTP/1.1\r\n".strip_prefix(begin))
                .unwrap();
            let text = format!("{rest}Host: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n");
            stream.write_all(text.as_bytes()).unwrap();
            let heard = hear(&mut stream);
            let fine = if known || begin.contains('/') { 200..=200 } else { 200..=400 };
            assert!(fine.contains(&status(&heard)), "{begin:?}, known: {known}: {heard}");
        }
        assert!(!raw.seen().contains("6.6.6.6"), "known: {known}: {}", raw.seen());
    }
}

#[test]
fn what_was_read_as_bytes_and_answered_as_http_is_not_answered() {
    let host = outside();
    let (mut root, raw) = (Root::new(), Raw::start(OK, Then::Keep));
    let port = root.apply(vec![everywhere("web", App::Auto, raw.addr)])[0].port();
    let addr = SocketAddr::from((host, port));
    // A line that is no request; only then something that a lenient server takes for one.
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(b"\x01\x02\x03").unwrap();
    wait_for("it to be read as bytes", || raw.seen().starts_with("\u{1}\u{2}\u{3}"));
    stream.write_all(b"GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n").unwrap();
    assert_eq!(status(&hear(&mut stream)), 400);
    // From then on it is known, for this worker and the next.
    assert_eq!(status(&say(addr, b"\x01\x02\x03\r\n\r\n")), 400);
}

#[test]
fn answers_are_framed_by_the_standard() {
    let head = "HTTP/1.1 200 OK\r\n";
    let fields = "Set-Cookie: a=b\r\n".repeat(500);
    // What the upstream says; the status and the end of what the client hears.
    let rows: Vec<(String, u16, &str)> = vec![
        (format!("{head}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), 200, "\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        (format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), 200, "\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        (format!("{head}Content-Length: 5, 5\r\n\r\nhello"), 200, "Content-Length: 5\r\n\r\nhello"),
        (format!("{head}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"), 200, "Content-Length: 5\r\n\r\nhello"),
        (format!("{head}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), 502, ""),
        (format!("{head}Transfer-Encoding: gzip\r\n\r\nhello"), 502, ""),
        (format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 502, ""),
        (format!("{head}Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n0\r\nX-Sum: 1\r\n\r\n"), 200, "\r\n\r\n0\r\nX-Sum: 1\r\n\r\n"),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n"), 200, "\r\n\r\n0\r\nX-Sum: 1\r\n\r\n"),
        (format!("{head}{fields}Content-Length: 2\r\n\r\nok"), 200, "\r\n\r\nok"),
        (format!("{head}X: a\r\n b\r\nContent-Length: 2\r\n\r\nok"), 200, "\r\n\r\nok"),
        (format!("{head}X: a\0b\r\nContent-Length: 2\r\n\r\nok"), 502, ""),
        (format!("{head}no colon\r\nContent-Length: 2\r\n\r\nok"), 502, ""),
        ("SSH-2.0-OpenSSH\r\n\r\n".into(), 502, ""),
        ("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into(), 103, "\r\n\r\nok"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".into(), 502, ""),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n".into(), 204, "\r\n\r\n"),
        ("HTTP/1.0 200 OK\r\n\r\nold".into(), 200, "3\r\nold\r\n0\r\n\r\n"),
    ];
    for (says, expected, end) in rows {
        let (mut root, raw) = (Root::new(), Raw::start(says.clone(), Then::Close));
        let addr = root.serve(App::Http, raw.addr);
        let heard = say(addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(status(&heard), expected, "{says:?}: {heard}");
        assert!(heard.ends_with(end), "{says:?}: {heard}");
        if heard.contains("Transfer-Encoding") {
            assert!(!heard.contains("Content-Length"), "{heard}");
        }
    }
}

#[test]
fn answers_that_break_off_never_look_whole() {
    let head = "HTTP/1.1 200 OK\r\n";
    for (says, version) in [
        (format!("{head}Content-Length: 10\r\n\r\nhalf"), "1.1"),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"), "1.1"),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\nhalf\r\n0\r\n\r\n"), "1.1"),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"), "1.0"),
    ] {
        let (mut root, raw) = (Root::new(), Raw::start(says.clone(), Then::Close));
        let addr = root.serve(App::Http, raw.addr);
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
        let mut heard = Vec::new();
        let ended = std::io::Read::read_to_end(&mut stream, &mut heard);
        let text = String::from_utf8_lossy(&heard);
        assert!(!text.contains("\r\n0\r\n"), "{says:?}: {text}");
        // Without a length or chunks only the way it ends can tell.
        assert!(version == "1.1" || ended.is_err(), "{says:?}: {text}");
    }
}

#[test]
fn an_upstream_that_waits_for_the_rest_of_a_request_gets_no_other_one() {
    let says = "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno";
    let rows = [
        // What the client sends of its body, and connections for it and the next request.
        ("Content-Length: 4\r\n\r\npart", 1),
        ("Content-Length: 100\r\n\r\npart", 2),
        ("Content-Length: 100\r\nExpect: 100-continue\r\n\r\n", 2),
        ("Transfer-Encoding: chunked\r\n\r\n40\r\npart", 2),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n", 2),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n0\r\n", 2),
    ];
    for (body, connections) in rows {
        let (mut root, raw) = (Root::new(), Raw::start(says, Then::Keep));
        let addr = root.serve(App::Http, raw.addr);
        let heard = say(addr, format!("POST / HTTP/1.1\r\nHost: a\r\n{body}").as_bytes());
        assert_eq!(status(&heard), 413, "{body:?}: {heard}");
        // So that the next one comes to the same core.
        wait_for("the client's end", || root.front.stats().unwrap().connections == 0);
        let heard = say(addr, b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(status(&heard), 413, "{body:?}: {heard}");
        assert_eq!(raw.opened(), connections, "{body:?}: {}", raw.seen());
    }
}

/// Of all threads of a process: proc_pid_stat(5), in the usual hundredths of a second.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let words: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = words[11..13].iter().map(|word| word.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

#[test]
fn no_head_costs_more_than_its_length() {
    let words = "a,".repeat(16_000);
    let (fields, answered) = ("b:\n".repeat(10_000), "b:\n".repeat(30_000));
    let rows = [
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {words}\r\n{fields}\r\n"),
            OK.to_owned(),
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            OK.replace("\r\n\r\n", &format!("\r\nConnection: {words}\r\n{answered}\r\n")),
        ),
    ];
    for (asked, says) in rows {
        let (mut root, raw) = (Root::new(), Raw::start(says, Then::Keep));
        let addr = root.serve(App::Http, raw.addr);
        let pid = root.front.ping().unwrap().pid;
        let before = processor_time(pid);
        let mut client = TcpStream::connect(addr).unwrap();
        client.write_all(asked.as_bytes()).unwrap();
        let mut first = [0; 12];
        client.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200", "{}", &asked[..40]);
        // Each word held against each field took 2.7 s here.
        let spent = processor_time(pid) - before;
        assert!(spent < Duration::from_secs(1), "{spent:?}");
    }
}

#[test]
fn empty_lines_without_end_cost_nobody_else_anything() {
    for app in [App::Http, App::Auto] {
        let (mut root, raw) = (Root::new(), Raw::start(OK, Then::Keep));
        let addr = root.serve(app, raw.addr);
        let pid = root.front.ping().unwrap().pid;
        let over = Arc::new(AtomicBool::new(false));
        // More than there are cores, each of which serves its connections in turns.
        let count = std::thread::available_parallelism().map_or(2, usize::from) * 2;
        let floods: Vec<_> = (0..count)
            .map(|_| {
                let over = over.clone();
                std::thread::spawn(move || {
                    let lines = b"\r\n".repeat(32 << 10);
                    while !over.load(SeqCst) {
                        let Ok(mut stream) = TcpStream::connect(addr) else { continue };
                        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
                        while !over.load(SeqCst) && stream.write_all(&lines).is_ok() {}
                    }
                })
            })
            .collect();
        wait_for("a flood", || root.front.stats().unwrap().connections > 0);
        for _ in 0..20 {
            let heard = say(addr, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            assert_eq!(status(&heard), 200, "{app:?}: {heard:?}");
        }
        over.store(true, SeqCst);
        floods.into_iter().for_each(|flood| flood.join().unwrap());
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak < 40 << 10, "{app:?}: peak of {peak} kB");
    }
}

#[test]
fn requests_one_behind_the_other_leave_others_their_share() {
    // Nothing stands behind the route, so nothing is waited for between one page and the next.
    let (mut root, raw) = (Root::new(), Raw::start(OK, Then::Keep));
    let addr = root.serve(App::Http, raw.addr);
    let nothing = Route { upstream: None, ..route("web", App::Http, raw.addr) };
    root.apply(vec![nothing]);
    let over = Arc::new(AtomicBool::new(false));
    let count = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    let floods: Vec<_> = (0..count)
        .map(|_| {
            let over = over.clone();
            std::thread::spawn(move || {
                let asked = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
                let mut stream = TcpStream::connect(addr).unwrap();
                let mut reader = stream.try_clone().unwrap();
                let reading =
                    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
                while !over.load(SeqCst) && stream.write_all(&asked).is_ok() {}
                let _ = stream.shutdown(std::net::Shutdown::Both);
                let _ = reading.join();
            })
        })
        .collect();
    wait_for("a flood", || root.front.stats().unwrap().routes["web"].errors > 1000);
    for _ in 0..20 {
        let heard = say(addr, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&heard), 503, "{heard:?}");
    }
    over.store(true, SeqCst);
    floods.into_iter().for_each(|flood| flood.join().unwrap());
}
