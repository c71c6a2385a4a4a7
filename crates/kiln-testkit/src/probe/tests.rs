use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::wait::wait_until;

/// Answers each connection on a thread; the closure says what to send for the nth request, and
/// whether to close afterwards.
fn server(answer: impl Fn(usize) -> (Vec<u8>, bool) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    let count = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
            std::thread::spawn(move || serve(stream, &*answer, &count));
        }
    });
    port
}

fn serve(stream: TcpStream, answer: &dyn Fn(usize) -> (Vec<u8>, bool), count: &AtomicUsize) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
        if line == "\r\n" {
            let (bytes, close) = answer(count.fetch_add(1, Ordering::SeqCst));
            if close {
                // The answer and the end arrive together: a request in between is lost, and rightly.
                rustix::net::sockopt::set_tcp_cork(reader.get_ref(), true).unwrap();
            }
            if reader.get_mut().write_all(&bytes).is_err() || close {
                return;
            }
        }
        line.clear();
    }
}

fn ok(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
}

/// Runs a prober until the condition holds that `done` sees on a shared count.
fn probe_until(probe: Probe, seen: &AtomicUsize, requests: usize) -> Report {
    let probing = probe.start();
    wait_until(Duration::from_secs(20), "enough requests", || {
        (seen.load(Ordering::SeqCst) >= requests).then_some(())
    });
    probing.stop().unwrap()
}

#[test]
fn keeps_connections_and_loses_nothing() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let port = server(move |n| {
        count.store(n + 1, Ordering::SeqCst);
        (ok(if n < 200 { "old" } else { "new" }), false)
    });
    let report = probe_until(Probe::local(port, 1_000), &seen, 400).expect_no_loss();
    assert!(report.requests() >= 400 && report.connections < 100, "{report}");
    assert!(report.moved_once("old", "new") && !report.moved_once("new", "old"));
    assert!(report.quantile(0.5) <= report.quantile(0.99));
}

#[test]
fn a_server_that_closes_after_each_answer_costs_nothing() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let port = server(move |n| {
        count.store(n + 1, Ordering::SeqCst);
        (ok("x"), true)
    });
    let report = probe_until(Probe::local(port, 500), &seen, 100).expect_no_loss();
    assert!(report.connections >= 100, "{report}");
}

#[test]
fn counts_what_is_cut_wrong_or_late() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let port = server(move |n| {
        count.store(n + 1, Ordering::SeqCst);
        match n {
            10 => (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut".to_vec(), true),
            20 => (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_vec(), false),
            30 => (Vec::new(), false), // never answered
            _ => (ok("x"), false),
        }
    });
    let probe = Probe::local(port, 500).patience(Duration::from_millis(500));
    let report = probe_until(probe, &seen, 100);
    let whys: Vec<&str> = report.losses.iter().map(|loss| loss.why.as_str()).collect();
    assert_eq!(whys.len(), 3, "{report}");
    for part in ["cut short", "status 503", "no answer within 500ms"] {
        assert!(whys.iter().any(|why| why.contains(part)), "{part}: {report}");
    }
}

#[test]
fn a_closed_port_loses_every_request() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let probing = Probe::local(port, 200).start();
    let deadline = std::time::Instant::now() + Duration::from_millis(100);
    wait_until(Duration::from_secs(5), "the clock", || {
        (std::time::Instant::now() > deadline).then_some(())
    });
    let report = probing.stop().unwrap();
    assert!(report.answers.is_empty() && report.losses.len() >= 10, "{report}");
    assert!(report.losses.iter().all(|loss| loss.why.contains("refused")), "{report}");
}
