//! One instance, spoken to through its shim. A handle is a folder and a pid: it holds nothing
//! open, so any number of them, in any process, may speak of the same instance.

use std::fs;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, RunError};
use crate::shim::control::{EXIT_FILE, Reply, Request, SOCKET};

/// How an instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitInfo {
    /// Exit status; 128 + signal if one ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed it for want of memory.
    pub oom: bool,
    /// Nanoseconds since the Unix epoch.
    pub at: u64,
}

/// What is known of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Its program runs.
    Running {
        /// Pid of the program, or of its init.
        pid: i32,
        /// Clock ticks from boot to its start: with the pid, names the process for good.
        start_time: u64,
        /// Nanoseconds since the Unix epoch.
        since: u64,
        /// Lines of its log that could not be written.
        dropped: u64,
    },
    /// It ended.
    Exited(ExitInfo),
    /// Its shim was killed, and the program with it.
    Lost,
}

/// A handle on an instance.
#[derive(Debug, Clone)]
pub struct Running {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    pub(crate) warnings: Vec<String>,
}

impl Running {
    /// The instance's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The instance's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Pid of the program, or of its init, on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Clock ticks from boot to its start: with the pid, names the process for good.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// What was left out when it started, such as an ulimit that could not be raised.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What is known now.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn status(&self) -> Result<InstanceState, RunError> {
        state_of(&self.dir)
    }

    /// Whether its program runs.
    pub fn is_alive(&self) -> bool {
        matches!(self.status(), Ok(InstanceState::Running { .. }))
    }

    /// Sends `signal` to the program, or its init.
    ///
    /// # Errors
    /// [`RunError::NotRunning`], or what the kernel said.
    pub fn signal(&self, signal: i32) -> Result<(), RunError> {
        match ask(&self.dir, &Request::Signal { signal })? {
            Some(Reply::Done) => Ok(()),
            Some(Reply::Refused(message)) => Err(refused(&self.dir, &message)),
            _ => Err(RunError::NotRunning { dir: self.dir.clone() }),
        }
    }

    /// Sends `signal`, kills after `grace`, and waits for the end. Returns
    /// [`InstanceState::Exited`], or [`InstanceState::Lost`] if the shim was killed meanwhile.
    ///
    /// # Errors
    /// When the folder cannot be read, or there is no such signal.
    pub fn stop(&self, signal: i32, grace: Duration) -> Result<InstanceState, RunError> {
        let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        self.until_end(&Request::Stop { signal, grace })
    }

    /// Kills it and waits for the end; else as [`Running::stop`].
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn kill(&self) -> Result<InstanceState, RunError> {
        self.until_end(&Request::Kill)
    }

    /// Waits for the end; else as [`Running::stop`].
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn wait(&self) -> Result<InstanceState, RunError> {
        self.until_end(&Request::Wait)
    }

    /// A descriptor that becomes readable when the instance has ended, for `poll`; `None`: it has
    /// ended already. What is to be read there is of no concern: ask [`Running::status`].
    ///
    /// # Errors
    /// When the shim cannot be asked.
    pub fn wait_fd(&self) -> Result<Option<OwnedFd>, RunError> {
        let Some(mut socket) = connect(&self.dir)? else { return Ok(None) };
        match send(&mut socket, &Request::Wait) {
            Ok(()) => Ok(Some(socket.into())),
            Err(_) => Ok(None),
        }
    }

    fn until_end(&self, request: &Request) -> Result<InstanceState, RunError> {
        match ask(&self.dir, request)? {
            Some(Reply::Exited(exit)) => Ok(InstanceState::Exited(exit)),
            Some(Reply::Refused(message)) => Err(refused(&self.dir, &message)),
            _ => ended(&self.dir),
        }
    }
}

fn refused(dir: &Path, message: &str) -> RunError {
    RunError::Io {
        what: format!("instance in {}", dir.display()),
        source: io::Error::other(message),
    }
}

/// The state of the instance in `dir`, whoever started it.
pub(crate) fn state_of(dir: &Path) -> Result<InstanceState, RunError> {
    match ask(dir, &Request::Status)? {
        Some(Reply::Running { pid, start_time, since, dropped }) => {
            Ok(InstanceState::Running { pid, start_time, since, dropped })
        }
        _ => ended(dir),
    }
}

/// The state when no shim answers.
fn ended(dir: &Path) -> Result<InstanceState, RunError> {
    let path = dir.join(EXIT_FILE);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(InstanceState::Exited)
            .map_err(io::Error::from)
            .doing(|| format!("read {}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(InstanceState::Lost),
        Err(error) => Err(error).doing(|| format!("read {}", path.display())),
    }
}

/// Asks the shim and waits for its answer; `None`: there is none, or it ended without one.
fn ask(dir: &Path, request: &Request) -> Result<Option<Reply>, RunError> {
    let Some(mut socket) = connect(dir)? else { return Ok(None) };
    let mut line = String::new();
    let answered =
        send(&mut socket, request).and_then(|()| BufReader::new(socket).read_line(&mut line));
    match answered {
        Ok(0) | Err(_) => Ok(None),
        Ok(_) => serde_json::from_str(&line)
            .map(Some)
            .map_err(io::Error::from)
            .doing(|| format!("understand the shim in {}: `{}`", dir.display(), line.trim())),
    }
}

fn send(socket: &mut UnixStream, request: &Request) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    socket.write_all(&line)
}

/// `None`: nobody listens.
fn connect(dir: &Path) -> Result<Option<UnixStream>, RunError> {
    let doing = || format!("speak to the shim in {}", dir.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = match openat(CWD, dir, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        folder => folder.doing(doing)?,
    };
    // The path of a socket may have 107 bytes, a root's path more.
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    match UnixStream::connect(path) {
        Ok(socket) => Ok(Some(socket)),
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).doing(doing),
    }
}
