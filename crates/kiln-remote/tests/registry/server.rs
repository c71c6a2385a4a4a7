//! A server that answers as a test wants, each connection in a thread of its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One request.
#[derive(Debug, Clone, Default)]
pub(super) struct Request {
    pub(super) method: String,
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

/// Ends with the value; what still hangs is cut off.
pub(super) struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<Request>>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    end: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// One connection carries one request; after `answer` it is closed.
    pub(super) fn start(
        answer: impl Fn(&Request, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, open, end): (Arc<Mutex<Vec<Request>>>, Arc<Mutex<Vec<TcpStream>>>, _) =
            (Arc::default(), Arc::default(), Arc::new(AtomicBool::new(false)));
        let answer: Arc<Answer> = Arc::new(answer);
        let own = (Arc::clone(&asked), Arc::clone(&open), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if own.2.load(Ordering::Acquire) {
                    return;
                }
                own.1.lock().unwrap().push(stream.try_clone().unwrap());
                let (answer, asked) = (Arc::clone(&answer), Arc::clone(&own.0));
                std::thread::spawn(move || {
                    // Whoever hangs up early is none of the server's business.
                    let _ = serve(stream, &asked, &*answer);
                });
            }
        });
        Self { port, asked, open, end, thread: Some(thread) }
    }

    pub(super) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Everything that was asked in HTTP.
    pub(super) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.open.lock().unwrap().iter() {
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
    let mut words = line.split(' ').map(str::to_owned);
    let mut request = Request {
        method: words.next().unwrap_or_default(),
        target: words.next().unwrap_or_default(),
        ..Request::default()
    };
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
