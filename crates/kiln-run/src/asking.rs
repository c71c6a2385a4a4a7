//! The asking end of a shim's control socket. Every question has a deadline, and connecting does
//! not wait at all: a shim that was stopped must not stop whoever asks.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::cgroup::timespec;
use crate::shim::control::{Reply, Request, SOCKET};

/// How long a shim may take for an answer that it has at hand.
pub(crate) const ANSWER: Duration = Duration::from_secs(2);
/// Bytes of one answer; a longer one is not one of ours.
const LONGEST: usize = 4 << 10;

/// What asking came to.
#[derive(Debug)]
pub(crate) enum Heard {
    /// An answer.
    Reply(Reply),
    /// Nobody listens, or who did has hung up without a word.
    Nobody,
    /// It could not be asked, or no answer came that makes sense; why.
    Unclear(String),
}

/// A conversation with one shim.
#[derive(Debug)]
pub(crate) struct Line {
    socket: UnixStream,
    said: Vec<u8>,
}

impl Line {
    /// Begins one with the shim of the instance in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, Heard> {
        match connect_to(dir) {
            Ok(socket) => Ok(Self { socket: socket.into(), said: Vec::new() }),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Err(Heard::Nobody),
            // Its queue is full: it takes no calls any more.
            Err(Errno::AGAIN) => Err(Heard::Unclear("its shim takes no calls".to_owned())),
            Err(error) => Err(Heard::Unclear(format!("its shim cannot be called: {error}"))),
        }
    }

    /// Asks. A question always fits into the socket.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<(), Heard> {
        let unclear = |error: io::Error| Heard::Unclear(format!("asking its shim: {error}"));
        let mut line = serde_json::to_vec(request).map_err(|error| unclear(error.into()))?;
        line.push(b'\n');
        match self.socket.write_all(&line) {
            Err(error) if gone(&error) => Err(Heard::Nobody),
            asked => asked.map_err(unclear),
        }
    }

    /// The next answer, for which it has until `deadline`.
    pub(crate) fn hear(&mut self, deadline: Instant) -> Heard {
        loop {
            if let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.said.drain(..=end).collect();
                return serde_json::from_slice(&line).map_or_else(
                    |_| {
                        let text: String =
                            String::from_utf8_lossy(&line).chars().take(80).collect();
                        Heard::Unclear(format!("its shim answers {:?}", text.trim()))
                    },
                    Heard::Reply,
                );
            }
            if self.said.len() > LONGEST {
                return Heard::Unclear("its shim answers without end".to_owned());
            }
            let mut buffer = [0; 1 << 10];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Heard::Nobody,
                Ok(length) => self.said.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Heard::Unclear("its shim does not answer".to_owned());
                    }
                    let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
                    let _ = poll(&mut fds, Some(&timespec(left)));
                }
                Err(error) if gone(&error) => return Heard::Nobody,
                Err(error) => return Heard::Unclear(format!("hearing its shim: {error}")),
            }
        }
    }
}

impl AsFd for Line {
    /// For `poll`: readable with the next answer, and when the shim hangs up.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

fn connect_to(dir: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(CWD, dir, flags, Mode::empty())?;
    // The path of a socket may have 107 bytes, a root's path more.
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn ask(dir: &Path, limit: Duration) -> Heard {
        Line::open(dir)
            .and_then(|mut line| line.ask(&Request::Status).map(|()| line))
            .map_or_else(|heard| heard, |mut line| line.hear(Instant::now() + limit))
    }

    #[test]
    fn silence_is_not_absence() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(ask(dir.path(), ANSWER), Heard::Nobody), "there is no socket");
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let begun = Instant::now();
        // Nobody takes the calls of a shim that was stopped; after some its queue is full.
        let mut lines = Vec::new();
        let full = loop {
            match Line::open(dir.path()) {
                Ok(line) => lines.push(line),
                Err(heard) => break heard,
            }
        };
        assert!(matches!(full, Heard::Unclear(_)), "{full:?}");
        let mut first = lines.swap_remove(0);
        drop(lines);
        first.ask(&Request::Status).unwrap();
        let silent = first.hear(Instant::now() + Duration::from_millis(20));
        assert!(matches!(silent, Heard::Unclear(_)), "{silent:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        drop(listener);
        assert!(matches!(first.hear(Instant::now() + ANSWER), Heard::Nobody), "it hung up");
        assert!(matches!(ask(dir.path(), ANSWER), Heard::Nobody), "nobody listens");
    }

    #[test]
    fn nonsense_is_unclear() {
        for (said, hint) in [(b"{}\n".to_vec(), "answers \"{}\""), (vec![b'x'; 9 << 10], "end")] {
            let dir = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
            let answering = std::thread::spawn(move || {
                let (mut client, _) = listener.accept().unwrap();
                let _ = client.write_all(&said);
                let _ = client.read(&mut [0; 64]);
            });
            match ask(dir.path(), Duration::from_secs(20)) {
                Heard::Unclear(why) => assert!(why.contains(hint), "{why}"),
                other => panic!("{other:?}"),
            }
            answering.join().unwrap();
        }
    }
}
