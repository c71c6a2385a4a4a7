//! A program of the host, Git or one of apt's: its output, and an end when the user wants one.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write as _};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// How often a running program is interrupted to see whether the user wants to stop.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How often its watch is asked.
const WATCH: Duration = Duration::from_secs(1);

/// What a program printed, and whether it ended well.
#[derive(Debug, Default)]
pub struct Output {
    /// Its status was 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The user wanted it to stop; it was killed.
    #[error("interrupted")]
    Cancelled,
    /// It could not be started or waited for.
    #[error("{program}: {source}")]
    Failed {
        /// Its name.
        program: String,
        /// What the system said.
        source: io::Error,
    },
}

/// What a program is given, and what it may take.
pub struct Bounds<'a> {
    /// For its standard input.
    pub stdin: &'a [u8],
    /// Most bytes that it may print, on each of both.
    pub most: usize,
    /// How long it may take, until it has ended.
    pub within: Option<Duration>,
    /// Asked about once a second; an error ends the program.
    pub watch: Option<&'a dyn Fn() -> io::Result<()>>,
}

impl std::fmt::Debug for Bounds<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bounds").field("within", &self.within).finish_non_exhaustive()
    }
}

/// Nothing to read, and no end but its own.
pub const FREE: Bounds<'_> = Bounds { stdin: &[], most: usize::MAX, within: None, watch: None };

/// Runs `command` to its end, or until soon after `cancel` is set.
///
/// # Errors
/// [`ProgramError`]. A program that fails is none.
pub fn run(command: Command, cancel: &AtomicBool) -> Result<Output, ProgramError> {
    run_within(command, &FREE, cancel)
}

/// As [`run`], within bounds.
///
/// # Errors
/// As [`run`]; of the kinds `TimedOut` and `FileTooLarge` when it did not keep to them.
pub fn run_within(
    mut command: Command,
    bounds: &Bounds<'_>,
    cancel: &AtomicBool,
) -> Result<Output, ProgramError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ProgramError::Failed { program: program.clone(), source };
    let input = if bounds.stdin.is_empty() { Stdio::null() } else { Stdio::piped() };
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Reaped(command.spawn().map_err(failed)?);
    let guard = Guard { bounds, cancel, begun: Instant::now(), asked: Cell::new(Instant::now()) };
    let guard = || guard.check().map_err(|stop| stop.map_or(ProgramError::Cancelled, &failed));
    let mut input = child.0.stdin.take().zip(Some(bounds.stdin));
    if let Some((pipe, _)) = &input {
        rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
    }
    let (Some(stdout), Some(stderr)) = (child.0.stdout.take(), child.0.stderr.take()) else {
        return Err(failed(io::Error::other("no pipes")));
    };
    let mut pipes = [(Some(Pipe::Out(stdout)), Vec::new()), (Some(Pipe::Err(stderr)), Vec::new())];
    while pipes.iter().any(|(pipe, _)| pipe.is_some()) || input.is_some() {
        guard()?;
        wait_ready(&pipes, &input).map_err(failed)?;
        write_some(&mut input).map_err(failed)?;
        for (pipe, bytes) in &mut pipes {
            read_some(pipe, bytes).map_err(failed)?;
            if bytes.len() > bounds.most {
                return Err(failed(ErrorKind::FileTooLarge.into()));
            }
        }
    }
    // A program may close what it prints to and go on all the same.
    let end = rustix::process::Pid::from_child(&child.0);
    let end = rustix::process::pidfd_open(end, rustix::process::PidfdFlags::empty());
    let end = end.map_err(|error| failed(error.into()))?;
    let status = loop {
        if let Some(status) = child.0.try_wait().map_err(failed)? {
            break status;
        }
        guard()?;
        wait_until(&mut [PollFd::new(&end, PollFlags::IN)]).map_err(failed)?;
    };
    let [stdout, stderr] = pipes.map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Output { success: status.success(), stdout, stderr })
}

/// What a program has to keep to while it runs.
struct Guard<'a> {
    bounds: &'a Bounds<'a>,
    cancel: &'a AtomicBool,
    begun: Instant,
    /// When its watch was asked last.
    asked: Cell<Instant>,
}

impl Guard<'_> {
    /// Why it has to end; `None` is the user's wish.
    fn check(&self) -> Result<(), Option<io::Error>> {
        if self.cancel.load(Ordering::Acquire) {
            return Err(None);
        }
        if self.bounds.within.is_some_and(|within| self.begun.elapsed() > within) {
            return Err(Some(ErrorKind::TimedOut.into()));
        }
        let Some(watch) = self.bounds.watch.filter(|_| self.asked.get().elapsed() > WATCH) else {
            return Ok(());
        };
        let watched = watch();
        self.asked.set(Instant::now());
        watched.map_err(Some)
    }
}

/// Kills and reaps a child that is left early; both calls do nothing to one that was waited for.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

enum Pipe {
    Out(std::process::ChildStdout),
    Err(std::process::ChildStderr),
}

impl AsFd for Pipe {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Out(pipe) => pipe.as_fd(),
            Self::Err(pipe) => pipe.as_fd(),
        }
    }
}

type Streams = [(Option<Pipe>, Vec<u8>); 2];
type Input<'a> = Option<(ChildStdin, &'a [u8])>;

fn wait_ready(pipes: &Streams, input: &Input<'_>) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = pipes
        .iter()
        .filter_map(|(pipe, _)| pipe.as_ref())
        .map(|pipe| PollFd::new(pipe, PollFlags::IN))
        .chain(input.iter().map(|(pipe, _)| PollFd::new(pipe, PollFlags::OUT)))
        .collect();
    wait_until(&mut fds)
}

fn wait_until(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    match poll(fds, Some(&LOOK)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives what fits; the pipe is closed when all was given.
fn write_some(input: &mut Input<'_>) -> io::Result<()> {
    let Some((pipe, left)) = input else { return Ok(()) };
    match pipe.write(left) {
        Ok(count) => *left = &left[count..],
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        // A program that does not read its input to the end is free to do so.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => *left = &[],
        Err(error) => return Err(error),
    }
    if left.is_empty() {
        *input = None;
    }
    Ok(())
}

/// Takes what is there; a pipe at its end becomes `None`.
fn read_some(slot: &mut Option<Pipe>, bytes: &mut Vec<u8>) -> io::Result<()> {
    let Some(pipe) = slot else { return Ok(()) };
    let mut fds = [PollFd::new(&*pipe, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut fds, Some(&now)).unwrap_or(0) == 0 {
        return Ok(());
    }
    let mut buffer = [0; 16 * 1024];
    let count = match pipe {
        Pipe::Out(pipe) => pipe.read(&mut buffer),
        Pipe::Err(pipe) => pipe.read(&mut buffer),
    }?;
    bytes.extend_from_slice(&buffer[..count]);
    if count == 0 {
        *slot = None;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn collects_both_streams_and_the_status() {
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 200000 /dev/zero | tr '\\0' x; echo no >&2; exit 3"]);
        let cancel = AtomicBool::new(false);
        let output = run(command, &cancel).unwrap();
        assert!(!output.success);
        assert_eq!(output.stdout.len(), 200_000);
        assert_eq!(output.stderr, "no\n");
    }

    #[test]
    fn stops_a_program_that_would_not_end() {
        let cancel = AtomicBool::new(false);
        let mut command = Command::new("sleep");
        command.arg("1000");
        std::thread::scope(|scope| {
            let running = scope.spawn(|| run(command, &cancel));
            cancel.store(true, Ordering::Relaxed);
            assert!(matches!(running.join().unwrap(), Err(ProgramError::Cancelled)));
        });
    }

    #[test]
    fn bounds_are_kept() {
        let cancel = AtomicBool::new(false);
        let bounded = |script: &str, stdin: &[u8]| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let within = Some(Duration::from_secs(20));
            run_within(command, &Bounds { stdin, most: 1000, within, watch: None }, &cancel)
        };
        assert_eq!(bounded("cat", b"given").unwrap().stdout, "given");
        // It need not read what it is given.
        assert!(bounded("exit 0", &[b'x'; 60_000]).unwrap().success);
        let endless = bounded("exec yes", b"").unwrap_err().to_string();
        assert!(endless.contains("too large"), "{endless}");
        // Neither what it prints nor what it leaves unread keeps it longer than it may take.
        let unread = vec![b'x'; 1 << 20];
        for (script, stdin) in [
            ("exec sleep 1000", &unread[..]),
            ("exec sleep 1000 > /dev/null 2>&1", &unread),
            ("exec sleep 1000 > /dev/null 2>&1", &[]),
        ] {
            let mut slow = Command::new("sh");
            slow.args(["-c", script]);
            let within = Some(Duration::from_millis(200));
            let soon = Bounds { within, stdin, ..FREE };
            let error = run_within(slow, &soon, &cancel).unwrap_err().to_string();
            assert!(error.contains("timed out"), "{error}");
        }
        let counted = vec![b'x'; 1 << 20];
        assert_eq!(bounded("wc -c", &counted).unwrap().stdout.trim(), counted.len().to_string());
    }

    #[test]
    fn its_watch_can_end_it() {
        let cancel = AtomicBool::new(false);
        let mut slow = Command::new("sh");
        slow.args(["-c", "exec sleep 1000 > /dev/null 2>&1"]);
        let enough = || Err(io::Error::other("enough"));
        let within = Some(Duration::from_secs(60));
        let bounds = Bounds { watch: Some(&enough), within, ..FREE };
        let error = run_within(slow, &bounds, &cancel).unwrap_err().to_string();
        assert!(error.contains("enough"), "{error}");
    }

    #[test]
    fn missing_program_is_named() {
        let cancel = AtomicBool::new(false);
        let command = Command::new("/nonexistent/apt-get");
        let error = run(command, &cancel).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/apt-get"), "{error}");
    }
}
