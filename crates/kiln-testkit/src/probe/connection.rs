//! One connection of a prober, never waiting.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::http::{self, Response};

/// Where a request on a connection stands.
#[derive(Debug)]
pub(super) enum Progress {
    /// More is to come.
    Waiting,
    /// Its answer is complete; the flag says whether the connection can carry another.
    Answered(Response, bool),
    /// It can never be answered.
    Failed(String),
    /// No request was under way, and the connection is still good.
    Idle,
    /// No request was under way, and the server closed the connection.
    Closed,
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    unsent: Vec<u8>,
    received: Vec<u8>,
    /// Index of the request under way.
    pub(super) request: Option<usize>,
}

impl Connection {
    /// Begins to connect.
    pub(super) fn open(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        Ok(Self { stream, unsent: Vec::new(), received: Vec::new(), request: None })
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Puts a request under way. The bytes go out as far as they can; [`Connection::advance`]
    /// does the rest and tells of failures.
    pub(super) fn ask(&mut self, request: usize, bytes: &[u8]) {
        self.request = Some(request);
        self.unsent.extend_from_slice(bytes);
    }

    /// Sends and receives what can be without waiting.
    pub(super) fn advance(&mut self) -> Progress {
        match self.send() {
            Ok(true) => {}
            Ok(false) => return Progress::Waiting,
            Err(error) => return Progress::Failed(describe("sending", &error)),
        }
        let received = self.receive();
        if self.request.is_none() {
            // Whatever comes unasked makes the connection useless.
            let good = matches!(received, Ok(false)) && self.received.is_empty();
            return if good { Progress::Idle } else { Progress::Closed };
        }
        let ended = match received {
            Ok(ended) => ended,
            Err(error) => return Progress::Failed(describe("receiving", &error)),
        };
        match http::parse(&self.received, ended) {
            Ok(Some((response, reusable))) => {
                self.received.clear();
                self.request = None;
                Progress::Answered(response, reusable && !ended)
            }
            Ok(None) => Progress::Waiting,
            Err(error) => Progress::Failed(format!("{error:#}")),
        }
    }

    /// Whether all is sent.
    fn send(&mut self) -> io::Result<bool> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether the server has sent its last byte.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The kind is enough: the same failure has to read the same, to be counted together.
fn describe(doing: &str, error: &io::Error) -> String {
    format!("{doing}: {}", error.kind())
}
