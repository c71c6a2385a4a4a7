//! The relay between a command's terminal and its user's two pipes. Nothing in it ever waits: a
//! user who reads slowly holds up the command, and nobody else.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionbio};

use super::join;
use crate::cgroup::timespec;
use crate::error::{Context as _, Fault};

/// How long the last words of a command may take to come out of the kernel. They come with the
/// closing of the terminal's last end; another program of the instance may hold one.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A command's terminal, seen from the user's side.
#[derive(Debug)]
pub(super) struct Terminal {
    master: OwnedFd,
    /// The command's side, open here as well, so that it never counts as closed meanwhile.
    side: Option<OwnedFd>,
    /// `None` once the user has closed it.
    stdin: Option<OwnedFd>,
    /// `None` once nobody reads it.
    stdout: Option<OwnedFd>,
    /// On its way to the command.
    typed: Vec<u8>,
    /// On its way to the user.
    shown: Vec<u8>,
}

impl Terminal {
    pub(super) fn new(
        (master, side): (OwnedFd, OwnedFd),
        stdin: OwnedFd,
        stdout: OwnedFd,
    ) -> Result<Self, Fault> {
        for fd in [&master, &stdin, &stdout] {
            ioctl_fionbio(fd, true).step(|| "relay the terminal".to_owned())?;
        }
        let (stdin, stdout) = (Some(stdin), Some(stdout));
        Ok(Self { master, side: Some(side), stdin, stdout, typed: Vec::new(), shown: Vec::new() })
    }

    pub(super) fn resize(&self, rows: u16, columns: u16) {
        join::resize(&self.master, rows, columns);
    }

    /// What there is to wait for. A buffer is filled again when it is empty.
    pub(super) fn interests(&self) -> Vec<PollFd<'_>> {
        let mut fds = Vec::new();
        let mut master = PollFlags::empty();
        if self.shown.is_empty() {
            master |= PollFlags::IN;
        }
        if !self.typed.is_empty() {
            master |= PollFlags::OUT;
        }
        fds.push(PollFd::new(&self.master, master));
        if let Some(stdin) = self.stdin.as_ref().filter(|_| self.typed.is_empty()) {
            fds.push(PollFd::new(stdin, PollFlags::IN));
        }
        if let Some(stdout) = &self.stdout {
            let wanted = if self.shown.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::new(stdout, wanted));
        }
        fds
    }

    /// Moves what can be moved. False: the command's side is closed, and all was read from it.
    pub(super) fn relay(&mut self) -> bool {
        let mut buffer = [0; 4096];
        if self.typed.is_empty()
            && let Some(stdin) = &self.stdin
        {
            match rustix::io::read(stdin, &mut buffer) {
                Ok(length) if length > 0 => self.typed.extend_from_slice(&buffer[..length]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                _ => {
                    // End of input, as a terminal says it.
                    self.typed.push(4);
                    self.stdin = None;
                }
            }
        }
        if !self.typed.is_empty()
            && let Ok(length) = rustix::io::write(&self.master, &self.typed)
        {
            self.typed.drain(..length);
        }
        self.show();
        if !self.shown.is_empty() {
            return true;
        }
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(length) if length > 0 => {
                self.shown.extend_from_slice(&buffer[..length]);
                self.show();
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            _ => false,
        }
    }

    fn show(&mut self) {
        let Some(stdout) = &self.stdout else {
            self.shown.clear();
            return;
        };
        if self.shown.is_empty() {
            let mut fds = [PollFd::new(stdout, PollFlags::empty())];
            if poll(&mut fds, Some(&timespec(Duration::ZERO))) == Ok(1) {
                self.stdout = None;
            }
            return;
        }
        match rustix::io::write(stdout, &self.shown) {
            Ok(length) => drop(self.shown.drain(..length)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => {
                self.stdout = None;
                self.shown.clear();
            }
        }
    }

    /// The command has ended: what it said last goes to the user, for as long as `wanted` says
    /// that there is one. What somebody else writes to the terminal from then on is not waited for.
    pub(super) fn finish(mut self, wanted: impl Fn() -> bool) {
        const PULSE: Duration = Duration::from_millis(20);
        self.stdin = None;
        self.typed.clear();
        self.side = None;
        let end = Instant::now() + LAST_WORDS;
        let mut open = true;
        while wanted() {
            open = open && Instant::now() < end && self.relay();
            self.show();
            if !open && self.shown.is_empty() {
                return;
            }
            let fds = &mut self.interests();
            // A terminal that is closed is always ready.
            let from = usize::from(!open);
            let _ = poll(&mut fds[from..], Some(&timespec(PULSE)));
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

    use super::*;

    /// A terminal, its command's side, and the user's ends of the pipes.
    fn terminal() -> (Terminal, OwnedFd, OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let side = ioctl_tiocgptpeer(&master, flags).unwrap();
        let (stdin, typing) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (reading, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ours = side.try_clone().unwrap();
        (Terminal::new((master, ours), stdin, stdout).unwrap(), side, typing, reading)
    }

    fn all(fd: OwnedFd) -> Vec<u8> {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(fd), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn last_words_come_through_though_the_reader_is_slow() {
        let (mut terminal, side, _typing, reading) = terminal();
        let wanted = 300_000;
        let command = std::thread::spawn(move || {
            let mut left = wanted;
            while left > 0 {
                left -= rustix::io::write(&side, &vec![b'x'; left.min(1000)]).unwrap();
            }
        });
        // Nobody reads yet: the pipe is full, and the command waits.
        while terminal.shown.is_empty() {
            terminal.relay();
        }
        assert!(!command.is_finished());
        let user = std::thread::spawn(move || all(reading));
        while !command.is_finished() {
            let mut fds = terminal.interests();
            poll(&mut fds, Some(&timespec(Duration::from_millis(10)))).unwrap();
            drop(fds);
            assert!(terminal.relay());
        }
        command.join().unwrap();
        terminal.finish(|| true);
        assert_eq!(user.join().unwrap().len(), wanted);
    }

    #[test]
    fn who_holds_the_terminal_holds_up_nobody() {
        let (terminal, thief, _typing, reading) = terminal();
        rustix::io::write(&thief, b"last").unwrap();
        let begun = Instant::now();
        terminal.finish(|| true);
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(all(reading), b"last");
        drop(thief);
    }

    #[test]
    fn a_user_who_has_gone_is_not_waited_for() {
        let (mut terminal, side, typing, reading) = terminal();
        drop((typing, reading));
        for _ in 0..100 {
            rustix::io::write(&side, &[b'x'; 1000]).unwrap();
            while terminal.relay() && !terminal.shown.is_empty() {}
        }
        assert!(terminal.stdout.is_none() && terminal.stdin.is_none());
        drop(side);
        terminal.finish(|| true);
    }
}
