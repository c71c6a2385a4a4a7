//! Until the program of a session ends: orders from the starter, bytes to and from a terminal.

use std::io::{ErrorKind, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};

use super::Started;
use super::guard::Guard;
use super::terminal::Terminal;
use super::wire::Order;
use crate::cgroup::Group;
use crate::sys::{self, Ended};

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
        let [ended, spoken] = wait(socket, there, started, terminal.as_ref(), guard.is_some());
        if let Some(guard) = &mut guard {
            guard.look();
        }
        if let Some(terminal) = &mut terminal {
            terminal.relay();
        }
        if spoken {
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
        if ended {
            break;
        }
    }
    let ended = sys::wait_pidfd(started.pidfd.as_fd()).unwrap_or(Ended { code: 255, signal: None });
    if let Some(terminal) = terminal {
        group.kill();
        terminal.finish(|| there && !closed(socket));
    }
    let _ = socket.set_nonblocking(false);
    ended
}

/// Whether the starter has gone. What it may still say is of no use any more.
fn closed(mut socket: &UnixStream) -> bool {
    let mut buffer = [0; 512];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// Whether the program has ended, and whether the starter has said something. Comes back for the
/// terminal as well.
fn wait(
    socket: &UnixStream,
    there: bool,
    started: &Started,
    terminal: Option<&Terminal>,
    guarded: bool,
) -> [bool; 2] {
    let mut fds = vec![PollFd::new(&started.pidfd, PollFlags::IN)];
    if there {
        fds.push(PollFd::new(socket, PollFlags::IN));
    }
    fds.extend(terminal.into_iter().flat_map(Terminal::interests));
    if poll(&mut fds, guarded.then_some(&super::guard::PERIOD)).is_err() {
        return [false, false];
    }
    let ready = |at: usize| !fds[at].revents().is_empty();
    [ready(0), there && ready(1)]
}

fn obey(orders: &mut Vec<u8>, started: &Started, terminal: Option<&Terminal>) {
    while let Some(end) = orders.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = orders.drain(..=end).collect();
        match (serde_json::from_slice(&line), terminal) {
            (Ok(Order::Signal(signal)), _) => {
                let _ = sys::pidfd_signal(started.pidfd.as_fd(), signal);
            }
            (Ok(Order::Resize(rows, columns)), Some(terminal)) => terminal.resize(rows, columns),
            _ => {}
        }
    }
}
