//! A program of the host, Git or one of apt's: its output, and an end when the user wants one.

use std::io::{ErrorKind, Read, Write as _};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use std::sync::atomic::{AtomicBool, Ordering};

/// How often a running program is interrupted to see whether the user wants to stop.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

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
        source: std::io::Error,
    },
}

/// What a program is given, and what it may take.
#[derive(Debug)]
pub struct Bounds<'a> {
    /// For its standard input; at most what a pipe holds, 64 KiB.
    pub stdin: &'a [u8],
    /// Most bytes that it may print, on each of both.
    pub most: usize,
    /// How long it may take.
    pub within: Option<Duration>,
}

/// Nothing to read, and no end but its own.
const FREE: Bounds<'_> = Bounds { stdin: &[], most: usize::MAX, within: None };

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
    let begun = Instant::now();
    let input = if bounds.stdin.is_empty() { Stdio::null() } else { Stdio::piped() };
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Reaped(command.spawn().map_err(failed)?);
    if let Some(mut pipe) = child.0.stdin.take() {
        // A program that does not read its input to the end is free to do so.
        let _ = pipe.write_all(bounds.stdin);
    }
    let (Some(stdout), Some(stderr)) = (child.0.stdout.take(), child.0.stderr.take()) else {
        return Err(failed(std::io::Error::other("no pipes")));
    };
    let mut pipes = [(Some(Pipe::Out(stdout)), Vec::new()), (Some(Pipe::Err(stderr)), Vec::new())];
    while pipes.iter().any(|(pipe, _)| pipe.is_some()) {
        if cancel.load(Ordering::Acquire) {
            return Err(ProgramError::Cancelled);
        }
        if bounds.within.is_some_and(|within| begun.elapsed() > within) {
            return Err(failed(ErrorKind::TimedOut.into()));
        }
        wait_readable(&pipes).map_err(failed)?;
        for (pipe, bytes) in &mut pipes {
            read_some(pipe, bytes).map_err(failed)?;
            if bytes.len() > bounds.most {
                return Err(failed(ErrorKind::FileTooLarge.into()));
            }
        }
    }
    let status = child.0.wait().map_err(failed)?;
    let [stdout, stderr] = pipes.map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Output { success: status.success(), stdout, stderr })
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

fn wait_readable(pipes: &Streams) -> std::io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = pipes
        .iter()
        .filter_map(|(pipe, _)| pipe.as_ref())
        .map(|pipe| PollFd::new(pipe, PollFlags::IN))
        .collect();
    match poll(&mut fds, Some(&LOOK)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes what is there; a pipe at its end becomes `None`.
fn read_some(slot: &mut Option<Pipe>, bytes: &mut Vec<u8>) -> std::io::Result<()> {
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
            run_within(command, &Bounds { stdin, most: 1000, within }, &cancel)
        };
        assert_eq!(bounded("cat", b"given").unwrap().stdout, "given");
        // It need not read what it is given.
        assert!(bounded("exit 0", &[b'x'; 60_000]).unwrap().success);
        let endless = bounded("exec yes", b"").unwrap_err().to_string();
        assert!(endless.contains("too large"), "{endless}");
        let mut slow = Command::new("sleep");
        slow.arg("1000");
        let soon = Bounds { within: Some(Duration::from_millis(200)), ..FREE };
        let error = run_within(slow, &soon, &cancel).unwrap_err().to_string();
        assert!(error.contains("timed out"), "{error}");
    }

    #[test]
    fn missing_program_is_named() {
        let cancel = AtomicBool::new(false);
        let command = Command::new("/nonexistent/apt-get");
        let error = run(command, &cancel).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/apt-get"), "{error}");
    }
}
