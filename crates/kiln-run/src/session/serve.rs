//! Until the program of a session ends: orders from the starter, bytes to and from a terminal.

use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::guard::Guard;
use super::wire::Order;
use super::{Started, join};
use crate::cgroup::Group;
use crate::sys::{self, Ended};

/// The user's side of a terminal, relayed.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) master: OwnedFd,
    /// `None` once the user has closed it.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
}

/// Waits for the end of the program, which comes at once when the starter goes away, or when
/// `guard` sees it go too far.
pub(super) fn until_end(
    mut socket: &UnixStream,
    started: &Started,
    group: &Group,
    mut terminal: Option<Terminal>,
    mut guard: Option<&mut Guard<'_>>,
) -> Ended {
    let _ = socket.set_nonblocking(true);
    let mut orders = Vec::new();
    let mut there = true;
    loop {
        let ready = wait(socket, there, started, terminal.as_ref(), guard.is_some());
        if let Some(guard) = &mut guard {
            guard.look();
        }
        if let Some(terminal) = &mut terminal {
            relay(terminal, ready[2], ready[3]);
        }
        if ready[1] {
            let mut buffer = [0; 512];
            match socket.read(&mut buffer) {
                Ok(0) => there = false,
                Ok(length) => orders.extend_from_slice(&buffer[..length]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => there = false,
            }
            if !there {
                group.kill();
            }
            obey(&mut orders, started, terminal.as_ref());
        }
        if ready[0] {
            break;
        }
    }
    let ended = sys::wait_pidfd(started.pidfd.as_fd()).unwrap_or(Ended { code: 255, signal: None });
    if let Some(terminal) = &mut terminal {
        // The last side is closed, so this ends.
        group.kill();
        while to_user(terminal) {}
    }
    let _ = socket.set_nonblocking(false);
    ended
}

/// Program, socket, terminal's output, user's input.
fn wait(
    socket: &UnixStream,
    there: bool,
    started: &Started,
    terminal: Option<&Terminal>,
    guarded: bool,
) -> [bool; 4] {
    let mut fds = vec![PollFd::new(&started.pidfd, PollFlags::IN)];
    let mut which = vec![0];
    if there {
        fds.push(PollFd::new(socket, PollFlags::IN));
        which.push(1);
    }
    if let Some(terminal) = terminal {
        fds.push(PollFd::new(&terminal.master, PollFlags::IN));
        which.push(2);
        if let Some(stdin) = &terminal.stdin {
            fds.push(PollFd::new(stdin, PollFlags::IN));
            which.push(3);
        }
    }
    let mut ready = [false; 4];
    if poll(&mut fds, guarded.then_some(&super::guard::PERIOD)).is_ok() {
        for (fd, at) in fds.iter().zip(which) {
            ready[at] = !fd.revents().is_empty();
        }
    }
    ready
}

fn relay(terminal: &mut Terminal, output: bool, input: bool) {
    if output {
        to_user(terminal);
    }
    if input && let Some(stdin) = &terminal.stdin {
        let mut buffer = [0; 4096];
        match rustix::io::read(stdin, &mut buffer) {
            Ok(length) if length > 0 => {
                write_all(&terminal.master, &buffer[..length]);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            _ => {
                // End of input, as a terminal says it.
                write_all(&terminal.master, &[4]);
                terminal.stdin = None;
            }
        }
    }
}

/// False: the program's side is closed, or the user's.
fn to_user(terminal: &Terminal) -> bool {
    let mut buffer = [0; 4096];
    match rustix::io::read(&terminal.master, &mut buffer) {
        Ok(length) if length > 0 => write_all(&terminal.stdout, &buffer[..length]),
        Err(Errno::INTR) => true,
        _ => false,
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::new(fd, PollFlags::OUT)];
                let _ = poll(&mut fds, None);
            }
            Err(_) => return false,
        }
    }
    true
}

fn obey(orders: &mut Vec<u8>, started: &Started, terminal: Option<&Terminal>) {
    while let Some(end) = orders.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = orders.drain(..=end).collect();
        match (serde_json::from_slice(&line), terminal) {
            (Ok(Order::Signal(signal)), _) => {
                let _ = sys::pidfd_signal(started.pidfd.as_fd(), signal);
            }
            (Ok(Order::Resize(rows, columns)), Some(terminal)) => {
                join::resize(&terminal.master, rows, columns);
            }
            _ => {}
        }
    }
}
