//! From specification to running program.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::pipe::{PipeFlags, pipe_with};

use super::control::SOCKET;
use crate::cgroup::{Cgroups, Group};
use crate::devices::Others;
use crate::error::{Context as _, Fault};
use crate::report::{Report, Reporter, read_all, start_time, sum_up};
use crate::sandbox::{self, Gate, Stdio};
use crate::spec::{InstanceSpec, Network};
use crate::sys::{self, Cloned};

/// Where the new root is assembled, in the instance's folder: stays empty for everybody but the
/// program's own first steps.
pub(crate) const SCRATCH: &str = "mnt";

/// A running program with all that its shim holds of it.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) spec: InstanceSpec,
    pub(super) pid: i32,
    pub(super) start_time: u64,
    pub(super) pidfd: OwnedFd,
    pub(super) group: Group,
    pub(super) listener: UnixListener,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// The gate's end that only the shim holds: its closing tells a program that is still on its
    /// way that the shim has gone.
    pub(super) _gate: OwnedFd,
}

/// Starts the program; returns when it was executed. Leaves nothing behind on failure.
pub(super) fn launch(
    spec: InstanceSpec,
    cgroups: &Cgroups,
    reporter: &mut Reporter,
) -> Result<Launched, Fault> {
    let listener = listen()?;
    let mut group = cgroups.group(&spec.cgroup, &spec.sandbox.limits)?;
    let result = start(&spec, &mut group, reporter);
    match result {
        Ok(started) => {
            let Started { pid, pidfd, stdout, stderr, gate } = started;
            let start_time = start_time(pid).unwrap_or(0);
            let _gate = gate;
            Ok(Launched { spec, pid, start_time, pidfd, group, listener, stdout, stderr, _gate })
        }
        Err(fault) => {
            super::event::clean_up(&spec, &group);
            Err(fault)
        }
    }
}

fn listen() -> Result<UnixListener, Fault> {
    let step = || "listen on the control socket".to_owned();
    let bound = match UnixListener::bind(SOCKET) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // Either another shim's, who then answers, or left by one that was killed.
            if std::os::unix::net::UnixStream::connect(SOCKET).is_ok() {
                return Err(Fault::new(step(), "another shim has this instance"));
            }
            fs::remove_file(SOCKET).step(step)?;
            UnixListener::bind(SOCKET)
        }
        bound => bound,
    };
    let listener = bound.step(step)?;
    listener.set_nonblocking(true).step(step)?;
    Ok(listener)
}

struct Started {
    pid: i32,
    pidfd: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    gate: OwnedFd,
}

fn start(
    spec: &InstanceSpec,
    group: &mut Group,
    reporter: &mut Reporter,
) -> Result<Started, Fault> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).step(|| "make a pipe".to_owned());
    let (report, child_report) = pipe()?;
    let (child_gate, gate) = pipe()?;
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let stdin = sys::null().step(|| "open /dev/null".to_owned())?;
    let into = group.open()?;
    move_in(&spec.sandbox.network)?;
    let flags = sandbox::namespaces(&spec.sandbox.network);
    let cloned = sys::clone_into(flags, Some(into.as_fd()))
        .step(|| "clone into new namespaces".to_owned())?;
    let Cloned::Parent { pid, pidfd } = cloned else {
        // Their closing must be seen by the two sides, so no copies stay here.
        drop((report, gate, stdout, stderr));
        let stdio =
            Stdio { stdin, stdout: child_stdout, stderr: child_stderr, tty: false, epilogue: None };
        let scratch = Path::new(SCRATCH);
        let mut child = Reporter::new(child_report);
        let child_gate = Gate::new(child_gate);
        let fault = sandbox::enter(&spec.sandbox, scratch, stdio, &mut child, &child_gate);
        sandbox::give_up(child, fault)
    };
    drop((child_report, child_gate, child_stdout, child_stderr));
    let open = || rustix::io::write(&gate, &[1]).step(|| "open the gate".to_owned());
    // Its limits hold before it reads a byte of the image; its network may come later.
    let through = group
        .attach(pid)
        .and_then(|()| open())
        .and_then(|_| keep_to_devices(spec, group, pid, reporter))
        .and_then(|()| connect(spec, pid))
        .and_then(|()| open());
    let said = match through {
        Ok(_) => read_all(report).step(|| "wait for the exec".to_owned()).and_then(sum_up),
        Err(fault) => {
            let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            // What the child said first is the cause, if it did.
            let said = read_all(report).map_err(|_| fault.clone()).and_then(sum_up);
            Err(said.err().unwrap_or(fault))
        }
    };
    match said {
        Ok((warnings, _)) => {
            for warning in warnings {
                reporter.send(&Report::Warning(warning));
            }
            Ok(Started { pid, pidfd, stdout, stderr, gate })
        }
        Err(fault) => {
            let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = sys::wait_pidfd(pidfd.as_fd());
            Err(fault)
        }
    }
}

/// While the root is being made, which opens no device.
fn keep_to_devices(
    spec: &InstanceSpec,
    group: &mut Group,
    pid: i32,
    reporter: &mut Reporter,
) -> Result<(), Fault> {
    let own = &spec.sandbox.devices;
    let unheld = group.keep_to_devices(Others::Refused, own, Some(pid))?;
    for warning in unheld.into_iter().chain(group.unmet()) {
        reporter.send(&Report::Warning(warning));
    }
    Ok(())
}

/// Moves this process into the network of another instance, whose program must still be the one
/// that is meant: what the child inherits. A shim has no other use for its own.
fn move_in(network: &Network) -> Result<(), Fault> {
    let Network::With { pid, start_time: began } = *network else { return Ok(()) };
    let step = || format!("join the network of process {pid}");
    let namespace = fs::File::open(format!("/proc/{pid}/ns/net")).step(step)?;
    // Looked at after the namespace was opened: a pid that somebody else got is found out.
    if start_time(pid) != Some(began) {
        return Err(Fault::new(step(), "it has ended"));
    }
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).step(step)
}

/// What the program needs from outside; it goes on in parallel with the making of its root.
fn connect(spec: &InstanceSpec, pid: i32) -> Result<(), Fault> {
    if let Network::Routed(net) = &spec.sandbox.network {
        let pid = rustix::process::Pid::from_raw(pid)
            .ok_or_else(|| Fault::new("attach the network", "there is no process"))?;
        crate::net::attach(pid, net)
            .map_err(|error| Fault::new(format!("attach the network of `{}`", spec.id), error))?;
    }
    Ok(())
}
