//! A client that sends and reads exactly what a test says.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub(crate) struct Client {
    pub(crate) stream: BufReader<TcpStream>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn get(&mut self, path: &str, id: &str) -> io::Result<Answer> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: test\r\nX-Id: {id}\r\n\r\n"))?;
        self.read_answer()
    }

    pub(crate) fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes())
    }

    /// Sends `text` and reads an answer.
    pub(crate) fn ask(&mut self, text: &str) -> Answer {
        self.send(text).unwrap();
        self.read_answer().unwrap()
    }

    pub(crate) fn read_answer(&mut self) -> io::Result<Answer> {
        let (status, fields) = self.read_head()?;
        let body = self.read_body(&fields)?;
        Ok(Answer { status, fields, body })
    }

    pub(crate) fn read_head(&mut self) -> io::Result<(u16, BTreeMap<String, String>)> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status: {first:?}")))?;
        let mut fields = BTreeMap::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, fields));
            }
            if let Some((name, value)) = line.split_once(": ") {
                fields.insert(name.to_lowercase(), value.to_owned());
            }
        }
    }

    fn read_body(&mut self, fields: &BTreeMap<String, String>) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if let Some(length) = fields.get("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.stream.read_exact(&mut body)?;
        } else if fields.contains_key("transfer-encoding") {
            while let Some(chunk) = self.chunk()? {
                body.extend(chunk);
            }
        }
        Ok(body)
    }

    /// The next chunk; after the last one, `None`.
    pub(crate) fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let size = self.line()?;
        let size = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size];
        self.stream.read_exact(&mut chunk)?;
        if size > 0 {
            self.line()?;
            return Ok(Some(chunk));
        }
        while !self.line()?.is_empty() {}
        Ok(None)
    }

    pub(crate) fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Whether the other side has closed: everything else has been read.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.stream.fill_buf(), Ok(bytes) if bytes.is_empty())
            || self
                .stream
                .fill_buf()
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    }
}
