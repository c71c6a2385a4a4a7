//! The socket of an SSH agent, forwarded into a step: a socket of the step's own, with the owner
//! and mode that it asks for, whose connections are passed on. So the step sees neither the
//! socket of the host nor its directory, and has it no longer than it runs.

use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::BakeError;
use crate::key::Key;
use crate::runner::StepMount;

/// So many connections at a time; more are closed at once.
const MOST: usize = 64;

/// An agent as one step wants it.
#[derive(Debug, Clone)]
pub struct AgentMount {
    /// Its id.
    pub id: String,
    /// The socket that the build has of that id.
    pub socket: Option<PathBuf>,
    /// Absolute path of the socket in the step.
    pub target: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl AgentMount {
    /// Which agent, and where it goes.
    pub(crate) fn key(&self, key: Key) -> Key {
        key.text("ssh")
            .text(&self.id)
            .text(&self.target)
            .number(u64::from(self.uid) << 32 | u64::from(self.gid))
            .number(u64::from(self.mode))
    }

    /// Forwards it, if the build has one; `dir` takes the socket.
    pub(crate) fn forward(&self, dir: &Path) -> Result<Option<Forwarded>, BakeError> {
        let Some(agent) = &self.socket else { return Ok(None) };
        let path = dir.join("agent");
        let failed = |error| BakeError::io("cannot forward the agent to", &path, error);
        // Looked at now, so that the message names it; a step would only see a dead socket.
        UnixStream::connect(agent).map_err(|error| {
            let what = format!("the SSH agent at {} does not answer: {error}", agent.display());
            BakeError::usage(what, "start it, and see that SSH_AUTH_SOCK names it")
        })?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        chown(&path, Some(self.uid), Some(self.gid)).map_err(failed)?;
        let mode = std::fs::Permissions::from_mode(self.mode & 0o777);
        std::fs::set_permissions(&path, mode).map_err(failed)?;
        let over = Arc::new(AtomicBool::new(false));
        let (agent, ended) = (agent.clone(), Arc::clone(&over));
        let thread = std::thread::spawn(move || serve(&listener, &agent, &ended));
        Ok(Some(Forwarded { path, over, thread: Some(thread) }))
    }
}

/// An agent that is forwarded until this is dropped.
#[derive(Debug)]
pub(crate) struct Forwarded {
    path: PathBuf,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Forwarded {
    pub(crate) fn mount(&self, target: &str) -> StepMount {
        StepMount { source: self.path.clone(), target: target.to_owned(), read_only: false }
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // A connection wakes the one that waits for connections.
        let woken = UnixStream::connect(&self.path).is_ok();
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &UnixListener, agent: &Path, over: &AtomicBool) {
    // Each connection holds a clone.
    let open = Arc::new(());
    while let Ok((client, _)) = listener.accept() {
        if over.load(Ordering::Acquire) {
            return;
        }
        if Arc::strong_count(&open) > MOST {
            continue;
        }
        let Ok(agent) = UnixStream::connect(agent) else { continue };
        let (Ok(from_client), Ok(to_client)) = (client.try_clone(), client.try_clone()) else {
            continue;
        };
        let (Ok(from_agent), Ok(to_agent)) = (agent.try_clone(), agent.try_clone()) else {
            continue;
        };
        // Both end when the step's processes do, for these hold the other end.
        let held = Arc::clone(&open);
        std::thread::spawn(move || pass(from_client, to_agent));
        std::thread::spawn(move || {
            pass(from_agent, to_client);
            drop(held);
        });
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream) {
    // Whichever side goes, the other one learns it.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
