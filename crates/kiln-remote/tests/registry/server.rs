//! A server that answers as a test wants, each connection in a thread of its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One request.
#[derive(Debug, Clone, Default)]
pub(super) struct Request {
    /// Method and address: `GET /v2/`.
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

type Answer = dyn Fn(&Request, &mut TcpStream) -> std::io::Result<()> + Send + Sync;

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Request>>,
    open: Mutex<Vec<TcpStream>>,
    end: AtomicBool,
}

/// Ends with the value; what still hangs is cut off.
pub(super) struct Server {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// One connection carries one request; after `answer` it is closed.
    pub(super) fn start(
        answer: impl Fn(&Request, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let answer: Arc<Answer> = Arc::new(answer);
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if own.end.load(Ordering::Acquire) {
                    return;
                }
                own.open.lock().unwrap().push(stream.try_clone().unwrap());
                let (answer, own) = (Arc::clone(&answer), Arc::clone(&own));
                std::thread::spawn(move || {
                    // Whoever hangs up early is none of the server's business.
                    let _ = serve(stream, &own.asked, &*answer);
                });
            }
        });
        Self { port, shared, thread: Some(thread) }
    }

    pub(super) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Everything that was asked in HTTP.
    pub(super) fn asked(&self) -> Vec<Request> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.shared.open.lock().unwrap().iter() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(stream: TcpStream, asked: &Mutex<Vec<Request>>, answer: &Answer) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let mut first = [0; 1];
    // TLS begins with a 22: it is not spoken here.
    if stream.peek(&mut first)? == 0 || first[0] == 22 {
        return stream.shutdown(std::net::Shutdown::Both);
    }
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let target = line.rsplit_once(' ').unwrap_or_default().0.to_owned();
    let mut request = Request { target, ..Request::default() };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(':') {
            request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; usize::min(length, 1 << 16)];
    reader.read_exact(&mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    asked.lock().unwrap().push(request.clone());
    let mut stream = stream;
    answer(&request, &mut stream)?;
    stream.flush()?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// A whole answer.
pub(super) fn send(
    stream: &mut TcpStream,
    status: &str,
    headers: &[&str],
    body: &[u8],
) -> std::io::Result<()> {
    let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n"
    )?;
    stream.write_all(body)
}
