//! What is said between a session and its starter.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::conditions::Conditions;
use crate::report::Report;
use crate::session::guard::Bounds;
use crate::spec::Sandbox;
use crate::step::Stopped;

/// Bytes of a request: a command line and an environment, each at most what exec takes.
const LONGEST_REQUEST: u64 = 16 << 20;

/// The first thing said.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Path of the session's own group below a hierarchy's mount point.
    pub(crate) group: String,
    /// The group of the instance whose v1 limits hold for the session's program too; on pure
    /// cgroup2 they do because the session's group is below it.
    pub(crate) limits_of: Option<String>,
    pub(crate) what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    Exec(Exec),
    Step {
        sandbox: Box<Sandbox>,
        /// An empty directory to assemble the root on.
        scratch: PathBuf,
        #[serde(default)]
        conditions: Conditions,
        /// What it may use of the machine.
        bounds: Bounds,
    },
}

/// A command inside a running instance.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exec {
    /// The instance's folder.
    pub(crate) dir: PathBuf,
    /// Its first process; the start time makes sure that it still is the same.
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    pub(crate) argv: Vec<String>,
    /// Added to the instance's own environment.
    pub(crate) env: Vec<String>,
    /// Instead of the instance's own.
    pub(crate) user: Option<String>,
    pub(crate) cwd: Option<String>,
    /// Rows and columns of a terminal, if it gets one.
    pub(crate) terminal: Option<(u16, u16)>,
}

/// What may be said later.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Sends a signal to the program.
    Signal(i32),
    /// New rows and columns of the terminal.
    Resize(u16, u16),
}

/// What is answered, a JSON line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SessionReply {
    Report(Report),
    Exited { code: i32, signal: Option<i32>, step: StepEnd },
}

/// What more there is to say of a step that has ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct StepEnd {
    /// Why it was ended, if it did not end by itself.
    pub(crate) stopped: Option<Stopped>,
    /// Processes of the machine that were killed meanwhile for want of memory.
    pub(crate) memory_kills: u64,
    /// Names of the processes that it left running.
    pub(crate) left: Vec<String>,
}

/// Sends the request with the program's standard descriptors.
pub(crate) fn send_request(
    mut socket: &UnixStream,
    request: &Request,
    stdio: &[OwnedFd; 3],
) -> io::Result<()> {
    let body = serde_json::to_vec(request)?;
    let length = (body.len() as u64).to_le_bytes();
    let fds = [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    // Eight bytes always fit into a fresh socket, so they are not sent in part.
    sendmsg(socket, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?;
    socket.write_all(&body)
}

/// The other side of [`send_request`].
pub(super) fn receive_request(socket: &UnixStream) -> io::Result<(Request, [OwnedFd; 3])> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut length = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut length)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if got.bytes != length.len() {
        return Err(bad("no request came"));
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let length = u64::from_le_bytes(length);
    if length > LONGEST_REQUEST {
        return Err(bad("the request is too long"));
    }
    let mut body = Vec::new();
    socket.take(length).read_to_end(&mut body)?;
    let stdio = fds.try_into().map_err(|_| bad("three descriptors belong to a request"))?;
    Ok((serde_json::from_slice(&body)?, stdio))
}

/// Answers. A starter that has gone is nobody to tell.
pub(super) fn reply(mut socket: &UnixStream, reply: &SessionReply) {
    if let Ok(mut line) = serde_json::to_vec(reply) {
        line.push(b'\n');
        let _ = socket.write_all(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_travels_with_its_descriptors() {
        let (here, there) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = crate::sys::null().unwrap();
        let exec = Exec {
            dir: "/x".into(),
            pid: 1,
            start_time: 2,
            argv: vec!["y".repeat(300_000)],
            env: vec![],
            user: None,
            cwd: None,
            terminal: Some((24, 80)),
        };
        let request = Request { group: "g".into(), limits_of: None, what: What::Exec(exec) };
        let sender = std::thread::spawn(move || {
            send_request(&here, &request, &[null, write, read]).unwrap();
        });
        let (request, [_, write, read]) = receive_request(&there).unwrap();
        sender.join().unwrap();
        assert_eq!(rustix::io::write(write, b"hi").unwrap(), 2);
        let mut buffer = [0; 2];
        rustix::io::read(read, &mut buffer).unwrap();
        assert_eq!(&buffer, b"hi");
        let What::Exec(exec) = request.what else { panic!("{request:?}") };
        assert_eq!(exec.argv[0].len(), 300_000);
    }
}
