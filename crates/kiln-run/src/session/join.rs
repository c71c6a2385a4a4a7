//! Into the namespaces of a running instance.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{ThreadNameSpaceType as Namespace, move_into_thread_name_spaces};

use super::wire::Exec;
use crate::error::{Context as _, Fault};
use crate::report::{Report, start_time};
use crate::spec::{InstanceSpec, Network, SPEC_FILE, Sandbox};

/// The instance to enter, and what to run there.
#[derive(Debug)]
pub(super) struct Target {
    pidfd: OwnedFd,
    root: OwnedFd,
    sandbox: Sandbox,
}

impl Target {
    /// Opens the instance's first process and reads its specification, on the host's side.
    pub(super) fn open(exec: &Exec) -> Result<Self, Fault> {
        let step = || format!("enter the instance in {}", exec.dir.display());
        let gone = || Fault::new(step(), "it is not running");
        let pid = Pid::from_raw(exec.pid).ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
        // Looked up after the pidfd was opened: so the pidfd is of that process.
        if start_time(exec.pid) != Some(exec.start_time) {
            return Err(gone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("/proc/{}/root", exec.pid), flags, Mode::empty())
            .map_err(|_| gone())?;
        let text = std::fs::read(exec.dir.join(SPEC_FILE)).step(step)?;
        let spec: InstanceSpec =
            serde_json::from_slice(&text).map_err(|error| Fault::new(step(), error))?;
        let mut sandbox = spec.sandbox;
        sandbox.argv.clone_from(&exec.argv);
        sandbox.init = false;
        sandbox.hold = false;
        if let Some(user) = &exec.user {
            sandbox.user.clone_from(user);
        }
        if let Some(cwd) = &exec.cwd {
            sandbox.cwd.clone_from(cwd);
        }
        if exec.terminal.is_some() {
            set(&mut sandbox.env, "TERM=xterm");
        }
        for pair in &exec.env {
            set(&mut sandbox.env, pair);
        }
        Ok(Self { pidfd, root, sandbox })
    }

    /// What to run there.
    pub(super) fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Joins all namespaces in one move. Of the pid namespace only children become part.
    pub(super) fn enter(&self) -> Result<(), Fault> {
        let mut which = Namespace::MOUNT
            | Namespace::PROCESS_ID
            | Namespace::HOST_NAME_AND_NIS_DOMAIN_NAME
            | Namespace::INTER_PROCESS_COMMUNICATION
            | Namespace::CONTROL_GROUP;
        if self.sandbox.network != Network::Host {
            which |= Namespace::NETWORK;
        }
        move_into_thread_name_spaces(self.pidfd.as_fd(), which)
            .step(|| "join the namespaces".to_owned())
    }

    /// A terminal of the instance's own: our side and the program's.
    pub(super) fn terminal(
        &self,
        (rows, columns): (u16, u16),
    ) -> Result<(OwnedFd, OwnedFd), Fault> {
        let step = || "open a terminal".to_owned();
        // What lies at that path is the instance's to choose: it must be inside its root, and it
        // must be what we think it is.
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let master =
            openat2(&self.root, "dev/pts/ptmx", flags, Mode::empty(), inside).step(step)?;
        let stat = rustix::fs::fstat(&master).step(step)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !kind.is_char_device() || stat.st_rdev != rustix::fs::makedev(5, 2) {
            return Err(Fault::new(step(), "/dev/pts/ptmx of the instance is no multiplexer"));
        }
        unlockpt(&master).step(step)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let side = ioctl_tiocgptpeer(&master, flags).step(step)?;
        resize(&master, rows, columns);
        Ok((master, side))
    }
}

/// The process that goes on inside, if the joiner has got so far. That line may have been written
/// by a stranger who traces it, so only a child of this process is believed.
pub(super) fn child_inside(reports: &[Report]) -> Option<(i32, OwnedFd)> {
    reports.iter().find_map(|report| {
        let Report::Inside { pid } = report else { return None };
        let pidfd = pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(pidfd.as_fd()), look).ok()?;
        Some((*pid, pidfd))
    })
}

/// Sets the size of a terminal; one that does not take it stays as it is.
pub(super) fn resize(master: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let _ = tcsetwinsize(master, size);
}

/// Sets `NAME=value` in an environment.
fn set(env: &mut Vec<String>, pair: &str) {
    let name = pair.split('=').next().unwrap_or(pair);
    env.retain(|old| old.split('=').next() != Some(name));
    env.push(pair.to_owned());
}
