//! The line between minder and worker: a `SOCK_SEQPACKET` pair over which listening sockets
//! travel, so that a worker's death closes none of them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    bind, connect, listen, recvmsg, sendmsg, socket_with, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::listener::Key;
use crate::paths::short;

/// Longest message in bytes: a key holds one route id.
const MESSAGE_LIMIT: usize = 16 << 10;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// Keep the socket that comes with this.
    Add(Key),
    /// Close the socket of that key.
    Drop(Key),
    /// Every kept socket has been sent: start.
    Go,
    /// Start another worker and give it the sockets; this one is about to leave.
    Upgrade,
    /// The worker leaves because it was asked to: leave too.
    Bye,
}

/// A new line: the minder's end and the worker's.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Listens for a new minder at `path`, replacing what was there.
pub(crate) fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = new_socket()?;
    short(path, |path| Ok(bind(&socket, &SocketAddrUnix::new(path)?)?))?;
    listen(&socket, 1)?;
    Ok(socket)
}

/// Finds the worker that listens at `path`.
pub(crate) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    short(path, |path| Ok(connect(&socket, &SocketAddrUnix::new(path)?)?))?;
    Ok(socket)
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// More descriptors are on their way through Unix sockets than this user may have open:
/// unix(7), `ETOOMANYREFS`.
pub(crate) const TOO_MANY_UNDER_WAY: i32 = rustix::io::Errno::TOOMANYREFS.raw_os_error();

/// Sends; waits while the line is full.
pub(crate) fn send(
    line: BorrowedFd<'_>,
    message: &Message,
    socket: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sockets = socket.map(|socket| [socket]);
    if let Some(sockets) = &sockets {
        control.push(SendAncillaryMessage::ScmRights(sockets));
    }
    loop {
        match sendmsg(line, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return sent.map(|_| ()).map_err(Into::into),
        }
    }
}

/// The next message and the socket that came with it; `None` when the other end is gone.
pub(crate) fn receive(line: BorrowedFd<'_>) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got = loop {
        match recvmsg(line.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            got => break got?,
        }
    };
    let sockets = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    let socket = sockets.last();
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        say!("front: out of file descriptors: a listening socket is not kept");
    }
    Ok(Some((serde_json::from_slice(&bytes[..got.bytes])?, socket)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Protocol;
    use std::net::TcpListener;

    #[test]
    fn sockets_travel() {
        let (here, there) = pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let key = Key { protocol: Protocol::Tcp, addr, route: None };
        send(here.as_fd(), &Message::Add(key.clone()), Some(listener.as_fd())).unwrap();
        send(here.as_fd(), &Message::Go, None).unwrap();
        drop((here, listener));
        let (message, socket) = receive(there.as_fd()).unwrap().unwrap();
        assert_eq!(message, Message::Add(key));
        let again = TcpListener::from(socket.unwrap());
        assert_eq!(again.local_addr().unwrap(), addr);
        assert_eq!(receive(there.as_fd()).unwrap().unwrap().0, Message::Go);
        assert!(receive(there.as_fd()).unwrap().is_none());
    }
}
