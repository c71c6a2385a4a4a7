//! A program of the host, Git or one of apt's: its output, and an end when the user wants one.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

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

/// Runs `command` to its end, or until soon after `cancel` is set.
///
/// # Errors
/// [`ProgramError`]. A program that fails is none.
pub fn run(mut command: Command, cancel: &AtomicBool) -> Result<Output, ProgramError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ProgramError::Failed { program: program.clone(), source };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Reaped(command.spawn().map_err(failed)?);
    let (Some(stdout), Some(stderr)) = (child.0.stdout.take(), child.0.stderr.take()) else {
        return Err(failed(std::io::Error::other("no pipes")));
    };
    let mut pipes = [(Some(Pipe::Out(stdout)), Vec::new()), (Some(Pipe::Err(stderr)), Vec::new())];
    while pipes.iter().any(|(pipe, _)| pipe.is_some()) {
        if cancel.load(Ordering::Acquire) {
            return Err(ProgramError::Cancelled);
        }
        wait_readable(&pipes).map_err(failed)?;
        for (pipe, bytes) in &mut pipes {
            read_some(pipe, bytes).map_err(failed)?;
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
    fn missing_program_is_named() {
        let cancel = AtomicBool::new(false);
        let command = Command::new("/nonexistent/apt-get");
        let error = run(command, &cancel).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/apt-get"), "{error}");
    }
}
