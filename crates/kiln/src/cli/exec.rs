//! `kiln exec`, the client's end. The command in the instance gets pipes that were made for it, and
//! nothing that is the caller's: whoever holds a terminal, a file or a socket can do more with it
//! than read or write, and can go on doing so when the command has ended.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kiln_core::exit::Exit;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde::Deserialize as _;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};

use super::client;
use crate::answers;
use crate::protocol::{Event, Order, Verb};
use crate::report::{Because, Report};
use crate::terminal;

/// Rows and columns for a command that gets a terminal: when ours is one, both ways.
pub(super) fn wanted_terminal(refused: bool) -> Option<(u16, u16)> {
    let ours = io::stdin().is_terminal() && io::stdout().is_terminal();
    (ours && !refused).then(size)
}

fn size() -> (u16, u16) {
    match tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}

/// Runs it, and gives the command's own exit code.
pub(super) fn exec(root: &Path, verb: Verb) -> Result<u8, Report> {
    let has_terminal =
        matches!(verb, Verb::Exec { terminal: Some(_), .. } | Verb::Run { terminal: Some(_), .. });
    let pipe = || pipe_with(PipeFlags::CLOEXEC).because(|| "making a pipe".into());
    let (their_input, input) = pipe()?;
    let (output, their_output) = pipe()?;
    let (errors, their_errors) = pipe()?;
    let theirs = [their_input.as_fd(), their_output.as_fd(), their_errors.as_fd()];
    let mut answers = client::send(root, verb, &theirs)?;
    drop((their_input, their_output, their_errors));
    let raw = Arc::new(RawTerminal::new(has_terminal));
    if has_terminal {
        watch_signals(&raw, answers.stream());
    }
    let (over, end) = pipe()?;
    let over = Arc::new(over);
    let copying = Copying {
        output: copy_out(output, rustix::stdio::stdout(), &over),
        errors: copy_out(errors, rustix::stdio::stderr(), &over),
    };
    copy_in(input, &over);
    let (code, message) = loop {
        match answers.next()? {
            Event::Done { data, .. } => {
                let done = answers::Executed::deserialize(data).ok();
                let code = done.as_ref().and_then(|done| u8::try_from(done.code).ok());
                break (code, done.and_then(|done| done.message));
            }
            Event::Failed(report) => return Err(report),
            Event::Notice { text } => raw.say(&format!("note: {text}")),
            Event::Progress(_) | Event::Item { .. } | Event::Ask { .. } => {}
        }
    };
    drop(end);
    let copied = copying.finish();
    raw.restore();
    if let Some(message) = message {
        raw.say(&format!("kiln: {message}"));
    }
    let code = code.unwrap_or(Exit::Failed.code());
    match copied {
        Err(report) if code == 0 => Err(report),
        _ => Ok(code),
    }
}

/// The two streams that come from the command.
struct Copying {
    output: JoinHandle<io::Result<()>>,
    errors: JoinHandle<io::Result<()>>,
}

impl Copying {
    /// Waits until what the command wrote is written here.
    fn finish(self) -> Result<(), Report> {
        for (name, thread) in [("output", self.output), ("error", self.errors)] {
            let bug = |_| Report::new(Exit::Bug, "a copying thread panicked");
            thread.join().map_err(bug)?.because(|| format!("writing standard {name}"))?;
        }
        Ok(())
    }
}

/// From the command to us, until it closes its end or is over. Another program of the instance may
/// have opened the pipe again and never stop: so nothing counts but what is in it at the end.
fn copy_out(
    from: OwnedFd,
    to: BorrowedFd<'static>,
    over: &Arc<OwnedFd>,
) -> JoinHandle<io::Result<()>> {
    let over = Arc::clone(over);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let [readable, last] = ready([(&from, PollFlags::IN), (&over, PollFlags::IN)])?;
            let mut left = match last {
                true => rustix::io::ioctl_fionread(&from)?,
                false => u64::MAX,
            };
            while left > 0 && (readable || last) {
                let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let length = match rustix::io::read(&from, &mut buffer[..room]) {
                    Err(Errno::INTR) => continue,
                    result => result?,
                };
                // A reader that has gone is for the command to notice: our end closes.
                if length == 0 || !write_all(to, &buffer[..length])? {
                    return Ok(());
                }
                if !last {
                    break;
                }
                left -= length as u64;
            }
            if last {
                return Ok(());
            }
        }
    })
}

/// Writes all of it. False: nobody reads any more.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<bool> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // Whoever started us made it so.
                let _ = poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None);
            }
            Err(Errno::PIPE) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// From us to the command, until our input ends, the command stops reading, or is over. What is
/// typed after that is for whoever reads the terminal next.
fn copy_in(to: OwnedFd, over: &Arc<OwnedFd>) {
    let over = Arc::clone(over);
    std::thread::spawn(move || -> io::Result<()> {
        rustix::io::ioctl_fionbio(&to, true)?;
        let from = rustix::stdio::stdin();
        let mut buffer = vec![0; 32 << 10];
        loop {
            // Of the pipe, only its end is looked for: that nobody reads it any more.
            let looked = [
                (&from, PollFlags::IN),
                (&to.as_fd(), PollFlags::empty()),
                (&over.as_fd(), PollFlags::IN),
            ];
            let [readable, gone, last] = ready(looked)?;
            if gone || last {
                return Ok(());
            }
            if !readable {
                continue;
            }
            let mut unwritten = match rustix::io::read(from, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => &buffer[..length],
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(error) => return Err(error.into()),
            };
            while !unwritten.is_empty() {
                let [_, last] = ready([(&to, PollFlags::OUT), (&over, PollFlags::IN)])?;
                if last {
                    return Ok(());
                }
                match rustix::io::write(&to, unwritten) {
                    Ok(length) => unwritten = &unwritten[length..],
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    });
}

/// Waits until one of them has what it is looked at for, or an end.
fn ready<Fd: AsFd, const N: usize>(of: [(&Fd, PollFlags); N]) -> io::Result<[bool; N]> {
    let mut fds = of.map(|(fd, flags)| PollFd::new(fd, flags));
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(std::array::from_fn(|at| !fds[at].revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The terminal in raw mode: every key goes to the command in the instance. Put back once, by
/// whoever comes first: the end, an error, a signal.
struct RawTerminal(Mutex<Option<Termios>>);

impl RawTerminal {
    fn new(wanted: bool) -> Self {
        let stdin = rustix::stdio::stdin();
        let before = wanted.then(|| tcgetattr(stdin).ok()).flatten();
        let raw = Self(Mutex::new(before));
        raw.enter();
        raw
    }

    fn enter(&self) {
        if let Some(before) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            let mut raw = before.clone();
            raw.make_raw();
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw);
        }
    }

    fn restore(&self) {
        if let Some(before) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
        }
    }

    /// A line on standard error: in raw mode a new line does not begin at the left.
    fn say(&self, line: &str) {
        let raw = self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let end = if raw { "\r\n" } else { "\n" };
        let _ = write!(io::stderr(), "{}{end}", terminal::clean(line));
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// A new size goes to the agent; what ends this process puts the terminal back first. (SIGKILL
/// cannot be met: then it is for `stty sane`.)
fn watch_signals(raw: &Arc<RawTerminal>, stream: io::Result<UnixStream>) {
    const ENDS: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];
    let watched = [SIGCONT, SIGWINCH].into_iter().chain(ENDS);
    let Ok(mut signals) = signal_hook::iterator::Signals::new(watched) else { return };
    let raw = Arc::clone(raw);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if ENDS.contains(&signal) {
                raw.restore();
                std::process::exit(128 + signal);
            }
            if signal == SIGCONT {
                raw.enter();
            }
            let (rows, columns) = size();
            if let Ok(mut stream) = stream.as_ref()
                && let Ok(mut line) = serde_json::to_vec(&Order::Resize { rows, columns })
            {
                line.push(b'\n');
                let _ = stream.write_all(&line);
            }
        }
    });
}
