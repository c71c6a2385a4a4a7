//! A back end and a client of bare bytes: what is sent is what the test says, and everything that
//! comes in is kept.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Answers every head that comes in with the same bytes.
pub(crate) struct Raw {
    pub(crate) addr: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicUsize>,
    opened: Arc<AtomicUsize>,
}

/// What it does after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Waits for the next head.
    Keep,
    /// Closes.
    Close,
    /// Says nothing more, and waits for the other side to close.
    Hold,
}

impl Raw {
    pub(crate) fn start(answer: impl Into<Vec<u8>>, then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let answer: Arc<[u8]> = answer.into().into();
        let (seen, ended, opened) = <(Arc<Mutex<Vec<u8>>>, Arc<_>, Arc<AtomicUsize>)>::default();
        let raw = Self { addr, seen: seen.clone(), ended, opened };
        let (ended, opened) = (raw.ended.clone(), raw.opened.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                opened.fetch_add(1, SeqCst);
                let (answer, seen, ended) = (answer.clone(), seen.clone(), ended.clone());
                std::thread::spawn(move || {
                    converse(stream, &answer, then, &seen);
                    ended.fetch_add(1, SeqCst);
                });
            }
        });
        raw
    }

    /// Everything that came in, of all connections.
    pub(crate) fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Connections that the other side has closed.
    pub(crate) fn ended(&self) -> usize {
        self.ended.load(SeqCst)
    }

    pub(crate) fn opened(&self) -> usize {
        self.opened.load(SeqCst)
    }
}

fn converse(mut stream: TcpStream, answer: &[u8], then: Then, seen: &Mutex<Vec<u8>>) {
    let mut heads = Vec::new();
    let mut block = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut block) {
        seen.lock().unwrap().extend_from_slice(&block[..count]);
        heads.extend_from_slice(&block[..count]);
        while let Some(at) = heads.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            heads.drain(..at + 4);
            if stream.write_all(answer).is_err() {
                return;
            }
            if then == Then::Close {
                let _ = stream.shutdown(Shutdown::Write);
                // What still comes is read, so that the answer is not lost.
                let _ = stream.read_to_end(&mut Vec::new());
                return;
            }
        }
    }
}

/// Sends `bytes` and gives everything that comes back until the other side closes, or is silent
/// for a moment after its first word.
pub(crate) fn say(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    // The front may have answered and closed before the last byte was sent.
    let _ = stream.write_all(bytes);
    hear(&mut stream)
}

pub(crate) fn hear(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut heard = Vec::new();
    let mut block = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut block) {
        stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        heard.extend_from_slice(&block[..count]);
    }
    String::from_utf8_lossy(&heard).into_owned()
}

/// The status of the first answer.
pub(crate) fn status(answer: &str) -> u16 {
    let code = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// An address of this machine that is not loopback: from there a client counts as a stranger.
pub(crate) fn outside() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").expect("a machine with a network: strangers come from there");
    socket.local_addr().unwrap().ip()
}
