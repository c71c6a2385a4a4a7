//! The zygote: a process with one thread, of the agent's build, from which shims are forked.
//!
//! To execute a binary of this size anew for each instance takes a millisecond: mapping it, the
//! dynamic linker, the relocations, leaving the starter's settings. The zygote has all of that
//! behind it. It knows nothing of any instance: it reads no specification, and forks before it
//! does anything for one. It runs from the sealed copy, like all that it forks.
//!
//! It ends when its line to the agent breaks. One that is gone, stopped or too busy costs nothing
//! but time: the shim is executed then.

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use kiln_core::compose::Limits;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::cgroup::Cgroups;
use crate::devices;
use crate::error::{Context as _, Fault};
use crate::report::{Report, Reporter};
use crate::sys::{self, Cloned};
use crate::{ROLE_SHIM, ROLE_ZYGOTE, shim};

/// The longest path that the kernel takes.
const LONGEST_PATH: usize = 4096;
/// Makes room in the command line for the path of an instance's folder.
const ROOM: usize = 512;

/// The agent's end.
#[derive(Debug, Default)]
pub(crate) struct Zygote(Mutex<Option<Process>>);

#[derive(Debug)]
struct Process {
    line: OwnedFd,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// `shims` is the group of the shims that it forks.
    fn start(exe: &Path, shims: &str) -> io::Result<Self> {
        let (line, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(exe)
            .arg0("kiln")
            .args([ROLE_ZYGOTE, shims, &"-".repeat(ROOM)])
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { line, child })
    }

    fn ask(&self, dir: &Path, report: BorrowedFd<'_>, stderr: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [report, stderr];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        // A zygote that does not listen is not waited for.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let path = [IoSlice::new(dir.as_os_str().as_bytes())];
        sendmsg(&self.line, &path, &mut control, flags)?;
        Ok(())
    }
}

impl Zygote {
    /// Starts it if it does not run: the first instance need not wait then.
    pub(crate) fn warm(&self, exe: &Path, shims: &str) {
        let mut process = self.process();
        if process.is_none() {
            *process = Process::start(exe, shims).ok();
        }
    }

    /// Has it fork the shim of the instance in `dir`; `report` and `stderr` become the shim's.
    ///
    /// # Errors
    /// When it cannot be asked, and then it has not heard of it.
    pub(crate) fn fork(
        &self,
        exe: &Path,
        shims: &str,
        dir: &Path,
        (report, stderr): (BorrowedFd<'_>, BorrowedFd<'_>),
    ) -> io::Result<()> {
        let mut process = self.process();
        if let Some(there) = process.as_ref() {
            match there.ask(dir, report, stderr) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // It has gone.
                Err(_) => *process = None,
                Ok(()) => return Ok(()),
            }
        }
        process.insert(Process::start(exe, shims)?).ask(dir, report, stderr)
    }

    /// Ends it, with whatever it has not heard of yet.
    pub(crate) fn end(&self) {
        *self.process() = None;
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `kiln zygote SHIMS`: standard input is the line to the agent.
pub(crate) fn main(shims: &OsStr) -> ! {
    let served = sys::take_input().map_err(drop).and_then(|line| {
        // What is typed at the agent's terminal is for the agent.
        let _ = rustix::process::setsid();
        sys::cloexec_from(3);
        sys::set_command_line(&[b"kiln", ROLE_ZYGOTE.as_bytes(), shims.as_bytes()]);
        // The kernel reaps the shims, which end whenever they do.
        sys::ignore_signal(libc::SIGCHLD);
        devices::load_beforehand();
        serve(line, &Cgroups::find().map_err(drop)?, &shims.to_string_lossy());
        Ok(())
    });
    sys::exit_now(i32::from(served.is_err()))
}

fn serve(line: OwnedFd, cgroups: &Cgroups, shims: &str) {
    while let Some((dir, report, stderr)) = receive(&line) {
        let mut reporter = Reporter::new(report);
        let forked = cgroups.group(shims, &Limits::default()).and_then(|group| {
            let group = group.open()?;
            sys::clone_into(0, Some(group.as_fd())).step(|| "fork the shim".to_owned())
        });
        match forked {
            Ok(Cloned::Parent { .. }) => {}
            Ok(Cloned::Child) => {
                // The agent sees by it whether the zygote is there.
                drop(line);
                become_shim(&dir, cgroups, reporter, &stderr)
            }
            Err(fault) => reporter.send(&Report::Failed(fault)),
        }
    }
}

fn become_shim(dir: &Path, cgroups: &Cgroups, mut reporter: Reporter, stderr: &OwnedFd) -> ! {
    sys::default_signal(libc::SIGCHLD);
    if let Err(error) = sys::dup_to(stderr.as_fd(), 2) {
        reporter.send(&Report::Failed(Fault::new("set up the shim's standard error", error)));
        sys::exit_now(1);
    }
    // For people: `ps` shows which instance it is of.
    sys::set_command_line(&[b"kiln", ROLE_SHIM.as_bytes(), dir.as_os_str().as_bytes()]);
    shim::forked(dir, cgroups, reporter)
}

/// The next one to fork; `None`: the agent is gone, or what comes makes no sense.
fn receive(line: &OwnedFd) -> Option<(PathBuf, OwnedFd, OwnedFd)> {
    let mut path = [0; LONGEST_PATH];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut path)];
        let length = match recvmsg(line, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => continue,
            Err(_) => return None,
            Ok(message) => message.bytes,
        };
        let mut fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let mut fds = fds.next()?;
        let dir = Path::new(OsStr::from_bytes(&path[..length])).to_owned();
        return Some((dir, fds.next()?, fds.next()?));
    }
}
