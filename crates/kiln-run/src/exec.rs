//! A command inside a running instance: for `kiln exec` and for health checks. It gets the
//! instance's namespaces, groups, user, capabilities and filter; it ends, with all that it
//! started, when its caller does.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::timespec;
use crate::error::{Context as _, RunError};
use crate::session::{Exec, Order, Request, Session, What};
use crate::{ROLE_EXEC, Running, Runtime};

/// Bytes of output that [`Runtime::exec_capture`] keeps: the first ones.
pub const OUTPUT_KEPT: usize = 64 << 10;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    /// The command line.
    pub argv: Vec<String>,
    /// `NAME=value`, added to the instance's own environment.
    pub env: Vec<String>,
    /// `user[:group]` instead of the instance's own.
    pub user: Option<String>,
    /// Working directory instead of the instance's own.
    pub cwd: Option<String>,
    /// Rows and columns of a terminal, if it gets one.
    pub terminal: Option<(u16, u16)>,
}

/// Descriptors of the command: pipes that were made for it, for what it does to their other ends
/// nobody but their maker must mind. With a terminal, the first two are relayed to it and the third
/// is not used.
#[derive(Debug)]
pub struct ExecStdio {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// How a captured command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Exit status; 128 + signal if one ended it, 137 if it was killed for taking too long.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It took longer than it may.
    pub timed_out: bool,
    /// Standard output and error as they came, the first [`OUTPUT_KEPT`] bytes.
    pub output: Vec<u8>,
}

/// A command that runs with its caller's descriptors. Dropping it kills the command.
#[derive(Debug)]
pub struct Executing {
    session: Session,
}

impl Executing {
    /// What was left out, such as a capability that the host cannot give.
    pub fn warnings(&self) -> &[String] {
        &self.session.warnings
    }

    /// Sends a signal to the command.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: i32) -> Result<(), RunError> {
        self.session.order(Order::Signal(signal)).doing(|| "signal the command".to_owned())
    }

    /// Tells the terminal its new size.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), RunError> {
        self.session.order(Order::Resize(rows, columns)).doing(|| "resize the terminal".to_owned())
    }

    /// As [`Executing::wait`], but kills the command soon after `cancelled` is set, and does
    /// `meanwhile` every now and then.
    ///
    /// # Errors
    /// As [`Executing::wait`].
    pub fn wait_unless(
        &mut self,
        cancelled: &AtomicBool,
        mut meanwhile: impl FnMut(&Self),
    ) -> Result<i32, RunError> {
        const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        while let Some(socket) = self.session.socket() {
            let mut fds = [PollFd::new(socket, PollFlags::IN)];
            if !matches!(poll(&mut fds, Some(&LOOK)), Ok(0)) {
                break;
            }
            if cancelled.load(Ordering::Acquire) {
                self.session.kill();
                return Ok(137);
            }
            meanwhile(self);
        }
        self.wait()
    }

    /// Waits for the end: exit status, 128 + signal if one ended it.
    ///
    /// # Errors
    /// When its session was killed.
    pub fn wait(&mut self) -> Result<i32, RunError> {
        self.session.wait().map(|(code, _)| code)
    }
}

impl Runtime {
    /// Runs a command in `instance` with the given descriptors; returns when it was executed.
    ///
    /// # Errors
    /// [`RunError::Start`] says what failed, for example that there is no such program.
    pub fn exec(
        &self,
        instance: &Running,
        spec: &ExecSpec,
        stdio: ExecStdio,
    ) -> Result<Executing, RunError> {
        let ExecStdio { stdin, stdout, stderr } = stdio;
        let session = self.session(instance, spec, &[stdin, stdout, stderr])?;
        Ok(Executing { session })
    }

    /// Runs a command in `instance`, with nothing to read, for at most `timeout`, and returns
    /// what it wrote.
    ///
    /// # Errors
    /// As [`Runtime::exec`]. A command that fails or takes too long is no error.
    pub fn exec_capture(
        &self,
        instance: &Running,
        spec: &ExecSpec,
        timeout: Duration,
    ) -> Result<ExecOutcome, RunError> {
        let deadline = Instant::now() + timeout;
        let doing = || format!("run a command in `{}`", instance.id);
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).doing(doing)?;
        // The command's end must block like any other pipe.
        rustix::io::ioctl_fionbio(&write, false).doing(doing)?;
        let copy = write.try_clone().doing(doing)?;
        let stdio = [crate::sys::null().doing(doing)?, write, copy];
        let mut session = self.session(instance, spec, &stdio)?;
        drop(stdio);
        let mut output = Vec::new();
        let mut open = true;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                session.kill();
                collect(&read, &mut output);
                return Ok(ExecOutcome { code: 137, signal: Some(9), timed_out: true, output });
            }
            let (ended, readable) = ready(&session, &read, open, left);
            if readable {
                open = collect(&read, &mut output);
            }
            if ended {
                let (code, signal) = session.wait()?;
                collect(&read, &mut output);
                return Ok(ExecOutcome { code, signal, timed_out: false, output });
            }
        }
    }

    fn session(
        &self,
        instance: &Running,
        spec: &ExecSpec,
        stdio: &[OwnedFd; 3],
    ) -> Result<Session, RunError> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}/exec-{}-{number}", instance.id, std::process::id());
        let exec = Exec {
            dir: instance.dir.clone(),
            pid: instance.program.pid,
            start_time: instance.program.start_time,
            argv: spec.argv.clone(),
            env: spec.env.clone(),
            user: spec.user.clone(),
            cwd: spec.cwd.clone(),
            terminal: spec.terminal,
        };
        let group = self.group_name(&name);
        let limits_of = Some(self.group_name(&instance.id));
        let request = Request { group, limits_of, what: What::Exec(exec) };
        Session::start(&self.exe()?, ROLE_EXEC, &instance.id, &request, stdio)
    }
}

/// Whether the session has something to say, and whether there is output.
fn ready(session: &Session, read: &OwnedFd, open: bool, limit: Duration) -> (bool, bool) {
    let Some(socket) = session.socket() else { return (true, false) };
    let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
    if open {
        fds.push(PollFd::from_borrowed_fd(read.as_fd(), PollFlags::IN));
    }
    if poll(&mut fds, Some(&timespec(limit))).is_err() {
        return (false, false);
    }
    let some = |at: usize| fds.get(at).is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty());
    (some(0), some(1))
}

/// Takes what is there. False: there will be no more.
fn collect(read: &OwnedFd, output: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 8 << 10];
    loop {
        match rustix::io::read(read, &mut buffer) {
            Ok(0) => return false,
            Ok(length) => {
                let room = OUTPUT_KEPT.saturating_sub(output.len());
                output.extend_from_slice(&buffer[..length.min(room)]);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        }
    }
}
