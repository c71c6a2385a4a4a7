//! A small HTTP server of our own, so that every byte that it sends is known. Answers carry its
//! name; it remembers the ids that it answered.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) struct Backend {
    pub(crate) addr: SocketAddr,
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    name: String,
    pub(crate) served: Mutex<Vec<String>>,
    pub(crate) connections: AtomicUsize,
    /// Heads as they came in.
    pub(crate) heads: Mutex<Vec<String>>,
    open: Mutex<Vec<TcpStream>>,
    down: AtomicBool,
}

pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) fields: BTreeMap<String, String>,
}

impl Backend {
    pub(crate) fn start(name: &str) -> Self {
        Self::listen(name, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub(crate) fn listen(name: &str, listener: TcpListener) -> Self {
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            served: Mutex::default(),
            connections: AtomicUsize::new(0),
            heads: Mutex::default(),
            open: Mutex::default(),
            down: AtomicBool::new(false),
        });
        let ours = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ours.down.load(SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                ours.connections.fetch_add(1, SeqCst);
                ours.open.lock().unwrap().push(stream.try_clone().unwrap());
                let ours = ours.clone();
                std::thread::spawn(move || {
                    let closing = stream.try_clone().unwrap();
                    converse(&ours, stream);
                    let _ = closing.shutdown(Shutdown::Both);
                });
            }
        });
        Self { addr, shared }
    }

    /// Like a killed process: the port is shut and all connections are gone.
    pub(crate) fn kill(&self) {
        self.shared.down.store(true, SeqCst);
        let _ = TcpStream::connect(self.addr);
        self.close_connections();
    }

    pub(crate) fn close_connections(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    pub(crate) fn served(&self) -> Vec<String> {
        self.shared.served.lock().unwrap().clone()
    }

    pub(crate) fn last_head(&self) -> String {
        self.shared.heads.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

fn converse(shared: &Shared, mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(asked) = read_head(shared, &mut reader) {
        if answer(shared, &asked, &mut reader, &mut stream).is_none() {
            return;
        }
    }
}

pub(crate) fn read_head(shared: &Shared, reader: &mut impl BufRead) -> Option<Asked> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
        if &head[before..] == "\r\n" {
            break;
        }
    }
    shared.heads.lock().unwrap().push(head.clone());
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let fields = lines.filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_lowercase(), value.to_owned()))
    });
    Some(Asked { method, path, fields: fields.collect() })
}

/// Reads the body; its length and the sum of its bytes stand for it.
fn read_body(asked: &Asked, reader: &mut impl BufRead) -> Option<(u64, u64)> {
    let mut sum = 0_u64;
    let mut length = 0_u64;
    let mut take = |reader: &mut dyn BufRead, count: u64| -> Option<()> {
        let mut left = count;
        while left > 0 {
            let bytes = reader.fill_buf().ok()?;
            if bytes.is_empty() {
                return None;
            }
            let now = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            sum += bytes[..now].iter().map(|byte| u64::from(*byte)).sum::<u64>();
            reader.consume(now);
            left -= now as u64;
        }
        length += count;
        Some(())
    };
    if let Some(text) = asked.fields.get("content-length") {
        take(reader, text.parse().unwrap())?;
    } else if asked.fields.contains_key("transfer-encoding") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let count = u64::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
            if count == 0 {
                break;
            }
            take(reader, count)?;
            reader.read_line(&mut line).ok()?;
        }
        let mut line = String::new();
        while reader.read_line(&mut line).ok()? > 2 {
            line.clear();
        }
    }
    Some((length, sum))
}

fn answer(
    shared: &Shared,
    asked: &Asked,
    reader: &mut BufReader<TcpStream>,
    out: &mut TcpStream,
) -> Option<()> {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let number = query.parse::<u64>().unwrap_or(0);
    let name = &shared.name;
    match path {
        "/early" => {
            out.write_all(
                b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            )
            .ok()?;
            return None;
        }
        "/die" => return None,
        "/die-mid" => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
            return None;
        }
        "/upgrade" => return upgrade(name, reader, out),
        _ => {}
    }
    if asked.fields.contains_key("expect") {
        out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let (length, sum) = read_body(asked, reader)?;
    let id = asked.fields.get("x-id").cloned().unwrap_or_default();
    match path {
        "/slow" => std::thread::sleep(Duration::from_millis(number)),
        "/big" => {
            shared.served.lock().unwrap().push(id);
            return big(number, out);
        }
        "/ticks" => {
            shared.served.lock().unwrap().push(id);
            return ticks(name, number, out);
        }
        "/until-close" => {
            out.write_all(b"HTTP/1.1 200 OK\r\n\r\nall of it").ok()?;
            return None;
        }
        "/http10" => {
            out.write_all(b"HTTP/1.0 200 OK\r\n\r\nold").ok()?;
            return None;
        }
        _ => {}
    }
    let body = format!("{name} {id} {length} {sum}");
    shared.served.lock().unwrap().push(id);
    let count = body.len();
    let body = if asked.method == "HEAD" { "" } else { &body };
    let extra =
        if path == "/hop" { "Connection: x-own\r\nX-Own: 1\r\nKeep-Alive: 9\r\n" } else { "" };
    write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {count}\r\nX-By: {name}\r\n{extra}\r\n{body}")
        .ok()
}

fn big(count: u64, out: &mut TcpStream) -> Option<()> {
    write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {count}\r\n\r\n").ok()?;
    let block = [b'x'; 64 << 10];
    let mut left = count;
    while left > 0 {
        let now = usize::try_from(left.min(block.len() as u64)).unwrap();
        out.write_all(&block[..now]).ok()?;
        left -= now as u64;
    }
    Some(())
}

/// Server-sent events: `count` of them, one every 5 ms.
fn ticks(name: &str, count: u64, out: &mut TcpStream) -> Option<()> {
    out.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nTrailer: x-end\r\n\r\n").ok()?;
    for at in 0..count {
        let event = format!("data: {name} {at}\n\n");
        write!(out, "{:x}\r\n{event}\r\n", event.len()).ok()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    out.write_all(b"0\r\nx-end: yes\r\n\r\n").ok()
}

/// After 101, each line comes back with the backend's name before it.
fn upgrade(name: &str, reader: &mut BufReader<TcpStream>, out: &mut TcpStream) -> Option<()> {
    // The first line goes out in one piece with the head: it must not get lost.
    write!(out, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: lines\r\n\r\n{name} hello\n").ok()?;
    echo_lines(name, reader, out);
    None
}

pub(crate) fn echo_lines(name: &str, reader: &mut impl BufRead, out: &mut impl Write) {
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|count| count > 0) {
        if write!(out, "{name} {line}").is_err() {
            return;
        }
        line.clear();
    }
    let _ = writeln!(out, "{name} bye");
}

/// A server of lines; with `greeting` it speaks first.
pub(crate) fn lines(name: &'static str, greeting: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                if greeting && writeln!(stream, "220 {name} ready").is_err() {
                    return;
                }
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                echo_lines(name, &mut reader, &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = reader.read_to_end(&mut Vec::new());
            });
        }
    });
    addr
}
