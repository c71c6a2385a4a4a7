//! The starter's side of a session.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::wire::{Order, Request, SessionReply, StepEnd, send_request};
use crate::error::{Context as _, RunError};
use crate::process::ProcessId;
use crate::report::Report;

/// How long a session may take until its program is executed.
const START: Duration = Duration::from_secs(30);
/// How long one may take to end when it is told to.
const END: Duration = Duration::from_secs(10);

/// A session that was started. Dropping it kills what it runs, and waits for that.
#[derive(Debug)]
pub(crate) struct Session {
    id: String,
    socket: Option<BufReader<UnixStream>>,
    child: Child,
    errors: File,
    /// What was left out.
    pub(crate) warnings: Vec<String>,
}

impl Session {
    /// Starts `exe role` with `request` and waits for the program's exec. `id` is for messages.
    pub(crate) fn start(
        exe: &Path,
        role: &str,
        id: &str,
        request: &Request,
        stdio: &[OwnedFd; 3],
    ) -> Result<Self, RunError> {
        let doing = || format!("start the session of `{id}`");
        let (socket, theirs) = UnixStream::pair().doing(doing)?;
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let errors = File::from(rustix::fs::memfd_create("errors", flags).doing(doing)?);
        let child = Command::new(exe)
            .arg0("kiln")
            .arg(role)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(errors.try_clone().doing(doing)?)
            .spawn()
            .doing(|| format!("run {} for `{id}`", exe.display()))?;
        let id = id.to_owned();
        let socket = Some(BufReader::new(socket));
        let mut session = Self { id, socket, child, errors, warnings: Vec::new() };
        if let Some(socket) = session.socket() {
            // Nor is it waited for without end that the request is read.
            socket.set_write_timeout(Some(START)).doing(doing)?;
            socket.set_read_timeout(Some(START)).doing(doing)?;
        }
        let sent = match &session.socket {
            Some(socket) => send_request(socket.get_ref(), request, stdio),
            None => Ok(()),
        };
        // A session that could not take it says why, or dies.
        let said = session.started();
        if let Some(socket) = session.socket() {
            socket.set_read_timeout(None).doing(doing)?;
        }
        match (said, sent) {
            (Err(error), _) => Err(error),
            (Ok(()), sent) => sent.doing(doing).map(|()| session),
        }
    }

    fn started(&mut self) -> Result<(), RunError> {
        loop {
            match self.next()? {
                Some(SessionReply::Report(Report::Warning(text))) => self.warnings.push(text),
                Some(SessionReply::Report(Report::Failed(fault))) => {
                    return Err(fault.of(&self.id));
                }
                Some(SessionReply::Report(Report::Started { .. })) => return Ok(()),
                Some(SessionReply::Report(Report::Shim(_) | Report::Inside { .. })) => {}
                Some(SessionReply::Exited { .. }) | None => return Err(self.died()),
            }
        }
    }

    /// Waits for the next reply; `None`: there will be none.
    fn next(&mut self) -> Result<Option<SessionReply>, RunError> {
        let id = &self.id;
        let doing = || format!("hear from the session of `{id}`");
        let Some(socket) = &mut self.socket else { return Ok(None) };
        let mut line = String::new();
        match socket.read_line(&mut line) {
            Ok(0) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let message = format!("it does not answer within {} s", START.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, message)).doing(doing)
            }
            Ok(_) => serde_json::from_str(&line).map(Some).map_err(io::Error::from).doing(doing),
            Err(error) => Err(error).doing(doing),
        }
    }

    /// Waits for the end: exit status (128 + signal if one ended it) and signal.
    pub(crate) fn wait(&mut self) -> Result<(i32, Option<i32>), RunError> {
        self.wait_step().map(|(code, signal, _)| (code, signal))
    }

    /// As [`Session::wait`], with what more there is to say of a step.
    pub(crate) fn wait_step(&mut self) -> Result<(i32, Option<i32>, StepEnd), RunError> {
        loop {
            match self.next()? {
                Some(SessionReply::Exited { code, signal, step }) => {
                    return Ok((code, signal, step));
                }
                Some(SessionReply::Report(Report::Failed(fault))) => {
                    return Err(fault.of(&self.id));
                }
                Some(SessionReply::Report(_)) => {}
                None => return Err(self.died()),
            }
        }
    }

    /// Becomes readable with the next reply; for `poll`.
    pub(crate) fn socket(&self) -> Option<&UnixStream> {
        self.socket.as_ref().map(BufReader::get_ref)
    }

    /// Gives an order.
    pub(crate) fn order(&self, order: Order) -> io::Result<()> {
        let Some(mut socket) = self.socket() else { return Ok(()) };
        let mut line = serde_json::to_vec(&order)?;
        line.push(b'\n');
        socket.write_all(&line)
    }

    /// Kills what it runs, and waits for that. A session that does not end when its socket closes
    /// is killed itself: its program dies with it.
    pub(crate) fn kill(&mut self) {
        self.socket = None;
        let session = ProcessId::of(self.child.id().cast_signed()).ok().flatten();
        if !session.is_none_or(|session| session.ends_within(END)) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }

    fn died(&mut self) -> RunError {
        self.kill();
        let mut said = String::new();
        let _ = self.errors.rewind().and_then(|()| self.errors.read_to_string(&mut said));
        RunError::ShimDied { id: self.id.clone(), said }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.kill();
    }
}
