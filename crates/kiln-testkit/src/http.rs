//! A minimal HTTP/1.1 client: keep-alive, bodies by length, in chunks, or up to the end.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header fields in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
}

impl Response {
    /// The first value of a header field; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn says_close(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// A client of one address. It keeps its connection for the next request and never tries twice.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    patience: Duration,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    /// A client that waits at most 5 s for each connect, read and write.
    pub fn new(address: impl Into<SocketAddr>) -> Self {
        let patience = Duration::from_secs(5);
        Self { address: address.into(), patience, connection: None }
    }

    /// A client of a port on 127.0.0.1.
    pub fn local(port: u16) -> Self {
        Self::new((Ipv4Addr::LOCALHOST, port))
    }

    /// Sets how long each connect, read and write may take.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Whether the connection of the last request is still open for the next.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// `GET path`.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn get(&mut self, path: &str) -> Result<Response> {
        self.request("GET", path, &[], b"")
    }

    /// Sends one request and reads its answer.
    ///
    /// # Errors
    /// If there is no complete answer; the connection is dropped then.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        let stream = connection.get_mut();
        stream.write_all(&[head.as_bytes(), body].concat()).context("sending the request")?;
        let (response, reusable) = read_response(&mut connection, method == "HEAD")?;
        self.connection = reusable.then_some(connection);
        Ok(response)
    }

    fn connect(&self) -> Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect_timeout(&self.address, self.patience)
            .with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        Ok(BufReader::new(stream))
    }
}

/// `GET path` on 127.0.0.1, over a connection of its own.
///
/// # Errors
/// If there is no complete answer within 5 s.
pub fn get(port: u16, path: &str) -> Result<Response> {
    Client::local(port).get(path)
}

/// One answer out of what was received so far, and whether the connection can carry another
/// request; `None` if more has to come.
///
/// # Errors
/// If the answer is not complete and nothing more will come, since the connection has `ended`.
pub(crate) fn parse(received: &[u8], ended: bool) -> Result<Option<(Response, bool)>> {
    if !ended && !received.windows(4).any(|window| window == b"\r\n\r\n") {
        return Ok(None);
    }
    match read_response(&mut { received }, false) {
        Ok((response, reusable)) => {
            // A body without a length is as long as the connection lives.
            let bounded = ["content-length", "transfer-encoding"];
            let whole = ended
                || matches!(response.status, 204 | 304)
                || bounded.iter().any(|name| response.header(name).is_some());
            Ok(whole.then_some((response, reusable)))
        }
        Err(error) if ended => Err(error),
        Err(_) => Ok(None),
    }
}

/// Reads one answer; also says whether the connection can carry another request.
fn read_response(reader: &mut impl BufRead, no_body: bool) -> Result<(Response, bool)> {
    let status_line = read_line(reader)?;
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("no HTTP status line: {status_line:?}"))?;
    let mut response = Response { status, headers: Vec::new(), body: Vec::new() };
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').with_context(|| format!("header {line:?}"))?;
        response.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut reusable = !response.says_close() && status_line.starts_with("HTTP/1.1");
    if no_body || matches!(status, 100..=199 | 204 | 304) {
        return Ok((response, reusable));
    }
    let length = response.header("content-length").map(str::parse::<usize>).transpose()?;
    if response.header("transfer-encoding").is_some() {
        response.body = read_chunks(reader)?;
    } else if let Some(length) = length {
        response.body = vec![0; length];
        reader.read_exact(&mut response.body).context("the body is cut short")?;
    } else {
        reader.read_to_end(&mut response.body)?;
        reusable = false;
    }
    Ok((response, reusable))
}

fn read_chunks(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(reader)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).with_context(|| format!("chunk {line:?}"))?;
        if size == 0 {
            while !read_line(reader)?.is_empty() {} // trailers
            return Ok(body);
        }
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..]).context("a chunk is cut short")?;
        if !read_line(reader)?.is_empty() {
            bail!("a chunk is longer than it says");
        }
    }
}

/// One line without its end.
fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        bail!("the connection was closed before the answer was complete");
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Response, bool)> {
        read_response(&mut text.as_bytes(), false)
    }

    #[test]
    fn bodies_of_all_three_kinds() {
        let by_length = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A: b \r\n\r\nabcTAIL";
        let (response, reusable) = read(by_length).unwrap();
        assert_eq!((response.status, response.text().as_str(), reusable), (200, "abc", true));
        assert_eq!(response.header("x-a"), Some("b"));

        let chunks =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n";
        let (response, reusable) = read(chunks).unwrap();
        assert_eq!((response.text().as_str(), reusable), ("abc", true));

        let (response, reusable) = read("HTTP/1.0 404 No\r\n\r\nabc").unwrap();
        assert_eq!((response.status, response.text().as_str(), reusable), (404, "abc", false));
    }

    #[test]
    fn an_incomplete_answer_is_an_error() {
        for text in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            "SSH-2.0\r\n\r\n",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_connection_is_kept_and_given_up_as_the_server_says() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            for extra in ["", "Connection: close\r\n"] {
                while !read_line(&mut reader).unwrap().is_empty() {}
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{extra}\r\nok");
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut client = Client::local(port);
        assert_eq!(client.get("/").unwrap().text(), "ok");
        assert!(client.is_connected());
        assert_eq!(client.get("/").unwrap().text(), "ok");
        assert!(!client.is_connected());
        server.join().unwrap();
    }
}
