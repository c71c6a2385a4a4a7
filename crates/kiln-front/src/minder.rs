//! The minder: it keeps the listening sockets and starts a worker whenever there is none. It does
//! nothing else, so there is nothing that it could die of; should it be killed all the same, the
//! worker goes on and the agent starts another minder, which finds that worker.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::link::{self, Message};
use crate::listener::Key;
use crate::paths::Paths;
use crate::worker::raise_descriptor_limit;

/// A worker that lived shorter than this is restarted more and more slowly.
const SHORT_LIFE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Minds the front of `root`, whose program is `exe`, until that is told to stop; returns the
/// exit code. Leaves at once when another minder is there.
pub fn run_minder(root: &Path, exe: &Path) -> u8 {
    match run(root, exe) {
        Ok(()) => 0,
        Err(error) => {
            say!("front: {}: {error}", root.display());
            1
        }
    }
}

struct Minder<'a> {
    root: &'a Path,
    exe: &'a Path,
    kept: BTreeMap<Key, OwnedFd>,
    /// Started by this minder and not yet reaped.
    children: Vec<Child>,
}

enum End {
    Stopped,
    Died,
    /// It leaves, and another shall start meanwhile.
    Replaced,
}

fn run(root: &Path, exe: &Path) -> io::Result<()> {
    // Fails for a process group's leader, which a shell's job is: that is as good.
    let _ = rustix::process::setsid();
    let (root, exe) = (&std::path::absolute(root)?, &std::path::absolute(exe)?);
    raise_descriptor_limit();
    // Keeps no file system busy on which it happened to be started.
    rustix::process::chdir("/")?;
    let paths = Paths::new(root);
    paths.create()?;
    let Some(_lock) = paths.try_lock("minder.lock")? else { return Ok(()) };
    let mut minder = Minder { root, exe, kept: BTreeMap::new(), children: Vec::new() };
    let mut orphan = link::connect_to(&paths.minder()).ok();
    let mut pause = FIRST_PAUSE;
    loop {
        let start = Instant::now();
        let line = match orphan.take() {
            Some(line) => Ok(line),
            None => minder.spawn(),
        };
        let end = match line {
            Ok(line) => minder.tend(line),
            Err(error) => {
                say!("front: {}: {error}", exe.display());
                End::Died
            }
        };
        match end {
            End::Stopped => return Ok(()),
            End::Replaced => {}
            End::Died if start.elapsed() > SHORT_LIFE => pause = FIRST_PAUSE,
            End::Died => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

impl Minder<'_> {
    fn spawn(&mut self) -> io::Result<OwnedFd> {
        self.children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        let (here, there) = link::pair()?;
        let mut command = Command::new(self.exe);
        command.args(["front", "--worker"]).arg(self.root).stdin(Stdio::from(there));
        let child = command.spawn()?;
        // The parent's copy of the worker's end goes with it, else its death would not show.
        drop(command);
        self.children.push(child);
        for (key, socket) in &self.kept {
            link::send(here.as_fd(), &Message::Add(key.clone()), Some(socket.as_fd()))?;
        }
        link::send(here.as_fd(), &Message::Go, None)?;
        Ok(here)
    }

    /// Keeps what the worker has it keep, until the line breaks.
    fn tend(&mut self, line: OwnedFd) -> End {
        let mut end = End::Died;
        loop {
            match link::receive(line.as_fd()) {
                Ok(Some((Message::Add(key), Some(socket)))) => {
                    self.kept.insert(key, socket);
                }
                Ok(Some((Message::Drop(key), _))) => {
                    self.kept.remove(&key);
                }
                Ok(Some((Message::Bye, _))) => {
                    // Ports are free from here on, whatever the worker still finishes.
                    self.kept.clear();
                    end = End::Stopped;
                }
                Ok(Some((Message::Upgrade, _))) => return End::Replaced,
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    say!("front: minder's line: {error}");
                    break;
                }
            }
        }
        self.children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        end
    }
}
